"""One rule for each Keras layer or operation, grouped by family. A new layer is one entry in one of these files, a new
family a file with `RULES`.

dense  conv  volume  affine  colour  activation  table  function  limit  choose  merge  divide  pool  adaptive  reduce
shape  index  order  border  resize  lookup  constant  masks  matmul  einsum  norm  attention  heads  recurrent
unrolled  real_steps  steps  layered  spectrum  passive

Any calls come in; calls that have kernels go out, and their operators when a file is written. `expansion` writes a
model out by these rules; `refused` has what no rule can do.
"""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import keras  # noqa: F401  first: `kquant.registration` runs then

from kquant.core.messages import did_you_mean
from kquant.core.operators import check_operator
from kquant.ops.rule import Rule
from kquant.targets import Target


def rules_of(family: Any) -> tuple[Rule, ...]:
    """The rules of a family (a module of this folder) whose layers the installed Keras has."""
    return tuple(filter(Rule.exists, family.RULES))


_OF_USERS: list[Rule] = []  # the latest first; they come before those of kquant


@cache
def candidates(kind: type) -> tuple[Rule, ...]:
    """The rules that may speak for a class; every stage asks for every layer, so the answer is kept."""
    return tuple(rule for rule in (*_OF_USERS, *RULES) if rule.speaks_for(kind))


def register_rule(cls: type) -> type:
    """Teach kquant a layer of your own: a class whose attributes are the fields of `kquant.ops.rule.Rule`.

    A layer written in `keras.ops` needs no rule, because it unfolds. A rule says it better: which simpler layers it is
    made of (`expand`), or how it is quantized and written (`operators`, `output`, `weights`, `lower`).

    Args:
        cls: has `layers` (the Keras classes it speaks for) and `expand` or `lower`; functions take no `self`.

    Returns:
        `cls`.

    Raises:
        ValueError: an attribute that no rule has, or nothing said of what the layer becomes.

    Example:
        >>> class Double(keras.layers.Layer):
        ...     def call(self, x):
        ...         return keras.ops.add(x, x)
        >>> @kquant.register_rule
        ... class DoubleRule:
        ...     layers = (Double,)
        ...     def expand(op, make, x):
        ...         return make("twice", lambda: keras.layers.Rescaling(2.0, name=op.name))(x)
        >>> model = keras.Sequential([keras.Input((4,)), Double(name="double")])
        >>> [row.operators for row in kquant.check(model).layers]
        [('DEPTHWISE_CONV_2D',)]
    """
    known = [f.name for f in fields(Rule)]
    given = {name: value for name, value in vars(cls).items() if not name.startswith("_")}
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ValueError(f"{cls.__name__}: a rule has no '{name}'.{hint} Known: {', '.join(known)}.")
    for code in (*given.get("operators", ()), *given.get("helpers", ())):
        check_operator(cls.__name__, code)
    if not given.get("layers") or not (given.get("expand") or given.get("lower")):
        raise ValueError(f"{cls.__name__}: a rule needs layers, and expand or lower. Received: {', '.join(given)}.")
    said: dict[str, Any] = {n: v.__func__ if isinstance(v, staticmethod) else v for n, v in given.items()}
    _OF_USERS.insert(0, Rule(**said))
    candidates.cache_clear()
    return cls


def find(op: Any, target: Target | None = None) -> Rule | None:
    """The rule for a layer or operation: the first that matches and whose operators the target has.

    Args:
        op: Keras layer or operation.
        target: where given, rules whose operators it lacks are passed over (GELU becomes a table, say), and those whose
            operators its accelerator takes go before others, as those do that another one yields to; where it has
            none of them, the first matching rule comes back, so that the caller can say what is missing.

    Returns:
        The rule, or None for an unknown layer.
    """
    # The first one counts, so that a rule with a condition stands before one without.
    matching = [rule for rule in candidates(type(op)) if rule.when(op)]
    if target is None or not matching:
        return matching[0] if matching else None
    able = [rule for rule in matching if all(target.supports(code) for code in (*rule.operators, *rule.helpers))]
    if target.accelerator is None or not able:
        return (able or matching)[0]
    left = [rule for rule in able if rule.yields(op) and any(code in target.left for code in rule.operators)]
    able = [rule for rule in able if rule not in left] or able
    # not those that expand, whose operators are not known yet: steps of a loop written one by one, say
    taken = (rule for rule in able if rule.operators and target.taken.issuperset(rule.operators))
    return able[0] if able[0].expand is not None else next(taken, able[0])


def find_weighted(op: Any) -> Rule | None:
    """The rule that says where a layer's weights are, whatever else it has (an activation, causal padding).

    Args:
        op: Keras layer or operation.

    Returns:
        The rule, or None where the layer's weights are not those of one kernel.

    Example:
        >>> find_weighted(keras.layers.Dense(2, activation="relu")).weights.input_axis
        0
    """
    # Of a layer that expands (an activation, causal padding), the rule behind says where the weights are.
    matching = (rule for rule in candidates(type(op)) if rule.expand is None and rule.when(op))
    return next((rule for rule in matching if rule.weights is not None), None)


# Last in this file, as some of those below ask `find`. Found as files, so that a new family is a new file and no entry
# anywhere; what has no rules helps those that have. Where several rules may speak for a class, the first one does: by
# name of the file, `recurrent` before `unrolled`.
_MODULES = [import_module(f"{__name__}.{file.name}") for file in sorted(iter_modules(__path__), key=lambda f: f.name)]
FAMILIES = tuple(module for module in _MODULES if hasattr(module, "RULES"))
RULES: tuple[Rule, ...] = tuple(rule for family in FAMILIES for rule in rules_of(family))
