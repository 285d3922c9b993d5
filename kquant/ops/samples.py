"""What mixes the samples of a batch: why a file for one sample cannot have it, and what to write instead."""

from __future__ import annotations

ONE = "the device computes one sample at a time"
# Operations that make one number of many -> what they do to them.
REDUCED: dict[str, str] = {
    "All": "asks for a condition of",
    "Amax": "takes the largest of",
    "Amin": "takes the smallest of",
    "Any": "asks for a condition of",
    "Argmax": "finds the largest of",
    "Argmin": "finds the smallest of",
    "Argsort": "sorts",
    "Average": "averages",
    "CountNonzero": "counts",
    "Cumprod": "multiplies up, step by step,",
    "Cumsum": "adds up, step by step,",
    "LogSoftmax": "takes the softmax of",
    "Logsumexp": "adds up the exponentials of",
    "Max": "takes the largest of",
    "Mean": "averages",
    "Median": "sorts",
    "Min": "takes the smallest of",
    "Norm": "takes the norm of",
    "Prod": "multiplies",
    "Ptp": "takes the spread of",
    "Quantile": "sorts",
    "Softmax": "takes the softmax of",
    "Sort": "sorts",
    "Std": "takes the deviation of",
    "Sum": "adds up",
    "Var": "takes the variance of",
}
# Operations that move values -> what they do with samples, and what keeps axis 0 as it is.
MOVED: dict[str, tuple[str, str]] = {
    "BroadcastTo": ("makes another number of samples", "Begin the shape with ops.shape(x)[0]"),
    "Concatenate": ("puts samples behind samples", "Concatenate along axis=1 or axis=-1"),
    "ExpandDims": ("puts an axis in front of the samples", "Put it behind them: axis=1 or axis=-1"),
    "Flip": ("turns the order of the samples round", "Give the axes to flip: axis=1"),
    "Flipud": ("turns the order of the samples round", "Write ops.flip(x, axis=1)"),
    "GetItem": ("picks samples out of the batch", "Write x[:, i] for a part of every sample"),
    "Moveaxis": ("moves the samples to another axis", "Move the axes behind them only"),
    "Pad": ("adds samples", "Give axis 0 the width (0, 0)"),
    "Repeat": ("makes more samples of one", "Give the axis to repeat along: axis=1"),
    "Roll": ("moves values from sample to sample", "Give the axis to roll along: axis=1"),
    "Slice": ("cuts samples out of the batch", "Start at 0 there, with ops.shape(x)[0] for the length"),
    "Split": ("deals the samples out", "Split along axis=1 or axis=-1"),
    "Stack": ("puts the new axis where the samples are", "Stack along axis=1 or axis=-1"),
    "Swapaxes": ("moves the samples to another axis", "Swap two of the axes behind them"),
    "Take": ("picks samples out of the batch", "Give the axis to take along: axis=1"),
    "Tile": ("makes more samples of one", "Tile the axes behind: (1, n, ...)"),
    "Transpose": ("moves the samples to another axis", "Keep axis 0 first: ops.transpose(x, (0, 2, 1))"),
    "Unstack": ("takes the samples apart", "Unstack along axis=1"),
}


def why_mixed(kind: str, *, everything: bool = False) -> str:
    """What to say of an operation on the batch axis.

    Args:
        kind: its class.
        everything: it takes all values together, because it is given no axis.

    Example:
        >>> why_mixed("Sum").split("; ")[0]
        'it adds up the samples of a batch (axis 0)'
    """
    if kind in REDUCED:
        every = "all values, those of other samples too (it is given no axis)"
        over = every if everything else "the samples of a batch (axis 0)"
        return (
            f"it {REDUCED[kind]} {over}; {ONE}, so that the result would be another in the file than here. Give it the "
            "axes of one sample (axis=1, axis=-1, axis=(1, 2)); what is meant for the batch belongs into the loss, a "
            "metric or the application"
        )
    does, instead = MOVED.get(kind, ("works on the batch axis", "Keep axis 0 as it is"))
    return f"it {does} (axis 0, the batch axis); {ONE}. {instead}, or do it outside the model"
