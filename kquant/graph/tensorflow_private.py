"""What kquant needs of TensorFlow that TensorFlow does not export: every such name stands in this file, in no other.

Where a new TensorFlow has it no longer, the function does nothing, and the verbs are as slow as they were without.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

# Whether an operation that runs eagerly becomes a function of one operation, which passes through all that optimizes
# graphs and parts them over devices: 0.5 to 3 ms at its first use with these attributes. TensorFlow starts with True,
# and has no way to ask for it: `_as_functions` looks whether one is made.
SWITCH = "TFE_ContextSetRunEagerOpAsFunction"

PROBE = "__wrapped__StringFormat_T_0_"  # the function of the operation by which one finds out

_LOCK = threading.Lock()
_WAYS: dict[int, tuple[bool, ...]] = {}  # of each thread that is in one of these, True for kernels, the innermost last
_BEFORE = [True]  # what was set before the first of them came
_NUMBERS = itertools.count()


def operations_as_kernels() -> contextlib.AbstractContextManager[None]:
    """Inside, the first use of an eager operation costs its kernel alone.

    A verb on a small model is little else than first uses: a third of the time of quantize, calibrate and export
    together. The numbers are the same to the bit, but for an operation that oneDNN has a kernel of for graphs only:
    what computes that runs in `operations_as_functions`.

    On processors only: with other devices nothing changes, as nobody has measured it there. Functions that
    `tf.function` makes are none of its business. Eager operations of other threads run as kernels too meanwhile, or all
    as functions where one of them asked for that.

    Example:
        >>> with operations_as_kernels():
        ...     float(tf.abs(-2.0))
        2.0
    """
    return _in_way(kernels=True)


def operations_as_functions() -> contextlib.AbstractContextManager[None]:
    """Inside, eager operations run as they did before all of these, by default as functions."""
    return _in_way(kernels=False)


@tf.autograph.experimental.do_not_convert  # a loop of the user, which it converts, traces this too
def is_traced_for_xla() -> bool:
    """True where operations are made for XLA, or where that cannot be told: it has no kernels for some.

    Relies on `control_flow_util.GraphOrParentsInXlaContext`, by which TensorFlow itself asks.

    Example:
        >>> asked = [tf.function(lambda: tf.constant(is_traced_for_xla()), jit_compile=jit) for jit in (None, True)]
        >>> is_traced_for_xla(), *(bool(function()) for function in asked)
        (False, False, True)
    """
    within: Any = importlib.import_module("tensorflow.python.ops.control_flow_util")
    asks = getattr(within, "GraphOrParentsInXlaContext", None)
    return asks is None or asks(tf.compat.v1.get_default_graph())


@contextlib.contextmanager
def _in_way(*, kernels: bool) -> Iterator[None]:
    switch, thread = _switch(), threading.get_ident()
    if switch is None:
        yield
        return
    with _LOCK:
        if not _WAYS:
            _BEFORE[0] = _as_functions()
        _WAYS[thread] = (*_WAYS.get(thread, ()), kernels)
        switch(_BEFORE[0] and not _all_want_kernels())
    try:
        yield
    finally:
        with _LOCK:
            _WAYS[thread] = _WAYS[thread][:-1]
            switch(_BEFORE[0] and not _all_want_kernels())
            if not _WAYS[thread]:
                del _WAYS[thread]


def _all_want_kernels() -> bool:
    """Somebody is in here, and nobody wants functions."""
    innermost = [ways[-1] for ways in _WAYS.values() if ways]
    return bool(innermost) and all(innermost)


def _as_functions() -> bool:
    """Whether TensorFlow makes a function of an operation now: half a millisecond."""
    context: Any = importlib.import_module("tensorflow.python.eager.context").context()
    made = [name for name in context.list_function_names() if name.startswith(PROBE)]
    for name in made:
        context.remove_function(name)
    # attributes that nobody has used: known ones have their kernel or function already; no input to be converted
    tf.raw_ops.StringFormat(inputs=[], template=f"kquant {next(_NUMBERS)}", placeholder="%s", summarize=3)
    return any(name.startswith(PROBE) for name in context.list_function_names())


def _switch() -> Callable[[bool], None] | None:
    """What sets it; None where TensorFlow has none, or more than processors computes."""
    switch = getattr(importlib.import_module("tensorflow.python.pywrap_tfe"), SWITCH, None)
    # listing them starts the runtime, which has to be before there is anything to switch
    if switch is None or {device.device_type for device in tf.config.list_logical_devices()} != {"CPU"}:
        return None
    handle: Any = importlib.import_module("tensorflow.python.eager.context").context()._handle
    return lambda on: switch(handle, on)
