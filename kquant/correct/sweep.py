"""A model from its inputs to its outputs, over all samples, as far as each layer asks.

A correction changes one layer after the other, in the model's order. What lies before a layer stays as it is by then:
the tensors that it reads are made once, those that it makes at most twice, before it changes and after. So the work
grows with the number of layers, not with its square.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.calibration.data import batches_of, refuse_endless
from kquant.core.beforehand import constants
from kquant.core.checks import check_count
from kquant.graph.graph import Graph, Node, drop_read, reachable
from kquant.graph.unfold import substitute
from kquant.layers.nodes import observing
from kquant.views.quantized_model import read, tensor_bytes
from kquant.views.step_places import StepTensor, host_of

BATCH_BYTES = 1 << 25  # of the largest tensor while one batch is computed
# Of tensors in memory; the others wait in files. TensorFlow gives back to the system nothing of what it once took.
KEPT_BYTES = 1 << 28
SMALL_BYTES = 1 << 12  # encodings and scales stay in memory


class Sweep:
    """The tensors of a quantized model, for one layer after the other.

    Args:
        step: the correction that asks, which errors are named after.
        qmodel: what `kquant.quantize` returned.
        data: see `kquant.calibrate`; read once.
        limit: how many samples of them, or None.
        batch_size: for arrays.

    Raises:
        ValueError: data that do not fit or never end, no samples at all, or a limit below 1.
    """

    def __init__(self, step: str, qmodel: keras.Model, data: Any, limit: int | None = None, batch_size: int = 32):
        if limit is None:
            refuse_endless(data)
        else:
            check_count(step, "limit", limit)
        self.step = step
        self.graph = read(qmodel)
        # A function: nothing is read before a layer, or a folder of an earlier run, asks.
        self._batches = lambda: batches_of(qmodel, data, batch_size, limit)
        self._ways: dict[bool, _Way] = {}
        self._shelf = _Shelf(KEPT_BYTES)
        self._samples = 0
        self._digests = [hashlib.sha256() for _ in self.graph.input_tensors]

    @property
    def samples(self) -> int:
        """How many samples there are."""
        self._begin()
        return self._samples

    @property
    def fingerprint(self) -> str:
        """What other samples do not have, however they are batched."""
        self._begin()
        return " ".join(digest.hexdigest()[:16] for digest in self._digests)

    def values(self, first: Node, wanted: Sequence[Any], *, quantized: bool) -> Iterator[tuple[tf.Tensor, ...]]:
        """Values of some tensors for every batch.

        Args:
            first: a call; of all nodes before it nothing changes any more. Later calls of this function name the same
                node, or later ones.
            wanted: tensors that nodes before `first` make, or others that are computed for now; also `StepTensor`s.
            quantized: True: the integer arithmetic of the device; False: the float model that was quantized.

        Yields:
            A tensor for each that is wanted.
        """
        self._begin()
        return self._ways[quantized].values(first, wanted)

    def pairs(
        self, first: Node, read_in: Sequence[Any], made: Sequence[Any]
    ) -> Iterator[tuple[tuple[tf.Tensor, ...], tuple[tf.Tensor, ...]]]:
        """Tensors of the quantized model and others of the float one, batch by batch of the same samples."""
        ours = self.values(first, read_in, quantized=True)
        return zip(ours, self.values(first, made, quantized=False), strict=True)

    def _begin(self) -> None:
        if self._ways:
            return
        # Floats have their own tensors, from the inputs on; the inputs are held by both.
        ways = {quantized: _Way(self.graph, self._shelf, quantized) for quantized in (True, False)}
        most = max(1, BATCH_BYTES // max(tensor_bytes(self.graph), default=1))
        for batch in self._batches():
            parts = [tf.convert_to_tensor(x) for x in keras.tree.flatten(batch)]
            self._samples += len(parts[0])
            for digest, part in zip(self._digests, parts, strict=True):
                digest.update(np.ascontiguousarray(part).tobytes())
            for start in range(0, len(parts[0]), most):
                for way in ways.values():
                    way.add([x[start : start + most] for x in parts])
        if not self._samples:
            raise ValueError(f"{self.step}: the data are empty; give at least one sample.")
        self._ways = ways  # all of the data, or nothing


class _Way:
    """The model in integers, or in float: how far it has been computed, and what is read from there on."""

    def __init__(self, graph: Graph, shelf: _Shelf, quantized: bool) -> None:
        self.graph, self.shelf, self.quantized = graph, shelf, quantized
        self.numbers = {id(node): i for i, node in enumerate(graph.nodes)}
        # Of each batch: how many nodes are done, and id(tensor) -> what the shelf has for it.
        self.live: list[tuple[int, dict[int, Any]]] = []

    def add(self, inputs: Sequence[tf.Tensor]) -> None:
        """One batch more."""
        names = [id(t) for t in self.graph.input_tensors]
        self.live.append((0, {name: self.shelf.put(x) for name, x in zip(names, inputs, strict=True)}))

    def values(self, first: Node, wanted: Sequence[Any]) -> Iterator[tuple[tf.Tensor, ...]]:
        """See `Sweep.values`."""
        until = self.numbers[id(host_of(first))]
        steps = [t for t in wanted if isinstance(t, StepTensor)]
        hosts = {id(t.host): t.host for t in steps}
        # A shared layer is called again where its own output counts: that is computed for now, and not kept.
        outside = [t for t in wanted if not isinstance(t, StepTensor)]
        ahead = reachable(self.graph.nodes[until:], [*outside, *(t for host in hosts.values() for t in host.inputs)])
        known: dict[int, Any] = {}
        for number, (done, held) in enumerate(self.live):
            values = {name: self.shelf.take(x) for name, x in held.items()}
            if done < until:
                self._run(values, self.graph.nodes[done:until], done)
                self.live[number] = until, self._kept(held, values)
            self._run(values, ahead)
            for host in hosts.values():
                self._inside(values, host, [t for t in steps if t.host is host], known)
            yield tuple(values[id(t)] for t in wanted)

    def _mode(self) -> contextlib.AbstractContextManager[Any]:
        # To observe is to run in float; a collector that drops everything makes it just that.
        return contextlib.nullcontext() if self.quantized else observing(lambda *_: None)

    def _inside(self, values: dict[int, Any], host: Node, wanted: Sequence[StepTensor], known: dict[int, Any]) -> None:
        """Tensors of the step of a loop, by running it; a function for all batches is made at the first."""
        args, kwargs = substitute((host.args, host.kwargs), values)
        xs = [tf.convert_to_tensor(x) for x in args[0]]
        if id(host) not in known:
            specs = [tf.TensorSpec((None, *x.shape[1:]), x.dtype) for x in xs]
            inside = [t.inside for t in wanted]
            # Encodings are what they are now, as weights are.
            run = tf.function(lambda *given: host.op.at_all_steps(inside, given, **kwargs), autograph=False)
            with self._mode(), constants():
                known[id(host)] = run.get_concrete_function(*specs)
        values.update((id(t), y) for t, y in zip(wanted, known[id(host)](*xs), strict=True))

    def _run(self, values: dict[int, Any], nodes: Iterable[Node], start: int | None = None) -> None:
        """Compute nodes; with the number of the first, what nothing later reads goes at once."""
        last = self.graph.last_reads
        for offset, node in enumerate(nodes):
            args, kwargs = substitute((node.args, node.kwargs), values)
            with self._mode():
                made = keras.tree.flatten(node.op(*args, **kwargs))
            values.update((id(t), tf.convert_to_tensor(y)) for t, y in zip(node.outputs, made, strict=True))
            if start is not None:
                drop_read(values, last, start + offset)

    def _kept(self, held: dict[int, Any], values: dict[int, Any]) -> dict[int, Any]:
        """What is on the shelf after a batch went on."""
        for name in held.keys() - values.keys():
            self.shelf.drop(held[name])
        return {name: held[name] if name in held else self.shelf.put(x) for name, x in values.items()}


class _Shelf:
    """Tensors that wait: in memory up to a limit, behind it in files of a folder that goes with the shelf."""

    def __init__(self, most: int) -> None:
        self.most, self.bytes = most, 0
        self._folder: tempfile.TemporaryDirectory | None = None
        self._numbers = itertools.count()

    def put(self, x: tf.Tensor) -> tf.Tensor | Path:
        """Keep a tensor."""
        size = _size(x)
        if size <= SMALL_BYTES:
            return x
        if self.bytes + size <= self.most:
            self.bytes += size
            # Without what it carries: codes would take as much again, and can be read off the values.
            return tf.identity(x)
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="kquant-")
        path = Path(self._folder.name) / f"{next(self._numbers)}.npy"
        np.save(path, x.numpy())
        return path

    def take(self, kept: tf.Tensor | Path) -> tf.Tensor:
        """The tensor."""
        return tf.convert_to_tensor(np.load(kept, mmap_mode="r")) if isinstance(kept, Path) else kept

    def drop(self, kept: tf.Tensor | Path) -> None:
        """It is read no more."""
        if isinstance(kept, Path):
            kept.unlink()
        elif _size(kept) > SMALL_BYTES:
            self.bytes -= _size(kept)


def _size(x: Any) -> int:
    return int(np.prod(x.shape)) * x.dtype.size
