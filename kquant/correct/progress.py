"""What a long correction has done so far, layer by layer, in a folder: a run that was stopped goes on from there."""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kquant.correct.sweep import Sweep
from kquant.files.atomic import write_atomically
from kquant.files.destination import make_folder
from kquant.files.finished_work import differing
from kquant.files.untrusted import read_arrays
from kquant.graph.graph import Graph
from kquant.graph.keras_private import every_layer, inner_layers
from kquant.layers.kernel import Holder
from kquant.layers.nodes import FakeQuant
from kquant.views.quantized_model import Place


@dataclass(frozen=True)
class Finished:
    """The folder of a correction; `finished_of` makes it.

    Attributes:
        folder: where files are kept; None keeps none.
        step: the correction, which errors and files are named after.
        what: it makes of a layer, for errors.
        told: what all results depend on, as JSON takes it.
    """

    folder: Path | None
    step: str
    what: str
    told: dict[str, Any]

    def load(self, place: Place, arrays: Iterable[Any]) -> np.ndarray | None:
        """What an earlier run made of a layer; None where it did not come so far.

        Args:
            place: the layer.
            arrays: of the layer, what the result depends on: weights and scales.

        Raises:
            ValueError: the file was made for something else, or is damaged.
        """
        file = self._file(place)
        if file is None or not file.is_file():
            return None
        stored = read_arrays(file, f"{self.step}: {file}")
        holds = f"{self.step}: {file} holds the {self.what} of '{place.name}'"
        if "made" not in stored or "told" not in stored:
            raise ValueError(
                f"{holds} of an earlier version, which did not tell other data apart; take another folder, or empty "
                "this one."
            )
        if str(stored["told"]) != (told := self._told(place, arrays)):
            apart = differing(_table(str(stored["told"])), json.loads(told))
            raise ValueError(f"{holds} for something else: {apart}. Take another folder, or empty this one.")
        if str(stored.get("digest")) != _digest(stored["made"]):
            raise ValueError(f"{self.step}: {file} is damaged: its content is not what its digest tells of. Delete it.")
        return stored["made"]

    def store(self, place: Place, arrays: Iterable[Any], made: np.ndarray) -> None:
        """Keep what was made of a layer; the file is whole or absent.

        Args:
            place: the layer.
            arrays: as for `load`.
            made: the result.
        """
        file = self._file(place)
        if file is None:
            return
        make_folder(file.parent, self.step)
        content = io.BytesIO()
        np.savez_compressed(content, told=self._told(place, arrays), made=made, digest=_digest(made))
        write_atomically(file, content.getvalue(), self.step)

    def _file(self, place: Place) -> Path | None:
        # By a checksum, since names of layers may hold what names of files may not.
        return None if self.folder is None else self.folder / f"{self.step}-{zlib.crc32(place.name.encode()):08x}.npz"

    def _told(self, place: Place, arrays: Iterable[Any]) -> str:
        """Of what a result was made for, JSON."""
        own = {"layer": place.name, "grid": place.layer.spec.to_config(), "weights and scales": _short(arrays)}
        # numbers of numpy as Python's
        return json.dumps({**self.told, **own}, sort_keys=True, default=lambda number: number.item())


def finished_of(
    sweep: Sweep, folder: Path | None, what: str, settings: dict[str, Any], *, sets_biases: bool = False
) -> Finished:
    """What a run, and a folder of an earlier one, have in common.

    Args:
        sweep: of the correction, before it changes anything.
        folder: where files are kept; None keeps none, and reads no data.
        what: it makes of a layer, for errors.
        settings: of the run, as JSON takes them.
        sets_biases: the correction does, too: those of a model that it was stopped in are no sign of another one.
    """
    step = sweep.step.replace("_", "-")  # as recipes call it, and files of earlier versions
    if folder is None:
        return Finished(None, step, what, {})
    # A layer's inputs follow from all weights and ranges before it, and from the samples: all of them, in order.
    told = {"model": _short(_float_values(sweep.graph, biases=not sets_biases)), "ranges": _short(_ranges(sweep.graph))}
    return Finished(folder, step, what, {**settings, **told, "data": sweep.fingerprint, "samples": sweep.samples})


def _table(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _digest(made: np.ndarray) -> str:
    """Of a result, its type and shape."""
    told = f"{made.dtype.str} {made.shape}".encode()
    return hashlib.sha256(told + np.ascontiguousarray(made).tobytes()).hexdigest()


def _short(arrays: Iterable[Any]) -> str:
    """A fingerprint of arrays in order."""
    digest = hashlib.sha256()
    for values in arrays:
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:16]


def _ranges(graph: Graph) -> Iterator[Any]:
    """Of all activations; they follow the data that the model was calibrated on."""
    for layer in _layers(graph):
        if isinstance(layer, FakeQuant) and layer.has_range:
            yield from (layer.low, layer.high)


def _float_values(graph: Graph, biases: bool) -> Iterator[Any]:
    """Of all layers what no correction of ranges and codes changes: weights as they are used, biases as corrected."""
    inside = set[int]()
    for layer in _layers(graph):
        if isinstance(layer, Holder):
            inside |= {id(held) for held in inner_layers(layer)}  # type: ignore[arg-type]
            yield from (kernel.used for kernel in layer.kernels())
            yield from _floats(layer.layer)
            if biases and (bias := layer.bias_as_used()) is not None:
                yield bias
        elif isinstance(layer, FakeQuant):
            inside |= {id(held) for held in inner_layers(layer)}
        elif id(layer) not in inside and not inner_layers(layer):
            yield from _floats(layer)


def _floats(layer: Any) -> list[Any]:
    # No seeds: those of the same model made again are others, and nothing here draws by them.
    return [variable for variable in layer.variables if "float" in str(variable.dtype)]


def _layers(graph: Graph) -> list[Any]:
    """Of a graph at any depth, a wrapper before what it wraps."""
    return [layer for op in graph.layers if isinstance(op, keras.layers.Layer) for layer in every_layer(op)]
