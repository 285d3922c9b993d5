"""A byte budget: what is exact first, then what is not, the best of what holds; stopped, resumed, refused."""

from __future__ import annotations

import json
import random
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from typer.testing import CliRunner

import kquant
from kquant.app import pipeline
from kquant.app.cli import app
from kquant.correct import byte_search
from kquant.files import finished_work
from kquant.layers.kernel import holders
from kquant.recipe.recipe import Step
from kquant.report.page import with_ladder
from kquant.report.tables import Page
from kquant.search import byte_ladder

QUIET: dict[str, Any] = {"verbose": False, "target": "tflm"}
layers = keras.layers


def samples(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three classes of small images, told apart by where they are bright."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, count)
    x = rng.normal(0, 2.0, (count, 8, 8, 2)).astype(np.float32)
    for i, row in zip(y, x, strict=True):
        row[2 * i : 2 * i + 3] += 1.0
    return x, y


X, Y = samples(256, 0)
TEST = samples(256, 1)


def fit(model: keras.Model, epochs: int = 3) -> keras.Model:
    model.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy")
    model.fit(X, Y, batch_size=32, epochs=epochs, verbose=0)
    return model


@pytest.fixture(autouse=True)
def shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps of distillation and of AdaRound, and a search that is soon near enough."""
    four = byte_ladder.four_bits()
    few = Step.model_validate({"name": "adaround", "iterations": 40})
    four = {**four, "steps": tuple(few if step.name == few.name else step for step in four["steps"])}
    monkeypatch.setattr(byte_ladder, "four_bits", lambda: four)
    monkeypatch.setattr(byte_ladder, "STEPS", 16)
    monkeypatch.setattr(byte_search, "NEAR", 0.08)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 2), name="image")
    x = layers.Conv2D(24, 3, activation="relu", name="first")(x)
    x = layers.Conv2D(32, 3, activation="relu", name="second")(x)
    x = layers.Dense(32, activation="relu", name="wide")(layers.Flatten(name="flat")(x))
    return fit(keras.Model(inputs, layers.Dense(3, activation="softmax", name="head")(x), name="net"))


def score(model: keras.Model) -> float:
    return float(np.mean(model.predict(TEST[0], verbose=0).argmax(-1) == TEST[1]))


@pytest.fixture(scope="module")
def plain(model: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> int:
    """Bytes of the int8 file."""
    return kquant.compress(model, X[:64], path=tmp_path_factory.mktemp("plain") / "m.tflite", **QUIET).report.file_bytes


def test_what_exact_steps_hold_is_left_alone(model: keras.Model, plain: int, tmp_path: Path) -> None:
    made = kquant.compress(model, X[:64], path=tmp_path / "m.tflite", flash_bytes=plain, **QUIET)
    assert made.ladder is not None
    assert [rung.name for rung in made.ladder.rungs] == ["as it is", "exact steps"]
    assert made.ladder.best.name == "exact steps"
    assert made.report.decoding is None


def test_fewer_bytes_by_levels(model: keras.Model, plain: int, tmp_path: Path) -> None:
    budget = int(0.45 * plain)
    made = kquant.compress(model, X[:64], path=tmp_path / "m.tflite", flash_bytes=budget, evaluate=score, **QUIET)
    assert made.ladder is not None
    ladder = made.ladder
    assert made.report.file_bytes == (tmp_path / "m.tflite").stat().st_size == ladder.best.file_bytes <= budget
    assert ladder.best.name.startswith("shorter codes")
    assert ladder.best.score >= ladder.float_score - 0.03
    assert score(made.model) == ladder.best.score
    # the file computes what was scored, on TFLM
    ours = kquant.predict(tmp_path / "m.tflite", TEST[0][:32], runtime="tflm")
    assert np.array_equal(ours, made.model.predict(TEST[0][:32], verbose=0))
    assert all(report.ok for report in made.report.verification)
    assert ladder.pareto[-1].file_bytes <= budget
    said = kquant.report.render(made)
    assert "shorter codes, distilled" in said and "TFLM here, ms" in said
    names = ["as it is", "exact steps", "codes", byte_ladder.ONE, "4 bits", "shorter codes"]
    names.append("shorter codes, one scale")
    assert [rung.name for rung in ladder.rungs] == [*names, "shorter codes, distilled"]
    assert all(rung.host_ms is not None and 0.0 < rung.host_ms < 1000.0 for rung in ladder.rungs)
    by_name = {rung.name: rung for rung in ladder.rungs}
    assert by_name[byte_ladder.ONE].file_bytes < by_name["codes"].file_bytes
    assert f"{ladder.best.file_bytes:,} of {budget:,} bytes" in said
    assert '"flash_bytes"' in kquant.report.to_json(made)
    assert ladder.to_dict()["best"] == ladder.best.name


def packed() -> tuple[keras.Model, np.ndarray, int]:
    """A model whose codes of 4 bits pay, and those of a DECODE do not; samples; a budget between."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(64, 40)).astype(np.float32)
    rows = [keras.Input((40,)), layers.Dense(40, activation="relu", name="body"), layers.Dense(4, name="head")]
    return keras.Sequential(rows, name="packed"), x, 2_600


def test_the_file_is_that_of_its_rung_where_nothing_is_decoded(tmp_path: Path) -> None:
    model, x, budget = packed()
    made = kquant.compress(model, x, path=tmp_path / "m.tflite", flash_bytes=budget, **QUIET)
    assert made.ladder is not None
    assert made.report.decoding is None
    assert made.report.path == str(tmp_path / "m.tflite")
    assert made.report.file_bytes == (tmp_path / "m.tflite").stat().st_size == made.ladder.best.file_bytes <= budget
    plain, again = tmp_path / "plain.tflite", tmp_path / "again.tflite"
    kquant.export(made.model, plain, check_runtimes=False)
    kquant.export(made.model, again, check_runtimes=False, **made.export_options)
    assert again.read_bytes() == (tmp_path / "m.tflite").read_bytes()
    assert plain.stat().st_size > budget, "without its form it would not hold"


def test_the_command_writes_that_file_too(tmp_path: Path) -> None:
    model, x, budget = packed()
    model.save(tmp_path / "net.keras")
    np.save(tmp_path / "x.npy", x)
    given = ["compress", tmp_path / "net.keras", "--data", tmp_path / "x.npy", "--folder", tmp_path / "build"]
    done = CliRunner().invoke(app, [str(word) for word in (*given, "--target", "tflm", "--flash-bytes", budget)])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "build" / "net.tflite").stat().st_size <= budget
    words = shlex.split(done.stdout.splitlines()[-1].partition(": kquant ")[2].replace("project/", str(tmp_path / "p")))
    assert words[-2:] == ["--compression", "auto"]
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0, again.output
    assert (tmp_path / "p" / "model.tflite").stat().st_size == (tmp_path / "build" / "net.tflite").stat().st_size


