"""Safetensors files on a disk or in a bucket: read by ranges, written while their tensors arrive.

In:    a directory, or `gs://bucket/path` and whatever else fsspec opens
Out:   what tensors a file has, and any rows of one; files that are never whole in memory
Holds: any thread may read
Fails: CheckpointError that says whether something is missing, damaged, or not for this account
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # teaches numpy the name bfloat16
import numpy as np
from fsspec.core import url_to_fs

from dr_jax.base.errors import CheckpointError, UserError

DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}  # those that weights may have
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # the format's own bound


class Place:
    """A directory, here or in a bucket.

    Args:
        url: its path or address.

    Raises:
        UserError: files of this kind of address need a package that is not installed.
    """

    def __init__(self, url: str | Path) -> None:
        self.url = str(url).rstrip("/")
        self.remote = "://" in self.url
        try:
            self._files, self._path = url_to_fs(self.url)
        except (ImportError, ValueError) as error:  # ValueError: nobody knows this kind of address
            raise UserError(
                f"{self.url} cannot be opened here: {error}",
                needed="the package for it",
                fix="for gs://, run `pip install 'dr-jax[gcs]'`",
            ) from error

    def __str__(self) -> str:
        return self.url

    def names(self) -> list[str]:
        """Return the names of its files; none where there is no such directory."""
        with self._explained(""):
            try:
                return sorted(Path(one).name for one in self._files.ls(self._path, detail=False))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def size(self, name: str) -> int:
        """Return how many bytes a file has."""
        with self._explained(name):
            return int(self._files.size(f"{self._path}/{name}"))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """Return some bytes of a file."""
        with self._explained(name):
            return bytes(self._files.cat_file(f"{self._path}/{name}", start=start, end=stop))

    def key(self, name: str) -> str:
        """Return what changes when the file does."""
        with self._explained(name):
            return str(self._files.ukey(f"{self._path}/{name}"))

    @contextmanager
    def writing(self, name: str) -> Iterator[Any]:
        """Open a file to be written from its beginning; its directory is made."""
        with self._explained(name, "written"):
            self._files.makedirs(self._path, exist_ok=True)
            with self._files.open(f"{self._path}/{name}", "wb") as file:
                yield file

    @contextmanager
    def _explained(self, name: str, done: str = "read") -> Iterator[None]:
        where = f"{self.url}/{name}".rstrip("/")
        try:
            yield
        except UserError:
            raise
        except FileNotFoundError as error:
            raise CheckpointError(f"{where} is not there", needed="a file or bucket of that name", fix="check it") from error
        except NotADirectoryError as error:
            raise CheckpointError(f"{self.url} is no directory", needed="a model directory", fix="name another one") from error
        except Exception as error:
            if not (self.remote or isinstance(error, OSError)):
                raise
            # gcsfs, aiohttp and Google's own packages each raise their own types for what a bucket refuses.
            why = " ".join(str(error).split())[:200] or type(error).__name__
            denied = isinstance(error, PermissionError) or any(
                word in why.lower() for word in ("forbidden", "denied", "permission", "credential", "anonymous", "unauthorized")
            )
            fix = "for a bucket: `gcloud auth application-default login`, or give this account a role on it"
            raise CheckpointError(
                f"{where} cannot be {done}: {why}",
                needed=f"an account that may {'read' if done == 'read' else 'write'} there"
                if denied
                else "a place that answers",
                fix=(fix if self.remote else "change its owner or mode") if denied else "try again, or check the address",
            ) from error


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file.

    Args:
        place: where the file is.
        file: its name.
        dtype: as the file says it: `BF16`, `F32`, …
        shape: its sizes.
        start: its first byte in the file.
    """

    place: Place
    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    def rows(self, first: int, last: int) -> np.ndarray:
        """Read rows `first` to `last` (not included) of a tensor whose dtype is one of `DTYPES`."""
        dtype = np.dtype(DTYPES[self.dtype])
        size = math.prod(self.shape[1:]) * dtype.itemsize
        found = self.place.read(self.file, self.start + first * size, self.start + last * size)
        if len(found) != (last - first) * size:
            raise CheckpointError(f"{self.place}/{self.file} became shorter while it was read", needed="a file that stays")
        return np.frombuffer(found, dtype).reshape(last - first, *self.shape[1:])


def tensors(place: Place, file: str) -> dict[str, Tensor]:
    """Return what a file holds, by name; only its header is read.

    Raises:
        CheckpointError: it is missing, damaged or cut off.
    """
    held, length = place.size(file), int.from_bytes(place.read(file, 0, 8), "little")
    if not 2 <= length <= min(_LONGEST_HEADER, held - 8):
        raise _damaged(place, file, f"its header would be {length} of {held} bytes long")
    try:
        header = dict(json.loads(place.read(file, 8, 8 + length)))
        header.pop("__metadata__", None)
        spans = {name: (told["dtype"], tuple(told["shape"]), *map(int, told["data_offsets"])) for name, told in header.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(place, file, f"its header is not that of a safetensors file ({error!r})") from error
    needed = 8 + length + max((stop for *_, stop in spans.values()), default=0)
    if held != needed:
        raise _damaged(place, file, f"it has {held} bytes where its header tells of {needed}")
    for name, (dtype, shape, start, stop) in spans.items():
        if dtype in DTYPES and stop - start != math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize:
            raise _damaged(place, file, f"{name} {list(shape)} of {dtype} has {stop - start} bytes")
    return {name: Tensor(place, file, dtype, shape, 8 + length + start) for name, (dtype, shape, start, _) in spans.items()}


def write(
    place: Place | None,
    file: str,
    described: Mapping[str, tuple[int, ...]],
    dtype: np.dtype[Any],
    pieces: Iterable[np.ndarray],
) -> None:
    """Write one file.

    Args:
        place: where to; None draws the pieces and writes nothing, as all processes but one do.
        file: its name.
        described: names and shapes of its tensors, in their order.
        dtype: of all of them.
        pieces: their rows, in the same order, in pieces of any length.
    """
    if place is None:
        for _ in pieces:
            pass
        return
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in described.items():
        stop = start + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype.name], "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    said = json.dumps(header, separators=(",", ":")).encode()
    said += b" " * (-len(said) % 8)  # data begins at a multiple of eight
    with place.writing(file) as out:
        out.write(len(said).to_bytes(8, "little") + said)
        for piece in pieces:
            out.write(np.ascontiguousarray(piece, dtype).reshape(-1).view(np.uint8).data)


def _damaged(place: Place, file: str, why: str) -> CheckpointError:
    return CheckpointError(
        f"{place}/{file} cannot be read: {why}", needed="a whole safetensors file", fix="copy it again from where it came from"
    )
