"""Read settings: TOML and `key.sub=value` overrides into frozen dataclasses, strictly.

In:    a dataclass type, a TOML file or mapping, overrides from the command line
Out:   one frozen instance, validated by type; each dataclass checks its own ranges in `__post_init__`
Fails: ConfigError that names the full key, what was found, and the nearest known keys
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from dr_jax.base.errors import ConfigError

Settings = TypeVar("Settings")


def read(cls: type[Settings], path: Path | str | None = None, overrides: Iterable[str] = (), *, part: bool = False) -> Settings:
    """Read a TOML file, apply overrides, and validate the result as `cls`.

    Args:
        cls: a dataclass whose fields are plain values, tuples, or further dataclasses.
        path: a TOML file; None reads only the overrides over the defaults.
        overrides: strings `key.sub=value`; the value is TOML, or a bare word taken as text.
        part: the file may hold further tables and keys at its top, which are another command's to read.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown, or a value has the wrong type or range.
    """
    tree = _load(Path(path)) if path is not None else {}
    if part:
        known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        tree = {key: value for key, value in tree.items() if key in known}
    for override in overrides:
        _override(tree, override)
    return validated(cls, tree)


def validated(cls: type[Settings], tree: Mapping[str, Any]) -> Settings:
    """Validate a nested mapping as the dataclass `cls`.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type or range.
    """
    _refuse_unknown(cls, tree, "")
    try:
        return TypeAdapter(cls).validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        raise _explained(error) from error


def to_tree(settings: Any) -> dict[str, Any]:
    """Turn a settings dataclass into a nested dict of JSON values, as it is saved beside a run."""
    tree: dict[str, Any] = TypeAdapter(type(settings)).dump_python(settings, mode="json")
    return tree


def _load(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = sorted(str(found) for found in Path("configs").glob("*.toml"))
        raise ConfigError(
            f"There is no config file {path}",
            needed="a TOML file",
            fix=f"name one that exists; here there are: {', '.join(near) or 'none under configs/'}",
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}", needed="a TOML file", fix="correct that line") from error
    except IsADirectoryError:
        raise ConfigError(f"{path} is a directory", needed="a TOML file", fix="name a file in it") from None


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"The override {override!r} has no '='", needed="key.sub=value", fix="write it as key.sub=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, leaf = key.strip().split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"The override {override!r} goes below {parent!r}, which is a value", needed="a table there")
        node = child
    node[leaf] = value


def _refuse_unknown(cls: Any, tree: Mapping[str, Any], prefix: str) -> None:
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls) if field.init]
    for key, value in tree.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
            raise ConfigError(
                f"Unknown setting {prefix}{key}",
                needed=f"one of {', '.join(prefix + name for name in sorted(known))}",
                fix=f"did you mean {' or '.join(prefix + name for name in near)}?" if near else "remove it",
            )
        inner = _dataclass_in(hints[key])
        if inner is not None and isinstance(value, Mapping):
            _refuse_unknown(inner, value, f"{prefix}{key}.")


def _dataclass_in(hint: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return hint
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next((arm for arm in typing.get_args(hint) if dataclasses.is_dataclass(arm)), None)
    return None


def _explained(error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "the settings"
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, Exception):
        return ConfigError(f"{key}: {cause}" if first["loc"] else str(cause), fix=f"change {key}")
    return ConfigError(
        f"{key} = {first['input']!r} was refused: {first['msg']}", fix=f"change {key} in the file or override it"
    )
