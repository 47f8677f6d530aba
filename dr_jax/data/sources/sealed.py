"""Open texts that a benchmark has sealed against being crawled: base64 of the text, xored with a key that the row carries.

The seal keeps questions out of training corpora, so what is opened here goes to evaluations and is not published again.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from itertools import cycle

from dr_jax.base.errors import DataError
from dr_jax.data.sources.row import Row


def opened(row: Row, name: str, key: Callable[[str], bytes]) -> str:
    """Return the text of a sealed field.

    Args:
        row: has the field, and the password under `canary`.
        name: of the field.
        key: from the password.

    Raises:
        DataError: the field is not sealed with this row's password.
    """
    password = row.text("canary")
    try:
        sealed = base64.b64decode(row.text(name), validate=True)
        if not password:
            raise ValueError("its canary is empty")
        return xored(sealed, key(password)).decode("utf-8")
    except (binascii.Error, ValueError) as error:
        raise DataError(
            f"{row.place}: {name} cannot be opened with this row's canary: {error}"[:300],
            needed="the file as it was published",
            fix="download it again; a spreadsheet program may have changed it",
        ) from error


def xored(text: bytes, key: bytes) -> bytes:
    """Return each byte xored with the key, which begins again when it ends."""
    return bytes(one ^ other for one, other in zip(text, cycle(key), strict=False))
