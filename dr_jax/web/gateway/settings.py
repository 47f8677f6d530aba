"""How a gateway is served and how it is asked; both sides read the same table, `web.gateway`."""

from __future__ import annotations

import os
from dataclasses import dataclass

from yarl import URL


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """A gateway (`dr-jax web-gateway`) and its clients (a run with `web.gateways`).

    Args:
        token_env: the environment variable that holds the token, on both sides; it may be unset on loopback.
        requests: that one gateway works on; more are sent away, to another gateway or to come back.
        body_mb: of one request.
        body_s: for a request to arrive.
        grace_s: for what is under way when a gateway is told to stop; with less than `search_s`, a search that is given up may
            be paid for and asked again elsewhere.
        connect_s: for a connection, and for an answer about a gateway's health.
        probe_s: between two looks at the health of each gateway.
        rest_s: how long one that fails is left alone at first; doubled each time, up to `rest_max_s`.
        rest_max_s: of that.
        answer_s: for one search or page, at whichever gateways it takes; then the world is down.
        answer_mb: of one answer.
    """

    token_env: str = "DR_JAX_GATEWAY_TOKEN"  # noqa: S105 - the name of a variable
    requests: int = 1024
    body_mb: int = 4
    body_s: float = 10.0
    grace_s: float = 60.0
    connect_s: float = 5.0
    probe_s: float = 2.0
    rest_s: float = 0.5
    rest_max_s: float = 30.0
    answer_s: float = 240.0
    answer_mb: int = 64

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if name not in ("token_env", "grace_s") and getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; more than 0 is needed")
        if self.grace_s < 0 or not self.token_env:
            raise ValueError(f"grace_s is {self.grace_s}, token_env {self.token_env!r}; at least 0 and a name are needed")

    @property
    def token(self) -> str:
        """What the environment holds; "" for nothing."""
        return os.environ.get(self.token_env, "").strip()


def vet_gateway(text: str) -> str:
    """Return the address of a gateway without a slash at its end.

    Raises:
        ValueError: it is not `http://host:port` or `https://host`.
    """
    try:
        url = URL(text)
        good = url.scheme in ("http", "https") and bool(url.host) and url.port is not None and url.path in ("", "/")
    except ValueError:
        good = False
    if not good or set(text) & set("@?#"):
        raise ValueError(f"{text!r} is no gateway; http://HOST:PORT or https://HOST is needed, without path or user")
    return text.rstrip("/")
