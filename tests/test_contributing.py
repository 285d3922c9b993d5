"""The diffs of CONTRIBUTING.md: each applies to the tree as it is, takes the files it says, and does what it says."""

from __future__ import annotations

import importlib
import re
import sys
import types
from collections.abc import Callable, Iterator
from functools import cache, singledispatch
from pathlib import Path
from typing import Any

import contract
import keras
import numpy as np
import pydantic
import pytest
import tensorflow as tf

import kquant
from kquant import correct, masking, ops, recipe, report, targets, tflite
from kquant.calibration import observers
from kquant.calibration.tensor_statistics import Statistics
from kquant.core import fact_tables, packed
from kquant.core.quant_spec import QuantSpec
from kquant.correct import steps
from kquant.masking import method
from kquant.recipe.section import sections
from kquant.tflite import storage

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
SECTION = re.compile(r"^### (?P<title>[^\n]+): (?P<count>\d+) files?\n(?P<body>.*?)(?=^##)", re.MULTILINE | re.DOTALL)
DIFF = re.compile(r"^```diff\n # (?P<path>\S+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
LANDED = ("A packed type of weights",)  # sections whose diff is in the tree: it is taken out instead of put in
X = np.float32(np.random.default_rng(0).normal(size=(32, 8, 4)))


@cache
def changed(title: str) -> dict[str, str]:
    """Path -> text of the files that a section adds or changes."""
    body = next(m["body"] for m in SECTION.finditer(TEXT) if m["title"] == title)
    gone = "-+" if title in LANDED else "+-"
    return {m["path"]: applied(m["path"], m["body"].rstrip("\n"), gone) for m in DIFF.finditer(body)}


def applied(path: str, diff: str, gone: str = "+-") -> str:
    """The file with every hunk of the diff; a new one is all of it. `gone` marks lines of after, then of before."""
    text = (ROOT / path).read_text() if (ROOT / path).exists() else ""
    for hunk in diff.split("\n@@\n"):
        lines = [(line[:1], line[1:]) for line in hunk.split("\n")]
        assert all(mark in ("", " ", "+", "-") for mark, _ in lines), hunk
        old, new = ("".join(f"{line}\n" for mark, line in lines if mark != left_out) for left_out in gone)
        assert text.count(old) == 1 or not text, f"{path} has not exactly once:\n{old}"
        text = text.replace(old, new) if text else new
    return text


@pytest.mark.parametrize("title", [m["title"] for m in SECTION.finditer(TEXT)])
def test_a_diff_applies_and_takes_the_files_that_are_told(title: str) -> None:
    count = next(m["count"] for m in SECTION.finditer(TEXT) if m["title"] == title)
    assert len(changed(title)) == int(count)
    for path, text in changed(title).items():
        assert text.endswith("\n") and (not (ROOT / path).exists() or text != (ROOT / path).read_text())


def module(title: str, path: str) -> Any:
    """A changed file, run under a name of its own."""
    made = types.ModuleType(f"changed_{Path(path).stem}")
    sys.modules[made.__name__] = made  # dataclasses look there
    try:
        exec(compile(changed(title)[path], path, "exec"), vars(made))
    finally:
        del sys.modules[made.__name__]
    return made


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, types.ModuleType], None]:
    """Puts the new files of a section into folders of the package, which are elsewhere."""

    def put(title: str, folder: types.ModuleType) -> None:
        place = tmp_path / folder.__name__.rsplit(".", 1)[-1]
        place.mkdir(exist_ok=True)
        for path, text in changed(title).items():
            if Path(path).parent.name == place.name and not (ROOT / path).exists():
                (place / Path(path).name).write_text(text)
        monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(place)])

    return put


@pytest.fixture(autouse=True)
def no_traces() -> Iterator[None]:
    """What was imported from such a folder, or registered there, is gone behind a test."""
    modules, objects = set(sys.modules), dict(keras.saving.get_custom_objects())
    yield
    for name in set(sys.modules) - modules:
        elsewhere = not str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(ROOT))
        if name.startswith("kquant.") and elsewhere:
            folder, _, last = name.rpartition(".")
            vars(sys.modules[folder]).pop(last, None)
            del sys.modules[name]
    keras.saving.get_custom_objects().clear()
    keras.saving.get_custom_objects().update(objects)
    sections.cache_clear()
    method.known.cache_clear()


def model() -> keras.Model:
    return keras.Sequential([keras.Input((8, 4), name="x"), keras.layers.Dense(3, name="head")], name="net")


