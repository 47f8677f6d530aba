"""The tables of a tape, and how an older tape becomes a new one."""

from __future__ import annotations

import sqlite3
import uuid

APPLICATION = 0x64726A78  # "drjx": tells a tape from any other SQLite file
VERSION = 2

_BLOBS = "create table blobs (sha256 blob primary key, size integer not null, data blob not null) without rowid"
_ENTRIES = """create table entries (kind text not null, key text not null, at real not null, meta text not null, sha256 blob,
    used real not null default 0, hits integer not null default 0, bad integer not null default 0,
    primary key (kind, key)) without rowid"""
_SECOND = (
    "create index by_use on entries (used)",
    "create index by_content on entries (sha256)",
    "create table leases (kind text, key text, owner text, until real, primary key (kind, key)) without rowid",
    "create table facts (name text primary key, value text not null) without rowid",
    f"pragma user_version = {VERSION}",
)
_COLUMNS = ("used real not null default 0", "hits integer not null default 0", "bad integer not null default 0")


def create(base: sqlite3.Connection) -> None:
    """Make the tables in an empty file, inside a transaction."""
    for statement in (_BLOBS, _ENTRIES, f"pragma application_id = {APPLICATION}", *_SECOND):
        base.execute(statement)
    _name(base)


def bring_up_to_date(base: sqlite3.Connection) -> None:
    """Turn version 1 into version 2, inside a transaction; several processes may try at the same time."""
    if base.execute("pragma user_version").fetchone()[0] != 1:
        return
    for column in _COLUMNS:
        base.execute(f"alter table entries add column {column}")
    base.execute("update entries set used = at")
    # Version 1 kept errors of fetches in `meta`; other errors look like answers, and age like them.
    base.execute("update entries set bad = 1 where kind = 'fetch' and json_extract(meta, '$.kind') is not null")
    for statement in _SECOND:
        base.execute(statement)
    _name(base)


def _name(base: sqlite3.Connection) -> None:
    base.execute("insert into facts values ('id', ?)", (uuid.uuid4().hex,))
