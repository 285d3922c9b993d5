"""`HeadQuant`: the encoding of a join for an output of the model, wide until data show that its parts are alike."""

from __future__ import annotations

from typing import Any

import keras

from kquant.core.spec import QuantSpec
from kquant.layers.fake_quant import FakeQuant


@keras.saving.register_keras_serializable(package="kquant")
class HeadQuant(FakeQuant):
    """A `FakeQuant` with a choice of two grids.

    Args:
        spec: `QuantSpec` of the codes as they are now, as its config: one of the two.
        apart: the grid on which each part keeps what its own grid told, of 16 bits.
        joined: the grid that the recipe asks for.
    """

    def __init__(self, spec: dict[str, Any], apart: dict[str, Any], joined: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(spec, **kwargs)
        self.apart, self.joined = QuantSpec(**apart), QuantSpec(**joined)

    def grid_for(self, bits: int) -> QuantSpec:
        """The grid of so many bits; where neither has them, the one that is taken."""
        return next((spec for spec in (self.apart, self.joined) if spec.bits == bits), self.spec)

    def take(self, bits: int) -> None:
        """Take the grid of so many bits, if one has them. Functions that were traced hold the other."""
        self.spec = self.grid_for(bits)

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {**super().get_config(), "apart": self.apart.to_config(), "joined": self.joined.to_config()}
