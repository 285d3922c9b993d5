"""What a long correction has done so far, layer by layer, in a folder: a run that was stopped goes on from there."""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kquant.files.atomic import write_atomically
from kquant.files.destination import make_folder
from kquant.files.untrusted import read_arrays
from kquant.graph.graph import Graph
from kquant.graph.keras_private import every_layer
from kquant.layers.loop import Loop
from kquant.layers.nodes import FakeQuant
from kquant.views.quantized_model import Place


@dataclass(frozen=True)
class Finished:
    """The folder of a correction.

    Attributes:
        folder: where files are kept; None keeps none.
        step: the correction, which errors and files are named after.
        what: what it makes of a layer, for errors.
        settings: of the run, as JSON takes them.
        ranges: see `activation_ranges`.
    """

    folder: Path | None
    step: str
    what: str
    settings: Any
    ranges: bytes

    def load(self, place: Place, arrays: Iterable[Any]) -> np.ndarray | None:
        """What an earlier run made of a layer; None where it did not come so far.

        Args:
            place: the layer.
            arrays: what the result depends on, beside the settings.

        Raises:
            ValueError: the file was made for something else.
        """
        file = self._file(place)
        if file is None or not file.is_file():
            return None
        stored = read_arrays(file, f"{self.step}: {file}")
        known = str(stored.get("key")) == self._key(place, arrays) and "made" in stored
        if not known or str(stored.get("digest")) != _digest(stored["made"]):
            raise ValueError(
                f"{self.step}: {file} holds the {self.what} of '{place.name}' for other weights, ranges or "
                "options; take another folder, or empty this one."
            )
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
        np.savez_compressed(content, key=self._key(place, arrays), made=made, digest=_digest(made))
        write_atomically(file, content.getvalue(), self.step)

    def _file(self, place: Place) -> Path | None:
        # By a checksum, since names of layers may hold what names of files may not.
        return None if self.folder is None else self.folder / f"{self.step}-{zlib.crc32(place.name.encode()):08x}.npz"

    def _key(self, place: Place, arrays: Iterable[Any]) -> str:
        """Of what a result was made for."""
        said = json.dumps([place.name, self.settings, place.layer.spec.to_config()], sort_keys=True)
        # Of the data only what calibration made of them, the ranges: a generator cannot be read twice.
        digest = hashlib.sha256(said.encode() + self.ranges)
        for values in arrays:
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()


def _digest(made: np.ndarray) -> str:
    """Of a result, its type and shape."""
    told = f"{made.dtype.str} {made.shape}".encode()
    return hashlib.sha256(told + np.ascontiguousarray(made).tobytes()).hexdigest()


def activation_ranges(graph: Graph) -> bytes:
    """The ranges of all activations, which follow the data that the model was calibrated on."""
    layers = [layer for op in graph.layers for layer in (every_layer(op) if isinstance(op, Loop) else [op])]
    held = [layer for layer in layers if isinstance(layer, FakeQuant) and layer.has_range]
    return b"".join(v.numpy().tobytes() for quantizer in held for v in (quantizer.low, quantizer.high))
