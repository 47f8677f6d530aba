"""How much of a page's main text is found, and how much else: dr_jax and trafilatura in several modes.

In:    the pages of `extraction_pages`, or a folder of `NAME.html` with `NAME.txt` beside it (`--pages`)
Out:   a table of precision, recall and F1 of four-word shingles, averaged over pages; `results/extraction.json`
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import trafilatura

from benchmarks.extraction_pages import Sample, samples
from benchmarks.result import Spread, write
from dr_jax.web.extract import extract
from dr_jax.web.page import Page

_WORD = re.compile(r"[^\W\u3040-\u30ff\u4e00-\u9fff]+|[\u3040-\u30ff\u4e00-\u9fff]")  # a Chinese or Japanese sign is a word
_LENGTH = 4
_DRAWS = 3
_GOOD = 0.97


def ours(html: str) -> str:
    """Read with dr_jax."""
    found = extract(html.encode(), "http://a.example/page", charset="utf-8")
    return found.text if isinstance(found, Page) else ""


def _peer(**options: bool) -> Callable[[str], str]:
    return lambda html: trafilatura.extract(html, **options) or ""


SIDES: dict[str, Callable[[str], str]] = {
    "dr_jax": ours,
    "trafilatura": _peer(),
    "trafilatura, no comments": _peer(include_comments=False),
    "trafilatura, precision": _peer(include_comments=False, favor_precision=True),
    "trafilatura, recall": _peer(include_comments=False, favor_recall=True),
    "trafilatura, fast": _peer(include_comments=False, fast=True),
    "trafilatura, fast recall": _peer(include_comments=False, fast=True, favor_recall=True),
    "trafilatura, no tables": _peer(include_comments=False, include_tables=False),
}


def shingles(text: str) -> Counter[tuple[str, ...]]:
    """Count every run of four words; the whole text where it is shorter."""
    words = _WORD.findall(text.lower())
    return Counter(tuple(words[at : at + _LENGTH]) for at in range(max(1, len(words) - _LENGTH + 1))) if words else Counter()


def agreement(text: str, gold: str) -> tuple[float, float, float]:
    """Return precision, recall and F1 of a text's shingles."""
    found, wanted = shingles(text), shingles(gold)
    shared = (found & wanted).total()
    precision, recall = shared / max(1, found.total()), shared / max(1, wanted.total())
    return precision, recall, 2 * precision * recall / max(1e-9, precision + recall)


def _of_folder(folder: Path) -> list[Sample]:
    pages = sorted(folder.glob("*.html"))
    return [Sample(one.stem, one.read_text("utf-8"), one.with_suffix(".txt").read_text("utf-8")) for one in pages]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=Path, help="a folder of NAME.html and NAME.txt, in place of our own pages")
    parser.add_argument("--each", action="store_true", help="name the pages below F1 0.97")
    asked = parser.parse_args()
    draws = [_of_folder(asked.pages)] if asked.pages else [samples(draw) for draw in range(_DRAWS)]
    count = sum(map(len, draws))
    sides = {}
    for side, read in SIDES.items():
        scores = [[agreement(read(page.html), page.gold) for page in pages] for pages in draws]
        means = [[sum(column) / len(some) for column in zip(*some, strict=True)] for some in scores]
        precision, recall, f1 = (sum(column) / len(means) for column in zip(*means, strict=True))
        print(f"{side:28} precision {precision:.4f}  recall {recall:.4f}  F1 {f1:.4f}  over {count} pages")
        sides[side] = Spread.of([mean[2] for mean in means], "mean F1 of a draw of pages")
        if asked.each:
            each = zip(draws[0], scores[0], strict=True)
            print("   " + ", ".join(f"{page.name} {score[2]:.2f}" for page, score in each if score[2] < _GOOD))
    if not asked.pages:
        write("extraction", sides)


if __name__ == "__main__":
    main()
