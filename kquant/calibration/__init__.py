"""Representative data become ranges.

`data` takes whatever holds samples, `observations` runs the float model over them, `tensor_statistics` sums up what
each tensor showed, `observers` choose ranges from that, `ranges` stores them in the model; `data_warnings`,
`lost_signal` and `held_scales` say what deserves a second look. A quantized model and samples come in, the same model
with ranges goes out. A new observer is one function in `observers`.
"""
