"""A TFLite file as data: tensors and operators in order, before any bytes (`lower` writes them)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kquant.core.checks import present
from kquant.core.packed import PACKED
from kquant.core.spec import Encoding


@dataclass(eq=False)
class Ref:
    """One tensor of the file.

    Attributes:
        name: stable, from the Keras layer.
        shape: static, batch 1.
        dtype: numpy name of the stored type, or one of `kquant.core.packed`, several codes to a byte.
        encoding: scale and zero point, None for shapes, indices and int32 helpers.
        data: constant contents, None for what is computed.
        variable: a state that the interpreter keeps between runs.
        block_scales: of codes in blocks, float16[rows, blocks]; None for others.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    encoding: Encoding | None = None
    data: np.ndarray | None = None
    variable: bool = False
    block_scales: Ref | None = None

    @property
    def grid(self) -> Encoding:
        """`encoding`, of a tensor that holds codes.

        Raises:
            ValueError: it holds other numbers.
        """
        return present(self.encoding, f"{self.name}: read as codes, but it has no encoding.")

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(eq=False)
class Operator:
    """One call of a builtin operator.

    Attributes:
        options: the fields of its schema table, in the schema's spelling.
        intermediates: tensors inside the operator, which hold no data; their scales tell its arithmetic.
        graphs: what it runs (the body of a WHILE), by the field of its schema table that numbers the subgraph.
    """

    code: str
    inputs: list[Ref | None]
    outputs: list[Ref]
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    intermediates: list[Ref] = field(default_factory=list[Ref])
    graphs: dict[str, Program] = field(default_factory=dict[str, "Program"])

    @property
    def type(self) -> str:
        """What the target files call the types of this operator; "float" where it computes in float32."""
        dtypes = {ref.dtype for ref in (*self.inputs, *self.outputs) if ref is not None}
        # before "int8", which the weights under 16-bit activations have
        if "int16" in dtypes:
            return "int16x8"
        # what it writes tells: int8 weights are computed with in float where the activations are float
        if self.outputs and self.outputs[0].dtype == "float32":
            return "float"
        return next((name for name in PACKED if name in dtypes), "int8")


@dataclass(eq=False)
class Program:
    """The operators of a model in order, with what they read and write.

    Attributes:
        name: of the model.
        operators, inputs, outputs: of one subgraph; those that its operators run are programs of their own.
        made: what several operators read and one makes, by what it is made of.
        output_names: what the model calls its outputs; those behind them, or all where it says nothing, go by their
            tensors.
    """

    name: str
    operators: list[Operator] = field(default_factory=list[Operator])
    inputs: list[Ref] = field(default_factory=list[Ref])
    outputs: list[Ref] = field(default_factory=list[Ref])
    made: dict[Any, Ref] = field(default_factory=dict[Any, Ref])
    output_names: tuple[str, ...] = ()

    def constant(self, name: str, data: np.ndarray, encoding: Encoding | None = None, dtype: str | None = None) -> Ref:
        """A stored tensor; `dtype` where it is stored as another type than numpy's (a packed one)."""
        return Ref(name, tuple(data.shape), dtype or str(data.dtype), encoding, data)

    def value(self, name: str, shape: Sequence[int], encoding: Encoding | None, dtype: str | None = None) -> Ref:
        """A computed tensor, in the type of its encoding; float32 without one."""
        dtype = dtype or ("float32" if encoding is None else encoding.dtype)
        return Ref(name, tuple(int(n) for n in shape), dtype, encoding)

    def codes(self, name: str, codes: np.ndarray, encoding: Encoding) -> Ref:
        """Stored codes of a quantized tensor, in the type of their encoding."""
        return self.constant(name, np.asarray(codes).astype(encoding.dtype), encoding)

    def emit(self, code: str, inputs: Sequence[Ref | None], output: Ref, **options: Any) -> Ref:
        """Append an operator with one output, and return that output."""
        self.operators.append(Operator(code, list(inputs), [output], options))
        return output

    def reshape(self, x: Ref, shape: Sequence[int], output: Ref | None = None) -> Ref:
        """RESHAPE to a static shape; with no output given, nothing is written where the shape already fits."""
        shape = tuple(int(n) for n in shape)
        if output is None and x.shape == shape:
            return x
        if output is None:
            output = self.value(f"{x.name}/reshape_{'x'.join(map(str, shape))}", shape, x.encoding, x.dtype)
        new_shape = self.constant("shape", np.array(shape, np.int32))
        return self.emit("RESHAPE", [x, new_shape], output, newShape=list(shape))
