"""What the script of every tool does: read the task, run a way, write the report. Needs NumPy and TensorFlow alone.

python tfmot.py TASK_FOLDER OUT_FOLDER WAY SEED  ->  OUT_FOLDER/report.json, model.tflite, simulated.npy
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

EPOCHS, RATE, BATCH = 2, 1e-4, 64


@dataclass(frozen=True, eq=False)
class Task:
    """A folder that `benchmarks.peers.tasks` wrote.

    Attributes:
        folder: with `float.keras`, `float.tflite` where one was made, and the arrays.
        zoo: name of the function in zoo.py that builds the model; empty where `legacy` is its file.
        legacy: Keras 2's own file of the same model; empty where there is none.
    """

    folder: Path
    zoo: str
    legacy: str
    epochs: int
    rate: float

    def array(self, name: str) -> np.ndarray:
        """`calibration`, `x`, `y`, `train_x` or `train_y`."""
        return np.load(self.folder / f"{name}.npy")

    def keras2(self, keras: Any) -> Any:
        """The float model in Keras 2, with the weights of the others."""
        if self.legacy:
            return keras.models.load_model(self.legacy, compile=False)
        import zoo

        model = getattr(zoo, self.zoo)(keras)
        held = np.load(self.folder / "weights.npz")
        for layer in model.layers:
            names = sorted((name for name in held.files if name.rsplit("|", 1)[0] == layer.name), key=_number)
            layer.set_weights([held[name] for name in names])
        return model


def _number(name: str) -> int:
    return int(name.rsplit("|", 1)[1])


Way = Callable[[Task, Path, int], Callable[[], dict[str, Any]]]


def fit(keras: Any, model: Any, task: Task, seed: int, callbacks: tuple = ()) -> dict[str, float]:
    """The same training for every tool: Adam, batches of 64, images flipped and moved where they are photographs."""
    x, y = task.array("train_x"), task.array("train_y")
    model.compile(keras.optimizers.Adam(task.rate), "sparse_categorical_crossentropy")
    rng, seconds = np.random.default_rng(seed), []
    for _ in range(task.epochs):
        order = rng.permutation(len(x))
        batch_x = augmented(x[order], rng) if x.shape[1:] == (32, 32, 3) else x[order]
        started = time.perf_counter()
        model.fit(batch_x, y[order], batch_size=BATCH, epochs=1, shuffle=False, verbose=0, callbacks=list(callbacks))
        seconds.append(time.perf_counter() - started)
    return {"epoch_s": min(seconds)}


def augmented(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flipped, and moved by up to 4 pixels, edges repeated."""
    flipped = np.where(rng.random(len(x))[:, None, None, None] < 0.5, x[:, :, ::-1], x)
    wide = np.pad(flipped, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="edge")
    moved = np.empty_like(x)
    for n, (down, right) in enumerate(rng.integers(0, 9, (len(x), 2))):
        moved[n] = wide[n, down : down + 32, right : right + 32]
    return moved


def convert_int8(tf: Any, model: Any, *calibration: np.ndarray) -> bytes:
    """TensorFlow's full-integer conversion of a Keras 2 model (tf_keras); an array for each input."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    arrays = [array.astype("float32") for array in calibration]
    converter.representative_dataset = lambda: ([a[n : n + 1] for a in arrays] for n in range(len(arrays[0])))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter.convert()


def cover(one: Callable[[Path, list[np.ndarray]], bytes], ending: str = "tflite") -> Way:
    """A file of every model in a folder of folders: OUT/NAME.tflite, or NAME.txt with what the tool said.

    A tool may end the process. Who starts it again (the same process) finds the model that was begun and not finished;
    one that begins anew tries that model again.
    """

    def make(task: Task, out: Path, seed: int) -> Callable[[], dict[str, Any]]:
        def run() -> dict[str, Any]:
            for folder in sorted(path for path in task.folder.iterdir() if path.is_dir()):
                file, said, begun = (out / f"{folder.name}.{end}" for end in (ending, "txt", "begun"))
                if file.is_file() or said.is_file():
                    continue
                if begun.is_file() and begun.read_text() == str(os.getppid()):
                    said.write_text("the process ended")
                    continue
                begun.write_text(str(os.getppid()))
                held = np.load(folder / "calibration.npz")
                try:
                    content = one(folder, [held[name] for name in sorted(held.files)])
                except Exception as error:  # noqa: BLE001  whatever a tool raises is its answer
                    said.write_text(f"{type(error).__name__}: {str(error).strip()}"[:300])
                else:
                    file.write_bytes(content)
            return {}

        return run

    return make


def peak_mb() -> float:
    """Largest resident set of this process, from /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024


def main(ways: dict[str, Way]) -> None:
    """Run the way that the command line names; what `make` prepares (imports, loading) is not timed."""
    folder, out, name, seed = sys.argv[1:]
    about = json.loads((Path(folder) / "about.json").read_text())
    task = Task(Path(folder), about["zoo"], about["legacy"], about["epochs"], about["rate"])
    run = ways[name](task, Path(out), int(seed))
    started = time.perf_counter()
    report = run()
    report |= {"seconds": time.perf_counter() - started, "peak_mb": peak_mb(), "load": os.getloadavg()[0]}
    (Path(out) / "report.json").write_text(json.dumps(report))
