"""The interpreters behind one call: LiteRT with XNNPACK, LiteRT's reference kernels, TensorFlow Lite Micro.

A file that an interpreter cannot take may end the process, this time or another time: what is read beyond a buffer's
end depends on what lies there. So every file runs in a process of its own (`Running`), which stays for as many samples
as there are.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import re
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kquant.calibration.data_scale import Expected, warn_of_scale
from kquant.core.checks import array_of, wrong_shape
from kquant.core.messages import check_known
from kquant.core.operators import facts
from kquant.core.renamed import renamed
from kquant.runtime import interpreters
from kquant.runtime.decoding import DECODES, check_decodes
from kquant.runtime.interpreters import CALL, RESET, RUNTIMES, SAMPLES, TENSORS
from kquant.runtime.prefixes import Place, first_that_ends, place_of
from kquant.tflite.file_model import decoded_from
from kquant.tflite.reader import (
    DAMAGE,
    NUMPY,
    FileModel,
    FileTensor,
    constants,
    label,
    read_bytes,
    read_model,
    refuse_damaged,
)

ANSWER_SECONDS = 600
SEARCH_SECONDS = 60  # for each prefix of a file, where the operator is looked for that ends a process
REMEDY = "look at the values that come in there (kquant.analyze names ranges), or leave the layer out of the model"
REMEDIES = {
    "SOFTMAX": "a SOFTMAX over more than 512 nearly equal values does so; give the layer 16 bits by a rule of the "
    "recipe, activations = { bits = 16 }, or end the exported model at the logits",
}
# Codes that go to another process at once: enough that the way there costs nothing, few enough to show progress.
MESSAGE_BYTES = 1 << 20
FALLBACK = "litert-reference"  # where no runtime of the target is installed
ARENA = "tflm"  # tells what RAM the tensors take
READS_BLOCKS = "litert"  # and multiplies by them
ROUNDS_BY_SHAPE = "litert"  # XNNPACK: has other kernels for other shapes, and they round a code otherwise
NUMBERS = {**NUMPY, "FLOAT16": "float16", "FLOAT64": "float64", "UINT16": "uint16", "UINT32": "uint32"}


@renamed
def predict(
    path: str | Path | bytes, data: Any, runtime: str = "litert", *, verbose: bool = False
) -> np.ndarray | list[np.ndarray]:
    """Run a `.tflite` file on real numbers, sample by sample; states that a file keeps start from zeros each time.

    Args:
        path: the file, or its bytes.
        data: array [samples, ...], a list (in the file's order) or dict (by tensor name) of arrays, or batches as for
            `kquant.calibrate`: `tf.data.Dataset`, `keras.utils.PyDataset`, a function that returns a generator.
        runtime: "litert" (XNNPACK), "litert-reference" or "tflm": the one that your device has. A file does not say
            what it was made for, so the default is not the target's. XNNPACK rounds some codes otherwise than the
            model; `kquant.verify` tells how far that goes.
        verbose: show a progress bar.

    Returns:
        float32 array [samples, ...], a list of them in the file's order for several outputs, of a model that returns
        a dict too (by sorted keys, which are the names of `kquant.inspect(path).outputs`): inputs are quantized and
        outputs dequantized with the file's own scales.

    Raises:
        ValueError: unknown runtime, or one that cannot decode the file's look-up tables, not a TFLite file, wrong
            shapes, a missing extra.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> x = np.random.default_rng(0).random((64, 4), np.float32)
        >>> q = kquant.calibrate(kquant.quantize(model), x, verbose=False)
        >>> report = kquant.export(q, "dense.tflite", check_runtimes=False)
        >>> kquant.predict("dense.tflite", x[:3]).shape
        (3, 2)
    """
    content = read_bytes(path)
    model = read_model(content, label(path))
    _known(runtime)
    refuse_tables("predict", model, runtime)
    for tensor in (*model.inputs, *model.outputs):
        _check_port(tensor)
    arrays = _arrays(_gathered(data, model.inputs), model.inputs)
    for array, tensor in zip(arrays, model.inputs, strict=True):
        known = _expected(model, tensor)
        if known is not None:
            known = replace(known, padding=_padding(model, content, tensor))
            warn_of_scale(f"predict: input '{tensor.name}'", array, known)

    count, step = len(arrays[0]), _samples_at_once(model)
    outputs: list[list[np.ndarray]] = [[] for _ in model.outputs]
    from kquant.core.progress import tqdm  # `export` imports this file, and shows no bar

    bar = tqdm(total=count, desc=runtime, unit="sample", disable=not verbose)
    with Running(content, runtime) as running, bar:
        for start in range(0, count, step):
            part = [a[start : start + step] for a in arrays]
            codes = [quantize_input(a, t) for a, t in zip(part, model.inputs, strict=True)]
            for collected, result, tensor in zip(outputs, running.samples(codes), model.outputs, strict=True):
                collected.append(dequantize_output(result, tensor))
            bar.update(len(part[0]))
    results = [np.concatenate(collected) for collected in outputs]
    return results[0] if len(results) == 1 else results


def _check_port(tensor: FileTensor) -> None:
    """Inputs and outputs are numbers, and the scales of codes are some that numbers can be divided by."""
    if tensor.type not in NUMBERS:
        raise ValueError(f"predict: '{tensor.name}' is of type {tensor.type}; known are {', '.join(NUMBERS)}.")
    if tensor.scale is not None and not (
        NUMBERS[tensor.type] in ("int8", "uint8", "int16", "int32") and 0 < tensor.scale[0] < math.inf
    ):
        raise ValueError(
            f"predict: '{tensor.name}' ({tensor.type}) has the scale {tensor.scale[0]}: the file is damaged, or not "
            "quantized as LiteRT specifies."
        )


def _samples_at_once(model: FileModel) -> int:
    """As many as make a message of `MESSAGE_BYTES`, at least one."""
    each = sum(8 * math.prod(t.shape[1:]) for t in (*model.inputs, *model.outputs))
    return max(1, MESSAGE_BYTES // max(1, each))


class Running:
    """A file on a runtime, in a process of its own; leave it with `with`, or let go of it, and the process ends.

    Args:
        data: the file.
        runtime: name of the interpreter.
        seconds: that an answer may take.
        search: where the process dies, look for the operator that ends it; it costs some runs more.

    Raises:
        ValueError: unknown runtime; from every method, the interpreter refused the file or died.
    """

    def __init__(self, data: bytes, runtime: str, *, seconds: float = ANSWER_SECONDS, search: bool = True) -> None:
        _known(runtime)
        self._data, self._seconds, self._search = data, seconds, search
        refuse_damaged(data)  # the interpreters' own walks through a file count nothing either
        self.runtime = runtime
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  what the process says, as long as it lives
        self._process = subprocess.Popen(
            process_of(runtime), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said
        )
        self._end = weakref.finalize(self, _ended, self._process, self._said)
        self._sent = [np.frombuffer(data, np.uint8)]

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def samples(self, codes: list[np.ndarray]) -> list[np.ndarray]:
        """Run samples, each as a sequence of its own.

        Args:
            codes: [samples, ...] of the file's types, one for each input.

        Returns:
            Codes of each output.
        """
        return self._ask(SAMPLES, codes)

    def call(self, codes: list[np.ndarray]) -> list[np.ndarray]:
        """Run one sample, with the states that the calls before it have left."""
        return self._ask(CALL, codes)

    def reset(self) -> None:
        """Let the next `call` be a first one."""
        self._ask(RESET, [])

    def tensors(self, codes: list[np.ndarray]) -> dict[int, np.ndarray]:
        """Every tensor of one sample on LiteRT's reference kernels, by index; none for those without values."""
        indices, *values = self._ask(TENSORS, codes)
        return dict(zip(indices.tolist(), values, strict=True))

    def _ask(self, what: int, arrays: list[np.ndarray]) -> list[np.ndarray]:
        late, process = threading.Event(), self._process
        timer = threading.Timer(self._seconds, lambda: (late.set(), process.kill()))
        timer.start()
        try:
            requests, answers = _pipes(self._process)
            if self._sent:  # the file, with the first request
                interpreters.send(requests, self._sent)
                self._sent = []
            interpreters.send(requests, [np.array(what, np.int64), *arrays])
            return interpreters.receive(answers)
        except (EOFError, OSError) as error:
            raise ValueError(self._last_words(late.is_set(), arrays if what in (SAMPLES, CALL) else None)) from error
        finally:
            timer.cancel()

    def _last_words(self, late: bool, codes: list[np.ndarray] | None) -> str:
        if late:
            return f"{self.runtime} was not done with this file after {self._seconds:g} s; try fewer samples."
        code = self._process.wait()
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").splitlines()
        lines = [line for line in said if line.strip(" ^~")]  # without the marks under a line of a traceback
        place = None
        if self._search:
            with contextlib.suppress(*DAMAGE):  # no operator can be told of a file whose tables cannot be packed again
                place = self._place(code, "\n".join(said), codes)
        return f"{self.runtime} cannot run this file ({_ending(code, place)}): {' | '.join(lines[-3:])}"

    def _place(self, code: int, said: str, codes: list[np.ndarray] | None) -> Place | None:
        """The operator at which the interpreter stopped: the one that it names, or the first that ends a process."""
        named = re.search(r"Node number (\d+) \(", said)
        if named is not None:
            return place_of(self._data, int(named.group(1)))
        if code >= 0 or codes is None:
            return None

        def ends(prefix: bytes) -> bool:
            try:
                with Running(prefix, self.runtime, seconds=SEARCH_SECONDS, search=False) as running:
                    running.samples([c[:1] for c in codes])
            except ValueError:
                return True
            return False

        return first_that_ends(self._data, ends)


def _pipes(process: subprocess.Popen) -> tuple[Any, Any]:
    if process.stdin is None or process.stdout is None:
        raise EOFError
    return process.stdin, process.stdout


def _ended(process: subprocess.Popen, said: BinaryIO) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout, said):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what a dead process did not read
                pipe.close()
    process.wait()


