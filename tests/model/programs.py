"""Look into traced programs."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def largest(function: Callable[..., Any], *shapes: jax.ShapeDtypeStruct) -> int:
    """Return how many numbers the largest intermediate of a function has, those inside its loops included."""
    return max(_sizes(jax.make_jaxpr(function)(*shapes).jaxpr))


def _sizes(jaxpr: Jaxpr) -> Iterator[int]:
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: isinstance(x, ClosedJaxpr | Jaxpr)):
            if isinstance(inner, ClosedJaxpr):
                yield from _sizes(inner.jaxpr)
            elif isinstance(inner, Jaxpr):
                yield from _sizes(inner)
