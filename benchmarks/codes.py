"""Bytes, arena and time of MLPerf Tiny's models with their weights in codes that TFLM decodes; outputs compared.

Four times each model: as it is in int8; in int8 with one scale for each kernel; with the smallest 80 % of each kernel
zero; with weights of 4 bits. Nothing is trained: what is measured is the file, not the accuracy that training would
bring back (`--quality` tells what a grid does to the outputs; `--bound` what no code of single weights can go below).
Outputs of every file are those of the plain one on TFLM
on samples and on random codes.
"""

from __future__ import annotations

import argparse
import bz2
import lzma
import tempfile
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import keras
import numpy as np

import kquant
from benchmarks.assets import TASKS, Task, task
from benchmarks.choice import one_of
from kquant.runtime.running import probe, quantize_input
from kquant.tflite.reader import constants

NAMELESS = "auto, no names"
SAMPLES, RANDOM, CALLS = 200, 100, 50
FORMS = (None, "lut", "prune", "huffman", "auto", NAMELESS)
VARIANTS = ("int8", "one scale", "80 % zeros", "4 bits")
GRIDS = {"4 bits": {"bits": 4}, "one scale": {"per_axis": False}}


def quantized(t: Task, variant: str) -> keras.Model:
    """A model of one variant, for target tflm."""
    model = t.model
    if variant == "80 % zeros":
        model = kquant.fold(model)
        for layer in model.layers:
            kernel = getattr(layer, "kernel", None)
            if kernel is not None:
                weights = np.asarray(kernel)
                kernel.assign(np.where(np.abs(weights) > np.quantile(np.abs(weights), 0.8), weights, 0.0))
    recipe = {"name": variant, "weights": GRIDS[variant]} if variant in GRIDS else "int8"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kquant.calibrate(kquant.quantize(model, recipe, target="tflm"), t.calibration, verbose=False)


def milliseconds(content: bytes, arena: int, codes: np.ndarray) -> float:
    """The fastest call, in time of this process: what others compute meanwhile does not count."""
    from tflite_micro import runtime

    interpreter = runtime.Interpreter.from_bytes(content, arena_size=arena)
    interpreter.set_input(codes, 0)
    taken = []
    for _ in range(CALLS):
        start = time.process_time()
        interpreter.invoke()
        taken.append(time.process_time() - start)
    return 1000 * min(taken)


def inputs(t: Task, content: bytes) -> np.ndarray:
    """Codes of samples, then random ones."""
    port = kquant.inspect(content).inputs[0]
    info, rng = np.iinfo(port.dtype), np.random.default_rng(0)
    anything = rng.integers(info.min, info.max + 1, (RANDOM, *port.shape[1:])).astype(port.dtype)
    return np.concatenate([quantize_input(t.x[:SAMPLES], port), anything])


def measure(q: keras.Model, form: str | None, folder: Path, shrink: bool) -> tuple[kquant.ExportReport, bytes] | None:
    """One file; None where that form makes nothing smaller."""
    try:
        bare = {"compression": "auto", "strip_names": True} if form == NAMELESS else {"compression": form}
        made = kquant.export(q, folder / "m.tflite", check_runtimes=False, shrink=shrink, **bare)
    except ValueError as error:
        if "no weights get smaller" in str(error):
            return None
        raise
    return made, (folder / "m.tflite").read_bytes()


def quality(t: Task, variant: str) -> tuple[str, ...]:
    """What a grid does to the outputs: noise against the float model, classes, and those that are right."""
    expected, found = (np.asarray(m.predict(t.x, verbose=0)) for m in (t.model, quantized(t, variant)))
    a, b = (y.reshape(len(t.x), -1) for y in (expected.astype(np.float64), found.astype(np.float64)))
    sqnr = 10 * np.log10(float(np.sum(a**2)) / float(np.sum((a - b) ** 2)))
    if t.y is None:
        return t.name, variant, str(len(a)), f"{sqnr:.1f}", "", ""
    changed, right = np.sum(a.argmax(1) != b.argmax(1)), np.sum(b.argmax(1) == np.reshape(t.y, -1))
    return t.name, variant, str(len(a)), f"{sqnr:.1f}", str(changed), str(right)


