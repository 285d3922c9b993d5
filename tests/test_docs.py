"""Every Python block of the documentation runs, every example in a docstring is true, every test named exists."""

import doctest
import importlib
import importlib.util
import inspect
import json
import pkgutil
import re
import subprocess
import sys
import warnings
from dataclasses import fields
from pathlib import Path

import keras
import numpy as np
import pytest

import kquant
from kquant import targets
from kquant.calibration import observers
from kquant.exporting.model_card import ModelCard
from kquant.report import layers as layer_list

# Pages show what happens to models that are not always well made; words that are no longer used stay errors.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```python(?P<needs>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
SILENT = {"kquant.__main__", "kquant.migrate.tf_keras_reader"}  # scripts; the second is of a process with Keras 2
OTHER_KERAS = {"tensorflow_model_optimization", "tf_keras"}  # which wants a process of its own


def stand_in():
    """A model with the shape of the examples' one: 8x8 images, three classes, a batch norm."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
            layers.Flatten(name="flatten"),
            layers.Dense(3, activation="softmax", name="head"),
        ],
        name="resnet8",
    )


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What examples may take for granted, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(targets.FOLDER, "")  # taken back, too
    monkeypatch.setitem(observers.OBSERVERS, "median", observers.minmax)  # taken back, whatever a page sets
    model = stand_in()
    model.save("resnet8.keras")
    Path("compressed.json").write_text(json.dumps({"card": {field.name: 1 for field in fields(ModelCard)}}))
    rng = np.random.default_rng(0)
    images = rng.random((64, 8, 8, 1), np.float32)
    return {"keras": keras, "kquant": kquant, "np": np, "model": model, "images": images, "labels": np.arange(64) % 3}


def blocks(page):
    return [(match["needs"].strip(), match["code"]) for match in BLOCK.finditer(page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_blocks_run(page, names):
    for number, (needs, code) in enumerate(blocks(page)):
        source = compile(code, f"{page.name}, block {number + 1}", "exec")
        if not needs:
            exec(source, names)
        elif importlib.util.find_spec(needs) is None:
            continue
        elif needs in OTHER_KERAS:
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        else:
            exec(source, {"__name__": "__main__"})


def test_there_are_blocks():
    assert sum(len(blocks(page)) for page in PAGES) >= 8


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_tests_exist(page):
    text = page.read_text()
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)  # brackets of code are no links
    for target in re.findall(r"\]\(([^)#:]+)\)", prose):
        assert (page.parent / target).exists(), target
    for file, test in re.findall(r"`(test_\w+\.py)::(test_\w+)`", text):
        [path] = (ROOT / "tests").rglob(file)
        assert f"def {test}(" in path.read_text(), f"{file} has no {test}"


def shell_lines(page):
    found = re.findall(
        r"^ *```(?:sh|bash|shell|console)\n(.*?)^ *```$", page.read_text(), flags=re.MULTILINE | re.DOTALL
    )
    return [line for block in found for line in block.splitlines()]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_a_pasted_command_is_one(page):
    broken = [line for line in shell_lines(page) if re.search(r"(\\\\|\\\s+)$", line)]
    assert broken == [], "behind one backslash a command goes on, behind two or with a blank it ends"


def test_there_are_commands_of_several_lines():
    assert sum(line.endswith("\\") for page in PAGES for line in shell_lines(page)) >= 2


def test_layer_list_is_the_rules():
    written = (ROOT / "docs/layers.md").read_text()
    assert written == layer_list.markdown(), "the rules changed: run `make docs`"


def modules():
    found = pkgutil.walk_packages(kquant.__path__, "kquant.")
    return [m.name for m in found if m.name not in SILENT]


@pytest.mark.parametrize("name", modules())
def test_docstring_examples(name, request):
    # verbs and modules share names (kquant.export), so the module comes from the import system
    module = importlib.import_module(name)
    if ">>>" in inspect.getsource(module):
        request.getfixturevalue("names")  # files that examples read
    globs = {**vars(module), "keras": keras, "kquant": kquant, "np": np}
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for example in finder.find(module, name, globs=globs):
            runner.run(example, out=report.append)
    assert runner.failures == 0, "".join(report)


def test_public_verbs_have_docstrings_and_hints():
    for name in kquant.__all__:
        member = getattr(kquant, name)
        assert inspect.getdoc(member), name
        if inspect.isfunction(member):
            hints = inspect.signature(member)
            assert hints.return_annotation is not inspect.Signature.empty, name
            assert all(p.annotation is not inspect.Parameter.empty for p in hints.parameters.values()), name


def test_no_file_above_one_megabyte():
    tracked = [ROOT / name for name in ("README.md", "Makefile", "pyproject.toml")]
    folders = ("kquant", "recipes", "tests", "docs", "notebooks", "examples", "benchmarks")
    tracked += [file for folder in folders for file in (ROOT / folder).rglob("*") if file.is_file()]
    assert [str(file) for file in tracked if file.stat().st_size > 1_000_000] == []
