"""The command: what it writes and prints, its exit codes, and what it says to those who ask for the wrong thing."""

import gc
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

import kquant
from kquant import targets
from kquant.app import collector
from kquant.app.cli import app
from kquant.app.command_files import save_arrays

pytestmark = pytest.mark.filterwarnings(
    "ignore:When providing `inputs` as a dict",
)

COMMANDS = ("compress", "analyze", "correct", "autotune", "check", "inspect", "bytes", "verify", "predict", "recipes")
COMMANDS += ("demo", "scan", "size", "detect", "transcribe")
layers = keras.layers


def kq(*arguments):
    """Run the command in this process."""
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refused(*arguments):
    """The message of a command that must refuse: exit code 1, no traceback, nothing on standard output."""
    result = kq(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("kquant: ")
    return result.stderr


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a model, samples in every form, and what `compress` makes of them."""
    folder = tmp_path_factory.mktemp("cli")
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((6, 6, 1), name="image")
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3, use_bias=False)(x)))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.Flatten()(x)), name="tiny")
    model.save(folder / "tiny.keras")
    images = np.random.default_rng(0).random((64, 6, 6, 1), np.float32)
    np.savez(folder / "images.npz", x=images, y=np.zeros(64))
    np.save(folder / "images.npy", images)
    result = kq(
        "compress",
        folder / "tiny.keras",
        "--data",
        folder / "images.npz",
        "--target",
        "tflm",
        "--folder",
        folder / "build",
        "--json",
    )
    assert result.exit_code == 0, result.output
    (folder / "result.json").write_text(result.stdout)
    return folder


def test_compress_writes_everything(work):
    build = work / "build"
    assert sorted(p.name for p in build.iterdir()) == [
        "report.json", "report.txt", "tiny.keras", "tiny.tflite", "tiny_model.cc", "tiny_model.h"
    ]  # fmt: skip
    printed = json.loads((work / "result.json").read_text())
    assert printed == json.loads((build / "report.json").read_text())
    assert printed["operators"]["CONV_2D"] == 1
    assert "FLOAT32" not in printed["types"]
    assert printed["file_bytes"] == (build / "tiny.tflite").stat().st_size
    text = (build / "report.txt").read_text()
    assert "every operator integer" in text
    assert "CONV_2D" in text


def test_compress_prints_tables_and_files(work):
    arguments = ("compress", work / "tiny.keras", "--data", work / "images.npy", "--io", "uint8")
    result = kq(*arguments, "--folder", work / "other")
    assert result.exit_code == 0, result.output
    assert "UINT8" in result.stdout
    assert "tiny_model.cc" in result.stdout


def test_compress_tells_accuracy_first_and_writes_its_page(work, tmp_path):
    images, model = np.load(work / "images.npy"), keras.models.load_model(work / "tiny.keras")
    right = model.predict(images, verbose=0).argmax(1)
    right[::4] = (right[::4] + 1) % 3  # three of four are right in float
    np.savez(tmp_path / "test.npz", x=images[::-1], y=right[::-1])
    arguments = ("compress", work / "tiny.keras", "--data", work / "images.npz", "--target", "tflm")
    arguments += ("--folder", tmp_path / "build", "--labels", tmp_path / "test.npz", "--test", tmp_path / "test.npz")
    result = kq(*arguments, "--report", tmp_path / "build" / "report.html")
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "build/report.json").read_text())
    card, lines = told["card"], result.stdout.splitlines()
    for name, y in (("float", model.predict(images, verbose=0)), ("file", _file_outputs(tmp_path / "build", images))):
        assert card[f"{name}_accuracy"] == np.mean(y.argmax(1) == right)
    assert card["float_accuracy"] == 0.75 and card["samples"] == 64 and card["macs"] == 4 * 4 * 4 * 9 + 64 * 3
    assert lines[0].startswith("accuracy  float 75.0 %, simulated ") and f"({card['runtime']}, 64 samples)" in lines[0]
    sizes = (told["file_bytes"], told["weight_bytes"])
    assert (card["flash_bytes"], card["weight_bytes"], card["arena_bytes"]) == (*sizes, told["arena_bytes"])
    assert lines[1] == f"size      {sizes[0]:,} bytes, weights {sizes[1]:,}"
    assert [line.split()[0] for line in lines[2:4]] == ["arena", "MACs"] and lines[4] == ""
    page = (tmp_path / "build" / "report.html").read_text()
    assert "75.0 % ±" in page and "Why is it not smaller?" in page and "Memory over time" in page
    assert "Bytes of weights" not in result.stdout and "report.html" in lines[-1]
    assert "Bytes of weights" in (tmp_path / "build/report.txt").read_text()


def _file_outputs(build, images):
    runtime = json.loads((build / "report.json").read_text())["card"]["runtime"]
    return kquant.predict(build / "tiny.tflite", images, runtime)


def test_compress_prints_bytes_behind_details(work, tmp_path):
    arguments = ("compress", work / "tiny.keras", "--data", work / "images.npy", "--folder", tmp_path, "--details")
    assert "Bytes of weights" in kq(*arguments).stdout


def test_compress_refuses_before_it_works(work, tmp_path):
    arguments = ("compress", work / "tiny.keras", "--data", work / "images.npy", "--folder", tmp_path / "build")
    assert kq(*arguments, "--test", work / "images.npy").exit_code == 2
    assert "ends in .html" in refused(*arguments, "--report", tmp_path / "report.txt")
    assert "does not exist" in refused(*arguments, "--report", tmp_path / "none" / "report.html")
    np.save(tmp_path / "few.npy", np.zeros(3, np.int64))
    said = refused(*arguments, "--labels", tmp_path / "few.npy")
    assert "expected a label for each of 64 samples. Received: 3" in said
    assert not list((tmp_path / "build").glob("*"))


def test_c_array_is_the_file(work, tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler here")
    content = (work / "build/tiny.tflite").read_bytes()
    main = '#include <cstdio>\n#include "tiny_model.h"\nint main() { fwrite(tiny_model, 1, tiny_model_len, stdout); }\n'
    (tmp_path / "main.cc").write_text(main)
    sources = [str(tmp_path / "main.cc"), str(work / "build/tiny_model.cc")]
    subprocess.run(["g++", "-std=c++11", f"-I{work / 'build'}", *sources, "-o", str(tmp_path / "dump")], check=True)
    assert subprocess.run([str(tmp_path / "dump")], capture_output=True, check=True).stdout == content


def test_size_needs_no_data(work):
    result = kq("size", work / "tiny.keras", "--target", "tflm", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    built = json.loads((work / "result.json").read_text())
    assert told["operators"] == built["operators"] and told["macs"] == 4 * 4 * 4 * 9 + 64 * 3
    # with biases: those of a model that was not trained are 0, and its file has none
    assert 4 * 3 < told["flash_bytes"] - built["file_bytes"] < 160
    if built["arena_bytes"] is not None:
        assert 0 <= told["arena_bytes"] - built["arena_bytes"] < 100 and not told["arena_is_forecast"]


def test_size_compares_with_what_there_is(work):
    roomy = kq("size", work / "tiny.keras", "--flash", "1MB", "--arena", "64KB")
    assert roomy.exit_code == 0 and "fits" in roomy.stdout
    tight = kq("size", work / "tiny.keras", "--flash", "1KB", "--recipe", "int16x8")
    assert tight.exit_code == 1 and "bytes more than the 1,024 that there are" in tight.stdout
    assert kq("size", work / "tiny.keras", "--flash", "much").exit_code == 2
    assert kq("size", work / "tiny.keras", "--arena", "0KB").exit_code == 2


def test_size_names_what_would_not_run(tmp_path):
    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, layers.Dense(2)(keras.ops.sort(layers.Dense(4)(inputs))), name="sorts")
    model.save(tmp_path / "sorts.keras")
    result = kq("size", tmp_path / "sorts.keras")
    assert result.exit_code == 1 and "would not run" in result.stdout and "no int8 kernel sorts" in result.stdout


def test_autotune_leaves_the_file_and_its_recipe(work, tmp_path):
    model = keras.models.load_model(work / "tiny.keras")
    np.save(work / "y.npy", model.predict(np.load(work / "images.npy"), verbose=0).argmax(-1))
    result = kq(
        "autotune",
        work / "tiny.keras",
        "--data",
        work / "images.npz",
        "--labels",
        work / "y.npy",
        "--folder",
        tmp_path,
        "--max-drop",
        "0.2",
        "--json",
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["ok"] and found["rungs"][0]["kept"] and found["float_score"] == 1.0
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "autotune.json",
        "recipe.toml",
        "rungs.json",
        "tiny.keras",
        "tiny.tflite",
    ]
    assert kquant.inspect(tmp_path / "tiny.tflite").is_integer
    again = kq(
        "compress",
        work / "tiny.keras",
        "--data",
        work / "images.npz",
        "--recipe",
        tmp_path / "recipe.toml",
        "--folder",
        tmp_path / "again",
        "--json",
    )
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again/tiny.tflite").stat().st_size == (tmp_path / "tiny.tflite").stat().st_size


def test_correct_tries_steps_and_writes_nothing(work):
    before = sorted(work.rglob("*"))
    quantized = work / "build/tiny.keras"
    content = quantized.read_bytes()
    arguments = ("correct", quantized, "--data", work / "images.npz", "--limit", 48)
    result = kq(*arguments, "--steps", "equalize,calibrate,bias", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "equalize, calibrate, bias on a copy, 48 samples" in " ".join(result.stdout.split())
    found = json.loads(kq(*arguments, "--steps", "calibrate", "--dry-run", "--json").stdout)
    assert found["before_db"] > 20 and found["after_db"] > 20 and found["layers"]
    assert sorted(work.rglob("*")) == before
    assert quantized.read_bytes() == content


def test_correct_writes_the_model_and_its_file(work, tmp_path):
    np.savetxt(tmp_path / "w4.toml", ['name = "w4"\nweights = { bits = 4 }'], fmt="%s")
    out = tmp_path / "better.keras", tmp_path / "better.tflite"
    arguments = ("correct", work / "tiny.keras", "--recipe", tmp_path / "w4.toml", "--data", work / "images.npz")
    steps = "calibrate, sequential-mse:candidates=5, adaround:iterations=20:beta=[10, 2]"
    result = kq(*arguments, "--steps", steps, "--path", out[0], "--path", out[1], "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["steps"] == ["calibrate", "sequential-mse", "adaround"] and not found["on_copy"]
    q = kquant.calibrate(
        kquant.quantize(keras.models.load_model(work / "tiny.keras"), tmp_path / "w4.toml"),
        np.load(work / "images.npy"),
        verbose=False,
    )
    x = np.load(work / "images.npy")
    kquant.adaround(
        kquant.sequential_mse(q, x, candidates=5, verbose=False), x, iterations=20, beta=(10.0, 2.0), verbose=False
    )
    written = keras.models.load_model(out[0])
    np.testing.assert_array_equal(written.predict(x, verbose=0), q.predict(x, verbose=0))
    assert kquant.verify(written, out[1], x, "litert-reference").ok
    assert sorted(p.name for p in tmp_path.iterdir()) == ["better.keras", "better.tflite", "w4.toml"]


def test_correct_takes_the_steps_of_the_recipe(work, tmp_path):
    arguments = ("correct", work / "tiny.keras", "--data", work / "images.npz", "--target", "tflm")
    result = kq(*arguments, "--path", tmp_path / "m.keras")
    assert result.exit_code == 0, result.output
    assert "tiny, calibrate, 64 samples: SQNR no ranges ->" in " ".join(result.stdout.split())
    assert str(tmp_path / "m.keras") in result.stdout


def test_correct_refuses(work, tmp_path):
    quantized = ("correct", work / "build/tiny.keras", "--data", work / "images.npz")
    cases = {
        "Did you mean 'adaround'?": (*quantized, "--dry-run", "--steps", "calibrate,adaroud"),
        "'adaround' has no option 'iteration'": (*quantized, "--dry-run", "--steps", "adaround:iteration=5"),
        "iterations must be int. Received: 'many'": (*quantized, "--dry-run", "--steps", "adaround:iterations=many"),
        "expected names like calibrate": (*quantized, "--dry-run", "--steps", "calibrate,,bias"),
        "say which steps to run": (*quantized, "--dry-run"),
        "leave both out": (*quantized, "--dry-run", "--steps", "calibrate", "--recipe", "int8"),
        "would overwrite the model": (*quantized, "--steps", "calibrate", "--path", work / "build/tiny.keras"),
        "expected a file .keras or .tflite": (*quantized, "--steps", "calibrate", "--path", tmp_path / "m.onnx"),
        "does not exist; make it first": (*quantized, "--steps", "calibrate", "--path", tmp_path / "no" / "m.keras"),
    }
    for message, arguments in cases.items():
        assert message in refused(*arguments)
    assert kq(*quantized, "--steps", "calibrate").exit_code == 2
    assert kq(*quantized, "--steps", "calibrate", "--dry-run", "--path", tmp_path / "m.keras").exit_code == 2


def test_scan_writes_a_recipe_that_prunes(work, tmp_path):
    arguments = ("scan", work / "tiny.keras", "--data", work / "images.npz", "--sparsity", "0.6")
    result = kq(*arguments, "--limit", 32, "--path", tmp_path / "mine.toml")
    assert result.exit_code == 0, result.output
    assert "60 % in total" in result.stdout and str(tmp_path / "mine.toml") in result.stdout.replace("\n", "")
    model, x = keras.models.load_model(work / "tiny.keras"), np.load(work / "images.npy")
    chosen = np.linspace(0, len(x) - 1, 32).round().astype(int)
    expected = kquant.scan_sparsity(model, x[chosen], sparsity=0.6, verbose=False)
    pruned = kquant.prune(model, str(tmp_path / "mine.toml"))
    want = kquant.prune(model, 0.6, rules=expected.rules)
    assert kquant.sparsity(pruned) == kquant.sparsity(want)
    assert kquant.sparsity(pruned).total == pytest.approx(0.6, abs=0.01)
    with pytest.warns(UserWarning, match="asks for pruning, and nothing trains"):
        again = kq(
            "compress",
            work / "tiny.keras",
            "--data",
            work / "images.npz",
            "--recipe",
            tmp_path / "mine.toml",
            "--folder",
            tmp_path / "build",
            "--json",
        )
    assert again.exit_code == 0, again.output
    assert kquant.layer_bytes(tmp_path / "build/tiny.tflite").sparsity == pytest.approx(0.6, abs=0.05)


def test_scan_judges_by_accuracy_and_refuses(work, tmp_path):
    model = keras.models.load_model(work / "tiny.keras")
    np.save(tmp_path / "y.npy", model.predict(np.load(work / "images.npy"), verbose=0).argmax(-1))
    arguments = ("scan", work / "tiny.keras", "--data", work / "images.npz")
    found = json.loads(kq(*arguments, "--labels", tmp_path / "y.npy", "--structure", "2x1", "--json").stdout)
    assert found["dense"] == 1.0 and found["structure"] == "2x1" and len(found["layers"]) == 2
    cases = {
        "expected a file .toml": (*arguments, "--path", tmp_path / "m.keras"),
        "a sparsity in (0, 1)": (*arguments, "--sparsity", "1"),
        "fixes the sparsity": (*arguments, "--structure", "2:4"),
        "expected a float model": ("scan", work / "build/tiny.keras", *arguments[2:]),
    }
    for message, given in cases.items():
        assert message in refused(*given)


def test_verify(work):
    build = work / "build"
    arguments = ("verify", build / "tiny.keras", build / "tiny.tflite", "--data", work / "images.npz")
    result = kq(*arguments, "--runtime", "tflm")
    assert result.exit_code == 0, result.output
    assert "the file is the model" in result.stdout
    found = json.loads(kq(*arguments, "--json", "--limit", 5).stdout)
    assert found["ok"]
    assert found["samples"] == 5


def test_verify_of_a_foreign_file_fails(work):
    q = kquant.quantize(keras.models.load_model(work / "tiny.keras"))
    kquant.calibrate(q, np.random.default_rng(1).random((64, 6, 6, 1), np.float32) * 5, verbose=False)
    kquant.export(q, work / "foreign.tflite", check_runtimes=False)
    result = kq("verify", work / "build/tiny.keras", work / "foreign.tflite", "--data", work / "images.npz")
    assert result.exit_code == 1
    assert "NOT the model" in result.stdout
    assert "scale or zero point is not the model's" in result.stdout


def test_predict(work):
    file = work / "build/tiny.tflite"
    out = work / "y.npz"
    result = kq("predict", file, "--data", work / "images.npz", "--runtime", "litert-reference", "--path", out)
    assert result.exit_code == 0, result.output
    expected = kquant.predict(file, np.load(work / "images.npy"), "litert-reference")
    (written,) = np.load(out).values()
    np.testing.assert_array_equal(written, expected)
    printed = json.loads(kq("predict", file, "--data", work / "images.npz", "--limit", 2, "--json").stdout)
    (values,) = printed.values()
    assert np.shape(values) == (2, 3)


def test_check(work):
    result = kq("check", work / "tiny.keras")
    assert result.exit_code == 0, result.output
    assert "every layer can be integer" in result.stdout
    assert json.loads(kq("check", work / "tiny.keras", "--json").stdout)["ok"]


def test_check_tells_what_a_recipe_does_with_weights(work):
    (work / "fast.toml").write_text('name = "fast"\nprefer = "latency"\n[weights]\nbits = 4\n')
    for recipe, prefers in (("int4-weights", "bytes"), (work / "fast.toml", "latency")):
        result = kq("check", work / "tiny.keras", "--target", "litert", "--recipe", recipe, "--json")
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        forms = {form for row in report["layers"] for form in row["weights"]}
        assert report["recipe"] == ("fast" if prefers == "latency" else "int4-weights")
        assert ("8 bits" in forms) == (prefers == "latency") and bool(report["advice"]) == (prefers == "bytes")
    assert "8 bits" in kq("check", work / "tiny.keras", "--target", "litert", "--recipe", recipe).stdout
    assert "Did you mean" in kq("check", work / "tiny.keras", "--recipe", "int4-weight").output


def test_check_tells_where_a_model_runs(work):
    result = kq("check", work / "tiny.keras", "--target", "edgetpu")
    assert result.exit_code == 0, result.output
    assert "run on the Edge TPU" in result.stdout and "Where it runs" in result.stdout
    report = json.loads(kq("check", work / "tiny.keras", "--target", "edgetpu", "--json").stdout)
    assert {row["place"] for row in report["placement"]["layers"]} <= {"accelerator", "processor", "both", "unknown"}
    refused = kq("check", work / "tiny.keras", "--target", "edgetpus")
    assert refused.exit_code == 1 and "Did you mean 'edgetpu'" in refused.output
    assert all(name in refused.output for name in targets.names())


def test_check_names_layers_without_integer_form(work):
    inputs = keras.Input((4, 4, 4, 2))
    keras.Model(inputs, layers.ConvLSTM2D(3, 2, name="cube")(inputs)).save(work / "cube.keras")
    result = kq("check", work / "cube.keras", "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert not report["ok"]
    assert any(row["layer"].startswith("cube") and row["remedy"] for row in report["layers"])
    assert "cannot be integer" in kq("check", work / "cube.keras").stdout


def test_inspect(work):
    result = kq("inspect", work / "build/tiny.tflite")
    assert result.exit_code == 0, result.output
    assert "all integer" in result.stdout
    found = json.loads(kq("inspect", work / "build/tiny.tflite", "--json").stdout)
    assert found["operator_counts"]["CONV_2D"] == 1


def test_recipes_and_version():
    assert "int8" in kq("recipes").stdout
    assert json.loads(kq("recipes", "--json").stdout)["int8"]["weights"]["bits"] == 8
    assert kq("--version").stdout.strip() == f"kquant {kquant.__version__}"


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command):
    result = kq(command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout


def test_images_are_resized_and_scaled(work):
    from PIL import Image

    folder = work / "photos"
    (folder / "a").mkdir(parents=True)
    for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 256, (12, 9, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "a" / f"{i}.png")
    arguments = ("compress", work / "tiny.keras", "--data", folder, "--scale", "1/255", "--folder", work / "photo")
    with pytest.warns(UserWarning, match=r"photos: 40 of 40 images were resized.* from 12 x 9\."):
        result = kq(*arguments, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["inputs"][0]["scale"] < 1.01 / 255
    (folder / "a/broken.png").write_bytes(b"no image")
    assert "broken.png: not an image" in refused(*arguments)


def test_several_inputs_by_name(work):
    a, b = keras.Input((3,), name="left"), keras.Input((2,), name="right")
    keras.Model([a, b], layers.Dense(2)(layers.Concatenate()([a, b]))).save(work / "two.keras")
    rng = np.random.default_rng(0)
    np.savez(work / "two.npz", right=rng.random((40, 2)), left=rng.random((40, 3)))
    result = kq("compress", work / "two.keras", "--data", work / "two.npz", "--folder", work / "two", "--json")
    assert result.exit_code == 0, result.output
    assert [p["name"] for p in json.loads(result.stdout)["inputs"]] == ["left", "right"]
    np.savez(work / "one.npz", left=rng.random((40, 3)))
    message = refused("compress", work / "two.keras", "--data", work / "one.npz", "--folder", work / "two")
    assert "Missing: right" in message


def test_inputs_in_a_dict_go_by_their_keys(work):
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    keras.Model({"z": a, "y": b}, layers.Dense(2)(layers.Concatenate()([a, b]))).save(work / "keys.keras")
    np.savez(work / "keys.npz", z=np.random.rand(40, 3), y=np.random.rand(40, 2))
    result = kq("compress", work / "keys.keras", "--data", work / "keys.npz", "--folder", work / "keys", "--json")
    assert result.exit_code == 0, result.output
    assert {p["name"]: p["shape"] for p in json.loads(result.stdout)["inputs"]} == {"z": [1, 3], "y": [1, 2]}


def test_refusals(work):
    model, data, out = work / "tiny.keras", work / "images.npz", work / "refused"
    compress = ("compress", model, "--folder", out, "--data")
    (work / "bad.keras").write_bytes(b"no zip")
    (work / "bad.npz").write_bytes(b"no zip")
    with zipfile.ZipFile(work / "other.keras", "w") as archive:
        archive.writestr("a", "b")
    (work / "bad.tflite").write_bytes((work / "build/tiny.tflite").read_bytes()[:900])
    (work / "empty").mkdir()
    np.savez(work / "ab.npz", a=np.ones(3), b=np.ones(3))
    np.save(work / "wide.npy", np.ones((40, 7, 6, 1), np.float32))
    cases = {
        "no such file; give a Keras model": ("check", work / "none.keras"),
        "expected a Keras model (.keras)": ("check", data),
        "it is a zip archive, but no Keras model. Save one with": ("check", work / "other.keras"),
        "empty: a folder, not a file; give a Keras model": ("check", work / "empty"),
        "empty: a folder, not a file; give the path of a .tflite": ("inspect", work / "empty"),
        "a .keras file is a zip archive": ("check", work / "bad.keras"),
        "no such file or folder": (*compress, work / "none.npz"),
        "expected .npz, .npy or a folder": (*compress, model),
        "numpy cannot read it": (*compress, work / "bad.npz"),
        "Name it 'x'": (*compress, work / "ab.npz"),
        "no images in it": (*compress, work / "empty"),
        "expected samples of shape": (*compress, work / "wide.npy"),
        "Did you mean 'int8'": (*compress, data, "--recipe", "int9"),
        "Did you mean 'tflm'": (*compress, data, "--target", "tflmm"),
        "would overwrite": ("compress", model, "--data", data, "--folder", work),
        "quantized already": ("compress", work / "build/tiny.keras", "--data", data, "--folder", out),
        "is damaged": ("inspect", work / "bad.tflite"),
        "is not a TFLite file": ("inspect", data),
        "runtime 'tfl' does not exist": ("predict", work / "build/tiny.tflite", "--data", data, "--runtime", "tfl"),
    }
    for message, arguments in cases.items():
        assert message in refused(*arguments)
    assert not out.exists()


def test_folders_of_refused_results_are_gone_and_others_stay(work):
    for out in (work / "one/two", work / "empty_before"):
        (work / "empty_before").mkdir(exist_ok=True)
        refused("compress", work / "build/tiny.keras", "--data", work / "images.npz", "--folder", out)
    assert not (work / "one").exists()
    assert (work / "empty_before").is_dir()


def test_predict_refuses_its_output_before_it_runs(work, monkeypatch):
    monkeypatch.setattr("kquant.runtime.running.predict", lambda *_, **__: pytest.fail("it ran"))
    run = ("predict", work / "build/tiny.tflite", "--data", work / "images.npz", "--path")
    assert "arrays go to a .npz file. Received: '.txt'" in refused(*run, work / "o.txt")
    assert "no does not exist; make it first" in refused(*run, work / "no" / "o.npz")


def test_a_keras_2_file_names_the_way_over(tmp_path):
    with zipfile.ZipFile(tmp_path / "old.keras", "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "2.21.0"}))
        archive.writestr("config.json", json.dumps({"module": "tf_keras", "class_name": "Nothing", "config": {}}))
    message = refused("check", tmp_path / "old.keras")
    assert "Keras 2.21.0 (tf_keras) saved it; docs/migrate.md" in message
    assert message.count("\n") == 1


def test_wrong_usage_is_2(work):
    assert kq("compress", work / "tiny.keras").exit_code == 2
    assert kq("squash").exit_code == 2
    assert kq("compress", work / "tiny.keras", "--data", "x.npz", "--folder", "b", "--io", "int4").exit_code == 2
    assert kq("compress", work / "tiny.keras", "--data", "x.npz", "--folder", "b", "--scale", "1/0").exit_code == 2


def test_a_missing_extra_is_one_line(monkeypatch, work):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n in ("sklearn", "PIL") else found(n))
    assert refused("demo").strip() == "kquant: the demo needs an extra: pip install 'kquant[demo]'"
    assert "kquant[images]" in refused("compress", work / "tiny.keras", "--data", work, "--folder", work / "nothing")


def test_the_command_speaks_only_for_itself(work):
    """As installed: no chatter of TensorFlow on either stream, and --help without importing it."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TF_")}
    environment["PYTHONPATH"] = str(Path(kquant.__file__).parents[1])

    def run(*command):
        return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, check=False)

    both = f"""
import os, runpy, sys
terminal = os.dup(2)
for arguments in (["check", {str(work / "tiny.keras")!r}], ["inspect", {str(work)!r}]):
    os.dup2(terminal, 2)  # the command keeps it for itself
    sys.argv[1:] = arguments
    try:
        runpy.run_module("kquant", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        print("exit", end.code, flush=True)
"""
    done = run("-c", both)
    assert done.stdout.count("exit") == 2 and done.stdout.endswith("exit 0\nexit 1\n"), done
    assert done.stderr.count("\n") == 1 and "a folder, not a file" in done.stderr
    probe = "import sys; sys.argv[0] = 'kquant'; import kquant.app.cli; sys.exit('tensorflow' in sys.modules)"
    assert run("-c", probe).returncode == 0


