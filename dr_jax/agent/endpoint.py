"""Ask a model behind an OpenAI-compatible server, within its limits and a budget.

In:    what is asked, as one message
Out:   the reply's text; None when the server does not take so long a message, or not this one
Fails: WorldDownError when the server does not answer, at once while it is left alone; BudgetError before more is spent than
       may be; UserError when its key is not in the environment
Holds: whatever is under way is counted at the most that it can cost, so the budget is never passed; the key travels in a header
       and stands in no message
"""

from __future__ import annotations

import json
import os
import re
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dr_jax.base.errors import BudgetError, UserError
from dr_jax.base.metrics import Metrics, Under
from dr_jax.tokens.policy import RequestKey
from dr_jax.web.fetch import Fetcher, FetchSettings
from dr_jax.web.guard import Guard, Lookup
from dr_jax.web.pace import Pace, PaceSettings, Slots
from dr_jax.web.page import WebError
from dr_jax.web.search.breaker import Breaker
from dr_jax.web.search.desk import leave
from dr_jax.web.search.failover import Failover, Patience
from dr_jax.web.search.provider import Request, Verdict, as_object, judged
from dr_jax.web.search.settings import BreakerSettings
from dr_jax.web.search.source import BILLED, HttpAsk, ProviderError, Source

_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*(_API_KEY|_TOKEN|_SECRET|_PASSWORD)")
# What a server says of a message that it would not take from anybody: too long, or filtered.
_MESSAGE = re.compile(
    rb"context|too.{0,9}(?:long|large|many)|maximum|length|content.?(?:filter|management)|safety", re.IGNORECASE
)
_MILLION = 1_000_000
_OVERHEAD = 64  # tokens that a chat template puts around two messages
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class SpendingSettings:
    """What a server may cost in all; 0 is no limit. Replies that are remembered cost nothing.

    Args:
        calls: requests.
        tokens: read and written.
        money: that they cost, by the endpoint's prices.
    """

    calls: int = 0
    tokens: int = 0
    money: float = 0.0

    def __post_init__(self) -> None:
        if self.calls < 0 or self.tokens < 0 or self.money < 0:
            raise ValueError(f"{self}: at least 0 (no limit) is needed")


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """An OpenAI-compatible server.

    Args:
        url: below which it serves `/chat/completions`, such as `http://127.0.0.1:8000/v1`. It may be on loopback or in a
            private network; no page can reach it.
        model: as the server calls it.
        key: the environment variable that holds its key; "" when it needs none.
        parameters: sent with every request, beside the usual ones or in their place.
        seconds: for one reply.
        all_s: for one reply, all attempts, waiting for its turn excepted.
        attempts: where asking again can help; a time-out is tried at most twice.
        concurrent: requests under way.
        per_s: requests in a second.
        queue_s: how long one may wait for its turn.
        input_cost: of a million tokens that it reads, in the currency of the budget.
        output_cost: of a million tokens that it writes.
        budget: what it may cost.
        breaker: when it is left alone because it fails.
    """

    url: str = ""
    model: str = ""
    key: str = ""
    parameters: dict[str, str | int | float | bool] = field(default_factory=dict)
    seconds: float = 60.0
    all_s: float = 180.0
    attempts: int = 4
    concurrent: int = 32
    per_s: float = 50.0
    queue_s: float = 120.0
    input_cost: float = 0.0
    output_cost: float = 0.0
    budget: SpendingSettings = field(default_factory=SpendingSettings)
    breaker: BreakerSettings = field(default_factory=BreakerSettings)

    def __post_init__(self) -> None:
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url is {self.url!r}; an absolute http or https address is needed")
        if self.key and not _VARIABLE.fullmatch(self.key):  # it is not told: it may be the key itself
            raise ValueError("key is the NAME of an environment variable, one that ends in _API_KEY, _TOKEN or _SECRET")
        for name in ("seconds", "all_s", "attempts", "concurrent", "per_s", "queue_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; more than 0 is needed")
        if min(self.input_cost, self.output_cost) < 0:
            raise ValueError(f"input_cost and output_cost are {self.input_cost} and {self.output_cost}; at least 0 is needed")

    def price(self, read: int, written: int) -> float:
        """What so many tokens cost."""
        return (read * self.input_cost + written * self.output_cost) / _MILLION


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered, the tokens that it counted, and why it ended; None and "" where it did not say."""

    text: str
    read: int | None
    written: int | None
    finish: str = ""


class Spending:
    """What a run has spent on one server; share it among all `Endpoint`s of the run.

    Args:
        settings: prices and limits.
        metrics: counts `reader/calls`, `reader/tokens_read`, `reader/tokens_written`, `reader/money`.
        under: in place of `reader`; the settings are found at `<under>.endpoint`.
    """

    def __init__(self, settings: EndpointSettings, metrics: Metrics, *, under: str = "reader") -> None:
        self._settings, self._metrics, self._under = settings, metrics, under
        self.calls, self.tokens, self.money = 0, 0, 0.0

    def reserve(self, read: int, written: int) -> None:
        """Count one request at the most that it can take, right before it is sent.

        Raises:
            BudgetError: it would pass the budget.
        """
        limits, price = self._settings.budget, self._settings.price(read, written)
        if limits.calls and self.calls + 1 > limits.calls:
            raise self._used_up(f"{limits.calls:,} calls", "calls")
        if limits.tokens and self.tokens + read + written > limits.tokens:
            raise self._used_up(f"{limits.tokens:,} tokens, and the next call may take {read + written:,}", "tokens")
        if limits.money and price > 0 and self.money + price > limits.money + _ROUNDING:
            raise self._used_up(f"{limits.money:g} in money, and the next call may cost {price:.3g}", "money")
        self._count(1, read, written)

    def correct(self, reserved: tuple[int, int], used: tuple[int, int]) -> None:
        """Put what a request took in the place of the most that it could take."""
        self._count(0, used[0] - reserved[0], used[1] - reserved[1])

    def cancel(self, reserved: tuple[int, int]) -> None:
        """Undo `reserve`: the server said that it failed, and does not bill that."""
        self._count(-1, -reserved[0], -reserved[1])

    def _count(self, calls: int, read: int, written: int) -> None:
        price = self._settings.price(read, written)
        self.calls, self.tokens, self.money = self.calls + calls, self.tokens + read + written, max(0.0, self.money + price)
        for name, amount in (("calls", calls), ("tokens_read", read), ("tokens_written", written), ("money", price)):
            self._metrics.add(f"{self._under}/{name}", amount)

    def _used_up(self, limit: str, setting: str) -> BudgetError:
        spent = f"{self.calls:,} calls took {self.tokens:,} tokens, for {self.money:.4g} in money"
        return BudgetError(
            f"The budget of the {self._under} is used up: {spent}; the limit is {limit}",
            needed="a larger budget; what is on the tape costs nothing",
            fix=f"raise {self._under}.endpoint.budget.{setting} (0 is no limit) and go on from where it was",
        )


class Endpoint:
    """One model on one server. An async context manager.

    Args:
        settings: where it is, and its limits.
        system: what it is told before every message.
        max_new_tokens: of a reply.
        metrics: everything under `reader/`; `reader/queue` is how many messages wait for their turn.
        spending: of the run.
        lookup: from a name to its addresses; the system's by default.
        replays: whether nothing will be asked, because all readings are on a tape that is played back: then no key is needed.
        under: in place of `reader`; the settings are found at `<under>.endpoint`.

    Raises:
        UserError: the environment holds no key under the name that the settings give.
    """

    def __init__(
        self,
        settings: EndpointSettings,
        system: str,
        max_new_tokens: int,
        *,
        metrics: Metrics,
        spending: Spending | None = None,
        lookup: Lookup | None = None,
        replays: bool = False,
        under: str = "reader",
    ) -> None:
        self._settings, self._system, self._max_new_tokens, self._under = settings, system, max_new_tokens, under
        self._metrics, self._spending = metrics, spending or Spending(settings, metrics, under=under)
        self._key, self._lookup = "" if replays else _key(settings, under), lookup
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Endpoint:
        settings = self._settings
        slow = FetchSettings(first_byte_s=settings.seconds, total_s=settings.seconds, deadline_s=settings.seconds)
        async with AsyncExitStack() as stack:
            apart = Under(self._metrics, self._under)  # what is asked of a model is no traffic of the web's
            guard = Guard(await leave(settings.url, lookup=self._lookup))
            fetcher = await stack.enter_async_context(Fetcher(slow, guard, Pace(PaceSettings()), apart, self._lookup))
            look = f"the value of {settings.key}" if settings.key else f"{self._under}.endpoint.key, which names none"
            self._http = HttpAsk(f"the {self._under}", self._request, self._read, judge, look, fetcher)
            queue = partial(self._metrics.gauge, f"{self._under}/queue")
            source = Source(
                "openai",
                self._billed,
                cost=0.0,
                slots=Slots(settings.concurrent, settings.per_s, max(1, int(settings.per_s)), queue),
                queue_s=settings.queue_s,
                vetted=False,  # a page may be too long for it, and so may the next ones
                breaker=Breaker("openai", settings.breaker, self._metrics, under=self._under),
                hold_s=settings.breaker.hold_s,
                budget=None,
                metrics=self._metrics,
                under=self._under,
            )
            patience = Patience(settings.all_s, settings.queue_s, settings.attempts, 0.5, 10.0, settings.breaker.down_s)
            self._failover = Failover([source], patience, self._metrics, under=self._under, what=self._under)
            stack.push_async_callback(self._failover.close)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def reply(self, asked: str, key: RequestKey) -> str | None:
        """Return what the model says; None when the server does not take this message.

        Raises:
            WorldDownError: it did not answer.
            BudgetError: it has cost as much as it may.
        """
        found = await self.ask(asked)
        return None if found is None else found.text

    async def ask(self, asked: str) -> Reply | None:
        """Return the reply with what it took; None when the server does not take this message.

        Raises:
            WorldDownError, BudgetError: as `reply`.
        """
        found = await self._failover.search(asked)
        return None if isinstance(found, WebError) else found

    async def healthy(self) -> None:
        """Wait until the server may be asked: at once, unless it is left alone because it fails.

        Raises:
            WorldDownError: it has been down for longer than `breaker.down_s`.
            BudgetError: it has cost as much as it may.
        """
        await self._failover.healthy()

    def _request(self, asked: str) -> Request:
        settings = self._settings
        limit = {} if "max_completion_tokens" in settings.parameters else {"max_tokens": self._max_new_tokens}
        messages = [{"role": "system", "content": self._system}, {"role": "user", "content": asked}]
        usual = {"model": settings.model, "messages": messages, "temperature": 0, **limit}
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        return Request("POST", settings.url.rstrip("/") + "/chat/completions", headers, usual | settings.parameters)

    @property
    def _most_written(self) -> int:
        """Tokens that a reply may have, whatever the parameters make of it."""
        told = self._settings.parameters
        limits = [int(told[name]) for name in ("max_completion_tokens", "max_tokens") if name in told]
        return max([self._max_new_tokens, *limits]) * int(told.get("n", 1))

    def _most(self, asked: str) -> tuple[int, int]:
        """Tokens that it may read and write; none is shorter than a byte."""
        return len(self._system.encode()) + len(asked.encode()) + _OVERHEAD, self._most_written

    def _read(self, content: Any) -> Reply:
        return read_reply(content)

    async def _billed(self, asked: str) -> Reply | WebError:
        most = self._most(asked)
        self._spending.reserve(*most)
        try:
            found = await self._http(asked)
        except ProviderError as error:
            if error.kind not in BILLED:
                self._spending.cancel(most)
            raise
        if isinstance(found, WebError):
            self._spending.cancel(most)
        else:
            used = tuple(most[place] if told is None else told for place, told in enumerate((found.read, found.written)))
            self._spending.correct(most, (used[0], used[1]))
        return found


def read_reply(content: Any) -> Reply:
    """Read a chat completion; a reply without text, such as a refusal, is an empty text.

    Raises:
        KeyError, TypeError, ValueError: it has another shape.
    """
    (choice,) = as_object(content)["choices"][:1]
    return as_reply(content, as_object(as_object(choice)["message"]).get("content"), choice.get("finish_reason"))


def as_reply(content: dict[str, Any], text: Any, finish: Any) -> Reply:
    """Put a completion's text, its end and its usage together; what has another type is as if it were not there."""
    usage = content.get("usage")
    counted = usage if isinstance(usage, dict) else {}
    return Reply(
        text if isinstance(text, str) else "",
        _count(counted.get("prompt_tokens")),
        _count(counted.get("completion_tokens")),
        finish if isinstance(finish, str) else "",
    )


def judge(status: int, body: bytes) -> Verdict:
    """Return what a status means: a message that is too long or filtered is nobody's failure."""
    if status in (400, 413, 422):
        return "bad_query" if status == 413 or _MESSAGE.search(body) else "unknown"
    return judged(status, body)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _key(settings: EndpointSettings, under: str) -> str:
    """Return the key, from the environment.

    Raises:
        UserError: it is not there.
    """
    key = os.environ.get(settings.key, "").strip() if settings.key else ""
    if settings.key and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise UserError(
            f"{under}.endpoint.key names {settings.key}, which is {'no key' if key else 'not set'}",
            needed=f"the key of {settings.url} in that environment variable",
            fix='set it, or read without a key: reader.kind = "extractive" or "policy"' if under == "reader" else "set it",
        )
    return key


def remembered_as(settings: EndpointSettings) -> str:
    """Return what this model is called on a tape."""
    return json.dumps([settings.url, settings.model, dict(sorted(settings.parameters.items()))])
