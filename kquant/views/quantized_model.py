"""Read a quantized model: its calls, its layers with weights, and the tensors at any place, in float or in integers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.core.messages import first_of
from kquant.graph.graph import Graph, Node, drop_read, reachable, run, trace
from kquant.graph.keras_private import inner_layers, recorded_calls
from kquant.layers.kernel import has_codes
from kquant.layers.loop import Step
from kquant.layers.nodes import Compressed, FakeQuant, encodings_of, observing
from kquant.ops import find
from kquant.ops.rule import Rule

QUANTIZING = FakeQuant | Compressed  # what holds grids
EAGER_BATCHES = 16  # tracing takes as long as a few batches do without
HELD_BYTES = 1 << 28  # of the tensors of a batch: what is no trouble to hold


@dataclass(frozen=True, eq=False)
class Place:
    """A layer with weights in a quantized model.

    Attributes:
        layer: the wrapper.
        calls: where it is called, in order; more than one where it is shared.
        activations: for each call, what the operator fuses between its sums and their encoding (a ReLU, or nothing).
        rule: of the wrapped layer.
    """

    layer: Compressed
    calls: tuple[Node, ...]
    activations: tuple[Callable[[Any], Any] | None, ...]
    rule: Rule

    @property
    def name(self) -> str:
        """The layer's name, which is that of the user's layer."""
        return self.layer.name

    @property
    def rows(self) -> Callable[[Any, Any], Any] | None:
        """What its kernel is multiplied by (`Weights.rows`); None where it is no product of matrices."""
        return None if self.rule.weights is None else self.rule.weights.rows


def is_known(op: Any) -> bool:
    """Layers that stay whole when a quantized model is read."""
    return isinstance(op, QUANTIZING) or find(op) is not None


def is_quantized(layers: Iterable[keras.layers.Layer]) -> bool:
    """True for the layers, at any depth, of what `kquant.quantize` returned, saved and loaded or not."""
    return any(isinstance(layer, QUANTIZING) for layer in layers)


def refuse_nested(model: keras.Model) -> None:
    """Refuse a model that has a quantized one among its layers: which of the rest is float, nobody said.

    Args:
        model: float or quantized.

    Raises:
        ValueError: it holds one, by name.
    """
    models = [x for x in inner_layers(model) if isinstance(x, keras.Model) and not isinstance(x, Step)]
    inner = [x for x in models if any(isinstance(layer, QUANTIZING) for layer in inner_layers(x))]
    if inner:
        raise ValueError(
            f"{model.name}: it has the quantized model '{inner[0].name}' among its layers, beside float ones. Build "
            "the whole model in float (kquant.strip gives the float model of a quantized one), then prune, cluster or "
            "quantize that; a rule with float = true keeps a layer float."
        )


def read(qmodel: keras.Model) -> Graph:
    """The calls of a quantized model.

    Raises:
        ValueError: it is not one, or holds one.
    """
    refuse_nested(qmodel)
    graph = trace(qmodel, is_known)
    if not any(isinstance(node.op, QUANTIZING) for node in graph.nodes):
        raise ValueError(f"{qmodel.name}: not a quantized model; pass what kquant.quantize returned.")
    return graph


def refuse_uncalibrated(who: str, qmodel: keras.Model) -> None:
    """Refuse a model that has a tensor without a range: it stays float, and what is told of it is of another model.

    Args:
        who: the verb that errors name.
        qmodel: a quantized model.

    Raises:
        ValueError: naming the tensors.
    """
    blank = [q.name for q in encodings_of(qmodel) if q.has_range and not np.any(q.count.numpy())]
    if blank:
        raise ValueError(
            f"{who}: {qmodel.name} has encodings without a range: {first_of(blank)}. Run "
            "kquant.calibrate(qmodel, data) first."
        )


def places(graph: Graph, blocks: bool = False) -> list[Place]:
    """The layers whose weights are codes, in the order of the model, without those in loops (`step_places`).

    Args:
        graph: of a quantized model.
        blocks: those, too, whose codes have a scale for each block, which no integer kernel multiplies.
    """
    calls: dict[int, list[Node]] = {}
    for node in graph.nodes:
        if isinstance(node.op, Compressed) and is_whole(node.op, blocks):
            calls.setdefault(id(node.op), []).append(node)
    made = [place_of(nodes, graph.consumers) for nodes in calls.values()]
    return [place for place in made if place is not None]


def is_whole(op: Any, blocks: bool = False) -> bool:
    """True for a layer whose weights are integers times scales; with `blocks` times scales of blocks, too."""
    return has_codes(op) or (blocks and isinstance(op, Compressed) and op.spec is not None and op.spec.in_blocks)


def place_of(calls: Sequence[Node], consumers: dict[int, list[Node]]) -> Place | None:
    """The layer of these calls; None where no rule knows what it wraps.

    Args:
        calls: of one `Compressed`, in order.
        consumers: of the graph that they are in.
    """
    rule = find(calls[0].op.layer)
    after = tuple(_activation(node, consumers) for node in calls)
    return None if rule is None else Place(calls[0].op, tuple(calls), after, rule)


def _activation(node: Node, consumers: dict[int, list[Node]]) -> Callable[[Any], Any] | None:
    """The operation between a layer's output and the `FakeQuant` that encodes it."""
    readers = consumers.get(id(node.outputs[0]), [])
    # with several readers nothing was fused (`plan`): the layer's own output has the encoding
    if len(readers) != 1 or isinstance(readers[0].op, QUANTIZING):
        return None
    after = consumers.get(id(readers[0].outputs[0]), [])
    return readers[0].op if len(after) == 1 and isinstance(after[0].op, FakeQuant) else None


