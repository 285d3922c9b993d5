"""The build of TFLM that is installed decodes kquant's look-up tables, or is refused with the remedy."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

from kquant.runtime import decoding, running
from kquant.tflite.reader import read_model


@pytest.fixture(autouse=True)
def asked_again() -> Any:
    """The answer is kept for the process."""
    decoding.check_decodes.cache_clear()
    yield
    decoding.check_decodes.cache_clear()


def test_the_known_file_has_tables() -> None:
    content, codes, expected = decoding.known("lut")
    file = read_model(content)
    assert [table.name for table in file.tables] == ["w"] and np.unique(expected).size > 20
    assert codes.dtype == expected.dtype == np.int8


@pytest.mark.skipif(importlib.util.find_spec("tflite_micro") is None, reason="the micro extra is not installed")
def test_the_installed_build_decodes() -> None:
    decoding.check_decodes(running.probe, "lut")


def _other_codes(content: bytes, runtime: str, codes: list[np.ndarray]) -> list[np.ndarray]:
    return [np.zeros_like(codes[0])]


def _refused(content: bytes, runtime: str, codes: list[np.ndarray]) -> list[np.ndarray]:
    raise ValueError("tflm cannot run this file (exit code 1): no registration")


@pytest.mark.parametrize(
    ("probe", "why"), [(_other_codes, "of the codes of a known file"), (_refused, "no registration")]
)
def test_a_build_that_does_not_is_refused_before_a_file_is_run(
    probe: Any, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "probe", probe)
    with pytest.raises(ValueError, match=rf"tflite-micro .* does not decode.*{why}.*pip install 'tflite-micro=="):
        running.predict(decoding.known("lut")[0], np.zeros((1, decoding.WIDTH), np.float32), "tflm")
