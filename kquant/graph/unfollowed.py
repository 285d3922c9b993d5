"""Why a `call` cannot be followed on symbolic tensors, in words that fit: each reason has its own way out."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import optree
import tensorflow as tf

from kquant.core.messages import PACKAGE

# Where lines are that the user did not write: the folders themselves, since a user's own may be called like them.
LIBRARIES = (*(str(Path(str(m.__file__)).parent) for m in (keras, np, optree, tf)), PACKAGE)
STANDARD = sysconfig.get_paths()["stdlib"]
# What TensorFlow and NumPy call by another name than `keras.ops`.
RENAMED = {
    "arg_max": "argmax",
    "asarray": "convert_to_tensor",
    "array": "convert_to_tensor",
    "concat": "concatenate",
    "constant": "convert_to_tensor",
    "gather": "take",
    "reduce_all": "all",
    "reduce_any": "any",
    "reduce_logsumexp": "logsumexp",
    "reduce_max": "max",
    "reduce_mean": "mean",
    "reduce_min": "min",
    "reduce_prod": "prod",
    "reduce_std": "std",
    "reduce_sum": "sum",
    "reduce_variance": "var",
    "pow": "power",
    "l2_normalize": "normalize",
    "mod": "mod",
    "split": "split",
}
FOLLOWED = "cannot be followed on symbolic tensors"


def refusal(op: Any, error: Exception, is_builtin: bool) -> ValueError:
    """What to say of an exception that `op.call` raised on symbolic tensors.

    Args:
        op: the layer or model.
        error: what its `call` raised.
        is_builtin: it is one of Keras' own, whose `call` is none of the user's business.
    """
    where = f"{op.name} ({type(op).__name__})"
    lines = str(error).strip().splitlines()
    # Keras goes on with what to do in Keras
    said = f"{type(error).__name__}: {_first_sentence(lines[0]) if lines else ''}"
    if "add_loss" in str(error):
        return ValueError(
            f"{where}: its `call` uses add_loss, but symbolic tensors have no values to add. Take it out: "
            "give the layer whose output is penalized an activity_regularizer, or put the penalty into the loss "
            "that the model is compiled with, or into compute_loss of a class around the new model."
        )
    if is_builtin:
        return ValueError(
            f"{where}: kquant has no rule for this layer, and its `call` does not unfold into operations that have "
            f"one. Replace it by layers that have one, or leave it out of the exported model. It said: {said}"
        )
    # The user's own line, not Keras': that is the one to change.
    line = _line(error)
    reason = next(words(line[1]) for mark, words in REASONS if mark.search(f"{type(error).__name__}: {error}"))
    place = f" ({line[0]}: `{line[1]}`)" if line[1] else ""
    return ValueError(f"{where}: its `call` {FOLLOWED}{place}{reason} It said: {said}")


def _first_sentence(line: str) -> str:
    head, stop, _ = line.partition(". ")
    return head + stop.strip()


def returned(op: Any, outputs: Any) -> ValueError:
    """What to say of a `call` that returned something else than tensors of the graph."""
    where = f"{op.name} ({type(op).__name__})"
    if outputs is None:
        return ValueError(f"{where}: its `call` must return tensors. Received: None; is its `return` missing?")
    flat = keras.tree.flatten(outputs)
    odd = next((x for x in flat if not isinstance(x, keras.KerasTensor)), outputs)
    if flat and (keras.ops.is_tensor(odd) or hasattr(odd, "dtype")):
        return ValueError(
            f"{where}: its `call` must return tensors that depend on its inputs. Received: numbers of shape "
            f"{tuple(odd.shape)} that are the same whatever it is given. Where every sample is to have them, repeat "
            "them: ops.broadcast_to(numbers, (ops.shape(x)[0], ...)) of an input x; else leave that output out."
        )
    return ValueError(
        f"{where}: its `call` must return tensors, or lists or dicts of them. Received: {type(odd).__name__} "
        f"{str(odd)[:60]!r}; leave it out of what is returned, or keep it as an attribute of the layer."
    )


def _line(error: Exception) -> tuple[str, str]:
    """File and line of the user's code that raised, and its text."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_library(f.filename)]
    if not frames:
        return "", ""
    frame = frames[-1]
    return f"{frame.filename.rsplit('/', 1)[-1]}, line {frame.lineno}", (frame.line or "").strip()


def _is_library(file: str) -> bool:
    """True for a line that the user did not write; where packages lie inside the standard library, they are others'."""
    return file.startswith(LIBRARIES) or (file.startswith(STANDARD) and "site-packages" not in file)


def _instead(line: str) -> str:
    """The function of `keras.ops` for the first one of TensorFlow or NumPy in a line that has one."""
    for call in re.finditer(r"\b(?:tf|np|numpy|tensorflow)((?:\.\w+)+)\(", line):
        name = call[1].rsplit(".", 1)[-1]
        name = RENAMED.get(name, name)
        if hasattr(keras.ops, name):
            return f"`keras.ops.{name}` for `{call[0][:-1]}`"
    return "Keras layers and `keras.ops`"


