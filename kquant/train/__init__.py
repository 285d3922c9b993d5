"""Training with more than labels: distillation from a teacher, by outputs and by features; `fit` on several workers.

Two models come in, a model that `fit` trains goes out. A new loss is a function in `soft_targets`. Fake quantization
and masks need nothing from here: they train in any `fit`.
"""

import keras  # noqa: F401  first: `kquant.registration` runs then
