"""TensorFlow's converter; models of Keras 3 go through a concrete function with their weights as constants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from common import Task, Way, cover, main
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2


def convert(kind: str) -> Way:
    """One of its formats."""

    def make(task: Task, out: Path, seed: int) -> Callable[[], dict[str, Any]]:
        model, data = keras.models.load_model(task.folder / "float.keras"), task.array("calibration")

        def run() -> dict[str, Any]:
            shape = (1, *model.input_shape[1:])
            function = tf.function(lambda x: model(x, training=False))
            # Keras 3 variables cannot be read while it calibrates
            frozen = convert_variables_to_constants_v2(function.get_concrete_function(tf.TensorSpec(shape, tf.float32)))
            converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            if kind in TYPES:
                operators, edge = TYPES[kind]
                converter.representative_dataset = lambda: ([x[None].astype("float32")] for x in data)
                converter.target_spec.supported_ops = [operators]
                converter.inference_input_type = converter.inference_output_type = edge
            (out / "model.tflite").write_bytes(converter.convert())
            return {"file": "model.tflite"}

        return run

    return make


def export_float(task: Task, out: Path, seed: int) -> Callable[[], dict[str, Any]]:
    """A float file with a signature, which LiteRT Quantizer goes by."""
    model = keras.models.load_model(task.folder / "float.keras")

    def run() -> dict[str, Any]:
        archive = keras.export.ExportArchive()
        archive.track(model)
        signature = [tf.TensorSpec((1, *model.input_shape[1:]), tf.float32)]
        archive.add_endpoint("serve", lambda x: model(x, training=False), input_signature=signature)
        archive.write_out(str(out / "saved"), verbose=False)
        (out / "model.tflite").write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(out / "saved")).convert())
        return {"file": "model.tflite"}

    return run


TYPES = {
    "int8": (tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.int8),
    "int16x8": (
        tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
        tf.int16,
    ),
}


def one(folder: Path, data: list[Any]) -> bytes:
    """A full-integer file of a model with any number of inputs."""
    keras.backend.clear_session()
    model = keras.models.load_model(folder / "float.keras")
    specs = [tf.TensorSpec((1, *t.shape[1:]), t.dtype) for t in model.inputs]
    function = tf.function(lambda *x: model(keras.tree.pack_sequence_as(model.input, list(x)), training=False))
    frozen = convert_variables_to_constants_v2(function.get_concrete_function(*specs))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([a[n : n + 1] for a in data] for n in range(len(data[0])))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    if all("float" in t.dtype for t in model.inputs):
        converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter.convert()


WAYS = {"cover": cover(one), "float": export_float}
WAYS |= {kind: convert(kind) for kind in ("int8", "int16x8", "dynamic")}

if __name__ == "__main__":
    main(WAYS)
