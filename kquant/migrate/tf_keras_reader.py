"""The side of Keras 2: load a checked file, write what is in it as plain data. Runs in a process of its own.

    python tf_keras_reader.py KIND SOURCE FOLDER MOST [CODE]      # used by `kquant.migrate.reading`

KIND is "file" (.h5 or .keras), "saved" (SOURCE is then a folder with config.json and the variables of a SavedModel), or
"variables" (of such a folder the variables alone, by the attributes that lead to them). CODE is the caller's own file
with the classes of the model that are not Keras' own.
Imports nothing of kquant: this Python may be another one than the caller's. No Lambda and, without CODE, no class that
is not Keras' or tfmot's gets here (`kquant.migrate.refusals`), and no graph of a SavedModel is run.
"""

# pyright: reportMissingImports=false, reportMissingModuleSource=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

if Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
    del sys.path[0]  # the files beside this one must not stand in for packages of their names
os.environ["TF_USE_LEGACY_KERAS"] = "1"  # of this process alone
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

try:
    import tf_keras
except ImportError:  # TensorFlow up to 2.15 holds Keras 2 itself
    tf_keras = tf.keras
try:
    import tensorflow_model_optimization as tfmot
except ImportError:
    tfmot = None

SAMPLES, OPEN, SEED = 4, 16, 0  # what is run: so many samples, open sizes as this
# What Keras 2 adds to a saved model beside the attributes of its class.
LISTS = ("variables", "trainable_variables", "non_trainable_variables", "layers", "metrics", "regularization_losses")
LISTS += (
    "keras_api",
    "signatures",
    "optimizer",
    "loss",
    "save_counter",
    "layer_metrics",
    "layer_regularization_losses",
)
MISSING = 3  # exit code: no Keras 2 here


def scopes() -> contextlib.ExitStack:
    """The classes of tfmot, where it is installed."""
    opened = contextlib.ExitStack()
    if tfmot is not None:
        for known in (tfmot.quantization.keras.quantize_scope, tfmot.sparsity.keras.prune_scope):
            opened.enter_context(known())
        opened.enter_context(tfmot.clustering.keras.cluster_scope())
        from tensorflow_model_optimization.python.core.clustering.keras import cluster_wrapper

        # `cluster_scope` of tfmot 0.8.1 forgets these
        names = ("ClusterWeightsRNN", "ClusterWeightsMHA")
        more = {name: getattr(cluster_wrapper, name) for name in names if hasattr(cluster_wrapper, name)}
        opened.enter_context(tf_keras.utils.custom_object_scope(more))
    return opened


def own(code: str) -> dict[str, Any]:
    """What a caller's file defines, by its names; it is run."""
    sys.path.insert(0, str(Path(code).parent))  # what it imports lies beside it
    spec = importlib.util.spec_from_file_location(Path(code).stem, code)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return {name: value for name, value in vars(module).items() if callable(value) and not name.startswith("_")}


def limited(most: int) -> None:
    """Refuse weights that are larger than the file, before memory is taken for them."""
    made, original = [0], tf_keras.layers.Layer.add_weight

    def add_weight(self, name=None, shape=None, *args, **kwargs):
        made[0] += math.prod(int(n) for n in tf.TensorShape(() if shape is None else shape).as_list())
        if made[0] > most:
            raise ValueError(f"layer '{self.name}' has a weight {shape}, more than the file holds")
        return original(self, name, shape, *args, **kwargs)

    tf_keras.layers.Layer.add_weight = add_weight


def forgiving() -> None:
    """Let tfmot's wrappers take what they saved themselves.

    `quantize_model` makes wrappers that list some of their weights twice, and saves those twice in a `.keras` file; a
    wrapper that is loaded lists them once, and tf_keras 2.21 refuses the file for it. Each expected weight is the next
    stored one of its shape.
    """

    def load_own_variables(self, store):
        stored = iter([np.asarray(store[str(i)]) for i in range(len(store.keys()))])
        for variable in self._trainable_weights + self._non_trainable_weights:
            value = next((v for v in stored if v.shape == tuple(variable.shape)), None)
            if value is None:
                raise ValueError(f"layer '{self.name}': nothing stored for {variable.name} {variable.shape}")
            variable.assign(value)

    if tfmot is not None:
        tfmot.quantization.keras.QuantizeWrapper.load_own_variables = load_own_variables


def load(kind: str, source: str, code: str) -> Any:
    """The model, uncompiled."""
    with scopes() as opened:
        if code:
            opened.enter_context(tf_keras.utils.custom_object_scope(own(code)))
        if kind == "file":
            return tf_keras.models.load_model(source, compile=False)
        told = json.loads((Path(source) / "config.json").read_text())
        made = tf_keras.Sequential if told["class_name"] == "Sequential" else tf_keras.Model
        model = made.from_config(told["config"])
        model.load_weights(str(Path(source) / "variables" / "variables")).assert_existing_objects_matched()
        return model


