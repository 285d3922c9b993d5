"""Copy an HDF5 file that anyone may have written into a new one, value by value.

    python hdf5_copy.py SOURCE TARGET      # used by `kquant.files.keras_files`; prints the bytes of all values

The HDF5 library follows damaged addresses wherever they lead, so it reads such a file in this small process, which
imports no TensorFlow, and nobody else opens it: the copy holds plain groups, arrays and attributes. Links to other
places, data outside the file, shapes without data and filters that unpack to far more than is there are refused.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np

MOST_OBJECTS, MOST_DEPTH = 100_000, 64
# What all values may take: this, or so many times the file. Real weights shrink by 1 to 4, sparse ones by 20.
FREE_BYTES, MOST_EXPANSION = 64 << 20, 100
# Address space beyond what the libraries take, and so many times the file: one array and its copy at a time.
MEMORY_BYTES, MEMORY_TIMES = 1 << 29, 4
CPU_SECONDS, BYTES_PER_SECOND = 6, 10 << 20  # damaged lists may lead in a circle


class _Copy:
    def __init__(self, size: int) -> None:
        self.objects, self.size, self.taken = 0, size, 0

    def count(self, what: str, size: int) -> None:
        """One object more, whose values take so many bytes."""
        self.objects += 1
        self.taken += size
        if self.objects > MOST_OBJECTS:
            raise ValueError(f"more than {MOST_OBJECTS:,} objects")
        if self.taken > max(FREE_BYTES, MOST_EXPANSION * self.size):
            raise ValueError(f"'{what}' is of {size:,} bytes, in a file of {self.size:,}")

    def group(self, source: h5py.Group, target: h5py.Group, depth: int = 0) -> None:
        if depth > MOST_DEPTH:
            raise ValueError(f"groups more than {MOST_DEPTH} levels deep")
        self.attributes(source, target)
        for name in source:
            if source.get(name, getlink=True, getclass=True) is not h5py.HardLink:
                raise ValueError(f"'{source.name}/{name}' is a link to another place")
            held = source[name]
            if isinstance(held, h5py.Group):
                self.count(str(held.name), 0)
                self.group(held, target.create_group(name), depth + 1)
            elif isinstance(held, h5py.Dataset):
                self.array(held, str(name), target)
            else:
                raise ValueError(f"'{source.name}/{name}' is neither a group nor an array")

    def array(self, source: h5py.Dataset, name: str, target: h5py.Group) -> None:
        if source.external or source.is_virtual:
            raise ValueError(f"'{source.name}' lies outside the file")
        self.count(str(source.name), math.prod(source.shape or ()) * source.dtype.itemsize)
        # counted before it is read: a file may tell of any size
        value = source[()]
        text = h5py.check_string_dtype(source.dtype) is not None
        if source.dtype.hasobject and not text:
            raise ValueError(f"'{source.name}' holds neither numbers nor text")
        made = target.create_dataset(name, data=value, dtype=source.dtype if text else None)
        self.attributes(source, made)

    def attributes(self, source: Any, target: Any) -> None:
        for name in source.attrs:
            value = source.attrs[name]
            size = (
                value.nbytes if isinstance(value, np.ndarray) else len(value) if isinstance(value, str | bytes) else 8
            )
            self.count(f"{source.name}, {name}", size)
            objects = isinstance(value, np.ndarray) and value.dtype.hasobject
            target.attrs.create(name, value, dtype=h5py.string_dtype() if objects else None)


def _limit(size: int) -> None:
    """Damaged sizes end this process instead of filling the machine; nothing where the system knows no such limit."""
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        return
    most = used + MEMORY_BYTES + MEMORY_TIMES * size
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    seconds = CPU_SECONDS + size // BYTES_PER_SECOND
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def main() -> None:
    """Copy; what cannot be read ends with its reason and no traceback."""
    source, target = sys.argv[1:]
    size = Path(source).stat().st_size
    _limit(size)
    copy = _Copy(size)
    try:
        with h5py.File(source, "r") as old, h5py.File(target, "w") as new:
            copy.group(old, new)
    # h5py turns what the library says into a dozen kinds, and damaged bytes end in its own Python code too
    except Exception as error:
        sys.exit(f"{str(error) or type(error).__name__}")
    sys.stdout.write(f"{copy.taken}\n")


if __name__ == "__main__":
    main()
