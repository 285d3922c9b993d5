"""Peak memory of calibration by the number of samples: what a shard takes, in a process of its own.

Batches are made when they are asked for, so that nothing but kquant could hold on to them.

python -m benchmarks.scale_memory
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.memory import peak_kb

SHAPE, BATCH = (32, 32, 3), 32
SAMPLES = (320, 3_200, 32_000)
MOST_GROWTH_KB = 16 * 1024  # of allocators, between the least and the most samples; these alone are 393 MB


def _observed(samples: int) -> dict[str, int]:
    import keras
    import numpy as np

    import kquant

    class Frames(keras.utils.PyDataset):
        """Noise, the same for each number of a batch."""

        def __len__(self) -> int:
            return samples // BATCH

        def __getitem__(self, number: int) -> Any:
            return np.random.default_rng(number).normal(size=(BATCH, *SHAPE)).astype("float32")

    keras.utils.set_random_seed(0)
    stack: list[Any] = [keras.Input(SHAPE)]
    for filters in (16, 32, 64):
        stack += [keras.layers.Conv2D(filters, 3, 2, "same"), keras.layers.BatchNormalization(), keras.layers.ReLU()]
    model = keras.Sequential([*stack, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)])
    q, data = kquant.quantize(model), Frames()
    kquant.observe(q, data, limit=2 * BATCH, verbose=False)  # what is loaded and traced once
    before = peak_kb()
    seen = kquant.observe(q, data, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        seen.save(Path(folder) / "seen.npz")
        size = (Path(folder) / "seen.npz").stat().st_size
    return {"samples": samples, "before_kb": before, "peak_kb": peak_kb(), "file_bytes": size}


def main() -> None:
    """A process for each number of samples; one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, help="of one process, which prints its figures as JSON")
    if (samples := parser.parse_args().samples) is not None:
        print(json.dumps(_observed(samples)))
        return
    rows = []
    for samples in SAMPLES:
        command = [sys.executable, "-m", "benchmarks.scale_memory", "--samples", str(samples)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{'samples':>8} {'data, MB':>9} {'peak, MB':>9} {'grown, MB':>10} {'observations, bytes':>20}")
    for row in rows:
        megabytes = row["samples"] * 4 * SHAPE[0] * SHAPE[1] * SHAPE[2] / 1e6
        grown = row["peak_kb"] - row["before_kb"]
        told = f"{row['samples']:8,} {megabytes:9.1f} {row['peak_kb'] / 1024:9.0f} {grown / 1024:10.1f}"
        print(f"{told} {row['file_bytes']:20,}")
    growth = rows[-1]["peak_kb"] - rows[0]["peak_kb"]
    if growth > MOST_GROWTH_KB:
        raise SystemExit(f"memory grows with the samples: {growth / 1024:.1f} MB more")


if __name__ == "__main__":
    main()
