"""How time grows with depth: quantize, calibrate and export of 25 to 400 convolutions, in a row and with residuals.

Each depth in a process of its own, after a model of eight layers that pays for what is loaded once. The weights are
random, so that the deep ones lose their outputs, and `calibrate` looks for the tensors that cost them.

Python's garbage collector goes through all that TensorFlow and Keras hold, 0.2 to 0.4 s each time, and which depth it
falls into is chance. So each network is measured twice: with the collector as it is, and with none running meanwhile.
The figures without it come first, those with it stand beside them.

    python -m benchmarks.depth --clock cpu --path benchmarks/results/depth.json
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np

from benchmarks.choice import one_of
from benchmarks.machine import machine
from benchmarks.turns import CLOCKS

DEPTHS = (25, 50, 100, 200, 400)
KINDS = ("sequential", "residual")
VERBS = ("quantize", "calibrate", "export")
SIDE, CHANNELS, SAMPLES = 8, 4, 32


def network(kind: str, depth: int, seed: int = 0) -> keras.Model:
    """So many 3x3 convolutions of 4 channels; `residual` adds what two of them read to what they give."""
    keras.utils.set_random_seed(seed)
    x = start = inputs = keras.Input((SIDE, SIDE, CHANNELS))
    for place in range(depth):
        ends = kind == "residual" and place % 2 == 1
        x = keras.layers.Conv2D(CHANNELS, 3, padding="same", activation=None if ends else "relu")(x)
        if ends:
            x = start = keras.layers.Add()([start, x])
    return keras.Model(inputs, x)


def seconds(model: keras.Model, data: np.ndarray, clock: str) -> dict[str, float]:
    """What each verb took."""
    import kquant

    now, marks = CLOCKS[clock], []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        marks.append(now())
        q = kquant.quantize(model)
        marks.append(now())
        kquant.calibrate(q, data, verbose=False)
        marks.append(now())
        kquant.export(q, str(Path(folder) / "model.tflite"), check_runtimes=False)
        marks.append(now())
    return dict(zip(VERBS, np.diff(marks).tolist(), strict=True))


def child(kind: str, depth: int, clock: str, collecting: bool) -> None:
    """Measure one network; print seconds as JSON."""
    data = np.random.default_rng(0).normal(size=(SAMPLES, SIDE, SIDE, CHANNELS)).astype(np.float32)
    seconds(network(kind, 8, seed=1), data, clock)
    model = network(kind, depth)
    if not collecting:
        gc.collect()
        gc.disable()
    print(json.dumps(seconds(model, data, clock)))


def run(kind: str, depth: int, clock: str, collecting: bool) -> dict[str, float]:
    """One network in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.depth", kind, "--clock", clock, "--child", str(depth)]
    command += ["--collecting"] * collecting
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def of_kind(kind: str, clock: str, rounds: int) -> dict[str, dict[int, dict[str, float]]]:
    """Medians of each depth, without the collector and with it; printed as they come."""
    # by turns, so that a machine that slows down slows all depths
    ways = {"without collector": False, "with collector": True}
    turns = [
        {way: {depth: run(kind, depth, clock, on) for depth in DEPTHS} for way, on in ways.items()}
        for _ in range(rounds)
    ]
    made = {}
    for way in ways:
        rows = {depth: {v: float(np.median([t[way][depth][v] for t in turns])) for v in VERBS} for depth in DEPTHS}
        before = None
        for depth, row in rows.items():
            total = row["all"] = float(np.median([sum(t[way][depth].values()) for t in turns]))
            grown = "" if before is None else f", {total / before:.2f} times"
            print(f"{kind} {depth}, {way}: " + ", ".join(f"{v} {s:.2f}" for v, s in row.items()) + grown, flush=True)
            before = total
        made[way] = rows
    return made


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", type=one_of(KINDS), default=KINDS)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each depth, of which the medians are told")
    parser.add_argument("--path", type=Path, help="where to write the figures, as JSON")
    parser.add_argument("--child", type=int)
    parser.add_argument("--collecting", action="store_true", help="of a child: leave the garbage collector as it is")
    args = parser.parse_args()
    if args.child:
        child(args.kinds[0], args.child, args.clock, args.collecting)
        return
    from kquant.files.atomic import write_atomically  # not before a child has begun to measure: it loads with a verb

    measured: dict[str, Any] = {**machine(), "clock": args.clock, "rounds": args.rounds}
    for kind in args.kinds:
        measured[kind] = of_kind(kind, args.clock, args.rounds)
        if args.path:
            write_atomically(args.path, f"{json.dumps(measured, indent=1)}\n".encode())


if __name__ == "__main__":
    main()
