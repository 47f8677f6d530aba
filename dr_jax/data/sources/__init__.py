"""Where questions come from: one registry, one file per source."""

from dr_jax.data.sources.registry import evenly, read

__all__ = ["evenly", "read"]