def remember_zeros(model: Any) -> None:
    """Which values and weights are 0, of the loaded numbers.

    Clustered layers that keep zeros find out when they are built, before their weights are loaded: a model that tfmot
    0.8.1 loads again computes with another codebook than the one that was saved.
    """
    for layer in model.submodules:  # layers of models inside are among them
        for name in getattr(layer, "sparsity_masks", {}):
            values = layer.cluster_centroids[name]
            original = layer.original_clusterable_weights[name]
            algorithm = layer.clustering_algorithms[name]
            shared = algorithm.get_clustered_weight(algorithm.get_pulling_indices(original), original)
            layer.zero_idx[name] = tf.argmin(tf.abs(values), axis=-1)
            layer.sparsity_masks[name] = tf.cast(tf.math.not_equal(shared, 0), tf.float32)


def samples_of(model: Any) -> list[np.ndarray]:
    """Numbers for each input: as wide as what a tfmot model saw there, small whole numbers where integers are asked."""
    rng = np.random.default_rng(SEED)
    made = []
    for tensor in model.inputs:
        shape = [SAMPLES, *(OPEN if n is None else n for n in tensor.shape[1:])]
        if tensor.shape[0] is not None:
            shape[0] = tensor.shape[0]
        whole = tensor.dtype.is_integer or tensor.dtype.is_bool or positions(model, tensor)
        values = rng.integers(0, 2, shape) if whole else rng.normal(size=shape) * reach(model)
        made.append(np.asarray(values, tensor.dtype.as_numpy_dtype))
    return made


def positions(model: Any, tensor: Any) -> bool:
    """True for an input whose numbers are positions in a table."""
    tables = [layer for layer in model.layers if isinstance(layer, tf_keras.layers.Embedding)]
    return any(layer.input is tensor for layer in tables)


def reach(model: Any) -> float:
    """Half of the widest range that a QuantizeLayer learned, 1 without one."""
    ends = [
        abs(float(w.numpy()))
        for layer in model.layers
        if type(layer).__name__ == "QuantizeLayer"
        for w in layer.weights[:2]
    ]
    return max(ends, default=0.0) / 2 or 1.0


def run(model: Any) -> tuple[list[np.ndarray], list[np.ndarray], str]:
    """Samples and outputs; where it cannot be run on made-up samples, the reason."""
    try:
        samples = samples_of(model)
        outputs = tf.nest.flatten(model(samples if len(samples) > 1 else samples[0], training=False))
        outputs = [np.asarray(y) for y in outputs]
    except Exception as error:  # noqa: BLE001  whatever a model does with numbers that mean nothing to it
        return [], [], f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    return samples, outputs, ""


def variables(source: str) -> dict[str, np.ndarray]:
    """Path of attributes -> number, of a checkpoint; its own names are whichever path was the shortest."""
    reader = tf.train.load_checkpoint(str(Path(source) / "variables" / "variables"))
    graph = trackable_object_graph_pb2.TrackableObjectGraph()
    graph.ParseFromString(reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH"))
    values, seen, waiting = {}, {0}, [("", 0)]
    while waiting:
        path, place = waiting.pop(0)
        for attribute in graph.nodes[place].attributes:
            if attribute.name == "VARIABLE_VALUE":
                values[path] = reader.get_tensor(attribute.checkpoint_key)
        for child in graph.nodes[place].children:
            if child.local_name not in LISTS and child.node_id not in seen:
                seen.add(child.node_id)
                waiting.append((f"{path}/{child.local_name}".lstrip("/"), child.node_id))
    return values


def main() -> None:
    """Load, run, write."""
    kind, source, folder, most, *code = sys.argv[1:]
    if int(tf_keras.__version__.split(".")[0]) != 2:
        sys.exit(MISSING)
    arrays = {}

    def key(value):
        arrays[f"a{len(arrays)}"] = value
        return f"a{len(arrays) - 1}"

    if kind == "variables":
        weights = {"": [[path, key(value)] for path, value in variables(source).items()]}
        told = {"class_name": "", "config": {}, "weights": weights, "samples": [], "outputs": []}
        write(folder, {**told, "untried": "how a subclassed model computes is in its code alone"}, arrays)
        return
    limited(int(most))
    forgiving()
    model = load(kind, source, *code or [""])
    # before it is run: a clustered layer puts tensors in the places of its weights
    config = json.loads(model.to_json())
    weights = {layer.name: [[w.name.split(":")[0], key(w.numpy())] for w in layer.weights] for layer in model.layers}
    remember_zeros(model)
    samples, outputs, untried = run(model)
    told = {
        "class_name": config["class_name"],
        "config": config["config"],
        "weights": weights,
        "samples": [key(x) for x in samples],
        "outputs": [key(y) for y in outputs],
        "untried": untried,
    }
    write(folder, told, arrays)


def write(folder: str, told: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """The result, with what made it."""
    versions = {"keras": tf_keras.__version__, "tensorflow": tf.__version__}
    if tfmot is not None:
        versions["tfmot"] = tfmot.__version__
    np.savez(Path(folder) / "arrays.npz", **arrays)
    (Path(folder) / "model.json").write_text(json.dumps({**told, "versions": versions}))


if __name__ == "__main__":
    main()
