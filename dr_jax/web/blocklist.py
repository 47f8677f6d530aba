"""Keep a run from looking up what it is measured by: pages that hold the questions of a benchmark with their answers.

In:    a URL; the settings: a built-in list, entries and a file of the user's
Out:   the entry that covers it, or None
Holds: a host stands for everything below it, a path for everything that it begins; a URL that carries a covered one inside
       (an archive, a reader, a translator) is covered too, with its scheme, or without where more than a host is named
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dr_jax.base.errors import ConfigError

_HUBS = ("huggingface.co", "hf.co", "hf-mirror.com")
# Where the evaluation sets and their answers are published; `data/sources` reads most of them.
BENCHMARKS = (
    *(f"{hub}/{what}" for hub in _HUBS for what in ("datasets", "api/datasets", "api/resolve-cache/datasets")),
    "datasets-server.huggingface.co",
    *("huggingface.co/spaces/gaia-benchmark", "huggingface.co/gaia-benchmark", "kaggle.com/datasets", "modelscope.cn/datasets"),
    *("paperswithcode.com", "eval.ai", "llm-stats.com"),
    *("hotpotqa.github.io", "github.com/hotpotqa/hotpot", "curtis.ml.cmu.edu/datasets/hotpot"),
    *("github.com/alab-nii/2wikimultihop", "github.com/stonybrooknlp/musique", "leaderboard.allenai.org"),
    *("ai.google.com/research/naturalquestions", "github.com/google-research-datasets/natural-questions"),
    *("storage.googleapis.com/natural_questions", "nlp.cs.washington.edu/triviaqa", "github.com/mandarjoshi90/triviaqa"),
    *("github.com/alextmallen/adaptive-retrieval", "github.com/ofirpress/self-ask"),
    *("github.com/openai/simple-evals", "openaipublic.blob.core.windows.net/simple-evals", "openai.com/index/browsecomp"),
    *("github.com/texttron/browsecomp-plus", "github.com/xbench-ai/xbench-evals", "xbench.org"),
    *("lastexam.ai", "github.com/centerforaisafety/hle", "github.com/alibaba-nlp/webwalker"),
    *("github.com/gair-nlp/deepresearcher", "github.com/petergriffinjin/search-r1", "github.com/ruc-nlpir/flashrag"),
)
_GITHUB = "github.com/"
_MIRRORS = (
    *("raw.githubusercontent.com/", "codeload.github.com/", "api.github.com/repos/", "cdn.jsdelivr.net/gh/"),
    *("cdn.statically.io/gh/", "raw.githack.com/", "rawcdn.githack.com/"),
)
_INNER = re.compile(r"https?:/+(?=[^/])|(?<=[/=])(?=[a-z0-9-]+(?:\.[a-z0-9-]+)+(?::\d+)?/)")
_END = re.compile(r"(?:\.git)?(?:[/?@;&#]|\Z)")  # of a name in a path
_TRANSLATED = ".translate.goog"
_ESCAPED = 5  # times at most; what is inside another address is often escaped more than once
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")


@dataclass(frozen=True, slots=True)
class BlockSettings:
    """What a run may neither find nor open.

    Args:
        benchmarks: whether the built-in list counts: data sets, repositories and leaderboards of evaluation sets.
        also: hosts (`example.org`, with everything below it) and beginnings of paths (`example.org/answers`).
        file: of further ones, one a line; what follows a # is a comment.
    """

    benchmarks: bool = True
    also: tuple[str, ...] = ()
    file: str = ""


class Blocklist:
    """What is covered.

    Args:
        settings: say what.

    Raises:
        ConfigError: an entry is no host, or the file cannot be read.
    """

    def __init__(self, settings: BlockSettings) -> None:
        self._paths: dict[str, list[str]] = {}
        self._add(BENCHMARKS if settings.benchmarks else (), "the built-in list")
        self._add(settings.also, "web.block.also")
        self._add(_lines(settings.file), settings.file)

    def entry(self, url: str) -> str | None:
        """Return the entry that covers a URL, or None."""
        try:
            parts = urlsplit(url)
            host = parts.hostname or ""
        except ValueError:
            return None
        rest = _unquoted(f"{parts.path}?{parts.query}" if parts.query else parts.path).lower()
        inner = (rest[found.end() :] for found in _INNER.finditer(rest))
        return next((entry for one in (host + rest, *inner) if (entry := self._covers(one))), None)

    def _covers(self, address: str) -> str | None:
        """Return the entry that covers an address without its scheme."""
        host, rest = re.split(r"(?=[/?&#;]|\Z)", address, maxsplit=1)
        host = _translated(host.rpartition("@")[2].partition(":")[0].rstrip("."))
        labels = host.split(".")
        for name in (".".join(labels[start:]) for start in range(len(labels))):
            if name in self._paths:
                path, mark, query = rest.partition("?")
                path = (posixpath.normpath("/" + path.lstrip("/")) if path.startswith("/") else path) + mark + query
                for begins in self._paths[name]:
                    if path.startswith(begins) and _END.match(path, len(begins)):
                        return name + begins
        return None

    def _add(self, entries: Iterable[str], source: str) -> None:
        for entry in entries:
            text = re.sub(r"^(https?://)?(www\.)?", "", entry.strip().lower()).rstrip("/")
            host, slash, path = text.partition("/")
            if not _HOST.fullmatch(host):
                raise ConfigError(
                    f"{entry!r} in {source} is nothing that can be blocked",
                    needed="a host, or a host and the beginning of a path",
                )
            self._paths.setdefault(host, []).append(slash + unquote(path))
            if text.startswith(_GITHUB):
                self._add((mirror + path for mirror in _MIRRORS), source)


def _unquoted(text: str) -> str:
    for _ in range(_ESCAPED):
        if (plain := unquote(text)) == text:
            break
        text = plain
    return text


def _translated(host: str) -> str:
    """Return the host that a translator's host stands for: `a--b-org.translate.goog` is `a-b.org`."""
    if not host.endswith(_TRANSLATED):
        return host
    return "-".join(part.replace("-", ".") for part in host.removesuffix(_TRANSLATED).split("--"))


def _lines(file: str) -> list[str]:
    if not file:
        return []
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The block list {file} cannot be read: {error}", fix="correct web.block.file, or leave it out"
        ) from error
    return [text for line in lines if (text := line.partition("#")[0].strip())]
