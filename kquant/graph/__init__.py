"""Any Keras model, read and written as a graph of calls.

`graph` traces a model into nodes, rewrites them into a new model, and computes one; `unfold` follows nested,
subclassed and custom layers into operations, `recording`, `unfollowed`, `watched` and `effects` see to what a user's
`call` does meanwhile; `copies` makes layers and models with weights of their own, `precision` brings them to float32. A
Keras model comes in, and is never changed; nodes or a new model go out. A new reason why a `call` cannot be followed is
a sentence with its way out in `unfollowed`. What Keras does not export stands in
`keras_private`, a name once, and nowhere else; what depends on how a Keras model is made up inside belongs to this
folder, and nowhere above.
"""

import keras  # noqa: F401  first: `kquant.registration` runs then
