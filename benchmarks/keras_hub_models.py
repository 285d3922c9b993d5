"""Backbones of KerasHub, small ones with random weights of a seed: int8 for LiteRT, verified; or what kquant says.

    pip install '.[zoo]' && python -m benchmarks.keras_hub_models

Random weights show coverage, not accuracy.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

import kquant
from kquant.core.progress import tqdm
from kquant.files.atomic import write_atomically

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results" / "keras_hub.json", ROOT / "docs" / "zoo.md"
BEGIN = "<!-- of benchmarks/results/keras_hub.json: python -m benchmarks.keras_hub_models -->"
END = "<!-- end -->"
SAMPLES = 8
LARGER: dict[str, Any] = {"image_shape": (64, 64, 3)}
IMAGE: dict[str, Any] = {"image_shape": (32, 32, 3)}
PATCHES: dict[str, Any] = {"patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, **IMAGE}
TEXT: dict[str, Any] = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 32}
WORDS: dict[str, Any] = {"vocabulary_size": 50, "max_sequence_length": 12, **TEXT}
STACKS: dict[str, Any] = {
    "stackwise_num_filters": [64, 64],
    "stackwise_num_blocks": [1, 1],
    "stackwise_num_strides": [1, 2],
}
LEVELS: dict[str, Any] = {  # an encoder whose features of five strides the others take
    **{"input_conv_filters": [64], "input_conv_kernel_sizes": [7], "stackwise_num_filters": [64, 64, 64, 64]},
    **{"stackwise_num_blocks": [1, 1, 1, 1], "stackwise_num_strides": [1, 2, 2, 2], "block_type": "basic_block"},
}
ATROUS: dict[str, Any] = {
    **{"low_level_feature_key": "P2", "spatial_pyramid_pooling_key": "P4", "dilation_rates": [2, 4, 6]},
    **{"upsampling_size": 4, "spatial_pyramid_pooling_channels": 8, "projection_channels": 8},
}
PYRAMID: dict[str, Any] = {
    **{"layerwise_depths": [1, 1], "num_layers": 2, "layerwise_num_heads": [1, 2], "layerwise_sr_ratios": [4, 2]},
    **{
        "hidden_dims": [16, 32],
        "layerwise_patch_sizes": [7, 3],
        "layerwise_strides": [4, 2],
        "max_drop_path_rate": 0.1,
    },
}
MOBILE: dict[str, Any] = {
    **{"stackwise_expansion": [[8, 8], [12]], "stackwise_num_blocks": [2, 1], "stackwise_num_filters": [[8, 8], [12]]},
    **{
        "stackwise_kernel_size": [[3, 3], [5]],
        "stackwise_num_strides": [[2, 1], [1]],
        "stackwise_padding": [[1, 1], [2]],
    },
    **{"stackwise_se_ratio": [[0.25, None], [0.25]], "stackwise_activation": [["relu", "relu6"], ["hard_swish"]]},
    **{"output_num_filters": 32, "input_num_filters": 8, "depthwise_filters": 8, "depthwise_stride": 2},
    **{"depthwise_residual": False, "squeeze_and_excite": 0.5, "last_layer_filter": 32},
    **{"input_activation": "hard_swish", "output_activation": "hard_swish"},
}
GHOST: dict[str, Any] = {
    **{
        "depths": [1, 1],
        "embedding_size": 8,
        "hidden_sizes": [16, 24],
        "stem_channels": [3, 8, 8],
        "hidden_act": "relu",
    },
    **{"stackwise_stage_filters": [[8, 8, 16, 1, 2, 3], [16, 8, 24, 1, 2, 3]], "apply_downsample": [False, True]},
    **{"use_learnable_affine_block": False, "use_lightweight_conv_block": [False, False]},
}
SCALED: dict[str, Any] = {
    **{"stackwise_width_coefficients": [1.0, 1.0], "stackwise_depth_coefficients": [1.0, 1.0]},
    **{"stackwise_input_filters": [16, 16], "stackwise_output_filters": [16, 24], "stackwise_expansion_ratios": [1, 4]},
    **{
        "stackwise_num_repeats": [1, 2],
        "stackwise_squeeze_and_excite_ratios": [0.25, 0.25],
        "stackwise_strides": [1, 2],
    },
    **{"stackwise_block_types": ["v1", "v1"], "stackwise_kernel_sizes": [3, 3]},
}
FLOW: dict[str, Any] = {"stackwise_conv_filters": [[8, 16], [16, 16]], "stackwise_pooling": [True, False]}
Build = Callable[[Any], keras.Model]
MODELS: dict[str, Build] = {
    "DeepLabV3Backbone": lambda hub: hub.DeepLabV3Backbone(
        image_encoder=hub.ResNetBackbone(**LEVELS, **LARGER), **ATROUS, **LARGER
    ),
    "DenseNetBackbone": lambda hub: hub.DenseNetBackbone(stackwise_num_repeats=[2, 2], **IMAGE),
    "EfficientNetBackbone": lambda hub: hub.EfficientNetBackbone(**SCALED, **IMAGE),
    "HGNetV2Backbone": lambda hub: hub.HGNetV2Backbone(**GHOST, **IMAGE),
    "MiTBackbone": lambda hub: hub.MiTBackbone(**PYRAMID, **IMAGE),
    "MobileNetBackbone": lambda hub: hub.MobileNetBackbone(**MOBILE, **IMAGE),
    "ResNetBackbone": lambda hub: hub.ResNetBackbone(
        input_conv_filters=[64], input_conv_kernel_sizes=[3], block_type="basic_block", **STACKS, **IMAGE
    ),
    "RetinaNetBackbone": lambda hub: hub.RetinaNetBackbone(
        image_encoder=hub.ResNetBackbone(**LEVELS, **LARGER),
        min_level=3,
        max_level=5,
        use_p5=False,
        use_fpn_batch_norm=True,
        **LARGER,
    ),
    "SegFormerImageSegmenter": lambda hub: hub.SegFormerImageSegmenter(
        backbone=hub.SegFormerBackbone(image_encoder=hub.MiTBackbone(**PYRAMID, **IMAGE), projection_filters=16),
        num_classes=4,
    ),
    "VGGBackbone": lambda hub: hub.VGGBackbone([1, 1], [16, 32], **IMAGE),
    "ViTBackbone": lambda hub: hub.ViTBackbone(mlp_dim=32, **PATCHES),
    "XceptionBackbone": lambda hub: hub.XceptionBackbone(**FLOW, **LARGER),
    "ResNetBackbone, use_pre_activation": lambda hub: hub.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        block_type="basic_block",
        use_pre_activation=True,
        **STACKS,
        **IMAGE,
    ),
    "AlbertBackbone": lambda hub: hub.AlbertBackbone(embedding_dim=8, **WORDS),
    "BertBackbone": lambda hub: hub.BertBackbone(**WORDS),
    "DistilBertBackbone": lambda hub: hub.DistilBertBackbone(**WORDS),
    "GPT2Backbone": lambda hub: hub.GPT2Backbone(**WORDS),
    "RobertaBackbone": lambda hub: hub.RobertaBackbone(**WORDS),
    "WhisperBackbone": lambda hub: hub.WhisperBackbone(
        vocabulary_size=50, num_mels=8, max_encoder_sequence_length=24, max_decoder_sequence_length=12, **TEXT
    ),
}


def samples(model: keras.Model) -> Any:
    """Images, or tokens of 12 steps, in the structure of the model's inputs."""
    rng = np.random.default_rng(0)

    def one(tensor: Any) -> np.ndarray:
        shape = (SAMPLES, *(12 if size is None else size for size in tensor.shape[1:]))
        if "int" not in tensor.dtype:
            return rng.uniform(0.0, 1.0, shape).astype("float32")
        if tensor.name.endswith("padding_mask"):  # sequences of 1 to 12 steps
            return (np.arange(shape[1]) < rng.integers(1, shape[1] + 1, (SAMPLES, 1))).astype("int32")
        return np.zeros(shape, "int32") if tensor.name == "segment_ids" else rng.integers(0, 49, shape).astype("int32")

    return keras.tree.map_structure(one, model.input)


