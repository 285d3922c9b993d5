"""Where a model runs on a target with an accelerator beside its processor, before anything is trained.

A float model and a target's claims come in; what goes out is which layers the accelerator takes, into how many parts
the graph falls there, which layers part it, and changes that were tried and join it again. A new limit of accelerators
is a field of `targets.accelerator`; a new change is an entry in `changes.CHANGES`.

    checking    kquant.check: the forecast for every layer, and its place
    laying      the file with made-up ranges, its operators by Keras layer, and what the target says of each
    parting     the parts of a graph, as LiteRT makes them for a delegate
    changes     what may be done to a layer that parts the graph
"""