def entropy_bytes(codes: np.ndarray) -> float:
    """Of a tensor's codes, each by itself: what no Huffman code is below, tables not counted."""
    counts = np.unique(codes, return_counts=True)[1]
    return float(counts @ -np.log2(counts / codes.size)) / 8


def packed_bytes(codes: np.ndarray) -> int:
    """Of the best of three compressors that see what follows what; nothing that TFLM decodes does."""
    raw, filters = codes.tobytes(), [{"id": lzma.FILTER_LZMA2, "preset": 9}]
    made = (zlib.compress(raw, 9), bz2.compress(raw), lzma.compress(raw, lzma.FORMAT_RAW, filters=filters))
    return min(len(raw), *map(len, made))


def bound(t: Task, variant: str) -> tuple[str, ...]:
    """The plain file without names by its parts, its weights' entropy, and the least that codes can make of both."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.tflite"
        kquant.export(quantized(t, variant), path, check_runtimes=False, strip_names=True)
        content, parts = path.read_bytes(), {part.name: part.bytes for part in kquant.layer_bytes(path).parts}
    weights = [codes for codes in constants(content).values() if codes.dtype == np.int8]
    raw, scales, biases = sum(codes.size for codes in weights), parts.get("scales", 0), parts.get("biases", 0)
    entropy, packed = sum(map(entropy_bytes, weights)), sum(map(packed_bytes, weights))
    narrow = all(np.abs(b).max() < 2**15 for b in constants(content).values() if b.dtype == np.int32)
    rest = len(content) - raw - scales - biases
    told = (len(content), raw, entropy, packed, scales, biases, rest, entropy + len(content) - raw)
    return t.name, variant, *(f"{n:,.0f}" for n in told), "16" if narrow else "32"


def rows(t: Task, variant: str, folder: Path, shrink: bool) -> Any:
    """A line of the table in docs/benchmarks.md for each form."""
    from kquant.runtime.arenas import arena_bytes

    q = quantized(t, variant)
    plain, codes, expected = b"", np.zeros(0), np.zeros(0)
    for form in FORMS:
        found = measure(q, form, folder, shrink)
        if found is None:
            yield (t.name, variant, form, "-")
            continue
        made, content = found
        if form is None:
            plain, codes = content, inputs(t, content)
        computed = probe(content, "tflm", [codes])[0]
        expected = computed if form is None else expected
        arena = arena_bytes(content)
        cost = made.decoding
        tensors = "" if cost is None else ", ".join(f"{key} {len(names)}" for key, names in cost.tensors.items())
        yield (
            t.name,
            variant,
            form or "plain",
            f"{len(content):,}",
            f"{len(content) / len(plain):.3f}",
            tensors,
            "" if cost is None else f"{cost.lookups:,}",
            f"{arena:,}",
            f"{milliseconds(content, arena + 4096, codes[:1]):.2f}",
            "equal" if np.array_equal(computed, expected) else "DIFFERENT",
        )


def main() -> None:
    """Parse, measure, print a row at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", type=one_of(TASKS), default=list(TASKS), help=f"of {', '.join(TASKS)}")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--shrink", action="store_true", help="exact shrinking of channels before the codes")
    parser.add_argument("--bound", action="store_true", help="what codes cannot go below, and no other bytes")
    parser.add_argument("--quality", action="store_true", help="what the grids do to the outputs, and no bytes")
    args = parser.parse_args()
    if args.quality:
        print("| model | weights | samples | dB | classes changed | right |\n|" + " --- |" * 6, flush=True)
        for name in args.names:
            for variant in args.variants:
                print(f"| {' | '.join(quality(task(name), variant))} |", flush=True)
        return
    if args.bound:
        head = ("model", "weights", "bytes", "of weights", "entropy", "compressed", "scales", "biases", "rest", "bound")
        print(f"| {' | '.join((*head, 'bits of biases'))} |\n|{' --- |' * (len(head) + 1)}", flush=True)
        for name in args.names:
            for variant in args.variants:
                print(f"| {' | '.join(bound(task(name), variant))} |", flush=True)
        return
    columns = ("model", "weights", "form", "bytes", "ratio", "tensors", "steps", "arena", "ms", "outputs")
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)
    for name in args.names:
        t = task(name)
        for variant in args.variants:
            with tempfile.TemporaryDirectory() as folder:
                for row in rows(t, variant, Path(folder), args.shrink):
                    print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
