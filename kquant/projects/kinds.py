"""The kinds of projects as data: `kinds.toml`, and which of them a command means."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kquant import targets
from kquant.core.messages import check_known

KINDS = "kinds.toml"


class Kind(BaseModel):
    """A kind of project.

    Attributes:
        title: for messages.
        known_as: boards, chips and phones that it is for, in lower case: for who names one of these instead.
        target: for which its file must be.
        runtime: that gives the golden vectors.
        runs_on: the same in words.
        language: of its sources, see `languages`.
        about: its file tells tools of Android and MediaPipe of labels and normalization, where there are some.
        arena: a program gives the interpreter its memory, and registers the operators.
        static_memory: how TF_LITE_STATIC_MEMORY stands where its TFLM comes from; "" for other runtimes.
        first_include: the header that a program includes before all others; "" where none has to be.
        cpp: how its own sources in C++ end.
        install: the template that says how a program gets the project; "" where its README says all.
        files: where a file lies in the project -> the template that it is made of. `{id}` is the model's name in the
            language, `{type}` that of its class, `{header}` what a program in C includes.
        debug: likewise, of the model whose outputs are those of every layer; none where no template asks for it.
        answers: likewise, of what reads the outputs, by the argument of `bundle` that asks for it; none where there is
            no such template in the language.
        assets: where a file lies in the project -> what of the model it is: "model", its "golden" vectors as JSON,
            or what a compiler made of it, "compiled", where one did.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    title: str
    known_as: tuple[str, ...] = Field(default=(), strict=False)
    target: str
    runtime: str
    runs_on: str
    language: str
    about: bool = False
    arena: bool
    static_memory: str = ""
    first_include: str = ""
    cpp: str = ".cc"
    install: str = ""
    files: Mapping[str, str]
    debug: Mapping[str, str]
    answers: Mapping[str, Mapping[str, str]]
    assets: Mapping[str, Literal["model", "golden", "compiled"]]


@cache
def kinds() -> Mapping[str, Kind]:
    """All kinds of projects, by name."""
    text = (resources.files("kquant.projects") / KINDS).read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    shared: dict[str, Any] = tables.pop("shared")
    return {name: Kind(**_with_shared(table, shared)) for name, table in tables.items()}


def _with_shared(table: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    """Its own files, and those of the groups that it names, each group in a folder of the kind's choice."""
    files, debug = dict(table.get("files", {})), dict(table.get("debug", {}))
    for group, folder in table.pop("groups", {}).items():
        named = {re.sub(r"\.cc$", table.get("cpp", ".cc"), name): template for name, template in shared[group].items()}
        files |= {f"{folder}{name}": template for name, template in named.items()}
        debug |= {f"{folder}debug/{name}": template for name, template in named.items()}
    folder = table.pop("answers", None)
    answers = {
        asked: {f"{folder}{name}": template for name, template in group.items()}
        for asked, group in shared["answers"].items()
        if folder is not None
    }
    return {**table, "files": files, "debug": debug, "answers": answers}


def kind_of(name: str) -> Kind:
    """A kind by its name.

    Raises:
        ValueError: no such kind, with the nearest.
    """
    check_known(f"bundle: kind '{name}' does not exist", name, kinds())
    return kinds()[name]


def kind_and_target(kind: str | None, target: str | None) -> tuple[str, str]:
    """Which project is meant, and the target that its model is quantized for.

    The target may be the name of a kind of project, which is that kind with its own target; without a kind, a target
    means the kind that is called like an interpreter of its.

    Args:
        kind: of project, or None.
        target: or the name of a kind, or None.

    Raises:
        ValueError: no such kind or target, two kinds, or a target for which there are several.

    Example:
        >>> kind_and_target(None, "android"), kind_and_target("zephyr", None), kind_and_target(None, None)
        (('android', 'litert'), ('zephyr', 'tflm'), ('tflm', 'tflm'))
    """
    if kind is not None:
        own = kind_of(kind).target
        if target in kinds() and target != kind and target not in targets.names():
            raise ValueError(f"export: --kind {kind} and --target {target} are two kinds of projects; give one.")
        return kind, own if target is None or target == kind else target
    if target is None:
        target = next(iter(kinds()))
    if target in kinds():
        return target, kinds()[target].target
    meant = next((name for name, one in kinds().items() if target.lower() in one.known_as), None)
    advice = targets.advice(target) if meant is None else f" For {target.lower()}, take {meant!r}."
    said = f"export: target '{target}' does not exist.{advice}".removesuffix(".")
    check_known(said, target, list(dict.fromkeys([*targets.names(), *kinds()])))  # tflm is one of both
    runtimes = targets.load(target).runtimes
    fitting = [name for name, one in kinds().items() if one.runtime in runtimes]
    named = next((name for name in fitting if name in runtimes), None)
    if named is None:
        if not fitting:
            raise ValueError(f"export: no kind of project has a runtime of target '{target}': {', '.join(runtimes)}.")
        raise ValueError(
            f"export: for target '{target}' there are several kinds of projects, {' or '.join(fitting)}: give --kind."
        )
    return named, target
