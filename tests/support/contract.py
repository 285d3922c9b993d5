"""What every rule of `kquant.ops` must keep: its examples with random weights, and file against simulation in codes."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import kquant
from kquant.graph.keras_private import structures
from kquant.layers.nodes import FakeQuant
from kquant.ops import FAMILIES, rules_of
from kquant.ops.micro_frontend import MicroFrontend
from kquant.ops.spectrum import Bands
from kquant.runtime.interpreters import open_runtime
from kquant.runtime.running import quantize_input
from kquant.tflite.flatbuffer import to_bytes
from kquant.tflite.lowering import lower
from kquant.tflite.reader import read_model

SAMPLES = 256
SPECTRA = (keras.layers.MelSpectrogram, keras.layers.STFTSpectrogram, Bands, MicroFrontend)
MICRO = (MicroFrontend,)  # of operators that TFLM alone has
RUNTIMES = {"litert": "litert-reference", "tflm": "tflm"}  # whose codes are those of the model, by target


def examples() -> dict[str, Callable[[], keras.Model]]:
    """Every example of every rule, by a name that says where it comes from."""
    found: dict[str, Callable[[], keras.Model]] = {}
    for family in FAMILIES:
        for rule in rules_of(family):
            kind = rule.layers[0].__name__ if rule.layers else f"ops.{rule.operations[0]}"
            for build in rule.examples:
                name, n = f"{family.__name__.rsplit('.', 1)[-1]}-{kind}", 1
                while f"{name}-{n}" in found:
                    n += 1
                found[f"{name}-{n}"] = build
    return found


EXAMPLES = examples()


@dataclass(frozen=True)
class Parity:
    """Codes of the simulation against those of a file: share that is equal, and the largest difference."""

    equal: float
    max_err_lsb: int


def randomise(model: keras.Model, seed: int = 0) -> keras.Model:
    """Random weights, biases and statistics, in sizes that keep activations alive."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        name, shape = variable.path.rsplit("/", 1)[-1], variable.shape
        if "float" not in variable.dtype:
            continue
        if "variance" in name:
            variable.assign(rng.uniform(0.5, 2.0, shape))
        elif name in ("gamma", "alpha", "scale"):
            variable.assign(rng.uniform(0.3, 1.5, shape) * rng.choice([-1.0, 1.0], shape))
        elif "kernel" in name:
            fan_in = max(1, int(np.prod(shape[:-1])) if len(shape) > 1 else shape[0])
            variable.assign(rng.normal(size=shape) / np.sqrt(fan_in))
        else:
            variable.assign(rng.normal(size=shape) * 0.3)
    return model


def data(model: keras.Model, samples: int = SAMPLES, seed: int = 1, spread: float = 1.5) -> list[np.ndarray]:
    """Random inputs, one array for each input of the model in order."""
    rng = np.random.default_rng(seed)
    arrays = [_random(rng, (samples, *t.shape[1:]), t.dtype, spread) for t in model.inputs]
    hears = any(isinstance(layer, SPECTRA) for layer in model.layers)
    return [np.clip(array / 8.0, -1.0, 1.0) for array in arrays] if hears else arrays  # as 16-bit sound is


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, spread: float) -> np.ndarray:
    """Real numbers, or positions in a table of ten rows."""
    return rng.integers(0, 10, shape, dtype) if "int" in dtype else np.float32(rng.normal(0.2, spread, shape))


def packed(model: keras.Model, arrays: list[np.ndarray]) -> Any:
    """The arrays in the structure that the model takes."""
    if not isinstance(model, keras.Function):  # subclassed
        return arrays[0]
    return keras.tree.pack_sequence_as(structures(model)[0], arrays)


def takers(model: keras.Model) -> tuple[str, ...]:
    """The targets, of the two that run here, that a model may be for."""
    return ("tflm",) if any(isinstance(layer, MICRO) for layer in model.layers) else tuple(RUNTIMES)


def build(name: str) -> keras.Model:
    """An example of a rule with random weights."""
    keras.utils.set_random_seed(7)
    return randomise(EXAMPLES[name](), zlib.crc32(name.encode()))


def quantized(model: keras.Model, target: str = "litert", samples: int = SAMPLES, recipe: Any = "int8") -> keras.Model:
    """Quantized, and calibrated on random data."""
    q = kquant.quantize(model, recipe, target=target)
    return kquant.calibrate(q, packed(q, data(q, samples)), batch_size=samples, verbose=False)


class Example:
    """An example of a rule, with the models that its tests share; each is made when it is first asked for.

    `target` is the one that most of its tests are for, every second example's another.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.model = build(name)
        every = takers(self.model)
        self.target, self.other = (every[0], every[-1])[:: 1 if zlib.crc32(name.encode()) % 2 else -1]
        self._quantized: dict[str, keras.Model] = {}
        self._reference: list[np.ndarray] | None = None

    def quantized(self, target: str) -> keras.Model:
        """Quantized in 8 bits and calibrated."""
        if target not in self._quantized:
            self._quantized[target] = quantized(self.model, target)
        return self._quantized[target]

    def reference(self) -> list[np.ndarray]:
        """What the one for its own target gives for `data(q, 32)`."""
        if self._reference is None:
            q = self.quantized(self.target)
            self._reference = simulate(q, data(q, 32))
        return self._reference

    def forget(self, target: str) -> None:
        """The next one is quantized anew: somebody changes the weights of this one."""
        del self._quantized[target]


def file_of(q: keras.Model) -> bytes:
    """The file, without the checks of `kquant.export`."""
    lowered = lower(q)
    return to_bytes(lowered.program, lowered.target, {})


def simulate(q: keras.Model, arrays: list[np.ndarray], graph: bool = False) -> list[np.ndarray]:
    """Outputs of the quantized model in order; in a graph, as `predict` runs it, which takes ten times as long."""
    call = tf.function(lambda x: q(x, training=False)) if graph else lambda x: q(x, training=False)
    return [np.asarray(y) for y in keras.tree.flatten(call(packed(q, arrays)))]


def compare(q: keras.Model, content: bytes, runtime: str, arrays: list[np.ndarray], graph: bool = False) -> Parity:
    """Simulation against file on these inputs, all outputs together."""
    return parity(content, runtime, arrays, simulate(q, arrays, graph))


def parity(content: bytes, runtime: str, arrays: list[np.ndarray], simulated: list[np.ndarray]) -> Parity:
    """What the model gave for these inputs against what the file gives, all outputs together."""
    file = read_model(content)
    invoke = open_runtime(content, runtime)
    codes = [quantize_input(a, t) for a, t in zip(arrays, file.inputs, strict=True)]
    rows = [invoke([c[i : i + 1] for c in codes]) for i in range(len(arrays[0]))]
    equal, total, worst = 0, 0, 0
    for expected, found, t in zip(simulated, zip(*rows, strict=True), file.outputs, strict=True):
        wanted = np.rint(expected / np.float32(t.scale[0])).astype(np.int64) + t.zero_point[0]
        error = np.abs(wanted - np.concatenate(found).astype(np.int64))
        equal, total = equal + int((error == 0).sum()), total + error.size
        worst = max(worst, int(error.max(initial=0)))
    return Parity(equal / total, worst)


def floats(content: bytes) -> list[str]:
    """Names of the tensors of the file that are floats."""
    return [t.name for t in read_model(content).tensors if "FLOAT" in t.type]


def unseen(q: keras.Model) -> list[str]:
    """Encodings that no data reached."""
    return [x.name for x in q.layers if isinstance(x, FakeQuant) and x.has_range and not np.any(np.asarray(x.count))]
