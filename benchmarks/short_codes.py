"""Files of so many bytes without training images: `kquant.shorten_codes` on MLPerf Tiny's models, by their calibration.

For each model the int8 file, packed 4-bit weights (rounded to nearest, and by the recipe `int4-weights`), the recipes
`short-codes` and `short-codes-tensor`, and codes for some shares of the int8 file; of keyword spotting also distilled
from the float model on the calibration samples, without labels, as a rung of `kquant.compress(flash_bytes=...)` is.
What is judged was not calibrated with. The file in codes computes the plain file's codes on TFLM, on 200 samples and
100 random inputs; accuracy of all samples is LiteRT's, of the plain file, and (where there are labels) that of the
simulation of TFLM's arithmetic. Seconds are the processor's, from the float model to the quantized one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

import kquant
from benchmarks.assets import TASKS, Task, task
from benchmarks.choice import one_of
from benchmarks.codes import inputs, milliseconds
from kquant.app.pipeline import prepare
from kquant.files.atomic import write_atomically
from kquant.runtime.arenas import arena_bytes
from kquant.runtime.running import probe

RESULTS = Path(__file__).parent / "results" / "short_codes.json"
ONE_SCALE = {"name": "one scale", "weights": {"per_axis": False}}
RECIPES = ("int4-weights", "short-codes", "short-codes-tensor")
# Shares of the int8 file; the first is what the docs promise.
SHARES = {
    "image_classification": (0.47, 0.40),
    "keyword_spotting": (0.50, 0.60),
    "visual_wake_words": (0.22, 0.14),
    "anomaly_detection": (0.45,),
    "streaming_wakeword": (0.50, 0.40),
}
DISTILLED = {"keyword_spotting": (0.50,)}
ROOM, EPOCHS, BATCH, RATE = 0.97, 60, 32, 3e-5  # of a distillation: bytes to begin with, passes, batches, Adam's rate


def quantized(t: Task, recipe: Any) -> keras.Model:
    """Calibrated, corrected where the recipe says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return prepare(t.model, t.calibration, recipe, target="tflm", verbose=False)


def judged(t: Task, path: Path, wanted: np.ndarray) -> dict[str, float]:
    """Accuracy where there are labels, classes that changed, and SQNR in dB of the outputs of a plain file."""
    found = kquant.predict(path, t.x, runtime="litert")
    noise = float(np.sum((found - wanted) ** 2, dtype=np.float64))
    told: dict[str, float] = {"sqnr_db": 10 * float(np.log10(np.sum(wanted**2, dtype=np.float64) / noise))}
    if t.y is not None:
        told["accuracy"] = 100 * float(np.mean(found.argmax(-1) == t.y))
        told["changed"] = int(np.sum(found.argmax(-1) != wanted.argmax(-1)))
    return told


def simulated(t: Task, q: keras.Model) -> dict[str, float]:
    """Accuracy in TFLM's arithmetic, where there are labels."""
    if t.y is None:
        return {}
    return {"simulated": 100 * float(np.mean(q.predict(t.x, verbose=0).argmax(-1) == t.y))}


def measure(t: Task, name: str, q: keras.Model, folder: Path, wanted: np.ndarray, coded: bool) -> dict[str, Any]:
    """A row: bytes, arena, milliseconds, and how good it is; a file that is not in codes has all channels, too."""
    form: dict[str, Any] = {"compression": "auto", "strip_names": True} if coded else {"shrink": False}
    plain, path = folder / "plain.tflite", folder / "m.tflite"
    kquant.export(q, plain, check_runtimes=False)
    made = kquant.export(q, path, check_runtimes=False, **form)
    content = path.read_bytes()
    codes = inputs(t, plain.read_bytes())
    same = np.array_equal(probe(plain.read_bytes(), "tflm", [codes])[0], probe(content, "tflm", [codes])[0])
    arena = arena_bytes(content)
    row = {"form": name, "bytes": made.file_bytes, "equal": bool(same), "arena": arena}
    row["ms"] = round(milliseconds(content, arena + 4096, codes[:1]), 2)
    return {**row, **judged(t, plain, wanted), **simulated(t, q)}


def shortened(t: Task, recipe: Any, flash_bytes: int) -> keras.Model:
    """On the grid of a recipe, for so many bytes."""
    q = quantized(t, recipe)
    return kquant.shorten_codes(q, t.calibration, flash_bytes=flash_bytes, strip_names=True, verbose=False)