def test_a_file_over_the_budget_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_form_of", lambda *_: {})
    (tmp_path / "m.tflite").write_bytes(b"before")
    model, x, budget = packed()
    with pytest.raises(ValueError, match=rf"more than flash_bytes={budget:,} and than its rung had"):
        kquant.compress(model, x, path=tmp_path / "m.tflite", flash_bytes=budget, **QUIET)
    assert (tmp_path / "m.tflite").read_bytes() == b"before"


def test_training_has_rungs_of_its_own(model: keras.Model, plain: int, tmp_path: Path) -> None:
    before = [v.numpy() for v in model.variables]
    seen: list[str] = []

    def train(stage_model: keras.Model, stage: str) -> None:
        seen.append(stage)
        learners = [holder.learner for holder in holders(stage_model) if stage == "quantize"]
        assert all(learner.price.numpy() == 1.0 and learner.least_bits.numpy() > 1.0 for learner in learners)
        fit(stage_model, 1)

    options = {"evaluate": score, "train": train, "folder": tmp_path / "kept", **QUIET}
    made = kquant.compress(model, X[:64], path=tmp_path / "m.tflite", flash_bytes=int(0.4 * plain), **options)
    assert seen == ["quantize", "prune", "quantize", "cluster", "quantize"]
    assert made.ladder is not None
    names = [rung.name for rung in made.ladder.rungs]
    assert names[-3:] == ["shorter codes, trained", "zeros, trained", "shared values, trained"]
    assert made.ladder.rungs[-3].holds, "what training adds to the codes has a price"
    assert made.ladder.best.score == max(rung.score for rung in made.ladder.rungs if rung.holds)
    assert all(np.array_equal(a, v.numpy()) for a, v in zip(before, model.variables, strict=True))
    # once more: nothing is trained again, and the same file comes out
    again = kquant.compress(model, X[:64], path=tmp_path / "again.tflite", flash_bytes=int(0.4 * plain), **options)
    assert len(seen) == 5
    assert (tmp_path / "again.tflite").read_bytes() == (tmp_path / "m.tflite").read_bytes()
    assert again.ladder is not None
    assert [rung.score for rung in again.ladder.rungs] == [rung.score for rung in made.ladder.rungs]


