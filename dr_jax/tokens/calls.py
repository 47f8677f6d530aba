"""Read what the policy decided from the text of one generation.

In:    the decoded text of a generation, without its stop token
Out:   Calls (tools to run, in order), Answer, or Malformed with the reason in words
Form:  `<think>…</think><tool_call>{"name": …, "arguments": {…}}</tool_call>` or `<think>…</think><answer>…</answer>`
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

TAGS = ("think", "tool_call", "answer", "tool_response")

_BLOCK = re.compile(r"<(tool_call|answer)>(.*?)</\1>", re.DOTALL)
_THINK = re.compile(r"<think>.*?</think>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Call:
    """One tool call as the policy wrote it; the tool checks the arguments."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Calls:
    """The policy wants to act."""

    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """The policy is done."""

    text: str


@dataclass(frozen=True, slots=True)
class Malformed:
    """The text has neither form."""

    reason: str


def unbalanced(text: str) -> str | None:
    """Return the first control tag whose openings and closings differ in number, or None."""
    return next((tag for tag in TAGS[:3] if text.count(f"<{tag}>") != text.count(f"</{tag}>")), None)


def parse(text: str) -> Calls | Answer | Malformed:
    """Read one generation.

    Args:
        text: pre-filled text and sampled text together, without the stop token.
    """
    tag = unbalanced(text)
    if tag is not None:
        return Malformed(f"<{tag}> is opened {text.count(f'<{tag}>')} times and closed {text.count(f'</{tag}>')} times")
    blocks = _BLOCK.findall(_THINK.sub("", text))
    answers = [body for name, body in blocks if name == "answer"]
    bodies = [body for name, body in blocks if name == "tool_call"]
    if answers and bodies:
        return Malformed("both a tool call and an answer")
    if len(answers) > 1:
        return Malformed(f"{len(answers)} answers")
    if answers:
        return Answer(answers[0].strip())
    if not bodies:
        return Malformed("neither a tool call nor an answer")
    calls = [_call(body) for body in bodies]
    wrong = next((call for call in calls if isinstance(call, Malformed)), None)
    return wrong or Calls(tuple(call for call in calls if isinstance(call, Call)))


def _call(body: str) -> Call | Malformed:
    try:
        read = json.loads(body)
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, or a number with thousands of digits
        return Malformed(f"the tool call is not JSON: {error}")
    if not isinstance(read, dict) or not isinstance(read.get("name"), str) or not isinstance(read.get("arguments"), dict):
        return Malformed('the tool call needs {"name": text, "arguments": {…}}')
    return Call(read["name"], read["arguments"])
