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
    from kquant.analysis.diagnosis import analyze
    from kquant.analysis.results import Analysis
    from kquant.analysis.try_steps import DryRun, dry_run
    from kquant.app.pipeline import CompressResult, compress
    from kquant.calibration.aimet_encodings import encodings, set_encodings
    from kquant.calibration.observations import Observations, observe
    from kquant.calibration.ranges import calibrate
    from kquant.correct.adaptive_rounding import adaround
    from kquant.correct.batch_norms import reestimate
    from kquant.correct.bias import correct_bias
    from kquant.correct.data_free import data_free_ranges
    from kquant.correct.equalization import equalize
    from kquant.correct.range_search import sequential_mse
    from kquant.exporting.export_file import ExportReport, export
    from kquant.exporting.streams import Stream, stream
    from kquant.exporting.verification import VerifyReport, verify
    from kquant.masking.clustering import cluster
    from kquant.masking.pruning import prune
    from kquant.masking.schedules import SparsitySchedule
    from kquant.masking.stripping import strip
    from kquant.masking.zeros import Sparsity, sparsity
    from kquant.ops import register_rule
    from kquant.prepare.folding import fold
    from kquant.prepare.forecast import CheckReport, check
    from kquant.prepare.one_step import cell, cell_samples
    from kquant.prepare.quantization import quantize
    from kquant.prepare.split_inputs import SplitModel, split_preprocessing
    from kquant.recipe.recipe import Recipe, recipe_from_aeq, recipe_to_aeq, recipe_to_toml
    from kquant.runtime.running import predict
    from kquant.search.bit_widths import Mixed, mixed_precision
    from kquant.search.ladder import Tuned, autotune
    from kquant.search.sparsity_scan import SparsityScan, scan_sparsity
    from kquant.shrink.channel_pruning import ChannelGroup, ChannelGroups, channel_groups, prune_channels
    from kquant.shrink.factorization import factorize
    from kquant.shrink.kernel_cost import Cost, cost
    from kquant.tflite.lut_program import LookUpTables
    from kquant.tflite.reader import FileModel, inspect
    from kquant.tflite.vela import vela_bytes
    from kquant.tflite.weight_bytes import FileBytes, layer_bytes
    from kquant.train.distillation import Distiller, distill
    from kquant.views.quantized_model import in_float32

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
