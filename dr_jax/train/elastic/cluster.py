"""Find a Ray cluster, or start one. With `crew` and `web_crew`, the only module that imports Ray.

In:    `rollout.ray`
Out:   a connection of this process, which ends with the context
Fails: ConfigError within the deadline, with the address that was tried
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from dr_jax.base.errors import ConfigError
from dr_jax.base.trace import logger
from dr_jax.train.elastic.settings import RaySettings
from dr_jax.train.elastic.wire import LostError

Answer = TypeVar("Answer")
_log = logger(__name__)
_RESTS = 4  # times that the rest before the next attempt is doubled at most
_WAITS_S = 60.0  # for room on a host, between two looks


@asynccontextmanager
async def connected(settings: RaySettings) -> AsyncIterator[None]:
    """Join the cluster for as long as the block lasts, unless this process is in one already.

    Raises:
        ConfigError: it does not answer in time, or does not take this process.
    """
    if ray.is_initialized():
        yield
        return
    if settings.address not in ("auto", "local"):
        await _refuse_silence(settings)
    over = threading.Event()
    try:
        thread = await _initialized(settings, over)
        yield
    finally:
        over.set()
    await asyncio.to_thread(thread.join, settings.connect_s)


async def answered(call: Awaitable[Answer], name: str) -> Answer:
    """Await what an actor returns.

    Raises:
        LostError: it is dead, or what it did has failed.
    """
    try:
        return await call
    except RayError as error:
        cause = getattr(error, "cause", None) or error
        told = " ".join(str(cause).split())
        raise LostError(f"{name} is lost: {type(cause).__name__}: {told[:400]}") from error


def taking(cpus: float, gpus: float, resource: str) -> dict[str, Any]:
    """Return Ray's options for an actor that takes so much of its host, and is not started again behind our back."""
    return {
        "num_cpus": cpus,
        "num_gpus": gpus,
        "resources": {resource: 1} if resource else {},
        "max_restarts": 0,
        "scheduling_strategy": "SPREAD",
    }


async def staffed(new: Callable[[], Any], use: Callable[[Any, Callable[[], None]], Awaitable[None]], rest_s: float) -> None:
    """Keep one actor, for ever: in the place of each that is lost another is started.

    Args:
        new: asks for one.
        use: opens an actor, calls what it is given once that went well, and goes on until it raises LostError.
        rest_s: before the next attempt, after one that could not be opened; doubled each time, up to 16 times that.
    """
    failures = 0

    def well() -> None:
        nonlocal failures
        failures = 0

    while True:
        failures += 1
        actor = new()
        try:
            await use(actor, well)
        except LostError as error:
            _log.warning("%s", error)
        finally:
            ray.kill(actor)
        if failures:
            await asyncio.sleep(rest_s * 2 ** min(failures - 1, _RESTS))


async def arrived(call: Awaitable[Answer], name: str, wants: str) -> Answer:
    """Await an actor's first answer: for as long as it takes to get a host with room, because the run goes on without.

    Args:
        call: to it.
        name: of the actor, for people.
        wants: what it waits for, likewise.

    Raises:
        LostError: it died.
    """
    theirs = asyncio.ensure_future(answered(call, name))
    told = False
    try:
        while True:
            done, _ = await asyncio.wait([theirs], timeout=_WAITS_S)
            if done:
                return theirs.result()
            if not told:
                _log.info("%s waits for a host with room (%s)", name, wants)
            told = True
    finally:
        theirs.cancel()


async def _refuse_silence(settings: RaySettings) -> None:
    """Try the address: Ray itself would try for minutes."""
    host, _, port = settings.address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(
            f"rollout.ray.address = {settings.address!r} is no address",
            needed="auto, HOST:6379, ray://HOST:10001 or local",
            fix="name the host and the port of the cluster's head",
        )
    try:
        async with asyncio.timeout(settings.connect_s):
            _, writer = await asyncio.open_connection(host, int(port))
    except (OSError, TimeoutError) as error:
        raise _unreachable(settings, str(error) or f"no answer within {settings.connect_s:g} s") from error
    writer.close()


async def _initialized(settings: RaySettings, over: threading.Event) -> threading.Thread:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    loop, arguments = asyncio.get_running_loop(), _arguments(settings)

    def settle(error: BaseException | None) -> None:
        if not done.done():
            done.set_exception(error) if error is not None else done.set_result(None)

    def begin() -> None:
        # In a thread: Ray would take over the signals of the main one, and cannot be given a deadline. The thread stays: when
        # it ends, Linux ends what it has started, a local cluster among it (PR_SET_PDEATHSIG).
        try:
            ray.init(**arguments)
        except BaseException as error:  # noqa: BLE001 it is raised below
            loop.call_soon_threadsafe(settle, error if isinstance(error, Exception) else RuntimeError(repr(error)))
        else:
            loop.call_soon_threadsafe(settle, None)
            over.wait()
            ray.shutdown()

    thread = threading.Thread(target=begin, name="ray.init", daemon=True)
    thread.start()
    try:
        async with asyncio.timeout(settings.connect_s):
            await done
    except TimeoutError:
        raise _unreachable(settings, f"it did not take this process within {settings.connect_s:g} s") from None
    except Exception as error:
        raise _unreachable(settings, " ".join(str(error).split())[:600]) from error
    return thread


def _arguments(settings: RaySettings) -> dict[str, Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    given: dict[str, Any] = {"address": settings.address, "log_to_driver": False, "logging_level": logging.WARNING}
    if settings.address != "local":
        return given
    takers = (settings, settings.web)
    cpus = sum(one.workers * one.cpus for one in takers)
    resources = {one.resource: sum(each.workers for each in takers if each.resource == one.resource) for one in takers}
    resources.pop("", None)
    return {**given, "num_cpus": max(os.cpu_count() or 1, int(cpus) + 1), "resources": resources, "include_dashboard": False}


def _unreachable(settings: RaySettings, why: str) -> ConfigError:
    return ConfigError(
        f"The Ray cluster at rollout.ray.address = {settings.address!r} cannot be used: {why}",
        needed="a cluster of the same Ray and Python as here",
        fix="start one (`ray start --head`), name its HOST:PORT, or set rollout.ray.address=local to try it on this machine",
    )
