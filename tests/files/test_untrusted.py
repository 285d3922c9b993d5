"""Files that anyone may have written: plain data or a `ValueError` that names the file, whatever is in them."""

from __future__ import annotations

import io
import json
import os
import struct
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kquant.calibration.aimet_encodings import _read as read_encodings
from kquant.calibration.observations import Observations
from kquant.files import untrusted
from kquant.files.untrusted import Archive, parse_json, parse_toml, read_arrays, read_json
from kquant.recipe import recipe as recipes

NPY = {"descr": "<f4", "fortran_order": False, "shape": (3, 4)}


def npy(header: str, content: bytes = bytes(48)) -> bytes:
    padded = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded + content


def zipped(entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return made.getvalue()


def lying(content: bytes, size: int) -> bytes:
    """A zip archive whose entries tell another size than they unpack to."""
    changed = bytearray(content)
    for magic, at in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        start = changed.find(magic)
        struct.pack_into("<L", changed, start + at, size)
    return bytes(changed)


ARRAYS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "neither .npy nor .npz"),
    "text": (b"1,2,3\n", "neither .npy nor .npz"),
    "header without its end": (npy("{'descr': '<f4', 'shape': (3, 4), ("), "a damaged header"),
    "header nested deeply": (npy("(" * 110), "a damaged header"),
    "header of 10^13 bytes": (npy(str({**NPY, "shape": (999999999999, 4)})), "its header tells .* 15,999,999,999,984"),
    "header of too many rows of nothing": (npy(str({**NPY, "shape": (10**13, 0)}), b""), "its header tells"),
    "negative shape": (npy(str({**NPY, "shape": (-3, -4)})), "a damaged header"),
    "objects": (npy(str({**NPY, "descr": "|O"})), "Python objects, which could run code"),
    "records": (npy(str({**NPY, "descr": [("a", "<f4")]})), "expected numbers"),
    "values of no bytes": (npy(str({**NPY, "descr": "|V0"}), b""), "expected numbers"),
    "cut off": (npy(str(NPY))[:-1], "It holds 47"),
    "zip cut off": (zipped({"x.npy": npy(str(NPY))})[:-30], "not a zip archive, or cut off"),
    "zip bomb": (zipped({"x.npy": bytes(1 << 25)}), "that unpack to 33,554,432"),
    "zip of many bombs": (zipped({f"{i}.npy": bytes(1 << 20) for i in range(20)}), "that unpack to"),
    "zip that tells less than it holds": (lying(zipped({"x.npy": bytes(1 << 24)}), 100), "a damaged zip archive"),
    "zip of 100,000 entries": (zipped({f"{i:06}": b"" for i in range(90_000)}, 0), "its list of entries takes"),
    "zip packed by bzip2": (zipped({"x.npy": npy(str(NPY))}, zipfile.ZIP_BZIP2), "method 12; expected deflate"),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_damaged_arrays_are_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "bomb" in kind:
        monkeypatch.setattr(untrusted, "FREE_BYTES", 1 << 20)  # so that a small bomb is one
    content, message = ARRAYS[kind]
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match=f"the data: .*{message}|the data, array 'x.npy': .*{message}"):
        read_arrays(tmp_path / "x.npz", "the data")


def test_arrays_come_as_numpy_wrote_them(tmp_path: Path) -> None:
    arrays = {"a": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "b": np.int64(3), "c": np.array(["x", "yz"])}
    arrays |= {"none": np.zeros((0, 5)), "yes": np.array([True, False])}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **arrays)
        found = read_arrays(tmp_path / "x.npz", "the data")
        assert list(found) == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == np.asarray(array).dtype and found[name].flags.writeable
    np.save(tmp_path / "x.npy", arrays["a"])
    np.testing.assert_array_equal(read_arrays(tmp_path / "x.npy", "the data")["x"], arrays["a"])


