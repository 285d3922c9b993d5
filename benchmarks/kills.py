"""Kills at random moments over `compress`, `autotune`, `export` and `correct`: what is there then, and after one more.

Each run goes into a folder that holds the results of an earlier run (of another recipe) and a file of the user's. It is
killed by SIGKILL: half of the runs at a moment drawn from their whole time, half before or after a call to the system
that names a file in that folder, drawn from those calls. Then all results must be the old ones, or all the new ones (a
run decided in the moment of the kill may be finished by the next reader, `kquant.verify`); after one more run they are
the new ones, and nothing else is there.

TensorFlow loads once: a process that has loaded everything and computed nothing forks for each run.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.choice import one_of

SEED = 0
COMMANDS = ("compress", "autotune", "export", "correct")
NOTES = b"of the user"


@dataclass
class Row:
    """Of one command."""

    kills: int = 0
    writing: int = 0
    states: Counter = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    seconds: float = 0.0


def inputs(folder: Path) -> None:
    """A tiny model, its samples and labels, and a quantized model."""
    import keras

    import kquant

    keras.utils.set_random_seed(SEED)
    x = keras.Input((16,), name="x")
    y = keras.layers.Dense(32, activation="relu", name="first")(x)
    model = keras.Model(x, keras.layers.Dense(4, name="head")(y), name="net")
    samples = np.random.default_rng(SEED).normal(size=(32, 16)).astype(np.float32)
    model.save(folder / "net.keras")
    np.savez(folder / "x.npz", x=samples)
    np.save(folder / "y.npy", model.predict(samples, verbose=0).argmax(-1))
    q = kquant.calibrate(kquant.quantize(model), samples, verbose=False)
    q.save(folder / "quantized.keras")


def command(name: str, given: Path, out: Path, old: bool) -> list[str]:
    """The arguments of a run; old results come of another recipe."""
    data = ["--data", str(given / "x.npz")]
    recipe = ["--recipe", str(given / "old.toml")] if old else ["--recipe", "int8"]
    if name == "compress":
        return ["compress", str(given / "net.keras"), *data, "--folder", str(out), *recipe]
    if name == "autotune":
        labels = ["--labels", str(given / "y.npy"), "--max-drop", "1"]
        return ["autotune", str(given / "net.keras"), *data, *labels, "--folder", str(out), *recipe]
    if name == "correct":
        files = ["--path", str(out / "net.keras"), "--path", str(out / "net.tflite")]
        return ["correct", str(given / "net.keras"), *data, "--steps", "calibrate,bias", *files, *recipe]
    # the verb; the command of that name writes projects
    return ["export", str(given / ("old.keras" if old else "quantized.keras"))]


def work(name: str, given: Path, out: Path, old: bool) -> None:
    """One run, in this process."""
    from kquant.app import command_files
    from kquant.app.cli import app
    from kquant.exporting.export_file import export

    arguments = command(name, given, out, old)
    if name == "autotune" and (out / "rungs.json").exists():
        (out / "rungs.json").unlink()  # of a run that was killed: its state is kept on purpose
    if name == "export":
        q = command_files.load_model(arguments[1])
        export(q, out / "net.tflite", encodings=out / "net.json")
    else:
        app(arguments, standalone_mode=False)


def forked(task: Callable[[], None]) -> int:
    """A process for one run, silent, of a group of its own."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setpgid(0, 0)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        if not os.environ.get("KILLS_TALK"):
            os.dup2(silent, 2)
        warnings.simplefilter("ignore")
        task()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:  # the code tells
        import traceback

        traceback.print_exc()
    os._exit(code)


def finish(child: int) -> int:
    """Wait; the exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


CALLS = ("open", "write", "fsync", "mkdir", "rmdir", "replace", "rename", "unlink", "chmod")


@contextlib.contextmanager
def counted(out: Path, at: int, after: bool, tell: Callable[[int], None]) -> Iterator[None]:
    """Kill this process at the n-th call to the system that concerns results, counted from the first one."""
    count = 0

    def wrap(call: Callable) -> Callable:
        def counting(*args, **kwargs):  # noqa: ANN002, ANN003
            nonlocal count
            if call.__name__ not in ("write", "fsync") and str(out) not in str(args[0]):
                return call(*args, **kwargs)
            count += 1
            tell(count)
            if count == at and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            found = call(*args, **kwargs)
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return counting

    for name in CALLS:
        setattr(os, name, wrap(getattr(os, name)))
    yield


def snapshot(out: Path) -> dict[str, str]:
    """Digests of the results; what is beside them while they are made is no result, nor is the state of a search."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.iterdir())
        if path.is_file() and path.name not in ("notes.txt", "rungs.json")
    }


