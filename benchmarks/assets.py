"""Real models and data, from the folder that KQUANT_ASSETS names (or ../shared/assets). The package never needs it."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(os.environ.get("KQUANT_ASSETS", Path(__file__).parents[2] / "shared" / "assets"))


@dataclass(frozen=True, eq=False)
class Task:
    """A pretrained model, samples to calibrate with and labelled samples to judge it on (labels None: no metric)."""

    name: str
    model: Any
    calibration: np.ndarray
    x: np.ndarray
    y: np.ndarray | None
    official: Path


def loader() -> Any:
    """The folder's `load.py`."""
    if not (FOLDER / "load.py").is_file():
        raise SystemExit(f"benchmarks need the asset folder; set KQUANT_ASSETS (looked in {FOLDER}).")
    spec = importlib.util.spec_from_file_location("assets_load", FOLDER / "load.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def task(name: str) -> Task:
    """One of the five MLPerf Tiny tasks, by the folder's name."""
    return {
        "image_classification": _images,
        "keyword_spotting": _keywords,
        "visual_wake_words": _person,
        "anomaly_detection": _anomaly,
        "streaming_wakeword": _wakeword,
    }[name]()


TASKS = ("image_classification", "keyword_spotting", "visual_wake_words", "anomaly_detection", "streaming_wakeword")


def _official(folder: str, file: str) -> Path:
    return FOLDER / "mlperf_tiny" / folder / file


def _images() -> Task:
    load = loader()
    pool = load.cifar10_train([0])[0]
    chosen = np.random.default_rng(0).choice(len(pool), 200, replace=False)
    x, y = load.cifar10_test()
    return Task(
        "image_classification",
        load.mlperf_model("image_classification"),
        pool[chosen].astype("float32"),
        x.astype("float32"),
        y.reshape(-1),
        _official("image_classification", "pretrainedResnet_quant.tflite"),
    )


def _keywords() -> Task:
    """The first 100 clips calibrate, the other 900 judge."""
    load = loader()
    x, y = load.keyword_spotting()
    model = load.mlperf_model("keyword_spotting")
    return Task(
        "keyword_spotting", model, x[:100], x[100:], y[100:], _official("keyword_spotting", "kws_ref_model.tflite")
    )


def _person() -> Task:
    """56 images calibrate, the other 200 judge."""
    load = loader()
    x, y = load.visual_wake_words()
    order = np.random.default_rng(0).permutation(len(x))
    a, b = order[:56], order[56:]
    model = load.mlperf_model("visual_wake_words")
    return Task("visual_wake_words", model, x[a], x[b], y[b], _official("visual_wake_words", "vww_96_int8.tflite"))


def _anomaly() -> Task:
    """No recordings here: Gaussian inputs that give the first batch norm the mean and spread that it was trained on."""
    model = loader().mlperf_model("anomaly_detection")
    dense, norm = model.layers[1], model.layers[2]
    kernel, bias = (np.asarray(v, np.float64) for v in (dense.kernel, dense.bias))
    mean = np.linalg.pinv(kernel.T) @ (np.asarray(norm.moving_mean, np.float64) - bias)
    spread = np.sqrt(np.mean(np.asarray(norm.moving_variance, np.float64) / (kernel**2).sum(axis=0)))
    x = np.random.default_rng(0).normal(mean, spread, (1200, kernel.shape[0])).astype("float32")
    return Task("anomaly_detection", model, x[:200], x[200:], None, _official("anomaly_detection", "ad01_int8.tflite"))


def _wakeword() -> Task:
    """Every other spectrogram calibrates."""
    load = loader()
    x, y = load.streaming_wakeword()
    model = load.mlperf_model("streaming_wakeword")
    return Task(
        "streaming_wakeword",
        model,
        x[::2],
        x[1::2],
        y[1::2],
        _official("streaming_wakeword", "str_ww_ref_model.tflite"),
    )
