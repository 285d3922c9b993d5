"""The model over the data: in float, in integer arithmetic, and with some of its units quantized only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.analysis.by_chance import right_of
from kquant.analysis.metrics import judged
from kquant.analysis.sqnr import Noise, mean_db, noise_of, noise_of_positions
from kquant.analysis.tensors import Seen, grid_of
from kquant.analysis.units import Unit, followed, quantizes
from kquant.core.progress import tqdm
from kquant.graph.graph import Graph, Node, run
from kquant.graph.unfold import substitute
from kquant.layers.nodes import FakeQuant, observing, only
from kquant.ops.position import positions

MOST_VALUES = 1 << 26  # float values of all tensors of a chunk together: 256 MiB
MOST_SAMPLES = 128  # in a chunk
Metric = Callable[[Any], float]
Names = frozenset[str]


@dataclass
class Outputs:
    """The outputs of the model in one setting, over all data.

    Attributes:
        noises: one for each output.
        arrays: the outputs themselves, chunk by chunk; empty where nobody wants them.
    """

    noises: list[Noise]
    arrays: list[list[np.ndarray]] = field(default_factory=list)

    def value(self, metric: Metric | None) -> float:
        """The metric."""
        return mean_db(self.noises) if metric is None else judged(metric, self._whole())

    def right(self, metric: Metric | None) -> str:
        """Which samples are right, see `by_chance.right_of`."""
        return "" if metric is None else right_of(metric, self._whole())

    def _whole(self) -> Any:
        columns = [np.concatenate(column) for column in zip(*self.arrays, strict=True)]
        return columns[0] if len(columns) == 1 else columns


def chunks(graph: Graph, x: list[np.ndarray]) -> list[Any]:
    """The samples in pieces, two or more, whose tensors fit into memory together.

    Args:
        graph: of the quantized model.
        x: one array for each input.
    """
    # float values of all tensors stay while a chunk is walked over: every setting starts from them
    sizes = [np.prod([n or 1 for n in t.shape[1:]]) for node in graph.nodes for t in node.outputs]
    half = -(-len(x[0]) // 2)  # two chunks at least: they tell whether ranges still move
    step = int(np.clip(MOST_VALUES // max(int(np.sum(sizes)), 1), 1, min(MOST_SAMPLES, half)))
    starts = range(0, len(x[0]), step)
    return [
        keras.tree.pack_sequence_as(graph.inputs, [tf.convert_to_tensor(a[i : i + step]) for a in x]) for i in starts
    ]


class Passes:
    """Everything measured in one walk over the data; float values are computed once for each chunk.

    Attributes:
        noises: id(unit) -> of its output, in integer arithmetic, end to end.
        local: id(unit) -> of its output, with this unit alone quantized.
        seen: name of a `FakeQuant` -> what met it.
        outputs: names that quantize -> outputs; `ALL` stands for the integer arithmetic, `NONE` for float.
    """

    ALL, NONE = None, frozenset()

    def __init__(
        self, graph: Graph, parts: list[Unit], metric: Metric | None, settings: list[Names], keep: bool = False
    ) -> None:
        self.graph, self.units, self.metric, self.settings = graph, parts, metric, settings
        self.keeps = keep or metric is not None
        self.ends = [id(t) for t in graph.output_tensors]
        self.calls: dict[str, list[Node]] = {}
        for node in graph.nodes:
            if quantizes(node):
                self.calls.setdefault(node.op.name, []).append(node)
        self.sources = followed(graph)
        self.positions = positions(graph)
        self.noises: dict[int, Noise] = {}
        self.local: dict[int, Noise] = {}
        self.seen: dict[str, Seen] = {}
        self.outputs: dict[Names | None, Outputs] = {}
        self.settled: dict[Names | None, float] = {}
        self.by_names = {unit.names: unit for unit in parts}

    def walk(self, pieces: list[Any], verbose: bool, only_settings: bool = False) -> None:
        """Every setting over every chunk; the integer arithmetic too, unless there are to be settings only."""
        total = len(pieces) * ((1 if only_settings else 2) + len(self.settings))
        with tqdm(total=total, desc="analyze", unit="pass", disable=not verbose) as bar:
            for x in pieces:
                with observing(lambda *_: None):
                    real = run(self.graph, x)
                bar.update()
                if not only_settings:
                    self._keep(self.NONE, real, real)
                    self._look(real)
                    self._quantize(x, real)
                    bar.update()
                for names in self.settings:
                    self._simulate(names, real)
                    bar.update()

    def _quantize(self, x: Any, real: dict[int, Any]) -> None:
        """The integer arithmetic; the settings behind it need the memory, and start from `real` alone."""
        quantized = run(self.graph, x)
        self._keep(self.ALL, real, quantized)
        for unit in self.units:
            self.noises[id(unit)] = self.noises.get(id(unit), Noise()) + self._of_unit(unit, real, quantized)

    def _look(self, real: dict[int, Any]) -> None:
        """Float values against the grid of their encoding."""
        for name, nodes in self.calls.items():
            layer: FakeQuant = nodes[0].op
            grid = grid_of(self.sources[name])
            if grid is not None:
                # an encoding of several tensors has one grid, and so one histogram
                values = tf.concat([tf.reshape(real[id(node.args[0])], (-1,)) for node in nodes], 0)
                self.seen.setdefault(name, Seen()).add(values, *grid, layer.spec.low, layer.spec.high)

    def _simulate(self, names: Names, real: dict[int, Any]) -> None:
        """One setting on one chunk; what lies before the first named layer is what it is in float."""
        # tensors are shared, not copied: a setting replaces those that it changes
        values = dict(real)
        changed: set[int] = set()
        with only(names):
            for node in self.graph.nodes:
                if node.op.name not in names and not any(id(t) in changed for t in node.inputs):
                    continue
                args, kwargs = substitute((node.args, node.kwargs), values)
                for t, value in zip(node.outputs, keras.tree.flatten(node.op(*args, **kwargs)), strict=True):
                    values[id(t)] = value
                    changed.add(id(t))
        self._keep(names, real, values)
        # a setting that is one layer alone tells that layer's own noise as well, at its output
        unit = self.by_names.get(names)
        if unit is not None:
            self.local[id(unit)] = self.local.get(id(unit), Noise()) + self._of_unit(unit, real, values)

    def _keep(self, names: Names | None, real: dict[int, Any], values: dict[int, Any]) -> None:
        """Outputs of one setting on one chunk."""
        kept = self.outputs.setdefault(names, Outputs([Noise()] * len(self.ends)))
        kept.noises = [n + self._noise(i, real, values) for n, i in zip(kept.noises, self.ends, strict=True)]
        if self.keeps:
            kept.arrays.append([np.asarray(values[i]) for i in self.ends])

    def _noise(self, i: int, real: dict[int, Any], values: dict[int, Any]) -> Noise:
        return (noise_of_positions if i in self.positions else noise_of)(real[i], values[i])

    def _of_unit(self, unit: Unit, real: dict[int, Any], values: dict[int, Any]) -> Noise:
        return sum((self._noise(id(t), real, values) for t in unit.outputs), Noise())

    def settle(self, names: Names, value: float, local: Noise | None) -> None:
        """A setting that was walked over elsewhere.

        Args:
            names: of it.
            value: the metric.
            local: noise at the output of the one unit that it quantizes; None: it is not one unit.
        """
        self.settled[names] = value
        if local is not None:
            self.local[id(self.by_names[names])] = local

    def value(self, names: Names | None) -> float:
        """The metric in one setting."""
        if names in self.settled:
            return self.settled[names]
        return self.outputs[names].value(self.metric)

    def right(self, names: Names | None) -> str:
        """Which samples are right in a setting that was walked over here, see `by_chance.right_of`."""
        return self.outputs[names].right(self.metric)


def settings_of(parts: list[Unit]) -> Iterator[Names]:
    """What sensitivity asks for: each unit alone, its weights and its tensors alone, and all but it."""
    everything = all_names(parts)
    for unit in parts:
        yield unit.names
        if unit.weight_names and unit.quant_names:
            yield unit.weight_names
            yield unit.quant_names
        yield everything - unit.names


def all_names(parts: list[Unit]) -> Names:
    """Everything that quantizes."""
    return frozenset().union(*(unit.names for unit in parts))
