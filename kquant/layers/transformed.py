"""`Transformed`: a float layer whose kernels are masked or shared before use, by `kquant.prune` or `kquant.cluster`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from kquant.graph.keras_private import growing
from kquant.layers import transform as kernels
from kquant.layers.kernel import Holder
from kquant.layers.transform import Transform


class ManyKernels(Holder, keras.layers.Wrapper):
    """A layer with transforms of one or several of its kernels.

    Args:
        layer: any Keras layer.
        transforms: path of a kernel ("kernel", "cell.recurrent_kernel") -> what happens to it, layers or configs.
    """

    def __init__(self, layer: keras.layers.Layer, transforms: Mapping[str, Sequence[Any]], **kwargs: Any) -> None:
        kwargs.setdefault("name", layer.name)
        super().__init__(layer, autocast=False, **{k: v for k, v in kwargs.items() if k != "autocast"})
        self.transforms = {path: kernels.in_order(own) for path, own in transforms.items()}
        # Keras saves layers that it finds in lists
        self.held = [t for path in sorted(self.transforms) for t in self.transforms[path]]

    def build(self, *shapes: Any, **_: Any) -> None:
        """Build the wrapped layer and the transforms."""
        if not self.layer.built:
            self.layer.build(*shapes[:1])
        for path, own in self.transforms.items():
            for transform in own:
                if not transform.built:
                    transform.build(tuple(kernels.kernel_at(self.layer, path).shape))
        self.built = True

    def kernel_paths(self) -> tuple[str, ...]:
        """Those with transforms."""
        return tuple(self.transforms)

    def transforms_of(self, path: str) -> list[Transform]:
        """Masks and codebooks of a kernel."""
        return list(self.transforms.get(path, ()))

    def set_transforms(self, path: str, transforms: Sequence[Transform]) -> None:
        """Put others in their place, built already."""
        self.transforms = {**self.transforms, path: kernels.in_order(transforms)}
        self.held = [t for key in sorted(self.transforms) for t in self.transforms[key]]

    def transform_by(self, transform: Transform, path: str | None = None) -> None:
        """Add a transform of one kernel, or one of its kind of each, built and started here if it is not yet."""
        if path is None:
            first, *others = self.kernel_paths()
            self.transform_by(transform, first)
            for other in others:
                # New ones, not clones: each starts from the kernel that it is put on.
                self.transform_by(type(transform).from_config(transform.get_config()), other)
            return
        if not transform.built:
            transform.build(tuple(kernels.kernel_at(self.layer, path).shape))
            transform.start(self.weights_as_used(path))
        with growing(self):
            self.set_transforms(path, [*self.transforms_of(path), transform])

    def weights_as_used(self, path: str = "kernel") -> tf.Tensor:
        """A kernel as the layer computes with it, float32."""
        return kernels.apply(self.transforms.get(path, ()), kernels.real(self.layer, path))

    def advance(self) -> None:
        """One training step of masks and codebooks."""
        for path, own in self.transforms.items():
            kernels.advance(own, kernels.real(self.layer, path))

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        transforms = {path: kernels.configs(own) for path, own in self.transforms.items()}
        return {**super().get_config(), "transforms": transforms}


@keras.saving.register_keras_serializable(package="kquant")
class Transformed(ManyKernels):
    """A layer that computes with transformed kernels; the float kernels stay the ones that train.

    Args:
        layer, transforms: see `ManyKernels`.
        paths: of the layer's kernels, those without transforms too.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        transforms: Mapping[str, Sequence[Any]],
        paths: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(layer, transforms, **kwargs)
        self.paths = tuple(self.transforms if paths is None else paths)
        self.supports_masking = layer.supports_masking
        self.takes_mask = "mask" in inspect.signature(layer.call).parameters
        self.takes_training = "training" in inspect.signature(layer.call).parameters

    def kernel_paths(self) -> tuple[str, ...]:
        """All that the layer has."""
        return tuple(dict.fromkeys((*self.paths, *self.transforms)))

    def compute_output_spec(self, x: Any, *args: Any, site: int = 0, **kwargs: Any) -> Any:
        """As the layer's own."""
        return self.layer.compute_output_spec(x, *args, **self.passed(kwargs))

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """As the layer's own."""
        return self.layer.compute_mask(inputs, previous_mask)

    def call(self, x: Any, *args: Any, mask: Any = None, training: bool = False, site: int = 0, **kwargs: Any) -> Any:
        """Run the layer.

        Args:
            x: the layer's input.
            *args: what the layer takes besides.
            mask: of the input, for layers that read one.
            training: also moves masks and codebooks on.
            site: number of this call, where the layer is shared; the first moves them.
            **kwargs: what the layer takes besides.
        """
        if training and self.trainable and site == 0:
            self.advance()
        values = {path: self.weights_as_used(path) for path in self.transforms}
        passed = self.passed({**kwargs, "mask": mask, "training": training})
        return kernels.run_with(self.layer, values, self.layer, x, *args, add_loss=self.add_loss, **passed)

    def passed(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Of the arguments of a call, those that the wrapped layer takes."""
        takes = {"mask": self.takes_mask, "training": self.takes_training, "site": False}
        left_out = {name for name, taken in takes.items() if not taken}
        return {k: v for k, v in kwargs.items() if k not in left_out}

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {**super().get_config(), "paths": list(self.paths)}
