"""The ladder of `kquant.compress(flash_bytes=..., train=...)` on ResNet8: every rung, of a caller who trains.

2,000 training images (400 of them for ranges and roundings), the float model beside labels, a few epochs behind each
stage. `evaluate` is accuracy on the first 2,000 test images, which choose; the 8,000 others judge what was chosen.
TFLM computes the file's codes on 200 of them. `--folder` keeps rungs: a run that was stopped goes on from there.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np

import kquant
from benchmarks.assets import loader, task
from benchmarks.qat_accuracy import batches
from kquant.files.atomic import write_atomically

RESULTS = Path(__file__).parent / "results" / "ladder_training.json"
INT8_BYTES = 87_616  # of the plain int8 file, as the budgets of `coded_training` were set for
ROUNDED_ON, CHOOSING, TEMPERATURE = 400, 2000, 4.0


def trainer_of(teacher: keras.Model, x: np.ndarray, y: np.ndarray, epochs: int, rate: float) -> Any:
    """What `train=` of `kquant.compress` is given: it fits float models with masks or codebooks, and quantized ones."""

    def train(model: keras.Model, stage: str) -> None:
        started = time.process_time()
        distiller = kquant.distill(model, teacher, temperature=TEMPERATURE, alpha=0.5, outputs="probabilities")
        schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * -(-len(x) // 64))
        distiller.compile(keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy")
        distiller.fit(batches(x, y, 0), epochs=epochs, verbose=0)
        print(f"trained behind {stage}: {time.process_time() - started:.0f} s", flush=True)

    return train


def accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    """In %."""
    return 100 * float(np.mean(outputs.argmax(-1) == labels))


def run(share: float, images: int, epochs: int, rate: float, folder: Path) -> dict[str, Any]:
    """One budget; a row for each rung, and what the chosen file does on images that nobody chose by."""
    t = task("image_classification")
    x, y = loader().cifar10_train()
    x, y = x[:images].astype("float32"), y.reshape(-1)[:images]
    choosing, judging = (t.x[:CHOOSING], t.y[:CHOOSING]), (t.x[CHOOSING:], t.y[CHOOSING:])
    path = folder / "ladder.tflite"
    started = time.process_time()
    made = kquant.compress(
        t.model,
        x[:ROUNDED_ON],
        target="tflm",
        path=path,
        flash_bytes=int(share * INT8_BYTES),
        strip_names=True,
        evaluate=lambda model: accuracy(model.predict(choosing[0], batch_size=500, verbose=0), choosing[1]),
        train=trainer_of(t.model, x, y, epochs, rate),
        folder=folder / f"rungs-{share:g}-{images}-{epochs}-{rate:g}",
    )
    print(kquant.report.render(made.ladder))
    outputs = made.model.predict(judging[0], batch_size=500, verbose=0)
    on_device = kquant.predict(path, judging[0][:200], runtime="tflm")
    return {
        "share": share,
        "images": images,
        "epochs": epochs,
        "rate": rate,
        **made.ladder.to_dict(),
        "judged": accuracy(outputs, judging[1]),
        "judged_float": accuracy(t.model.predict(judging[0], batch_size=500, verbose=0), judging[1]),
        "equal": bool(np.array_equal(on_device, outputs[:200])),
        "cpu_seconds": round(time.process_time() - started),
    }


def line(rung: dict[str, Any], best: str) -> str:
    """A rung of the table in docs/short_codes.md."""
    if rung["failed"]:
        return f"| {rung['name']} | failed: {rung['failed']} | | | | |"
    told = (f"{rung['file_bytes']:,}", f"{rung['score']:.2f}", f"{rung['arena_bytes']:,}", f"{rung['lookups']:,}")
    ms = "-" if rung["host_ms"] is None else f"{rung['host_ms']:.2f}"
    name = f"**{rung['name']}**" if rung["name"] == best else rung["name"]
    return f"| {name} | {' | '.join(told)} | {ms} | {rung['seconds']:.0f} |"


def main() -> None:
    """Parse, climb, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("share", nargs="?", type=float, default=0.35, help="of the int8 file")
    parser.add_argument("--images", type=int, default=2000, help="that train")
    parser.add_argument("--epochs", type=int, default=4, help="behind each stage")
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--folder", type=Path, default=Path("build/ladder_training"), help="what is finished")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        made = run(args.share, args.images, args.epochs, args.rate, args.folder)
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    others = [old for old in kept if any(old[key] != made[key] for key in ("share", "images", "epochs", "rate"))]
    write_atomically(RESULTS, f"{json.dumps([*others, made], indent=1)}\n".encode())
    print("| rung | bytes | accuracy, % | arena | steps of decoding | ms | s |\n|" + " --- |" * 7)
    print("\n".join(line(rung, made["best"]) for rung in made["rungs"]))
    print({key: value for key, value in made.items() if key != "rungs"}, flush=True)


if __name__ == "__main__":
    main()
