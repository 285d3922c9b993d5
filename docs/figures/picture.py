"""The picture in the README: the top of ResNet8's report. `python docs/figures/picture.py`

Needs the assets of the benchmarks (`KQUANT_ASSETS`), the extras `micro` and `images`, and Chromium. The report is that
of docs/reports.md: the first 256 of CIFAR-10's test images, a command anybody can type.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SIZE = (1000, 960)  # pixels
SAMPLES = 256


def write_report(folder: Path) -> Path:
    """What the command makes of ResNet8."""
    sys.path.insert(0, str(ROOT))
    from benchmarks import assets

    task = assets.task("image_classification")
    task.model.save(folder / "resnet8.keras")
    np.savez(folder / "calibration.npz", task.calibration)
    np.savez(folder / "test.npz", x=task.x[:SAMPLES], y=task.y[:SAMPLES])
    command = "compress resnet8.keras --data calibration.npz --test test.npz --labels test.npz --folder build"
    options = ["--target", "tflm", "--report", "report.html"]
    subprocess.run([sys.executable, "-m", "kquant", *command.split(), *options], cwd=folder, check=True)
    return folder / "report.html"


def photograph(page: Path, path: Path) -> None:
    """The top of a page as Chromium shows it, in 256 colours."""
    from PIL import Image

    browser = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)
    if browser is None:
        raise SystemExit("picture: Chromium is needed (chromium, chromium-browser or google-chrome).")
    options = ["--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--blink-settings=preferredColorScheme=1"]
    options += [f"--window-size={SIZE[0]},{SIZE[1]}", f"--screenshot={path}"]
    subprocess.run([browser, "--headless", *options, page.as_uri()], check=True, capture_output=True)
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as given:
        photograph(write_report(Path(given)), HERE / "report.png")
