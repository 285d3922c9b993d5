"""All benchmarks, one after the other, each in a process of its own: `python -m benchmarks` (or `make bench`)."""

from __future__ import annotations

import argparse
import subprocess
import sys

ALL = ("accuracy", "parity", "qat_accuracy", "step_time", "predict_time", "ptq_time", "applications", "trained")
ALL += ("random_graphs", "observers", "recovery", "broken", "analysis", "lut", "structured", "train_time", "pruning")
ALL += ("clustering", "codes", "qat_low_bits", "channel_weights", "packed", "kills", "damaged_files", "phone_recovery")
ALL += ("bundles", "peers", "peers.coverage", "exact", "zoo", "zoo.trained", "short_codes", "scale_memory")
ALL += ("coded_training", "ladder_training", "front_ends", "depth", "robust_training", "train_parts", "cifar_nets")
ALL += ("decode_cost", "keras_hub_models")
ALL += ("tables",)  # last: of what the others wrote


def main() -> None:
    """Parse and run; stops at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(ALL), help=f"of {', '.join(ALL)}; each has its own --help")
    for name in parser.parse_args().names:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)


if __name__ == "__main__":
    main()
