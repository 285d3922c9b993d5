"""Modules by their paths of kquant 0.1: importing one gives what stands at the new path, and says where that is."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

TABLE = """
analysis.knapsack search.knapsack
analyze analysis.diagnosis
attach prepare.attach
autotune search.ladder
c_array projects.c_array
calibrate calibration.ranges
cell prepare.one_step
check prepare.forecast
cli app.cli
core.aeq recipe.litert_quantizer
core.arguments core.checks
core.arithmetic arithmetic
core.arithmetic.activation arithmetic.activation
core.arithmetic.elementwise arithmetic.elementwise
core.arithmetic.fixed_point arithmetic.fixed_point
core.arithmetic.gates arithmetic.gates
core.arithmetic.grid arithmetic.grid
core.arithmetic.interpolated arithmetic.interpolated
core.arithmetic.lstm arithmetic.lstm
core.arithmetic.matmul arithmetic.matmul
core.arithmetic.pooling arithmetic.pooling
core.arithmetic.requantize arithmetic.requantize
core.arithmetic.resize arithmetic.resize
core.arithmetic.softmax arithmetic.softmax
core.arithmetic.table arithmetic.table
core.arithmetic.transcendental arithmetic.transcendental
core.atomic files.atomic
core.clustering_section recipe.clustering_section
core.columns core.table
core.compressed layers.compressed
core.conversion layers.conversion
core.copies graph.copies
core.creation graph.creation
core.defaults graph.defaults
core.destination files.destination
core.effects graph.effects
core.fake_quant layers.fake_quant
core.given graph.given_model views.float_model
core.given_files files.named_files
core.graph graph.graph graph.precision
core.inputs graph.inputs
core.kept files.finished_work
core.learned layers.range_learner
core.learner layers.weight_learner
core.leftovers files.leftovers
core.live_norm layers.live_norm
core.lstm layers.quantized_lstm
core.nodes layers.nodes
core.nonuniform layers.nonuniform
core.oscillations layers.oscillations
core.output_names graph.output_names
core.pruning_section recipe.pruning_section
core.ranges layers.learned_ranges
core.recipe recipe.recipe
core.recording graph.recording
core.replicas layers.replicas
core.statistics calibration.tensor_statistics
core.step_mask graph.step_mask
core.stored graph.stored
core.training recipe.training_section
core.training_only layers.training_only
core.transformed layers.transformed
core.transforms layers.transform
core.unfold graph.unfold
core.unfollowed graph.unfollowed
core.untrusted files.untrusted
core.vocabulary correct.steps calibration.observers
core.watched graph.watched
core.weighted layers.weighted
core.wording core.messages
correct.adaround correct.adaptive_rounding
correct.equalize correct.equalization
correct.finished correct.progress
correct.sequential_mse correct.range_search
data calibration.data
data_scale calibration.data_scale
demo app.demo
dry_run analysis.try_steps
encodings calibration.aimet_encodings
expand ops.expansion
export exporting.export_file tflite.file_content
fold prepare.folding
hdf5 files.hdf5_copy
held_scales calibration.held_scales
inspect tflite.reader
interpreters runtime.interpreters
layer_bytes tflite.weight_bytes
look_up_tables exporting.stored_check tflite.lut_format tflite.stored_weights
lost_signal calibration.lost_signal
lower tflite.aliases tflite.edges tflite.flatbuffer tflite.lowering tflite.lut_format tflite.states tflite.streaming
lower.aliases tflite.aliases
lower.decodes tflite.lut_format tflite.stored_weights
lower.edges tflite.edges
lower.flatbuffer tflite.flatbuffer
lower.limits tflite.limits
lower.passes tflite.passes
lower.planes tflite.planes
lower.program tflite.lowering
lower.states tflite.states
lower.streaming tflite.streaming
lower.timeline tflite.timeline
lut tflite.lut_format
mixed_precision search.bit_widths
model_files files.keras_files
observe calibration.observations
observers calibration.observers
ops.kernels views.kernels
options app.options
packing views.packing
pipeline app.pipeline
plan views.plan
prefixes runtime.prefixes
preprocessing prepare.preprocessing
quantize prepare.quantization prepare.notices ops.expansion ops.refused views.float_model graph.given_model
quantized views.quantized_model graph.copies graph.precision
remedies analysis.remedies
result_files app.result_files
runtimes runtime.running
search_state search.search_state
second_look calibration.data_warnings
shrink.cost shrink.kernel_cost
shrink.factorize shrink.factorization
shrink.labelled shrink.labelled_data
shrink.plain views.flat_copy
shrink.prune shrink.channel_pruning
split prepare.split_inputs
stream exporting.streams tflite.streaming
strip masking.stripping views.released
train.centroids masking.centroids
train.clustering masking.clustering
train.codebook masking.codebook
train.distill train.distillation
train.mask masking.mask
train.masks masking.patterns
train.pruning masking.pruning
train.scan search.sparsity_scan
train.schedules masking.schedules
train.sites masking.kernel_sites
train.sparsity masking.zeros
train.wrapping masking.wrapping
unblock prepare.unblock
vela tflite.vela
verify exporting.verification
widths views.widths
"""
MOVED = {old: tuple(new) for old, *new in (line.split() for line in TABLE.strip().splitlines())}


class Moved(ModuleType):
    """A module at its old path. Some were called like a public function, so a call is one of that function."""

    def __getattr__(self, name: str) -> Any:
        """What the new module has."""
        return held(self.__name__, name, new_paths(self.__name__))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function of the same name."""
        return getattr(self, self.__name__.rsplit(".", 1)[-1])(*args, **kwargs)


class Finder(MetaPathFinder, Loader):
    """Finds the old paths, after all others have found nothing."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """For an old path; folders of that time hold more of them."""
        if fullname.removeprefix("kquant.") not in MOVED:
            return None
        return ModuleSpec(fullname, self, is_package=any(old.startswith(f"{fullname[7:]}.") for old in MOVED))

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty one."""
        return Moved(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Say where it is now."""
        warnings.warn(
            f"{module.__name__} is {' and '.join(new_paths(module.__name__))} now; kquant's public names are those of "
            "dir(kquant).",
            PendingDeprecationWarning,  # shown by test runners, not to whoever runs a script
            stacklevel=2,
        )


def new_paths(old: str) -> tuple[str, ...]:
    """Of what stood in a module, from its old path."""
    return tuple(f"kquant.{new}" for new in MOVED[old.removeprefix("kquant.")])


def held(old: str, name: str, homes: Sequence[str]) -> Any:
    """A name of an old module.

    Args:
        old: path of the module.
        name: in it.
        homes: modules that hold what stood there.

    Raises:
        AttributeError: none of them has it.
    """
    if not name.startswith("__") and not _is_module(old, name):
        for home in homes:
            if hasattr(module := importlib.import_module(home), name):
                return getattr(module, name)
    raise AttributeError(f"module '{old}' has no attribute '{name}'")


def _is_module(folder: str, name: str) -> bool:
    """True for a module in a folder of today, which the import that asks for it looks for next."""
    return hasattr(sys.modules[folder], "__path__") and importlib.util.find_spec(f"{folder}.{name}") is not None


def install() -> None:
    """Once."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.append(Finder())
