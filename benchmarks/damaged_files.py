"""Damaged files of every kind that kquant reads: each must end in an answer or a `ValueError`, within 10 s and 1 GB.

python -m benchmarks.damaged_files --cases 5000     the table of docs/reliability.md
python -m benchmarks.damaged_files --kind h5 --first 17 --cases 1      one case again

A worker process reads many files, one after another, and a new one is started only where one died. What counts:
tracebacks (any exception that the commands do not print as one line), crashes (the worker dies), hangs (10 s of
processor time, or a minute by the clock) and memory (1 GB more than before, in the worker or in a process that it
started).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS, WALL_SECONDS, MEMORY = 10, 60, 1 << 30
# of 5,000 cases; those that start processes of their own are fewer
SHARES = {
    "npy": 500,
    "npz": 700,
    "labels": 200,
    "observations": 500,
    "encodings": 400,
    "recipe-json": 400,
    "recipe-toml": 400,
    "rungs": 200,
    "roundings": 200,
    "image": 400,
    "tflite": 500,
    "tflite-litert": 120,
    "tflite-litert-reference": 120,
    "tflite-tflm": 120,
    "keras": 120,
    "h5": 120,
}
INTEGERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 1 << 20, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFF0)
TEXTS = (b"", b"9" * 12, b"-1", b"null", b"[]", b"{}", b'"', b"1e999", b"NaN", b"true", b"\xff", b"\0", b"[" * 5000)
VALUES: tuple[Any, ...] = (None, True, -1, 0, 10**9, 10**30, 1e308, float("nan"), "", "x" * 100, [], {}, [[]], "\ud800")
OUTCOMES = ("answer", "refused", "traceback", "crash", "hang", "memory")


def make_files(folder: Path) -> None:
    """A small valid file of each kind."""
    import keras
    import numpy as np
    from PIL import Image

    import kquant

    keras.utils.set_random_seed(0)
    rng, layers = np.random.default_rng(0), keras.layers
    inputs = keras.Input((6, 4), name="x")
    x = layers.Conv1D(4, 3, activation="relu", name="conv")(inputs)
    model = keras.Model(inputs, layers.Dense(3, name="head")(layers.LSTM(4, name="lstm")(x)), name="net")
    samples = rng.normal(size=(40, 6, 4)).astype("float32")
    q = kquant.quantize(model)
    seen = kquant.observe(q, samples, verbose=False)
    kquant.calibrate(q, seen)
    model.save(folder / "model.keras")
    q.save(folder / "quantized.keras")
    model.save(folder / "model.h5")
    seen.save(folder / "observations.npz")
    kquant.export(q, folder / "model.tflite", check_runtimes=False)
    (folder / "encodings.json").write_text(json.dumps(kquant.encodings(q)))
    recipe = {"name": "mine", "activations": {"observer": "minmax"}, "rules": [{"layer": "head", "float": True}]}
    (folder / "recipe.json").write_text(json.dumps(kquant.recipe_to_aeq(recipe)))
    (folder / "recipe.toml").write_text(kquant.recipe_to_toml(recipe))
    np.save(folder / "x.npy", samples)
    np.savez(folder / "plain.npz", x=samples[:4], y=rng.integers(0, 3, 4))
    np.savez_compressed(folder / "packed.npz", x=samples[:4], y=rng.integers(0, 3, 4))
    np.save(folder / "labels.npy", rng.integers(0, 3, 40))
    pixels = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    for suffix in ("png", "jpg", "bmp", "gif", "webp", "ppm"):
        Image.fromarray(pixels).save(folder / f"image.{suffix}")


def readers(folder: Path) -> dict[str, tuple[tuple[str, ...], Callable[[Path], Any]]]:
    """Kind -> the valid files that are damaged, and what reads such a file, as the verbs and commands do."""
    import keras
    import numpy as np

    import kquant
    from kquant.app import command_files
    from kquant.recipe import recipe as recipes

    takes = (command_files.Input("x", (6, 4)),)
    picture = (command_files.Input("x", (8, 8, 3)),)
    q = keras.models.load_model(folder / "quantized.keras")
    x = np.load(folder / "x.npy")
    images = tuple(f"image.{suffix}" for suffix in ("png", "jpg", "bmp", "gif", "webp", "ppm"))
    kept = _kept(folder, q)

    def both(path: Path) -> None:
        kquant.inspect(path)
        kquant.layer_bytes(path)

    def run(runtime: str) -> Callable[[Path], Any]:
        return lambda path: kquant.predict(path, x[:2], runtime)

    return {
        "npy": (("x.npy",), lambda path: command_files.load_data(path, takes)),
        "npz": (("plain.npz", "packed.npz"), lambda path: command_files.load_data(path, takes, limit=3)),
        "labels": (("labels.npy", "plain.npz"), command_files.load_labels),
        "observations": (
            ("observations.npz",),
            lambda path: kquant.calibrate(q, kquant.Observations.load(path), verbose=False),
        ),
        "encodings": (("encodings.json",), lambda path: kquant.set_encodings(q, path)),
        "recipe-json": (("recipe.json",), recipes.load),
        "recipe-toml": (("recipe.toml",), recipes.load),
        "rungs": (("rungs.json",), kept["rungs"]),
        "roundings": (("roundings.npz",), kept["roundings"]),
        "image": (images, lambda path: command_files.load_data(path.parent, picture)),
        "tflite": (("model.tflite",), both),
        **{f"tflite-{name}": (("model.tflite",), run(name)) for name in ("litert", "litert-reference", "tflm")},
        "keras": (("model.keras", "quantized.keras"), command_files.load_model),
        "h5": (("model.h5",), command_files.load_model),
    }


def _kept(folder: Path, q: Any) -> dict[str, Callable[[Path], Any]]:
    """State of searches and corrections that were stopped: made here, read again from a folder."""
    import numpy as np

    from kquant.correct.progress import Finished
    from kquant.files.finished_work import Kept
    from kquant.search.ladder import Rung
    from kquant.views.quantized_model import places, read

    place, made = places(read(q))[0], np.zeros((3, 4, 4), np.int8)
    about = ("adaround", "rounding", [1], b"")
    Finished(folder / "kept", *about).store(place, [], made)
    (file,) = (folder / "kept").iterdir()
    (folder / "roundings.npz").write_bytes(file.read_bytes())
    search = {"model": "net", "weights": 1}
    Kept(folder / "rungs.json", "autotune", search).store(rungs=[Rung("int8", {"name": "int8"}, 0.5, 0.0, 100, 1.0)])

    def roundings(path: Path) -> Any:
        damaged = path.parent / "kept"
        damaged.mkdir(exist_ok=True)
        path.replace(damaged / file.name)
        return Finished(damaged, *about).load(place, [])

    def rungs(path: Path) -> Any:
        return Kept(path, "autotune", search).rows("rungs", Rung)

    return {"roundings": roundings, "rungs": rungs}


def damaged(content: bytes, suffix: str, rng: random.Random) -> bytes:
    """One file, damaged: as bytes, or inside an archive or a text that stays one."""
    if suffix in (".npz", ".keras") and rng.random() < 0.7:
        return _rezipped(content, rng)
    if suffix == ".json" and rng.random() < 0.6:
        return json.dumps(_edited(json.loads(content), rng)).encode("utf-8", "surrogatepass")
    if suffix == ".tflite" and rng.random() < 0.8:
        return (
            _model_edited(content, rng) if rng.random() < 0.6 else _changed(content, rng, ("bit", "integer"), (1, 1, 2))
        )
    if suffix == ".png" and rng.random() < 0.7:
        return _png(content, rng)
    return _changed(content, rng)


WAYS = ("bit", "integer", "integer", "text", "cut", "twice", "copy", "end", "zeros")


def _changed(
    content: bytes, rng: random.Random, ways: tuple[str, ...] = WAYS, counts: tuple[int, ...] = (1, 1, 2, 4, 16)
) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice(counts)):
        at, to = sorted((rng.randrange(len(changed) + 1), rng.randrange(len(changed) + 1)))
        way = rng.choice(ways)
        if way == "bit" and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif way == "integer":
            at -= at % 4
            changed[at : at + 4] = struct.pack("<I", rng.choice(INTEGERS))
        elif way == "text":
            changed[at : at + 1] = rng.choice(TEXTS)
        elif way == "cut":
            del changed[at : min(to, at + rng.choice((1, 8, 200)))]
        elif way == "twice":
            changed[at:at] = changed[at:to] * rng.choice((1, 3))
        elif way == "copy":
            changed[at : at + 32] = changed[to : to + 32]
        elif way == "end":
            del changed[at:]
        elif way == "zeros":
            changed[at:to] = bytes(min(to - at, 64))
    return bytes(changed)


def _rezipped(content: bytes, rng: random.Random) -> bytes:
    """An archive with right checksums around one damaged entry, an entry too few, or one that is a bomb."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new:
        names = old.namelist()
        chosen = rng.choice(names)
        way = rng.choice(("bytes", "bytes", "config", "without", "bomb", "many"))
        for name in names:
            entry = old.read(name)
            if name == chosen and way == "without":
                continue
            if name == chosen and way == "bomb":
                entry = bytes(rng.choice((1, 300)) << 20) if rng.random() < 0.2 else bytes(1 << 20)
            elif name.endswith(".json") and way == "config":
                entry = json.dumps(_edited(json.loads(entry), rng)).encode("utf-8", "surrogatepass")
            elif name == chosen and way == "bytes":
                entry = _changed(entry, rng)
            new.writestr(name, entry)
        if way == "many":
            for i in range(rng.choice((10, 3000))):
                new.writestr(f"more/{i}", b"")
    return made.getvalue()