def _tensorflow(line: str) -> str:
    return (
        f": it gives them to TensorFlow itself. Write it with {_instead(line)} (`keras.ops` has most of it) instead of "
        "raw `tf.*`, or replace it before quantizing."
    )


def _numpy(line: str) -> str:
    if re.search(r"\bfloat\(|\bint\(|\bmath\.", line):
        return _number(line)
    if re.search(r"\bconvert_to_numpy\(|\.numpy\(", line):
        return (
            ": it asks for the numbers in a tensor, which has none while the model is read. Compute with `keras.ops` "
            "instead of raw numpy, on the tensor itself."
        )
    return (
        f": it gives them to NumPy. Write it with {_instead(line)} instead of raw numpy; a NumPy array that meets a "
        "tensor stands to its right (x * array), or in ops.convert_to_tensor(array)."
    )


def _number(line: str) -> str:
    return (
        ": it makes a Python number of a tensor (float, int, round, math.*), which has no value while the model is "
        "read, and no file can leave the graph for Python. Keep it a tensor (`ops.cast`, `keras.ops` functions), or "
        "make it an argument of __init__ where it is fixed."
    )


def _branch(line: str) -> str:
    return (
        ": it asks for the truth of a tensor (`if`, `while`, `and`, `or`, `not`, max(), min()), and a file has one "
        "sequence of operators for all data. Compute both ways and choose with `ops.where(condition, a, b)`, "
        "`ops.logical_and`, `ops.maximum`; what is fixed when the model is made may be a Python bool."
    )


def _length(line: str) -> str:
    return ": a symbolic tensor has no len(). Take x.shape[axis] for a fixed length, `ops.shape(x)[0]` for the batch."


def _iterated(line: str) -> str:
    return (
        ": it loops over a tensor, or takes one apart into variables. Take rows with `ops.unstack(x, axis=1)` or "
        "x[:, i]; the batch axis stays whole, since every step works on all samples alike."
    )


def _written(line: str) -> str:
    return (
        ": it writes into a tensor, which no operator of the file does. Make a new one: `ops.where` with a constant "
        "mask, or `ops.concatenate` of the parts that stay and the new one."
    )


def _index(line: str) -> str:
    return (
        ": it uses a tensor as a Python index or count, which has no value while the model is read. Take an Embedding "
        "for a table that is read by an input of the model, and fixed counts from __init__ or x.shape."
    )


def _method(line: str) -> str:
    return (
        ": it calls a method or attribute that symbolic tensors do not have. Write `ops.mean(x)` for x.mean(), "
        "x.shape for x.get_shape(), and so on: functions of `keras.ops` instead of raw methods of TensorFlow or NumPy."
    )


def _unbuilt(line: str) -> str:
    return (
        ": it reads weights of a layer that is not built. Make layers in __init__ (or `build`), call them, and build "
        "the ones whose weights are read by hand with layer.build(shape) in `build`."
    )


def _shape(line: str) -> str:
    return (
        ": the shapes do not go together, or a size is not known. The file's shapes are fixed: give the model's inputs "
        "full shapes (input_shape=(None, ...) where they are open), and only the batch open inside."
    )


def _made(line: str) -> str:
    return (
        ": it makes new variables in `call`, which has to run without. Make them in __init__ or `build` (add_weight, "
        "sublayers as attributes)."
    )


def _beside(line: str) -> str:
    return (
        " because a layer that it calls returns something beside tensors (None, say), which Keras lets pass on data "
        "only. Let that layer return its tensors alone: write its `call` so, or a subclass of it with such a `call`."
    )


def _own(line: str) -> str:
    return (
        ", so kquant cannot see what it computes: its own code raises an error on them. Call the model on data and on "
        "keras.Input(...) first; where the second fails alone, write that line with `keras.ops`, or replace the layer "
        "before quantizing."
    )


# What an exception says -> the words for it; the first that fits.
REASONS: tuple[tuple[re.Pattern[str], Callable[[str], str]], ...] = tuple(
    (re.compile(mark), words)
    for mark, words in (
        (r"cannot be used as input to a TensorFlow function", _tensorflow),
        (r"All operation outputs must be tensors", _beside),
        (r"cannot be used as a boolean", _branch),
        (r"cannot convert it to an? (float|int)|unsupported format string", _number),
        (r"cannot convert it to a NumPy array|does not support ufuncs", _numpy),
        (r"has no len\(\)", _length),
        (r"Iterating over a symbolic", _iterated),
        (r"does not support item assignment|no attribute '(__setitem__|assign\w*|scatter\w*)'", _written),
        (r"KerasTensor.* cannot be interpreted as an integer|must be integers or slices, not KerasTensor", _index),
        (r"KerasTensor' object has no attribute 'numpy'", lambda line: _numpy("x.numpy()")),
        (r"You must build the layer before|has not been built|object has no attribute 'kernel'", _unbuilt),
        (r"cannot add new elements of state|tf.function only supports singleton tf.Variables", _made),
        (r"KerasTensor' object (has no attribute|is not callable)", _method),
        (r"unsupported operand type.*NoneType|convert a value \(None\)|[Ss]hapes? |dimensions", _shape),
        (r"", _own),
    )
)
