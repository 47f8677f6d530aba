"""Which search providers are asked, in which order, how fast, for how much."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

NAMES = ("littleweb", "serper", "brave", "tavily", "searxng", "google", "local")


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """One provider; what is not set is the provider's own default.

    Args:
        url: where it is asked; "" is its documented address. A host named here may be one on loopback or in a private network.
        parameters: sent with every query, beside the usual ones or in their place (`gl`, `country`, `engines`, `cx`, …).
        per_s: queries in a second, after a burst of as many.
        concurrent: queries under way.
        cost: of one query, in the currency of the budget.
    """

    url: str = ""
    parameters: dict[str, str | int | float | bool] = field(default_factory=dict)
    per_s: float | None = None
    concurrent: int | None = None
    cost: float | None = None

    def __post_init__(self) -> None:
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url is {self.url!r}; an absolute http or https address is needed")
        for name in ("per_s", "concurrent"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"{name} is {value}; more than 0 is needed")
        if self.cost is not None and self.cost < 0:
            raise ValueError(f"cost is {self.cost}; at least 0 is needed")


@dataclass(frozen=True, slots=True)
class ProvidersSettings:
    """Every provider that is asked over HTTP."""

    littleweb: ProviderSettings = field(default_factory=ProviderSettings)
    serper: ProviderSettings = field(default_factory=ProviderSettings)
    brave: ProviderSettings = field(default_factory=ProviderSettings)
    tavily: ProviderSettings = field(default_factory=ProviderSettings)
    searxng: ProviderSettings = field(default_factory=ProviderSettings)
    google: ProviderSettings = field(default_factory=ProviderSettings)


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """Texts of your own that are searched instead of, or after, the web.

    Args:
        path: a folder of .txt, .md, .html and .jsonl files, or one .jsonl file.
        index: where the index is kept; "" puts it beside the corpus, as `<path>.index`.
        ranking: `fts5` (SQLite) or `bm25s` (the package of that name; its index is read into memory).
        words: what is a word to `fts5`: `english` ones without their endings, `plain` ones as they are, or `trigram`, any three
            characters, for languages that write without spaces.
        threads: that search at the same time.
        update_s: how long another process that updates the same index is waited for.
    """

    path: str = ""
    index: str = ""
    ranking: Literal["fts5", "bm25s"] = "fts5"
    words: Literal["english", "plain", "trigram"] = "english"
    threads: int = 2
    update_s: float = 3600.0

    def __post_init__(self) -> None:
        if self.threads < 1 or self.update_s <= 0:
            raise ValueError(f"threads and update_s are {self.threads} and {self.update_s}; at least 1, more than 0 are needed")


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """Everything about searching.

    Args:
        order: the providers, the first is asked first.
        results: hits that a search returns at most.
        search_s: for one search, at all providers.
        provider: each one's settings.
        local: texts of your own.
        breaker: when a provider is left alone.
    """

    order: tuple[str, ...]
    results: int
    search_s: float
    provider: ProvidersSettings
    local: LocalSettings
    breaker: BreakerSettings


@dataclass(frozen=True, slots=True)
class BudgetSettings:
    """What searching may cost in all. Searches that are remembered cost nothing.

    Args:
        queries: that are sent to providers; 0 is any number.
        money: that they cost, in the currency of the providers' `cost` (US dollars by default); 0 is any amount.
    """

    queries: int = 0
    money: float = 0.0

    def __post_init__(self) -> None:
        if self.queries < 0 or self.money < 0:
            raise ValueError(f"queries and money are {self.queries} and {self.money}; at least 0 (no limit) is needed")


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """When a provider is left alone, and for how long; and likewise all pages together.

    Args:
        failures: in a row, of single requests, after which it is. At 30 % failures ten in a row are one in 170,000. Of pages
            they must be on three hosts or more.
        open_s: how long at first; doubled each time the probe afterwards fails too.
        most_s: how long at most; also after an answer that time does not cure: a wrong key, no credits.
        hold_s: a pause of up to this long, which the provider asks for by Retry-After, is waited for; for a longer one
            it is left alone.
        down_s: how long all providers may be left alone before waiting for them is given up.
    """

    failures: int = 10
    open_s: float = 5.0
    most_s: float = 300.0
    hold_s: float = 10.0
    down_s: float = 3600.0

    def __post_init__(self) -> None:
        if self.failures < 1 or not 0 < self.open_s <= self.most_s or self.hold_s < 0 or self.down_s <= 0:
            raise ValueError(f"{self}: failures >= 1, 0 < open_s <= most_s, hold_s >= 0 and down_s > 0 are needed")
