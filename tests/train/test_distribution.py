"""`tf.distribute`: two devices, and two processes, give the weights and ranges that one device gives."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from pathlib import Path

import distributed
import keras
import new_process
import numpy as np
import pytest

import kquant

pytestmark = pytest.mark.filterwarnings(
    "ignore:`shuffle=True` was passed, but will be ignored",
)

SECONDS = 300


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("localhost", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def start(name: str, folder: Path, **environment: str) -> new_process.Started:
    """One process that runs the cases."""
    folder.mkdir()
    code = "import sys, pathlib, distributed; distributed.main(sys.argv[1], pathlib.Path(sys.argv[2]))"
    return new_process.start(code, name, folder, CUDA_VISIBLE_DEVICES="-1", **environment)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the results, see `run_all`; of several test processes the first makes them for all."""
    base = tmp_path_factory.getbasetemp()
    base = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "distributed"
    with base.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / "done").exists():
            run_all(base)
            (base / "done").touch()
    return {name: base / name for name in ("one", "mirrored", "worker-0", "worker-1")}


def run_all(base: Path) -> None:
    """Two devices, and each of two workers; one device runs here meanwhile."""
    base.mkdir()
    workers = [f"localhost:{port}" for port in free_ports(2)]
    started = {"mirrored": start("mirrored", base / "mirrored")}
    for i in range(2):
        config = json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": i}})
        started[f"worker-{i}"] = start("workers", base / f"worker-{i}", TF_CONFIG=config)
    (base / "one").mkdir()
    distributed.main("one", base / "one")
    try:
        for name, process in started.items():
            done = process.wait(SECONDS)
            assert done.returncode == 0, f"{name}: {done.stderr[-3000:]}"
    finally:
        for process in started.values():
            process.kill()


ON_WORKERS = [name for name, case in distributed.CASES.items() if case.workers]
RUNS = [("mirrored", name) for name in distributed.CASES]
RUNS += [(worker, name) for worker in ("worker-0", "worker-1") for name in ON_WORKERS]


@pytest.mark.parametrize(("run", "name"), RUNS)
def test_same_weights_as_on_one_device(run: str, name: str, runs: dict[str, Path]) -> None:
    one, found = (np.load(runs[which] / f"{name}.npz") for which in ("one", run))
    assert set(one) == set(found)
    most = distributed.CASES[name].tolerance
    for key in one:
        np.testing.assert_allclose(found[key], one[key], rtol=most, atol=most, err_msg=key)
    moved = [key for key in one if key.endswith(".low") and np.any(one[key])]
    assert moved, "no range was set"


@pytest.mark.parametrize("name", distributed.CASES)
def test_a_model_saved_under_a_strategy_loads_without_one(name: str, runs: dict[str, Path], tmp_path: Path) -> None:
    """And was exported there to the same bytes."""
    stored = np.load(runs["mirrored"] / f"{name}.npz")
    again = keras.saving.load_model(runs["mirrored"] / f"{name}.keras")
    found = distributed.floats(again)
    assert set(stored) == set(found)
    for key in stored:
        np.testing.assert_array_equal(found[key], stored[key], err_msg=key)
    kquant.export(getattr(again, "student", again), tmp_path / "again.tflite", check_runtimes=False)
    assert (tmp_path / "again.tflite").read_bytes() == (runs["mirrored"] / f"{name}.tflite").read_bytes()
