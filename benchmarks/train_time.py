"""Number 6: time of a training step of every way to compress, against the float step of the same model.

All models train in one process by turns, a few steps each, and the ratios are medians over the rounds, so that a
machine that slows down slows all of them. tfmot's rows come from a process of its own (Keras 2), which takes its turns
between: `--peer-python` names a Python that has tensorflow-model-optimization and tf-keras. `--clock cpu` counts the
processor's time instead of the wall's, on a machine that others use too.

Ways that train a quantized model are held against QAT with moving ranges too, and all against the float model without
its batch norms, which a quantized one has folded.

    python -m benchmarks.train_time resnet8 --rounds 12 --steps 10 --peer-python /path/to/python
    python -m benchmarks.train_time --peer-python /path/to/python --path benchmarks/results/train_time.json

A loop, of which tfmot quantizes none:

    python -m benchmarks.train_time gru --clock cpu --ways QAT "QAT, learned ranges" "QAT, masks" "QAT, codebooks"

The tables of docs/peers.md also read what was measured so of small models and of the ways that keep zeros and values:

    python -m benchmarks.train_time digits_cnn digits_mobile digits_dense resnet8 --clock cpu --peer-python \
        /path/to/python --path benchmarks/results/train_time_small.json \
        --ways QAT pruning clustering PCQAT "QAT, masks" "QAT, codebooks"
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

import kquant
from benchmarks.assets import FOLDER
from benchmarks.choice import one_of
from benchmarks.machine import machine
from benchmarks.peers.scripts import zoo
from benchmarks.peers.tasks import DIGITS
from benchmarks.step_time import BATCH as MODELS
from benchmarks.step_time import BATCHES, build
from benchmarks.turns import CLOCKS, Run, fit_step, in_turns, ratios, timed
from kquant.files.atomic import write_atomically

BATCH = {**BATCHES, **dict.fromkeys(DIGITS, 64)}
PEERS = (*MODELS, *DIGITS)  # models that tfmot takes
TARGETS = {"QAT": 1.3, "pruning": 1.15, "clustering": 1.4, "PCQAT": 1.6}  # at most this many float steps
BASES = ("QAT", "float, no batch norms", "float, bfloat16")  # what else ways are held against
Make = Callable[[keras.Model, np.ndarray], keras.Model]
WAYS: dict[str, Make] = {}


def way(name: str) -> Callable[[Make], Make]:
    """Enrol a function from a float model and its data to the model that trains."""

    def enrol(make: Make) -> Make:
        WAYS[name] = make
        return make

    return enrol


@way("float")
def plain(model: keras.Model, x: np.ndarray) -> keras.Model:
    return model


@way("QAT")
def qat(model: keras.Model, x: np.ndarray) -> keras.Model:
    return kquant.calibrate(kquant.quantize(model), x[:64], verbose=False)


@way("distillation")
def distillation(model: keras.Model, x: np.ndarray) -> keras.Model:
    """A quantized student of its own float model: the teacher's forward pass comes on top of QAT."""
    return kquant.distill(qat(model, x), model)


@way("pruning")
def pruning(model: keras.Model, x: np.ndarray) -> keras.Model:
    """A ramp, so that masks are chosen anew while it trains."""
    return kquant.prune(model, kquant.SparsitySchedule(final=0.5, initial=0.0, end=10_000, frequency=100))


@way("clustering")
def clustering(model: keras.Model, x: np.ndarray) -> keras.Model:
    return kquant.cluster(model, 16)


@way("PCQAT")
def pcqat(model: keras.Model, x: np.ndarray) -> keras.Model:
    clustered = kquant.cluster(kquant.prune(model, 0.5), 16)
    return kquant.calibrate(kquant.quantize(clustered), x[:64], verbose=False)


