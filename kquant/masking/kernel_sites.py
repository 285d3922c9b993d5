"""The kernels of a wrapped or quantized model, one by one: what a method may put a transform on.

Kernels that do not train are left as they are, whatever the method: `Kernel.trains` and `note_of` are the one place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from kquant.core.messages import did_you_mean
from kquant.core.origin import fits, identities
from kquant.graph.keras_private import inner_layers
from kquant.layers.kernel import Holder, Kernel, holders
from kquant.layers.loop import Loop
from kquant.layers.transform import Transform
from kquant.ops.rule import Geometry
from kquant.recipe.recipe import LayerRule
from kquant.views.kernels import kernels_of, unknown_kernels
from kquant.views.quantized_model import forget_graphs


@dataclass(frozen=True, eq=False)
class Site(Kernel):
    """A kernel that a transform may be put on.

    Attributes:
        geometry: its axes.
        position: "first" or "last" of the layers with kernels, or None.
    """

    geometry: Geometry
    position: str | None

    @property
    def names(self) -> tuple[tuple[str, str], ...]:
        """(name, class) under which recipes may speak of the layer."""
        return (*identities(self.holder), *identities(self.holder.layer))


def sites(model: keras.Model) -> list[Site]:
    """The kernels of a model whose layers are wrapped, in its order.

    Args:
        model: what `kquant.masking.wrapping.wrapped` or `kquant.quantize` gave.
    """
    wrapped = [(holder, known) for holder in holders(model) if (known := _known(holder))]
    # In this order a model of one layer has its first: the later entry of a dict stays.
    ends = {id(wrapped[-1][0]): "last", id(wrapped[0][0]): "first"} if wrapped else {}
    return [Site(h, path, geometry, ends.get(id(h))) for h, known in wrapped for path, geometry in known.items()]


def _known(holder: Any) -> dict[str, Geometry]:
    """Of a holder's kernels those whose geometry something tells; a PReLU's factors have none."""
    geometry = kernels_of(holder.layer)
    return {path: geometry[path] for path in holder.kernel_paths() if path in geometry}


def put(model: keras.Model, choose: Callable[[Site], Transform | None]) -> int:
    """Put a transform on every kernel that `choose` has one for; all are asked before the first is changed.

    Args:
        model: see `sites`.
        choose: gives a transform that is neither built nor started.

    Returns:
        How many there are.
    """
    chosen = [(site, transform) for site in sites(model) if (transform := choose(site)) is not None]
    for site, transform in chosen:
        site.transform_by(transform)
    forget_graphs(model)
    return len(chosen)


def note_of_unknown(model: keras.Model) -> str:
    """What is said of layers with weights whose kernels nothing tells; nothing where there are none.

    Args:
        model: see `sites`.
    """
    held = [layer.layer if isinstance(layer, Holder) else layer for layer in model.layers]
    # Each once, in the order of the model.
    names = list(dict.fromkeys(name for layer in held for name in unknown_kernels(layer)))
    # of a float model: what `kquant.fold` made of recurrent layers, whose step is a model of layers without places
    loops = [f"{op.name} (Loop)" for op in held if isinstance(op, Loop) and not _holds_places(op)]
    notes = []
    if names:
        notes.append(
            f"left as they are, because kquant knows no kernels among weights of such layers: {', '.join(names)}."
        )
    if loops:
        notes.append(
            f"left as they are, because a folded model holds a single step of them: {', '.join(loops)}. Change the "
            "model before kquant.fold."
        )
    return " ".join(notes)


def _holds_places(loop: Loop) -> bool:
    """True where the layers of a step have places for transforms, as a quantized model's have."""
    return any(isinstance(layer, Holder) for layer in inner_layers(loop))


def note_of(frozen: Sequence[Site]) -> str:
    """What is said of kernels that a method was to change but that do not train; nothing where there are none."""
    if not frozen:
        return ""
    names = ", ".join(site.label for site in frozen)
    return f"left as they are, because they do not train: {names}; set trainable = True where they are meant."


def check_patterns(verb: str, patterns: Sequence[str], kernels: Sequence[Site]) -> None:
    """Refuse name patterns that match no layer with a kernel.

    Args:
        verb: that was given them.
        patterns: of names of layers.
        kernels: the kernels of the model.

    Raises:
        ValueError: names the pattern and the nearest name.
    """
    names = sorted({name for site in kernels for name, _ in site.names})
    for pattern in patterns:
        if not match(names, [pattern]):
            hint = did_you_mean(pattern, names) or f" There are: {', '.join(names)}."
            raise ValueError(f"{verb}: '{pattern}' matches no layer with a kernel.{hint}")


def check_rules(verb: str, rules: Sequence[LayerRule], kernels: Sequence[Site]) -> None:
    """Refuse rules that match no layer with a kernel.

    Args:
        verb: that was given them.
        rules: of a call or a recipe.
        kernels: the kernels of the model.

    Raises:
        ValueError: names the rule and the nearest name.
    """
    names = sorted({name for site in kernels for name, _ in site.names})
    for rule in rules:
        if any(rule.matches(name, kind, site.position) for site in kernels for name, kind in site.names):
            continue
        conditions = {"layer": rule.layer, "type": rule.type, "position": rule.position}
        wanted = ", ".join(f"{key}='{value}'" for key, value in conditions.items() if value)
        hint = (did_you_mean(rule.layer, names) if rule.layer else "") or f" There are: {', '.join(names)}."
        raise ValueError(f"{verb}: the rule {wanted} matches no layer with a kernel.{hint}")


def match(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """True where one of the names fits one of the patterns."""
    return any(fits(name, pattern) for name in names for pattern in patterns)
