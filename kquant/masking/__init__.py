"""Pruning and weight sharing: what happens to a kernel before it is used.

`pruning` and `clustering` wrap a model and put a `Mask` or a `Codebook` on its kernels; `patterns`, `schedules` and
`centroids` say which weights, when, and which values; `zeros` counts, `stripping` makes plain weights of it all. A
model and a section of a recipe come in, a model goes out. A new pattern, schedule or choice of centroids is one
function.
"""

import keras  # noqa: F401  first: `kquant.registration` runs then
