"""Networks broken on purpose: channels rescaled by up to 1000 across ReLUs, one weight scale for each kernel.

The float function stays; the int8 model falls apart, and comes back by equalization and bias correction without any
data: activation ranges from batch norms, biases from their moments. `--sound` runs the same on the unbroken models.
"""

from __future__ import annotations

import argparse
import time
import warnings

import keras
import numpy as np

import kquant
from benchmarks.assets import Task, task
from benchmarks.choice import one_of
from kquant.correct.equalization import plan_equalization
from kquant.graph.keras_private import calls_of

TASKS = ("image_classification", "keyword_spotting", "visual_wake_words")
LARGEST = 1000.0
SEED = 0
PER_TENSOR = {"name": "int8-per-tensor", "weights": {"per_axis": False}}


def broken(model: keras.Model) -> tuple[keras.Model, int]:
    """The same function with every channel between two layers rescaled: batch norms times f, the next kernel over f.

    Returns:
        The model, and the number of batch norms that were rescaled.
    """
    new = keras.models.clone_model(model)
    new.set_weights(model.get_weights())
    rng, count = np.random.default_rng(SEED), 0
    for layer in new.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            following = next_kernel(layer)
            if following is not None:
                factors = np.exp(rng.uniform(0.0, np.log(LARGEST), layer.gamma.shape)).astype(np.float32)
                layer.gamma.assign(layer.gamma * factors)
                layer.beta.assign(layer.beta * factors)
                following.assign(following / factors[:, None])
                count += 1
    return new, count


def next_kernel(norm: keras.layers.Layer) -> keras.Variable | None:
    """Of the layer behind a batch norm and its ReLU, where nothing else reads what lies between."""
    layer = norm
    while True:
        _, nodes = calls_of(layer)
        if len(nodes) != 1:
            return None
        layer = nodes[0].operation
        if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D | keras.layers.Dense):
            return layer.kernel
        plain = isinstance(layer, keras.layers.ReLU) and layer.max_value is None
        plain = plain or (isinstance(layer, keras.layers.Activation) and layer.activation is keras.activations.relu)
        passes = (keras.layers.Dropout, keras.layers.AveragePooling2D, keras.layers.GlobalAveragePooling2D)
        if not plain and not isinstance(layer, passes):
            return None


def accuracy(model: keras.Model, t: Task) -> float:
    """Per cent of the samples that judge."""
    return 100 * float(np.mean(model.predict(t.x, batch_size=100, verbose=0).argmax(-1) == t.y))


def run(name: str, limit: int, sound: bool, recipe: dict | str, title: str) -> None:
    """Print one model's block: after each correction, ranges data-free and calibrated."""
    t = task(name)
    t = Task(t.name, t.model, t.calibration, t.x[:limit], None if t.y is None else t.y[:limit], t.official)
    span = float(np.min(t.calibration)), float(np.max(t.calibration))
    model, count = (t.model, 0) if sound else broken(t.model)
    moved = float(np.abs(model.predict(t.x[:100], verbose=0) - t.model.predict(t.x[:100], verbose=0)).max())
    print(
        f"{name}, {title}: float {accuracy(model, t):.2f}, {count} layers rescaled (outputs moved by {moved:.1g}), "
        f"input {span[0]:.4g} to {span[1]:.4g}, n={len(t.x)}",
        flush=True,
    )
    for what, equal, bias in (("nothing", 0, 0), ("bias", 0, 1), ("equalize", 1, 0), ("equalize, bias", 1, 1)):
        found = []
        for calibrated in (False, True):
            started = time.perf_counter()
            q = kquant.quantize(model, recipe)
            if equal:
                q = kquant.equalize(q, absorb=True, verbose=False)
            if calibrated:
                kquant.calibrate(q, t.calibration, verbose=False)
            else:
                kquant.data_free_ranges(q, input_range=span, verbose=False)
            if bias:
                kquant.correct_bias(q, t.calibration if calibrated else None, verbose=False)
            seconds = time.perf_counter() - started
            found.append(f"{accuracy(q, t):6.2f} ({seconds:.1f} s)")
        print(f"  {what:<16} data-free {found[0]}   with data {found[1]}", flush=True)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", type=one_of(TASKS), default=TASKS)
    parser.add_argument("--limit", type=int, default=2000, help="judge on the first N samples")
    parser.add_argument("--sound", action="store_true", help="the models as they are, per tensor and per channel")
    parser.add_argument("--ends", action="store_true", help="list where chains end, and stop")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in args.tasks:
        if args.ends:
            print(name, plan_equalization(kquant.quantize(task(name).model)), sep="\n")
            continue
        run(name, args.limit, args.sound, PER_TENSOR, "one weight scale for each kernel")
        if args.sound:
            run(name, args.limit, True, "int8", "one weight scale for each channel")


if __name__ == "__main__":
    main()
