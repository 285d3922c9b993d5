"""LiteRT Quantizer's JSON recipes: read, written, refused by key; and loaded by that tool where it is installed."""

import copy
import importlib
import importlib.util
import json
import warnings

import keras
import numpy as np
import pytest

import kquant
from kquant.recipe import litert_quantizer, recipe

layers = keras.layers
TOOLS = [name for name in ("litert_quantizer", "ai_edge_quantizer") if importlib.util.find_spec(name)]


def tensor(bits=8, symmetric=True, granularity="CHANNELWISE", dtype="INT"):
    return {"num_bits": bits, "symmetric": symmetric, "granularity": granularity, "dtype": dtype}


def static(regex=".*", operation="*", bits=8, **weights):
    config = {
        "activation_tensor_config": tensor(bits, bits == 16, "TENSORWISE"),
        "weight_tensor_config": tensor(**weights),
        "compute_precision": "INTEGER",
        "explicit_dequantize": False,
        "skip_checks": False,
        "min_weight_elements": 0,
    }
    return {"regex": regex, "operation": operation, "algorithm_key": "min_max_uniform_quantize", "op_config": config}


def kept_float(regex=".*", operation="*"):
    return {"regex": regex, "operation": operation, "algorithm_key": "no_quantize"}


def changed(path, value):
    """The static entry with one key changed."""
    entry = copy.deepcopy(static())
    inner = entry
    *outer, last = path.split(".")
    for key in outer:
        inner = inner[key]
    inner[last] = value
    return entry


def read(*entries):
    return kquant.recipe_from_aeq(list(entries))


def test_static_entries_are_the_recipe():
    found = read(static(), static("head", bits=16), static(operation="FULLY_CONNECTED", granularity="TENSORWISE"))
    assert (found.mode, found.activations.bits, found.activations.observer) == ("static", 8, "minmax")
    assert [(r.layer, r.type) for r in found.rules] == [(None, "Dense"), ("*head*", None)]  # by first use of a regex
    assert found.settings([("conv", "Conv2D")], None).weights.per_axis
    assert not found.settings([("other", "Dense")], None).weights.per_axis
    assert found.settings([("my_head", "Softmax")], None).activations.bits == 16


def test_other_ways_to_compute():
    dynamic, weight_only, half = (copy.deepcopy(static()) for _ in range(3))
    for entry in (dynamic, weight_only, half):
        del entry["op_config"]["activation_tensor_config"]
    for entry in (weight_only, half):
        entry["op_config"] |= {"compute_precision": "FLOAT", "explicit_dequantize": True}
    half["algorithm_key"] = "float_casting"
    half["op_config"]["weight_tensor_config"] = tensor(16, True, "TENSORWISE", "FLOAT")
    assert [read(e).mode for e in (dynamic, weight_only, half)] == ["dynamic", "weight-only", "weight-only"]
    assert read(half).weights.dtype == "float16"
    with pytest.raises(ValueError, match=r"2 ways to compute \(dynamic, static\)"):
        read(static(), {**dynamic, "regex": "head"})
    with pytest.raises(ValueError, match="'no_quantize' for single layers beside dynamic ones"):
        read(dynamic, kept_float("head"))


def test_float_layers_and_what_no_entry_names():
    found = read(static(), kept_float("^stem"))
    assert found.settings([("stem_1", "Conv2D")], None).stays_float
    assert not found.settings([("body", "Conv2D")], None).stays_float
    found = read(static("body"))
    assert not found.settings([("body", "Conv2D")], None).stays_float
    assert found.settings([("head", "Conv2D")], None).stays_float


def test_the_last_entry_of_a_regex_and_operation_holds():
    found = read(static(), static("a", "CONV_2D", bits=4), static("a", "CONV_2D"))
    assert [r.weights["bits"] for r in found.rules] == [8]
    found = read(static("a", "CONV_2D"), static(), static("a", granularity="TENSORWISE"))
    assert found.settings([("a", "Conv2D")], None).weights.per_axis  # the entry for all regexes came later


