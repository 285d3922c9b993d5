"""The Keras layers that kquant adds, and how they compute and train.

`nodes` draws the picture: `FakeQuant` quantizes tensors, `Compressed` and `QuantizedLSTM` weights, `Transformed`
masks or shares them. Tensors and encodings come in, values on the grid go out, with gradients. A new way to train
ranges or weights is a file beside `learned_ranges`, `oscillations` and `nonuniform`; a new transform of a kernel is a
subclass of `transform.Transform` in the room that uses it.
"""

import keras  # noqa: F401  first: `kquant.registration` runs then
