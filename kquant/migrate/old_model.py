"""What stands in an old file, as plain data: all that the rest of this room knows of Keras 2.

It comes from a process with tf_keras (`tf_keras_reader.py`), or from the HDF5 file itself where nothing has to be run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kquant.files.untrusted import read_arrays, read_json

DESCRIPTION, ARRAYS = "model.json", "arrays.npz"
BY_ATTRIBUTES = ""  # in the place of a layer's name: the weights of a subclassed model, by the attributes to them
Weights = tuple[tuple[str, np.ndarray], ...]  # (name as Keras 2 has it, without ":0", value), in its order


@dataclass(frozen=True, eq=False)
class OldModel:
    """A model of Keras 2.

    Attributes:
        where: the file, for messages.
        class_name: "Sequential", "Functional" or a name of that kind.
        config: of the model, as its `get_config`.
        weights: name of a layer -> its weights.
        samples: an array for each input, that were run; none where the old model was not run.
        outputs: what it made of them, an array for each output.
        versions: of Keras, TensorFlow and tfmot, as far as they are known.
        untried: why the old model was not run, where it was not.
    """

    where: str
    class_name: str
    config: Mapping[str, Any]
    weights: Mapping[str, Weights]
    samples: tuple[np.ndarray, ...] = ()
    outputs: tuple[np.ndarray, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    untried: str = ""


def read(folder: str | Path, where: str) -> OldModel:
    """What `tf_keras_reader.py` wrote.

    Args:
        folder: with `model.json` and `arrays.npz`.
        where: names the old file in errors.

    Raises:
        ValueError: these files are damaged.
    """
    told = read_json(Path(folder) / DESCRIPTION, f"{where}, {DESCRIPTION}")
    arrays = read_arrays(Path(folder) / ARRAYS, f"{where}, {ARRAYS}")
    try:
        return OldModel(
            where,
            told["class_name"],
            told["config"],
            {layer: tuple((name, arrays[key]) for name, key in pairs) for layer, pairs in told["weights"].items()},
            tuple(arrays[key] for key in told["samples"]),
            tuple(arrays[key] for key in told["outputs"]),
            told["versions"],
            told["untried"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{where}: {DESCRIPTION} is damaged: {type(error).__name__}: {error}.") from error
