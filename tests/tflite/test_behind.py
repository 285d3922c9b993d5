"""Files whose weights lie behind the flatbuffer, as LiteRT's Quantizer writes large ones."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import kquant
from kquant.runtime.running import available
from kquant.tflite.anatomy import file_parts
from kquant.tflite.flatbuffer import packed, with_outputs
from kquant.tflite.reader import SCHEMA, constants

LEAST = 64


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes, np.ndarray]:
    """A file of kquant's, and the same with its larger buffers behind the flatbuffer."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((16,)), layers.Dense(32, activation="relu"), layers.Dense(4)])
    x = np.random.default_rng(0).normal(size=(128, 16)).astype(np.float32)
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), x, verbose=False)
    path = tmp_path_factory.mktemp("behind") / "m.tflite"
    kquant.export(q, path, check_runtimes=False)
    return path.read_bytes(), _behind(path.read_bytes()), x[:16]


def _behind(content: bytes) -> bytes:
    model = SCHEMA.ModelT.InitFromPackedBuf(content, 0)
    moved = [b for b in model.buffers if b.data is not None and len(b.data) >= LEAST]
    data = [np.asarray(b.data, np.uint8).tobytes() for b in moved]
    for buffer, held in zip(moved, data, strict=True):
        buffer.data, buffer.offset, buffer.size = None, 1 << 20, len(held)  # as long as the real offset
    place, behind = len(packed(model)), b""
    for buffer, held in zip(moved, data, strict=True):
        behind += b"\0" * (-(place + len(behind)) % 16)
        buffer.offset = place + len(behind)
        behind += held
    return packed(model) + behind


def test_such_a_file_is_read_as_the_other(files: tuple[bytes, bytes, np.ndarray]) -> None:
    plain, behind, x = files
    one, other = kquant.inspect(plain), kquant.inspect(behind)
    assert other.behind and not one.behind
    assert other.weight_bytes == one.weight_bytes > 16 * 32
    for i, array in constants(plain).items():
        np.testing.assert_array_equal(constants(behind)[i], array)
    for runtime in ("litert", "litert-reference"):
        np.testing.assert_array_equal(kquant.predict(behind, x, runtime), kquant.predict(plain, x, runtime))


def test_every_byte_of_it_is_told(files: tuple[bytes, bytes, np.ndarray]) -> None:
    plain, behind, _ = files
    told = [file_parts(content, kquant.inspect(content)) for content in files[:2]]
    for content, parts in zip((plain, behind), told, strict=True):
        assert sum(part.bytes for part in parts) == len(content)
    stored = [{part.name: part.bytes for part in parts} for parts in told]
    # but for the words that say how long each vector is
    assert stored[1]["weights, plain"] == 16 * 32 + 32 * 4 == stored[0]["weights, plain"] - 2 * 4
    assert with_outputs(behind, [file.index for file in kquant.inspect(behind).outputs]) == with_outputs(
        plain, [file.index for file in kquant.inspect(plain).outputs]
    )


@pytest.mark.skipif("tflm" not in available(), reason="runs on TFLM: pip install 'kquant[micro]' (Linux only)")
def test_tensorflow_lite_micro_is_not_asked_to_run_it(files: tuple[bytes, bytes, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="predict: this file has weights behind its flatbuffer"):
        kquant.predict(files[1], files[2], "tflm")


def test_what_lies_beyond_the_end_is_damage(files: tuple[bytes, bytes, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="is damaged: IndexError: .* bytes from .* on of"):
        kquant.inspect(files[1][:-8])
