"""Post-training corrections: what data, or the weights alone, can mend without training.

A quantized model comes in and is changed in place; its float function stays. The same model goes out.
A new correction is one file, and one entry in `steps.STEPS`, which recipes and the command line name.
"""

from typing import Any

from kquant import moved


def __getattr__(name: str) -> Any:
    """What stood in this file before it was `steps`, and what it imported for that."""
    from kquant.correct.steps import STEPS

    homes = [step.partition(":")[0] for step in STEPS.values() if isinstance(step, str)]
    return moved.held(__name__, name, ("kquant.correct.steps", *homes))
