"""Where a model runs on a target with an accelerator, and that what joins its parts really does."""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import contract
import keras
import numpy as np
import pytest
from keras import layers

import kquant
from kquant import report, targets
from kquant.prepare.placement import Placement
from kquant.tflite.vela import find_vela

WITH = [name for name in targets.names() if targets.load(name).accelerator is not None]
BOARD = """
name = "board"
title = "Our board"
extends = "litert"

[accelerator]
title = "the NPU"
cuts = "graph"
unlisted = true
int8 = true
per_axis = true
source = "a"
"""


def placed(model: keras.Model, target: str, **options: Any) -> Placement:
    found = kquant.check(model, target, **options).placement
    assert found is not None
    return found


def words(found: Any) -> str:
    """A report as one line, whatever the width of the terminal."""
    return " ".join(report.render(found).split())


def net(*middle: layers.Layer, shape: tuple[int, ...] = (8, 8, 3)) -> keras.Model:
    """Layers between two that every accelerator takes."""
    keras.utils.set_random_seed(1)
    first = layers.Conv2D(4, 3, name="first") if len(shape) == 3 else layers.Dense(4, name="first")
    last = layers.Dense(2, name="last")
    tail = (layers.Flatten(name="flat"), last)
    return keras.Sequential([keras.Input(shape, name="x"), first, *middle, *tail], name="net")


