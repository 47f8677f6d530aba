"""Every provider by name, and what the environment and the settings say of it."""

from __future__ import annotations

import os
from collections.abc import Mapping

from dr_jax.base.errors import UserError
from dr_jax.web.search.brave import BRAVE
from dr_jax.web.search.google import GOOGLE
from dr_jax.web.search.provider import Parameters, Provider, Query
from dr_jax.web.search.searxng import SEARXNG
from dr_jax.web.search.serper import LITTLEWEB, SERPER
from dr_jax.web.search.settings import ProviderSettings, SearchSettings
from dr_jax.web.search.tavily import TAVILY

PROVIDERS: Mapping[str, Provider] = {
    "littleweb": LITTLEWEB,
    "serper": SERPER,
    "brave": BRAVE,
    "tavily": TAVILY,
    "searxng": SEARXNG,
    "google": GOOGLE,
}
_KEYLESS = 'search without a key: web.search = "littleweb", "searxng" (a server of yours) or "local" (texts of yours)'


def template(name: str, settings: ProviderSettings, results: int) -> Query:
    """Return what every query to a provider has in common.

    Args:
        name: of the provider.
        settings: of the provider.
        results: wanted; never more than it gives.

    Raises:
        UserError: a key, an address or a parameter is missing; no key's value is shown.
    """
    provider = PROVIDERS[name]
    parameters: dict[str, str | int | float | bool] = dict(settings.parameters)
    for parameter, variable in provider.also.items():
        parameters.setdefault(parameter, os.environ.get(variable, "").strip())
        if not parameters[parameter]:
            raise UserError(
                f"web.search is {name}, but neither {variable} nor web.provider.{name}.parameters.{parameter} is set",
                needed=f"the {parameter} of {provider.title}",
                fix=f"set one of them, or {_KEYLESS}",
            )
    url = settings.url or os.environ.get(provider.url_variable or "-", "").strip() or provider.url
    if not url.startswith(("http://", "https://")):
        raise UserError(
            f"web.search is {name}, but its address is {url!r}",
            needed=f"where your {provider.title} listens, in web.provider.{name}.url or {provider.url_variable}",
            fix=f"set it, such as http://127.0.0.1:8888, or {_KEYLESS}",
        )
    return Query("", min(results, provider.most), url, _key(name, provider), parameters)


def templates(settings: SearchSettings) -> dict[str, Query]:
    """Return `template` for every provider that is asked over HTTP.

    Raises:
        UserError: a key, an address or a parameter is missing.
    """
    return {
        name: template(name, getattr(settings.provider, name), settings.results) for name in settings.order if name in PROVIDERS
    }


def remembered_as(settings: SearchSettings) -> str:
    """Return what this order of providers is called on a tape; with other parameters they find something else."""
    return ",".join(
        label(name, getattr(settings.provider, name).parameters if name in PROVIDERS else {}) for name in settings.order
    )


def cost(name: str, settings: ProviderSettings, results: int) -> float:
    """Return what one query costs."""
    provider = PROVIDERS[name]
    return settings.cost if settings.cost is not None else provider.cost * provider.units(min(results, provider.most))


def label(name: str, parameters: Parameters) -> str:
    """Return a provider's name with its parameters."""
    return name + "".join(f"[{key}={parameters[key]}]" for key in sorted(parameters))


def _key(name: str, provider: Provider) -> str:
    if not provider.key:
        return ""
    key = os.environ.get(provider.key, "").strip()
    if not key or not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(
            f"web.search is {name}, but {provider.key} is {'no key' if key else 'not set'}",
            needed=f"an API key of {provider.title} in that environment variable",
            fix=f"set it, or {_KEYLESS}",
        )
    return key
