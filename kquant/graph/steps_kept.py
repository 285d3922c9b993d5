"""Which steps of an output Keras' losses and metrics count, told by an input of the model.

Keras hands masks on from layer to layer, and a loss leaves out what the mask of an output marks. Layers of a quantized
model read masks as tensors of the graph instead, and some hand none on. So the model looks at the input that a mask
comes from, and puts the mask on its output (`NamedOutputs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import KerasTensor as Tensor

from kquant.graph.keras_private import mask_of
from kquant.graph.step_mask import StepMask, is_other
from kquant.graph.unfold import Node


@dataclass(frozen=True)
class StepsKept:
    """The mask of an output.

    Attributes:
        source: number of the input that tells, of all inputs flattened.
        value: what a step that is left out holds there.
        features: in every feature; else each number is a step (indices).
    """

    source: int
    value: float
    features: bool

    def mask(self, inputs: Sequence[Any]) -> Any:
        """bool[samples, steps], True where an output counts.

        Args:
            inputs: of the model, flattened.

        Example:
            >>> StepsKept(0, 0.0, features=False).mask([np.array([[4, 7, 0]])]).numpy().tolist()
            [[True, True, False]]
        """
        real = is_other(inputs[self.source], self.value)
        return keras.ops.any(real, axis=-1) if self.features else real


UNKNOWN = StepsKept(-1, 0.0, features=False)


def steps_kept(
    masks: Sequence[Tensor | None], outputs: Sequence[Tensor], nodes: Sequence[Node], inputs: Sequence[Tensor]
) -> tuple[Any, ...]:
    """Of each output, `StepsKept`; None without a mask of its steps, and `UNKNOWN` where that is of no input alone.

    Args:
        masks: of the outputs.
        outputs: flattened.
        nodes: the calls of the model.
        inputs: its inputs, flattened.
    """
    makers = {id(node.outputs[0]): node for node in nodes if isinstance(node.op, StepMask)}
    places = {id(t): i for i, t in enumerate(inputs)}
    kept: list[StepsKept | None] = []
    for mask, y in zip(masks, outputs, strict=True):
        maker = makers.get(id(mask))
        source = None if maker is None else places.get(id(maker.inputs[0]))
        if maker is None or source is None:
            # the mask of an attention, which a Softmax hands on too, is one of pairs of steps
            of_steps = mask is not None and tuple(mask.shape) == tuple(y.shape[:-1])
            kept.append(UNKNOWN if of_steps else None)
        else:
            kept.append(StepsKept(source, maker.op.value, maker.op.features))
    return tuple(kept)


def told(kept: Sequence[StepsKept | None], outputs: Any) -> tuple[StepsKept | None, ...]:
    """What a model is to remember of the masks of its outputs: those that its layers do not hand on.

    Args:
        kept: of each output, or nothing.
        outputs: its symbolic tensors, in any structure.
    """
    flat = keras.tree.flatten(outputs)
    own = [k if k is not UNKNOWN and mask_of(y) is None else None for k, y in zip(kept, flat, strict=False)]
    return tuple(own) if any(own) else ()