def available() -> list[str]:
    """The runtimes installed here."""
    return [name for name in RUNTIMES if name != "tflm" or importlib.util.find_spec("tflite_micro") is not None]


def probe(data: bytes, runtime: str, codes: list[np.ndarray]) -> list[np.ndarray]:
    """Run samples through a file, in a process of its own.

    Args:
        data: the file.
        runtime: name of the interpreter.
        codes: [samples, ...] of the file's type, one for each input.

    Returns:
        Codes of each output.

    Raises:
        ValueError: the interpreter refused the file or died.
    """
    with Running(data, runtime) as running:
        return running.samples(codes)


def process_of(task: str) -> list[str]:
    """The command that does a task of `kquant.runtime.interpreters` in a process of its own."""
    # -P: the script's own folder must not stand in for the standard library (it holds an inspect.py)
    return [sys.executable, "-P", str(Path(interpreters.__file__)), task]


def _ending(code: int, place: Place | None) -> str:
    """What the exit code of a process says, and where it ended."""
    where = f" in operator {place}" if place is not None else ""
    if code >= 0:
        return f"exit code {code}{where}"
    said = f"killed by {signal.Signals(-code).name}{where}"
    if code == -signal.SIGABRT:
        said += ": a check of its kernel failed; " + REMEDIES.get(place.code if place else "", REMEDY)
    return said