def measured(build: Build) -> dict[str, Any]:
    """Bytes, float tensors, what LiteRT's reference kernels give; or how a refusal begins."""
    keras.utils.set_random_seed(0)
    model = build(importlib.import_module("keras_hub").models)
    data = samples(model)
    shapes = keras.tree.map_structure(lambda a: (1, *a.shape[1:]), data)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of eight samples, and of drop paths, which inference has not
        try:
            path = Path(folder) / "model.tflite"
            report = kquant.compress(model, data, path=path, input_shape=shapes, verbose=False).report
        except ValueError as error:
            return {"refused": " ".join(str(error).split())[:160]}
    ran = {run.runtime: run.verdict for run in report.verification}
    return {"bytes": report.file_bytes, "floats": report.types.get("FLOAT32", 0), "codes": ran["litert-reference"]}


def table(results: dict[str, Any]) -> str:
    """Of the models that became files, as docs/zoo.md has it."""
    head = "| int8 for LiteRT | bytes | float tensors | codes on LiteRT's reference kernels |"
    rows = {name: row for name, row in results["models"].items() if "refused" not in row}
    lines = [f"| {name} | {row['bytes']:,} | {row['floats']} | {row['codes']} |" for name, row in rows.items()]
    return "\n".join([head, "| --- | --- | --- | --- |", *lines])


def main() -> None:
    """Measure, where KerasHub is; keep the figures, and put the table into the page."""
    if importlib.util.find_spec("keras_hub") is None:
        print("KerasHub is not installed here: pip install 'kquant[zoo]'")
        return
    version = importlib.metadata.version("keras-hub")
    models = {}
    for name, build in tqdm(MODELS.items(), desc="models", unit="model"):
        models[name] = measured(build)
    results = {"keras_hub": version, "kquant": kquant.__version__, "models": models}
    write_atomically(RESULTS, f"{json.dumps(results, indent=1)}\n".encode())
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    write_atomically(PAGE, f"{before}{BEGIN}\n\n{table(results)}\n\n{END}{rest.split(END, 1)[1]}".encode())
    print(table(results))
    for name, row in models.items():
        if "refused" in row:
            print(f"{name}: {row['refused']}")


if __name__ == "__main__":
    main()
