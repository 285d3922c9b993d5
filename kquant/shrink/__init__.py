"""Plain Keras models made smaller: channels removed (`prune_channels`), kernels split in two (`factorize`).

A float model and a budget come in, a smaller plain model goes out. `follow` finds out what an operation does to
channels by asking the operation; `importance` says what a channel is worth: a new criterion is one function there.
"""
