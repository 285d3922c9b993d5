"""LiteRT Quantizer's W4A8 file of a float one, for benchmarks/packed.py, in a Python of its own without kquant.

python litert_quantizer.py float.tflite calibration.npy out.tflite
"""

from __future__ import annotations

import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import qtyping, quantizer

# Its policy takes 4-bit weights of these operators; a depthwise convolution has 8.
PACKED = (qtyping.TFLOperationName.CONV_2D, qtyping.TFLOperationName.FULLY_CONNECTED)


def main(model: str, calibration: str, out: str) -> None:
    """Quantize and write."""
    signature, parts = next(iter(Interpreter(model).get_signature_list().items()))
    chosen = quantizer.Quantizer(model)
    chosen.add_static_config(".*", qtyping.TFLOperationName.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
    for operation in PACKED:
        chosen.add_static_config(".*", operation, activation_num_bits=8, weight_num_bits=4)
    samples = [{parts["inputs"][0]: x[None]} for x in np.load(calibration).astype("float32")]
    ranges = chosen.calibrate({signature: samples}, num_threads=1)
    chosen.quantize(ranges).export_model(out, overwrite=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
