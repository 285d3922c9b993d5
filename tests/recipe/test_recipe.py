"""Recipes are strict: an unknown key names the nearest one, the last matching rule wins, and what they say happens."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import kquant
from kquant.layers.nodes import Compressed, FakeQuant
from kquant.recipe import recipe as recipes
from kquant.recipe.recipe import LayerRule, Recipe

pytestmark = pytest.mark.filterwarnings(
    "ignore:cluster. left as they are",
    r"ignore:quantize. activations of \d+ bits are simulated only",
    "ignore:quantize. weights that are simulated only",
)

X = np.float32(np.random.default_rng(0).normal(size=(64, 6)))


def model() -> keras.Model:
    keras.utils.set_random_seed(1)
    parts = [
        layers.Dense(5, activation="relu", name="stem"),
        layers.Dense(4, name="body"),
        layers.Dense(3, name="head_a"),
    ]
    return keras.Sequential([keras.Input((6,), name="x"), *parts])


def compressed(q: keras.Model) -> dict[str, Compressed]:
    return {layer.name: layer for layer in q.layers if isinstance(layer, Compressed)}


def test_a_file_names_a_recipe_that_says_no_name(tmp_path: Path) -> None:
    path = tmp_path / "better.toml"
    path.write_text('steps = [{ name = "equalize" }, { name = "calibrate" }]\n')
    assert recipes.load(path).name == "better"
    path.write_text('name = "mine"\n')
    assert recipes.load(path).name == "mine"


@pytest.mark.parametrize("name", recipes.names())
def test_shipped_recipes_load_and_export(name: str, tmp_path: Path) -> None:
    recipe = recipes.load(name)
    assert recipe.name == name and recipe.title
    q = kquant.calibrate(kquant.quantize(model(), name), X, verbose=False)
    assert kquant.export(q, tmp_path / "m.tflite").recipe == name


def test_one_recipe_in_four_forms(tmp_path: Path) -> None:
    text = 'name = "mine"\nfold = false\n[[rules]]\ntype = "Dense"\nweights = { per_axis = false }\n'
    (tmp_path / "mine.toml").write_text(text)
    plain = {"name": "mine", "fold": False, "rules": [{"type": "Dense", "weights": {"per_axis": False}}]}
    built = Recipe(name="mine", fold=False, rules=(LayerRule(type="Dense", weights={"per_axis": False}),))
    found = [recipes.load(form) for form in (tmp_path / "mine.toml", str(tmp_path / "mine.toml"), plain, built)]
    assert all(recipe == built for recipe in found)


def test_defaults_are_the_int8_recipe() -> None:
    shipped = recipes.load("int8").model_copy(update={"title": ""})
    assert shipped == Recipe(name="int8")


RULES: dict[str, tuple[list[dict[str, Any]], dict[str, bool]]] = {
    "by name": ([{"layer": "body"}], {"stem": True, "body": False, "head_a": True}),
    "by pattern": ([{"layer": "*o*y"}], {"stem": True, "body": False, "head_a": True}),
    "by type": ([{"type": "Dense"}], {"stem": False, "body": False, "head_a": False}),
    "first": ([{"position": "first"}], {"stem": False, "body": True, "head_a": True}),
    "last": ([{"position": "last"}], {"stem": True, "body": True, "head_a": False}),
    "all conditions": (
        [{"type": "Dense", "layer": "s*", "position": "first"}],
        {"stem": False, "body": True, "head_a": True},
    ),
}


@pytest.mark.parametrize("kind", RULES)
def test_rules_match(kind: str) -> None:
    rules, expected = RULES[kind]
    rules = [{**rule, "weights": {"per_axis": False}} for rule in rules]
    q = kquant.quantize(model(), {"name": "r", "rules": rules})
    assert {name: layer.spec.per_axis for name, layer in compressed(q).items()} == expected


def test_rules_name_layers_with_brackets() -> None:
    x = keras.Input((6,))
    named = keras.Model(x, layers.Dense(2, name="a[0]*")(layers.Dense(3, name="body")(x)))
    rules = [{"layer": "a[0]*", "weights": {"per_axis": False}}]
    q = kquant.quantize(named, {"name": "r", "rules": rules})
    assert [c.spec.per_axis for c in compressed(q).values()] == [True, False]


def test_last_match_wins_key_by_key() -> None:
    rules = [
        {"type": "Dense", "weights": {"bits": 4, "per_axis": False}},
        {"layer": "head_*", "weights": {"bits": 8}},
        {"layer": "stem", "weights": {"per_axis": True}},
    ]
    specs = {name: c.spec for name, c in compressed(kquant.quantize(model(), {"name": "r", "rules": rules})).items()}
    assert [(s.bits, s.per_axis) for s in specs.values()] == [(4, True), (4, False), (8, False)]


def test_observer_of_one_layer() -> None:
    recipe = {"name": "r", "rules": [{"layer": "body", "activations": {"observer": "moving-average"}}]}
    q = kquant.quantize(model(), recipe)
    observers = {x.name: x.observer for x in q.layers if isinstance(x, FakeQuant)}
    assert observers["body_quant"] == "moving-average"
    assert observers["x_quant"] == Recipe(name="r").activations.observer


def test_narrow_weights_stay_on_their_grid_in_the_file(tmp_path: Path) -> None:
    q = kquant.quantize(model(), {"name": "r", "weights": {"bits": 4}})
    kquant.calibrate(q, X, verbose=False)
    report = kquant.export(q, tmp_path / "m.tflite", data=X)
    assert all(run.agreements[0].max_err_lsb <= 1 for run in report.verification)
    codes, _, _ = compressed(q)["stem"].codes(np.float32(0.1))
    assert np.abs(codes).max() == 7


def test_symmetric_activations_have_zero_point_0() -> None:
    q = kquant.quantize(model(), {"name": "r", "activations": {"symmetric": True}})
    kquant.calibrate(q, X + 1.0, verbose=False)
    points = [float(x.grid()[1]) for x in q.layers if isinstance(x, FakeQuant) and x.has_range]
    assert points and not any(points)


def test_training_settings_reach_the_layers() -> None:
    given = {"name": "r", "training": {"momentum": 0.9, "freeze_ranges_after": 7}}
    q = kquant.quantize(model(), given)
    nodes = [x for x in q.layers if isinstance(x, FakeQuant)]
    assert all(x.momentum == 0.9 and x.freeze_after == 7 for x in nodes)
    assert all((x.origin.recipe, x.origin.target) == ("r", "litert") for x in nodes)
    assert all(x.origin.load_recipe() == recipes.load(given) for x in nodes)


def test_fold_is_a_choice() -> None:
    x = keras.Input((6,))
    normed = keras.Model(x, layers.BatchNormalization()(layers.Dense(4)(x)))
    counts = [len(compressed(kquant.quantize(normed, {"name": "r", "fold": fold}))) for fold in (True, False)]
    assert counts == [1, 2]


def test_skipped_layers_stay_float_and_export_names_them(tmp_path: Path) -> None:
    q = kquant.quantize(model(), {"name": "r", "rules": [{"layer": "body", "skip": True}]})
    kquant.calibrate(q, X, verbose=False)
    with pytest.raises(ValueError, match=r"the recipe skips body: .*write float = true"):
        kquant.export(q, tmp_path / "m.tflite")


def test_widths_without_a_kernel_are_told_before_any_training() -> None:
    recipe = {"name": "r", "activations": {"bits": 4}, "rules": [{"layer": "body", "activations": {"bits": 3}}]}
    with pytest.warns(UserWarning, match=r"activations of 3 and 4 bits are simulated only: kquant.export") as caught:
        kquant.quantize(model(), recipe)
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kquant.quantize(model(), {"name": "r", "activations": {"bits": 16}, "weights": {"bits": 5}})


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "section": (
        {"name": "r", "activation": {}},
        r"recipe: unknown key 'activation'. Did you mean 'activations'\? Known here: name, ",
    ),
    "key": (
        {"name": "r", "weights": {"bit": 8}},
        r"unknown key 'weights.bit'. Did you mean 'bits'\? Known here: bits, unpacked_bits, symmetric, ",
    ),
    "key of a rule": (
        {"name": "r", "rules": [{"layers": "a"}]},
        r"unknown key 'rules.0.layers'. Did you mean 'layer'\?",
    ),
    "key inside a rule": (
        {"name": "r", "rules": [{"layer": "a"}, {"layer": "b", "weights": {"bitz": 4}}]},
        r"rules.1.weights: unknown key 'bitz'. Did you mean 'bits'\?",
    ),
    "value": ({"name": "r", "activations": {"bits": 77}}, "activations.bits: expected 2 to 16. Received: 77"),
    "value inside a rule": (
        {"name": "r", "rules": [{"layer": "a", "weights": {"bits": 1}}]},
        "rules.0.weights: bits: expected 2 to 8. Received: 1",
    ),
    "one rule, no list": (
        {"rules": {"layer": "a"}},
        r"rules: expected a list, like \[\{ ... \}\]. Received: {'layer': 'a'}",
    ),
    "one step, no list": ({"steps": "calibrate"}, r"steps: expected a list, like .*Received: 'calibrate'"),
    "type": ({"name": "r", "fold": "maybe"}, "fold: .*boolean.*Received: 'maybe'"),
    "asymmetric weights": ({"name": "r", "weights": {"symmetric": False}}, "weights.symmetric: .*Received: False"),
    "rule without condition": (
        {"name": "r", "rules": [{"skip": True}]},
        "rules.0: a rule needs layer, type or position",
    ),
    "position": (
        {"name": "r", "rules": [{"position": "middle"}]},
        "rules.0.position: .*'first' or 'last'. Received: 'middle'",
    ),
}


def test_a_recipe_needs_no_name(tmp_path: Path) -> None:
    four = {"weights": {"bits": 4}}
    (tmp_path / "nn.toml").write_text("[weights]\nbits = 4\n")
    made = {"dict": recipes.load(four), "file": recipes.load(tmp_path / "nn.toml"), "class": recipes.Recipe(**four)}
    assert {how: recipe.name for how, recipe in made.items()} == {"dict": "custom", "file": "nn", "class": "custom"}
    assert all(recipe.weights.bits == 4 for recipe in made.values())
    assert recipes.load(made["dict"].plain()) == made["dict"] == made["class"]
    with pytest.raises(ValueError) as told:
        recipes.load({"weights": {"bits": 17}})
    assert str(told.value).startswith("recipe: weights.bits: "), "the fault, and nothing in front of it"


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_recipes_are_refused(kind: str) -> None:
    recipe, message = WRONG[kind]
    with pytest.raises(ValueError, match=message):
        recipes.load(recipe)


TYPES: dict[str, tuple[dict[str, Any], str]] = {
    "text for a width": ({"activations": {"bits": "8"}}, "activations.bits: .*integer. Received: '8'"),
    "8.0 for a width": ({"weights": {"bits": 8.0}}, "weights.bits: .*integer. Received: 8.0"),
    "true for a width": ({"weights": {"bits": True}}, "weights.bits: .*integer. Received: True"),
    "a word for a flag": ({"activations": {"symmetric": "no"}}, "activations.symmetric: .*boolean. Received: 'no'"),
    "0 for a flag": ({"weights": {"per_axis": 0}}, "weights.per_axis: .*boolean. Received: 0"),
    "text for a number": ({"training": {"momentum": "0.9"}}, "training.momentum: .*number. Received: '0.9'"),
    "nested": ({"training": {"progressive": {"steps": 3.0}}}, "training.progressive.steps: .*integer. Received: 3.0"),
    "pruning": ({"pruning": {"sparsity": "0.5"}}, "pruning.sparsity: .*number. Received: '0.5'"),
    "clustering": ({"clustering": {"clusters": "16"}}, "clustering.clusters: .*integer. Received: '16'"),
    "skip": ({"rules": [{"layer": "d", "skip": "yes"}]}, "rules.0.skip: .*boolean. Received: 'yes'"),
    "in a rule": ({"rules": [{"layer": "d", "weights": {"bits": "4"}}]}, "weights: bits: .*integer. Received: '4'.$"),
}


@pytest.mark.parametrize("kind", TYPES)
def test_values_of_another_type_are_refused(kind: str) -> None:
    recipe, message = TYPES[kind]
    with pytest.raises(ValueError, match=f"recipe: .*{message}"):
        recipes.load({"name": "r", **recipe})


def test_lists_whole_numbers_and_numpys_will_do() -> None:
    rule = {"layer": "d", "weights": {"bits": np.int64(4)}}
    recipe = {"name": "r", "steps": ["calibrate"], "rules": [rule], "pruning": {"sparsity": 0, "power": np.int32(2)}}
    found = recipes.load({**recipe, "activations": {"bits": np.int64(16)}})
    assert found.pruning is not None and found.pruning.power == 2.0 and found.activations.bits == 16
    assert recipes.load({**found.model_dump(mode="json", by_alias=True)}) == found  # plain numbers throughout


def test_all_mistakes_are_listed() -> None:
    with pytest.raises(ValueError) as caught:
        recipes.load({"name": "r", "activations": {"bitz": 8}, "fold": "maybe"})
    assert len(str(caught.value).splitlines()) == 2


def test_files_are_named_in_messages(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text('name = "r"\n[weight]\n')
    with pytest.raises(ValueError, match=r"bad.toml: unknown key 'weight'. Did you mean 'weights'\?"):
        recipes.load(tmp_path / "bad.toml")
    (tmp_path / "broken.toml").write_text("name = \n")
    with pytest.raises(ValueError, match="broken.toml: not TOML: .*line 1"):
        recipes.load(tmp_path / "broken.toml")
    for name in ("old.toml", "old.json"):
        (tmp_path / name).write_bytes('name = "Größe"'.encode("utf-16"))
        with pytest.raises(ValueError, match=rf"{name}: not UTF-8 text, .* at byte 0. Save it again as UTF-8"):
            recipes.load(tmp_path / name)
    with pytest.raises(ValueError, match="recipe: no file .*gone.toml"):
        recipes.load(tmp_path / "gone.toml")


@pytest.mark.parametrize("given", [3, None, ["int8"]])
def test_what_is_no_recipe_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"recipe: expected a name, .* a dict or a Recipe. Received: "):
        recipes.load(given)


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ({"layer": "hed_*"}, "layer='hed_\\*' matches no layer. Layers: .*head_a"),
        ({"type": "Conv2D"}, "type='Conv2D' matches no layer"),
        ({"layer": "stem", "position": "last"}, "layer='stem', position='last' matches no layer"),
    ],
)
def test_rules_that_match_nothing_are_refused(rule: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=f"recipe 'r': the rule {wanted}"):
        kquant.quantize(model(), {"name": "r", "rules": [rule]})


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ({"activations": {"bits": 12}}, r"stem.*: activations of 12 bits; kernels have 8 or 16"),
        ({"rules": [{"layer": "body", "activations": {"bits": 4}}]}, r"body_quant: activations of 4 bits"),
        ({"activations": {"signed": False}}, r"unsigned activations; signed = true is the same grid"),
        ({"weights": {"kind": "log"}}, r"body.*: weights on a log grid, which no integer kernel multiplies"),
    ],
)
def test_what_no_kernel_computes_is_simulated_and_not_exported(
    recipe: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    q = kquant.calibrate(kquant.quantize(model(), {"name": "r", **recipe}), X, verbose=False)
    assert np.isfinite(q(X, training=False)).all()
    with pytest.raises(ValueError, match=reason):
        kquant.export(q, tmp_path / "m.tflite")
    told = kquant.check(model(), recipe={"name": "r", **recipe})  # before anyone trains, in the same words
    assert not told.ok and any(re.search(reason.split(": ")[-1], row.remedy) for row in told.layers)
    refused = kquant.estimate(model(), {"name": "r", **recipe}).refused
    assert [row.layer for row in refused] == [row.layer for row in told.layers if row.status == "refused"]


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"range_rate": 0.1}, r"range_rate does nothing without ranges = 'learned' or 'pact'"),
        ({"range_penalty": 0.1, "ranges": "learned"}, "range_penalty does nothing without ranges = 'pact'"),
        ({"freeze_ranges_after": 5, "ranges": "fixed"}, "freeze_ranges_after does nothing with ranges = 'fixed'"),
        ({"freeze_batch_norm_after": 5}, "freeze_batch_norm_after does nothing without batch_norm = 'live'"),
        ({"oscillations": {"dampen_steps": 5}}, "dampen_steps does nothing without dampen"),
        ({"progressive": {"from": 4, "steps": 5}}, "from must be above the width that training ends at, 8 bits"),
        ({"robust": {"bits": [8], "per_tensor": False, "shift": 0.0}}, "robust does nothing: all it draws is the grid"),
    ],
)
def test_training_that_could_not_act_is_refused(training, said):
    with pytest.raises(ValueError, match=f"^recipe: training.*{said}.* Change it, or leave it out.$"):
        recipes.load({"name": "t", "training": training})


@pytest.mark.parametrize(
    ("weights", "robust", "acts"),
    [
        ({"kind": "log"}, {"shift": 0.0}, False),
        ({"kind": "log"}, {}, True),
        ({"kind": "e2m1", "bits": 4}, {"shift": 0.0}, False),
        ({"block": 32, "bits": 4}, {"shift": 0.0}, False),
        ({"bits": 4, "per_axis": False}, {"bits": [4], "shift": 0.0}, False),
        ({"bits": 4}, {"bits": [4], "shift": 0.0}, True),
        ({"bits": 4, "unpacked_bits": 6}, {"bits": [4], "per_tensor": False, "shift": 0.0}, True),
        ({"bits": 4}, {"bits": [4, 4], "per_tensor": False, "shift": 0.0}, False),
        ({"bits": 4}, {"bits": [8], "per_tensor": False, "shift": 0.0}, True),
    ],
)
def test_draws_that_change_nothing_are_refused(weights: dict[str, Any], robust: dict[str, Any], acts: bool) -> None:
    recipe = {"name": "t", "weights": weights, "training": {"robust": robust}}
    if acts:
        assert recipes.load(recipe).training.robust is not None
        return
    with pytest.raises(ValueError, match="training.robust does nothing"):
        recipes.load(recipe)
    rules = [{"type": "Dense", "weights": {"kind": "uniform", "block": 0, "bits": 3}}]
    recipes.load({**recipe, "rules": rules})  # one layer that draws is enough


@pytest.mark.parametrize("mode", ["dynamic", "weight-only"])
def test_a_shift_of_activations_that_are_float_does_nothing(mode: str) -> None:
    recipe = {"name": "t", "mode": mode, "training": {"robust": {"bits": [8], "per_tensor": False}}}
    with pytest.raises(ValueError, match="training.robust does nothing: .* and no activation shifts"):
        recipes.load(recipe)
    recipes.load({**recipe, "training": {"robust": {}}})


def test_training_that_a_rule_carries_out_is_taken():
    rules = [{"type": "Dense", "training": {"ranges": "learned"}, "weights": {"bits": 3}}]
    told = {"range_rate": 0.1, "progressive": {"from": 4, "steps": 5}}
    recipe = recipes.load({"name": "t", "training": told, "rules": rules})
    assert recipes.load(recipe.model_dump(by_alias=True)) == recipe
    rules = [{"layer": "head", "training": {"range_rate": 0.1}}]
    recipes.load({"name": "t", "training": {"ranges": "pact"}, "rules": rules})


def convolutions() -> keras.Model:
    """Each operator that may have packed weights, and a dense layer whose inputs are an odd number."""
    keras.utils.set_random_seed(1)
    parts = [
        layers.SeparableConv2D(4, 3, name="apart"),
        layers.Conv2D(4, 3, name="conv"),
        layers.Flatten(name="flat"),
        layers.Dense(5, name="even"),
        layers.Dense(3, name="odd"),
    ]
    return keras.Sequential([keras.Input((6, 6, 3), name="x"), *parts])


FOUR = {"name": "four", "weights": {"bits": 4}}
CONVOLUTIONS = {"apart_depthwise": 8, "apart": 8, "conv": 8}
PREFERENCES: dict[str, tuple[str, dict[str, Any], dict[str, int]]] = {
    "bytes, by default": ("litert", {}, {}),
    "latency": ("litert", {"prefer": "latency"}, {**CONVOLUTIONS, "odd": 8}),
    "latency, 6 bits": (
        "litert",
        {"prefer": "latency", "weights": {"bits": 4, "unpacked_bits": 6}},
        {"apart_depthwise": 6, "apart": 6, "conv": 6, "odd": 6},
    ),
    "latency, 3 bits": ("litert", {"prefer": "latency", "weights": {"bits": 3}}, {**CONVOLUTIONS, "even": 3, "odd": 8}),
    "latency but for a class": (
        "litert",
        {"prefer": "latency", "rules": [{"type": "Conv2D", "prefer": "bytes"}]},
        {"apart_depthwise": 8, "odd": 8},
    ),
    "latency for one": ("litert", {"rules": [{"layer": "conv", "prefer": "latency"}]}, {"conv": 8}),
    "weights unpacked when run": (
        "litert",
        {"prefer": "latency", "mode": "weight-only"},
        {**CONVOLUTIONS, "even": 8, "odd": 8},
    ),
    "no packed depthwise kernel for floats": ("litert", {"mode": "dynamic"}, {}),
    "16-bit activations": ("litert", {"prefer": "latency", "activations": {"bits": 16}}, {}),
    "16-bit activations elsewhere": ("tflm", {"activations": {"bits": 16}}, {}),
    "8 bits": ("litert", {"prefer": "latency", "weights": {"bits": 8}}, dict.fromkeys(("even",), 8)),
    "another runtime": ("tflm", {"prefer": "latency"}, {}),
}


@pytest.mark.parametrize("kind", PREFERENCES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_weights_are_packed_where_it_is_preferred(kind: str, tmp_path: Path) -> None:
    """The grids, what `check` tells of them beforehand, and the types of the file are the same."""
    target, changes, wide = PREFERENCES[kind]
    recipe, bits = {**FOUR, **changes}, {**FOUR, **changes}["weights"]["bits"]
    made = convolutions()
    expected = {**dict.fromkeys((*CONVOLUTIONS, "even", "odd"), bits), **wide}
    q = kquant.quantize(made, recipe, target=target)
    assert {name: layer.spec.bits for name, layer in compressed(q).items() if layer.spec is not None} == expected
    told = {row.layer: row.weights for row in kquant.check(made, target, recipe=recipe).layers if row.weights}
    unpacked = {"apart_depthwise"} if recipe.get("mode") == "dynamic" else set()
    unpacked |= set(expected) if kind == "16-bit activations elsewhere" else set()
    packed = {4: ", packed", 3: " in 4, packed"}
    forms = {n: f"{b} bits" + (" in 8" if n in unpacked else packed.get(b, "")) for n, b in expected.items()}
    both = tuple(sorted({forms.pop("apart_depthwise"), forms["apart"]}))
    assert told == {name: (form,) for name, form in forms.items()} | {"apart": both}
    if recipe.get("mode", "static") == "static":
        kquant.calibrate(q, np.float32(np.random.default_rng(0).normal(size=(8, 6, 6, 3))), verbose=False)
    kquant.export(q, tmp_path / "m.tflite", check_runtimes=unpacked != set() or "16-bit" in kind)
    tensors = kquant.inspect(tmp_path / "m.tflite").tensors
    stored = {t.name.removesuffix("/kernel"): t.dtype for t in tensors if t.name.endswith("/kernel")}
    assert stored == {n: "int4" if b <= 4 and n not in unpacked else "int8" for n, b in expected.items()}


def test_what_latency_takes_is_told_and_kept(tmp_path: Path) -> None:
    latency = {**FOUR, "prefer": "latency", "rules": [{"layer": "conv", "prefer": "bytes"}]}
    with pytest.warns(UserWarning, match=r"8-bit weights for apart_depthwise, apart, odd, as `prefer = \"latency\"`"):
        kquant.quantize(convolutions(), latency)
    (said,) = kquant.check(convolutions(), "litert", recipe=FOUR).advice
    assert said.startswith("packed 4-bit weights of apart_depthwise, apart, conv, odd cost 2.3 to 4.3 times the")
    assert kquant.check(convolutions(), "tflm", recipe=FOUR).advice == ()
    table = keras.Sequential([keras.Input((4,), dtype="int32"), layers.Embedding(5, 6, name="rows")])
    for mode in ("static", "weight-only"):
        recipe = {**FOUR, "mode": mode, "weights": {"bits": 8}}
        assert [row.weights for row in kquant.check(table, "litert", recipe=recipe).layers] == [("8 bits",)]
    text = kquant.recipe_to_toml(latency)
    assert 'prefer = "latency"' in text and 'prefer = "bytes"' in text
    (tmp_path / "mine.toml").write_text(text)
    assert recipes.load(tmp_path / "mine.toml") == recipes.load(latency)
    with pytest.raises(ValueError, match="prefer: Input should be 'bytes' or 'latency'. Received: 'speed'"):
        recipes.load({"name": "mine", "prefer": "speed"})
