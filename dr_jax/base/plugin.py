"""Find what a config names as `module:attribute`: the one way to plug in a part without touching dr_jax.

In:    `my_rewards:brevity`
Out:   that attribute, imported
Fails: ConfigError that says which half of the name was wrong
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from dr_jax.base.errors import ConfigError


def named(reference: str) -> Any:
    """Import `module:attribute`; modules beside the working directory are found too.

    Raises:
        ConfigError: there is no such module or attribute, or the name has another form.
    """
    module_name, colon, attribute = reference.partition(":")
    if not colon or not module_name or not attribute:
        raise ConfigError(
            f"{reference!r} names no part", needed="`module:attribute`", fix="write it as `my_module:my_function`"
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and module_name.split(".")[: len(error.name.split("."))] == error.name.split("."):
            raise ConfigError(
                f"There is no module {module_name!r} (for {reference!r})",
                needed="a module on PYTHONPATH or in the working directory",
                fix=f"start the command beside {module_name.split('.')[0]}.py, or install it",
            ) from error
        raise
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        raise ConfigError(
            f"{module_name} has no {attribute!r} (for {reference!r})", needed="a function or class in it"
        ) from error
