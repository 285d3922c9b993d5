"""The interpreters behind one call: LiteRT with XNNPACK, LiteRT's reference kernels, TensorFlow Lite Micro.

A file that an interpreter cannot take may end the process; `kquant.export` therefore runs a new file in a process of its
own first (`probe`).
"""

from __future__ import annotations

import difflib
import importlib
import multiprocessing
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from kquant.inspect import FileTensor, read_model

RUNTIMES = ("litert", "litert-reference", "tflm")
# codes of one sample for each input -> codes of each output
Invoke = Callable[[list[np.ndarray]], list[np.ndarray]]


def predict(
    path_or_bytes: str | Path | bytes, x: Any, runtime: str = "litert", *, verbose: bool = False
) -> np.ndarray | list[np.ndarray]:
    """Run a `.tflite` file on real numbers, sample by sample.

    Args:
        path_or_bytes: the file.
        x: array [samples, ...], or a list (in the file's order) or dict (by tensor name) of arrays.
        runtime: "litert" (XNNPACK), "litert-reference" or "tflm".
        verbose: show a progress bar.

    Returns:
        float32 array [samples, ...], a list of them for several outputs: inputs are quantized and outputs dequantized with
        the file's own scales.

    Raises:
        ValueError: unknown runtime, not a TFLite file, wrong shapes, a missing extra.

    Example:
        >>> kquant.predict("resnet8.tflite", images, runtime="tflm")  # doctest: +SKIP
    """
    data = _bytes(path_or_bytes)
    model = read_model(data)
    arrays = _arrays(x, model.inputs)
    invoke = open_runtime(data, runtime)
    outputs: list[list[np.ndarray]] = [[] for _ in model.outputs]
    for i in tqdm(range(len(arrays[0])), desc=runtime, unit="sample", disable=not verbose):
        codes = [quantize_input(a[i : i + 1], t) for a, t in zip(arrays, model.inputs, strict=True)]
        for collected, result, tensor in zip(outputs, invoke(codes), model.outputs, strict=True):
            collected.append(dequantize_output(result, tensor))
    results = [np.concatenate(collected) for collected in outputs]
    return results[0] if len(results) == 1 else results


def predict_codes(path_or_bytes: str | Path | bytes, codes: list[np.ndarray], runtime: str) -> list[np.ndarray]:
    """Like `predict`, with codes in and out (`codes[i]` is [samples, ...] of the file's type)."""
    invoke = open_runtime(_bytes(path_or_bytes), runtime)
    rows = [invoke([c[i : i + 1] for c in codes]) for i in range(len(codes[0]))]
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


def open_runtime(data: bytes, runtime: str) -> Invoke:
    """An interpreter of that name, ready to run."""
    if runtime not in RUNTIMES:
        near = difflib.get_close_matches(str(runtime), RUNTIMES, 1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"runtime '{runtime}' does not exist.{hint} There are: {', '.join(RUNTIMES)}.")
    return _tflm(data) if runtime == "tflm" else _litert(data, reference=runtime == "litert-reference")


def available() -> list[str]:
    """The runtimes installed here."""
    return [name for name in RUNTIMES if name != "tflm" or importlib.util.find_spec("tflite_micro") is not None]


def _litert(data: bytes, *, reference: bool) -> Invoke:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
    interpreter = Interpreter(model_content=data, num_threads=1, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    inputs = [d["index"] for d in interpreter.get_input_details()]
    outputs = [d["index"] for d in interpreter.get_output_details()]

    def invoke(codes: list[np.ndarray]) -> list[np.ndarray]:
        for index, value in zip(inputs, codes, strict=True):
            interpreter.set_tensor(index, value)
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in outputs]

    return invoke


def _tflm(data: bytes) -> Invoke:
    interpreter = _micro().Interpreter.from_bytes(data)
    outputs = len(read_model(data).outputs)

    def invoke(codes: list[np.ndarray]) -> list[np.ndarray]:
        for i, value in enumerate(codes):
            interpreter.set_input(value, i)
        interpreter.invoke()
        return [np.array(interpreter.get_output(i)) for i in range(outputs)]

    return invoke


