"""Files that anyone may have written: their kind, size, counts and depth are checked before objects are made of them.

Whatever such a file holds, reading it ends in plain data or in a `ValueError` that names the file: not in another
exception, a hang, or memory out of proportion to the file.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import re
import struct
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kquant.core.messages import absent

# A value of JSON takes some 100 bytes of memory, 350 at worst. Encodings of a large network have 100,000 values.
MOST_TEXT_BYTES, MOST_VALUES, MOST_DEPTH = 32 << 20, 2_000_000, 64
MOST_SETTINGS_BYTES = 1 << 18  # of a recipe; the ones of kquant take 1 KB
# A zip archive: bytes of its directory (46 and a name for each entry), and what its entries may unpack to: as much as
# `FREE_BYTES`, or `MOST_EXPANSION` times the file. Real weights shrink by 1 to 4, sparse ones by 20.
MOST_DIRECTORY_BYTES, FREE_BYTES, MOST_EXPANSION = 4 << 20, 256 << 20, 100
_CHUNK, MOST_HEADER_BYTES = 1 << 20, 1 << 17
_END, _END_BYTES, _LONGEST_COMMENT = b"PK\5\6", 22, 1 << 16
_END64, _END64_BYTES, _LOCATOR_BYTES = b"PK\6\6", 56, 20
# A string, or the rest of the text where it does not end: without that, every quote in it would begin a new search.
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_DEPTH = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def read_file(path: str | Path, where: str, most: int = MOST_TEXT_BYTES) -> bytes:
    """Contents of a regular file; a pipe or a device would never end.

    Args:
        path: of the file.
        where: names it in errors.
        most: bytes that such a file may have.

    Raises:
        ValueError: there is none, or it is too large.
    """
    if not Path(path).is_file():
        raise ValueError(f"{where}: {absent(path)}.")
    size = Path(path).stat().st_size
    if size > most:
        raise ValueError(f"{where}: too large, {size:,} bytes; such files have at most {most:,}.")
    return Path(path).read_bytes()


def read_text(path: str | Path, where: str, most: int = MOST_TEXT_BYTES) -> str:
    """`read_file` as UTF-8 text.

    Raises:
        ValueError: no such file, too large, or not UTF-8.
    """
    try:
        return read_file(path, where, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: not UTF-8 text, as such files are: {error.reason} at byte {error.start}. Save it again as UTF-8."
        ) from error


def parse_json(text: str | bytes, where: str, deepest: int = MOST_DEPTH) -> Any:
    """Plain data of a JSON text.

    Args:
        text: UTF-8.
        where: names it in errors.
        deepest: how many levels such a text may have.

    Raises:
        ValueError: not JSON, nested too deeply, too many values, or numbers without end.

    Example:
        >>> parse_json('{"a": [1, 2.5]}', "the text")
        {'a': [1, 2.5]}
        >>> parse_json("[" * 1000, "the text")
        Traceback (most recent call last):
        ValueError: the text: nested 1,000 levels deep; such files have at most 64.
    """
    content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    bare = _STRING.sub(b"", content)
    values = bare.count(b"[") + bare.count(b"{") + bare.count(b",")
    if values > MOST_VALUES:
        raise ValueError(f"{where}: {values:,} values; such files have at most {MOST_VALUES:,}.")
    brackets = [_DEPTH[byte] for byte in bare if byte in _DEPTH]
    _check_depth(max(itertools.accumulate(brackets), default=0), where, deepest)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and integers of 5,000 digits among them
        raise ValueError(f"{where}: not JSON: {error}.") from error


def read_json(path: str | Path, where: str) -> Any:
    """`parse_json` of a file."""
    return parse_json(read_text(path, where), where)


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Plain data of a TOML text.

    Args:
        text: of the file.
        where: names it in errors.

    Raises:
        ValueError: not TOML, too long, nested too deeply, or a number that is not finite.

    Example:
        >>> parse_toml("bits = 8", "the text")
        {'bits': 8}
    """
    if len(text) > MOST_SETTINGS_BYTES:
        raise ValueError(f"{where}: {len(text):,} characters; such files have at most {MOST_SETTINGS_BYTES:,}.")
    _check_depth(max((_keys(line) for line in text.splitlines()), default=0), where)
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not TOML: {error}.") from error
    check_plain(data, where)
    return data


def _keys(line: str) -> int:
    """Names joined by dots at the start of a line of TOML: tomllib takes a time that grows with their square."""
    return line.split("=", 1)[0].count(".")


def check_plain(data: Any, where: str) -> None:
    """Refuse plain data that are nested too deeply or hold NaN or infinity.

    Args:
        data: of dicts, lists and scalars.
        where: names them in errors.

    Raises:
        ValueError: naming the key.
    """
    level, depth = [("", data)], 0
    while level:
        _check_depth(depth, where)
        below: list[tuple[str, Any]] = []
        for key, value in level:
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{where}: {key}: expected a finite number. Received: {value}.")
            if isinstance(value, dict):
                below += [(f"{key}.{k}" if key else str(k), v) for k, v in value.items()]
            elif isinstance(value, list):
                below += [(key, v) for v in value]
        level, depth = below, depth + 1


def _check_depth(depth: int, where: str, deepest: int = MOST_DEPTH) -> None:
    if depth > deepest:
        raise ValueError(f"{where}: nested {depth:,} levels deep; such files have at most {deepest}.")


