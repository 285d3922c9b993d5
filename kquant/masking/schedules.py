"""How sparse the kernels are at which training step.

    s(t) = final + (initial - final) * (1 - (t - begin) / (end - begin)) ** power      begin <= t <= end

(Zhu and Gupta, arXiv:1710.01878, section 3, with power 3.) Step t is the t-th training forward pass; step 0 is the call
of `kquant.prune`. Before `begin` nothing is pruned, after `end` masks stay as they are.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from numbers import Real
from typing import Any

import tensorflow as tf

TFMOT = {
    "ConstantSparsity": {"target_sparsity": "final"},
    "PolynomialDecay": {"initial_sparsity": "initial", "final_sparsity": "final"},
}
SAME = {"begin_step": "begin", "end_step": "end", "frequency": "frequency", "power": "power"}


@dataclass(frozen=True)
class SparsitySchedule:
    """Sparsity by training step: constant, or a polynomial ramp where `initial` is given.

    Args:
        final: share of zeros in [0, 1), reached exactly at `end`.
        initial: share of zeros at `begin`; None: `final` from the start.
        begin: first step that prunes.
        end: last step that chooses masks anew; -1 (constant only): none is the last.
        power: of the ramp.
        frequency: steps from one choice of masks to the next; the one at `end` is never left out.

    Example:
        >>> ramp = kquant.SparsitySchedule(0.8, initial=0.2, begin=100, end=110)
        >>> [round(ramp.at(step), 4) for step in (99, 100, 102, 105, 110, 500)]
        [0.0, 0.2, 0.4928, 0.725, 0.8, 0.8]
    """

    final: float
    initial: float | None = None
    begin: int = 0
    end: int = -1
    power: float = 3.0
    frequency: int = 10

    def __post_init__(self) -> None:
        for field in fields(self):
            # The way to set a field of a frozen dataclass.
            object.__setattr__(self, field.name, _number(field.name, getattr(self, field.name)))
        for name in ("final", "initial"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < 1.0:
                hint = f" For {value:g} % give {value / 100:g}." if 1.0 < value < 100.0 else ""
                raise ValueError(f"SparsitySchedule: {name} must be in [0, 1). Received: {value!r}.{hint}")
        if self.begin < 0 or self.frequency < 1 or not self.power > 0:
            raise ValueError(
                "SparsitySchedule: expected begin >= 0, frequency >= 1 and power > 0. Received: "
                f"begin={self.begin}, frequency={self.frequency}, power={self.power}."
            )
        if self.end < -1 or (self.end != -1 and self.end < self.begin):
            raise ValueError(f"SparsitySchedule: end must be -1 or >= begin ({self.begin}). Received: {self.end}.")
        if self.initial is not None and self.end == -1:
            raise ValueError("SparsitySchedule: a ramp from `initial` needs `end`, the step at which it is at `final`.")

    @property
    def ramps(self) -> bool:
        """True where the sparsity changes."""
        return self.initial is not None and self.initial != self.final and self.end > self.begin

    def sparsity(self, step: Any) -> tf.Tensor:
        """float64[]: share of zeros from `begin` on; int step, tensor or not."""
        final = tf.constant(self.final, tf.float64)
        if not self.ramps or self.initial is None:
            return final
        # In double, as `highest` counts weights with it.
        done = (tf.cast(step, tf.float64) - self.begin) / float(self.end - self.begin)
        return final + (self.initial - self.final) * (1.0 - tf.clip_by_value(done, 0.0, 1.0)) ** self.power

    def due(self, step: Any) -> tf.Tensor:
        """bool[]: masks are chosen anew at this step."""
        step = tf.cast(step, tf.int64)
        turn = tf.equal((step - self.begin) % self.frequency, 0)
        if self.end == -1:
            return tf.logical_and(step >= self.begin, turn)
        inside = tf.logical_and(step >= self.begin, step <= self.end)
        # At the end in any case, or the last masks would be those of up to `frequency` steps before, and less sparse.
        return tf.logical_and(inside, tf.logical_or(turn, tf.equal(step, self.end)))

    def at(self, step: int) -> float:
        """Share of zeros after this step."""
        return float(self.sparsity(step)) if step >= self.begin else 0.0

    def is_done(self, step: int) -> bool:
        """True where the sparsity has come to its end."""
        return step >= (self.end if self.ramps else self.begin)

    def to(self, final: float) -> SparsitySchedule:
        """The same course to another sparsity."""
        # In proportion: the ramp begins as far below its end as the old one did.
        initial = None if self.initial is None else self.initial * (final / self.final if self.final else 1.0)
        return replace(self, final=final, initial=initial)

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return asdict(self)


def _number(name: str, value: Any) -> Any:
    """Python's own number, whole where steps are counted; 0.3 * 100 steps may come as 30.0.

    Raises:
        ValueError: it is none.
    """
    if value is None and name == "initial":
        return None
    if isinstance(value, Real) and not isinstance(value, bool):
        if name in ("final", "initial", "power"):
            return float(value)
        if float(value).is_integer():
            return int(float(value))
    kind = "a number" if name in ("final", "initial", "power") else "a whole number of training steps"
    raise ValueError(f"SparsitySchedule: {name} must be {kind}. Received: {value!r}.")


def schedule_of(given: Any) -> SparsitySchedule:
    """A schedule from a number, kquant's own, or tfmot's object.

    Args:
        given: share of zeros (from the call on; masks follow the weights every 10 steps, see `Mask`), a
            `SparsitySchedule`, or tfmot's `ConstantSparsity` or `PolynomialDecay` (read by `get_config`; tfmot need not
            be installed).

    Raises:
        ValueError: none of them.

    Example:
        >>> schedule_of(0.5)
        SparsitySchedule(final=0.5, initial=None, begin=0, end=-1, power=3.0, frequency=10)
    """
    if isinstance(given, SparsitySchedule):
        return given
    if isinstance(given, Real) and not isinstance(given, bool):
        return SparsitySchedule(float(given))
    if hasattr(given, "get_config"):
        config = given.get_config()
        kind, values = config.get("class_name"), config.get("config", {})
        names = {**TFMOT.get(kind, {}), **SAME}
        if kind in TFMOT and not set(values) - set(names):
            return SparsitySchedule(**{names[key]: value for key, value in values.items()})
    raise ValueError(
        "prune: expected a share of zeros in [0, 1), a kquant.SparsitySchedule, tfmot's ConstantSparsity or "
        f"PolynomialDecay, or a recipe. Received: {given!r}."
    )
