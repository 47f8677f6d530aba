"""Carry a tape elsewhere: one line of JSON per entry, compressed with zstd; and look after it.

In:    a tape's file; an archive
Out:   an archive that people and other programs can read; a tape with what an archive holds; figures; a smaller tape
Holds: no value of a key-like environment variable leaves; what is imported again changes nothing; of two entries with one
       name the younger stays; a line of an archive is bounded; archives joined one behind the other are an archive
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
_AT_ONCE = 16  # entries that are read together: their contents lie in memory
_COLUMNS = "kind, key, at, meta, {bad}, entries.sha256, data, size from entries left join blobs using (sha256)"
_HEAD = json.dumps({"format": FORMAT})[:-1].encode()
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


def parts(file: TapeFile, since: float, until: float, *, most: int) -> Iterator[tuple[bytes, float]]:
    """Yield archives of what was written in a span of time, the oldest first; nothing where nothing was.

    Args:
        file: the tape, of the present version.
        since, until: Unix times; the first belongs to the span, the second does not.
        most: bytes of one archive, roughly: it ends with the entry that makes it larger.

    Yields:
        An archive, and the time before which it and those before it hold everything.
    """
    file.base.execute("create index if not exists by_age on entries (at)")
    raw, last, query = io.BytesIO(), (since, "", ""), f"select {_COLUMNS.format(bad='bad')}"
    packed = _begun(raw)
    written = False
    while rows := file.base.execute(
        f"{query} where (at, kind, key) > (?, ?, ?) and at < ? order by at, kind, key limit {_AT_ONCE}", (*last, until)
    ).fetchall():
        for row in rows:
            last = (row[2], row[0], row[1])
            if (line := _line(row)) is None:
                continue
            packed.write(redacted(line).encode() + b"\n")
            written = True
            if raw.tell() >= most:
                packed.close()
                yield raw.getvalue(), last[0]
                raw, written = io.BytesIO(), False
                packed = _begun(raw)
    packed.close()
    if written:
        yield raw.getvalue(), until


def _begun(raw: io.BytesIO) -> Any:
    packed = zstandard.ZstdCompressor(level=_LEVEL).stream_writer(raw, closefd=False)
    packed.write(json.dumps({"format": FORMAT, "version": ARCHIVE_VERSION, "exported": int(time.time())}).encode() + b"\n")
    return packed


def load(file: TapeFile, source: Path, told: Told = lambda done: None) -> Imported:
    """Put the entries of an archive into a tape; of two with one name the younger stays.

    Raises:
        DataError: it is no archive of a version that is known, or it is broken; what came before the broken line is in.
    """
    added = replaced = older = 0
    for number, line in enumerate(_read(source), start=1):
        if number == 1 or line.startswith(_HEAD):
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
    for row in file.base.execute(f"select {_COLUMNS.format(bad=bad)} order by kind, key"):
        if (line := _line(row)) is not None:
            yield line


def _line(row: tuple[Any, ...]) -> str | None:
    """Write an entry as JSON; None for one that is damaged: the web will be asked again."""
    kind, key, at, meta, error, sha256, data, size = row
    body = b"" if sha256 is None else unpacked(data, size, sha256)
    if body is None:
        return None
    line = {"kind": kind, "key": key, "at": at, "meta": json.loads(meta)}
    if error:
        line["error"] = True
    return json.dumps(line | _told_body(body), ensure_ascii=False)


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