def _edited(data: Any, rng: random.Random) -> Any:
    """Plain data with some values replaced, deep inside."""
    places: list[tuple[Any, Any]] = []
    level = [data]
    while level:
        held = level.pop()
        keys = list(held) if isinstance(held, dict) else list(range(len(held))) if isinstance(held, list) else []
        places += [(held, key) for key in keys]
        level += [held[key] for key in keys]
    if not places or rng.random() < 0.03:
        return rng.choice(VALUES)
    for held, key in rng.sample(places, min(len(places), rng.choice((1, 1, 2, 5)))):
        numbers = isinstance(held[key], int) and not isinstance(held[key], bool)
        held[key] = rng.choice((10**9, 10**6, 0, -1)) if numbers and rng.random() < 0.5 else rng.choice(VALUES)
    return data


def _model_edited(content: bytes, rng: random.Random) -> bytes:
    """A TFLite file that is whole as a flatbuffer, with other operators, tensors, shapes, types, or graphs twice."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for _ in range(rng.choice((1, 1, 2, 3))):
        graph = rng.choice(model.subgraphs)
        tensor, op = rng.choice(graph.tensors), rng.choice(graph.operators)
        way = rng.choice(
            ("graphs", "shape", "type", "port", "code", "buffer", "order", "scale", "options", "edge", "rank")
        )
        if way == "graphs":
            model.subgraphs = model.subgraphs * 2
        elif way == "shape":
            tensor.shape = [rng.choice((n, -1, 0, 1, 7, 1000, 1 << 30)) for n in tensor.shape]
        elif way == "rank":
            tensor.shape = [*tensor.shape, rng.choice((1, 3))] if rng.random() < 0.5 else [*tensor.shape][1:]
        elif way == "type":
            tensor.type = rng.randrange(20)
        elif way == "port":
            ports = rng.choice(("inputs", "outputs"))
            row = [int(i) for i in getattr(op, ports)]
            row[rng.randrange(len(row))] = rng.choice((-1, 0, rng.randrange(len(graph.tensors)), len(graph.tensors)))
            setattr(op, ports, row if rng.random() < 0.8 else row[:-1])
        elif way == "code":
            rng.choice(model.operatorCodes).builtinCode = rng.randrange(200)
        elif way == "buffer":
            tensor.buffer = rng.randrange(len(model.buffers) + 1)
        elif way == "order":
            rng.shuffle(graph.operators)
        elif way == "scale" and tensor.quantization is not None:
            tensor.quantization.scale = [rng.choice((0.0, -1.0, 1e-30, 1e30, float("nan")))]
        elif way == "options":
            op.builtinOptions = None
        elif way == "edge":
            graph.inputs = [rng.randrange(len(graph.tensors)) for _ in range(rng.choice((0, 1, 2)))]
    builder = flatbuffers.Builder(1 << 12)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _png(content: bytes, rng: random.Random) -> bytes:
    """A PNG with damaged chunks under right checksums: sizes that are not there, other depths, a bomb."""
    chunks, at = [], 8
    while at < len(content):
        (size,) = struct.unpack_from(">I", content, at)
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    chosen = rng.randrange(len(chunks))
    kind, body = chunks[chosen]
    if kind == b"IHDR":
        body = struct.pack(">II", rng.choice(INTEGERS), rng.choice((1, 9, 10**5))) + body[8:]
    elif rng.random() < 0.2:
        body = zlib.compress(bytes(200 << 20))
    elif body:
        body = _changed(body, rng)
    chunks[chosen] = kind, body
    packed = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks]
    return content[:8] + b"".join(packed)


def work(folder: Path) -> None:
    """Answer `kind seed` lines: what became of that case, in one line of JSON."""
    known = readers(folder)
    for kind, (names, reader) in known.items():
        for name in names:
            outcome = _case(reader, name, (folder / name).read_bytes())
            if outcome[0] != "answer":
                raise RuntimeError(f"{kind}: {name} as it was written: {outcome}")
    memory = _memory()
    resource.setrlimit(resource.RLIMIT_AS, (memory[0] + 2 * MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    print("ready", flush=True)
    for line in sys.stdin:
        kind, seed = line.split()
        names, reader = known[kind]
        rng = random.Random(f"{kind} {seed}")
        name = rng.choice(names)
        content = damaged((folder / name).read_bytes(), Path(name).suffix, rng)
        print(json.dumps(_case(reader, name, content)), flush=True)


def _case(reader: Callable[[Path], Any], name: str, content: bytes) -> list[Any]:
    """Outcome, words, seconds of processor time, and memory here and in other processes."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / name
        path.write_bytes(content)
        began, resident, others = _seconds(), _memory()[1], _of_children()
        outcome, said = _read(reader, path)
    seconds, grown = _seconds() - began, _memory()[1] - resident
    children = _of_children() if _of_children() > others else 0  # the largest so far
    if outcome in ("answer", "refused"):
        outcome = "hang" if seconds > SECONDS else "memory" if max(grown, children) > MEMORY else outcome
    return [outcome, said, round(seconds, 2), max(grown, 0), children]