def tensors(
    graph: Graph, wanted: list[Any], batches: Iterable[Any], *, quantized: bool
) -> Iterator[tuple[np.ndarray, ...]]:
    """Values of some tensors for every batch; only what they need is computed.

    Args:
        graph: of a quantized model.
        wanted: tensors of it.
        batches: inputs, as `kquant.calibration.data.batches_of` gives them.
        quantized: True: the integer arithmetic of the device; False: the float model that was quantized.

    Yields:
        A numpy array for each wanted tensor.
    """
    part = replace(graph, outputs=wanted, nodes=reachable(graph.nodes, wanted))

    def compute(x: Any) -> tuple[tf.Tensor, ...]:
        values = run(part, x)
        return tuple(tf.convert_to_tensor(values[id(t)]) for t in wanted)

    def mode() -> contextlib.AbstractContextManager:
        # to observe is to run in float; a collector that drops everything makes it just that
        return contextlib.nullcontext() if quantized else observing(lambda *_: None)

    traced = None
    for number, x in enumerate(batches):
        if number < EAGER_BATCHES:
            # around the call and not the loop: between two batches the caller's own code runs, which is in no such mode
            with mode():
                values = compute(x)
        else:
            if traced is None:
                specs = keras.tree.map_structure(lambda t: tf.TensorSpec((None, *t.shape[1:]), t.dtype), graph.inputs)
                with mode():
                    traced = tf.function(compute, autograph=False).get_concrete_function(specs)
            values = traced(x)
        yield tuple(y.numpy() for y in values)


def tensor_bytes(graph: Graph) -> list[int]:
    """Of every tensor that the calls make, for one sample in float32."""
    shapes = [t.shape[1:] for node in graph.nodes for t in node.outputs if len(t.shape) > 1]
    return [4 * int(np.prod([n or 1 for n in shape])) for shape in shapes]


def graph_if_large(qmodel: keras.Model, samples: int) -> Graph | None:
    """The calls, where a batch should be computed by `outputs_of`.

    Keras holds every tensor of a batch until the last layer is done, which for large ones is gigabytes. To read the
    calls takes time, too: as long as a small model calibrates.

    Args:
        qmodel: that is called without training.
        samples: of a batch.
    """
    if isinstance(qmodel, keras.Function):
        made = [t for call in recorded_calls(qmodel) for t in call.outputs]
        if samples * 4 * sum(int(np.prod([n or 1 for n in t.shape[1:]])) for t in made) <= HELD_BYTES:
            return None
    return read(qmodel)


def live_bytes(graph: Graph) -> int:
    """Of the tensors that `outputs_of` holds together, where that is most, for one sample in float32."""
    last = graph.last_reads
    alive: dict[int, int] = {}
    most = 0
    for number, node in enumerate(graph.nodes):
        alive |= {id(t): 4 * int(np.prod([n or 1 for n in t.shape[1:]])) for t in node.outputs}
        most = max(most, sum(alive.values()))
        drop_read(alive, last, number)
    return most


def forget_graphs(qmodel: keras.Model) -> None:
    """Functions that Keras has traced hold what layers were; changes beside their variables need a new trace."""
    qmodel.train_function = qmodel.test_function = qmodel.predict_function = None