@pytest.mark.parametrize(
    ("regex", "pattern"),
    [
        ("head", "*head*"),
        ("^head$", "head"),
        ("block_.*/conv", "*block_*/conv*"),
        (r"a\.b.", "*a.b?*"),
        ("^head.*", "head*"),
    ],
)
def test_regexes_of_names_are_patterns(regex, pattern):
    assert read(static(), static(regex)).rules[0].layer == pattern


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (static("conv[0-9]+"), r"regex: 'conv\[0-9\]\+' is more than names"),
        (static(".*", "TRANSPOSE"), "operation: TRANSPOSE belongs to no single Keras class"),
        (changed("algorithm_key", "GPTQ"), "algorithm_key: 'GPTQ' has no counterpart.*call kquant.gptq"),
        (changed("op_config.skip_checks", True), "op_config.skip_checks: kquant checks every layer"),
        (changed("op_config.min_weight_elements", 9), "op_config.min_weight_elements: kquant has no such limit"),
        (changed("op_config.compute_precision", "FLOAT"), "compute_precision: FLOAT with explicit_dequantize=False"),
        (changed("op_config.weight_tensor_config", None), "weight_tensor_config: it is missing"),
        (changed("op_config.weight_tensor_config.granularity", "BLOCKWISE_32"), "granularity: BLOCKWISE_32 has no"),
        (changed("op_config.weight_tensor_config.symmetric", False), "kquant's weights are symmetric INT"),
        (changed("op_config.weight_tensor_config.algorithm_params", {}), "algorithm_params: it has no counterpart"),
        (changed("op_config.activation_tensor_config.dtype", "UINT"), "dtype: UINT; kquant computes in int8 and int16"),
        (changed("op_config.activation_tensor_config.granularity", "CHANNELWISE"), "activations have one scale"),
        (changed("op_config.weight_tensor_config.num_bits", 32), "weights: bits: expected 2 to 8"),
        (changed("extra", 1), r"entry 1\.extra: it has no counterpart"),
        ({"regex": ".*", "operation": "*"}, "algorithm_key: it is missing"),
        ({**changed("algorithm_key", "float_casting")}, "dtype: float_casting means FLOAT of 16 bits"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_key(entry, message):
    with pytest.raises(ValueError, match=message):
        read(static(), entry) if entry["operation"] != "*" or entry["regex"] != ".*" else read(static("x"), entry)


RECIPES = {
    "int8": {"activations": {"observer": "minmax"}},
    "int16": {"activations": {"observer": "minmax", "bits": 16, "symmetric": True}, "weights": {"per_axis": False}},
    "int4": {"activations": {"observer": "minmax"}, "weights": {"bits": 4}},
    "dynamic": {"mode": "dynamic"},
    "weight-only": {"mode": "weight-only"},
    "float16": {"mode": "weight-only", "weights": {"dtype": "float16"}},
    "rules": {
        "activations": {"observer": "minmax"},
        "rules": [
            {"layer": "stem_*", "float": True},
            {"type": "Dense", "weights": {"bits": 4, "per_axis": False}, "activations": {"bits": 8}},
            {"layer": "x?.y", "type": "Conv2D", "weights": {"bits": 8, "per_axis": True}, "activations": {"bits": 16}},
        ],
    },
}


def settings(found):
    """What a recipe says of some layers, as far as the format goes."""
    names = [("stem_1", "Conv2D"), ("a", "Dense"), ("x1.y", "Conv2D"), ("x1zy", "Conv2D"), ("b", "Add")]
    rows = []
    for name, kind in names:
        said = found.settings([(name, kind)], None)
        activations, weights, stays_float = said.activations, said.weights, said.stays_float
        rows.append((stays_float, None if stays_float else activations.spec().bits, weights.spec(), weights.dtype))
        if found.mode == "static" and stays_float:
            rows[-1] = True
    return found.mode, rows


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_written_reads_back(name):
    wanted = kquant.Recipe(name=name, **RECIPES[name])
    entries = json.loads(json.dumps(kquant.recipe_to_aeq(wanted)))
    again = kquant.recipe_from_aeq(entries)
    assert settings(again) == settings(wanted)
    assert kquant.recipe_to_aeq(again) == entries


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rules": [{"position": "first", "float": True}]}, "rule 0: position: .*Name the layer"),
        ({"rules": [{"layer": "a", "skip": True}]}, "rule 0: skip: .*Take float = true"),
        ({"rules": [{"type": "PReLU", "float": True}]}, "rule 0: type: PReLU is no single TFLite operation"),
        ({"rules": [{"layer": "a*", "weights": {"bits": 4}}, {"layer": "ab", "weights": {"per_axis": False}}]},
         r"rule 1: rules add up key by key .*Repeat weights\.bits in it"),
        ({"weights": {"kind": "power-of-two"}}, "weights.kind: LiteRT Quantizer has uniform grids only"),
        ({"weights": {"dtype": "float16"}}, "weights.dtype: .*float16 in weight-only"),
        ({"activations": {"observer": "minmax", "signed": False}}, "activations.signed"),
        ({"pruning": {"sparsity": 0.5}}, r"mine': pruning: .*Train .* first.*kquant.strip makes.*without \[pruning\]"),
        ({"clustering": {"clusters": 16}}, r"mine': clustering: .*kquant.strip makes of that"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused_by_key(values, message):
    values = {"activations": {"observer": "minmax"}, **values}
    with pytest.raises(ValueError, match=message):
        kquant.recipe_to_aeq(kquant.Recipe(name="mine", **values))


def test_observers_have_no_place():
    with pytest.warns(UserWarning, match=r"activations.observer = 'percentile' has no place"):
        kquant.recipe_to_aeq("int8")


def test_what_trains_has_no_place_and_is_said():
    grids = [{"layer": "a", "weights": {"bits": 4}}, {"layer": "b", "float": True}]
    rules = [{"layer": "a", "training": {"ranges": "fixed"}}, {"layer": "a", "pruning": {"sparsity": 0.8}}]
    plain = {"name": "mine", "activations": {"observer": "minmax"}, "rules": grids}
    expected = kquant.recipe_to_aeq(plain)
    assert len(expected) == 3
    with pytest.warns(UserWarning, match=r"mine': training, steps, training of rules: .*no place for them"):
        found = kquant.recipe_to_aeq(
            {**plain, "training": {"ranges": "learned"}, "steps": ["calibrate", "adaround"], "rules": [*grids, *rules]}
        )
    assert found == expected


@pytest.mark.parametrize("name", [n for n in recipe.names() if n.startswith(("prune", "cluster"))])
def test_recipes_that_prune_or_cluster_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}': (pruning|clustering): LiteRT Quantizer takes weights as they are"):
        kquant.recipe_to_aeq(name)


def test_a_json_file_is_a_recipe_everywhere(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([static(), static(operation="FULLY_CONNECTED", granularity="TENSORWISE")]))
    assert recipe.load(path).name == "mine"
    model = keras.Sequential([keras.Input((8, 4)), layers.Conv1D(3, 3, name="conv"), layers.Dense(2, name="head")])
    x = np.random.default_rng(0).normal(size=(64, 8, 4)).astype("float32")
    kquant.compress(model, x, path, path=tmp_path / "m.tflite", verbose=False)
    scales = {t.name: len(t.scale) for t in kquant.inspect(tmp_path / "m.tflite").tensors if "kernel" in t.name}
    assert scales == {"conv/kernel": 3, "head/kernel": 1}


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="no file .*gone.json"):
        recipe.load(tmp_path / "gone.json")
    (tmp_path / "bad.json").write_text("[")
    with pytest.raises(ValueError, match="bad.json: not JSON"):
        recipe.load(tmp_path / "bad.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="other.json: expected LiteRT Quantizer's recipe"):
        recipe.load(tmp_path / "other.json")


def test_patterns_match_one_part_of_a_tensor_name():
    import re

    written = litert_quantizer._regex("stem_*")
    assert re.search(written, "net/stem_1/Conv2D;net/norm")
    assert not re.search(written, "net/my_stem_1/Conv2D")


@pytest.mark.skipif(not TOOLS, reason="LiteRT Quantizer is not installed")
@pytest.mark.parametrize("name", RECIPES)
def test_the_tool_loads_what_is_written(name):
    manager = importlib.import_module(f"{TOOLS[0]}.recipe_manager").RecipeManager()
    entries = json.loads(json.dumps(kquant.recipe_to_aeq(kquant.Recipe(name=name, **RECIPES[name]))))
    manager.load_quantization_recipe(entries)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = json.loads(json.dumps(manager.get_quantization_recipe()))
    assert settings(kquant.recipe_from_aeq(again)) == settings(kquant.recipe_from_aeq(entries))
