"""ResNet-20 and MLPerf Tiny's ResNet8 of width 40, trained on 20,000 of CIFAR-10's training images, in short forms.

    float, int8, 4-bit weights by AdaRound (packed, and in codes), 80 % zeros in codes

Public figures come from nets that saw 50,000 images for 100 epochs and more; these see 20,000, as often as `NETS` says.
What is judged is the file, on all 10,000 test images: by the simulation, whose codes are compared with the file's on
TFLM for 100 of them. What is finished is kept in `--folder`, a training that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

import kquant
from benchmarks.assets import loader
from benchmarks.choice import one_of
from benchmarks.coded_training import TEMPERATURE, accuracy
from benchmarks.qat_accuracy import batches
from kquant.app.pipeline import prepare
from kquant.files.atomic import write_atomically

RESULTS = Path(__file__).parent / "results" / "cifar_nets.json"
NETS = {"resnet20": (16, 3, 14), "resnet8-40": (40, 1, 9)}  # width, blocks of a stage, epochs
ROUNDED_ON = 400  # images, without labels
ZEROS, TUNING = 0.8, 2  # share of each kernel, epochs
RATE, MOMENTUM, DECAY = 0.1, 0.9, 5e-3  # of SGD; the decay is decoupled, 5e-4 / (1 - momentum)


def network(width: int, blocks: int, dtype: str) -> keras.Model:
    """Three stages, each half the size and twice the channels of the one before; projections where they change."""

    def conv(x: Any, filters: int, size: int, stride: int, name: str) -> Any:
        x = layers.Conv2D(filters, size, stride, "same", use_bias=False, dtype=dtype, name=name)(x)
        return layers.BatchNormalization(dtype=dtype, name=f"{name}_norm")(x)

    inputs = keras.Input((32, 32, 3))
    x = layers.ReLU(dtype=dtype)(conv(inputs, width, 3, 1, "first"))
    for stage in range(3):
        for block in range(blocks):
            filters, stride, name = width << stage, 2 if stage and not block else 1, f"s{stage}b{block}"
            y = layers.ReLU(dtype=dtype)(conv(x, filters, 3, stride, f"{name}a"))
            y = conv(y, filters, 3, 1, f"{name}b")
            if stride == 2:
                x = conv(x, filters, 1, 2, f"{name}p")
            x = layers.ReLU(dtype=dtype)(layers.Add(dtype=dtype)([x, y]))
    x = layers.GlobalAveragePooling2D(dtype=dtype)(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax", dtype="float32", name="head")(x))


def images(x: np.ndarray) -> np.ndarray:
    """float32 in -1..1, on int8's grid."""
    return x.astype("float32") / 128 - 1


def trained(name: str, data: Any, folder: Path, seed: int) -> keras.Model:
    """From scratch: SGD, a warm-up, then a cosine to 0; bfloat16 inside, weights in float32. Kept, and goes on."""
    path = folder / f"{name}-{seed}.keras"
    if path.is_file():
        return keras.saving.load_model(path)
    keras.utils.set_random_seed(seed)
    width, blocks, epochs = NETS[name]
    model = network(width, blocks, "mixed_bfloat16")
    steps = epochs * -(-len(data[0]) // 64)
    rate = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=RATE, warmup_steps=steps // 10)
    sgd = keras.optimizers.SGD(rate, MOMENTUM, nesterov=True, weight_decay=DECAY)
    sgd.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model.compile(sgd, "sparse_categorical_crossentropy", metrics=["accuracy"])
    kept = keras.callbacks.BackupAndRestore(folder / f"{name}-{seed}", delete_checkpoint=False)
    model.fit(batches(*data, seed), epochs=epochs, verbose=2, callbacks=[kept])
    plain = network(width, blocks, "float32")
    plain.set_weights(model.get_weights())
    plain.save(path)
    return plain


def judged(q: keras.Model, test: Any, folder: Path, **form: Any) -> dict[str, Any]:
    """Bytes of the file without names, accuracy of the codes that it computes."""
    path = folder / "m.tflite"
    made = kquant.export(q, path, strip_names=True, check_runtimes=False, **form)
    q.compile(jit_compile=True)
    outputs = q.predict(test[0], batch_size=500, verbose=0)
    equal = np.array_equal(kquant.predict(path, test[0][:100], runtime="tflm"), outputs[:100])
    return {"bytes": made.file_bytes, "accuracy": accuracy(outputs, test[1]), "equal": bool(equal)}


def with_zeros(model: keras.Model, path: Path, data: Any, seed: int) -> keras.Model:
    """Four fifths of each kernel masked, more with each step of the first half; labels and the dense model teach."""
    if path.is_file():
        return keras.saving.load_model(path)
    steps = TUNING * -(-len(data[0]) // 64)
    pruned = kquant.prune(model, kquant.SparsitySchedule(ZEROS, initial=0.5, end=steps // 2))
    trainer = kquant.distill(pruned, model, temperature=TEMPERATURE, alpha=0.5, outputs="probabilities")
    falling: Any = keras.optimizers.schedules.CosineDecay(RATE / 5, steps)
    trainer.compile(keras.optimizers.SGD(falling, MOMENTUM, nesterov=True), "sparse_categorical_crossentropy")
    trainer.fit(batches(*data, seed), epochs=TUNING, verbose=2)
    pruned.save(path)
    return pruned


def forms(model: keras.Model, name: str, data: Any, test: Any, args: Any) -> Iterator[dict[str, Any]]:
    """A row for each."""
    x, folder = data[0][:ROUNDED_ON], args.folder
    outputs = model.predict(test[0], batch_size=500, verbose=0)
    floats = sum(4 * int(np.prod(v.shape)) for v in model.trainable_weights)
    yield {"form": "float, weights alone", "bytes": floats, "accuracy": accuracy(outputs, test[1])}
    q = prepare(model, x, "int8", target="tflm", verbose=False)
    yield {"form": "int8", **judged(q, test, folder)}
    q = prepare(model, x, "int4-weights", target="tflm", verbose=False)
    yield {"form": "W4A8", **judged(q, test, folder)}
    yield {"form": "W4A8, in codes", **judged(q, test, folder, compression="auto")}
    pruned = with_zeros(model, folder / f"{name}-{args.seed}-zeros.keras", data, args.seed)
    q = prepare(pruned, x, "int8", target="tflm", verbose=False)
    yield {"form": "80 % zeros, in codes", **judged(q, test, folder, compression="auto")}


def main() -> None:
    """Parse, train, measure; print and keep a row for each form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", type=one_of(NETS), default=list(NETS), help=f"of {', '.join(NETS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("build/cifar_nets"), help="what is finished")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    (x, y), (x_test, y_test) = loader().cifar10_train(), loader().cifar10_test()
    data, test = (images(x), y.reshape(-1)), (images(x_test), y_test.reshape(-1))
    for name in args.names:
        started, rows = time.process_time(), []
        model = trained(name, data, args.folder, args.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for row in forms(model, name, data, test, args):
                rows.append(row)
                print(name, row, flush=True)
        kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
        kept[f"{name}-{args.seed}"] = {"epochs": NETS[name][2], "rows": rows}
        write_atomically(RESULTS, f"{json.dumps(kept, indent=1)}\n".encode())
        print(f"{name}: {time.process_time() - started:.0f} s of CPU", flush=True)


if __name__ == "__main__":
    main()