def refuse_tables(verb: str, file: FileModel, runtime: str) -> None:
    """TFLM alone takes one zero point for all channels, its own operators, and what a DECODE writes if it is new.

    Raises:
        ValueError: the file has some, and the runtime is another one, or of another time.
    """
    if file.one_zero_point and runtime != DECODES:
        raise ValueError(
            f"{verb}: this file has one zero point for all channels of its weights, which '{runtime}' refuses. Give "
            f"runtime='{DECODES}', or export without strip_names."
        )
    own = sorted({op.code for op in file.operators if facts(op.code).flexible and not facts(op.code).of_litert})
    if own and runtime != DECODES:
        raise ValueError(
            f"{verb}: this file has operators that TensorFlow Lite Micro alone has ({', '.join(own)}). Give "
            f"runtime='{DECODES}'; for others, keras.layers.MelSpectrogram is written in builtin operators."
        )
    if file.tables and runtime != DECODES:
        raise ValueError(
            f"{verb}: this file has {decoded_from(file)}, which '{runtime}' cannot decode. Give runtime='{DECODES}', "
            "or export without compression."
        )
    if file.multiplies_blocks and runtime != READS_BLOCKS:
        raise ValueError(
            f"{verb}: this file multiplies weights in blocks, which '{runtime}' leaves out without a word. Give "
            f"runtime='{READS_BLOCKS}', whose kernels read them."
        )
    if file.behind and runtime == DECODES:
        raise ValueError(
            f"{verb}: this file has weights behind its flatbuffer (buffers with an offset), where TFLM does not "
            "look for them. Run it on 'litert', or write it with weights inside, as kquant.export does."
        )
    for storage in sorted({table.storage for table in file.tables}):
        check_decodes(probe, storage)


def quantize_input(x: np.ndarray, tensor: FileTensor) -> np.ndarray:
    """`clip(round(x / scale) + zero_point)` in the tensor's type; float inputs as they are."""
    if tensor.scale is None:
        return x.astype(tensor.dtype)
    info = np.iinfo(tensor.dtype)
    with np.errstate(over="ignore"):  # beyond float32 in steps, as a mask's least number: clipped like all beyond
        codes = np.rint(x.astype(np.float32) / np.float32(tensor.scale[0])) + tensor.zero_point[0]
    return np.clip(codes, info.min, info.max).astype(tensor.dtype)


def dequantize_output(codes: np.ndarray, tensor: FileTensor) -> np.ndarray:
    """`scale * (code - zero_point)` as float32."""
    if tensor.scale is None:
        return codes.astype(np.float32)
    return (codes.astype(np.int64) - tensor.zero_point[0]).astype(np.float32) * np.float32(tensor.scale[0])


