"""One side of a benchmark as a process of its own: told to go by a line on stdin, it answers with a line of JSON.

Sides live in environments of their own (peers pin other versions), are warmed up once, and take turns, so that a machine
that becomes slower in the middle becomes so for everybody.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_MARK = "@side "


class SideError(Exception):
    """A side's process ended, or answered with something else."""


class Side:
    """Starts a module of `benchmarks.sides` and asks it.

    Args:
        name: in tables.
        python: the interpreter of its environment.
        module: such as `benchmarks.sides.decode_tunix`.
        options: what it is told at the start.
    """

    def __init__(self, name: str, python: str | Path, module: str, options: Mapping[str, Any]) -> None:
        self.name = name
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
        command = [str(python), "-m", module, json.dumps(dict(options))]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.about = self._answer()

    def go(self) -> dict[str, Any]:
        """Do the work once; return what was measured."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_MARK):
                answer: dict[str, Any] = json.loads(line.removeprefix(_MARK))
                return answer
        assert self._process.stderr is not None
        self._process.wait()
        raise SideError(f"{self.name} ended with {self._process.returncode}: {self._process.stderr.read()[-2000:]}")


@contextmanager
def sides(bench: str, kinds: Mapping[str, str], names: Sequence[str], options: Mapping[str, Any]) -> Iterator[list[Side]]:
    """Start sides and end them afterwards; one that cannot do the work says so and is left out.

    Args:
        bench: such as `decode`: their modules are `benchmarks.sides.decode_KIND`.
        kinds: of all sides, by name; `ours` runs in this environment, the others in their own.
        names: which to start.
        options: what each is told.
    """
    from benchmarks.peers import python_of  # here: peers import this module in environments of their own

    with ExitStack() as stack:
        started: list[Side] = []
        for name in names:
            kind = kinds[name]
            python = sys.executable if kind == "ours" else python_of(kind)
            try:
                side = Side(name, python, f"benchmarks.sides.{bench}_{kind}", options)
            except SideError as error:
                print(error, file=sys.stderr)
                continue
            stack.callback(side.close)
            started.append(side)
        yield started


def serve(prepare: Callable[[dict[str, Any]], tuple[dict[str, Any], Callable[[], dict[str, Any]]]]) -> None:
    """Be a side: prepare, say so, and work once for every line on stdin.

    Args:
        prepare: from the options to what is said of this side, and its work; warms up.
    """
    about, work = prepare(json.loads(sys.argv[1]))
    _say(about)
    for _ in sys.stdin:
        _say(work())


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(f"{_MARK}{json.dumps(answer)}\n")
    sys.stdout.flush()
