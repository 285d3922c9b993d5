"""LiteRT Quantizer's ways, out of the converter's float file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import calibrator, qtyping, quantizer, recipe_manager
from ai_edge_quantizer.utils import qsv_utils
from common import Task, Way, cover, main

EVERY = qtyping.TFLOperationName.ALL_SUPPORTED
CONV, DEPTHWISE, DENSE = (
    qtyping.TFLOperationName.CONV_2D,
    qtyping.TFLOperationName.DEPTHWISE_CONV_2D,
    qtyping.TFLOperationName.FULLY_CONNECTED,
)
PACKED = (CONV, DENSE)  # its policy takes 4-bit weights of these; a depthwise convolution has 8


def quantize(
    bits: int = 8, activations: int = 8, method: str = "", every: bool = False, smallest_and_largest: bool = False
) -> Way:
    """Static quantization.

    Args:
        bits: of the weights of `PACKED`.
        activations: bits.
        method: of the ranges of weights; empty: the smallest and largest value.
        every: the method is for all operators, not for those with weights alone.
        smallest_and_largest: the calibrator keeps them, in place of a moving average.
    """

    def make(task: Task, out: Path, seed: int) -> Callable[[], dict[str, Any]]:
        model = str(task.folder / "float.tflite")
        signature, parts = next(iter(Interpreter(model).get_signature_list().items()))
        samples = [{parts["inputs"][0]: x[None]} for x in task.array("calibration").astype("float32")]
        present = {detail["op_name"] for detail in Interpreter(model)._get_ops_details()}

        def run() -> dict[str, Any]:
            chosen = quantizer.Quantizer(model)

            def add(operator: Any, weight_bits: int, algorithm: str = "") -> None:
                more = {"algorithm_key": algorithm} if algorithm else {}
                chosen.add_static_config(
                    ".*", operator, activation_num_bits=activations, weight_num_bits=weight_bits, **more
                )

            add(EVERY, 8, method if every and bits == 8 else "")
            for operator in (CONV, DEPTHWISE, DENSE) if bits == 8 else PACKED:
                if operator.value in present and (bits == 4 or (method and not every)):
                    add(operator, bits, method)
            if smallest_and_largest:
                counted = calibrator.Calibrator(model, qsv_update_func=qsv_utils.min_max_update)
                known = recipe_manager.RecipeManager()
                known.load_quantization_recipe(chosen.get_quantization_recipe())
                counted.calibrate({signature: samples}, known)
                ranges = counted.get_model_qsvs()
            else:
                ranges = chosen.calibrate({signature: samples}, num_threads=1)
            chosen.quantize(ranges).export_model(str(out / "model.tflite"), overwrite=True)
            return {"file": "model.tflite"}

        return run

    return make


def one(folder: Path, data: list[Any]) -> bytes:
    """The converter's float file, in integers; inputs go by their place."""
    model = str(folder / "float.tflite")
    signature, parts = next(iter(Interpreter(model).get_signature_list().items()))
    names = sorted(parts["inputs"], key=lambda name: int(name.rsplit("_", 1)[1]) if "_" in name else 0)
    samples = [{name: a[n : n + 1] for name, a in zip(names, data, strict=True)} for n in range(len(data[0]))]
    chosen = quantizer.Quantizer(model)
    chosen.add_static_config(".*", EVERY, activation_num_bits=8, weight_num_bits=8)
    return bytes(chosen.quantize(chosen.calibrate({signature: samples}, num_threads=1)).quantized_model)


if __name__ == "__main__":
    main(
        {
            "cover": cover(one),
            "int8": quantize(),
            "int8-minmax": quantize(smallest_and_largest=True),
            "int8-mse": quantize(method="MSE"),
            "int8-octav": quantize(method="OCTAV", every=True),
            "int16x8": quantize(activations=16),
            "w4a8": quantize(bits=4),
            "w4a8-mse": quantize(bits=4, method="MSE"),
            "w4a8-octav": quantize(bits=4, method="OCTAV"),
            "w4a8-gptq": quantize(bits=4, method="GPTQ"),
        }
    )