def _expected(model: FileModel, tensor: FileTensor) -> Expected | None:
    """The range of an input's grid; None for floats that no QUANTIZE reads, and for positions."""
    if tensor.scale is None:
        made = [op.outputs for op in model.operators if op.code == "QUANTIZE" and op.inputs[:1] == (tensor.index,)]
        if not made or not made[0] or model.tensors[made[0][0]].scale is None:
            return None
        return _expected(model, replace(model.tensors[made[0][0]], name=tensor.name))
    if len(tensor.scale) != 1 or tensor.dtype not in ("int8", "uint8", "int16"):
        return None
    info, zero, scale = np.iinfo(tensor.dtype), tensor.zero_point[0], tensor.scale[0]
    # Where every grid is symmetric (or a function's own), a range below 0 says nothing about the data.
    asymmetric = any(t.zero_point and t.zero_point[0] not in (0, info.min) for t in model.tensors if t.scale)
    ends = ((info.min - zero) * scale, (info.max - zero) * scale)
    return Expected(tensor.name, *ends, "which the codes of the file hold", two_sided=asymmetric)


def _padding(model: FileModel, data: bytes, tensor: FileTensor) -> tuple[tuple[float, float], ...]:
    """Ends of what gets the code that the file compares an input with, to tell which steps are real."""
    if tensor.scale is None or len(tensor.scale) != 1 or "NOT_EQUAL" not in model.operator_counts:
        return ()
    cast = {op.outputs[:1] for op in model.operators if op.code == "CAST" and op.inputs[:1] == (tensor.index,)}
    compared = [i for op in model.operators if op.code == "NOT_EQUAL" and op.inputs[:1] in cast for i in op.inputs[1:2]]
    stored, info = constants(data), np.iinfo(tensor.dtype)
    ends = []
    for code in (int(stored[i].flat[0]) for i in compared if i in stored and stored[i].size == 1):
        least, most = ((code + half - tensor.zero_point[0]) * tensor.scale[0] for half in (-0.5, 0.5))
        ends.append((-math.inf if code == info.min else least, math.inf if code == info.max else most))
    return tuple(ends)


def _known(runtime: str) -> None:
    check_known(f"runtime '{runtime}' does not exist", runtime, RUNTIMES)
    if runtime not in available():
        raise ValueError(f"runtime '{runtime}' needs an extra: pip install 'kquant[micro]' (Linux only).")


def _gathered(x: Any, tensors: tuple[FileTensor, ...]) -> Any:
    """Batches of a dataset or a function as arrays; everything else as it is."""
    if isinstance(x, np.ndarray | list | tuple | dict):
        return x
    from kquant.calibration import data  # needs TensorFlow, which arrays do without

    if not data.gives_batches(x):
        return x
    ports = [data.Port(t.name, tuple(t.shape), t.dtype if t.scale is None else "float32") for t in tensors]
    data.refuse_endless(x, "take what is wanted of it: dataset.take(n)")
    return data.gather(data.Ports(ports), x, sys.maxsize)


def _arrays(x: Any, tensors: tuple[FileTensor, ...]) -> list[np.ndarray]:
    if isinstance(x, dict):
        missing = [t.name for t in tensors if t.name not in x]
        if missing:
            raise ValueError(f"predict: no array for input {', '.join(missing)}. Received: {', '.join(map(str, x))}.")
        x = [x[t.name] for t in tensors]
    given = x if isinstance(x, list | tuple) or len(tensors) > 1 else [x]
    if len(given) != len(tensors):
        raise ValueError(f"predict: the file has {len(tensors)} inputs. Received: {len(given)} arrays.")
    arrays = [array_of(f"predict: input '{t.name}'", a) for a, t in zip(given, tensors, strict=True)]
    for array, tensor in zip(arrays, tensors, strict=True):
        if array.ndim and len(array) == 0:
            raise ValueError(f"predict: no samples for input '{tensor.name}'; give at least one.")
        if array.ndim == 0:
            raise ValueError(f"predict: input '{tensor.name}' takes arrays [samples, ...]. Received: {array.item()!r}.")
        if array.shape[1:] != tuple(tensor.shape[1:]):
            raise ValueError(f"predict: input '{tensor.name}': {wrong_shape(array.shape, tuple(tensor.shape[1:]))}")
        if array.dtype.kind not in "fiub":
            raise ValueError(f"predict: input '{tensor.name}' takes numbers. Received: dtype {array.dtype}.")
        if np.isnan(array).any():
            raise ValueError(f"predict: NaN among the values of input '{tensor.name}'; it has no code.")
    if len({len(array) for array in arrays}) > 1:
        raise ValueError(
            f"predict: every input needs the same number of samples. Received: {[len(array) for array in arrays]}."
        )
    return arrays
