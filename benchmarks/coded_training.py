"""ResNet8 trained to files of 0.35 and 0.25 of its int8 file, on 20,000 training images: bytes and accuracy.

    one scale for each kernel -> short codes for the budget (`--images`, no labels) -> training with a price for bytes

With `--channels 0.65` channels leave first (`kquant.prune_channels`, importance "taylor"), until so much of the bytes
of weights is left, and what is left is trained in float for `--before` epochs. `--epochs 0` stops at the short codes.

Labels and the float model (`--soft` is its share) teach, with the flip and the crop of `qat_accuracy`; Adam, a warm-up,
then a cosine to 0. `kquant.callbacks.FlashBudget` holds the bytes. What is judged is the file: all test images by the
simulation and by LiteRT's reference kernels; TFLM computes the same codes of 200 of them and of 100 random inputs, from
the file in codes and from the plain one.

Runs are kept: `--folder` has the rounded models and a checkpoint of each epoch, and a run that was stopped goes on.
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
from benchmarks.assets import Task, loader, task
from benchmarks.codes import inputs, milliseconds
from benchmarks.qat_accuracy import batches
from kquant.files.atomic import write_atomically
from kquant.runtime.arenas import arena_bytes
from kquant.runtime.running import probe

RESULTS = Path(__file__).parent / "results" / "coded_training.json"
INT8_BYTES = 87_616  # of the plain int8 file, as the budgets were set for
TEMPERATURE, RANKED_ON = 4.0, 1000
PRICE = "damped"  # how `FlashBudget` moves it; rows of before, where it only summed up what was over, say "summed"
ENTROPY = 0.05  # of the first step; `FlashBudget` moves it
RECIPE = {
    "name": "coded",
    "weights": {"per_axis": False},
    "training": {"ranges": "learned", "entropy": ENTROPY},
}


def rounded(model: keras.Model, x: np.ndarray, share: float, folder: Path) -> Path:
    """Codes that are short already, chosen without labels on these images; kept."""
    path = folder / f"rounded-{share:.2f}-{len(x)}.keras"
    if path.is_file():
        return path
    q = kquant.calibrate(kquant.quantize(model, RECIPE, target="tflm"), x[:200], verbose=False)
    budget = int(share * INT8_BYTES)
    kquant.shorten_codes(q, x, strength=1e-6, flash_bytes=budget, strip_names=True, verbose=False)
    q.save(path)
    return path


def steps_of(x: np.ndarray, epochs: int) -> int:
    """Of the optimizer."""
    return epochs * -(-len(x) // 64)


def distiller(student: keras.Model, teacher: keras.Model, steps: int, args: Any) -> keras.Model:
    """Compiled for so many steps."""
    schedule = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=args.rate, warmup_steps=steps // 20)
    trainer = kquant.distill(student, teacher, temperature=args.temperature, alpha=args.soft, outputs="probabilities")
    trainer.compile(keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy")
    return trainer


def narrowed(model: keras.Model, data: Any, args: Any) -> tuple[keras.Model, Path]:
    """A float model with fewer channels, kept, and the folder of what follows from it."""
    if args.channels == 1.0:
        return model, args.folder
    x, y = data
    taught = f"{args.soft:g}-{args.temperature:g}-{args.rate:g}"
    folder = args.folder / f"channels-{args.channels:g}-{args.before}-{taught}-{args.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "narrowed.keras"
    if path.is_file():
        return keras.saving.load_model(path), folder
    few, loss = (x[:RANKED_ON], y[:RANKED_ON]), "sparse_categorical_crossentropy"
    small = kquant.prune_channels(
        model, weight_bytes=args.channels, importance="taylor", data=few, loss=loss, verbose=False
    )
    trainer = distiller(small, model, steps_of(x, args.before), args)
    trainer.fit(batches(x, y, args.seed), epochs=args.before, verbose=2)
    small.save(path)
    return small, folder


def told(model: keras.Model, path: Path, x: np.ndarray, steps: int, dampen: float) -> keras.Model:
    """The rounded model with what this training adds to the recipe, which no code depends on."""
    oscillations = {"dampen": dampen, "dampen_steps": steps} if dampen else {}
    recipe = {**RECIPE, "training": {**RECIPE["training"], "oscillations": oscillations}}
    q = kquant.calibrate(kquant.quantize(model, recipe, target="tflm"), x[:200], verbose=False)
    q.load_weights(path)
    return q


def trained(q: keras.Model, teacher: keras.Model, data: Any, share: float, args: Any, folder: Path) -> Any:
    """Train in place, from the last epoch that is kept."""
    x, y = data
    steps = steps_of(x, args.epochs)
    trainer = distiller(q, teacher, steps, args)
    budget = kquant.callbacks.FlashBudget(int(share * INT8_BYTES), int(args.way * steps), strip_names=True)
    kept = keras.callbacks.BackupAndRestore(folder / "checkpoint", delete_checkpoint=False)
    trainer.fit(batches(x, y, args.seed), epochs=args.epochs, verbose=2, callbacks=[kept, budget])


def accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    """In %."""
    return 100 * float(np.mean(outputs.argmax(-1) == labels))


def simulated(q: keras.Model, t: Task) -> float:
    """Accuracy of the integers on all test images."""
    q.compile(jit_compile=True)
    return accuracy(q.predict(t.x, batch_size=500, verbose=0), t.y)


def judged(q: keras.Model, t: Task, folder: Path) -> dict[str, Any]:
    """Bytes and accuracy, arena, milliseconds; what TFLM computes of the file is what the simulation does."""
    path = folder / "coded.tflite"
    made = kquant.export(q, path, compression="auto", strip_names=True, check_runtimes=False)
    content = path.read_bytes()
    kquant.export(q, folder / "plain.tflite", check_runtimes=False)
    codes = inputs(t, (folder / "plain.tflite").read_bytes())
    both = [probe(data, "tflm", [codes])[0] for data in (content, (folder / "plain.tflite").read_bytes())]
    outputs = kquant.predict(path, t.x[:200], runtime="tflm")
    arena = arena_bytes(content)
    return {
        "bytes": made.file_bytes,
        "accuracy": simulated(q, t),
        "equal": bool(np.array_equal(*both) and np.array_equal(outputs, q.predict(t.x[:200], verbose=0))),
        "litert_reference": accuracy(kquant.predict(folder / "plain.tflite", t.x, runtime="litert-reference"), t.y),
        "arena": arena,
        "ms": round(milliseconds(content, arena + 4096, codes[:1]), 2),
        "plain_ms": round(milliseconds((folder / "plain.tflite").read_bytes(), 1 << 20, codes[:1]), 2),
    }


def run(t: Task, data: Any, share: float, args: Any) -> dict[str, Any]:
    """One budget, one seed."""
    asked = {"share": share, "seed": args.seed, "epochs": args.epochs, "soft": args.soft, "rate": args.rate}
    asked |= {"start": args.start or share, "way": args.way, "temperature": args.temperature, "dampen": args.dampen}
    asked |= {"images": args.images}
    name = "-".join(f"{value:g}" for value in asked.values())
    keras.utils.set_random_seed(args.seed)
    started = time.process_time()
    model, place = narrowed(t.model, data, args)
    if model is not t.model:
        small = accuracy(model.predict(t.x, batch_size=500, verbose=0), t.y)
        asked |= {"channels": args.channels, "before": args.before, "float": round(small, 2)}
    folder = place / name
    folder.mkdir(parents=True, exist_ok=True)
    path = rounded(model, data[0][: args.images], args.start or share, place)
    taken = time.process_time() - started
    q = told(model, path, data[0], steps_of(data[0], args.epochs), args.dampen)
    before = simulated(q, t)
    if args.epochs:
        started = time.process_time()
        trained(q, t.model, data, share, args, folder)
        taken += time.process_time() - started
    return {**asked, "price": PRICE, "rounded": before, **judged(q, t, folder), "cpu_seconds": round(taken)}


def main() -> None:
    """Parse, run one after the other, print and keep a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shares", nargs="*", type=float, default=[0.35, 0.25], help="of the int8 file")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--soft", type=float, default=0.5, help="share of the loss that the float model teaches")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--start", type=float, help="share that the rounded model begins with; as many by default")
    parser.add_argument("--way", type=float, default=0.1, help="part of the steps in which the bytes come down")
    parser.add_argument("--temperature", type=float, default=TEMPERATURE, help="of what the float model teaches")
    parser.add_argument("--dampen", type=float, default=0.0, help="weight of the loss of oscillations at the end")
    parser.add_argument("--channels", type=float, default=1.0, help="share of the weights' bytes that channels leave")
    parser.add_argument("--before", type=int, default=6, help="epochs in float where channels have left")
    parser.add_argument("--images", type=int, default=400, help="that the codes are rounded on")
    parser.add_argument("--folder", type=Path, default=Path("build/coded_training"), help="what is finished")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    x, y = loader().cifar10_train()
    t = task("image_classification")
    for share in args.shares:
        for seed in args.seeds:
            args.seed = seed
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                row = run(t, (x.astype("float32"), y.reshape(-1)), share, args)
            kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
            key = ("share", "seed", "epochs", "soft", "rate", "start", "way", "temperature", "dampen", "price")
            key += ("images", "channels", "before")  # rows with all channels have none of the last two
            others = [old for old in kept if [old.get(k) for k in key] != [row.get(k) for k in key]]
            write_atomically(RESULTS, f"{json.dumps([*others, row], indent=1)}\n".encode())
            print(row, flush=True)


if __name__ == "__main__":
    main()
