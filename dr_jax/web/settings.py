"""Everything that can be said about the way out to the web, gathered from the modules that do it."""

from __future__ import annotations

from dataclasses import dataclass, field

from dr_jax.web.blocklist import BlockSettings
from dr_jax.web.fetch import FetchSettings
from dr_jax.web.gateway.settings import GatewaySettings, vet_gateway
from dr_jax.web.pace import PaceSettings
from dr_jax.web.render import RenderSettings
from dr_jax.web.search.settings import (
    NAMES,
    BreakerSettings,
    BudgetSettings,
    LocalSettings,
    ProvidersSettings,
    SearchSettings,
)
from dr_jax.web.tape.entry import TapeSettings
from dr_jax.web.workers import ExtractSettings


@dataclass(frozen=True, slots=True)
class WebSettings:
    """The way out to the web.

    Args:
        search: the search provider, or several in the order in which they are asked until one answers: `littleweb` (the
            embedded one), `local` (texts of yours), `searxng` (a server of yours), or, each with a key in the environment,
            `serper`, `brave`, `tavily`, `google`.
        results: hits that a search returns at most.
        search_s: for one search, at all providers, retries included; waiting for its turn (`pace.queue_s`) excepted.
        provider: address, rate and price of each provider.
        local: the texts that `local` searches.
        budget: what searching may cost.
        breaker: when a provider that fails is left alone, and likewise all pages together.
        open_s: for one page, retries and extraction included.
        memory_mb: of pages and results kept in memory, so that siblings share them.
        fetch: limits of one request.
        pace: how much is asked.
        extract: the processes that read pages.
        block: what is neither found nor opened, lest the run looks up what it is measured by.
        render: whether scripts of pages are run.
        tape: what is remembered on disk.
        gateways: addresses (`http://host:port`) of gateways through which everything is asked, spelled alike wherever they are
            named; what searching may cost and what is remembered is theirs then, and no key is needed here. None: this process
            has a way out of its own. `block` holds here all the same; where `results` or `fetch.robots` differ from a
            gateway's, the gateway's count, and that is said; a run that replays takes no gateway that does not.
        gateway: how they are served and asked.
    """

    search: str | tuple[str, ...] = "littleweb"
    results: int = 10
    search_s: float = 60.0
    provider: ProvidersSettings = field(default_factory=ProvidersSettings)
    local: LocalSettings = field(default_factory=LocalSettings)
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    breaker: BreakerSettings = field(default_factory=BreakerSettings)
    open_s: float = 120.0
    memory_mb: int = 64
    fetch: FetchSettings = field(default_factory=FetchSettings)
    pace: PaceSettings = field(default_factory=PaceSettings)
    extract: ExtractSettings = field(default_factory=ExtractSettings)
    block: BlockSettings = field(default_factory=BlockSettings)
    render: RenderSettings = field(default_factory=RenderSettings)
    tape: TapeSettings = field(default_factory=TapeSettings)
    gateways: tuple[str, ...] = ()
    gateway: GatewaySettings = field(default_factory=GatewaySettings)

    def __post_init__(self) -> None:
        if not 1 <= self.results <= 100:
            raise ValueError(f"results is {self.results}; 1 to 100 are needed")
        for name in ("search_s", "open_s", "memory_mb"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; more than 0 is needed")
        if not self.order or len(set(self.order)) < len(self.order) or not set(self.order) <= set(NAMES):
            raise ValueError(f"search is {self.search!r}; one of {', '.join(NAMES)}, or several different ones, are needed")
        if len({vet_gateway(one) for one in self.gateways}) < len(self.gateways):
            raise ValueError(f"gateways names one twice: {', '.join(self.gateways)}")
        if self.gateways and self.gateway.answer_s <= max(self.search_s + self.pace.queue_s, self.open_s):
            raise ValueError(
                f"gateway.answer_s is {self.gateway.answer_s}; more than search_s with pace.queue_s, and than open_s, is needed"
            )

    @property
    def order(self) -> tuple[str, ...]:
        """The search providers, the first is asked first."""
        return (self.search,) if isinstance(self.search, str) else self.search

    @property
    def terms(self) -> dict[str, int | str | bool]:
        """What a gateway says of itself, and a run through it should want the same."""
        return {"results": self.results, "robots": self.fetch.robots, "replays": self.tape.mode == "replay"}

    @property
    def searching(self) -> SearchSettings:
        """Everything about searching."""
        return SearchSettings(self.order, self.results, self.search_s, self.provider, self.local, self.breaker)
