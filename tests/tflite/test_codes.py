"""Masks and Huffman codes: TFLM's own DECODE writes every code back, and so does `load`; damaged ones are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import kquant
from benchmarks import assets
from kquant import targets
from kquant.core.program import Operator, Program, Ref
from kquant.core.spec import Encoding, QuantSpec
from kquant.runtime.running import available
from kquant.tflite.flatbuffer import to_bytes
from kquant.tflite.huffman_format import Huffman, find_code
from kquant.tflite.prefix_code import canonical_codes, code_lengths, lay_out, plan_tables, tree_of
from kquant.tflite.prune_format import BitMasks
from kquant.tflite.reader import contents
from kquant.tflite.storage import CODE, Storage, Stored, storage_of, storages

needs_tflm = pytest.mark.skipif("tflm" not in available(), reason="needs the micro extra")
RNG = np.random.default_rng(7)
ZERO = np.zeros(1, np.int64)
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, max_side=9)
FEW = hnp.arrays(np.int8, SHAPES, elements=st.sampled_from([0, 0, 0, 0, 1, -1, 7, -128, 127]))
ANY = hnp.arrays(np.int8, SHAPES, elements=st.integers(-128, 127))
WIDE = hnp.arrays(np.int16, SHAPES, elements=st.sampled_from([0, 0, 0, 1, -1, 300, -32768, 32767]))
ARRAYS = st.one_of(FEW, ANY, WIDE)


def stored(storage: Storage, codes: np.ndarray, axis: int | None = None, zeros: np.ndarray = ZERO) -> Stored:
    found = storage.store(codes, axis, zeros)
    assert found is not None and found.size_bytes == len(found.body) + len(found.header)
    return found


def loaded(storage: Storage, found: Stored, codes: np.ndarray, axis: int | None, zeros: np.ndarray) -> np.ndarray:
    assert storage_of(found.header) is type(storage)
    return storage.load(found.body, found.header, codes.shape, str(codes.dtype), tuple(zeros.tolist()), axis or 0)


def decoded_by_tflm(parts: list[tuple[Stored, np.ndarray, int | None, np.ndarray]]) -> list[np.ndarray]:
    """What the kernel writes: a file that is one DECODE, whose outputs are those of the file."""
    from tflite_micro import runtime

    inputs = [
        Ref("", (len(part),), "uint8", None, np.frombuffer(part, np.uint8))
        for found, *_ in parts
        for part in (found.body, found.header)
    ]
    outputs = []
    for n, (_, codes, axis, zeros) in enumerate(parts):
        spec = QuantSpec(symmetric=False, per_axis=axis is not None)
        grid = Encoding(np.ones(len(zeros), np.float32), zeros, spec, axis)
        outputs.append(Ref(f"w{n}", codes.shape, str(codes.dtype), grid))
    program = Program("decoded", [Operator(CODE, list[Any](inputs), outputs)], [], outputs)
    content = to_bytes(program, targets.load("tflm"), {})
    size = 1 << 16
    interpreter = runtime.Interpreter.from_bytes(content, arena_size=size + 8 * sum(c.nbytes for _, c, *_ in parts))
    interpreter.invoke()
    return [interpreter.get_output(n) for n in range(len(parts))]


def comes_back(storage: Storage, codes: np.ndarray, axis: int | None = None, zeros: np.ndarray = ZERO) -> Stored:
    """On TFLM where it is installed, and in Python anyway."""
    found = stored(storage, codes, axis, zeros)
    back = loaded(storage, found, codes, axis, zeros)
    assert back.dtype == codes.dtype and np.array_equal(back, codes)
    if "tflm" in available():
        (written,) = decoded_by_tflm([(found, codes, axis, zeros)])
        assert written.dtype == codes.dtype and np.array_equal(written, codes)
    return found


@settings(max_examples=120, deadline=None)
@given(ARRAYS, st.sampled_from([BitMasks(), Huffman()]))
def test_any_codes_come_back(codes, storage):
    comes_back(storage, codes)


@settings(max_examples=60, deadline=None)
@given(ANY, st.sampled_from(["first", "last"]), st.data())
def test_masks_know_zero_points_of_channels(codes, side, data):
    axis = 0 if side == "first" or codes.shape[-1] == 1 else codes.ndim - 1
    zeros = data.draw(hnp.arrays(np.int64, codes.shape[axis], elements=st.integers(-128, 127)))
    shape = [-1 if i == axis else 1 for i in range(codes.ndim)]
    codes = np.where(codes % 3 == 0, codes, zeros.reshape(shape).astype(np.int8))
    found = comes_back(BitMasks(), codes, axis, zeros)
    there = np.count_nonzero(codes != zeros.reshape(shape))
    assert found.size_bytes == -(-codes.size // 8) + 16 + there


def test_one_zero_point_other_than_zero():
    codes = np.where(RNG.random((9, 31)) < 0.3, RNG.integers(-128, 128, (9, 31)), -44).astype(np.int8)
    comes_back(BitMasks(), codes, None, np.array([-44]))
    assert BitMasks().store(codes.astype(np.int16), None, np.array([-44])) is None
    assert BitMasks().store(codes.reshape(3, 3, 31), 1, np.zeros(3, np.int64)) is None
    assert BitMasks().store(codes.reshape(9, 31, 1), 2, np.zeros(1, np.int64)) is None  # TFLM refuses the axis
    assert "has 3 scales on axis 1 of 3" in BitMasks().refusal(codes.reshape(3, 3, 31), 1)
    assert "int16" in BitMasks().refusal(codes.astype(np.int16), None)


FIBONACCI = [1, 1]
while len(FIBONACCI) < 24:
    FIBONACCI.append(FIBONACCI[-1] + FIBONACCI[-2])


@pytest.mark.parametrize(
    "codes",
    [
        np.zeros((4, 9), np.int8),  # one symbol
        np.full((1, 1), -128, np.int8),
        np.arange(-128, 128).astype(np.int8),  # 256, all alike
        np.repeat(np.arange(-128, 128), RNG.integers(1, 90, 256)).astype(np.int8),
        RNG.permutation(np.repeat(np.arange(24), FIBONACCI)).astype(np.int8),  # without a limit, codes of 23 bits
        np.repeat(np.arange(24), FIBONACCI).astype(np.int8)[::-1],  # the longest codes where the decoder reads ahead
        RNG.integers(-32768, 32768, 3000).astype(np.int16),  # offsets beyond 11 bits
        np.array([5, -5] * 8 + [5], np.int8),
        *[RNG.integers(0, 2, n).astype(np.int8) for n in (31, 32, 33, 63, 64, 65)],  # ends of words
    ],
    ids=lambda codes: f"{codes.dtype}-{codes.size}-{len(np.unique(codes))}",
)
def test_the_ends_of_the_format(codes):
    found = comes_back(Huffman(), codes)
    assert len(found.body) % 4 == 0
    comes_back(BitMasks(), codes)


def test_tflms_own_example_is_read():
    """`decode_state_huffman_test.cc`: 16 letters, the first of the 64 weights."""
    body = bytes.fromhex("F00D79FC9C1A6E4C32AF29B35DF6360250158CA795DB29683FBAB7EDB119E2E0")
    entries = "986D 9861 986A 0005 0806 0809 000E 000F 886F 8868 8864 8864 9069 9066 8863 8863"
    entries += " 0002 906B 8867 886C 8865 8862 8870 886E"
    small = b"".join(int(entry, 16).to_bytes(2, "little") for entry in entries.split())
    large = [(int(e, 16) & 0xF800) << 16 | int(e, 16) & 0x7FF for e in entries.split()]
    text = "nmmacnanefdacopjomeckifookhbdbdmjjdmjgojfecpbiibmanbbjbnlgjafejp"
    for fields, tables in ((b"\x20", small), (b"\x21", b"".join(e.to_bytes(4, "little") for e in large))):
        back = Huffman.load(body, Huffman.header(fields, tables), (64,), "int8", (0,), 0)
        assert "".join(map(chr, back)) == text


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 1 << 40), min_size=2, max_size=40), st.integers(0, 10))
def test_lengths_are_the_best_ones(counts, more):
    counts = np.array(counts, np.int64)
    limit = (len(counts) - 1).bit_length() + more
    lengths = code_lengths(counts, limit)
    assert lengths.min() >= 1 and lengths.max() <= limit
    assert sum(2.0 ** -int(n) for n in lengths) == 1.0  # no bit is spare
    codes = [f"{code:0{bits}b}" for code, bits in zip(canonical_codes(lengths), lengths, strict=True)]
    assert not any(a != b and b.startswith(a) for a in codes for b in codes)
    if limit >= len(counts) - 1:  # no limit: what a heap finds
        assert int(lengths @ counts) == heap_cost(counts)


def heap_cost(counts: np.ndarray) -> int:
    """Bits of a Huffman code, by its definition: the two rarest become one."""
    import heapq

    heap = counts.tolist()
    heapq.heapify(heap)
    cost = 0
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        cost += both
        heapq.heappush(heap, both)
    return cost


def test_a_limit_costs_as_little_as_it_can():
    """Against all prefix codes of five symbols, by their lengths."""
    from itertools import product

    counts = np.array([50, 20, 9, 3, 1])
    for limit in (3, 4):
        able = [c for c in product(range(1, limit + 1), repeat=5) if sum(2.0**-n for n in c) <= 1.0]
        best = min(int(np.array(c) @ counts) for c in able)
        assert int(code_lengths(counts, limit) @ counts) == best
    with pytest.raises(ValueError, match="2 bits cannot tell 5 symbols apart"):
        code_lengths(counts, 2)


def test_tables_are_the_smallest_and_few_look_ups_where_that_is_cheap():
    counts = np.bincount(np.clip(np.rint(RNG.normal(size=4000) * 9) + 40, 0, 80).astype(int))
    counts = counts[counts > 0]
    tree = tree_of(code_lengths(counts, 16), counts)
    tables = plan_tables(tree, 2, 2047)
    assert len(lay_out(tables)) == tables.entries
    # with tables of one bit everywhere, two entries for each node that branches
    assert tables.entries <= 2 * sum(tree.branches)
    assert tables.lookups < sum(int(visits.sum()) for visits in tree.visits)
    fewer = plan_tables(tree, 2, tables.entries - 1)
    assert fewer.entries <= tables.entries and fewer.lookups >= tables.lookups


def test_the_code_is_near_the_entropy():
    codes = np.clip(np.rint(RNG.normal(size=20000) * 4), -128, 127).astype(np.int8)
    share = np.unique(codes, return_counts=True)[1] / codes.size
    entropy = float(-(share * np.log2(share)).sum())
    assert entropy <= find_code(codes).body_bits / codes.size < entropy + 0.05


@pytest.mark.parametrize("storage", [BitMasks(), Huffman()])
def test_what_is_cut_or_other_is_refused(storage):
    codes = RNG.integers(-9, 9, (40, 40)).astype(np.int8)
    found = stored(storage, codes)

    def load(body: bytes, header: bytes, shape: tuple[int, ...] = codes.shape) -> None:
        storage.load(body, header, shape, "int8", (0,), 0)

    load(found.body, found.header)
    for body, header, shape in [
        (found.body[:-8], found.header, codes.shape),
        (found.body, found.header[:-20], codes.shape),
        (found.body, found.header[:16], codes.shape),
        (found.body, b"\x07" + found.header[1:], codes.shape),
        (found.body, found.header, (1 << 20, 1 << 10)),
        (b"", found.header, codes.shape),
    ]:
        with pytest.raises(ValueError, match="Huffman:|masks:"):
            load(body, header, shape)


def test_tables_that_lead_nowhere_end():
    nowhere = Huffman.header(b"\x00", b"\x00\x00" * 2)  # on to itself, for ever
    with pytest.raises(ValueError, match="do not end in 4 bytes"):
        Huffman.load(bytes(4), nowhere, (8,), "int8", (0,), 0)
    nothing = Huffman.header(b"\x00", b"\x00\x80" * 2)  # a code of no bits
    with pytest.raises(ValueError, match="do not end in 4 bytes"):
        Huffman.load(bytes(4), nothing, (8,), "int8", (0,), 0)


FLOATS = ("ad01_fp32", "pretrainedResnet", "pretrainedResnet_large_float", "vww_96_float")
FILES = sorted((assets.FOLDER / "mlperf_tiny").glob("*/*.tflite"))


@needs_tflm
@pytest.mark.skipif(not FILES, reason="the models are not part of the repository; set KQUANT_ASSETS")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_tensor_of_mlperf_tiny_comes_back(path):
    """Weights of the official files as they are, and as 4 bits and with 80 % zeros would leave them."""
    file, held = contents(path.read_bytes())
    tensors = [t for t in file.tensors if t.index in held and t.type in ("INT8", "INT16") and held[t.index].size > 16]
    tensors = [t for t in tensors if not t.scale or len(t.scale) == 1 or t.axis in (0, len(t.shape) - 1)]
    parts, wanted = [], []
    for t in tensors:
        codes, zeros = held[t.index], np.array(t.zero_point)
        axis = t.axis if t.scale and len(t.scale) > 1 else None
        few = np.where(np.abs(codes.astype(np.int32)) > 40, codes, 0).astype(codes.dtype)
        for variant in (codes, (codes // 18).astype(codes.dtype), few):
            for cls in storages().values():
                found = cls().store(variant, axis, zeros)
                if found is not None:
                    parts.append((found, variant, axis, zeros))
                    wanted.append(loaded(cls(), found, variant, axis, zeros))
    assert bool(parts) == (path.stem not in FLOATS)
    for start in range(0, len(parts), 8):
        for (_, codes, *_), written, mine in zip(
            parts[start : start + 8], decoded_by_tflm(parts[start : start + 8]), wanted[start : start + 8], strict=True
        ):
            assert np.array_equal(written, codes) and np.array_equal(mine, codes)


def test_names_are_public():
    assert (kquant.BitMasks, kquant.Huffman) == (BitMasks, Huffman)
    assert replace(kquant.Huffman(), names=("head",)).names == ("head",)
