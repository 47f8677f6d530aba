"""What one process does of a run that several do together.

In:    settings of the whole run, this process and the others
Out:   the settings as all have them; those of this process's part
Fails: ConfigError that names what differs between the processes, or what cannot be shared
"""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from typing import Any

from dr_jax.base.config import to_tree
from dr_jax.base.errors import ConfigError
from dr_jax.train.settings import Settings
from dr_jax.train.together import Together

_PARTS = ("dr-jax", "jax", "jaxlib", "orbax-checkpoint")  # whose versions must be the same


def own_share(settings: Settings, together: Together) -> Settings:
    """Return what one process does of a run: its part of the groups, of what is in flight, and of the rows of a batch.

    Raises:
        ConfigError: there is not a group, or a row, for each.
    """
    if together.alone:
        return settings
    rollout, count = settings.rollout, together.count
    if rollout.groups < count or settings.batch.rows % count:
        raise ConfigError(
            f"rollout.groups = {rollout.groups} and batch.rows = {settings.batch.rows} cannot be shared by {count} processes",
            needed=f"at least {count} groups, and a multiple of {count} rows",
            fix="change them, or start fewer processes",
        )
    groups = len(together.share(range(rollout.groups)))
    in_flight = max(rollout.siblings, rollout.in_flight // count) if rollout.in_flight else 0
    return replace(
        settings,
        rollout=replace(rollout, groups=groups, in_flight=in_flight),
        batch=replace(settings.batch, rows=settings.batch.rows // count),
        eval=replace(settings.eval, in_flight=-(-settings.eval.in_flight // count)),
    )


def same(settings: Settings, together: Together) -> Settings:
    """Return the settings as process 0 has them.

    Raises:
        ConfigError: another process has others, or other versions of what it is made of.
    """
    if together.alone:
        return settings
    versions = {name: metadata.version(name) for name in _PARTS}
    mine = {**_flat(to_tree(settings)), **{f"version of {name}": found for name, found in versions.items()}}
    all_ = [dict(one) for one in together.exchange(mine)]
    dates = [one.pop("prompt.date") for one in all_]
    for process, theirs in enumerate(all_):
        if wrong := [name for name in sorted(theirs.keys() | all_[0].keys()) if theirs.get(name) != all_[0].get(name)]:
            found = ", ".join(f"{name} = {theirs.get(name)!r} in place of {all_[0].get(name)!r}" for name in wrong[:3])
            raise ConfigError(
                f"Process {process} is not started as process 0 is: {found}",
                needed="the same settings and the same versions on all hosts",
                fix="give all the same command and the same environment",
            )
    return replace(settings, prompt=replace(settings.prompt, date=dates[0]))  # their clocks may have another day


def _flat(tree: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(tree, dict):
        return {prefix: str(tree)}
    return {name: text for key, one in tree.items() for name, text in _flat(one, f"{prefix}.{key}" if prefix else key).items()}
