"""What kquant takes from TensorFlow's inside: eager operations as kernels."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python import pywrap_tfe
from tensorflow.python.eager import context

from kquant.graph.tensorflow_private import operations_as_functions, operations_as_kernels


def runtime() -> Any:
    """TensorFlow's eager context."""
    return context.context()


def functions_made(run: Callable[[], object]) -> set[str]:
    """Names of the functions of one operation that the runtime makes for it."""
    before = set(runtime().list_function_names())
    run()
    return {name for name in set(runtime().list_function_names()) - before if "__wrapped__" in name}


def fresh(letter: str) -> Callable[[], object]:
    """An operation that nothing else runs: each may be asked for once."""
    return lambda: getattr(tf.raw_ops, f"Bessel{letter}")(x=1.0)


def test_first_uses_make_no_functions_inside_and_do_outside() -> None:
    with operations_as_kernels():
        assert not functions_made(fresh("I0"))
        with operations_as_kernels():  # one verb in another
            assert not functions_made(fresh("I1"))
        assert not functions_made(fresh("J0"))
        with operations_as_functions():
            assert functions_made(fresh("Y1"))
            with operations_as_kernels():
                assert not functions_made(fresh("I0e"))
            assert functions_made(fresh("I1e"))
        assert not functions_made(fresh("K0e"))
    assert len(functions_made(fresh("J1"))) == 1, "TensorFlow makes none itself: nobody needs the switch"


def test_the_switch_goes_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), operations_as_kernels():
        _ = 1 / 0
    assert functions_made(fresh("K0"))


def test_who_had_kernels_has_them_afterwards() -> None:
    pywrap_tfe.TFE_ContextSetRunEagerOpAsFunction(runtime()._handle, False)
    try:
        with operations_as_kernels(), operations_as_functions():
            pass
        assert not functions_made(lambda: tf.raw_ops.Digamma(x=1.0))
    finally:
        pywrap_tfe.TFE_ContextSetRunEagerOpAsFunction(runtime()._handle, True)
    with operations_as_kernels():
        pass
    assert functions_made(lambda: tf.raw_ops.Lgamma(x=1.0))


def test_the_last_of_several_threads_switches_back() -> None:
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with operations_as_kernels():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait()
    with operations_as_kernels():
        pass
    assert not functions_made(fresh("K1"))
    leave.set()
    thread.join()
    assert functions_made(fresh("Y0"))


@pytest.mark.parametrize("stride", [1, 2])
def test_both_ways_compute_the_same(stride: int) -> None:
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=(3, 17, 19, 5 + stride)), tf.float32)
    kernel = tf.constant(rng.normal(size=(3, 3, 5 + stride, 11)), tf.float32)
    bias = tf.constant(rng.normal(size=11), tf.float32)

    def run() -> np.ndarray:
        runtime().clear_kernel_cache()  # else the second run takes the kernels of the first
        return tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, stride, "SAME"), bias)).numpy()

    with operations_as_kernels():
        inside = run()
    assert np.array_equal(inside, run())
