"""`compression="auto"`, a budget of arena, what it costs: which form each tensor takes, and what is refused."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import kquant
from kquant import report, targets
from kquant.core.program import Program
from kquant.core.spec import Encoding, QuantSpec
from kquant.exporting.asked_storing import storing_of
from kquant.exporting.stored_check import check_runtime
from kquant.runtime.arenas import arena_bytes
from kquant.runtime.running import available, probe
from kquant.tflite.flatbuffer import to_bytes
from kquant.tflite.memory_plan import memory_plan
from kquant.tflite.reader import read_model
from kquant.tflite.storage import Storing
from kquant.tflite.stored_weights import smaller_file

layers = keras.layers
RNG = np.random.default_rng(5)
TFLM = targets.load("tflm")
needs_tflm = pytest.mark.skipif("tflm" not in available(), reason="needs the micro extra")
SIDE = 96


def grid(scale: float = 0.05, channels: int = 1) -> Encoding:
    per_axis = channels > 1
    spec = QuantSpec(8, symmetric=True, narrow=True, per_axis=per_axis)
    scales = np.float32(scale * (1 + np.arange(channels) / 7))
    return Encoding(scales, np.zeros(channels, np.int64), spec, 0 if per_axis else None)


def peaked(width: float) -> np.ndarray:
    return np.clip(np.rint(RNG.normal(size=(SIDE, SIDE)) * width), -127, 127)


KERNELS = {
    "even": RNG.integers(-127, 128, (SIDE, SIDE)),  # no form is smaller
    "levels": RNG.choice([-90, -37, -5, 4, 33, 101, 64, 127], (SIDE, SIDE)),  # eight, equally often
    "zeros": RNG.integers(-127, 128, (SIDE, SIDE)) * (RNG.random((SIDE, SIDE)) < 0.2),
    "peaked": peaked(9.0),
    "nibbles": RNG.integers(-8, 8, (SIDE, SIDE)),
}
FORMS = {"levels": "lut", "zeros": "prune", "peaked": "huffman"}


def program(*names: str, bias: bool = True) -> Program:
    """A chain of layers with those kernels."""
    made = Program("chain")
    made.inputs = x = [made.value("x", (1, SIDE), grid(3.0))]
    for name in names:
        kernel = made.constant(f"{name}/kernel", KERNELS[name].astype(np.int8), grid())
        offsets = made.constant(f"{name}/bias", np.zeros(SIDE, np.int32), grid(0.15)) if bias else None
        y = made.value(name, (1, SIDE), grid(3.0))
        x = [made.emit("FULLY_CONNECTED", [x[0], kernel, offsets], y, fusedActivationFunction="NONE")]
    made.outputs = x
    return made


def outputs(content: bytes) -> np.ndarray:
    codes = np.random.default_rng(0).integers(-128, 128, (40, SIDE)).astype(np.int8)
    return probe(content, "tflm", [codes])[0]


@needs_tflm
def test_each_tensor_gets_the_form_with_the_fewest_bytes():
    made = program(*KERNELS)
    plain = to_bytes(made, TFLM, {})
    content, decoding = smaller_file(made, TFLM, {}, storing_of("auto"))
    file = read_model(content)
    assert {t.name.split("/")[0]: t.storage for t in file.tables} == FORMS
    assert decoding is not None
    assert dict(decoding.tensors) == {
        key: (f"{name}/kernel",) for name, key in sorted(FORMS.items(), key=lambda f: f[1])
    }
    types = {t.name.split("/")[0]: t.type for t in file.tensors if t.name.endswith("kernel")}
    assert types["nibbles"] == "INT4" and types["even"] == "INT8"
    assert decoding.weights == 3 * SIDE * SIDE <= decoding.lookups
    assert decoding.saved_bytes == len(plain) - len(content)
    grown = memory_plan(file).size_bytes - memory_plan(read_model(plain)).size_bytes
    assert decoding.arena_growth_bytes > grown >= SIDE * SIDE
    assert np.array_equal(outputs(plain), outputs(content))
    # the program is as it was, and none of the forms alone makes it smaller
    assert to_bytes(made, TFLM, {}) == plain
    alone = [len(smaller_file(made, TFLM, {}, storing_of(key))[0]) for key in ("lut", "prune", "huffman")]
    assert len(content) < min(alone)


ALIKE = {f"alike{n}": np.clip(np.rint(RNG.normal(size=(SIDE, SIDE)) * 30), -127, 127) for n in range(3)}


@needs_tflm
def test_kernels_of_alike_codes_share_their_tables(monkeypatch):
    monkeypatch.setattr(f"{__name__}.KERNELS", {**KERNELS, **ALIKE})
    made = program(*ALIKE, "zeros", "peaked")
    plain = to_bytes(made, TFLM, {})
    content, decoding = smaller_file(made, TFLM, {}, storing_of("auto"))
    file = read_model(content)
    headers = {t.name.split("/")[0]: t.tables for t in file.tables}
    assert len({headers[name] for name in ALIKE}) == 1 and headers["zeros"] != headers["alike0"]
    # other codes, other tables: what is much shorter by itself does not join
    assert headers["peaked"] != headers["alike0"]
    first, *others = [t.stored_bytes for t in file.tables if t.name.startswith("alike")]
    assert all(size < first - 100 for size in others)  # which count no tables
    assert np.array_equal(outputs(plain), outputs(content))
    parts = {part.name: part.bytes for part in kquant.layer_bytes(content).parts}
    coded = sum(size for name, size in parts.items() if "Huffman" in name or "masks" in name)
    assert 0 <= coded - sum(t.stored_bytes for t in file.tables) <= 4 * 2 * len(file.tables)
    # each by itself takes more
    monkeypatch.setattr(kquant.Huffman, "store_together", lambda self, tensors: None)
    alone, cost = smaller_file(made, TFLM, {}, storing_of("auto"))
    assert len(content) < len(alone) - 200 and decoding.weights >= cost.weights
    assert decoding.lookups >= decoding.weights


def test_nothing_to_gain_leaves_the_file_alone_or_is_refused():
    made = program("even")
    plain = to_bytes(made, TFLM, {})
    assert smaller_file(made, TFLM, {}, storing_of("auto")) == (plain, None)
    for key, remedy in (("lut", "Cluster"), ("prune", "Prune"), ("huffman", "4 bits, clustered or pruned")):
        with pytest.raises(ValueError, match=f"no weights get smaller.*{remedy}") as error:
            smaller_file(made, TFLM, {}, storing_of(key))
        # tables cannot hold so many values; of the others it is told what they would take
        assert ("Nearest is 'even/kernel': 9,216 bytes as it is" in str(error.value)) == (key != "lut")
    for storage in (kquant.BitMasks(("even",)), kquant.Huffman(("even",))):
        with pytest.raises(ValueError, match="'even/kernel' gets no smaller: 9216 bytes as it is"):
            smaller_file(made, TFLM, {}, Storing((storage,)))


def test_codes_of_four_bits_are_packed_where_the_kernel_takes_them():
    content, decoding = smaller_file(program("nibbles"), TFLM, {}, storing_of("auto"))
    assert decoding is None and "INT4" in {t.type for t in read_model(content).tensors}
    if "tflm" in available():
        assert np.array_equal(outputs(to_bytes(program("nibbles"), TFLM, {})), outputs(content))
    # without a bias TFLM's kernel refuses 4 bits: they come as codes or tables
    content, decoding = smaller_file(program("nibbles", bias=False), TFLM, {}, storing_of("auto"))
    assert decoding is not None and "INT4" not in {t.type for t in read_model(content).tensors}


@needs_tflm
def test_a_budget_keeps_the_arena():
    made = program("peaked", "zeros", "levels")
    plain = to_bytes(made, TFLM, {})
    before = arena_bytes(plain)
    for budget in (0, SIDE * SIDE - 1, SIDE * SIDE + 208, 10 * SIDE * SIDE):
        content, decoding = smaller_file(made, TFLM, {}, storing_of("auto", budget))
        assert arena_bytes(content) - before <= budget
        assert (decoding is None) == (budget < SIDE * SIDE)
    with pytest.raises(ValueError, match="budget=64 bytes of arena: '.*/kernel' alone takes 9,216 where it is decoded"):
        smaller_file(made, TFLM, {}, storing_of("prune", 64))
    with pytest.raises(ValueError, match="'peaked/kernel' takes 9,216 bytes of arena.*decode_budget=64"):
        smaller_file(made, TFLM, {}, Storing((kquant.Huffman(("peaked",)),), budget_bytes=64))


def test_arguments_that_do_not_go_together():
    with pytest.raises(ValueError, match="decode_budget is for weights that are decoded; give compression='auto'"):
        storing_of(None, 64)
    for wrong in (-1, True, "4 apples", float("nan"), 1.5):
        with pytest.raises(ValueError, match="decode_budget must be a whole number of bytes of arena, 0 or more"):
            storing_of("auto", wrong)
    assert storing_of("auto", 4e3).budget_bytes == 4000 and storing_of("auto", "4KB").budget_bytes == 4096
    for other in (("auto", "lut"), 3, True, kquant.Huffman, [kquant.Huffman], [], (), {"lut": 1}, [["lut"]]):
        with pytest.raises(ValueError, match="compression must be None, 'auto', 'lut'"):
            storing_of(other)
    for names in (3, (), [], "", (3,), ("",)):
        with pytest.raises(ValueError, match="Huffman: names is a tuple of names of layers or tensors"):
            kquant.Huffman(names=names)
    assert kquant.Huffman(names=["head"]).names == ("head",)
    for bits in ("4", 0, 8, None, True, 2.5):
        with pytest.raises(ValueError, match="max_bits must be a whole number, 1 to 7"):
            kquant.LookUpTables(max_bits=bits)


@pytest.mark.parametrize("flash_bytes", [None, 20_000])
def test_compress_refuses_a_form_before_any_work(flash_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr("kquant.app.pipeline.prepare", lambda *_, **__: pytest.fail("it has begun"))
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    forms = [{"decode_budget": "4 apples", "compression": "auto"}, {"io": "float"}, {"compression": 3}]
    for form in forms:
        said = f"{next(iter(form))}.*Received: |leave compression=3 out"
        with pytest.raises(ValueError, match=said):
            kquant.compress(model, np.ones((8, 4)), path=tmp_path / "m", target="tflm", flash_bytes=flash_bytes, **form)


def test_without_the_runtime_a_coded_file_is_not_written(monkeypatch):
    monkeypatch.setattr("kquant.exporting.stored_check.available", lambda: ["litert"])
    check_runtime(())
    with pytest.raises(ValueError, match=r"bit masks.*pip install 'kquant\[micro\]'"):
        check_runtime(("prune",))


@pytest.fixture(scope="module")
def qmodel():
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((6, 6, 8), name="x")
    x = layers.Conv2D(48, 3, activation="relu", name="conv")(x)
    model = keras.Model(inputs, layers.Dense(24, name="head")(layers.Flatten()(x)))
    kernel = model.get_layer("head").kernel
    kernel.assign(kernel * (RNG.random(kernel.shape) < 0.1))
    data = RNG.normal(size=(32, 6, 6, 8)).astype("float32")
    return kquant.calibrate(kquant.quantize(model, target="tflm"), data, verbose=False)


@needs_tflm
def test_a_model_is_exported_and_the_report_tells_the_cost(qmodel, tmp_path):
    plain = kquant.export(qmodel, tmp_path / "plain.tflite")
    made = kquant.export(qmodel, tmp_path / "auto.tflite", compression="auto")
    assert plain.decoding is None and made.decoding is not None
    assert all(a.equal == 1.0 for a in made.verification[0].agreements)
    assert "head/kernel" in [name for names in made.decoding.tensors.values() for name in names]
    assert made.decoding.saved_bytes == plain.file_bytes - made.file_bytes > 0
    assert made.arena_bytes is not None and plain.arena_bytes is not None
    assert made.decoding.arena_growth_bytes >= made.arena_bytes - plain.arena_bytes
    text = report.render(made)
    assert "each call decodes" in " ".join(text.split()) and '"arena_growth_bytes"' in report.to_json(made)


def test_targets_without_a_decode_are_named(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="head")])
    q = kquant.calibrate(kquant.quantize(model), RNG.normal(size=(64, 4)).astype("float32"), verbose=False)
    for compression in ("auto", "prune", "huffman"):
        with pytest.raises(ValueError, match="decoded by TensorFlow Lite Micro alone; quantize with target='tflm'"):
            kquant.export(q, tmp_path / "m.tflite", compression=compression)
    assert not list(tmp_path.iterdir())


def test_weights_that_another_operator_reads_too_are_refused_by_name():
    made = program("zeros")
    kernel = made.operators[0].inputs[1]
    assert kernel is not None
    y = made.value("sum", (SIDE, SIDE), grid())
    made.emit("ADD", [kernel, kernel], y)
    made.outputs = [*made.outputs, y]
    assert smaller_file(made, TFLM, {}, storing_of("auto"))[1] is None
    with pytest.raises(ValueError, match="'zeros' cannot be stored in bit masks.*read by ADD, FULLY_CONNECTED"):
        smaller_file(made, TFLM, {}, Storing((kquant.BitMasks(("zeros",)),)))


@needs_tflm
def test_a_project_registers_what_decodes(qmodel, tmp_path):
    data = RNG.normal(size=(8, 6, 6, 8)).astype("float32")
    made = kquant.bundle(qmodel, tmp_path / "firmware", data=data, compression="auto")
    text = "".join((tmp_path / "firmware" / name).read_text() for name in made.files if name.endswith((".h", ".cc")))
    assert text.count("AddDecode()") == 1


def pruned(recipe: dict) -> tuple[keras.Model, np.ndarray]:
    """A table of rows, a convolution and a matrix with four of five weights zero."""
    keras.utils.set_random_seed(2)
    rng = np.random.default_rng(2)
    x = inputs = keras.Input((24,), dtype="int32", name="words")
    x = layers.Embedding(64, 32, name="table")(x)
    x = layers.Conv1D(32, 3, activation="relu", name="conv")(x)
    model = keras.Model(inputs, layers.Dense(48, name="head")(layers.GlobalAveragePooling1D()(x)))
    for layer in (model.get_layer(name) for name in ("table", "conv", "head")):
        weights = layer.embeddings if layer.name == "table" else layer.kernel
        weights.assign(weights * (rng.random(weights.shape) < 0.2))
    data = rng.integers(0, 64, (64, 24)).astype("int32")
    return kquant.calibrate(kquant.quantize(model, recipe, target="tflm"), data, verbose=False), data


RECIPES = (
    {"name": "wide", "activations": {"bits": 16, "symmetric": True}},
    {"name": "packed", "weights": {"bits": 4}},
    {"name": "int8"},
)


@needs_tflm
@pytest.mark.filterwarnings("ignore:quantize. TensorFlow Lite Micro .* has no 16-bit kernel for table")
@pytest.mark.parametrize("form", ["prune", "huffman"])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe["name"])
def test_every_width_comes_back(recipe, form, tmp_path):
    q, data = pruned(recipe)
    plain = kquant.export(q, tmp_path / "plain.tflite", data=data)
    made = kquant.export(q, tmp_path / "coded.tflite", data=data, compression=form)
    assert made.decoding is not None and made.file_bytes < plain.file_bytes
    assert {"conv/kernel", "head/kernel", "table/embeddings"} == set(made.decoding.tensors[form])
    expected, found = (kquant.predict(tmp_path / f"{name}.tflite", data, "tflm") for name in ("plain", "coded"))
    np.testing.assert_array_equal(expected, found)
    assert ("INT4" in plain.types) == (recipe["name"] == "packed") and "INT4" not in made.types
    assert ("INT16" in made.types) == (recipe["name"] == "wide")


@pytest.fixture(scope="module")
def called_twice():
    """A layer of 85 % zeros that is called twice, with another one between: one tensor under two names."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    shared = layers.Dense(64, name="shared", activation="relu")
    inputs = keras.Input((64,))
    x = shared(layers.Dense(64, name="mid")(shared(inputs)))
    model = keras.Model(inputs, layers.Dense(4, name="out")(x))
    shared.kernel.assign(shared.kernel.numpy() * (rng.random((64, 64)) < 0.15))
    data = rng.normal(size=(64, 64)).astype("float32")
    return kquant.calibrate(kquant.quantize(model, target="tflm"), data, verbose=False)


