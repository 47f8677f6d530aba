"""Who is asking the web for what, so that no two processes do at the same time.

In:    (kind, key) that the tape does not hold, and who wants to ask
Out:   the entry after all; "mine": ask; "orphaned": ask, but somebody who is gone was asking, and may have been billed;
       "theirs": somebody who lives is asking
Holds: a claim counts until its time is over, or until its process is seen to be dead, whichever is first; it is not forgotten
       before somebody else has taken it over
"""

from __future__ import annotations

import functools
import os
import time
import uuid
from collections.abc import Callable
from typing import Literal

from dr_jax.web.tape.entry import Entry, EntryKind
from dr_jax.web.tape.file import TapeFile, machine

_FIND = "select owner, until from leases where kind = ? and key = ?"


def owner_name() -> str:
    """Return a name for somebody in this process: where it runs, its number, and something of its own."""
    return f"{_here()} {os.getpid()} {uuid.uuid4().hex[:12]}"


def claim(
    file: TapeFile, kind: EntryKind, key: str, owner: str, lease_s: float, look: Callable[[], Entry | None]
) -> Entry | Literal["mine", "orphaned", "theirs"]:
    """Return the entry if there is one by now; otherwise whether the owner is to ask, or somebody else is asking.

    Args:
        file: the tape.
        kind, key: of what is wanted.
        owner: who would ask.
        lease_s: how long the claim counts.
        look: for the entry, as fresh as it must be.
    """
    held = file.base.execute(_FIND, (kind, key)).fetchone()
    if held is not None and _counts(*held):
        return "theirs"
    with file.transaction() as base:
        held = base.execute(_FIND, (kind, key)).fetchone()
        if held is not None and _counts(*held):
            return "theirs"
        if (entry := look()) is not None:
            return entry
        base.execute("insert or replace into leases values (?, ?, ?, ?)", (kind, key, owner, time.time() + lease_s))
    return "mine" if held is None else "orphaned"


def renew(file: TapeFile, owner: str, lease_s: float) -> None:
    """Give everything that an owner has claimed more time."""
    with file.transaction() as base:
        base.execute("update leases set until = ? where owner = ?", (time.time() + lease_s, owner))


def release(file: TapeFile, kind: EntryKind, key: str, owner: str) -> None:
    """End a claim; nothing was found."""
    with file.transaction() as base:
        base.execute("delete from leases where kind = ? and key = ? and owner = ?", (kind, key, owner))


def _counts(owner: str, until: float) -> bool:
    return until >= time.time() and not _dead(owner)


def _dead(owner: str) -> bool:
    """Whether the owner is known to be gone; where that cannot be seen from here, it is not."""
    here, _, rest = owner.partition(" ")
    number = rest.partition(" ")[0]
    if not here or here != _here() or not number.isdecimal():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


@functools.cache
def _here() -> str:
    """Name what process numbers belong to: a machine since its start, and a container on it; "" where that is unknown."""
    try:
        return f"{machine()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
