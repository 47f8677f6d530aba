"""Read sets that tensorflow-datasets has prepared; the package is an extra and imported only here.

In:    `tfds:natural_questions:train`, `tfds:trivia_qa/unfiltered.nocontext:validation`
Out:   Row after Row, tensors as plain values: bytes as text, arrays and ragged arrays as lists
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from dr_jax.base.errors import DataError
from dr_jax.data.sources.row import Row

PREFIX = "tfds:"


def rows(where: str) -> Iterator[Row]:
    """Return the rows of a prepared set.

    Raises:
        DataError: the package is missing, the set is unknown, or it was not prepared.
    """
    package, builder, split = _built(where)
    known = sorted(builder.info.splits)
    if split not in known:
        raise DataError(f"{where} has no split {split!r}", needed=f"one of {', '.join(known)}")
    examples: Any
    if _random_access(builder):
        source = builder.as_data_source(split)
        examples = (source[index] for index in range(len(source)))
    else:
        examples = package.as_numpy(builder.as_dataset(split, shuffle_files=False))
    for number, example in enumerate(examples, start=1):
        yield Row(f"{where}, example {number}", builder.name, number, plain(example))


def version(where: str) -> str:
    """Return the full name of a prepared set, its version included."""
    _, builder, split = _built(where)
    return f"tfds:{builder.info.full_name}:{split}:{builder.info.splits[split].num_examples}"


def plain(value: Any) -> Any:
    """Turn what tensorflow-datasets yields into plain values."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    for method in ("to_list", "tolist"):  # ragged tensors, then arrays and their scalars
        if hasattr(value, method):
            return plain(getattr(value, method)())
    return value


def _random_access(builder: Any) -> bool:
    """Whether the set was prepared in the one file format that is read without TensorFlow."""
    return getattr(builder.info.file_format, "name", "") == "ARRAY_RECORD"


def _built(where: str) -> tuple[Any, Any, str]:
    name, colon, split = where.removeprefix(PREFIX).rpartition(":")
    if not colon or not name or not split:
        raise DataError(f"{where} names no split", needed="tfds:name:split, such as tfds:natural_questions:train")
    try:
        package: Any = importlib.import_module("tensorflow_datasets")
    except ModuleNotFoundError as error:
        raise DataError(
            f"{where} needs {error.name}", needed="tensorflow-datasets", fix="pip install 'dr-jax[tfds]'"
        ) from error
    try:
        builder = package.builder(name)
    except (package.core.registered.DatasetNotFoundError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise DataError(f"{where} is not known: {first}", needed="a set of tensorflow-datasets") from error
    if not builder.info.splits:
        raise DataError(
            f"{where} was not prepared in {builder.data_dir}",
            needed="a prepared set",
            fix=f"run `tfds build {name}`, or set TFDS_DATA_DIR to where it lies",
        )
    return package, builder, split
