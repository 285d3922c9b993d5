"""How sparse a model is, kernel by kernel, as it computes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np

from kquant.core.result import Result
from kquant.core.table import Table
from kquant.graph.keras_private import inner_layers
from kquant.layers import transform as kernels
from kquant.layers.kernel import Holder
from kquant.masking.wrapping import check_model
from kquant.views.kernels import kernels_of


@dataclass(frozen=True)
class KernelSparsity:
    """One kernel.

    Attributes:
        layer, path: where it is.
        size, zeros: number of weights, and of those that are 0 as the layer computes.
        masked: a mask holds the zeros while the model trains.
    """

    layer: str
    path: str
    size: int
    zeros: int
    masked: bool

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return self.zeros / self.size


@dataclass(frozen=True, repr=False)
class Sparsity(Result):
    """All kernels of a model, in its order; `print` shows a table.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head")])
        >>> print(kquant.sparsity(kquant.prune(model, 0.75)))
        layer  kernel  weights  zeros  sparsity
        head   kernel       32     24    75.0 %
        total               32     24    75.0 %
    """

    kernels: tuple[KernelSparsity, ...]

    def __repr__(self) -> str:
        size = sum(k.size for k in self.kernels)
        return f"Sparsity({100 * self.total:.1f} % of {size:,} weights in {len(self.kernels)} kernels are zero)"

    @property
    def total(self) -> float:
        """Share of zeros of all kernels together."""
        return sum(k.zeros for k in self.kernels) / max(1, sum(k.size for k in self.kernels))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        rows = [{**asdict(k), "sparsity": k.sparsity} for k in self.kernels]
        return {"total": self.total, "kernels": rows}

    def to_json(self) -> str:
        """The same as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    @property
    def table(self) -> Table:
        """A line for each kernel, and one for all."""
        said = any(k.masked for k in self.kernels)  # of a plain model nothing need be said of masks
        rows = [(k.layer, k.path + " (no mask)" * (said and not k.masked), k.size, k.zeros) for k in self.kernels]
        rows.append(("total", "", sum(k.size for k in self.kernels), sum(k.zeros for k in self.kernels)))
        cells = tuple((*at, f"{n:,}", f"{zeros:,}", f"{100 * zeros / max(1, n):.1f} %") for *at, n, zeros in rows)
        columns = ("layer", "kernel", "weights", "zeros", "sparsity")
        return Table("Zeros", columns, cells, right=columns[2:])

    def __str__(self) -> str:
        return str(self.table)


def sparsity(model: keras.Model) -> Sparsity:
    """Zeros of every kernel, as the model computes with it: masks, codebooks and integer codes included.

    Reads: `model` stays as it was.

    Args:
        model: any built Keras model: plain, pruned, clustered or quantized.

    Returns:
        Zeros by kernel and in total; of a quantized model weights that round to code 0 count.

    Raises:
        ValueError: not a Keras 3 model.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> kquant.sparsity(kquant.prune(model, 0.5)).total
        0.5
    """
    check_model(model, "sparsity")
    rows: list[KernelSparsity] = []
    seen: set[int] = set()
    for layer in inner_layers(model):
        for path, values, masked, variable in [] if isinstance(layer, keras.Model) else _kernels(layer):
            if id(variable) not in seen:  # a wrapper comes before what it wraps
                seen.add(id(variable))
                rows.append(KernelSparsity(layer.name, path, values.size, int(np.sum(values == 0.0)), masked))
    return Sparsity(tuple(rows))


def _kernels(layer: Any) -> Iterator[tuple[str, np.ndarray, bool, Any]]:
    """Path, values, whether masked, and the variable of each kernel of a layer, of those inside it too."""
    holds = isinstance(layer, Holder)
    inside = layer.layer if holds else layer
    known = kernels_of(inside) if getattr(inside, "built", False) else {}
    held = {kernel.path: kernel for kernel in layer.kernels()} if holds else {}
    for path in known:
        if path in held:
            kernel = held[path]
            yield path, np.asarray(kernel.on_grid), _holds(kernel.transforms), kernel.variable
        elif not holds:
            yield path, np.asarray(kernels.real(inside, path)), False, kernels.kernel_at(inside, path)


def _holds(transforms: Any) -> bool:
    """True where a transform of rank 0, a mask, is among them."""
    return any(t.rank == 0 for t in transforms)
