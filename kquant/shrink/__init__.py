"""Plain Keras models made smaller: channels removed (`prune_channels`), kernels split in two (`factorize`).

    plain        a flat copy of the user's model, which alone is worked on
    channels     which channels of which tensors are one and the same, and which cannot leave
    importance   what a channel is worth
    choose       which channels stay, for a budget
    narrow       the model without the others
    reconstruct  weights refitted by least squares
"""
