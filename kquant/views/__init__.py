"""A whole model read through the rules of `kquant.ops`: nothing here changes one.

`kernels` says which variables of a layer are weights, `widths` and `packing` how wide each call computes and how its
weights are stored, `plan` what every tensor gets. `float_model` reads a model before it has a plan, `quantized_model`
one that has it; `released` takes masks and codebooks out of a float model, `flat_copy` makes a flat one of any,
`layer_table` is what `summary` prints. A model, a recipe and a target come in, frozen data go out. A new question that
several stages ask of a model is a file here, and is answered once.
"""

import keras  # noqa: F401  first: `kquant.registration` runs then

from kquant.views import layer_table  # noqa: F401  `summary()` of every model that kquant makes is that one
