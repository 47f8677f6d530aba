"""A server that speaks OpenAI's completions and chat completions: a real one, on loopback, that says what it is told to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Says = Callable[[dict[str, Any]], str]


class Server:
    """Answers both ways of asking; dies after so many answers, until it is told to live longer.

    Args:
        says: from the body of a request to the text of the reply.
    """

    def __init__(self, says: Says) -> None:
        self.says, self.lives = says, 10**9
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.refused, self.finish = 0, "stop"
        self.refusal: tuple[int, str] | None = None
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        if self.lives <= 0:
            self.refused += 1
            return web.Response(status=503)
        self.lives -= 1
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        if self.refusal:
            return web.Response(status=self.refusal[0], text=self.refusal[1])
        text = self.says(body)
        said = (
            {"text": text} if request.path.endswith("/v1/completions") else {"message": {"role": "assistant", "content": text}}
        )
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        return web.json_response({"choices": [{**said, "finish_reason": self.finish}], "usage": usage})


@asynccontextmanager
async def serving(says: Says) -> AsyncIterator[Server]:
    """Serve on loopback."""
    server, app = Server(says), web.Application(client_max_size=1 << 24)
    app.router.add_post("/v1/chat/completions", server.answer)
    app.router.add_post("/v1/completions", server.answer)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield server
    finally:
        await runner.cleanup()
