"""Find what a config names as a place to read questions from.

In:    `data/dev.json`, `data/*.parquet`, `hub:owner/name/path/in/it.parquet@revision`, `tfds:natural_questions:train`
Out:   Input after Input: something with rows, a name to show, and a fingerprint for the manifest
Fails: DataError; what has to be downloaded is downloaded before it is read
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dr_jax.base.errors import DataError
from dr_jax.data.sources import files, tfds
from dr_jax.data.sources.row import Row


@dataclass(frozen=True, slots=True)
class Input:
    """Something to read rows from.

    Args:
        name: as a person knows it.
        path: of the file; None for a set of tensorflow-datasets.
    """

    name: str
    path: Path | None = None

    def rows(self) -> Iterator[Row]:
        """Return its rows, in its order."""
        return files.rows(self.path) if self.path is not None else tfds.rows(self.name)

    def fingerprint(self) -> str:
        """Return what tells this content from any other: a file's hash, or the version of a prepared set."""
        if self.path is None:
            return tfds.version(self.name)
        with self.path.open("rb") as file:
            return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def inputs(where: str) -> list[Input]:
    """Return the files or sets that a place stands for, in the order of their names.

    Raises:
        DataError: there is nothing, or the hub cannot be reached.
    """
    if where.startswith(tfds.PREFIX):
        return [Input(where)]
    if where.startswith("hub:"):
        return [Input(f"hub:{name}", path) for name, path in _hub(where.removeprefix("hub:"))]
    if "*" in where:
        path = Path(where)
        base = Path(path.anchor)
        found = sorted(base.glob(str(path.relative_to(base) if path.anchor else path)))
        if not found:
            raise DataError(f"There is no file {where}", needed="at least one file of that name", fix="correct its path")
        return [Input(str(one), one) for one in found]
    if not Path(where).is_file():
        raise DataError(
            f"There is no question file {where}", needed=f"a file in {', '.join(files.SUFFIXES)}", fix="correct its path"
        )
    return [Input(where, Path(where))]


def _hub(where: str) -> list[tuple[str, Path]]:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    whole, _, revision = where.partition("@")
    parts = whole.split("/")
    if len(parts) < 3:
        raise DataError(f"hub:{where} names no file", needed="hub:owner/name/path/in/it.parquet, with or without @revision")
    repository, name = "/".join(parts[:2]), "/".join(parts[2:])
    at = revision or None
    try:
        if "*" in name:
            base = Path(snapshot_download(repository, allow_patterns=name, repo_type="dataset", revision=at))
            got = [(f"{repository}/{one.relative_to(base)}", one) for one in sorted(base.glob(name))]
        else:
            got = [(f"{repository}/{name}", Path(hf_hub_download(repository, name, repo_type="dataset", revision=at)))]
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"hub:{where} cannot be read: {first}",
            needed="a file of a data set on the Hugging Face hub",
            fix="check its name, log in if it is gated, or download it and name the file",
        ) from error
    if not got:
        raise DataError(f"hub:{where} matches no file of {repository}", needed="at least one")
    return got
