"""Tables of a recipe for what is done to kernels: each is a class in a file `*_section.py` of this folder.

    class Clipping(Section):
        key: ClassVar[str] = "clipping"         # the table [clipping]; `clipping = {...}` in a rule
        reach: float = Field(default=0.5, gt=0.0)

The file is found and read with the others; nothing names it but the file in `masking/` that carries it out, by a
`METHOD`.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import ClassVar

from kquant import recipe as folder
from kquant.recipe.training_section import Strict


class Section(Strict):
    """The settings of one method, by the names of its verb's arguments.

    Attributes:
        key: name of the table.
        place: methods act in this order.
    """

    key: ClassVar[str]
    place: ClassVar[int] = 100


@cache
def sections() -> dict[str, type[Section]]:
    """Key -> section, in the order in which their methods act.

    Example:
        >>> list(sections())
        ['pruning', 'clustering']
    """
    # found by the names of files, so that a new section is a new file and no entry anywhere
    names = [file.name for file in pkgutil.iter_modules(folder.__path__) if file.name.endswith("_section")]
    modules = [importlib.import_module(f"{folder.__name__}.{name}") for name in names]
    # of these files alone: a subclass of Section that is somewhere else is nobody's section
    held = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    classes = {value for value in held if issubclass(value, Section) and value is not Section}
    return {section.key: section for section in sorted(classes, key=lambda s: (s.place, s.key))}