@needs_tflm
@pytest.mark.parametrize("name", ["shared/kernel", "shared/kernel_1", "shared"])
def test_any_name_of_a_shared_tensor_will_do(called_twice, name, tmp_path):
    """By one of its names alone a tensor had to be stored both ways, and the file got no smaller."""
    plain = kquant.export(called_twice, tmp_path / "plain.tflite")
    made = kquant.export(called_twice, tmp_path / "m.tflite", compression=kquant.BitMasks(names=(name,)))
    assert made.file_bytes < plain.file_bytes - 1000
    assert dict(made.decoding.tensors) == {"prune": ("shared/kernel", "shared/kernel_1")}


@needs_tflm
def test_the_report_tells_the_one_form_of_a_shared_tensor(called_twice, tmp_path):
    """It told of bit masks and of Huffman codes, and the file had one of them."""
    both = [kquant.BitMasks(names=("shared/kernel",)), kquant.Huffman(names=("shared/kernel_1",))]
    made = kquant.export(called_twice, tmp_path / "m.tflite", compression=both)
    (told,) = made.decoding.tensors
    assert {table.storage for table in read_model((tmp_path / "m.tflite").read_bytes()).tables} == {told}
    assert made.decoding.tensors[told] == ("shared/kernel", "shared/kernel_1")


@pytest.fixture(scope="module")
def recurrent():
    """An LSTM of many zeros, and a small head."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((10, 16)), layers.LSTM(48, name="lstm"), layers.Dense(4, name="head")])
    for weights in model.get_layer("lstm").trainable_weights[:2]:
        weights.assign(weights.numpy() * (rng.random(weights.shape) > 0.85))
    data = rng.normal(size=(64, 10, 16)).astype("float32")
    return kquant.calibrate(kquant.quantize(model, target="tflm"), data, verbose=False)


def test_weights_that_nothing_decodes_are_told(recurrent, tmp_path):
    """It said that all codes occur about as often, or nothing at all."""
    options = {"check_runtimes": False, "path": tmp_path / "m.tflite"}
    said = "'lstm/.* stay as they are: UNIDIRECTIONAL_SEQUENCE_LSTM reads them, and not decoded"
    with pytest.raises(ValueError, match=f"export: no weights get smaller.*{said}"):
        kquant.export(recurrent, compression="huffman", **options)
    with pytest.warns(UserWarning, match=f"export: {said}"):
        assert kquant.export(recurrent, compression="auto", **options).decoding is None
