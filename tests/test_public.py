"""`import kquant`: light, lazy, and enough for Keras to load what it saved."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import new_process
import pytest

import kquant
from kquant import moved

PACKAGE = Path(kquant.__file__).parent
COUNT = "import keras; print(sum(name.startswith('kquant>') for name in keras.saving.get_custom_objects()))"


def answer(lines: str) -> list[str]:
    """What a new process prints that knows Keras already."""
    made = new_process.run(lines)
    assert made.returncode == 0, made.stderr
    return made.stdout.split()


def registered() -> int:
    return sum(name.startswith("kquant>") for name in keras.saving.get_custom_objects())


def test_dir_shows_the_public_names_and_nothing_else() -> None:
    assert sorted(dir(kquant)) == sorted(kquant.__all__)
    assert not [name for name in kquant.__all__ if name.startswith("_")]
    for name in kquant.__all__:
        assert getattr(kquant, name) is getattr(kquant, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="quantise"):
        kquant.quantise  # noqa: B018


def test_every_class_that_is_registered_has_a_home() -> None:
    """All that the package registers is there after `import kquant` alone: counted in the source."""
    decorators = 0
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                decorators += sum("register_keras_serializable" in ast.unparse(d) for d in node.decorator_list)
    assert decorators == registered() > 30


@pytest.mark.parametrize("first", ["kquant", "kquant.arithmetic", "kquant.ops.rule"])
def test_whatever_is_imported_first(first: str) -> None:
    assert answer(f"import {first}; {COUNT}") == [str(registered())]


def test_a_misspelt_name_is_told_the_right_one() -> None:
    with pytest.raises(AttributeError, match="kquant has no 'quantise'. Did you mean 'quantize'"):
        getattr(kquant, "quantise")  # noqa: B009
    assert not hasattr(kquant, "nothing_of_the_kind")


def test_names_of_layers_and_rules_bring_keras_themselves() -> None:
    lines = "import sys, kquant; assert 'keras' not in sys.modules; print(kquant.register_rule.__name__)"
    command = [sys.executable, "-c", f"{lines}; print(kquant.MicroFrontend(name='front').name)"]
    made = subprocess.run(command, env={**os.environ, "PYTHONPATH": new_process.ROOT}, capture_output=True, text=True)
    assert made.stdout.split() == ["register_rule", "front"], made.stderr


def test_importing_it_loads_no_tensorflow() -> None:
    lines = "import sys, kquant, kquant.app.cli, kquant.recipe.recipe; print('keras' in sys.modules, len(dir(kquant)))"
    command = [sys.executable, "-c", f"{lines}; print('tensorflow' in sys.modules)"]
    made = subprocess.run(command, env={**os.environ, "PYTHONPATH": new_process.ROOT}, capture_output=True, text=True)
    assert made.stdout.split() == ["False", str(len(kquant.__all__)), "False"], made.stderr


# What earlier code imports: a module, one that was called like a public function, one that came apart, folders of today
# that were modules.
OLD = """
import kquant
from kquant import observers, quantized
from kquant.core.atomic import write_atomically
from kquant.core.recipe import Recipe
from kquant.correct import STEPS, apply_steps, bias
from kquant.files import load_model, untrusted
from kquant.lower import LookUpTables, lower, to_bytes, to_stream
from kquant.train.pruning import prune
import kquant.inspect as reader
assert reader.read_model.__module__ == "kquant.tflite.reader" and callable(kquant.inspect), kquant.inspect
assert kquant.inspect.inspect.__module__ == "kquant.tflite.reader"
try:
    from kquant.lower import nonsense
except ImportError as error:
    print("refused")
"""


def test_old_paths_give_what_moved() -> None:
    assert answer(OLD) == ["refused"]
    for new in {path for paths in moved.MOVED.values() for path in paths}:
        assert importlib.util.find_spec(f"kquant.{new}") is not None, new


def test_old_paths_say_where_it_is() -> None:
    sys.modules.pop("kquant.core.atomic", None)
    with pytest.warns(PendingDeprecationWarning, match="kquant.core.atomic is kquant.files.atomic now"):
        importlib.import_module("kquant.core.atomic")