def quantized(model: keras.Model, x: np.ndarray, **training: Any) -> keras.Model:
    """In int8, trained as these settings of `[training]` say."""
    recipe = {"name": "timed", "training": training} if training else "int8"
    return kquant.calibrate(kquant.quantize(model, recipe), x[:64], verbose=False)


@way("float, no batch norms")
def folded(model: keras.Model, x: np.ndarray) -> keras.Model:
    return kquant.fold(model)


@way("float, bfloat16")
def mixed(model: keras.Model, x: np.ndarray) -> keras.Model:
    """Products in bfloat16, weights in float32."""

    def again(layer: keras.layers.Layer) -> keras.layers.Layer:
        return type(layer).from_config({**layer.get_config(), "dtype": "mixed_bfloat16"})

    new = keras.models.clone_model(model, clone_function=again)
    new.set_weights(model.get_weights())
    return new


@way("QAT, bfloat16")
def mixed_qat(model: keras.Model, x: np.ndarray) -> keras.Model:
    return quantized(mixed(model, x), x)


@way("QAT, learned ranges")
def learned(model: keras.Model, x: np.ndarray) -> keras.Model:
    return quantized(model, x, ranges="learned")


@way("QAT, live batch norms")
def live(model: keras.Model, x: np.ndarray) -> keras.Model:
    return quantized(model, x, batch_norm="live")


@way("QAT, masks")
def masked(model: keras.Model, x: np.ndarray) -> keras.Model:
    return quantized(kquant.prune(model, 0.5), x)


@way("QAT, codebooks")
def shared(model: keras.Model, x: np.ndarray) -> keras.Model:
    return quantized(kquant.cluster(model, 16), x)


def built(name: str) -> tuple[Any, np.ndarray, np.ndarray]:
    """The float model and data; of the digits their shapes, as values do not change a step's time."""
    if name not in DIGITS:
        return build(name)
    model, rng = getattr(zoo, name)(keras), np.random.default_rng(0)
    x = rng.uniform(0, 1, (8 * BATCH[name], *model.input_shape[1:])).astype("float32")
    return model, x, rng.integers(0, 10, len(x))


