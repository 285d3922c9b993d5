"""`summary` of what kquant makes: layers by the user's names and kinds, weights and encodings beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import kquant
from kquant.views.layer_table import rows


def residual() -> keras.Model:
    x = keras.Input((8, 8, 3), name="image")
    y = layers.BatchNormalization(name="norm")(layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(x))
    y = layers.ReLU(name="relu")(y)
    y = layers.Add(name="add")([y, layers.DepthwiseConv2D(3, padding="same", name="depthwise")(y)])
    y = layers.GlobalAveragePooling2D(name="pool")(y)
    return keras.Model(x, layers.Dense(10, activation="softmax", name="head")(y), name="residual")


def recurrent() -> keras.Model:
    x = keras.Input((4, 3), name="x")
    return keras.Model(x, layers.Dense(2, name="out")(layers.LSTM(6, name="memory")(x)), name="recurrent")


def attentive() -> keras.Model:
    x = keras.Input((6,), dtype="int32", name="tokens")
    y = layers.Embedding(20, 8, name="embed")(x)
    y = layers.LayerNormalization(name="norm")(layers.MultiHeadAttention(2, 4, name="attention")(y, y))
    return keras.Model(x, layers.Dense(2, name="out")(layers.Flatten(name="flatten")(y)), name="attentive")


MAKE = {"residual": residual, "recurrent": recurrent, "attentive": attentive}


def quantized(name: str, recipe: str = "int8") -> keras.Model:
    keras.utils.set_random_seed(7)  # a fixture of a module is made before `fixed_seed`
    rng = np.random.default_rng(0)
    q = kquant.quantize(MAKE[name](), recipe)
    whole = q.inputs[0].dtype == "int32"
    data = rng.integers(0, 20, (64, 6)) if whole else rng.normal(size=(64, *q.inputs[0].shape[1:]))
    return kquant.calibrate(q, data, verbose=False)


@pytest.fixture(scope="module")
def models() -> dict[str, keras.Model]:
    return {name: quantized(name) for name in MAKE}


def printed(model: keras.Model, **options: Any) -> str:
    parts: list[str] = []
    model.summary(print_fn=parts.append, **options)
    (text,) = parts
    return text


@pytest.mark.parametrize("name", MAKE)
def test_layers_read_as_the_user_wrote_them(name: str, models: dict[str, keras.Model]) -> None:
    q = models[name]
    found = {row.name: row for row in rows(q)}
    for layer in MAKE[name]().layers:
        if layer.name in found and layer.name not in ("norm", "attention"):  # made of others
            assert found[layer.name].kind == type(layer).__name__
            assert name == "residual" and layer.name == "stem" or found[layer.name].params == layer.count_params()
    assert not {"FakeQuant", "Compressed", "QuantizedLSTM"} & {row.kind for row in found.values()}


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("width", [60, 80, 100])
def test_it_fits(name: str, width: int, models: dict[str, keras.Model]) -> None:
    text = printed(models[name], line_length=width)
    assert max(map(len, text.splitlines())) <= width
    assert f'Model: "{name}" (recipe int8, target litert)' in text
    if width >= 80:  # no figure is broken
        assert all(row.encoding.split("\n")[0] in text for row in rows(models[name]))


def test_encodings_are_those_of_the_model(models: dict[str, keras.Model]) -> None:
    q = models["residual"]
    told = kquant.encodings(q)
    found = {row.name: row for row in rows(q)}
    for name, (entry,) in told["activation_encodings"].items():
        row = found[name.removesuffix(":0")]
        assert row.encoding == f"int8 {entry['scale']:.3g} {-entry['offset'] - 128}", name
    scales = [entry["scale"] for entry in told["param_encodings"]["head/kernel"]]
    assert found["head"].weights == f"int8, 10 scales\n{min(scales):.2g}..{max(scales):.2g}"
    assert found["stem"].encoding == "", "its ReLU ends the operator"
    assert found["image"].shape == (8, 8, 3)


def test_what_is_inside_and_what_acts_is_told(models: dict[str, keras.Model]) -> None:
    memory = next(row for row in rows(models["recurrent"]) if row.name == "memory")
    assert memory.weights.startswith("int8, 8 scales") and "\ncell int16 " in memory.encoding
    embed = next(row for row in rows(models["attentive"]) if row.name == "embed")
    assert embed.weights == "as its output"
    small = kquant.cluster(kquant.prune(residual(), 0.5), 4)
    head = next(row for row in rows(small) if row.name == "head")
    assert (head.kind, head.weights, head.encoding) == ("Dense", "float32\nmask\ncodebook", "")
    assert "head (Dense)" in printed(small)
    assert {row.weights for row in rows(kquant.quantize(residual(), "float16"))} == {"", "float16"}
    raw = kquant.quantize(residual(), {"name": "w4", "weights": {"bits": 4, "per_axis": False}})
    assert {row.encoding for row in rows(raw)} >= {"int8, no range yet", "int8 0.00391 -128"}
    assert all(row.weights.startswith("int4 ") for row in rows(raw) if row.weights)


def test_a_model_and_the_verb_say_the_same(models: dict[str, keras.Model], tmp_path: Path, capsys: Any) -> None:
    q = models["residual"]
    kquant.summary(q, 80)
    text = capsys.readouterr().out
    assert text == printed(q, line_length=80)
    q.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert printed(loaded, line_length=80) == text
    assert "Connected to" in printed(q, show_trainable=True), "Keras' own, of every layer"


def test_of_any_other_model_it_is_keras_own(capsys: Any) -> None:
    plain = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    parts: list[str] = []
    kquant.summary(plain, print_fn=parts.append)
    assert "Param #" in parts[0]


def test_numbers_add_up(models: dict[str, keras.Model]) -> None:
    for q in models.values():
        text = printed(q)
        assert f"Total params: {q.count_params():,} ({sum(row.params for row in rows(q)):,} of layers, " in text


@pytest.mark.filterwarnings("ignore:quantize. .*simulated")
@pytest.mark.parametrize(
    ("grid", "told"),
    [
        ({"bits": 4, "block": 8}, "int4, blocks of 8"),
        ({"kind": "e2m1", "bits": 4, "block": 8}, "e2m1, blocks of 8"),
        ({"kind": "e4m3", "bits": 8}, "e4m3, 8 bits"),
    ],
)
def test_blocks_and_floats_are_told_as_what_they_are(grid: dict[str, Any], told: str) -> None:
    model = keras.Sequential([keras.Input((16,)), layers.Dense(4, name="head")])
    q = kquant.quantize(model, {"name": "other", "weights": grid})
    assert next(row.weights for row in rows(q) if row.name == "head") == told
