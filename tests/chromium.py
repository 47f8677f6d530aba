"""Whether there is a Chromium to test with, and the marks of tests that need it."""

from __future__ import annotations

import shutil

import pytest

from dr_jax.web.render import _NAMES

CHROMIUM = next((found for name in _NAMES if (found := shutil.which(name))), None)
try:
    import playwright  # noqa: F401

    WHY = "" if CHROMIUM else f"no Chromium on the PATH ({', '.join(_NAMES)})"
except ImportError:
    WHY = "playwright is not installed (the extra `render`)"

NEEDED = [pytest.mark.slow, pytest.mark.skipif(bool(WHY), reason=WHY)]
