"""Open what `--model` and `--judge` name: a model that runs here, or a server.

In:    a name as in `model.load`, a run's directory, or an address
Out:   Opened: worlds to act in, what has to be well before an episode is begun, what is spent; a judge's Model
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dr_jax.agent.endpoint import Endpoint, Spending
from dr_jax.agent.model_reader import Model, PolicyModel
from dr_jax.base.errors import CheckpointError, ConfigError
from dr_jax.base.metrics import Metrics
from dr_jax.evaluate.server import ServerPolicy, chat_of
from dr_jax.evaluate.settings import EvaluationSettings
from dr_jax.evaluate.spent import Ledger
from dr_jax.model.load import tokenizer_source
from dr_jax.model.sizes import NAMED
from dr_jax.rewards.judge import INSTRUCTIONS
from dr_jax.tokens.tokenizer import Tokenizer
from dr_jax.train.places import Place, Places, Speaker
from dr_jax.train.run import opened_stage
from dr_jax.train.saved import saved
from dr_jax.train.settings import Settings

Told = Callable[[str, int, Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that can be evaluated.

    Args:
        places: where it acts.
        ledger: what it costs.
        server: that it runs on; None when it runs here.
    """

    places: Places
    ledger: Ledger
    server: ServerPolicy | None = None

    async def healthy(self, place: Place) -> None:
        """Wait until an episode may be begun.

        Raises:
            WorldDownError: something has been down for too long.
            BudgetError: something has cost as much as it may.
        """
        await place.healthy()
        if self.server is not None:
            await self.server.healthy()


def is_address(where: str) -> bool:
    """Whether a model is a server.

    Raises:
        ConfigError: its address holds more than an address: it stands in files, and a password must not.
    """
    if not where.startswith(("http://", "https://")):
        return False
    parts = urlsplit(where)
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigError(
            f"The address of the server at {parts.hostname} holds a name, a password or parameters",
            needed="an address alone, such as http://127.0.0.1:8000/v1",
            fix="name the variable of its key: server.endpoint.key, or judge.endpoint.key",
        )
    return True


def as_run(settings: EvaluationSettings, where: str) -> EvaluationSettings:
    """Return the settings with which a model runs here; for a server, with its tokenizer."""
    if is_address(where):
        tokenizer = settings.server.tokenizer or settings.model.tokenizer
        return replace(settings, model=replace(settings.model, tokenizer=str(_tokenizer(settings.model.load, tokenizer))))
    tokenizer = settings.model.tokenizer if where == settings.model.load else ""
    run = saved(where)
    return replace(settings, model=replace(settings.model, load=where, tokenizer=tokenizer or (run.base if run else "")))


def identity(settings: EvaluationSettings, name: str, where: str) -> dict[str, Any]:
    """Return what tells a model from all others: the contents of its files, or where it is served.

    Raises:
        CheckpointError: nothing has that name.
    """
    if is_address(where):
        endpoint = settings.server.endpoint
        return {
            "url": where,
            "model": endpoint.model or name,
            "api": settings.server.api,
            "tokenizer": settings.server.tokenizer,
            "parameters": dict(endpoint.parameters),
        }
    run, path = saved(where), Path(where)
    if run is not None:
        files = list(Path(run.path, "state").rglob("*")) if "://" not in str(run.path) else []
        return {"checkpoint": run.path.name, "files": _digest(files) or str(run.path), "dtype": settings.model.dtype}
    if path.is_dir():
        files = [one for one in path.iterdir() if one.suffix in (".safetensors", ".json", ".jinja")]
    elif path.is_file():
        files = [path]
    elif where == "smollm2" or where in NAMED:
        files = []
    else:
        raise CheckpointError(
            f"There is no model {where!r} (for --model {name}=…)",
            needed="a model's or a run's directory, a .gguf file, smollm2, a named size, or the address of a server",
            fix="check the path",
        )
    return {"files": _digest(files) or f"{where}, seed {settings.seed}", "dtype": settings.model.dtype}


@asynccontextmanager
async def opened_model(
    settings: EvaluationSettings, name: str, where: str, metrics: Metrics, told: Told
) -> AsyncIterator[Opened]:
    """Open a model, and compile its programs if it runs here."""
    if not is_address(where):
        async with _stage(settings, where, metrics, told) as stage:
            yield Opened(stage, Ledger({"searching": stage.budget, "reading": stage.spending}))
        return
    if settings.reader.kind == "policy" and settings.reader.model != "self":
        raise ConfigError(
            f"reader.model = {settings.reader.model!r} would run here, beside a policy on a server",
            needed='reader.kind = "extractive" or "openai", or reader.model = "self": the server reads',
            fix="set one of these",
        )
    endpoint = replace(settings.server.endpoint, url=where, model=settings.server.endpoint.model or name)
    server = replace(settings.server, endpoint=endpoint)
    tokenizer = _tokenizer(settings.model.load, settings.server.tokenizer or settings.model.tokenizer)
    chat, spending = chat_of(server, Tokenizer.load(tokenizer)), Spending(endpoint, metrics, under="server")
    async with AsyncExitStack() as stack:
        policy = await stack.enter_async_context(ServerPolicy(server, chat, metrics=metrics, spending=spending))
        places = Places(settings, Speaker(policy, chat, lambda: f"{endpoint.model} at {where}"), metrics, stack)
        ledger = Ledger({"searching": places.budget, "reading": places.spending, "policy": spending})
        yield Opened(places, ledger, policy)


@asynccontextmanager
async def opened_judge(
    settings: EvaluationSettings, where: str, metrics: Metrics, told: Told
) -> AsyncIterator[tuple[Model, Ledger]]:
    """Open a judge."""
    judge = settings.judge
    if is_address(where):
        endpoint = replace(judge.endpoint, url=where)
        spending = Spending(endpoint, metrics, under="judge")
        asked = Endpoint(endpoint, INSTRUCTIONS, judge.max_new_tokens, metrics=metrics, spending=spending, under="judge")
        async with asked:
            yield asked, Ledger({"judging": spending})
        return
    async with _stage(settings, where, metrics, told) as stage:
        actor = stage.actor
        yield PolicyModel(actor.engine, actor.chat, judge.max_new_tokens, INSTRUCTIONS), Ledger({})


def judge_name(settings: EvaluationSettings, where: str) -> str:
    """Return what tells a judge's verdicts from another's.

    Raises:
        CheckpointError: nothing has that name.
        ConfigError: it is a server, and which model of it is not said.
    """
    if not is_address(where):
        return f"{where} {identity(settings, 'judge', where)['files'][:12]}"
    if not settings.judge.endpoint.model:
        raise ConfigError(f"--judge {where} is a server", needed="the name of its model", fix="set judge.endpoint.model=…")
    return f"{settings.judge.endpoint.model} at {where}"


@asynccontextmanager
async def _stage(settings: EvaluationSettings, where: str, metrics: Metrics, told: Told) -> AsyncIterator[Any]:
    run: Settings = as_run(settings, where)
    async with opened_stage(run, metrics, told) as (stage, _):
        stage.warm_up(lambda name, done, count: told("compiling", done, {"program": name, "count": count}))
        yield stage


def _tokenizer(model: str, tokenizer: str) -> Path:
    run = saved(model)
    return tokenizer_source(run.base if run else model, tokenizer)


def _digest(files: Iterable[Path]) -> str:
    """Return a digest of files' names and contents; "" of none."""
    lines = []
    for path in sorted(files):
        if path.is_file():
            with path.open("rb") as file:
                lines.append(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32] if lines else ""
