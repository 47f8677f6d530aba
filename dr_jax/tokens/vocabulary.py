"""Train a small tokenizer for a small policy.

In:    texts of the kind that the policy will read and write
Out:   a directory in Hugging Face format: byte-level BPE, the control tags as single tokens, a ChatML template
Holds: every text can be encoded (bytes are the fallback); digits stand alone, so numbers are copied digit by digit
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from dr_jax.tokens.calls import TAGS
from dr_jax.tokens.tokenizer import Tokenizer

_END, _OPEN, _CLOSE = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_WORDS = r" ?[\p{L}_]+| ?[^\s\p{L}\p{N}_]+|\p{N}|\s"  # names of tools and of JSON fields stay whole
MESSAGE = (_OPEN, _CLOSE)  # around every message
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


_SPECIAL = [_END, _OPEN, _CLOSE, *(f"<{slash}{tag}>" for tag in TAGS for slash in ("", "/"))]
_CONTROL = re.compile("|".join(map(re.escape, _SPECIAL)))


def train(texts: Iterable[str], size: int) -> Tokenizer:
    """Train a byte-level BPE of `size` ids on the texts.

    Args:
        texts: read once.
        size: number of ids, special tokens included; at least 300.
    """
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=_SPECIAL,
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=_CLOSE, pad_token=_END)
    fast.chat_template = CHATML
    return Tokenizer(fast)


def parts(text: str) -> list[str]:
    """Cut a rendered conversation at its control tokens, which are not learned from text."""
    return [part for part in _CONTROL.split(text) if part]


def save(tokenizer: Tokenizer, directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json into the directory."""
    tokenizer.fast.save_pretrained(str(directory))
