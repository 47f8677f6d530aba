"""Render a conversation once, then only what is new.

In:    a model's chat template; the system prompt and question; each new tool message
Out:   `open`: the ids of the first render; `observe`: only the ids that follow a generation
Holds: invariant 1: the template is rendered with placeholders, its own text goes through `markup`, what stands in the
       placeholders through `text`; what was said before is never rendered or encoded again
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from jinja2.exceptions import TemplateError

from dr_jax.base.errors import CheckpointError
from dr_jax.tokens.calls import TAGS
from dr_jax.tokens.tokenizer import Tokenizer

# Private-use characters: no template trims or escapes them, and `_pieces` finds them again in the render.
_SLOTS = {"system": "\ue0f1\ue0f1", "user": "\ue0f2\ue0f2", "assistant": "\ue0f3\ue0f3", "tool": "\ue0f4\ue0f4"}
_SLOT = re.compile("|".join(_SLOTS.values()))
_CONTROL = re.compile(rf"<(?=/?(?:{'|'.join(TAGS)})\b)", re.IGNORECASE)


def harmless(text: str) -> str:
    """Return text of the web with our control tags escaped (`<answer>` becomes `&lt;answer>`) and placeholders dropped."""
    return _CONTROL.sub("&lt;", _SLOT.sub("", text))


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of rendered template: markup of the template itself, or the slot that content goes into."""

    markup: str
    slot: str


class Chat:
    """A model's chat format, as ids.

    Args:
        tokenizer: carries the chat template.

    Raises:
        CheckpointError: the tokenizer has no chat template, or one that drops what a message says.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        if not tokenizer.fast.chat_template:
            raise CheckpointError(
                "The tokenizer has no chat template",
                needed="an instruct model's tokenizer",
                fix="add chat_template to its config",
            )
        self._first = ("system", "user") if self._shows("system", "user") else ("user",)
        if not self._shows(*self._first):
            raise CheckpointError(
                "The chat template does not show the user's message", needed="a template of an instruct model"
            )
        self._tool_role = "tool" if self._shows(*self._first, "assistant", "tool") else "user"

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a generation: the one that closes a turn, then the one that ends a text."""
        close = self.tokenizer.markup(self._after_generation[0].markup)[:1]
        return tuple(dict.fromkeys((*close, *self.tokenizer.stop_ids)))

    def open(self, system: str, user: str, *, prefill: str = "") -> list[int]:
        """Encode system prompt, question and generation prompt: the only full render of a trajectory.

        Args:
            system: ours, so the control tokens that it spells become tokens, as the model knows them from its training.
            user: the question; anybody's, so none can come out of it.
            prefill: markup put in the policy's mouth, such as `<think>`.
        """
        ours, theirs = self.tokenizer.markup(system), self.tokenizer.text(user)
        if "system" not in self._first:
            ours, theirs = [], [*ours, *self.tokenizer.markup("\n\n"), *theirs]
        return self._encode(self._opening, {"system": ours, "user": theirs}) + self.tokenizer.markup(prefill)

    def observe(self, text: str, *, closed: bool, prefill: str = "") -> list[int]:
        """Encode one tool message and the next generation prompt: only what is new.

        Args:
            text: the observation; made harmless and encoded without special tokens.
            closed: whether the generation before it ended with a stop id; if not, the turn is closed first.
            prefill: markup put in the policy's mouth.
        """
        ids = self._encode(self._after_generation, {"tool": self.tokenizer.text(harmless(text))})
        return (ids[1:] if closed else ids) + self.tokenizer.markup(prefill)

    @functools.cached_property
    def _opening(self) -> tuple[_Piece, ...]:
        return _pieces(self._render(*self._first))

    @functools.cached_property
    def _after_generation(self) -> tuple[_Piece, ...]:
        slot = _SLOTS["tool"] if self._tool_role == "tool" else f"<tool_response>\n{_SLOTS['tool']}\n</tool_response>"
        rendered = self._render(*self._first, "assistant", self._tool_role, last=slot)
        return _pieces(rendered[rendered.index(_SLOTS["assistant"]) + len(_SLOTS["assistant"]) :])

    def _encode(self, pieces: tuple[_Piece, ...], content: dict[str, list[int]]) -> list[int]:
        ids: list[int] = []
        for piece in pieces:
            ids += self.tokenizer.markup(piece.markup)
            if piece.slot:
                ids += content[piece.slot]
        return ids

    def _render(self, *roles: str, last: str = "") -> str:
        messages = [{"role": role, "content": _SLOTS[role]} for role in roles]
        if last:
            messages[-1]["content"] = last
        return str(self.tokenizer.fast.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _shows(self, *roles: str) -> bool:
        """Whether the template takes these roles and shows what each of them says."""
        try:
            rendered = self._render(*roles)
        except TemplateError:
            return False
        return all(_SLOTS[role] in rendered for role in roles)


def _pieces(rendered: str) -> tuple[_Piece, ...]:
    names = {placeholder: name for name, placeholder in _SLOTS.items()}
    pieces: list[_Piece] = []
    start = 0
    for match in _SLOT.finditer(rendered):
        pieces.append(_Piece(rendered[start : match.start()], names[match.group()]))
        start = match.end()
    return (*pieces, _Piece(rendered[start:], ""))
