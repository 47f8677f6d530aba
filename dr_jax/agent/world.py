"""What turns one tool call into one observation: the tools, the web and the reader behind them."""

from __future__ import annotations

from dr_jax.agent.reader import Reader
from dr_jax.agent.tools import Memory, Observation, ToolSettings, Web, browse_webpage, mistake, web_search
from dr_jax.tokens.calls import Call
from dr_jax.tokens.policy import RequestKey


class World:
    """The tools around one web; shared by all episodes, which each bring their own memory.

    Args:
        web: the way out.
        reader: reads pages.
        settings: of the tools.
    """

    def __init__(self, web: Web, reader: Reader, settings: ToolSettings | None = None) -> None:
        self._web, self._reader, self._settings = web, reader, settings or ToolSettings()

    async def call(self, call: Call, memory: Memory, key: RequestKey) -> Observation:
        """Carry out one call.

        Raises:
            WorldDownError: the web is down; it says nothing about the policy.
        """
        match call.name:
            case "web_search":
                return await web_search(call.arguments, memory, self._web, self._settings)
            case "browse_webpage":
                return await browse_webpage(call.arguments, memory, self._web, self._settings, reader=self._reader, key=key)
        return mistake(f"there is no tool {call.name[:80]!r}; there are web_search and browse_webpage")
