"""Sony's Model Compression Toolkit: PTQ of a model of Keras 2 (TensorFlow 2.15)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import model_compression_toolkit as mct
import numpy as np
import tensorflow as tf
from common import BATCH, Task, main


def ptq(task: Task, out: Path, seed: int) -> Callable[[], dict[str, Any]]:
    model, data = task.keras2(tf.keras), task.array("calibration").astype("float32")

    def run() -> dict[str, Any]:
        def samples() -> Iterator[list[np.ndarray]]:
            for start in range(0, len(data), 10):
                yield [data[start : start + 10]]

        quantized, _ = mct.ptq.keras_post_training_quantization(model, samples)
        np.save(out / "simulated.npy", quantized.predict(task.array("x"), batch_size=BATCH, verbose=0))
        mct.exporter.keras_export_model(
            model=quantized,
            save_model_path=str(out / "model.tflite"),
            serialization_format=mct.exporter.KerasExportSerializationFormat.TFLITE,
            quantization_format=mct.exporter.QuantizationFormat.FAKELY_QUANT,
        )
        return {"file": "model.tflite", "note": "exported with its fake quantization"}

    return run


if __name__ == "__main__":
    main({"int8": ptq})
