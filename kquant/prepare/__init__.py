"""From the user's float model to the model with quantization in place.

`ops.expansion` has written layers out as those that have kernels, `folding` and `unblock` tidy them, `attach` puts the
nodes in, `quantization` is the verb over all of them; `forecast` says beforehand what becomes of each layer,
`split_inputs` takes scaling out of a model, `one_step` makes a recurrent network the model of one step. A Keras model
comes in untouched, a new one goes out. A new thing that users are to know of their plan is one function in `notices`.
"""
