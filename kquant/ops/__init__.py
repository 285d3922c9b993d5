"""One rule for each Keras layer or operation, grouped by family. A new layer is one entry in one of these files.

    dense  conv  affine  activation  table  limit  merge  pool  shape  passive  index  order  function  reduce  border
    choose  resize  volume  adaptive  lookup  steps  layered
"""

from __future__ import annotations

from functools import cache
from typing import Any

from kquant.ops import (
    activation,
    adaptive,
    affine,
    border,
    choose,
    conv,
    dense,
    function,
    index,
    layered,
    limit,
    lookup,
    merge,
    order,
    passive,
    pool,
    reduce,
    resize,
    shape,
    steps,
    table,
    volume,
)
from kquant.ops.rule import Rule
from kquant.targets import Target

FAMILIES = (
    dense,
    conv,
    affine,
    activation,
    table,
    limit,
    merge,
    pool,
    shape,
    passive,
    index,
    order,
    function,
    reduce,
    border,
    choose,
    resize,
    volume,
    adaptive,
    lookup,
    steps,
    layered,
)
RULES: tuple[Rule, ...] = tuple(rule for family in FAMILIES for rule in family.RULES)


@cache
def _candidates(kind: type) -> tuple[Rule, ...]:
    """The rules that may speak for a class; every stage asks for every layer, so the answer is kept."""
    return tuple(rule for rule in RULES if rule.speaks_for(kind))


def find(op: Any, target: Target | None = None) -> Rule | None:
    """The rule for a layer or operation: the first that matches and whose operators the target has.

    Args:
        op: Keras layer or operation.
        target: where given, rules whose operators it lacks are passed over (GELU becomes a table, say); where it has
            none of them, the first matching rule comes back, so that the caller can say what is missing.

    Returns:
        The rule, or None for an unknown layer.
    """
    matching = [rule for rule in _candidates(type(op)) if rule.when(op)]
    if target is None or not matching:
        return matching[0] if matching else None
    able = [rule for rule in matching if all(target.supports(code) for code in rule.operators)]
    return (able or matching)[0]
