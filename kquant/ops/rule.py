"""What kquant knows about one Keras layer or operation: a `Rule`.

Every stage reads the same rule: fake quantization, folding, target checks and the file writer. A rule either explains a
layer by simpler ones (`expand`) or says how it is quantized and written (`output`, `weights`, `arithmetic`, `lower`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal

import keras
import numpy as np

from kquant.core.checks import present
from kquant.core.origin import mark, origins
from kquant.core.packed import numpy_type
from kquant.core.program import Program, Ref
from kquant.core.spec import FLOAT, Encoding, QuantSpec
from kquant.graph.copies import again
from kquant.graph.creation import without_random
from kquant.graph.graph import Node

# own: a range of its own; same: the codes of its input, moved or picked; shared: all inputs and the output in one
# encoding; fixed: prescribed by the kernel; follows: new codes in the encoding of its input; closed: the codes of its
# input in an encoding that nobody behind can widen; state: what the step before left, in the encoding of that.
Output = Literal["own", "same", "shared", "fixed", "follows", "closed", "state"]
MOVES: tuple[Output, ...] = ("same", "shared")  # the output holds codes of the inputs, in their encoding


@dataclass(frozen=True)
class Weights:
    """Where a layer keeps its weights.

    Attributes:
        kernel, bias: names of the Keras variables.
        channel_axes: axes of the kernel that number the output channels, in order.
        input_axis: axis of the kernel that runs over the input's channels.
        sums: False where the layer multiplies element by element only.
        per_axis: False where the kernel takes a single scale.
        rows: `(layer, x, at) -> float[n, groups, k]`, what the kernel is multiplied by: see `ops.rows`. None where the
            layer is not written as a product of matrices.
        width: entry of the layer's config with the number of output channels; None where its input tells.
        block_axes: axes that number the rows which uniform blocks (`weights.block`) divide; None: those of channels.
        block_reader: operator that reads weights in blocks where activations are float; "" where none does.
    """

    kernel: str = "kernel"
    bias: str | None = "bias"
    channel_axes: tuple[int, ...] = (-1,)
    input_axis: int | None = -2
    sums: bool = True
    per_axis: bool = True
    rows: Callable[..., Any] | None = None
    width: str | None = None
    block_axes: tuple[int, ...] | None = None
    block_reader: str = ""


@dataclass(frozen=True, eq=False)
class Constants:
    """Weights as the device computes with them, in Keras' layout.

    Attributes:
        codes: int64, like the Keras kernel; float32 values where `scale` is None.
        scale: float32[n], n = 1 or the number of output channels; None for a float kernel. Of blocks float32[rows, n].
        bias: int64[channels], zeros where the layer has none; float32 where `bias_scale` is None.
        bias_scale: float32[n], `input scale * scale`; None where the activations are float.
        spec: grid of the codes.
        name: of the layer.
        dtype: stored type of the kernel: "int8", a packed type or "float32"; "float16" is dequantized before use.
        bias_dtype: stored type of the bias: "int32", "int64" (16-bit activations) or "float32".
        dequantized: the kernel becomes float32 before the operator reads it.
    """

    codes: np.ndarray
    scale: np.ndarray | None
    bias: np.ndarray
    bias_scale: np.ndarray | None
    spec: QuantSpec
    name: str
    dtype: str = "int8"
    bias_dtype: str = "int32"
    dequantized: bool = False

    def kernel_ref(self, program: Program, codes: np.ndarray, axis: int) -> Ref:
        """The kernel as a stored tensor; `codes` in the operator's layout, scales along `axis`."""
        name, encoding = f"{self.name}/kernel", None
        if self.scale is not None:
            per_axis = axis if self.scale.size > 1 else None
            encoding = Encoding(self.scale, np.zeros(self.scale.size, np.int64), self.spec, per_axis)
        # numpy has no 4-bit integers: those codes wait as int8 until the file is written
        codes = codes.astype(numpy_type(self.dtype))
        stored = program.constant(name, codes, encoding, self.dtype)
        if not self.dequantized:
            return stored
        return program.emit("DEQUANTIZE", [stored], program.value(f"{name}/float", codes.shape, None))

    def blocks_ref(self, program: Program, codes: np.ndarray) -> Ref:
        """A kernel in blocks as a stored tensor; `codes` in the operator's layout, blocks along their last axis."""
        scale = present(self.scale, f"{self.name}: blocks without scales.")
        stored = program.constant(f"{self.name}/kernel", codes.astype(np.int8), dtype=self.dtype)
        stored.block_scales = program.constant(f"{self.name}/scales", scale.astype(np.float16))
        return stored

    def bias_ref(self, program: Program) -> Ref:
        """The bias as a stored tensor, integers at `input scale * weight scale`."""
        name, bias = f"{self.name}/bias", self.bias.astype(self.bias_dtype)
        # Float activations: the bias is float, too.
        if self.bias_scale is None:
            return program.constant(name, bias)
        # Of this grid only scale and zero point reach the file: a spec ends at 16 bits, and `bias_dtype` says how it is
        # stored.
        spec = QuantSpec(16, symmetric=True)
        per_axis = 0 if self.bias_scale.size > 1 else None
        encoding = Encoding(self.bias_scale, np.zeros(self.bias_scale.size, np.int64), spec, per_axis)
        return program.constant(name, bias, encoding)


