"""The list of supported layers, read off the rules: `python -m kquant.report.layers > docs/layers.md`."""

from __future__ import annotations

from kquant.ops import FAMILIES, passive
from kquant.ops.rule import Rule

HEAD = """# Supported layers

Generated from the rules in `kquant/ops` by `make docs`. Subclassed models, nested models and custom layers whose `call`
is made of these layers and operations unfold into them. Targets differ in the operators that they have:
`kquant check MODEL.keras --target tflm` says what becomes of each layer of a model, and refuses the rest by name.
"""


def markdown() -> str:
    """One table for each family: Keras layers and operations, and the operators that they become."""
    parts = [HEAD]
    for family in FAMILIES:
        summary = (family.__doc__ or "").strip().splitlines()[0]
        rows: dict[str, list[Rule]] = {}
        for rule in family.RULES:
            public = [f"`{cls.__name__}`" for cls in rule.layers if cls.__module__.startswith("keras")]
            for name in (*public, *(f"`ops.{operation}`" for operation in rule.operations)):
                rows.setdefault(name, []).append(rule)
        gone = "nothing in the file" if family is passive else ""
        lines = [f"| {name} | {gone or _becomes(rules)} |" for name, rules in rows.items()]
        if not lines:  # only layers of kquant's own, that others expand to
            continue
        title = family.__name__.rsplit(".", 1)[-1]
        head = [f"## {title}", "", summary, "", "| layer | becomes |", "| --- | --- |"]
        parts.append("\n".join([*head, *lines, ""]))
    return "\n".join(parts)


def _becomes(rules: list[Rule]) -> str:
    """Operators of each way to write it; simpler layers where a rule explains it by those."""
    found = [", ".join(rule.operators) for rule in rules if rule.operators]
    if any(rule.expand is not None for rule in rules):
        found.append("simpler layers")
    return "; or ".join(dict.fromkeys(found))


if __name__ == "__main__":
    print(markdown(), end="")