class Archive:
    """A zip archive whose entries are counted and measured before one of them is unpacked.

    Args:
        file: open for reading bytes, at any place.
        where: names it in errors.

    Raises:
        ValueError: not a zip archive, or one that unpacks to far more than it holds.
    """

    def __init__(self, file: BinaryIO, where: str) -> None:
        self.where = where
        size = file.seek(0, io.SEEK_END)
        listed = _directory_bytes(file, size, where)
        if listed > MOST_DIRECTORY_BYTES:
            raise ValueError(f"{where}: its list of entries takes {listed:,} bytes; at most {MOST_DIRECTORY_BYTES:,}.")
        self._zip = self._or_damaged(lambda: zipfile.ZipFile(file))
        self.sizes = {info.filename: info.file_size for info in self._zip.infolist()}
        total = sum(info.file_size for info in self._zip.infolist())
        if total > max(FREE_BYTES, MOST_EXPANSION * size):
            raise ValueError(f"{where}: {size:,} bytes that unpack to {total:,}: no file that a model or data make.")

    def read(self, name: str) -> bytearray:
        """One entry, unpacked: as many bytes as the archive says, with their checksum.

        Args:
            name: of the entry.

        Raises:
            ValueError: it is damaged, encrypted, or packed in another way than by deflation.
        """
        info = self._zip.getinfo(name)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{self.where}: '{name}' is packed by method {info.compress_type}; expected deflate.")
        return self._or_damaged(lambda: self._unpacked(info))

    def _unpacked(self, info: zipfile.ZipInfo) -> bytearray:
        content = bytearray()
        with self._zip.open(info) as entry:
            # in pieces: asked for all at once, it would unpack all that is there, whatever the size it tells
            while piece := entry.read(_CHUNK):
                content += piece
        if len(content) != info.file_size:
            raise ValueError(f"'{info.filename}' has {len(content):,} bytes of {info.file_size:,}")
        return content

    def _or_damaged(self, make: Callable[[], Any]) -> Any:
        try:
            return make()
        # zipfile lets through what struct, zlib and codecs raise at damaged bytes, RuntimeError for encrypted entries
        except Exception as error:
            raise ValueError(f"{self.where}: a damaged zip archive: {_said(error)}.") from error


def _directory_bytes(file: BinaryIO, size: int, where: str) -> int:
    """Length of the list of entries that the end of an archive tells; zipfile makes an object of each."""
    start = max(0, size - _END_BYTES - _LONGEST_COMMENT)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < _END_BYTES:
        raise ValueError(f"{where}: not a zip archive, or cut off before its end.")
    (listed,) = struct.unpack_from("<L", tail, at + 12)
    file.seek(max(0, start + at - _LOCATOR_BYTES - _END64_BYTES))
    wide = file.read(_END64_BYTES)
    return struct.unpack_from("<Q", wide, 40)[0] if wide[:4] == _END64 and len(wide) == _END64_BYTES else listed


def read_arrays(path: str | Path, where: str) -> dict[str, np.ndarray]:
    """Arrays of an `.npz` file by name, or the one of an `.npy` file as `x`, told apart by their content.

    Args:
        path: of the file.
        where: names it in errors.

    Returns:
        Arrays of numbers or text.

    Raises:
        ValueError: no such file, damaged, another kind of file, or Python objects, which could run code.
    """
    if not Path(path).is_file():
        raise ValueError(f"{where}: {absent(path)}.")
    with Path(path).open("rb") as file:
        magic = file.read(len(np.lib.format.MAGIC_PREFIX))
        if magic == np.lib.format.MAGIC_PREFIX:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            header = _header(file, size, where)
            return {"x": _shaped(np.fromfile(file, np.uint8), *header)}
        if magic[:4] not in (b"PK\3\4", _END):
            raise ValueError(f"{where}: numpy cannot read it: neither .npy nor .npz. It begins with {magic!r}.")
        archive = Archive(file, where)
        return {name.removesuffix(".npy"): _entry(archive, name) for name in archive.sizes}


def _entry(archive: Archive, name: str) -> np.ndarray:
    content = archive.read(name)
    start = io.BytesIO(content[:MOST_HEADER_BYTES])
    header = _header(start, len(content), f"{archive.where}, array '{name}'")
    return _shaped(np.frombuffer(content, np.uint8, offset=start.tell()), *header)


def _shaped(content: np.ndarray, shape: tuple[int, ...], fortran_order: bool, dtype: np.dtype) -> np.ndarray:
    return content.view(dtype).reshape(shape, order="F" if fortran_order else "C")


def _header(file: BinaryIO, size: int, where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Of numpy's format; what it tells must be what the rest of the file holds."""
    shape, fortran_order, dtype = _told(file, where)
    if dtype.hasobject:
        raise ValueError(f"{where}: holds Python objects, which could run code; save arrays of numbers.")
    if dtype.names is not None or dtype.subdtype is not None or dtype.itemsize == 0:
        raise ValueError(f"{where}: expected numbers. Received: dtype {dtype}.")
    expected, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    # an array without elements may still tell of any number of rows, which somebody will count through
    if expected != there or math.prod(max(n, 1) for n in shape) > max(size, MOST_VALUES):
        raise ValueError(
            f"{where}: numpy cannot read it: its header tells {dtype} {shape}, {expected:,} bytes. It holds {there:,}."
        )
    return shape, fortran_order, dtype


def _told(file: BinaryIO, where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(file)
    # numpy's header is a Python literal: its tokenizer, parser and dtypes raise a dozen kinds
    except Exception as error:
        raise ValueError(f"{where}: numpy cannot read it: a damaged header: {_said(error)}.") from error
    if not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"{where}: numpy cannot read it: a damaged header: shape {shape}.")
    return shape, bool(fortran_order), dtype


def _said(error: Exception) -> str:
    """The first line of what a parser says."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line[:200].rstrip(".")