def test_a_stopped_ladder_goes_on(
    model: keras.Model, plain: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"folder": tmp_path / "kept", "flash_bytes": int(0.45 * plain), "evaluate": score, **QUIET}

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(byte_ladder, "distill", stop)
        with pytest.raises(KeyboardInterrupt):
            kquant.compress(model, X[:64], path=tmp_path / "m.tflite", **options)
    assert not (tmp_path / "m.tflite").exists()
    first = kquant.compress(model, X[:64], path=tmp_path / "m.tflite", **options)
    whole = kquant.compress(model, X[:64], path=tmp_path / "w.tflite", **{**options, "folder": None})
    assert (tmp_path / "m.tflite").read_bytes() == (tmp_path / "w.tflite").read_bytes()
    assert first.ladder is not None
    assert whole.ladder is not None
    assert [r.file_bytes for r in first.ladder.rungs] == [r.file_bytes for r in whole.ladder.rungs]
    with pytest.raises(ValueError, match="is of another search"):
        kquant.compress(model, X[:64], path=tmp_path / "m.tflite", **{**options, "flash_bytes": 9000})
    other = {"name": "int8", "activations": {"observer": "minmax"}}  # another recipe of the same name
    with pytest.raises(ValueError, match="is of another search"):
        kquant.compress(model, X[:64], path=tmp_path / "m.tflite", recipe=other, **options)


@pytest.mark.parametrize("fault", ["no number", "score raises", "training raises"])
def test_a_fault_of_the_callers_functions_ends_the_search(fault: str, tmp_path: Path) -> None:
    small = keras.Sequential([keras.Input((16,)), layers.Dense(64, activation="relu"), layers.Dense(4)])
    x = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
    judged: list[keras.Model] = []

    def evaluate(model: keras.Model) -> float:
        judged.append(model)
        if len(judged) == 3 and fault == "score raises":
            raise ValueError("labels of other samples")
        return float("nan") if len(judged) == 3 and fault == "no number" else 1.0

    def train(*_: Any) -> None:
        raise ValueError("x and y differ in length")

    said = {
        "no number": "compress: evaluate must return .* For the rung 'exact steps' it returned nan",
        "score raises": "labels of other samples",
        "training raises": "x and y differ in length",
    }
    options = {"evaluate": evaluate, "folder": tmp_path / "kept", "flash_bytes": 2700, **QUIET}
    if fault == "training raises":
        options["train"] = train
    with pytest.raises(ValueError, match=said[fault]):
        kquant.compress(small, x, path=tmp_path / "m.tflite", **options)
    kept = json.loads((tmp_path / "kept" / "rungs.json").read_text())
    names = [rung["name"] for rung in kept["done"]["rungs"]]
    assert names[0] == "as it is" and (names[1:] == []) == (fault != "training raises"), "what is finished stays"
    assert not (tmp_path / "m.tflite").exists()


def test_the_callers_random_numbers_go_on(model: keras.Model, plain: int, tmp_path: Path) -> None:
    drawn: list[tuple[float, ...]] = []

    def draw() -> tuple[float, ...]:
        return random.random(), float(np.random.random()), float(keras.random.uniform(()))

    def evaluate(judged: keras.Model) -> float:
        drawn.append(draw())
        return score(judged)

    options: dict[str, Any] = {"flash_bytes": int(0.45 * plain), "evaluate": evaluate, **QUIET}
    files, later = [], []
    for seed in (7, 8):
        drawn.clear()
        keras.utils.set_random_seed(seed)
        made = kquant.compress(model, X[:64], path=tmp_path / f"{seed}.tflite", **options)
        drawn.append(draw())
        later.append(float(tf.random.uniform(())))
        assert made.ladder is not None
        assert made.ladder.rungs[-1].name == "shorter codes, distilled"
        keras.utils.set_random_seed(seed)
        assert [draw() for _ in drawn] == drawn, "the caller's functions and what follows draw as alone"
        files.append((made.ladder.rungs[-1].score, (tmp_path / f"{seed}.tflite").read_bytes()))
    assert later[0] != later[1], "TensorFlow's stream is further on, but the caller's"
    assert files[0] == files[1], "no seed of the caller changes the result"