def own(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> str:
    """A target of one's own, whose accelerator says what `text` does."""
    monkeypatch.setenv(targets.FOLDER, str(folder))
    (folder / "board.toml").write_text(BOARD + text)
    return "board"


def leaves(*codes: str) -> str:
    return f"[[accelerator.claims]]\nops = {json.dumps(codes)}\nint8 = false\nsource = 'a'\n"


# (who leaves what, the model, the same model with the change done by hand)
CHANGES: dict[str, tuple[tuple[str, ...], Callable[[], keras.Model], Callable[[], keras.Model]]] = {
    "slopes": (
        ("LEAKY_RELU",),
        lambda: net(layers.LeakyReLU(0.3, name="a"), layers.Conv2D(4, 1, name="b")),
        lambda: net(
            layers.PReLU(keras.initializers.Constant(0.3), shared_axes=[1, 2], name="a"), layers.Conv2D(4, 1, name="b")
        ),
    ),
    "activation inside": (
        ("GELU", "GATHER"),
        lambda: net(layers.Conv2D(4, 1, activation="gelu", name="a")),
        lambda: net(layers.Conv2D(4, 1, activation="silu", name="a")),
    ),
    "activation alone, second choice": (
        ("GELU", "GATHER", "LOGISTIC"),
        lambda: net(layers.Activation("gelu", name="a")),
        lambda: net(layers.Activation("hard_silu", name="a")),
    ),
    "unrolled": (
        ("WHILE",),
        lambda: net(layers.GRU(4, return_sequences=True, name="a"), shape=(3, 4)),
        lambda: net(layers.GRU(4, return_sequences=True, unroll=True, name="a"), shape=(3, 4)),
    ),
    "an LSTM, where there are too many steps": (
        ("WHILE",),
        lambda: net(layers.GRU(4, return_sequences=True, name="a"), shape=(70, 4)),
        lambda: net(layers.LSTM(4, return_sequences=True, name="a"), shape=(70, 4)),
    ),
    "nearest": (
        ("RESIZE_BILINEAR",),
        lambda: net(layers.UpSampling2D(2, interpolation="bilinear", name="a")),
        lambda: net(layers.UpSampling2D(2, name="a")),
    ),
    "enlarged and convolved": (
        ("TRANSPOSE_CONV",),
        lambda: net(layers.Conv2DTranspose(4, 3, strides=2, padding="same", name="a")),
        lambda: net(layers.UpSampling2D(2, name="u"), layers.Conv2D(4, 3, padding="same", name="a")),
    ),
    "folded norm": (
        ("GATHER",),
        lambda: net(layers.LayerNormalization(name="a")),
        lambda: net(layers.BatchNormalization(name="a")),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_joins_a_graph_joins_it_when_it_is_done(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes, build, by_hand = CHANGES[name]
    target = own(tmp_path, monkeypatch, leaves(*codes))
    found = placed(build(), target)
    (cut,) = found.cut_by
    assert cut.layers == ("a",) and found.parts > 1 and cut.change is not None, found
    after = placed(by_hand(), target)
    assert (after.parts, after.on_accelerator, after.operators) == (
        cut.change.parts,
        cut.change.on_accelerator,
        cut.change.operators,
    )
    assert after.parts < found.parts and not after.cut_by


@pytest.mark.parametrize("name", ["slopes", "unrolled"])
def test_what_is_said_to_keep_the_function_keeps_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes, build, by_hand = CHANGES[name]
    (cut,) = placed(build(), own(tmp_path, monkeypatch, leaves(*codes))).cut_by
    assert cut.change is not None and cut.change.same_function
    old, new = build(), by_hand()
    for layer in new.layers:
        if layer.name != "a" or name == "unrolled":
            layer.set_weights(old.get_layer(layer.name).get_weights())
    x = np.random.default_rng(0).normal(size=(4, *old.input_shape[1:])).astype(np.float32)
    np.testing.assert_allclose(old.predict(x, verbose=0), new.predict(x, verbose=0), rtol=1e-4, atol=1e-6)


def test_layers_of_one_kind_are_changed_together_and_others_after_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    middle = [layers.Conv2D(4, 1, activation="gelu", name=f"g{n}") for n in range(3)]
    model = net(*middle, layers.LeakyReLU(0.3, name="leaky"), layers.Conv2D(4, 1, name="after"))
    found = placed(model, own(tmp_path, monkeypatch, leaves("GELU", "GATHER", "LEAKY_RELU")))
    assert [cut.layers for cut in found.cut_by] == [("g0", "g1", "g2"), ("leaky",)]
    changes = [cut.change for cut in found.cut_by if cut.change is not None]
    assert found.parts == 4 and [change.parts for change in changes] == [2, 1]


def test_where_nothing_joins_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = placed(
        net(layers.Rescaling(0.5, name="half"), layers.MaxPooling2D(2, name="a"), layers.Conv2D(4, 1, name="b")),
        own(tmp_path, monkeypatch, leaves("MAX_POOL_2D")),
    )
    (cut,) = found.cut_by
    assert cut.change is None and cut.reason == "MAX_POOL_2D with 8-bit activations"
    said = words(kquant.check(net(layers.MaxPooling2D(2, name="a")), "board"))
    assert "No change that was tried joins it" in said and "a (MaxPooling2D) parts the graph" in said


def test_layers_in_16_bits_are_joined_by_8() -> None:
    recipe = {"name": "wide", "rules": [{"layer": "a", "activations": {"bits": 16}}]}
    model = net(layers.Conv2D(4, 1, name="a"), layers.Conv2D(4, 1, name="b"))
    found = placed(model, "gpu", recipe=recipe)
    change = next(cut.change for cut in found.cut_by if "a" in cut.layers)
    assert change is not None and change.same_function and "bits = 8" in change.what
    assert change.parts == 1 and placed(model, "gpu").parts == 1


def test_behind_the_first_that_is_left_all_is_left() -> None:
    model = net(layers.LeakyReLU(0.2, name="leaky"), layers.Conv2D(4, 1, activation="gelu", name="smooth"))
    found = placed(model, "edgetpu")
    places = {row.layer: row.place for row in found.layers}
    assert places["first"] == "accelerator" and set(places.values()) == {"accelerator", "processor"}
    assert [cut.layers for cut in found.cut_by] == [("leaky",), ("smooth",)]
    assert [cut.change.same_function for cut in found.cut_by if cut.change] == [True, False]
    last = found.cut_by[-1].change
    assert last is not None and last.on_accelerator == last.operators


def test_what_is_unknown_is_counted_apart() -> None:
    found = placed(net(layers.Conv2DTranspose(4, 3, name="up")), "edgetpu")
    (row,) = (row for row in found.layers if row.layer == "up")
    assert (row.place, row.reason) == ("unknown", "TRANSPOSE_CONV with 8-bit activations")
    assert found.unknown == 1 and found.parts == 1 and found.parts_if_left == 2
    said = words(kquant.check(net(layers.Conv2DTranspose(4, 3, name="up")), "edgetpu"))
    assert "of 1 it is unknown" in said and "2 where what is unknown is left" in said


def test_versions_are_a_ceiling_and_tell_the_oldest_runtime() -> None:
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    rows = layers.Embedding(10, 8, name="rows")(tokens)
    model = keras.Model(tokens, layers.Dense(2, name="last")(rows), name="words")
    found = placed(model, "gpu")
    (row,) = (row for row in found.layers if row.layer == "rows")
    assert row.place == "processor" and "GATHER of version 2, 1 is the newest" in row.reason
    assert found.needs == "1.14.0"
    assert placed(net(layers.Activation("gelu", name="g")), "gpu").needs == "2.9.0"


def test_kernels_part_nothing() -> None:
    for name in ("cmsis-nn", "esp-nn"):
        found = placed(net(layers.LeakyReLU(0.2, name="leaky"), layers.MaxPooling2D(2, name="pool")), name)
        places = {row.layer: row.place for row in found.layers}
        assert places["first"] == places["pool"] == "accelerator" and places["leaky"] == "processor"
        assert found.parts == 0 and not found.cut_by
    # a table: its ADD moves int32 positions, which no kernel for 8-bit codes does
    (row,) = (row for row in placed(net(layers.Activation("mish", name="m")), "cmsis-nn").layers if row.layer == "m")
    assert row.operators == ("CAST", "ADD", "GATHER") and row.place == "processor"
    assert "ADD with 32-bit integers" in row.reason
    dilated = net(layers.Conv2D(4, 3, dilation_rate=2, name="holes"))
    rows = [{row.layer: row.place for row in placed(dilated, name).layers} for name in ("cmsis-nn", "esp-nn")]
    assert [row["holes"] for row in rows] == ["accelerator", "processor"]


def test_a_model_that_cannot_be_integer_has_no_place() -> None:
    x = keras.Input((4,), name="x")
    found = kquant.check(keras.Model(x, keras.ops.argsort(x)), "gpu")
    assert not found.ok and found.placement is None
    assert kquant.check(net(), "litert").placement is None


@pytest.mark.one_in(12)
@pytest.mark.parametrize("name", contract.EXAMPLES)
def test_every_example_has_a_place(name: str) -> None:
    model = contract.EXAMPLES[name]()
    warnings.simplefilter("ignore")  # what `quantize` says of them is tested where it is said
    target = WITH[zlib.crc32(name.encode()) % len(WITH)]
    found = kquant.check(model, target)
    if not found.ok:  # refused by name, as on other targets
        assert all(row.remedy for row in found.layers if row.status in ("no kernel", "refused"))
        return
    placement = found.placement
    assert placement is not None
    assert sum(len(row.operators) for row in placement.layers) == placement.operators
    assert placement.on_accelerator + placement.unknown <= placement.operators
    assert all(row.reason or row.place == "accelerator" for row in placement.layers)
    assert report.render(found) and json.loads(json.dumps(found.to_dict()))["placement"]["parts"] == placement.parts


@pytest.mark.parametrize("name", WITH)
def test_files_for_a_target_run_on_its_runtimes_with_the_codes_of_the_model(name: str, tmp_path: Path) -> None:
    model = net(
        layers.BatchNormalization(name="norm"),
        layers.ReLU(name="relu"),
        layers.DepthwiseConv2D(3, padding="same", activation="relu6", name="deep"),
        layers.LeakyReLU(0.2, name="leaky"),
        layers.MaxPooling2D(2, name="pool"),
        layers.Conv2D(6, 1, activation="silu", name="smooth"),
    )
    data = np.random.default_rng(0).normal(size=(128, 8, 8, 3)).astype(np.float32)
    with pytest.warns(UserWarning, match="one scale") if targets.load(name).per_tensor else _silent():
        q = kquant.quantize(model, target=name)
    kquant.calibrate(q, data, verbose=False)
    made = kquant.export(q, tmp_path / "net.tflite", data=data)
    assert [v.runtime for v in made.verification] == list(targets.load(name).runtimes)
    for v in made.verification:
        assert v.ok and (v.verdict == "equal" or not v.follows), v


def _silent() -> Any:
    from contextlib import nullcontext

    return nullcontext()


@pytest.mark.skipif(find_vela() is None, reason="needs Arm's compiler Vela: pip install 'kquant[ethos-u]'")
@pytest.mark.parametrize("name", ["ethos-u55", "ethos-u85"])
def test_vela_is_asked_where_it_is_installed(name: str) -> None:
    """It enlarges by 2, 4 and 8 on a U55, which no claim of the table says in a way that can be checked."""
    model = net(layers.MaxPooling2D(2, name="pool"), layers.UpSampling2D(3, name="up"))
    asked = placed(model, name)
    assert asked.source.startswith("Vela 5.")
    (up,) = (row for row in asked.layers if row.layer == "up")
    assert up.place == ("processor" if name == "ethos-u55" else "accelerator"), asked


def test_the_page_of_a_check_says_where_each_layer_runs(tmp_path: Path) -> None:
    found = kquant.check(net(layers.LeakyReLU(0.2, name="leaky"), layers.Conv2D(4, 1, name="b")), "edgetpu")
    report.html(found, tmp_path / "check.html")
    text = (tmp_path / "check.html").read_text()
    assert "Where each layer runs" in text and "PReLU(" in text and "the Edge TPU" in text
