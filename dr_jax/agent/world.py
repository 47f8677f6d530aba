"""What turns one tool call into one observation: the tools, the web and the reader behind them.

In:    a call as the policy wrote it, and what its episode has seen
Out:   Observation, bounded in tokens
Swap:  name `module:function` in `tools.extra`; it is called with (web, reader, settings) and returns a Tool
"""

from __future__ import annotations

import copy
from typing import Any, Protocol

from dr_jax.agent.prompt import SCHEMAS
from dr_jax.agent.reading import Reader
from dr_jax.agent.tools import Memory, Observation, ToolSettings, Web, browse_webpage, cut, mistake, web_search
from dr_jax.base import plugin
from dr_jax.base.errors import ConfigError
from dr_jax.base.metrics import Metrics, timed
from dr_jax.tokens.calls import Call
from dr_jax.tokens.policy import RequestKey


class Tool(Protocol):
    """Something that the policy may call."""

    @property
    def schema(self) -> dict[str, Any]:
        """What the policy is told: `{"type": "function", "function": {"name": …, "description": …, "parameters": …}}`."""
        ...

    async def run(self, arguments: dict[str, Any], memory: Memory, key: RequestKey) -> Observation:
        """Carry out a call; what is wrong with its arguments is an observation, not an exception."""
        ...


class World:
    """The tools around one web; shared by all episodes, which each bring their own memory.

    Args:
        web: the way out.
        reader: reads pages.
        settings: of the tools.
        metrics: counts and times calls under `tools/`.

    Raises:
        ConfigError: an extra tool does not exist, is no tool, or has a name that is taken.
    """

    def __init__(
        self, web: Web, reader: Reader, settings: ToolSettings | None = None, *, metrics: Metrics | None = None
    ) -> None:
        self.settings = settings or ToolSettings()
        self._metrics = metrics or Metrics()
        self._tools: dict[str, Tool] = {}
        search, browse = SCHEMAS
        for tool in (_Search(search, web, self.settings), _Browse(browse, web, reader, self.settings)):
            self._tools[tool.schema["function"]["name"]] = tool
        for reference in self.settings.extra:
            self._add(reference, plugin.named(reference)(web, reader, self.settings))

    @property
    def schemas(self) -> tuple[dict[str, Any], ...]:
        """What the policy is told about its tools."""
        return tuple(tool.schema for tool in self._tools.values())

    def only(self, *names: str) -> World:
        """Return the same world with no other tools than these."""
        fewer = copy.copy(self)
        fewer._tools = {name: tool for name, tool in self._tools.items() if name in names}
        return fewer

    async def call(self, call: Call, memory: Memory, key: RequestKey) -> Observation:
        """Carry out one call.

        Raises:
            WorldDownError: the web is down; it says nothing about the policy.
        """
        tool = self._tools.get(call.name)
        if tool is None:
            self._metrics.add("tools/unknown")
            return mistake(f"there is no tool {call.name[:80]!r}; there are {' and '.join(self._tools) or 'none'}")
        with timed(self._metrics, f"tools/{call.name}_s"):
            found = await tool.run(call.arguments, memory, key)
        if found.error:
            self._metrics.add(f"tools/{call.name}_errors")
        limit = self.settings.observation_tokens
        fits = len(found.text.encode()) <= limit or memory.measure(found.text) <= limit
        return found if fits else Observation(cut(found.text, limit), found.error)

    def _add(self, reference: str, tool: Tool) -> None:
        try:
            name = tool.schema["function"]["name"]
            runs = callable(tool.run)
        except (AttributeError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{reference} made {type(tool).__name__}, which is no tool ({error!r})",
                needed="an object with `schema` and `async run(arguments, memory, key)`",
                fix="see agent/world.py",
            ) from error
        if name in self._tools or not runs:
            raise ConfigError(f"{reference} makes a tool {name!r}, which there is already", fix="give it another name")
        self._tools[name] = tool


class _Search:
    def __init__(self, schema: dict[str, Any], web: Web, settings: ToolSettings) -> None:
        self.schema, self._web, self._settings = schema, web, settings

    async def run(self, arguments: dict[str, Any], memory: Memory, key: RequestKey) -> Observation:
        return await web_search(arguments, memory, self._web, self._settings)


class _Browse:
    def __init__(self, schema: dict[str, Any], web: Web, reader: Reader, settings: ToolSettings) -> None:
        self.schema, self._web, self._reader, self._settings = schema, web, reader, settings

    async def run(self, arguments: dict[str, Any], memory: Memory, key: RequestKey) -> Observation:
        return await browse_webpage(arguments, memory, self._web, self._settings, reader=self._reader, key=key)
