"""Simulated against file, for every example of every rule: share of equal codes and largest difference in LSB.

    python benchmarks/parity.py [--samples 256] [--json parity.json] [name ...]

Beside it, where it was measured, what tfmot 0.8.1 reaches on LiteRT's reference kernels (quantization-aware training on
tf_keras, TensorFlow's converter, 64 random samples).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import contract  # noqa: E402  (the examples and comparisons are those of the tests)

from kquant import targets  # noqa: E402
from kquant.runtime.running import available  # noqa: E402

COLUMNS = (("litert", "litert-reference"), ("tflm", "tflm"), ("litert", "litert"))  # (target, runtime)

# The same layer in tfmot: share of codes that differ between its simulation and its file, largest difference.
TFMOT = {
    "Conv2D": ("conv-bn-relu", 0.0008, 1),
    "Conv2D relu": ("conv, separate ReLU", 0.052, 1),
    "Conv2D relu6": ("conv-bn, relu6", 0.207, 1),
    "DepthwiseConv2D": ("depthwise", 0.0021, 1),
    "SeparableConv2D relu": ("sepconv2d-bn-relu", 0.0046, 2),
    "SeparableConv1D": ("sepconv1d", 0.0070, 1),
    "Conv2DTranspose": ("Conv2DTranspose", 0.0007, 1),
    "Dense": ("dense", 0.0, 0),
    "Dense relu": ("dense, separate ReLU", 0.065, 1),
    "Dense softmax": ("dense softmax", 0.0031, 1),
    "LeakyReLU": ("conv, LeakyReLU", 0.133, 2),
    "Activation silu": ("conv, swish", 0.033, 1),
    "MaxPooling2D": ("conv, max pool", 0.0011, 1),
    "AveragePooling2D": ("conv, average pool", 0.288, 1),
    "GlobalAveragePooling2D": ("conv-bn-relu, global average, dense", 0.144, 1),
    "UpSampling2D": ("conv, bilinear", 0.143, 1),
}


def describe(name: str) -> str:
    """The layers of an example with their activations; its family and number for `keras.ops`."""
    parts = []
    for layer in contract.build(name).layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        function = getattr(getattr(layer, "activation", None), "__name__", "linear")
        parts.append(type(layer).__name__ + ("" if function == "linear" else f" {function}"))
    return ", ".join(parts) or name


def measure(name: str, samples: int, recipe: str) -> dict[str, contract.Parity]:
    """Parity of one example on every runtime that is installed."""
    found = {}
    quantized = {}
    for target, runtime in COLUMNS:
        if runtime not in available() or runtime not in targets.load(target).runtimes:
            continue
        if target not in quantized:
            q = contract.quantized(contract.build(name), target, samples, recipe)
            quantized[target] = (q, contract.file_of(q))
        q, content = quantized[target]
        found[runtime] = contract.compare(q, content, runtime, contract.data(q, samples, seed=2, spread=2.0))
    return found


def row(name: str, found: dict[str, contract.Parity]) -> str:
    """One line of the table."""
    cells = [f"{p.equal:9.5f} {p.max_err_lsb:3d}" if (p := found.get(r)) else f"{'-':>13}" for _, r in COLUMNS]
    layers = describe(name)
    peer, unequal, worst = TFMOT.get(layers, ("", 0.0, 0))
    return f"{name:32} {layers[:32]:32} {' '.join(cells)}   {f'{1 - unequal:.4f} {worst}  {peer}' if peer else ''}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of names; all examples by default")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--recipe", default="int8")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    arguments = parser.parse_args()
    print(f"{'example':32} {'layers':32} {'LiteRT ref.':>13} {'TFLM':>13} {'XNNPACK':>13}   tfmot on LiteRT ref.")
    results = {}
    for name in contract.EXAMPLES:
        if arguments.names and not any(part in name for part in arguments.names):
            continue
        results[name] = measure(name, arguments.samples, arguments.recipe)
        print(row(name, results[name]), flush=True)
    for _, runtime in COLUMNS:
        shares = [found[runtime].equal for found in results.values() if runtime in found]
        if shares:
            worst = max(found[runtime].max_err_lsb for found in results.values() if runtime in found)
            print(
                f"{runtime}: {len(shares)} examples, worst {min(shares):.5f}, mean {np.mean(shares):.5f}, {worst} LSB"
            )
    if arguments.json:
        arguments.json.write_text(
            json.dumps({n: {r: vars(p) for r, p in f.items()} for n, f in results.items()}, indent=1)
        )


if __name__ == "__main__":
    main()
