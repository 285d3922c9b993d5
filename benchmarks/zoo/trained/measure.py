"""One trained model in one format: from the float model to a file, judged by what the file answers."""

from __future__ import annotations

import tempfile
import time
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

import kquant
from benchmarks.zoo.trained.task import Data, Trained, trained

CALIBRATION = 200
FLOAT = "float"


@dataclass(frozen=True)
class Way:
    """A recipe of kquant's, other steps than its own, and whether training follows."""

    recipe: str
    steps: tuple[Any, ...]
    trains: bool = False


WAYS = {
    "int8": Way("int8", ("calibrate",)),
    "int8, corrected": Way("int8", ("calibrate", {"name": "adaround", "iterations": 500})),
    "int8, trained": Way("int8", ("calibrate",), trains=True),
    "int16x8": Way("int16x8", ("calibrate",)),
    "int4 weights": Way("int4-weights", ("calibrate", "sequential-mse", {"name": "adaround", "iterations": 500})),
    "int4 weights, GPTQ": Way("int4-weights", ("calibrate", "sequential-mse", "gptq")),
    "int4 weights, trained": Way("int4-qat", ("calibrate", "sequential-mse"), trains=True),
}


def recipe_of(way: Way) -> dict[str, Any]:
    """Kquant's own, with the way's steps."""
    return tomllib.loads(kquant.recipe_to_toml(way.recipe)) | {"steps": list(way.steps)}


def rows(task: Trained, cache: Path, ways: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """One for each way, of one float model."""
    data = task.data()
    model = trained(task, data, cache)
    for name in ways:
        if name == FLOAT:
            yield name, {"figures": task.judge(model, data), "weights": model.count_params()}
        else:
            yield name, _row(task, model, data, WAYS[name])


def _row(task: Trained, model: keras.Model, data: Data, way: Way) -> dict[str, Any]:
    """Figures of the file run by LiteRT's reference kernels, its bytes, codes equal to the simulation's."""

    def train(q: keras.Model, _: str) -> None:
        keras.utils.set_random_seed(0)
        q.compile(keras.optimizers.Adam(task.rate_quantized, clipnorm=1.0), task.loss)
        q.fit(data.x, data.y, batch_size=task.batch, epochs=task.epochs_quantized, verbose=2)

    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught, tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("always")
        path = Path(folder) / "model.tflite"
        made = kquant.compress(
            model, data.x[:CALIBRATION], recipe_of(way), path=path, train=train if way.trains else None, verbose=False
        )
        seconds = time.perf_counter() - started
        figures = task.judge(path, data)
        integer = kquant.inspect(path).is_integer
    for told in caught:
        print("warned:", str(told.message)[:500], flush=True)
    equal = {v.runtime: [a.equal for a in v.agreements] for v in made.report.verification}
    return {
        "figures": figures,
        "bytes": made.report.file_bytes,
        "equal": min(equal["litert-reference"]),
        "integer": integer,
        "seconds": seconds,
    }
