"""A `.tflite` file as a C++ array, for firmware that has no file system."""

from __future__ import annotations

from pathlib import Path

from kquant.files.atomic import Outputs
from kquant.projects.names import identifier

BYTES_PER_LINE = 12


def c_array(content: bytes, name: str) -> dict[str, bytes]:
    """Bytes as a C++ array, 16-byte aligned as TFLM asks.

    Args:
        content: of the `.tflite` file.
        name: of the model, which becomes a legal name as in a project.

    Returns:
        Header and source, by the names of their files, `NAME_model.h` and `NAME_model.cc`.

    Example:
        >>> list(c_array(b"abc", "my-net"))
        ['my_net_model.h', 'my_net_model.cc']
    """
    symbol = f"{identifier(name)}_model"
    guard = f"{symbol.upper()}_H_"
    rows = [content[i : i + BYTES_PER_LINE] for i in range(0, len(content), BYTES_PER_LINE)]
    values = "\n".join("    " + " ".join(f"0x{b:02x}," for b in row) for row in rows)
    header = (
        f"#ifndef {guard}\n#define {guard}\n\n// {len(content)} bytes; tflite::GetModel({symbol}) reads them.\n"
        f"extern const unsigned char {symbol}[];\nextern const unsigned int {symbol}_len;\n\n#endif  // {guard}\n"
    )
    source = (
        f'#include "{symbol}.h"\n\nalignas(16) const unsigned char {symbol}[] = {{\n{values}\n}};\n'
        f"const unsigned int {symbol}_len = {len(content)};\n"
    )
    return {f"{symbol}.h": header.encode(), f"{symbol}.cc": source.encode()}


def save_c_array(content: bytes, folder: str | Path, name: str) -> tuple[Path, Path]:
    """Write bytes as a C++ array, see `c_array`.

    Args:
        content: of the `.tflite` file.
        folder: where to, an existing folder.
        name: of the model, which becomes a legal name as in a project.

    Returns:
        Paths of the header and the source, `NAME_model.h` and `NAME_model.cc`.

    Example:
        >>> [path.name for path in save_c_array(b"abc", ".", "my-net")]
        ['my_net_model.h', 'my_net_model.cc']
    """
    texts = {Path(folder) / file: text for file, text in c_array(content, name).items()}
    with Outputs(list(texts), "save_c_array") as new:
        for path, text in texts.items():
            new.write(path, text)
    header, source = texts
    return header, source