def test_refusals(model: keras.Model, plain: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"path": tmp_path / "m.tflite", "verbose": False}
    with pytest.raises(ValueError, match=r"nothing holds flash_bytes=1,200. .* in codes: wide/kernel") as told:
        kquant.compress(model, X[:64], target="tflm", flash_bytes=1200, **options)
    # one smallest file, and it is that of the rounding that went furthest; the rungs that compute something come next
    numbers = re.search(r"The smallest is 'shorter codes.*?' with ([\d,]+) bytes, .* with ([\d,]+)\. ", str(told.value))
    assert numbers is not None
    reached, kept = (int(number.replace(",", "")) for number in numbers.groups())
    assert 1200 < reached < kept < plain
    assert f"no codes of the weights make a file of 1,200 bytes. The smallest has {reached:,}," in str(told.value)
    with pytest.raises(ValueError, match="'litert' decodes none. Give target='tflm', or kquant.mixed_precision"):
        kquant.compress(model, X[:64], target="litert", flash_bytes=plain // 2, **options)
    with pytest.raises(ValueError, match="leave compression='lut' out"):
        kquant.compress(model, X[:64], target="tflm", flash_bytes=plain, compression="lut", **options)
    with pytest.raises(ValueError, match="evaluate is for a byte budget; give flash_bytes=, or leave it out"):
        kquant.compress(model, X[:64], target="tflm", evaluate=score, **options)
    with pytest.raises(ValueError, match="evaluate and folder are for a byte budget; .* or leave them out"):
        kquant.compress(model, X[:64], target="tflm", evaluate=score, folder=tmp_path / "kept", **options)
    for wrong in (float("nan"), "good"):
        with pytest.raises(ValueError, match=r"compress: evaluate must return a finite .* float model it returned"):
            kquant.compress(model, X[:64], target="tflm", flash_bytes=plain, evaluate=lambda _, w=wrong: w, **options)
    with pytest.raises(
        ValueError, match="flash_bytes must be a whole number of bytes, 1 or more, like .* Received: 1.5"
    ):
        kquant.compress(model, X[:64], target="tflm", flash_bytes=1.5, **options)
    assert not list(tmp_path.iterdir())


def test_a_file_that_holds_and_computes_nothing_of_use_is_told() -> None:
    rung = byte_ladder.ByteRung("shorter codes", 900, 3.5, 100, 10, 1.0, holds=True, kept=True)
    for unit, score_, told in (("dB", 3.5, True), ("dB", 12.0, False), ("score", 0.9, False)):
        ladder = byte_ladder.ByteLadder(1000, unit, 1.0, (replace(rung, score=score_),))
        assert ("hardly computes what the model does" in kquant.report.render(ladder)) == told
        around = with_ladder(Page("a file", ok=True, findings=(), facts=(), tables=()), ladder)  # of the whole result
        assert bool(around.findings) == told


def test_the_command(model: keras.Model, plain: int, tmp_path: Path) -> None:
    model.save(tmp_path / "net.keras")
    np.savez(tmp_path / "data.npz", x=X[:64])
    np.savez(tmp_path / "test.npz", x=TEST[0][:64], y=TEST[1][:64])
    arguments = ["compress", tmp_path / "net.keras", "--data", tmp_path / "data.npz", "--target", "tflm"]
    arguments += ["--test", tmp_path / "test.npz", "--labels", tmp_path / "test.npz", "--folder", tmp_path / "build"]
    budget = int(0.6 * plain)
    result = CliRunner().invoke(app, [str(a) for a in (*arguments, "--flash-bytes", budget, "--strip-names", "--json")])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["file_bytes"] == (tmp_path / "build" / "net.tflite").stat().st_size <= budget
    assert told["ladder"]["unit"] == "score"
    assert [rung["name"] for rung in told["ladder"]["rungs"]][:3] == ["as it is", "exact steps", "codes"]
    assert (tmp_path / "build" / "rungs" / "rungs.json").is_file()


def dense_net() -> tuple[keras.Model, np.ndarray]:
    """The network of docs/short_codes.md."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    sizes = {"body": 96, "middle": 64}
    hidden = [layers.Dense(units, activation="relu", name=name) for name, units in sizes.items()]
    net = keras.Sequential([keras.Input((64,)), *hidden, layers.Dense(8, name="head")])
    return net, rng.normal(size=(128, 64)).astype(np.float32)


@pytest.mark.parametrize("options", [{"io": "float32"}, {"io": "int16", "decode_budget": 8192}], ids=str)
def test_codes_are_shortened_for_the_file_that_is_written(options: dict[str, Any], tmp_path: Path) -> None:
    """Shortened for int8 edges and any arena, the file came out above the budget, and coarser rungs had to hold it."""
    net, x = dense_net()
    made = kquant.compress(net, x, path=tmp_path / "m.tflite", flash_bytes=8200, **options, **QUIET)
    assert made.ladder is not None
    rungs = {rung.name: rung for rung in made.ladder.rungs}
    assert rungs["shorter codes"].holds and rungs["shorter codes, one scale"].holds
    assert made.report.file_bytes == made.ladder.best.file_bytes <= 8200
    assert made.ladder.best.score > 20.0


def test_four_bits_need_no_arena(tmp_path: Path) -> None:
    """Where nothing may be decoded, packed weights hold what no codes do."""
    net, x = dense_net()
    options: dict[str, Any] = {"flash_bytes": 9000, "decode_budget": 0, "folder": tmp_path / "kept", **QUIET}
    made = kquant.compress(net, x, path=tmp_path / "m.tflite", **options)
    assert made.ladder is not None and made.ladder.best.name == "4 bits"
    assert made.report.file_bytes == made.ladder.best.file_bytes <= 9000
    assert made.report.decoding is None and made.report.types["INT4"] == 3
    # a folder of before there was the rung: what is in it stays, and the rung is made
    path = tmp_path / "kept" / "rungs.json"
    kept = json.loads(path.read_text())
    rungs = [rung for rung in kept["done"]["rungs"] if rung["name"] != "4 bits"]
    assert len(rungs) == len(kept["done"]["rungs"]) - 1
    kept["done"]["rungs"] = [{**rung, "seconds": 1234.5} for rung in rungs]
    path.write_text(json.dumps({**kept, "digest": finished_work._digest(kept["done"])}))
    (tmp_path / "kept" / "4-bits.keras").unlink()
    again = kquant.compress(net, x, path=tmp_path / "again.tflite", **options)
    assert again.ladder is not None
    assert [rung.name for rung in again.ladder.rungs] == [rung.name for rung in made.ladder.rungs]
    assert [rung.name for rung in again.ladder.rungs if rung.seconds != 1234.5 and not rung.failed] == ["4 bits"]
    assert (tmp_path / "again.tflite").read_bytes() == (tmp_path / "m.tflite").read_bytes()


def test_a_budget_of_arena_is_named_with_what_it_would_have_to_be(tmp_path: Path) -> None:
    net = keras.Sequential([keras.Input((64,)), layers.Dense(96, name="body"), layers.Dense(4, name="head")])
    rng = np.random.default_rng(0)
    body = net.get_layer("body").kernel
    body.assign(body.numpy() * (rng.random(body.shape) < 0.2))
    x = rng.normal(size=(64, 64)).astype(np.float32)
    options: dict[str, Any] = {"flash_bytes": 1000, "path": tmp_path / "m.tflite", **QUIET}
    with pytest.raises(ValueError, match=r"decode_budget=100 keeps weights out of codes: 'codes' would have") as told:
        kquant.compress(net, x, decode_budget=100, **options)
    numbers = re.search(r"would have ([\d,]+) bytes in place of [\d,]+ with decode_budget=([\d,]+)", str(told.value))
    assert numbers is not None
    size, arena = (int(number.replace(",", "")) for number in numbers.groups())
    q = kquant.calibrate(kquant.quantize(net, target="tflm"), x, verbose=False)
    made = kquant.export(q, tmp_path / "m.tflite", compression="auto", decode_budget=arena, check_runtimes=False)
    assert made.file_bytes == size
