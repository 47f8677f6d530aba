"""Where compiled programs are kept from one start to the next."""

from __future__ import annotations

import tempfile

import jax

from dr_jax.base.cache import cache_folder
from dr_jax.base.trace import logger

_log = logger(__name__)


def keep_compiled() -> None:
    """Keep compiled programs between runs, unless a place for them was chosen already; say so where none can be written.

    All of them: a start that loads a hundred small ones is seconds shorter than one that compiles them.
    """
    if jax.config.jax_compilation_cache_dir:
        return
    try:
        place = cache_folder("compiled")
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except (OSError, RuntimeError) as error:  # a user may have no home
        _log.warning(
            "Every start compiles again: the cache cannot be written (%s). Set XDG_CACHE_HOME or JAX_COMPILATION_CACHE_DIR to "
            "one that can",
            error,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
