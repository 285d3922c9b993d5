"""Whether the build of TensorFlow Lite Micro that is installed decodes what kquant stores weights in.

The formats are those of TFLM's own `TFLM_DECODE`, of which no version is told: a build from before one refuses the
operator, and one that reads another format would give other numbers without a word. So a file of one operator is run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import metadata

import numpy as np

from kquant import targets
from kquant.core.program import Program
from kquant.core.spec import Encoding, QuantSpec
from kquant.tflite.flatbuffer import to_bytes
from kquant.tflite.storage import storages
from kquant.tflite.stored_weights import store_weights

DECODES = "tflm"  # has the operator
WIDTH = 32
TRIED = "0.dev20261023182759"  # with every storage; look-up tables with others from 0.dev20251023163122 on, too


@cache
def check_decodes(probe: Callable[[bytes, str, list[np.ndarray]], list[np.ndarray]], storage: str) -> None:
    """Run a file with weights in a storage whose result is known; once in a process.

    Args:
        probe: `kquant.runtime.running.probe`.
        storage: of `kquant.tflite.storage.STORAGES`.

    Raises:
        ValueError: the build refuses it, or computes something else.
    """
    content, codes, expected = known(storage)
    try:
        (decoded,) = probe(content, DECODES, [codes])
    except ValueError as error:
        raise ValueError(_refusal(storage, str(error))) from error
    if not np.array_equal(decoded, expected):
        share = np.mean(decoded != expected)
        raise ValueError(_refusal(storage, f"{share:.0%} of the codes of a known file are others"))


def known(storage: str) -> tuple[bytes, np.ndarray, np.ndarray]:
    """A file, codes for it, and what comes out: sums of -1, 0, 1 and 2 times whole numbers, on grids of whole numbers.

    Three of four weights are 0, so that whatever makes few values or many zeros smaller has something to do.

    Example:
        >>> content, codes, expected = known("lut")
        >>> codes.shape, expected.shape
        ((4, 32), (4, 32))
    """
    rng = np.random.default_rng(0)
    weights = (rng.integers(-1, 3, (WIDTH, WIDTH)) * (rng.random((WIDTH, WIDTH)) < 0.25)).astype(np.int8)
    codes = rng.integers(-2, 3, (4, WIDTH)).astype(np.int8)
    one, none = np.ones(1, np.float32), np.zeros(1, np.int64)
    whole = Encoding(one, none, QuantSpec(symmetric=True))
    program = Program("known")
    x, y = (program.value(name, (1, WIDTH), whole) for name in ("x", "y"))
    program.inputs, program.outputs = [x], [y]
    kernel = program.constant("w", weights, Encoding(one, none, QuantSpec(symmetric=True, narrow=True)))
    program.emit("FULLY_CONNECTED", [x, kernel, None], y)
    store_weights(program, [storages()[storage]()])
    target = next(target for target in map(targets.load, targets.names()) if storage in target.decodes)
    return to_bytes(program, target, {}), codes, (codes.astype(np.int32) @ weights.T).astype(np.int8)


def _refusal(storage: str, why: str) -> str:
    try:
        installed = metadata.version("tflite_micro")
    except metadata.PackageNotFoundError:
        installed = "of this path"
    title = storages()[storage].title
    return (
        f"runtime '{DECODES}': tflite-micro {installed} does not decode the {title} that kquant writes ({why}). "
        f"{TRIED} does: pip install 'tflite-micro=={TRIED}'. Or export without compression."
    )
