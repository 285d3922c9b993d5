"""kquant: compress Keras 3 models for phones and microcontrollers.

    quantize -> calibrate -> (compile, fit) -> export -> verify, predict, inspect

    q = kquant.quantize(model)              # a Keras model again; `model` is untouched
    kquant.calibrate(q, images)             # ranges from representative data
    q.compile(...); q.fit(...)              # optional: quantization-aware training
    report = kquant.export(q, "m.tflite")   # full integer, read back and run before it returns
"""

import sys
from pathlib import Path

__version__ = "0.1.0"

# The command `kquant` (`python -m kquant`) answers --help before TensorFlow has loaded, and imports what it needs.
# Everywhere else the import alone must register the layers with Keras: `import kquant; keras.models.load_model(...)`.
if Path(sys.argv[0] if sys.argv else "").stem != "kquant" and sys.orig_argv[1:3] != ["-m", "kquant"]:
    from kquant import callbacks, report
    from kquant.analysis.results import Analysis
    from kquant.analyze import analyze
    from kquant.autotune import Tuned, autotune
    from kquant.calibrate import calibrate
    from kquant.cell import cell, cell_samples
    from kquant.check import CheckReport, check
    from kquant.core.recipe import Recipe, recipe_from_aeq, recipe_to_aeq, recipe_to_toml
    from kquant.correct.adaround import adaround
    from kquant.correct.batch_norms import reestimate
    from kquant.correct.bias import correct_bias
    from kquant.correct.data_free import data_free_ranges
    from kquant.correct.equalize import equalize
    from kquant.correct.sequential_mse import sequential_mse
    from kquant.dry_run import DryRun, dry_run
    from kquant.encodings import encodings, set_encodings
    from kquant.export import ExportReport, export
    from kquant.fold import fold
    from kquant.inspect import FileModel, inspect
    from kquant.layer_bytes import FileBytes, layer_bytes
    from kquant.lower import LookUpTables
    from kquant.mixed_precision import Mixed, mixed_precision
    from kquant.observe import Observations, observe
    from kquant.ops import register_rule
    from kquant.pipeline import CompressResult, compress
    from kquant.quantize import quantize
    from kquant.quantized import in_float32
    from kquant.runtimes import predict
    from kquant.shrink.cost import Cost, cost
    from kquant.shrink.factorize import factorize
    from kquant.shrink.prune import ChannelGroup, ChannelGroups, channel_groups, prune_channels
    from kquant.split import SplitModel, split_preprocessing
    from kquant.stream import Stream, stream
    from kquant.strip import strip
    from kquant.train.clustering import cluster
    from kquant.train.distill import Distiller, distill
    from kquant.train.pruning import prune
    from kquant.train.scan import SparsityScan, scan_sparsity
    from kquant.train.schedules import SparsitySchedule
    from kquant.train.sparsity import Sparsity, sparsity
    from kquant.vela import vela_bytes
    from kquant.verify import VerifyReport, verify

__all__ = [
    "Analysis",
    "ChannelGroup",
    "ChannelGroups",
    "CheckReport",
    "CompressResult",
    "Cost",
    "Distiller",
    "DryRun",
    "ExportReport",
    "FileBytes",
    "FileModel",
    "LookUpTables",
    "Mixed",
    "Observations",
    "Recipe",
    "Sparsity",
    "SparsityScan",
    "SparsitySchedule",
    "SplitModel",
    "Stream",
    "Tuned",
    "VerifyReport",
    "analyze",
    "autotune",
    "adaround",
    "calibrate",
    "callbacks",
    "cell",
    "cell_samples",
    "channel_groups",
    "check",
    "cluster",
    "compress",
    "cost",
    "distill",
    "dry_run",
    "correct_bias",
    "data_free_ranges",
    "encodings",
    "equalize",
    "export",
    "factorize",
    "fold",
    "in_float32",
    "inspect",
    "layer_bytes",
    "mixed_precision",
    "observe",
    "predict",
    "prune_channels",
    "prune",
    "quantize",
    "register_rule",
    "recipe_from_aeq",
    "recipe_to_aeq",
    "recipe_to_toml",
    "reestimate",
    "report",
    "scan_sparsity",
    "sequential_mse",
    "set_encodings",
    "sparsity",
    "split_preprocessing",
    "stream",
    "strip",
    "vela_bytes",
    "verify",
]