def distilled(t: Task, recipe: Any, flash_bytes: int) -> keras.Model:
    """A little fewer bytes, then steps towards the float model's outputs on the calibration samples."""
    q = shortened(t, recipe, int(ROOM * flash_bytes))
    trainer = kquant.distill(q, t.model, alpha=1.0, temperature=1.0, outputs="probabilities")
    drawn = np.random.default_rng(0)
    steps = EPOCHS * -(-len(t.calibration) // BATCH)
    trainer.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(RATE, steps)))
    for _ in range(EPOCHS):  # in an order of our own: Keras' depends on what was drawn before
        trainer.fit(t.calibration[drawn.permutation(len(t.calibration))], batch_size=BATCH, shuffle=False, verbose=0)
    return q


Form = tuple[Callable[[Task], keras.Model], bool]


def forms(task_name: str, whole: int) -> dict[str, Form]:
    """What makes each model of a task, and whether its file is in codes; `whole` are the bytes of int8."""
    made: dict[str, Form] = {
        "int8": (lambda t: quantized(t, "int8"), False),
        "4 bits": (lambda t: quantized(t, {"name": "w4", "weights": {"bits": 4}}), False),
    }
    made |= {recipe: (lambda t, recipe=recipe: quantized(t, recipe), True) for recipe in RECIPES}
    for name, recipe in (("short", "int8"), ("one scale", ONE_SCALE)):
        for share in SHARES[task_name]:
            made[f"{name}, {share:.2f}"] = (lambda t, r=recipe, s=share: shortened(t, r, int(s * whole)), True)
        for share in DISTILLED.get(task_name, ()):
            made[f"{name}, {share:.2f}, distilled"] = (
                lambda t, r=recipe, s=share: distilled(t, r, int(s * whole)),
                True,
            )
    return made


def due(names: Collection[str], kept: Collection[str], only: Collection[str]) -> tuple[set[str], set[str]]:
    """Which forms of a task to measure, and which to take as they were kept.

    Args:
        names: of all its forms.
        kept: those of an earlier run.
        only: those that were asked for; none: all.
    """
    if not only:
        return set(names), set()
    asked = set(names) & set(only)
    # shares are those of the int8 file: without one there is nothing that they would be of
    measured = asked | ({"int8"} - set(kept)) if asked else set[str]()
    return measured, set(kept) - measured


def rows(t: Task, folder: Path, kept: list[dict[str, Any]], only: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each file of a model, the int8 one first; those not asked for as they were kept."""
    wanted = t.model.predict(t.x, verbose=0)
    before = {row["form"]: row for row in kept}
    whole = before["int8"]["bytes"] if "int8" in before else 0
    measured, taken = due(forms(t.name, whole), before, only)
    for form in forms(t.name, whole):
        if form in taken:
            yield before[form]
        elif form in measured:
            make, coded = forms(t.name, whole)[form]
            started = time.process_time()
            q = make(t)
            seconds = round(time.process_time() - started, 1)
            row = {**measure(t, form, q, folder, wanted, coded=coded), "seconds": seconds}
            if form == "int8":
                whole = row["bytes"]
                row |= {} if t.y is None else {"float": 100 * float(np.mean(wanted.argmax(-1) == t.y))}
            yield row


def main() -> None:
    """Parse, measure, print a row at a time, keep all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", type=one_of(TASKS), default=list(TASKS), help=f"of {', '.join(TASKS)}")
    parser.add_argument("--only", nargs="*", default=[], help="forms, such as short-codes; the others stay as kept")
    args = parser.parse_args()
    known = list(dict.fromkeys(form for name in args.names for form in forms(name, 0)))
    if unknown := [form for form in args.only if form not in known]:
        parser.error(f"--only: expected some of {'; '.join(known)}. Received: {unknown[0]!r}")
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    columns = ("model", "form", "bytes", "of int8", "accuracy", "simulated", "changed", "SQNR, dB", "arena", "ms")
    columns += ("CPU, s", "TFLM")
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)
    for name in args.names:
        t, found = task(name), []
        with tempfile.TemporaryDirectory() as folder:
            for row in rows(t, Path(folder), kept.get(name, []), args.only):
                found.append(row)
                print(_line(name, row, found[0]["bytes"]), flush=True)
        kept[name] = found
        write_atomically(RESULTS, f"{json.dumps(kept, indent=1)}\n".encode())


def _line(name: str, row: dict[str, Any], whole: int) -> str:
    accuracy = f"{row['accuracy']:.2f}" if "accuracy" in row else "-"
    of_float = f" (float {row['float']:.2f})" if "float" in row else ""
    told = (name, row["form"], f"{row['bytes']:,}", f"{row['bytes'] / whole:.3f}", accuracy + of_float)
    told += (f"{row['simulated']:.2f}" if "simulated" in row else "-",)
    more = (row.get("changed", "-"), f"{row['sqnr_db']:.1f}", f"{row['arena']:,}", row["ms"], row.get("seconds", ""))
    return f"| {' | '.join(map(str, (*told, *more, 'equal' if row['equal'] else 'DIFFERENT')))} |"


if __name__ == "__main__":
    main()