@dataclass(frozen=True, eq=False)
class Call:
    """One layer call to be written.

    Attributes:
        op: the Keras layer or operation.
        inputs: tensors of the file, in the order of the call.
        output: the tensor to produce.
        activation: TFLite's fused activation ("NONE", "RELU", "RELU6", "RELU_N1_TO_1").
        weights: codes and bias, for layers with weights.
        node: the call as traced, for operations whose arguments are not in the layer.
    """

    op: Any
    inputs: list[Ref]
    output: Ref
    activation: str = "NONE"
    weights: Constants | None = None
    node: Node | None = None

    @property
    def constants(self) -> Constants:
        """`weights`, where the rule names some.

        Raises:
            ValueError: it names none.
        """
        return present(self.weights, f"{self.op.name}: written as a layer with weights, but its rule names none.")


Make = Callable[[str, Callable[[], Any]], Any]


@dataclass(frozen=True)
class Geometry:
    """The geometry of one kernel.

    Attributes:
        input_axis: axis that the layer sums over, as far as it runs over channels; None where it sums over none.
        output_axis: axis of the output channels, the innermost where there are several.
        depthwise: each input channel has weights of its own, and few of them.
    """

    input_axis: int | None
    output_axis: int
    depthwise: bool = False


CONV, MATRIX = Geometry(-2, -1), Geometry(0, 1)


def _always(op: Any) -> bool:
    return True


def _never(op: Any) -> bool:
    return False


def _no_kernels(op: Any) -> Mapping[str, Geometry]:
    return {}


@dataclass(frozen=True)
class Rule:
    """One layer's geometry, encoding constraint and lowering.

    Attributes:
        layers: Keras classes it speaks for (subclasses that keep `call` included).
        operations: names of `keras.ops` classes it speaks for.
        when: further condition on the layer.
        expand: `expand(op, make, *args, **kwargs)` builds the same function of simpler layers; `make(key, factory)`
            returns one layer for each key, also when the original is shared. It may return None: stay as it is.
        widen: `widen(op, make, x)` builds the same function of layers with 16-bit kernels, for calls that are to have
            16 bits where the target has the rule's operators in 8 only. It may return None: they stay in 8.
        yields: `(layer) -> bool`, to the rules behind it where an accelerator leaves its operators to the processor.
        operators: TFLite operators that `lower` writes.
        rank: `(node) -> dimensions` that its operators see, where `lower` writes the tensors with fewer than they have.
        instead: what to take where a target lacks its operators.
        helpers: further ones that it writes with int8, int32 and bool tensors, whatever the width of the activations.
        output: how its output's encoding is found.
        fixed: (scale, zero point) where output is "fixed".
        weights: where its weights are.
        kernels: `(layer) -> {path: geometry}`, which variables pruning and clustering act on, where `weights` does not
            tell: of a layer that `expand` or `attach` makes another one of.
        fuses: a following ReLU costs nothing.
        relu: the fused form of this activation: "RELU", "RELU6", ... where the operator before can take it.
        arithmetic: `(node) -> (kernel, attributes)` where the kernel's rounding needs the codes of its inputs.
        attach: `(layer, spec, inside, bits) -> layer` builds the one that computes with quantized weights, where a
            kernel keeps encodings inside; `spec` is the grid of its weights, `inside(name)` the arguments of a
            `FakeQuant` for one, `bits` the width of its activations. It is called with its input's encoding and that of
            its output: `layer(x, encoding=..., out=...)`,
            a shared layer with `site`, the number of the call, too.
        lower: writes the call.
        lower_float: writes it for float32 tensors, where `lower` cannot.
        widths: of activations that `lower` (or `lower_float`) can write: 8, 16, `FLOAT`.
        observer: the function that calibration sets its range with, where not the recipe's.
        span: `(layer) -> (lowest, highest)` of all that it can give, where its weights tell; calibration sees a part.
        indices: it reads whole numbers as positions; the model's input that it reads stays int32 in the file.
        wide: it reads 16 bits whatever the recipe says, and all in front of it computes in them (`views/fronts.py`).
        told: its last input only tells which steps are real, by codes of any width; what holds indices does, too.
        refuse: `(node) -> reason` where this use of the layer has no integer form, else None.
        masks: `expand` takes the call's `mask`, which otherwise is left out.
        needs: public names of Keras ("ops.layer_normalization") that its operations come with; a Keras without them
            has no such rule.
        examples: tiny models, which enrol the rule in every contract test.
    """

    layers: tuple[type, ...] = ()
    operations: tuple[str, ...] = ()
    when: Callable[[Any], bool] = _always
    expand: Callable[..., Any] | None = None
    widen: Callable[..., Any] | None = None
    yields: Callable[[Any], bool] = _never
    operators: tuple[str, ...] = ()
    rank: Callable[[Node], int] | None = None
    instead: str = "choose another layer or target"
    helpers: tuple[str, ...] = ()
    output: Output = "own"
    fixed: tuple[float, int] | None = None
    weights: Weights | None = None
    kernels: Callable[[Any], Mapping[str, Geometry]] = _no_kernels
    fuses: bool = False
    relu: Callable[[Any], str | None] | None = None
    arithmetic: Callable[[Node], tuple[str, dict[str, Any]]] | None = None
    attach: Callable[[Any, QuantSpec, Callable[[str], dict[str, Any]], int], keras.layers.Layer] | None = None
    lower: Callable[[Program, Call], None] | None = None
    lower_float: Callable[[Program, Call], None] | None = None
    widths: tuple[int, ...] = (8, 16, FLOAT)
    observer: str | None = None
    span: Callable[[Any], tuple[float, float]] | None = None
    indices: bool = False
    wide: bool = False
    told: bool = False
    refuse: Callable[[Node], str | None] | None = None
    masks: bool = False
    needs: tuple[str, ...] = ()
    examples: tuple[Callable[[], keras.Model], ...] = field(default=(), repr=False)

    def exists(self) -> bool:
        """True where the installed Keras has what the rule speaks for."""
        return bool(self.layers or self.operations) and all(_has(name) for name in self.needs)

    def speaks_for(self, kind: type) -> bool:
        """True where the rule may match layers or operations of this class: its own, or one that keeps its `call`."""
        # A subclass with a `call` of its own computes something else, whatever it is derived from.
        if issubclass(kind, keras.layers.Layer):
            return any(issubclass(kind, cls) and kind.call is cls.call for cls in self.layers)
        # Keras exports functions, not the classes of its operations: those are known by name.
        return kind.__name__ in self.operations


