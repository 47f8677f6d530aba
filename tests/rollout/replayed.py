"""One question, sixteen siblings, written down: against servers on loopback, or from a tape with the network cut.

As a program it plays a tape back, and fails at the first thing that would leave the process:
`python -m tests.rollout.replayed TAPE OUT PORT MODE`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

from dr_jax.agent.endpoint import Endpoint, EndpointSettings
from dr_jax.agent.model_reader import READ
from dr_jax.agent.reader import make_reader
from dr_jax.agent.reading import ReaderSettings
from dr_jax.agent.shared_reader import Shelf
from dr_jax.agent.tools import ToolSettings
from dr_jax.agent.world import World
from dr_jax.base.metrics import Metrics
from dr_jax.data.question import Question
from dr_jax.rewards.total import Total
from dr_jax.rollout.episode import Actors, EpisodeSettings
from dr_jax.rollout.group import run_group
from dr_jax.rollout.record import EpisodeWriter, read_episodes
from dr_jax.tokens.policy import RequestKey
from dr_jax.web.guard import AllowedHost
from dr_jax.web.settings import WebSettings
from dr_jax.web.tape.entry import TapeSettings
from dr_jax.web.web import Web
from tests.fakes import ScriptedPolicy, answer, browse, search, small_chat

SIBLINGS = 16
KEY = "READER_API_KEY"
PAGES = [f"http://{name}.littleweb/page" for name in ("a", "b", "c", "d")]
ILL = "http://ill.littleweb/page"  # it is found, but answers 503
LOST = "what became of Velin"  # no provider answers that
QUESTION = Question("q", "Who founded Velin?", ("Oren Vash",))


def script(key: RequestKey, seen: str) -> str:
    """What each sibling does: some open one page, some several, one what does not exist, in two orders."""
    match key.turn:
        case 0:
            return search("Velin founder")
        case 1:
            return browse(*(PAGES[:3] if key.sibling % 2 else [PAGES[key.sibling % 4]]))
        case 2:
            if key.sibling in (3, 5):
                return browse("http://gone.littleweb/nothing" if key.sibling == 3 else ILL)
            return search("Velin", "Oren Vash", *([LOST] if key.sibling == 7 else []))
        case 3:
            return browse(PAGES[3], PAGES[0])
        case _:
            return answer("Oren Vash" if "Oren" in seen else "unknown")


async def attempt(tape: Path, out: Path, port: int, mode: Literal["live", "record", "replay"]) -> dict[str, float]:
    """Run the siblings, write their episodes, return what was counted. Both servers listen on the port."""
    metrics, chat = Metrics(), small_chat()
    wanted = ReaderSettings(
        kind="openai", endpoint=EndpointSettings(f"http://127.0.0.1:{port}/v1", "m", KEY, all_s=20.0, seconds=10.0)
    )
    settings = WebSettings(results=5, search_s=5.0, tape=TapeSettings(mode, str(tape)))
    web = Web(settings, allow=[AllowedHost("littleweb", "127.0.0.1", port)], metrics=metrics)
    endpoint = Endpoint(wanted.endpoint, READ, wanted.max_new_tokens, metrics=metrics, replays=mode == "replay")
    async with web, endpoint:
        shelf = Shelf(web, replays=mode == "replay", must=True)
        reader = make_reader(wanted, chat=chat, policy=None, metrics=metrics, endpoint=endpoint, shelf=shelf)
        world = World(web, reader, ToolSettings(observation_tokens=900), metrics=metrics)
        actors = Actors(ScriptedPolicy(chat, script), chat, world, "research")
        limits = EpisodeSettings(turns=5, tokens=30_000, max_new_tokens=600, world_s=120.0, all_s=240.0)
        group = await run_group(QUESTION, actors, limits, Total(), size=SIBLINGS)
        await reader.close()
    with EpisodeWriter(out, chat.tokenizer.decode) as writer:
        for episode in group.episodes:
            writer.write(episode, QUESTION)
    return metrics.drain()


def timeless(path: Path) -> bytes:
    """The episodes of a file, byte for byte, without how long anything took."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: without(one) for name, one in value.items() if name != "seconds"}
        return [without(one) for one in value] if isinstance(value, list) else value

    return "\n".join(json.dumps(without(row)) for row in read_episodes(path)).encode()


def cut(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse to leave the process."""
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"):
        raise RuntimeError(f"the network is cut: {event} {arguments[1:]}")


def main(arguments: Sequence[str]) -> None:
    tape, out, port, mode = arguments
    sys.addaudithook(cut)
    counted = asyncio.run(attempt(Path(tape), Path(out), int(port), cast(Any, mode)))
    print(json.dumps(counted))


if __name__ == "__main__":
    main(sys.argv[1:])
