"""One worker process: read a task, do it, answer, until the pipe closes. Started by `workers`, never imported by it.

In:    frames on stdin: two lengths, a JSON request, bytes
Out:   frames on stdout: one length, a JSON answer; JSON only, because what was parsed may have been made to harm
Holds: the process limits its own memory, and the kernel ends it when a task takes too long, even if its parent is gone
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

REQUEST = struct.Struct(">II")
ANSWER = struct.Struct(">I")
READY = b'{"ready": true}'
Task = Callable[[dict[str, Any], bytes], dict[str, Any]]


def run(task_name: str, memory_mb: str, alarm_s: str) -> None:
    """Serve until stdin ends.

    Args:
        task_name: `module:function` from (request, bytes) to an answer that JSON can hold.
        memory_mb: address space of this process; a task that needs more fails.
        alarm_s: a task that takes longer ends the process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not reach the answers
    _limit(int(memory_mb))
    module, _, function = task_name.partition(":")
    task: Task = getattr(importlib.import_module(module), function)
    _send(answers, READY)
    while (head := requests.read(REQUEST.size)) and len(head) == REQUEST.size:
        request_size, body_size = REQUEST.unpack(head)
        request, body = json.loads(requests.read(request_size)), requests.read(body_size)
        signal.setitimer(signal.ITIMER_REAL, float(alarm_s))
        answer = _done(task, request, body)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(answers, answer)


def _done(task: Task, request: dict[str, Any], body: bytes) -> bytes:
    try:
        return json.dumps({"done": task(request, body)}, ensure_ascii=False).encode(errors="replace")
    except MemoryError:
        return b'{"failed": "it needs too much memory"}'
    except Exception as error:  # noqa: BLE001 - a page must not end the worker; the parent counts and reports it
        return json.dumps({"failed": f"the parser failed with {type(error).__name__}"}).encode()


def _send(answers: BinaryIO, content: bytes) -> None:
    answers.write(ANSWER.pack(len(content)) + content)
    answers.flush()


def _limit(memory_mb: int) -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    with contextlib.suppress(ValueError, OSError):  # not on macOS
        resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