def keras_layers(*names: str) -> tuple[type, ...]:
    """The classes of `keras.layers` that the installed Keras has, for rules of layers that came after the oldest one.

    Example:
        >>> keras_layers("Dense", "LayerOfTomorrow") == (keras.layers.Dense,)
        True
    """
    return tuple(getattr(keras.layers, name) for name in names if hasattr(keras.layers, name))


def _has(name: str) -> bool:
    *path, last = name.split(".")
    return hasattr(reduce(getattr, path, keras), last)


def rebuild(layer: keras.layers.Layer, **changes: Any) -> keras.layers.Layer:
    """A new layer with the config, shapes and weights of `layer`, but for `changes` to its config.

    Weights that the changed layer has too are copied by name; new ones start with zeros, or a constant of the config.
    """
    new = again(layer, **changes)
    # Values are about to be copied over; random ones would cost time and move the user's seed.
    with without_random(new):
        new.build_from_config(layer.get_build_config())
    copy_weights(layer, new)
    mark(new, origins(layer))
    return new


def copy_weights(old: keras.layers.Layer, new: keras.layers.Layer) -> None:
    """Values and `trainable` from one layer to another, by variable name."""
    values = {v.name: v for v in old.variables}
    for variable in new.variables:
        if variable.name in values:
            variable.assign(values[variable.name])
    new.trainable = old.trainable


def example(*layers: Any, shape: tuple[int, ...]) -> Callable[[], keras.Model]:
    """A model that feeds `shape` through `layers` (factories, so that each call makes new weights)."""

    def build() -> keras.Model:
        x = inputs = keras.Input(shape, name="x")
        for make in layers:
            x = make()(x)
        return keras.Model(inputs, x, name="example")

    return build


def computed(function: Callable[..., Any], *shapes: tuple[int, ...]) -> Callable[[], keras.Model]:
    """A model that applies `function` to inputs of these shapes."""

    def build() -> keras.Model:
        inputs = [keras.Input(shape, name=f"x{i}") for i, shape in enumerate(shapes)]
        return keras.Model(inputs, function(*inputs), name="example")

    return build


def looked_up(function: Callable[[Any], Any], length: int) -> Callable[[], keras.Model]:
    """A model that applies `function` to `length` indices."""

    def build() -> keras.Model:
        x = keras.Input((length,), dtype="int32", name="tokens")
        return keras.Model(x, function(x), name="example")

    return build
