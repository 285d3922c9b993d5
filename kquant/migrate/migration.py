"""`from_tf_keras` and `from_tfmot`: an old file -> a Keras 3 model, float or quantized, compared with the old one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kquant import targets
from kquant.calibration.ranges import calibrate
from kquant.core.messages import first_of, warn
from kquant.files.leftovers import scratch
from kquant.graph.given_model import check_keras
from kquant.graph.graph import legal_name
from kquant.layers.modes import only
from kquant.layers.nodes import FakeQuant
from kquant.migrate import refusals
from kquant.migrate.building import Parts, build
from kquant.migrate.kept_patterns import kept
from kquant.migrate.learned_ranges import Ranges, set_learned
from kquant.migrate.old_files import check_described, open_file, unread
from kquant.migrate.old_model import BY_ATTRIBUTES, OldModel
from kquant.migrate.reading import check_code, check_python, read_by_tf_keras
from kquant.migrate.result import NOT_ASKED, Distance, Migrated
from kquant.migrate.stored_weights import assign, assign_by_attributes, distances
from kquant.migrate.tfmot_wrappers import BITS, Unwrapped, entries, unwrap
from kquant.migrate.translation import activation_of
from kquant.prepare.quantization import quantize

FAR = 1e-3  # of the largest output: two float libraries sum in other orders, and no more


def from_tf_keras(
    path: str | Path,
    *,
    custom_objects: Mapping[str, Any] | None = None,
    replacing: Mapping[str, keras.layers.Layer] | None = None,
    into: keras.Model | None = None,
    code: str | Path | None = None,
    python: str | Path | None = None,
    compare: bool = True,
) -> Migrated:
    """Bring a model of Keras 2 over, weights and all, and compare what the two compute.

    tf_keras loads the file in a process of its own; nothing of it is imported here. Wrappers of tfmot are taken off:
    `from_tfmot` brings over what they hold.

    Args:
        path: a `.h5` or `.keras` file of Keras 2, or a SavedModel folder that it saved.
        custom_objects: name -> Keras 3 class of a custom layer, with weights by the names of the old one. Without
            `code` such a file must be HDF5, and is not run by tf_keras, which lacks the class.
        replacing: name of a layer -> the Keras 3 layer in its place: of a Lambda, whose bytecode is never run. It takes
            on the old weights.
        into: a Keras 3 model that takes the weights, in place, instead of one that is built: of a subclassed model,
            whose attributes have the names of the old class, or of layers by the old names.
        code: file of Python that has the old classes and functions, by the names in the model, so that tf_keras can run
            it and the two are compared. It is run, in the process of tf_keras: your own code, never what came along.
        python: interpreter of an environment with tf_keras; this one by default.
        compare: run the old model on made-up samples. False reads a `.h5` file without tf_keras.

    Returns:
        The model and its distance from the old one.

    Raises:
        ValueError: another kind of file, damaged, code in it (named, with the way out), a layer that Keras 3 does not
            have, or tf_keras is missing; `code` that is no file.

    Example:
        >>> kquant.migrate.from_tf_keras("notes.h5")
        Traceback (most recent call last):
        ValueError: notes.h5: no such file; give a .h5 or .keras file of Keras 2, or a SavedModel folder.
    """
    parts = Parts(str(path), dict(custom_objects or {}), dict(replacing or {}), check_code(code))
    old = unwrap(read_old(path, parts, python, compare, into is not None))
    model = built(old, parts) if into is None else _filled(into, old, parts)
    return Migrated(
        model,
        str(path),
        "float",
        dict(old.model.versions),
        None if old.ranges else _float_distance(model, old.model),
        old.model.untried or (f"tfmot quantizes it ({old.kind}); from_tfmot compares the two" if old.ranges else ""),
    )


def from_tfmot(
    path: str | Path,
    data: Any = None,
    *,
    target: str = targets.DEFAULT,
    replacing: Mapping[str, keras.layers.Layer] | None = None,
    python: str | Path | None = None,
    compare: bool = True,
    verbose: bool = True,
) -> Migrated:
    """Bring a model over that tfmot quantized, pruned or clustered, with what it learned.

    Quantized models (QAT, PQAT, CQAT, PCQAT) become `kquant.quantize`d ones with tfmot's ranges of tensors and kernels;
    pruned kernels keep their zeros by a mask, clustered ones their shared values by a codebook, in either kind.

    Args:
        path: see `from_tf_keras`.
        data: samples for `kquant.calibrate`: of tensors for which tfmot learned no range, because it left them in
            float. Tensors that have one keep it.
        target: where the file is to run, see `kquant.quantize`.
        replacing: see `from_tf_keras`.
        python: see `from_tf_keras`.
        compare: see `from_tf_keras`.
        verbose: show progress bars.

    Returns:
        The model, what became of the ranges, what is not quantized alike, and the distance of outputs.

    Raises:
        ValueError: see `from_tf_keras` and `kquant.quantize`; nothing of tfmot in the file; or tensors without a range,
            and no data.

    Example:
        >>> kquant.migrate.from_tfmot("qat.h5")
        Traceback (most recent call last):
        ValueError: qat.h5: no such file; give a .h5 or .keras file of Keras 2, or a SavedModel folder.
    """
    parts = Parts(str(path), layers=dict(replacing or {}))
    old = unwrap(read_old(path, parts, python, compare))
    if old.kind == "float":
        raise ValueError(f"{path}: tfmot left nothing in it; kquant.migrate.from_tf_keras brings it over.")
    return finished(old, parts, None if data is None else lambda _: data, target, verbose=verbose)


def migrate(
    path: str | Path,
    data_for: Callable[[keras.Model], Any] | None,
    *,
    target: str,
    python: str | Path | None,
    compare: bool,
    custom_objects: Mapping[str, Any] | None = None,
    code: str | Path | None = None,
    verbose: bool,
) -> Migrated:
    """What fits the file: `from_tfmot` where tfmot left something in it, else `from_tf_keras`.

    Args:
        path: see `from_tf_keras`.
        data_for: gives samples for a model, see `from_tfmot`.
        target: see `from_tfmot`.
        python: see `from_tf_keras`.
        compare: see `from_tf_keras`.
        custom_objects: see `from_tf_keras`.
        code: see `from_tf_keras`.
        verbose: show progress bars.

    Raises:
        ValueError: see there.
    """
    parts = Parts(str(path), dict(custom_objects or {}), code=check_code(code))
    return finished(unwrap(read_old(path, parts, python, compare)), parts, data_for, target, verbose=verbose)


def _filled(model: keras.Model, old: Unwrapped, parts: Parts) -> keras.Model:
    """The given model with the old weights."""
    check_keras(model, "migrate")
    if set(old.model.weights) == {BY_ATTRIBUTES}:
        assign_by_attributes(model, old.model.weights[BY_ATTRIBUTES], parts.where)
    else:
        assign(model, old.model.weights, parts.where)
    return model


def read_old(
    path: str | Path, parts: Parts, python: str | Path | None, compare: bool, has_model: bool = False
) -> OldModel:
    """What is in an old file: by tf_keras, or from the file alone where tf_keras could not, or need not, load it.

    Args:
        path: see `from_tf_keras`.
        parts: given beside the file.
        python: see `from_tf_keras`.
        compare: see `from_tf_keras`.
        has_model: the caller gave a model, so that weights will do.

    Raises:
        ValueError: see `from_tf_keras`.
    """
    with scratch() as folder:
        file = open_file(path, folder)
        if not has_model:
            check_described(file)
        if file.is_subclassed:
            return read_by_tf_keras(file, check_python(python))
        unknown = refusals.foreign(file.config)
        refusals.check(unknown, file.where, parts.classes, parts.layers)
        if unknown.lambdas:
            return unread(file, "tf_keras would run the bytecode of its Lambdas")
        if not parts.code and (unknown or parts.layers):
            return unread(
                file, "tf_keras has no code of its own for what was given in Python; code= names the file of it"
            )
        if not compare:
            return unread(file, NOT_ASKED)
        return read_by_tf_keras(file, check_python(python), parts.code)


def built(old: Unwrapped, parts: Parts) -> keras.Model:
    """The float model inside, with its weights.

    Raises:
        ValueError: a layer or weight that Keras 3 has no place for.
    """
    model = build(old.model.class_name, old.model.config, parts)
    assign(model, old.model.weights, parts.where)
    return model


def finished(
    old: Unwrapped, parts: Parts, data_for: Callable[[keras.Model], Any] | None, target: str, *, verbose: bool
) -> Migrated:
    """The model with what tfmot learned.

    Args:
        old: without wrappers.
        parts: given beside the file.
        data_for: gives samples for a model, see `from_tfmot`.
        target: see `from_tfmot`.
        verbose: see `from_tfmot`.

    Raises:
        ValueError: see `from_tfmot`.
    """
    model = kept(built(old, parts), old.masks, old.books, parts.where)
    made = Migrated(model, parts.where, old.kind, dict(old.model.versions), untried=old.model.untried)
    made = replace(made, masks=len(old.masks), books=len(old.books))
    if not old.ranges:
        return replace(made, distance=_float_distance(model, old.model))
    qmodel = quantize(model, _recipe(old), target=target)
    if data_for is not None:
        calibrate(qmodel, data_for(model), verbose=verbose)
    ranges = set_learned(qmodel, old.ranges, _fused(old))
    if ranges.left and data_for is None:
        raise ValueError(
            f"{parts.where}: tfmot has no range for {first_of(ranges.left)} ({len(ranges.left)} tensors), which it "
            "left in float. Give samples: kquant.migrate.from_tfmot(path, data), or --data."
        )
    counts = {"tensors": ranges.tensors, "kernels": ranges.kernels, "differences": ranges.differences}
    return replace(made, model=qmodel, distance=_quantized_distance(qmodel, old.model, ranges), **counts)


def _recipe(old: Unwrapped) -> dict[str, Any]:
    """int8, at the widths of tfmot's grids where those are others (its n-bit scheme)."""
    tensors = {r.bits for r in old.ranges if r.tensor in ("output", "pre_activation")}
    kernels = {legal_name(r.layer): r.bits for r in old.ranges if r.tensor not in ("output", "pre_activation")}
    common = max(kernels.values(), default=BITS)
    rules = [{"layer": name, "weights": {"bits": bits}} for name, bits in kernels.items() if bits != common]
    activations = {"bits": tensors.pop()} if len(tensors) == 1 else {}
    return {
        "name": "tfmot",
        "activations": activations,
        "weights": {"bits": common, "per_axis": True},
        "rules": rules,
        "training": {"momentum": 0.999},  # of tfmot's moving averages
    }


