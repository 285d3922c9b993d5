"""The kernels of a wrapped or quantized model, one by one: what a method may put a transform on.

Kernels that do not train are left as they are, whatever the method: `Site.trains` and `note_of` are the one place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from kquant.core.messages import did_you_mean
from kquant.graph.origin import fits, identities
from kquant.layers import transform as kernels
from kquant.layers.nodes import Compressed
from kquant.layers.transform import Transform
from kquant.layers.transformed import ManyKernels
from kquant.recipe.recipe import LayerRule
from kquant.views.kernels import Kernel, kernels_of, unknown_kernels
from kquant.views.quantized_model import forget_graphs


@dataclass(frozen=True, eq=False)
class Site:
    """A kernel that a transform may be put on.

    Attributes:
        holder: the wrapper around the Keras layer.
        path: of the kernel in that layer.
        kernel: its geometry.
        position: "first" or "last" of the layers with kernels, or None.
    """

    holder: Any
    path: str
    kernel: Kernel
    position: str | None

    @property
    def names(self) -> tuple[tuple[str, str], ...]:
        """(name, class) under which recipes may speak of the layer."""
        return (*identities(self.holder), *identities(self.holder.layer))

    @property
    def transforms(self) -> list[Transform]:
        """Those that the kernel has."""
        held = self.holder.transforms
        return list(held.get(self.path, ()) if isinstance(held, dict) else held)

    @property
    def label(self) -> str:
        """For messages."""
        return f"{self.holder.name} ({self.path})"

    @property
    def trains(self) -> bool:
        """False in a frozen layer; a quantized model's wrapper around one trains all the same, so its kernel tells."""
        return bool(self.holder.trainable and kernels.kernel_at(self.holder.layer, self.path).trainable)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the kernel."""
        return tuple(int(n) for n in kernels.kernel_at(self.holder.layer, self.path).shape)

    @property
    def raw(self) -> tf.Tensor:
        """float32, before the transforms that the kernel has."""
        return kernels.real(self.holder.layer, self.path)

    @property
    def weights(self) -> tf.Tensor:
        """float32, after the transforms that the kernel has."""
        return kernels.apply(self.transforms, self.raw)

    def transform_by(self, transform: Transform) -> None:
        """Put one more transform on the kernel."""
        if isinstance(self.holder, Compressed):
            self.holder.transform_by(transform)
        else:
            self.holder.transform_by(self.path, transform)

    def replace_by(self, transform: Transform) -> None:
        """Put a transform, started from the kernel itself, in the place of those of its class."""
        rest = [t for t in self.transforms if not isinstance(t, type(transform))]
        transform.build(self.shape)
        transform.start(self.raw)
        with kernels.growing(self.holder):
            if isinstance(self.holder, Compressed):
                self.holder.transforms = rest
            else:
                self.holder.transforms = {**self.holder.transforms, self.path: rest}
            self.transform_by(transform)


def sites(model: keras.Model) -> list[Site]:
    """The kernels of a model whose layers are wrapped, in its order.

    Args:
        model: what `kquant.masking.wrapping.wrapped` or `kquant.quantize` gave.
    """
    holders = [layer for layer in model._flatten_layers() if isinstance(layer, ManyKernels | Compressed)]
    holders = [holder for holder in holders if any(True for _ in _kernels(holder))]
    ends = {id(holders[-1]): "last", id(holders[0]): "first"} if holders else {}
    return [Site(h, path, kernel, ends.get(id(h))) for h in holders for path, kernel in _kernels(h)]


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
    held = [layer.layer if isinstance(layer, ManyKernels | Compressed) else layer for layer in model.layers]
    names = list(dict.fromkeys(name for layer in held for name in unknown_kernels(layer)))
    if not names:
        return ""
    return f"left as they are, because kquant knows no kernels among weights of such layers: {', '.join(names)}."


def note_of(frozen: Sequence[Site]) -> str:
    """What is said of kernels that a method was to change but that do not train; nothing where there are none."""
    if not frozen:
        return ""
    names = ", ".join(site.label for site in frozen)
    return f"left as they are, because they do not train: {names}; set trainable = True where they are meant."


def check_patterns(verb: str, patterns: Sequence[str], found: Sequence[Site]) -> None:
    """Refuse name patterns that match no layer with a kernel.

    Args:
        verb: that was given them.
        patterns: of names of layers.
        found: the kernels of the model.

    Raises:
        ValueError: names the pattern and the nearest name.
    """
    names = sorted({name for site in found for name, _ in site.names})
    for pattern in patterns:
        if not match(names, [pattern]):
            hint = did_you_mean(pattern, names) or f" There are: {', '.join(names)}."
            raise ValueError(f"{verb}: '{pattern}' matches no layer with a kernel.{hint}")


def check_rules(verb: str, rules: Sequence[LayerRule], found: Sequence[Site]) -> None:
    """Refuse rules that match no layer with a kernel.

    Args:
        verb: that was given them.
        rules: of a call or a recipe.
        found: the kernels of the model.

    Raises:
        ValueError: names the rule and the nearest name.
    """
    names = sorted({name for site in found for name, _ in site.names})
    for rule in rules:
        if any(rule.matches(name, kind, site.position) for site in found for name, kind in site.names):
            continue
        conditions = {"layer": rule.layer, "type": rule.type, "position": rule.position}
        wanted = ", ".join(f"{key}='{value}'" for key, value in conditions.items() if value)
        hint = (did_you_mean(rule.layer, names) if rule.layer else "") or f" There are: {', '.join(names)}."
        raise ValueError(f"{verb}: the rule {wanted} matches no layer with a kernel.{hint}")


def match(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """True where one of the names fits one of the patterns."""
    return any(fits(name, pattern) for name in names for pattern in patterns)


def _kernels(holder: Any) -> Iterator[tuple[str, Kernel]]:
    """Of a wrapper in a quantized model only the kernel that it quantizes."""
    for path, kernel in kernels_of(holder.layer).items():
        if not isinstance(holder, Compressed) or path == holder.kernel_name:
            yield path, kernel
