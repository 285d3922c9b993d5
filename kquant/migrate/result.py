"""What a migration made, and how far it is from the old model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import keras

from kquant.core.result import Result
from kquant.core.table import Table
from kquant.migrate.learned_ranges import Difference

NOT_ASKED = "compare=False"  # why the old model was not run, where its caller said so


@dataclass(frozen=True)
class Distance:
    """Outputs of the new model on samples that the old one was run on, beside those of the old one.

    Attributes:
        samples: how many.
        reach: the largest output of the old model, by its size.
        float_error: max |y - y'| of the float model; of a quantized one on tfmot's grids, floats rounded to them.
        integer_error: of a quantized model as the device computes; None for a float one.
        step: of the output's grid; None for a float model.
    """

    samples: int
    reach: float
    float_error: float
    integer_error: float | None = None
    step: float | None = None


@dataclass(frozen=True, eq=False)
class Migrated(Result):
    """What `kquant.migrate` made.

    Attributes:
        model: of Keras 3: float, with masks or codebooks, or quantized.
        path: of the old file.
        kind: what tfmot had done to it: "float", "quantized", "pruned", "clustered", or several.
        versions: of the old model's packages.
        distance: from the old model, None where that was not run.
        untried: why it was not run.
        tensors, kernels: how many have the range that tfmot learned.
        masks, books: kernels with tfmot's zeros, and with its shared values.
        differences: what the two do not quantize alike.
    """

    model: keras.Model
    path: str
    kind: str
    versions: dict[str, str] = field(default_factory=dict)
    distance: Distance | None = None
    untried: str = ""
    tensors: int = 0
    kernels: int = 0
    masks: int = 0
    books: int = 0
    differences: tuple[Difference, ...] = ()

    @property
    def parameters(self) -> int:
        """Numbers in the model, those of its grids and masks among them."""
        return self.model.count_params()

    @property
    def has_layers_of_kquant(self) -> bool:
        """True for a model that loads after `import kquant` only."""
        return self.kind != "float"

    @property
    def table(self) -> Table:
        """What differs, a line each."""
        rows = tuple((d.tensor, d.theirs, d.ours, d.why) for d in self.differences)
        return Table("Not quantized alike", ("tensor", "tfmot", "kquant", "why"), rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON: all but the model."""
        return {
            "path": self.path,
            "kind": self.kind,
            "name": self.model.name,
            "parameters": self.parameters,
            "versions": dict(self.versions),
            "distance": None if self.distance is None else asdict(self.distance),
            "untried": self.untried,
            "tensors": self.tensors,
            "kernels": self.kernels,
            "masks": self.masks,
            "books": self.books,
            "differences": [asdict(d) for d in self.differences],
        }

    def to_json(self) -> str:
        """The same as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def __repr__(self) -> str:
        return f"<Migrated {self.path}: {self.kind}, {self.parameters:,} parameters>"
