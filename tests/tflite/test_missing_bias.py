"""A bias of zeros is not written, where every runtime that may meet the file adds nothing for a missing one."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from keras import layers

import kquant
from kquant import targets
from kquant.core.operators import facts

pytestmark = pytest.mark.filterwarnings(
    "ignore:quantize. .* takes no packed 4-bit weights",
    "ignore:Statistics for quantized inputs were expected",
)

RNG = np.random.default_rng(0)


def model() -> keras.Model:
    """Every operator with a bias: none at first, none that is left, one of zeros, and one that is needed."""
    x = inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, use_bias=False, padding="same")(x)
    x = layers.Conv2DTranspose(4, 2, use_bias=False)(layers.DepthwiseConv2D(3, use_bias=False)(x))
    x = layers.Dense(8, use_bias=False, activation="relu")(layers.Flatten()(x))
    x = layers.Rescaling(0.5)(layers.Dense(8, bias_initializer="zeros")(x))
    return keras.Model(inputs, layers.Dense(2, bias_initializer="ones")(x))


def biases(path: Path) -> dict[str, list[bool]]:
    """Operator -> for each of its calls whether a bias is there."""
    file = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    codes = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    found: dict[str, list[bool]] = {}
    for op in file.subgraphs[0].operators:
        code = codes[file.operatorCodes[op.opcodeIndex].builtinCode]
        if (at := facts(code).bias) is not None:
            found.setdefault(code, []).append(len(op.inputs) > at)
    return found


@pytest.mark.parametrize(("target", "recipe"), [("tflm", "int8"), ("litert", "int4-weights")])
def test_zeros_are_not_written(target: str, recipe: str, tmp_path: Path) -> None:
    x = RNG.normal(size=(64, 6, 6, 3)).astype("float32")
    q = kquant.calibrate(kquant.quantize(model(), recipe, target=target), x, verbose=False)
    kquant.export(q, tmp_path / "m.tflite", check_runtimes=False)
    always = {"CONV_2D": [True], "DEPTHWISE_CONV_2D": [True], "TRANSPOSE_CONV": [False]}
    assert biases(tmp_path / "m.tflite") == {**always, "FULLY_CONNECTED": [False, False, True]}
    for runtime in targets.load(target).runtimes:
        agreement = kquant.verify(q, tmp_path / "m.tflite", x[:16], runtime=runtime).agreements[0]
        assert agreement.equal == 1.0 if runtime != "litert" else agreement.equal > 0.5
    if target == "tflm":  # tried on a desktop
        found = [kquant.predict(tmp_path / "m.tflite", x[:16], name) for name in ("tflm", "litert-reference", "litert")]
        assert all(np.abs(found[0] - other).max() < 0.05 * np.abs(found[0]).max() for other in found)


def test_wide_layers_without_bias_are_no_larger_than_the_converters(tmp_path: Path) -> None:
    import tensorflow as tf

    net = keras.Sequential([keras.Input((16,)), layers.Dense(1024, use_bias=False), layers.LeakyReLU(0.3)])
    x = RNG.normal(size=(32, 16)).astype("float32")
    q = kquant.calibrate(kquant.quantize(net, target="tflm"), x, verbose=False)
    report = kquant.export(q, tmp_path / "m.tflite", check_runtimes=False)
    converter = tf.lite.TFLiteConverter.from_keras_model(net)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([row[None]] for row in x)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    assert report.file_bytes <= len(converter.convert())
