"""Whether the build of TensorFlow Lite Micro that is installed decodes the look-up tables that kquant writes.

Their format is that of TFLM's own `TFLM_DECODE`, of which no version is told: a build from before it refuses the
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
from kquant.tflite.lut_program import store_in_tables

DECODES = "tflm"  # reads look-up tables
WIDTH = 32
TRIED = "0.dev20251023163122 to 0.dev20260203175027, and 0.dev20261002031052 to 0.dev20261023182759"


@cache
def check_decodes(probe: Callable[[bytes, str, list[np.ndarray]], list[np.ndarray]]) -> None:
    """Run a file with tables whose result is known; once in a process.

    Args:
        probe: `kquant.runtime.running.probe`.

    Raises:
        ValueError: the build refuses it, or computes something else.
    """
    content, codes, expected = known()
    try:
        (decoded,) = probe(content, DECODES, [codes])
    except ValueError as error:
        raise ValueError(_refusal(str(error))) from error
    if not np.array_equal(decoded, expected):
        raise ValueError(_refusal(f"{np.mean(decoded != expected):.0%} of the codes of a known file are others"))


def known() -> tuple[bytes, np.ndarray, np.ndarray]:
    """A file, codes for it, and what comes out: sums of -1, 0, 1 and 2 times whole numbers, on grids of whole numbers.

    Example:
        >>> content, codes, expected = known()
        >>> codes.shape, expected.shape
        ((4, 32), (4, 32))
    """
    rng = np.random.default_rng(0)
    weights = rng.integers(-1, 3, (WIDTH, WIDTH)).astype(np.int8)
    codes = rng.integers(-2, 3, (4, WIDTH)).astype(np.int8)
    one, none = np.ones(1, np.float32), np.zeros(1, np.int64)
    whole = Encoding(one, none, QuantSpec(symmetric=True))
    program = Program("known")
    x, y = (program.value(name, (1, WIDTH), whole) for name in ("x", "y"))
    program.inputs, program.outputs = [x], [y]
    kernel = program.constant("w", weights, Encoding(one, none, QuantSpec(symmetric=True, narrow=True)))
    program.emit("FULLY_CONNECTED", [x, kernel, None], y)
    store_in_tables(program)
    target = next(target for target in map(targets.load, targets.names()) if target.look_up_tables)
    return to_bytes(program, target, {}), codes, (codes.astype(np.int32) @ weights.T).astype(np.int8)


def _refusal(why: str) -> str:
    try:
        installed = metadata.version("tflite_micro")
    except metadata.PackageNotFoundError:
        installed = "of this path"
    return (
        f"runtime '{DECODES}': tflite-micro {installed} does not decode the look-up tables that kquant writes ({why}). "
        f"Those that were tried do: {TRIED}; pip install 'tflite-micro==0.dev20261023182759'. Or export without "
        "compression."
    )
