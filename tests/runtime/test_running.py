"""`.tflite` files from anywhere: counted before objects are made of them, and run in processes of their own."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import resource
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import flatbuffers
import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

import kquant
from kquant.runtime import interpreters
from kquant.runtime.arenas import arena_bytes
from kquant.runtime.running import Running
from kquant.tflite.reader import refuse_damaged

X = np.random.default_rng(0).normal(size=(40, 6, 3)).astype(np.float32)
RUNTIMES = ["litert", "litert-reference"] + ["tflm"] * (importlib.util.find_spec("tflite_micro") is not None)


@cache
def content() -> bytes:
    """A small LSTM, which has operators, constants and variables."""
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 3), name="x")
    q = kquant.calibrate(kquant.quantize(keras.Model(x, keras.layers.LSTM(4, name="lstm")(x))), X, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        kquant.export(q, Path(folder) / "lstm.tflite", check_runtimes=False)
        return (Path(folder) / "lstm.tflite").read_bytes()


def edited(change: Any) -> bytes:
    """The file with other tables, packed as a whole flatbuffer."""
    model = schema.ModelT.InitFromPackedBuf(content(), 0)
    change(model)
    builder = flatbuffers.Builder(1 << 12)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def shared_tables(graphs: int, tensors: int) -> bytes:
    """Vectors whose offsets all lead to one table: few bytes that tell of `graphs * tensors` tensors."""
    builder = flatbuffers.Builder(1 << 16)

    def vector(count: int, table: int) -> int:
        builder.StartVector(4, count, 4)
        for _ in range(count):
            builder.PrependUOffsetTRelative(table)
        return builder.EndVector()

    name = builder.CreateString("t")
    builder.StartObject(8)
    builder.PrependUOffsetTRelativeSlot(3, name, 0)
    held = vector(tensors, builder.EndObject())
    builder.StartObject(5)
    builder.PrependUOffsetTRelativeSlot(0, held, 0)
    held = vector(graphs, builder.EndObject())
    builder.StartObject(8)
    builder.PrependUint32Slot(0, 3, 0)
    builder.PrependUOffsetTRelativeSlot(2, held, 0)
    builder.Finish(builder.EndObject(), b"TFL3")
    return bytes(builder.Output())


def test_tables_are_counted_before_they_are_unpacked(tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(shared_tables(5000, 5000))
    verbs = [kquant.inspect, kquant.layer_bytes, lambda path: kquant.predict(path, X), kquant.stream]
    for verb in verbs:
        with pytest.raises(ValueError, match=r"m.tflite is damaged: .*far more than its 4\d,\d+ bytes can hold"):
            verb(tmp_path / "m.tflite")
    for run in (lambda data: Running(data, "litert"), arena_bytes, refuse_damaged):
        with pytest.raises(ValueError, match="far more than"):
            run(shared_tables(5000, 5000))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_main_graph_twice_is_an_answer_or_an_error(runtime: str) -> None:
    """TFLM's interpreter dies of it by a signal, now and then: undefined behaviour depends on what lies around."""

    def twice(model: Any) -> None:
        model.subgraphs = model.subgraphs * 2

    expected = kquant.predict(content(), X[:2], runtime)
    for _ in range(2):
        try:
            np.testing.assert_array_equal(kquant.predict(edited(twice), X[:2], runtime), expected)
        except ValueError as error:
            assert "cannot run this file" in str(error)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_no_interpreter_runs_in_this_process(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that ran once may end the process another time, so none is opened here at all."""
    for name in ("open_runtime", "litert_interpreter", "tflm_interpreter"):
        monkeypatch.setattr(interpreters, name, lambda *_, **__: pytest.fail("it was opened here"))
    assert kquant.predict(content(), X[:2], runtime).shape == (2, 4)
    with Running(content(), "litert-reference") as running:
        assert len(running.tensors([np.zeros((1, 6, 3), np.int8)])) > 2
    if runtime == "tflm":
        assert arena_bytes(content())


def shape_of_the_input(model: Any) -> None:
    graph = model.subgraphs[0]
    graph.tensors[graph.inputs[0]].shape = [1, 1 << 30, 1 << 30]


def huge_tensors(model: Any) -> None:
    for tensor in model.subgraphs[0].tensors:
        if tensor.buffer == 0 or model.buffers[tensor.buffer].data is None:
            tensor.shape = [30000, 30000, 4]


def text_input(model: Any) -> None:
    graph = model.subgraphs[0]
    graph.tensors[graph.inputs[0]].type = schema.TensorType.STRING


def scale_of_nan(model: Any) -> None:
    graph = model.subgraphs[0]
    graph.tensors[graph.inputs[0]].quantization.scale = [float("nan")]


def no_outputs(model: Any) -> None:
    model.subgraphs[0].operators[0].outputs = [len(model.subgraphs[0].tensors)]


EDITS = {
    shape_of_the_input: "expected samples of shape .1073741824, 1073741824.",
    huge_tensors: "expected samples of shape|cannot run this file",
    text_input: "is of type STRING; known are",
    scale_of_nan: "has the scale nan",
    no_outputs: "is damaged: IndexError: index",
}


@pytest.mark.parametrize("change", EDITS, ids=lambda f: f.__name__)
def test_edited_files_are_refused(change: Any) -> None:
    with pytest.raises(ValueError, match=EDITS[change]):
        kquant.predict(edited(change), X[:2], RUNTIMES[-1])


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="the limit of another process is told on Linux only")
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_file_cannot_fill_the_machine(runtime: str) -> None:
    with Running(content(), runtime) as running:
        running.samples([np.zeros((1, 6, 3), np.int8)])
        pages = int(Path(f"/proc/{running._process.pid}/statm").read_text().split()[0])
        limit, _ = resource.prlimit(running._process.pid, resource.RLIMIT_AS)
    assert 0 < limit < pages * resource.getpagesize() + (3 << 30)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_samples_in_many_messages_are_those_in_one(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = kquant.predict(content(), X, runtime)
    monkeypatch.setattr("kquant.runtime.running.MESSAGE_BYTES", 1000)
    np.testing.assert_array_equal(kquant.predict(content(), X, runtime), expected)


def test_a_process_ends_with_its_owner() -> None:
    running = Running(content(), "litert")
    codes = [np.zeros((1, 6, 3), np.int8)]
    first = running.call(codes)
    running.reset()
    np.testing.assert_array_equal(running.call(codes)[0], first[0])
    process = running._process
    del running
    gc.collect()
    assert process.poll() is not None


def test_an_answer_that_does_not_come_is_an_error() -> None:
    with (
        Running(content(), "litert", seconds=0.0) as running,
        pytest.raises(ValueError, match="litert was not done with this file after 0 s; try fewer samples"),
    ):
        running.samples([np.zeros((1, 6, 3), np.int8)])


@pytest.mark.parametrize(
    "told",
    [None, [], {"hop": 0, "axes": [None], "states": []}, {"hop": 1, "axes": [None], "states": [0, 0]}, {"hop": 1}],
    ids=str,
)
def test_streaming_metadata_that_do_not_fit_are_refused(told: Any) -> None:
    def change(model: Any) -> None:
        entry = next(m for m in model.metadata if m.name == b"kquant")
        about = {"kquant": "1", "streaming": told} if told is not None else {"kquant": "1"}
        model.buffers[entry.buffer].data = list(json.dumps(about).encode())

    with pytest.raises(ValueError, match="its metadata tell of|is not a streaming file"):
        kquant.stream(edited(change))


def test_pipes_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.tflite")
    for verb in (kquant.inspect, lambda path: kquant.predict(path, X)):
        with pytest.raises(ValueError, match="m.tflite: a pipe, a socket or a device, not a file"):
            verb(tmp_path / "m.tflite")
