"""The kinds of Keras layer that kquant adds: `FakeQuant` (tensors), `Compressed` (weights), and `quantized_lstm`;
`Transformed` in float models (masks, codebooks: `transform`).

    x, encoding = FakeQuant(...)(x)                        # encoding = float32[2]: scale, zero point
    y, accumulator = Compressed(Conv2D(...))(x, encoding)  # accumulator = float64[channels]: scale of its sums
    y, encoding = FakeQuant(...)(ReLU()(y), accumulator=accumulator, kernel="CONV_2D")

Encodings travel beside the tensors, so a layer knows the scale that its sums will have on the device without holding a
reference to another layer: models save, load and clone like any other, and a shared layer gets each caller's scale.

Four ways to run:
    observing (`kquant.calibrate`)  float; every tensor is handed to a collector;
    training                        ranges move, straight-through fake quantization (Jacob et al., arXiv:1712.05877);
    only (`kquant.analyze`)         float on the grids, and only the named layers quantize;
    inference                       the integer arithmetic of the interpreter, code for code (`arithmetic`).
"""

import keras

from kquant.graph.keras_private import every_layer
from kquant.layers.compressed import Compressed
from kquant.layers.fake_quant import FakeQuant
from kquant.layers.modes import observing, only
from kquant.layers.quantized_lstm import QuantizedLSTM
from kquant.layers.transformed import Transformed

__all__ = ["Compressed", "FakeQuant", "QuantizedLSTM", "Transformed", "encodings_of", "observing", "only"]


def encodings_of(model: keras.Model) -> list[FakeQuant]:
    """Every `FakeQuant` of a model, also those inside its layers (the cell state of an LSTM)."""
    return [layer for layer in every_layer(model) if isinstance(layer, FakeQuant)]
