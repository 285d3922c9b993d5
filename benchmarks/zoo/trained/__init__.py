"""Trained detectors, segmenters, speech and text: what of their accuracy is left in integers.

Each is trained here, in minutes on a CPU, on seeded data composed from what packages ship; its file is judged by
the metric of its kind. `python -m benchmarks.zoo.trained`; to add one, write its `Task` and name its file here.
"""

from __future__ import annotations

from benchmarks.zoo.trained import detector, faces, segmenters, speech, text
from benchmarks.zoo.trained.task import Task

TASKS: dict[str, Task] = {
    task.name: task for module in (detector, segmenters, speech, faces, text) for task in module.TASKS
}