def test_the_observer_observes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = module("An observer", "kquant/calibration/observers.py").OBSERVERS["median"]
    seen = Statistics(np.float32([-9, -1, -2]), np.float32([1, 9, 2]))
    assert found(seen, QuantSpec()) == (-2.0, 2.0)
    monkeypatch.setitem(observers.OBSERVERS, "median", found)
    q = kquant.quantize(model(), {"name": "mine", "activations": {"observer": "median"}})
    kquant.calibrate(q, lambda: [X, 1.5 * X, X], verbose=False)
    np.testing.assert_allclose(q.get_layer("x_quant").high.numpy(), X.max(), rtol=0.02)


def test_the_correction_is_a_step(monkeypatch: pytest.MonkeyPatch, write: Callable) -> None:
    write("A correction", correct)
    table = module("A correction", "kquant/correct/steps.py").STEPS
    monkeypatch.setitem(steps.STEPS, "three-sigma", table["three-sigma"])
    q = kquant.quantize(model())
    steps.apply_steps(q, steps.parse_steps("three-sigma:sigmas=1.0"), X, verbose=False)
    head = q.get_layer("head")
    reach = np.asarray(head.correction("reach"))
    np.testing.assert_allclose(reach, np.std(head.weights_as_used()), rtol=1e-5)
    assert np.abs(head.weights_on_grid("kernel")).max() <= reach.max() * 1.0001


def test_the_training_method_is_a_section(write: Callable) -> None:
    for folder in (recipe, masking):
        write("A training method", folder)
    sections.cache_clear()
    method.known.cache_clear()
    clipping = sections()["clipping"]
    taking = pydantic.create_model("Recipe", __base__=kquant.Recipe, clipping=(clipping | None, None))
    chosen = taking(name="mine", clipping={"reach": 0.1})
    [only] = method.methods(chosen)
    assert only.name == "clip"
    clipped = only.verb(model(), chosen)
    assert only.acts(clipped) and not only.acts(model())
    q = kquant.quantize(clipped, chosen)
    assert np.abs(q.get_layer("head").weights_as_used("kernel")).max() == np.float32(0.1)


def test_the_grid_has_its_values() -> None:
    title = "A grid of weights"
    spec = module(title, "kquant/core/quant_spec.py").QuantSpec(2, symmetric=True, kind="ternary")
    values = module(title, "kquant/layers/nonuniform.py").on_grid(tf.constant([[1.0, -3.0], [0.1, 0.0]]), spec, (1,))
    assert values.numpy().tolist() == [[2.0, -2.0], [0.0, 0.0]]