def kinds(found: dict[str, str], old: dict[str, str], new: set[str]) -> str:
    """Old, new (files of every run differ in the times and names that they hold), or a mixture."""
    changed = {name for name in found if found[name] != old.get(name)}
    if set(found) != set(old):
        return "lost"
    return "old" if not changed else "new" if changed >= new else "mixture"


def run(name: str, kills: int, rng: np.random.Generator, given: Path, base: Path) -> Row:
    """All kills of one command."""
    from kquant.files.leftovers import settle

    row, started = Row(), time.perf_counter()
    first = base / name
    first.mkdir()
    (first / "notes.txt").write_bytes(NOTES)
    if finish(forked(lambda: work(name, given, first, True))):
        raise SystemExit(f"{name}: the run of the old results fails")
    old = snapshot(first)
    shared = multiprocessing.Value("i", 0)
    trial = base / f"{name}-trial"
    shutil.copytree(first, trial)
    begun = time.perf_counter()

    def whole() -> None:
        with counted(trial, 0, False, lambda n: setattr(shared, "value", n)):
            work(name, given, trial, False)

    if finish(forked(whole)):
        raise SystemExit(f"{name}: the run of the new results fails")
    seconds, calls, after = time.perf_counter() - begun, shared.value, snapshot(trial)
    new = {file for file in after if after[file] != old[file]}
    for number in range(kills):
        out = base / f"{name}-{number}"
        shutil.copytree(first, out)
        writing = number % 2 == 0
        at, delay = int(rng.integers(1, calls + 1)), float(rng.uniform(0, seconds))

        def killed(out: Path = out, at: int = at, late: bool = bool(rng.integers(2)), writing: bool = writing) -> None:
            with counted(out, at, late, lambda n: None) if writing else contextlib.nullcontext():
                work(name, given, out, False)

        child = forked(killed)
        if not writing:
            time.sleep(delay)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        ended = finish(child)
        row.kills, row.writing = row.kills + (ended == -signal.SIGKILL), row.writing + writing
        before = kinds(snapshot(out), old, new)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            settle(out)
        state = kinds(snapshot(out), old, new)
        row.states[state if before == state else f"{state}, finished by the next reader"] += 1
        if state not in ("old", "new") or (out / "notes.txt").read_bytes() != NOTES:
            row.lost.append(f"{name} {number}: {state}")
        if finish(forked(lambda out=out: work(name, given, out, False))):
            row.lost.append(f"{name} {number}: the next run fails")
        there = {path.name for path in out.iterdir()} - {"notes.txt", "rungs.json"}
        row.left += [f"{name} {number}: {left}" for left in there - set(old)]
        if kinds(snapshot(out), old, new) != "new":
            row.lost.append(f"{name} {number}: not the new results after the next run")
        shutil.rmtree(out)
    row.seconds = time.perf_counter() - started
    return row


def load() -> None:
    """Everything that a run imports, without computing anything: threads do not survive a fork."""
    import kquant.app.cli
    import kquant.app.result_files  # noqa: F401


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="a quarter for each of the four commands")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument(
        "commands", nargs="*", type=one_of(COMMANDS), default=COMMANDS, help=f"of {', '.join(COMMANDS)}"
    )
    args = parser.parse_args()
    load()
    wrong = []
    with tempfile.TemporaryDirectory() as made:
        given = Path(made) / "given"
        given.mkdir()
        (given / "old.toml").write_text('name = "old"\nweights = { per_axis = false }\n')
        if finish(forked(lambda: inputs(given))) or finish(forked(lambda: old_model(given))):
            raise SystemExit("the inputs cannot be made")
        print(f"{'':10}{'kills':>6}{'of them while writing':>23}{'old set':>9}{'new set':>9}{'finished':>10}"
              f"{'lost':>6}{'left over':>11}{'seconds':>9}", flush=True)  # fmt: skip
        for name in args.commands:
            rng = np.random.default_rng([args.seed, COMMANDS.index(name)])
            row = run(name, args.kills // 4, rng, given, Path(made))
            mended = sum(n for state, n in row.states.items() if "finished" in state)
            print(f"{name:10}{row.kills:6}{row.writing:23}{row.states['old']:9}{row.states['new']:9}{mended:10}"
                  f"{len(row.lost):6}{len(row.left):11}{row.seconds:9.0f}", flush=True)  # fmt: skip
            wrong += row.lost + row.left
    print("\n".join(wrong) or "nothing lost, nothing left over")
    sys.exit(bool(wrong))


def old_model(given: Path) -> None:
    """The quantized model that the old files of `export` come from."""
    import kquant
    from kquant.app import command_files

    samples = np.load(given / "x.npz")["x"]
    q = kquant.quantize(command_files.load_model(given / "net.keras"), given / "old.toml")
    kquant.calibrate(q, samples, verbose=False).save(given / "old.keras")


if __name__ == "__main__":
    main()
