"""One architecture, one recipe, one target: from the Keras model to a verified file, saved, loaded and trained."""

from __future__ import annotations

import tempfile
import time
import warnings
from math import prod
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

import kquant
from benchmarks.applications import settle
from benchmarks.memory import peak_kb
from benchmarks.zoo import ZOO
from benchmarks.zoo.samples import samples
from kquant.analysis.sqnr import noise_of

CALIBRATION, FEWEST = 64, 16  # samples that calibrate; that judge at least
# More judge where a sample has few outputs: noise of a sample whose values are cut off is far above that of others, and
# with 64 numbers in all whether there is one decides (tcn: 0.7 dB below the converter; 0.9 above it with 512 samples).
MOST, OUTPUTS, INPUTS = 512, 2048, 1 << 20  # samples, and numbers in all of them
OPERATORS = {
    "int8": [tf.lite.OpsSet.TFLITE_BUILTINS_INT8],
    "int16x8": [tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8],
}
JUDGE = {"litert": "litert-reference", "tflm": "tflm"}  # whose codes the simulation is to give


def built(name: str) -> tuple[keras.Model, list[np.ndarray], list[np.ndarray]]:
    """The model with seeded weights and settled batch norms, samples that calibrate, samples that judge."""
    keras.utils.set_random_seed(0)
    model = ZOO[name]()
    arrays = samples(model, CALIBRATION + judging(model))
    settle(model, shaped(model, [a[:CALIBRATION] for a in arrays]))
    return model, [a[:CALIBRATION] for a in arrays], [a[CALIBRATION:] for a in arrays]


def judging(model: keras.Model) -> int:
    """How many samples judge."""
    takes, gives = (sum(prod(t.shape[1:]) for t in tensors) for tensors in (model.inputs, model.outputs))
    return max(FEWEST, min(-(-OUTPUTS // gives), INPUTS // takes, MOST))


def shaped(model: keras.Model, arrays: list[np.ndarray]) -> Any:
    """As the model takes them."""
    return arrays if len(model.inputs) > 1 else arrays[0]


def measured(name: str, target: str, recipe: str) -> dict[str, Any]:
    """A row of the table."""
    model, calibration, judged = built(name)
    data, wanted = shaped(model, judged), keras.tree.flatten(model.predict(shaped(model, judged), verbose=0))
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few samples, narrow layers: what the table shows anyway
        q = kquant.quantize(model, recipe, target=target)
        kquant.calibrate(q, shaped(model, calibration), verbose=False)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.tflite"
            report = kquant.export(q, path, data=data)
            seconds = time.perf_counter() - started
            file = kquant.inspect(path)
            q.save(Path(folder) / "q.keras")
            again = keras.saving.load_model(Path(folder) / "q.keras")
        found = keras.tree.flatten(q.predict(data, verbose=0))
        back = keras.tree.flatten(again.predict(data, verbose=0))
        loss = _trained(q, shaped(model, [a[:FEWEST] for a in judged]))
    verified = {v.runtime: [a.equal for a in v.agreements] for v in report.verification}
    return {
        "operators": len(file.operators),
        "integer": file.is_integer,
        "bytes": report.file_bytes,
        "equal": min(verified[JUDGE[target]]),
        "db": [noise_of(a, b).db for a, b in zip(wanted, found, strict=True)],
        "judged": len(judged[0]),
        "reloads": all(np.array_equal(a, b) for a, b in zip(found, back, strict=True)),
        "trains": bool(np.isfinite(loss)),
        "seconds": seconds,
        "peak_mb": peak_kb() / 1024,
    }


def _trained(q: keras.Model, data: Any) -> float:
    """The loss after one step of quantization-aware training towards zeros."""
    q.compile("sgd", keras.tree.map_structure(lambda _: "mse", q.output))
    target = keras.tree.map_structure(np.zeros_like, q.predict(data, verbose=0))
    q.train_on_batch(data, target)
    return float(np.ravel(q.evaluate(data, target, verbose=0))[0])


def converted(name: str, recipe: str) -> dict[str, Any]:
    """TensorFlow's converter on the same model and samples: dB of each output, or why there is no integer file."""
    model, calibration, judged = built(name)
    wanted = keras.tree.flatten(model.predict(shaped(model, judged), verbose=0))
    try:
        content = _file(model, calibration, recipe)
        if not kquant.inspect(content).is_integer:
            return {"why": "float operators"}
        found = kquant.predict(content, shaped(model, judged), runtime="litert-reference")
    except Exception as error:  # noqa: BLE001  whatever the peer raises is its answer
        return {"why": str(error).strip().splitlines()[0][:200]}
    pairs = zip(wanted, keras.tree.flatten(found), strict=True)
    return {"bytes": len(content), "db": [noise_of(a, b.reshape(a.shape)).db for a, b in pairs]}


def _file(model: keras.Model, calibration: list[np.ndarray], recipe: str) -> bytes:
    specs = [tf.TensorSpec((1, *t.shape[1:]), t.dtype) for t in model.inputs]
    call = tf.function(lambda *x: keras.tree.flatten(model(list(x) if len(x) > 1 else x[0], training=False)))
    frozen = convert_variables_to_constants_v2(call.get_concrete_function(*specs))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([x[None] for x in row] for row in zip(*calibration, strict=True))
    converter.target_spec.supported_ops = OPERATORS[recipe]
    return converter.convert()