def _read(reader: Callable[[Path], Any], path: Path) -> tuple[str, str]:
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader(path)
    except (ValueError, OSError, ImportError) as error:  # what commands print as one line
        return "refused", str(error)[:300]
    except Exception as error:
        import traceback

        return "traceback", f"{type(error).__name__}: {error} {traceback.format_exc()[-600:]}"
    return "answer", ""


def _memory() -> tuple[int, int]:
    """Address space and the largest resident size so far, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _of_children() -> int:
    """The largest resident size of a process that this one started; it begins with what this one has."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10


def _seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


class Worker:
    """A process that reads damaged files, and another one after its death."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.process = folder, None

    def ask(self, kind: str, seed: int) -> list[Any]:
        """Outcome, words, seconds and memory of one case."""
        process = self.process or self._started()
        killed = threading.Event()
        timer = threading.Timer(WALL_SECONDS, lambda: (killed.set(), process.kill()))
        timer.start()
        process.stdin.write(f"{kind} {seed}\n")
        process.stdin.flush()
        line = process.stdout.readline()
        timer.cancel()
        if line:
            return json.loads(line)
        self.process = None
        return ["hang" if killed.is_set() else "crash", f"exit code {process.wait()}", 0.0, 0, 0]

    def _started(self) -> Any:
        command = [sys.executable, "-m", "benchmarks.damaged_files", "--work", str(self.folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline().strip() != "ready":
            raise RuntimeError("the worker does not start")
        return self.process


def measure(cases: int, kinds: list[str], first: int = 0) -> dict[str, Counter]:
    """Outcomes by kind; each one that should not be is printed."""
    found: dict[str, Counter] = {}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "benchmarks.damaged_files", "--make", folder], check=True)
        worker = Worker(Path(folder))
        for kind in kinds:
            count = cases if len(kinds) == 1 else round(SHARES[kind] * cases / sum(SHARES.values()))
            found[kind], began = Counter(), time.perf_counter()
            for seed in range(first, first + count):
                outcome, said, seconds, grown, children = worker.ask(kind, seed)
                found[kind][outcome] += 1
                found[kind]["slowest_ms"] = max(found[kind]["slowest_ms"], int(1000 * seconds))
                found[kind]["most_memory"] = max(found[kind]["most_memory"], grown, children)
                if outcome not in ("answer", "refused") or count == 1:
                    print(f"{kind} {seed}: {outcome}, {seconds} s, {said}", file=sys.stderr, flush=True)
            print(f"{kind}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        if worker.process is not None:
            worker.process.stdin.close()
            worker.process.wait()
    return found


def table(found: dict[str, Counter]) -> str:
    """The table of docs/reliability.md."""
    names = {"answer": "answers", "traceback": "tracebacks", "crash": "crashes", "hang": "hangs", "memory": "over 1 GB"}
    heads = [names.get(outcome, outcome) for outcome in OUTCOMES]
    rows = [f"| kind | files | {' | '.join(heads)} | slowest (s) | most memory (MB) |"]
    rows.append("| --- " + "| ---: " * (len(OUTCOMES) + 3) + "|")
    total: Counter = Counter()
    for kind, counts in [*found.items(), ("all", total)]:
        files = sum(counts[outcome] for outcome in OUTCOMES)
        cells = [f"{counts[outcome]:,}" for outcome in OUTCOMES]
        worst = f"{counts['slowest_ms'] / 1000:.1f} | {counts['most_memory'] >> 20:,}"
        rows.append(f"| {kind} | {files:,} | {' | '.join(cells)} | {worst} |")
        for key, value in counts.items():
            total[key] = total[key] + value if key in OUTCOMES else max(total[key], value)
    return "\n".join(rows)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=sum(SHARES.values()))
    parser.add_argument("--kind", choices=SHARES, action="append")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if given.make:
        make_files(given.make)
    elif given.work:
        work(given.work)
    else:
        print(table(measure(given.cases, given.kind or list(SHARES), given.first)))


if __name__ == "__main__":
    main()