@pytest.mark.parametrize("path", ["pipe", "gone", ".", "loop", "/dev/zero"])
def test_only_regular_files_are_opened(path: str, tmp_path: Path) -> None:
    """A pipe would wait for its other end, a device never ends."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for read in (read_arrays, read_json, untrusted.read_file):
        with pytest.raises(ValueError, match="the file: (a pipe, a socket or a device|no such file|a folder)"):
            read(tmp_path / path, "the file")


TEXTS: dict[str, tuple[Callable[[str, str], Any], str, str]] = {
    "json, deep": (parse_json, "[" * 100_000, "nested 100,000 levels deep"),
    "json, deep objects": (parse_json, '{"a":' * 1000 + "1" + "}" * 1000, "nested 1,000 levels deep"),
    "json, many values": (parse_json, "[" + "[]," * 2_000_000 + "1]", "values; such files have at most"),
    "json, a string without end": (parse_json, '"' + '\\"' * 200_000 + "\\", "not JSON"),
    "json, a long number": (parse_json, "1" * 100_000, "not JSON"),
    "toml, deep": (parse_toml, "a = " + "[" * 10_000, "not TOML"),
    "toml, a long key": (parse_toml, ".".join("a" * 10_000) + " = 1", "nested 9,999 levels deep"),
    "toml, a long table": (parse_toml, "[" + ".".join("a" * 10_000) + "]", "nested 9,999 levels deep"),
    "toml, inline": (parse_toml, "x = {" + ".".join("a" * 10_000) + " = 1}", "levels deep"),
    "toml, long": (parse_toml, "#" * 10_000_000, "10,000,000 characters"),
    "toml, NaN": (parse_toml, "[a]\nb = [nan]", "a.b: expected a finite number"),
    "toml, a long number": (parse_toml, "a = " + "1" * 10_000, "not TOML"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_texts_without_measure_are_refused(kind: str) -> None:
    parse, text, message = TEXTS[kind]
    with pytest.raises(ValueError, match=f"^the text: .*{message}"):
        parse(text, "the text")


def test_brackets_in_strings_are_no_depth() -> None:
    text = json.dumps({"a": '[{"' * 100, "b\\": ["]" * 100, {"c": 1.5}]})
    assert parse_json(text, "the text") == json.loads(text)


def test_an_archive_gives_what_was_put_into_it() -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        archive = Archive(io.BytesIO(zipped({"a/b": b"12" * 99, "empty": b""}, method)), "the file")
        assert archive.sizes == {"a/b": 198, "empty": 0} and archive.read("a/b") == b"12" * 99


# Files of every kind, each with its reader

ENTRY = {"bitwidth": 8, "dtype": "int", "is_symmetric": "False", "max": 1.0, "min": 0.0, "offset": 0, "scale": 0.004}
CONFIG = {"num_bits": 8, "symmetric": True, "granularity": "CHANNELWISE", "dtype": "INT"}
CONFIGS = {"weight_tensor_config": CONFIG, "activation_tensor_config": {**CONFIG, "granularity": "TENSORWISE"}}
AEQ = {"regex": ".*", "operation": "*", "algorithm_key": "min_max_uniform_quantize"}
RULE = {**AEQ, "regex": "head", "operation": "FULLY_CONNECTED", "algorithm_key": "no_quantize"}


@cache
def observations() -> bytes:
    made = io.BytesIO()
    arrays: dict[str, Any] = {"index": json.dumps({"tensors": [["x_quant", 0]]}), "sizes": np.int64([32, 8])}
    arrays |= {"0/lows": np.float32([-1, -2]), "0/highs": np.float32([1, 2]), "0/counts": np.arange(2048)}
    arrays |= {"0/reach": np.float64(4.0), "0/samples": np.zeros((2, 3), np.float32)}
    np.savez_compressed(made, **arrays)
    return made.getvalue()


@cache
def small_files() -> dict[str, tuple[bytes, Callable[[Path], Any]]]:
    """A valid file of each kind, and what reads it."""
    encodings = {
        "version": "0.6.1",
        "activation_encodings": {"x": [ENTRY]},
        "param_encodings": {"head/kernel": [ENTRY]},
    }
    aeq = [{**AEQ, "op_config": {**CONFIGS, "compute_precision": "INTEGER", "explicit_dequantize": False}}, RULE]
    arrays = zipped({"x.npy": npy(str(NPY)), "y.npy": npy(str(NPY))})
    toml = b'name = "mine"\n[activations]\nbits = 16\n[[rules]]\nlayer = "head"\nfloat = true\n'
    return {
        "x.npy": (npy(str(NPY)), lambda path: read_arrays(path, str(path))),
        "x.npz": (arrays, lambda path: read_arrays(path, str(path))),
        "observations.npz": (observations(), Observations.load),
        "encodings.json": (json.dumps(encodings).encode(), read_encodings),
        "recipe.json": (json.dumps(aeq).encode(), recipes.load),
        "recipe.toml": (toml, recipes.load),
    }


def mutated(content: bytes, draw: Callable[[Any], Any]) -> bytes:
    """A file with flipped bits, other integers, blocks cut out, doubled or moved, or an end cut off."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at, to = draw(st.integers(0, len(changed))), draw(st.integers(0, len(changed)))
        way = draw(st.sampled_from(["bit", "integer", "digit", "cut", "twice", "copy", "end"]))
        at, to = min(at, to), max(at, to)
        if way == "bit" and at < len(changed):
            changed[at] ^= 1 << draw(st.integers(0, 7))
        elif way == "integer":
            struct.pack_into("<I", whole := bytearray(changed + bytes(4)), at, draw(st.sampled_from(INTEGERS)))
            changed = whole[: len(changed)]
        elif way == "digit":
            changed[at : at + 1] = draw(st.sampled_from(DIGITS))
        elif way == "cut":
            del changed[at : min(to, at + 64)]
        elif way == "twice":
            changed[at:at] = changed[at : min(to, at + 256)]
        elif way == "copy":
            changed[at : at + 16] = changed[to : to + 16]
        elif way == "end":
            del changed[at:]
    return bytes(changed)


INTEGERS = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 1 << 20, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
DIGITS = [b"", b"9" * 12, b"-1", b"null", b"[]", b"{}", b'"', b"1e999", b"NaN", b"true", b"\xff", b"\0"]


@pytest.mark.parametrize("name", sorted(small_files()))
def test_a_valid_file_is_read(name: str, tmp_path: Path) -> None:
    content, read = small_files()[name]
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name) is not None


@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_damage_is_a_value_error(data: Any) -> None:
    name = data.draw(st.sampled_from(sorted(small_files())))
    content, read = small_files()[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(mutated(content, data.draw))
        try:
            read(path)
        except ValueError as error:
            assert str(error).strip()