def _micro() -> Any:
    try:
        from tflite_micro import runtime
    except ImportError as error:
        raise ValueError("runtime 'tflm' needs an extra: pip install 'kquant[micro]' (Linux only).") from error
    return runtime


def arena_bytes(data: bytes) -> int | None:
    """Bytes of tensor arena that TFLM uses on this 64-bit host, or None without the `micro` extra.

    The interpreter only prints the figure, so it runs in a process of its own; a bad file cannot take this one along.
    """
    if "tflm" not in available():
        return None
    code = (
        "import sys; from tflite_micro import runtime; "
        "i = runtime.Interpreter.from_bytes(sys.stdin.buffer.read()); i.print_allocations()"
    )
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=False)
    found = re.search(rb"Arena allocation total (\d+) bytes", done.stdout + done.stderr)
    if found is None:
        raise ValueError(f"TFLM cannot prepare this file:\n{(done.stdout + done.stderr).decode(errors='replace')[-800:]}")
    return int(found.group(1))


def _run_in_child(data: bytes, runtime: str, codes: list[np.ndarray], queue: Any) -> None:
    try:
        queue.put((None, predict_codes(data, codes, runtime)))
    except Exception as error:  # handed to the parent, which raises it
        queue.put((f"{type(error).__name__}: {error}", None))


def probe(data: bytes, runtime: str, codes: list[np.ndarray]) -> list[np.ndarray]:
    """`predict_codes` in a child process, so that a crash there becomes an error here.

    Raises:
        ValueError: the interpreter refused the file or died.
    """
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    queue = context.SimpleQueue()
    child = context.Process(target=_run_in_child, args=(data, runtime, codes, queue), daemon=True)
    child.start()
    while child.is_alive() and queue.empty():
        child.join(0.005)
    if queue.empty():
        child.join()
        raise ValueError(f"{runtime} died on this file (exit code {child.exitcode}); the file is not usable there.")
    message, outputs = queue.get()
    child.join()
    if message is not None:
        raise ValueError(f"{runtime} cannot run this file: {message}")
    return outputs


def quantize_input(x: np.ndarray, tensor: FileTensor) -> np.ndarray:
    """`clip(round(x / scale) + zero_point)` in the tensor's type; float inputs as they are."""
    if tensor.scale is None:
        return x.astype(tensor.dtype)
    info = np.iinfo(tensor.dtype)
    codes = np.rint(x.astype(np.float32) / np.float32(tensor.scale[0])) + tensor.zero_point[0]
    return np.clip(codes, info.min, info.max).astype(tensor.dtype)


def dequantize_output(codes: np.ndarray, tensor: FileTensor) -> np.ndarray:
    """`scale * (code - zero_point)` as float32."""
    if tensor.scale is None:
        return codes.astype(np.float32)
    return (codes.astype(np.int64) - tensor.zero_point[0]).astype(np.float32) * np.float32(tensor.scale[0])


def _bytes(path_or_bytes: str | Path | bytes) -> bytes:
    if isinstance(path_or_bytes, bytes | bytearray):
        return bytes(path_or_bytes)
    path = Path(path_or_bytes)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the path of a .tflite file or its bytes.")
    return path.read_bytes()


def _arrays(x: Any, tensors: tuple[FileTensor, ...]) -> list[np.ndarray]:
    if isinstance(x, dict):
        missing = [t.name for t in tensors if t.name not in x]
        if missing:
            raise ValueError(f"predict: no array for input {', '.join(missing)}. Received: {', '.join(map(str, x))}.")
        x = [x[t.name] for t in tensors]
    arrays = [np.asarray(x)] if len(tensors) == 1 and not isinstance(x, list | tuple) else [np.asarray(a) for a in x]
    if len(arrays) != len(tensors):
        raise ValueError(f"predict: the file has {len(tensors)} inputs. Received: {len(arrays)} arrays.")
    for array, tensor in zip(arrays, tensors, strict=True):
        if array.shape[1:] != tuple(tensor.shape[1:]) or len(array) == 0:
            raise ValueError(
                f"predict: input '{tensor.name}' takes [samples, {', '.join(map(str, tensor.shape[1:]))}]. "
                f"Received: {array.shape}."
            )
    return arrays
