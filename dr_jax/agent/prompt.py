"""What the policy is told before it starts.

In:    settings, a question
Out:   the system prompt and the user's message; the date is a setting, so that prompts can be made again
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

SCHEMAS: tuple[dict[str, Any], ...] = (
    {
        "type": "function",
        "function": {
            "name": "web_search",
            "description": "Search the web. Returns, for each query, titles, addresses and short summaries of pages.",
            "parameters": {
                "type": "object",
                "properties": {"query": {"type": "array", "items": {"type": "string"}, "description": "Up to 3 queries."}},
                "required": ["query"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "browse_webpage",
            "description": "Read pages that a search has found. Returns what they say about the question.",
            "parameters": {
                "type": "object",
                "properties": {
                    "url_list": {"type": "array", "items": {"type": "string"}, "description": "Addresses from search results."}
                },
                "required": ["url_list"],
            },
        },
    },
)

_FULL = """\
You research questions on the web until you are sure of the answer. Today is {date}.

You have {count}. Their signatures are in the <tools> tags:
<tools>
{schemas}
</tools>

Every message of yours has one of two forms and nothing else:
<think>your reasoning</think><tool_call>{{"name": a tool's name, "arguments": {{its arguments}}}}</tool_call>
<think>your reasoning</think><answer>the answer</answer>

The question needs deep research: search, open pages, check, and search again before you answer. The answer holds the final
words only, without explanation; a yes-or-no question is answered by yes or no."""

_COUNTS = ("no tools", "one tool", "two tools", "three tools", "four tools")
_BRIEF = "Research, then answer: {tools}, or answer."


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """What the policy is told.

    Args:
        style: `full` as in the paper, with schemas; `brief` for small policies that were trained on the form.
        date: today's date in the prompt; "" takes the day on which the run starts.
    """

    style: Literal["full", "brief"] = "full"
    date: str = ""


def system_prompt(settings: PromptSettings, schemas: Sequence[dict[str, Any]] = SCHEMAS) -> str:
    """Write the system prompt.

    Args:
        settings: style and date.
        schemas: of the tools; `World.schemas` where there are more than the two.
    """
    if settings.style == "brief":
        return _BRIEF.format(tools=", ".join(schema["function"]["name"] for schema in schemas))
    date = settings.date or datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    count = _COUNTS[len(schemas)] if len(schemas) < len(_COUNTS) else f"{len(schemas)} tools"
    listed = "\n".join(json.dumps(schema, ensure_ascii=False) for schema in schemas)
    return _FULL.format(date=date, count=count, schemas=listed)