@pytest.mark.skipif("tflm" not in contract.RUNTIMES["tflm"], reason="the micro extra is not installed")
def test_the_storage_is_written_read_and_run(tmp_path: Path, write: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    title = "A way to store weights"
    write(title, tflite)
    monkeypatch.setattr(storage, "STORAGES", module(title, "kquant/tflite/storage.py").STORAGES)
    # under another name, as the package's own targets are read once
    board = changed(title)["kquant/targets/tflm.toml"].replace('name = "tflm"', 'name = "board"', 1)
    (tmp_path / "board.toml").write_text(board)
    monkeypatch.setenv(targets.FOLDER, str(tmp_path))
    dense = [keras.layers.Dense(64, name=name) for name in ("few", "many")]
    net = keras.Sequential([keras.Input((64,)), *dense])
    rng = np.random.default_rng(0)
    net.get_layer("few").kernel.assign(rng.normal(size=(64, 64)) * (rng.random((64, 64)) < 0.15))
    net.get_layer("many").kernel.assign(np.sign(rng.normal(size=(64, 64))))
    x = np.float32(rng.normal(size=(32, 64)))
    q = kquant.calibrate(kquant.quantize(net, target="board"), x, verbose=False)
    plain = kquant.export(q, tmp_path / "plain.tflite", data=x)
    made = kquant.export(q, tmp_path / "small.tflite", data=x, compression=("lut", "flags"))
    assert all(found.equal == 1.0 for report in made.verification for found in report.agreements)
    tables = {table.name: table for table in kquant.inspect(made.path).tables}
    assert {name: table.storage for name, table in tables.items()} == {"few/kernel": "flags", "many/kernel": "lut"}
    kernel = np.asarray(q.get_layer("few").weights_on_grid("kernel"))
    words = -(-(64 * 64 + 8 * np.count_nonzero(kernel)) // 32)
    assert tables["few/kernel"].stored_bytes == 4 * words + 16 + 2 * (2 + 256)
    counted = {layer.name: layer.to_dict() for layer in plain.weights.layers}
    assert counted["few/kernel"]["flags_bytes"] == tables["few/kernel"].stored_bytes
    assert "flags and bytes" in report.render(kquant.inspect(made.path)) and "flags" in report.render(plain)
    with pytest.raises(ValueError, match="flags and bytes and look-up tables, which 'litert' cannot decode"):
        kquant.predict(made.path, x, "litert")


def test_the_packed_type_is_in_three_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = changed("A packed type of weights")
    before = fact_tables.parsed(without["kquant/core/packed.toml"], "packed.toml", packed.PackedType)
    [name] = packed.PACKED.keys() - before.keys()
    named = re.compile(rf"\b{name}\b", re.IGNORECASE)
    files = [path for path in (ROOT / "kquant").rglob("*.*") if path.suffix in (".py", ".toml")]
    told = {path.relative_to(ROOT).as_posix() for path in files if named.search(path.read_text())}
    assert "kquant/core/packed.toml" in told and told <= without.keys()
    # a target without its row takes the next wider one
    board = without["kquant/targets/litert.toml"].replace('name = "litert"', 'name = "board"', 1)
    (tmp_path / "board.toml").write_text(board)
    monkeypatch.setenv(targets.FOLDER, str(tmp_path))
    two = {"name": "two", "weights": {"bits": packed.PACKED[name].bits}}
    with pytest.warns(
        UserWarning, match="no packed 2-bit weights for head; their codes have 2 bits and are stored in 4"
    ):
        q = kquant.quantize(model(), two, target="board")
    for goal, type in ((q, "INT4"), (kquant.quantize(model(), two), name.upper())):
        path = tmp_path / f"{type}.tflite"
        kquant.export(kquant.calibrate(goal, X, verbose=False), path, check_runtimes=False)
        assert [t.type for t in kquant.inspect(path).tensors if t.name == "head/kernel"] == [type]


def test_the_report_is_a_page(write: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    from kquant.report import page, text

    fresh = singledispatch(page.page)
    for of in (page, text):
        monkeypatch.setattr(of, "page", fresh)
    write("A report", report)
    module("A report", "kquant/report/__init__.py")
    assert report.render(kquant.cost(model())).startswith("96 MACs\n")


def test_the_target_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sensor.toml").write_text(changed("A target")["kquant/targets/sensor.toml"])
    monkeypatch.setenv(targets.FOLDER, str(tmp_path))
    assert kquant.check(model(), target="sensor").ok
    with_softmax = keras.Sequential([model(), keras.layers.Softmax(name="kind")])
    assert {row.layer: row.status for row in kquant.check(with_softmax, target="sensor").layers}["kind"] == "no kernel"


def test_the_layer_is_made_of_known_ones() -> None:
    rules = module("A layer of known ones", "kquant/ops/order.py").RULES
    [rule] = [rule for rule in rules if "Diff" in rule.operations]
    for build in rule.examples:
        example = build()
        op = example.operations[-1]
        made = rule.expand(op, lambda _, factory: factory(), example.inputs[0])
        x = np.float32(np.random.default_rng(0).normal(size=(2, *example.inputs[0].shape[1:])))
        np.testing.assert_allclose(keras.Model(example.inputs, made)([x]), example([x]), atol=1e-6)


@pytest.mark.parametrize("target", ["litert", "tflm"])
def test_the_layer_keeps_an_encoding_inside(target: str, write: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    write("A layer with encodings inside", ops)
    made = importlib.import_module("kquant.ops.soft_gate")
    monkeypatch.setattr(ops, "RULES", (*ops.RULES, *made.RULES))
    ops.candidates.cache_clear()
    try:
        gate = keras.Sequential([keras.Input((8, 4), name="x"), made.SoftGate(name="gate"), keras.layers.Dense(3)])
        q = kquant.quantize(kquant.cluster(kquant.prune(gate, 0.5), 4), target=target)
        kquant.calibrate(q, X, verbose=False)
        wide = [2.0 * X]
        assert contract.compare(q, contract.file_of(q), contract.RUNTIMES[target], wide) == contract.Parity(1.0, 0)
        kernel = np.asarray(q.get_layer("gate").weights_on_grid("kernel"))
        assert np.mean(kernel == 0.0) >= 0.5 and len(np.unique(kernel)) <= 4
        lines: list[str] = []
        kquant.summary(q, print_fn=lines.append)
        assert "level int8" in "".join(lines)
    finally:
        ops.candidates.cache_clear()


def test_the_operator_has_a_rule_and_its_rows(tmp_path: Path) -> None:
    import tomllib

    title = "A layer with an operator of its own"
    files = changed(title)
    assert "REVERSE_V2" in tomllib.loads(files["kquant/core/operators.toml"])
    assert tomllib.loads(files["kquant/targets/litert.toml"])["ops"]["REVERSE_V2"]["int8"]
    [rule] = [rule for rule in module(title, "kquant/ops/order.py").RULES if "REVERSE_V2" in rule.operators]
    assert rule.operations == ("Flip",) and rule.lower is not None
