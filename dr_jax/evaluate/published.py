"""What DeepResearcher's paper reports (arXiv 2504.03160, table 1), to stand beside ours.

F1 (of the answer's words, as sets) and MBE (a judge's share of correct answers), each in percent, one sample a question,
without intervals: 512 questions of each set, 125 of Bamboogle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SOURCES = {
    "nq": "NQ",
    "tq": "TQ",
    "hotpotqa": "HotpotQA",
    "2wiki": "2Wiki",
    "musique": "MuSiQue",
    "bamboogle": "Bamboogle",
    "popqa": "PopQA",
}
# What the same sets are called elsewhere.
_ALSO = {"triviaqa": "tq", "trivia_qa": "tq", "natural_questions": "nq", "2wikimultihopqa": "2wiki"}

_ROWS: dict[str, str] = {
    "CoT": "19.8/32.0 45.6/48.2 24.4/27.9 26.4/27.3 8.5/7.4 22.1/21.6 17.0/15.0",
    "CoT + RAG": "42.0/59.6 68.9/75.8 37.1/43.8 24.4/24.8 10.0/10.0 25.4/27.2 46.9/48.8",
    "Search-o1, web": "32.4/55.1 58.9/69.5 33.0/42.4 30.9/37.7 14.7/19.7 46.6/53.6 38.3/43.4",
    "Search-R1-base": "45.4/60.0 71.9/76.2 55.9/63.0 44.6/47.9 26.7/27.5 56.5/57.6 43.2/47.0",
    "R1-Searcher": "35.4/52.3 73.1/79.1 44.8/53.1 59.4/65.8 22.8/25.6 64.8/65.6 42.7/43.4",
    "DeepResearcher": "39.6/61.9 78.4/85.0 52.8/64.3 59.7/66.6 27.1/29.3 71.0/72.8 48.5/52.7",
}


def source_of(name: str) -> str:
    """Return the paper's name for a source, or ""."""
    lowered = name.lower()
    return SOURCES.get(_ALSO.get(lowered, lowered), "")


def beside(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the paper's table with our rows below it, as texts; empty when none of our sources is in it.

    Args:
        rows: as `table.table` makes them.
    """
    ours = []
    for row in rows:
        cells = {}
        for source, numbers in row["by_source"].items():
            if (title := source_of(source)) and "f1" in numbers:
                judged = f"/{100 * numbers['judge']['mean']:.1f}" if "judge" in numbers else ""
                cells[title] = f"{100 * numbers['f1']['mean']:.1f}{judged}"
        if cells:
            ours.append([f"ours: {row['model']}, {row['way']}", *(cells.get(title, "") for title in SOURCES.values())])
    if not ours:
        return []
    return [["F1/MBE", *SOURCES.values()], *([name, *row.split()] for name, row in _ROWS.items()), *ours]
