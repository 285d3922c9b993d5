"""A program of integers -> a smaller one whose output codes are the same for every input, proven and not measured.

`spans` says what codes each channel can hold (interval arithmetic with the kernels' own rounding), `flow` which
channels an operator takes from where, `unread` puts the two together, `narrow` rewrites. Before them `neutral` takes
out sums and products that change no code. A program comes in, a smaller one goes out, with the channels that left it.
What nothing here knows stays whole: a new operator is an entry in `spans.SPANS` and in `flow.FLOWS`.
"""
