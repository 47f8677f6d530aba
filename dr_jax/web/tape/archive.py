"""Carry a tape elsewhere: one line of JSON per entry, compressed with zstd; and look after it.

In:    a tape's file; an archive
Out:   an archive that people and other programs can read; a tape with what an archive holds; figures; a smaller tape
Holds: no value of a key-like environment variable leaves; what is imported again changes nothing; of two entries with one
       name the younger stays; a line of an archive is bounded
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from dr_jax.base.errors import DataError
from dr_jax.base.trace import redacted
from dr_jax.web.tape.entry import KINDS, Entry, EntryKind
from dr_jax.web.tape.file import TapeFile, unpacked

FORMAT, ARCHIVE_VERSION = "dr_jax tape", 1
_MAX_LINE = 64 << 20
_LEVEL = 9
Told = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of the entries of an archive."""

    added: int
    replaced: int
    older: int


def stats(file: TapeFile) -> dict[str, Any]:
    """Return what a tape holds: entries, bytes, ages in seconds and uses, in all and by kind; and who is asking now."""
    now, base = time.time(), file.base
    columns = "count(*), sum({bad}), sum(length(meta) + coalesce(size, 0)), min(at), max(at), sum({hits})"
    new = file.version > 1
    columns = columns.format(bad="bad" if new else "0", hits="hits" if new else "0")
    rows = base.execute(f"select kind, {columns} from entries left join blobs using (sha256) group by kind")  # noqa: S608
    kinds = {
        kind: {
            "entries": count,
            "errors": errors,
            "raw_bytes": size,
            "oldest_s": round(now - first, 1),
            "newest_s": round(now - last, 1),
            "hits": hits,
        }
        for kind, count, errors, size, first, last, hits in rows
    }
    contents, raw, stored = base.execute("select count(*), sum(size), sum(length(data)) from blobs").fetchone()
    leases = base.execute("select count(*) from leases where until >= ?", (now,)).fetchone()[0] if new else 0
    return {
        "path": str(file.path),
        "version": file.version,
        "entries": sum(one["entries"] for one in kinds.values()),
        "contents": contents,
        "raw_bytes": raw or 0,
        "stored_bytes": stored or 0,
        "file_bytes": file.bytes_used,
        "hits": sum(one["hits"] for one in kinds.values()),
        "leases": leases,
        "kinds": kinds,
    }


def export(file: TapeFile, target: Path, told: Told = lambda done: None) -> int:
    """Write every entry of a tape into an archive; return how many. `told` hears how many were written so far.

    Raises:
        DataError: the archive cannot be written.
    """
    part = target.with_name(target.name + ".part")
    done = 0
    try:
        with part.open("wb") as raw, zstandard.ZstdCompressor(level=_LEVEL).stream_writer(raw) as packed:
            (count,) = file.base.execute("select count(*) from entries").fetchone()
            head = {"format": FORMAT, "version": ARCHIVE_VERSION, "entries": count, "exported": int(time.time())}
            packed.write(json.dumps(head).encode() + b"\n")
            for line in _lines(file):
                packed.write(redacted(line).encode() + b"\n")
                done += 1
                told(done)
        part.replace(target)
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error.strerror}", fix="name another file") from error
    finally:
        part.unlink(missing_ok=True)
    return done


def load(file: TapeFile, source: Path, told: Told = lambda done: None) -> Imported:
    """Put the entries of an archive into a tape; of two with one name the younger stays.

    Raises:
        DataError: it is no archive of a version that is known, or it is broken; what came before the broken line is in.
    """
    added = replaced = older = 0
    for number, line in enumerate(_read(source), start=1):
        if number == 1:
            _check_head(source, line)
            continue
        kind, key, at, entry = _decoded(source, number, line)
        found = file.base.execute("select at from entries where kind = ? and key = ?", (kind, key)).fetchone()
        if found is not None and found[0] >= at:
            older += 1
        else:
            file.insert(kind, key, entry, at=at)
            added, replaced = added + (found is None), replaced + (found is not None)
        told(number - 1)
    return Imported(added, replaced, older)


