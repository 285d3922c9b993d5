"""What may be done to a layer that parts a graph: each change makes another model, or another recipe, to be tried.

    CHANGES    (layer) -> the layers that take its place, and what that is in words; None where it does not apply

Changes that keep the function come first; behind the others a model has to be trained again, and that is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from kquant.core.spec import KERNEL_BITS
from kquant.graph.copies import own
from kquant.graph.defaults import own_defaults
from kquant.graph.graph import Graph, Node, legal_name, rewrite
from kquant.ops.rule import rebuild
from kquant.recipe.recipe import LayerRule, Recipe

# Smooth activations, by the names of Keras' classes and functions; the first of `INSTEAD` that is taken is named.
SMOOTH = frozenset("gelu silu swish mish elu selu softplus softsign hardsilu hardswish hardsigmoid celu".split())
CUT = frozenset("leakyrelu leaky_relu prelu relu6 thresholdedrelu".split())
INSTEAD = ("silu", "hard_silu", "relu6", "relu")


@dataclass(frozen=True)
class Replacement:
    """What takes the place of one layer.

    Attributes:
        make: builds it, on the tensor that the layer reads.
        what: in words.
        same_function: it computes the same.
    """

    make: Callable[[Any], Any]
    what: str
    same_function: bool = False


@dataclass(frozen=True)
class Trial:
    """A changed model to be tried.

    Attributes:
        model, recipe: the changed ones.
        what, same_function: see `Replacement`.
    """

    model: keras.Model
    recipe: Recipe
    what: str
    same_function: bool


def changed(graph: Graph, recipe: Recipe, names: Sequence[str]) -> Iterator[Trial]:
    """The model with one change to all layers of these names, for each change that applies to them.

    Args:
        graph: of the float model, see `kquant.views.float_model.read`.
        recipe: it is to be quantized with.
        names: of layers of one class.
    """
    widths = [recipe.activations.bits, *(rule.activations.get("bits", 0) for rule in recipe.rules)]
    if max(widths) > min(KERNEL_BITS):
        rules = tuple(LayerRule(layer=name, activations={"bits": min(KERNEL_BITS)}) for name in names)
        said = "a rule of the recipe with activations = { bits = 8 } for them"
        narrower = recipe.model_copy(update={"rules": (*recipe.rules, *rules)})
        yield Trial(_with(graph, {}), narrower, said, True)
    wanted = [node for node in graph.nodes if node.name in names]
    for change in CHANGES:
        for position in range(len(INSTEAD)):
            made = {id(node.op): change(node.op, position) for node in wanted}
            replacements = {key: one for key, one in made.items() if one is not None}
            # for all of the layers or none: one that stays parts the graph as before
            if not replacements or len(replacements) < len(made):
                break
            first = next(iter(replacements.values()))
            yield Trial(_with(graph, replacements), recipe, first.what, first.same_function)


def _with(graph: Graph, replacements: dict[int, Replacement]) -> keras.Model:
    """A float model of its own, some layers replaced."""
    copies: dict[int, Any] = {}

    def replace(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if id(node.op) in replacements:
            return replacements[id(node.op)].make(args[0])
        # a layer with several calls stays one layer, with one set of weights
        if id(node.op) not in copies:
            copies[id(node.op)] = own(node.op)
        return copies[id(node.op)](*args, **kwargs)

    with own_defaults(graph.layers):
        return rewrite(graph, replace, name=legal_name(graph.name, root=True))


def _only_first(position: int, one: Replacement | None) -> Replacement | None:
    return one if position == 0 else None


def _slopes(op: Any, position: int) -> Replacement | None:
    """LeakyReLU is a PReLU whose slopes are one number."""
    if not isinstance(op, keras.layers.LeakyReLU):
        return None

    def make(x: Any) -> Any:
        shared = list(range(1, len(x.shape) - 1))
        slope: Any = keras.initializers.Constant(float(op.negative_slope))
        return keras.layers.PReLU(slope, shared_axes=shared or None, name=op.name)(x)

    said = f"PReLU(keras.initializers.Constant({op.negative_slope:g}), shared_axes=[1, 2]) in its place"
    return _only_first(position, Replacement(make, said, True))


def _unrolled(op: Any, position: int) -> Replacement | None:
    """A recurrent layer's steps, written one by one."""
    if not isinstance(op, keras.layers.RNN) or op.unroll:
        return None
    return _only_first(position, Replacement(lambda x: rebuild(op, unroll=True)(x), "unroll=True", True))


def _lstm(op: Any, position: int) -> Replacement | None:
    """An LSTM, which has an operator of its own."""
    # an LSTM gives two states where these give one
    if not isinstance(op, keras.layers.GRU | keras.layers.SimpleRNN) or op.return_state:
        return None
    keys = ("return_sequences", "go_backwards")
    settings = {"name": op.name, **{key: getattr(op, key) for key in keys}}
    return _only_first(position, Replacement(lambda x: keras.layers.LSTM(op.units, **settings)(x), "LSTM in its place"))


def _activation(op: Any, position: int) -> Replacement | None:
    """Another activation, in a layer or as one."""
    inside = getattr(op, "activation", None)
    named = type(op).__name__.lower() if inside is None else getattr(inside, "__name__", "")
    if named.replace("_", "") not in SMOOTH | CUT:
        return None
    choices = [name for name in INSTEAD if name != named and (named.replace("_", "") in SMOOTH or "relu" in name)]
    if position >= len(choices):
        return None
    new = choices[position]
    weighted = isinstance(op, keras.layers.Layer) and inside is not None
    said = f'activation="{new}"' if weighted else f'Activation("{new}") in its place'

    def make(x: Any) -> Any:
        return rebuild(op, activation=new)(x) if weighted else keras.layers.Activation(new, name=op.name)(x)

    return Replacement(make, said)


def _upsampled(op: Any, position: int) -> Replacement | None:
    """A transposed convolution as nearest neighbours and a convolution."""
    if not isinstance(op, keras.layers.Conv2DTranspose):
        return None

    def make(x: Any) -> Any:
        y = keras.layers.UpSampling2D(op.strides, name=f"{op.name}_up")(x)
        settings = {"padding": op.padding, "activation": op.activation, "use_bias": op.use_bias, "name": op.name}
        return keras.layers.Conv2D(op.filters, op.kernel_size, **settings)(y)

    return _only_first(position, Replacement(make, f"UpSampling2D({op.strides}) and Conv2D in its place"))


def _nearest(op: Any, position: int) -> Replacement | None:
    """The other way of enlarging."""
    if not isinstance(op, keras.layers.UpSampling2D) or op.interpolation == "nearest":
        return None
    return _only_first(
        position, Replacement(lambda x: rebuild(op, interpolation="nearest")(x), 'interpolation="nearest"')
    )


def _batch_norm(op: Any, position: int) -> Replacement | None:
    """A norm over the batch, which folds, for one over the features, which has to be computed."""
    if type(op) not in (keras.layers.LayerNormalization, keras.layers.GroupNormalization):
        return None
    return _only_first(
        position,
        Replacement(lambda x: keras.layers.BatchNormalization(name=op.name)(x), "BatchNormalization in its place"),
    )


CHANGES: tuple[Callable[[Any, int], Replacement | None], ...] = (
    _slopes,
    _unrolled,
    _lstm,
    _nearest,
    _activation,
    _upsampled,
    _batch_norm,
)
