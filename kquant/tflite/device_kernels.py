"""What kernels that are made for a device ask of the arena beyond TensorFlow Lite Micro's reference kernels.

The bounds are those of CMSIS-NN at 4ab83cc, for cores with Helium (M55, M85) and with DSP instructions (M4, M7, M33),
the larger one: in its `Source`, `ConvolutionFunctions/arm_convolve_get_buffer_sizes_s8.c`, beside it those of
`depthwise_conv`, and `PoolingFunctions/arm_avgpool_s8.c`; those that end in `s4` and `s16` ask for no more, but for the
depthwise convolution of 16-bit activations. And in tflite-micro at 90b983c what
`micro/kernels/cmsis_nn/fully_connected.cc` keeps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kquant.tflite.memory_plan import BYTES, aligned, memory_plan
from kquant.tflite.reader import FileModel, FileTensor

# For what nobody foresees (ESP-NN, other versions), beside what kernels of CMSIS-NN ask for: this share of the arena,
# and at least so many bytes. Structures that TFLM keeps are smaller on a device of 32 bits.
MARGIN_SHARE, MARGIN_BYTES = 0.05, 1024
LANES, BLOCK = 16, 124  # of a vector of Helium; channels that a depthwise convolution takes at once (CH_IN_BLOCK_MVE)
COLUMNS = 4  # of an input that lie beside each other while they are multiplied


@dataclass(frozen=True)
class Asked:
    """Of one operator.

    Attributes:
        scratch: bytes while it runs.
        kept: bytes for good.
    """

    scratch: int = 0
    kept: int = 0


def margin_of(smallest: int, file: FileModel) -> int:
    """Bytes that a program should reserve on top of the smallest arena.

    Args:
        smallest: that arena in bytes, of TensorFlow Lite Micro's reference kernels.
        file: what it is for.
    """
    return aligned(max(MARGIN_BYTES, int(smallest * MARGIN_SHARE)) + device_bytes(file))


def device_bytes(file: FileModel) -> int:
    """Bytes by which the arena may grow with such kernels.

    Scratch counts where the plan of tensors has no room for it; what is kept counts always.

    Args:
        file: what `kquant.inspect` reads.
    """
    asked = {
        op.index: KERNELS[op.code]([file.tensors[i] for i in op.inputs[:2]])
        for op in file.operators
        if op.code in KERNELS
    }
    scratch = {index: one.scratch for index, one in asked.items() if one.scratch}
    more = memory_plan(file, scratch).size_bytes - memory_plan(file).size_bytes
    return max(0, more) + sum(one.kept for one in asked.values())


def _convolution(tensors: list[FileTensor]) -> Asked:
    """Four columns of the input, each as long as what one output sums over."""
    x, kernel = tensors
    return Asked(_columns(math.prod(kernel.shape[1:]), x))


def _depthwise(tensors: list[FileTensor]) -> Asked:
    """Four positions of a block of channels; of one channel a convolution, with the weights turned."""
    x, kernel = tensors
    window = math.prod(kernel.shape[1:3])
    if x.type == "INT16":  # all channels at once
        return Asked(COLUMNS * x.shape[-1] * window * _width(x) + 8)
    if x.shape[-1] == 1:
        return Asked(_columns(window, x) + math.prod(kernel.shape) * _width(x))
    return Asked(max(COLUMNS * BLOCK, 2 * x.shape[-1]) * window * _width(x))


def _dense(tensors: list[FileTensor]) -> Asked:
    """The sum of the weights of each unit, int32."""
    return Asked(kept=4 * tensors[1].shape[0])


def _average(tensors: list[FileTensor]) -> Asked:
    return Asked(4 * tensors[0].shape[-1])


def _columns(depth: int, x: FileTensor) -> int:
    return COLUMNS * -(-depth // LANES) * LANES * _width(x)


def _width(x: FileTensor) -> int:
    return BYTES.get(x.type, 4)


KERNELS: Mapping[str, Callable[[list[FileTensor]], Asked]] = {
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _dense,
    "AVERAGE_POOL_2D": _average,
}