def _fused(old: Unwrapped) -> dict[str, str]:
    """Layer -> the function inside it, as Keras 3 names it."""
    named = {entry["config"]["name"]: activation_of(entry["config"]) for entry in entries(old.model.config)}
    return {layer: keras.activations.get(name).__name__ for layer, name in named.items() if name}


def _float_distance(model: keras.Model, old: OldModel) -> Distance | None:
    if not old.outputs:
        return None
    errors = distances(model, old.samples, old.outputs)
    reach = max(float(np.max(np.abs(y), initial=0.0)) for y in old.outputs)
    made = Distance(len(old.samples[0]), reach, max(errors))
    if made.float_error > FAR * max(reach, 1e-6):
        warn(
            f"{old.where}: the new model's outputs are up to {made.float_error:.3g} away from the old one's, which "
            f"reach {reach:.3g}. Compare layer by layer before you use it."
        )
    return made


def _quantized_distance(qmodel: keras.Model, old: OldModel, ranges: Ranges) -> Distance | None:
    """On tfmot's grids alone, floats rounded to them; and as the device computes."""
    if not old.outputs:
        return None
    with only(ranges.alike):
        rounded = max(distances(qmodel, old.samples, old.outputs))
    integers = max(distances(qmodel, old.samples, old.outputs))
    reach = max(float(np.max(np.abs(y), initial=0.0)) for y in old.outputs)
    steps = [layer.grid()[0] for layer in qmodel.layers if isinstance(layer, FakeQuant) and not layer.follows]
    return Distance(len(old.samples[0]), reach, rounded, integers, float(steps[-1]) if steps else None)
