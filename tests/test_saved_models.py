"""Models that an earlier kquant saved (tests/saved): they load, predict the same and are exported."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from packaging.version import Version
from saved.write import HERE, samples

import kquant
from kquant import targets
from kquant.layers.provenance import Provenance

FILES = sorted(HERE.glob("*.keras"))
# Floats meet another processor's matrix kernels; integers are the same numbers everywhere.
FLOAT = {"pruned_float", "embedded_dynamic"}


def refuse_newer(path: Path) -> None:
    """Keras reads files of older ones; those of newer ones hold settings that it does not know."""
    with zipfile.ZipFile(path) as archive:
        wrote = json.loads(archive.read("metadata.json"))["keras_version"]
    if Version(wrote) > Version(keras.__version__):
        pytest.skip(f"Keras {wrote} wrote this file, and Keras {keras.__version__} is older")


def test_every_file_has_its_outputs() -> None:
    with np.load(HERE / "outputs.npz") as outputs:
        assert sorted(outputs.files) == [path.stem for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_loads_and_predicts_the_same(path: Path, tmp_path: Path) -> None:
    refuse_newer(path)
    model = keras.models.load_model(path)
    with np.load(HERE / "outputs.npz") as outputs:
        expected = outputs[path.stem]
    tolerance = 1e-6 if path.stem in FLOAT else 0
    np.testing.assert_allclose(np.asarray(model(samples(model))), expected, rtol=0, atol=tolerance)
    if path.stem != "pruned_float":
        assert kquant.export(model, tmp_path / "again.tflite", check_runtimes=False).file_bytes > 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_layers_remember_is_written_as_it_was_read(path: Path) -> None:
    """Recipe, target and float layers of a model: an older kquant reads what this one saves."""
    with zipfile.ZipFile(path) as archive:
        stored = [dict(origin) for origin in _origins(json.loads(archive.read("config.json")))]
    assert [Provenance.read(origin).to_config() for origin in stored] == stored
    assert path.stem == "pruned_float" or all(origin["target"] in targets.names() for origin in stored) and stored


def _origins(config: Any) -> list[dict[str, str]]:
    """Every "origin" in a model's config."""
    if isinstance(config, list):
        return [found for part in config for found in _origins(part)]
    if not isinstance(config, dict):
        return []
    own = [config["origin"]] if "origin" in config else []
    return own + _origins(list(config.values()))