def prune(
    file: TapeFile, *, kinds: tuple[EntryKind, ...] = KINDS, older_s: float = 0.0, errors_only: bool = False, dry: bool = False
) -> int:
    """Forget entries, and return how many.

    Args:
        file: the tape.
        kinds: which may be forgotten.
        older_s: only what is at least so old.
        errors_only: only failures.
        dry: only count.
    """
    marks = ", ".join("?" for _ in kinds)
    where = f"kind in ({marks}) and at <= ? and bad >= ?"
    values = (*kinds, time.time() - older_s, int(errors_only))
    if dry:
        return int(file.base.execute(f"select count(*) from entries where {where}", values).fetchone()[0])  # noqa: S608
    with file.transaction() as base:
        forgotten = base.execute(f"delete from entries where {where}", values).rowcount  # noqa: S608
        base.execute("delete from blobs where not exists (select 1 from entries where entries.sha256 = blobs.sha256)")
    return int(forgotten)


def shrink(file: TapeFile) -> bool:
    """Give what was forgotten back to the disk; return whether that could be done now, with nobody else at the tape."""
    try:
        file.base.execute("vacuum")
    except sqlite3.OperationalError:
        return False
    file.base.execute("pragma wal_checkpoint(truncate)")
    return True


def _lines(file: TapeFile) -> Iterator[str]:
    bad = "bad" if file.version > 1 else "0"
    rows = file.base.execute(
        f"""select kind, key, at, meta, {bad}, entries.sha256, data, size
            from entries left join blobs using (sha256) order by kind, key"""  # noqa: S608
    )
    for kind, key, at, meta, error, sha256, data, size in rows:
        body = b"" if sha256 is None else unpacked(data, size, sha256)
        if body is None:  # damaged: the web will be asked again
            continue
        line = {"kind": kind, "key": key, "at": at, "meta": json.loads(meta)}
        if error:
            line["error"] = True
        yield json.dumps(line | _told_body(body), ensure_ascii=False)


def _told_body(body: bytes) -> dict[str, Any]:
    """Show bytes as readably as can be undone exactly: JSON, text, or base64."""
    if not body:
        return {}
    try:
        text = body.decode()
        if body[:1] in b"[{":
            content = json.loads(text)
            if json.dumps(content, ensure_ascii=False) == text:
                return {"json": content}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(body).decode()}
    except ValueError:
        pass
    return {"text": text}


def _read(source: Path) -> Iterator[bytes]:
    try:
        with source.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as content:
            lines = io.BufferedReader(content)
            while line := lines.readline(_MAX_LINE):
                if not line.endswith(b"\n"):
                    raise DataError(f"{source} ends in the middle of a line, or has one of more than {_MAX_LINE >> 20} MB")
                yield line
    except OSError as error:
        raise DataError(
            f"{source} cannot be read: {error.strerror}", fix="name a file that `dr-jax tape export` wrote"
        ) from error
    except zstandard.ZstdError as error:
        raise DataError(f"{source} is not compressed with zstd, or is broken: {error}") from error


def _check_head(source: Path, line: bytes) -> None:
    try:
        head = json.loads(line)
        found = head["format"], head["version"]
    except (ValueError, KeyError, TypeError):
        found = "", 0
    if found[0] != FORMAT:
        raise DataError(f"{source} is no archive of a tape", needed="a file that `dr-jax tape export` wrote")
    if found[1] != ARCHIVE_VERSION:
        raise DataError(
            f"{source} is an archive of version {found[1]}",
            needed=f"version {ARCHIVE_VERSION}",
            fix="import it with the dr_jax that wrote it, or export it again",
        )


def _decoded(source: Path, number: int, line: bytes) -> tuple[EntryKind, str, float, Entry]:
    try:
        found = json.loads(line)
        kind, key, at, meta = found["kind"], found["key"], float(found["at"]), found["meta"]
        if kind not in KINDS or not isinstance(key, str) or not isinstance(meta, dict) or not math.isfinite(at):
            raise ValueError("a field has another type")
        if "json" in found:
            body = json.dumps(found["json"], ensure_ascii=False).encode()
        elif "base64" in found:
            body = base64.b64decode(found["base64"], validate=True)
        else:
            body = found.get("text", "").encode()
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise DataError(f"Line {number} of {source} is no entry of a tape ({type(error).__name__}: {error})") from None
    return kind, key, min(at, time.time()), Entry(meta, body, bool(found.get("error", False)))