def ours(model_name: str, make: Make, jit: bool, clock: str) -> Run:
    """One way, ready to take steps."""
    model, x, y = built(model_name)
    made = make(model, x)
    made.compile(keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy", jit_compile=jit)
    return timed(fit_step(made, x, y, BATCH[model_name]), clock)


class Peer:
    """tfmot's ways, in a process that takes steps when it is told to."""

    def __init__(self, python: str, model_name: str, jit: bool, clock: str) -> None:
        folder = Path(tempfile.mkdtemp())
        _, x, y = built(model_name)
        np.savez(folder / "data.npz", x=x, y=y)
        where = str(folder / "data.npz")
        weights = _h5_of(model_name)
        script = str(Path(__file__).with_name("tfmot_steps.py"))
        command = [python, script, model_name, where, weights, str(int(jit)), clock]
        env = {**os.environ, "TF_USE_LEGACY_KERAS": "1"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.names = self._answer()

    def _answer(self) -> Any:
        for line in self.process.stdout or ():
            if line.startswith("{") or line.startswith("["):
                return json.loads(line)
        raise RuntimeError("The peer has stopped; run it alone to see why: benchmarks/tfmot_steps.py.")

    def run(self, name: str, steps: int) -> list[float]:
        """Seconds of each step of one way."""
        print(json.dumps([name, steps]), file=self.process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        self.process.communicate("\n")


def _h5_of(model_name: str) -> str:
    """Keras 2 reads MLPerf's original file; random weights do for the other model, whose time they do not change."""
    if model_name != "resnet8":
        return ""
    return str(next((FOLDER / "mlperf_tiny" / "image_classification").glob("*.h5")))


def show(title: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """A Markdown table: steps in ms, ratios to each one's own float step, and how far its quartiles lie apart."""
    print(f"\n{title}\n")
    print("| | ms | times float | quartiles apart | at most | tfmot, ms | times float | quartiles apart |")
    print("| --- " * 8 + "|")
    for name in dict.fromkeys([*ours, *theirs]):
        cells = [
            f"{found[name][0]:.1f} | {found[name][1]:.3f} | {found[name][2]:.3f}" if name in found else "- | - | -"
            for found in (ours, theirs)
        ]
        print(f"| {name} | {cells[0]} | {TARGETS.get(name, '')} | {cells[1]} |", flush=True)


def show_against(rows: dict[str, list[list[float]]], bases: Iterable[str]) -> None:
    """Ratios of our ways to some of them, medians over rounds."""
    known = [base for base in bases if base in rows]
    print("| | " + " | ".join(f"times {base}" for base in known) + " |")
    print("| --- " * (1 + len(known)) + "|")
    found = {base: ratios(rows, base) for base in known}
    for name in rows:
        print(f"| {name} | " + " | ".join(f"{found[base][name][1]:.3f}" for base in known) + " |", flush=True)


def told(rows: dict[str, list[list[float]]], bases: Iterable[str]) -> dict[str, dict[str, float]]:
    """Of each way its median step in ms, and the medians over rounds of its ratios to some of them."""
    against = {base: ratios(rows, base) for base in bases if base in rows}
    medians = ratios(rows, "float")
    return {
        name: {"ms": medians[name][0], "spread": medians[name][2]}
        | {f"times {base}": to_base[name][1] for base, to_base in against.items()}
        for name in rows
    }


def measure(
    model_name: str, ways: Iterable[str], steps: int, rounds: int, jit: bool, python: str | None, clock: str
) -> dict[str, Any]:
    """Turns of all ways, ours and the peer's: `told` of both, and ours against the peer's of the same name."""
    runs = {f"ours/{name}": ours(model_name, WAYS[name], jit, clock) for name in ways}
    peer = None if python is None or model_name not in PEERS else Peer(python, model_name, jit, clock)
    if peer is not None:
        runs |= {f"peer/{name}": partial(peer.run, name) for name in peer.names}
    rows = in_turns(runs, rounds, steps)
    own, theirs = (
        {key.removeprefix(side): turns for key, turns in rows.items() if key.startswith(side)}
        for side in ("ours/", "peer/")
    )
    tables = [ratios(each, "float") if each else {} for each in (own, theirs)]
    show(f"{model_name}, batch {BATCH[model_name]}, jit={jit}, {rounds} rounds of {steps} steps, {clock} time", *tables)
    show_against(own, BASES)
    result: dict[str, Any] = {"batch": BATCH[model_name], "kquant": told(own, ("float", *BASES))}
    if peer is not None:
        peer.close()
        against = {name: ratios({"ours": own[name], "peer": theirs[name]}, "peer") for name in own if name in theirs}
        result |= {"tfmot": told(theirs, ("float",))}
        result |= {"of_tfmot": {name: both["ours"][1] for name, both in against.items()}}
        print("times tfmot's: " + ", ".join(f"{name} {ratio:.3f}" for name, ratio in result["of_tfmot"].items()))
    return result


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=one_of(BATCH), default=list(MODELS))
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--jit", action="store_true")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--peer-python", default=None)
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS))
    parser.add_argument("--path", type=Path, help="write what was measured here, as JSON")
    args = parser.parse_args()
    models, load = {}, [os.getloadavg()[0]]
    kept = {**machine(), "clock": args.clock, "jit": args.jit, "rounds": args.rounds, "steps": args.steps}
    kept["load"] = load
    for name in args.models:
        ways = dict.fromkeys(["float", *args.ways])
        models[name] = measure(name, ways, args.steps, args.rounds, args.jit, args.peer_python, args.clock)
        load.append(os.getloadavg()[0])  # before, and after each model: this process's own is part of it
        if args.path is not None:
            write_atomically(args.path, f"{json.dumps({**kept, 'models': models}, indent=1)}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
