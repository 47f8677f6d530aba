"""Text to ids and back, with two doors: one for markup that we write, one for text that anybody may have written.

In:    a directory with tokenizer files in Hugging Face format (or a hub name)
Out:   `markup(text)`: special tokens are recognised; `text(text)`: none can come out, whatever the text says
Holds: invariant 4: a page that spells `<|im_start|>` yields the ids of those characters, never the id of the token
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dr_jax.base.errors import CheckpointError


class Tokenizer:
    """A byte-level tokenizer whose special tokens only we can write.

    Args:
        fast: a `transformers` fast tokenizer, with its chat template.
    """

    def __init__(self, fast: Any) -> None:
        self.fast = fast
        self._backend = fast.backend_tokenizer
        added = [str(token) for token in fast.added_tokens_decoder.values()]
        self._added = (
            re.compile("|".join(re.escape(token) for token in sorted(added, key=len, reverse=True))) if added else None
        )

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read tokenizer files from a directory or, where there is a network, from the hub.

        Raises:
            CheckpointError: there is no tokenizer there, or not one with a fast (tokenizers) backend.
        """
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        from transformers import AutoTokenizer

        try:
            fast = AutoTokenizer.from_pretrained(str(path))
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"No tokenizer could be read from {path}: {str(error).splitlines()[0]}",
                needed="a directory with tokenizer.json and tokenizer_config.json",
                fix="point model.tokenizer at one",
            ) from error
        if not getattr(fast, "is_fast", False):
            raise CheckpointError(f"The tokenizer in {path} has no tokenizer.json", needed="a fast tokenizer")
        return cls(fast)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id that can come out."""
        return int(max(self._backend.get_vocab(with_added_tokens=True).values())) + 1

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The id that ends a text; `Chat.stop_ids` adds the one that ends a turn."""
        return () if self.fast.eos_token_id is None else (int(self.fast.eos_token_id),)

    def markup(self, text: str) -> list[int]:
        """Encode text that we wrote: special tokens become their ids."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def text(self, text: str) -> list[int]:
        """Encode text that anybody may have written: no added or special token can come out.

        The spelling of an added token is cut after its first character and the two pieces are encoded apart, so the
        text is kept as it is and only the token is prevented.
        """
        if self._added is None or not self._added.search(text):
            return self.markup(text)
        ids: list[int] = []
        start = 0
        for match in self._added.finditer(text):
            cut = match.start() + 1
            ids += self._split(text[start:cut])
            start = cut
        return ids + self._split(text[start:])

    def _split(self, piece: str) -> list[int]:
        # What is left after a cut may still spell another added token (one inside the other, or of one character).
        if self._added is not None and (match := self._added.search(piece)):
            if len(match.group()) == 1:
                raise CheckpointError(
                    f"The added token {match.group()!r} is a single character", needed="added tokens that can be split"
                )
            return self.text(piece)
        return self.markup(piece)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of these ids, special tokens spelled out. For parsers and people; never encoded again."""
        return str(self._backend.decode(list(ids), skip_special_tokens=False))