@pytest.mark.parametrize("name", ["file", "args", "allow_pickle", "a/b"])
def test_outputs_of_any_name_go_to_a_file_of_arrays(tmp_path, name):
    save_arrays(tmp_path / "outputs.npz", {name: np.arange(6.0).reshape(2, 3), "other": np.int8([1])})
    with np.load(tmp_path / "outputs.npz") as held:
        assert set(held) == {name, "other"} and held["other"].dtype == np.int8
        np.testing.assert_array_equal(held[name], np.arange(6.0).reshape(2, 3))


def test_the_collector_waits_until_the_model_is_there(work):
    """What stays is not looked through again and again; what is made of the model is, as ever."""
    own = gc.get_threshold()
    code = "import gc, sys\nfrom kquant.app.cli import main\nsys.argv = ['kquant', 'recipes']\n"
    code += "try:\n    main()\nfinally:\n    print(gc.get_threshold()[0])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.stdout.splitlines()[-1] == str(collector.NEW_OBJECTS), "before anything is loaded"
    gc.unfreeze()  # what the tests themselves keep from being looked through
    assert kq("check", work / "tiny.keras").exit_code == 0
    assert gc.get_freeze_count() == 0 and gc.get_threshold() == own, "nobody asked it to wait"
    collector.wait()
    try:
        assert kq("check", work / "tiny.keras").exit_code == 0
        assert gc.get_freeze_count() > 1000 and gc.get_threshold() == own
    finally:
        gc.unfreeze()
        gc.set_threshold(*own)
