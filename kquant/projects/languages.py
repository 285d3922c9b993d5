"""What the languages of projects call things: types of values, words that they keep for themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    """A language that projects are written in.

    Attributes:
        title: for messages: what reads and writes tensors there.
        types: of the values of a tensor, by their type in the file; what is not among them cannot be handed over.
        reserved: words that name nothing of the user's.
        camel: values are called `thisOne`, and not `this_one`.
    """

    title: str
    types: Mapping[str, str]
    reserved: frozenset[str]
    camel: bool = False


# C11, C++17 and the Arduino core.
_C = (
    "alignas alignof and asm auto bitand bitor bool break case catch char class compl const constexpr continue "
    "decltype default delete do double else enum explicit export extern false final float for friend goto if "
    "import inline int long module mutable namespace new noexcept not nullptr operator or override private "
    "protected public register restrict return short signed sizeof static struct switch template this throw true "
    "try typedef typeid typename union unsigned using virtual void volatile wchar_t while xor byte word boolean "
    "setup loop main errno stdin stdout stderr linux unix"
)
# https://kotlinlang.org/docs/keyword-reference.html, hard keywords; those of Java (JLS 17, 3.9), since the namespace of
# an Android module is a package of Java's, too. `compiled`: `CompiledModel` is LiteRT's.
_KOTLIN = (
    "as break class continue do else false for fun if in interface is null object package return super this throw "
    "true try typealias typeof val var when while abstract assert boolean byte case catch char const default double "
    "enum extends final finally float goto implements import instanceof int long native new private protected public "
    "short static strictfp switch synchronized throws transient void volatile compiled"
)
# https://docs.swift.org/swift-book/documentation/the-swift-programming-language/lexicalstructure, without the words
# that are kept in some contexts only.
_SWIFT = (
    "associatedtype borrowing class consuming deinit enum extension fileprivate func import init inout internal let "
    "nonisolated open operator precedencegroup private protocol public rethrows static struct subscript typealias var "
    "break case catch continue default defer do else fallthrough for guard if in repeat return switch throw where "
    "while as await false is nil self super throws true try compiled"
)

LANGUAGES: Mapping[str, Language] = {
    "c": Language(
        title="TensorFlow Lite Micro",
        types={
            "int8": "int8_t",
            "uint8": "uint8_t",
            "int16": "int16_t",
            "int32": "int32_t",
            "int64": "int64_t",
            "float32": "float",
            "bool": "bool",
        },
        reserved=frozenset(_C.split()),
    ),
    # litert/kotlin/.../Model.kt and TensorBuffer.kt of LiteRT (f674577, 2026-08-21): there is a writeInt8, which copies
    # bytes whatever their sign (litert_tensor_buffer.h, Write), and nothing for 16 bits.
    "kotlin": Language(
        title="LiteRT's Kotlin API",
        types={
            "int8": "Byte",
            "uint8": "Byte",
            "int32": "Int",
            "int64": "Long",
            "float32": "Float",
            "bool": "Boolean",
        },
        reserved=frozenset(_KOTLIN.split()),
        camel=True,
    ),
    # litert/swift/Sources/TensorBuffer.swift of the same: `write<T>` and `read<T>` copy bytes.
    "swift": Language(
        title="LiteRT's Swift API",
        types={
            "int8": "Int8",
            "uint8": "UInt8",
            "int16": "Int16",
            "int32": "Int32",
            "int64": "Int64",
            "float32": "Float",
            "bool": "Bool",
        },
        reserved=frozenset(_SWIFT.split()),
        camel=True,
    ),
}
