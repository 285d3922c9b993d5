"""Where the time of a training step goes: each part is taken out while the step is traced, and what is left is timed.

Without a part the model trains wrongly; the parts need not add up, as they share caches. All take turns in one process.
`--operations` counts what TensorFlow runs in a step instead, by its profiler: operations on a number or two take longer
to start than to compute.

    python -m benchmarks.train_parts mobilenetv2 --clock cpu
    python -m benchmarks.train_parts mobilenetv2 --operations
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import tensorflow as tf

from benchmarks.choice import one_of
from benchmarks.step_time import BATCH, build
from benchmarks.train_time import WAYS
from benchmarks.turns import CLOCKS, fit_step, in_turns, ratios, timed
from kquant.layers import fake_quant, range_learner
from kquant.layers.compressed import Compressed
from kquant.layers.fake_quant import FakeQuant
from kquant.layers.range_steps import Ends

Patches = list[tuple[Any, str, Callable[..., Any]]]


def stays(layer: FakeQuant, *_: Any, **__: Any) -> Ends:
    """The range as it is, both ends of which have a gradient."""
    return Ends(tf.convert_to_tensor(layer.low), tf.convert_to_tensor(layer.high), tf.ones((2,)))


def passes(layer: FakeQuant, y: tf.Tensor, *_: Any, **__: Any) -> tuple[tf.Tensor, ...]:
    """The tensor as it came, with the grid that it would have had."""
    return y, *layer.grid()[:2]


def as_used(layer: Compressed, *_: Any) -> tf.Tensor:
    """The weights, not rounded."""
    return layer.weights_as_used()


PARTS: dict[str, dict[str, Patches]] = {
    "QAT": {
        "rounding of tensors": [(fake_quant, "rounded_through", lambda y, *_: y)],
        "extremes and moves of ranges": [(FakeQuant, "move_range", stays)],
        "weights' rounding": [(Compressed, "weights_on_grid", as_used)],
    },
    "QAT, learned ranges": {
        "rounding of tensors": [(range_learner, "fake_quantize", passes)],
        "extremes and moves of ranges": [(range_learner, "step", stays)],
        "weights' rounding": [(Compressed, "_learned", as_used), (Compressed, "_begin_step", lambda *_: None)],
    },
}


@contextlib.contextmanager
def without(patches: Patches) -> Iterator[None]:
    """Inside, what is traced lacks a part."""
    with contextlib.ExitStack() as stack:
        for where, name, instead in patches:
            stack.enter_context(mock.patch.object(where, name, instead))
        yield


def traced(model_name: str, way: str, patches: Patches) -> Callable[[], None]:
    """One step, which has been taken once."""
    model, x, y = build(model_name)
    made = WAYS[way](model, x)
    made.compile(keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy", jit_compile=False)
    step = fit_step(made, x, y, BATCH[model_name])
    with without(patches):
        step()
    return step


def operations(step: Callable[[], None]) -> Counter[str]:
    """How often each kind of operation runs in a step, as TensorFlow's profiler sees it."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2  # not TensorFlow's public API, and nothing else reads it

    options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=3, python_tracer_level=0)
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder, options=options):
            step()
        space = xplane_pb2.XSpace.FromString(next(Path(folder).rglob("*.xplane.pb")).read_bytes())
    planes = [plane for plane in space.planes if "CPU" in plane.name]
    names = [p.event_metadata[e.metadata_id].name for p in planes for line in p.lines for e in line.events]
    # Operations of a graph are "name:kind"; what the runtime does beside them has no colon, or two.
    return Counter(name.rsplit(":", 1)[1] for name in names if ":" in name and "::" not in name)


def count(model_name: str) -> None:
    """Operations of a step of each way, and the most frequent ones."""
    for way in ("float, no batch norms", *PARTS):
        kinds = operations(traced(model_name, way, []))
        most = ", ".join(f"{kind} {n}" for kind, n in kinds.most_common(12))
        print(f"{model_name}, {way}: {kinds.total()} operations in a step: {most}", flush=True)


def measure(model_name: str, rounds: int, steps: int, clock: str) -> None:
    """A table of both ways with all parts, and without each."""
    runs = {("float, no batch norms", "all of it"): traced(model_name, "float, no batch norms", [])}
    for way, parts in PARTS.items():
        runs |= {(way, "all of it"): traced(model_name, way, [])}
        runs |= {(way, f"without {part}"): traced(model_name, way, patches) for part, patches in parts.items()}
    rows = in_turns({f"{way}, {part}": timed(step, clock) for (way, part), step in runs.items()}, rounds, steps, 2)
    print(f"\n{model_name}, batch {BATCH[model_name]}, {rounds} rounds of {steps} steps, {clock} time\n")
    print("| | ms | times float without batch norms |\n| --- | --- | --- |")
    for name, (ms, ratio, _) in ratios(rows, next(iter(rows))).items():
        print(f"| {name} | {ms:.1f} | {ratio:.3f} |", flush=True)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=one_of(BATCH), default=list(BATCH))
    parser.add_argument("--operations", action="store_true", help="count them, and time nothing")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS))
    args = parser.parse_args()
    for name in args.models:
        count(name) if args.operations else measure(name, args.rounds, args.steps, args.clock)


if __name__ == "__main__":
    main()
