"""Recipes: how a model is to be quantized, as strict TOML or as the same Python objects.

name = "int8"
[activations]
bits = 8
[[rules]]                  # the last rule that matches a layer wins
layer = "head_*"           # name pattern; or  type = "Dense"; or  position = "first" | "last"
weights = { per_axis = false }
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import tomli_w  # pyright: ignore[reportMissingImports]
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from kquant.core.float_formats import FLOAT_FORMATS
from kquant.core.messages import did_you_mean, warn
from kquant.core.origin import fits
from kquant.core.quant_spec import FloatKind, Kind, QuantSpec
from kquant.files.untrusted import MOST_SETTINGS_BYTES, check_plain, parse_toml, read_json, read_text
from kquant.recipe import litert_quantizer
from kquant.recipe.section import Section, sections
from kquant.recipe.training_section import Grids, Oscillations, Progressive, Robust, Strict, Training, idle, plain


class Activations(Strict):
    """Grid and observer of activations; more than 8 bits are symmetric, as the 16-bit kernels want them.

    `block` is for floating-point kinds: so many values along the last axis share a power of two, made of them at each
    call. Nothing is observed for it.

    `heads` says what a join for an output of the model does with 8-bit heads (scores, boxes, landmarks): "apart" gives
    it 16 bits, so that each keeps its own grid, "joined" one grid of 8 bits for all.
    """

    bits: int = Field(default=8, ge=2, le=16)
    symmetric: bool = False
    signed: bool = True
    kind: Literal["uniform", "power-of-two", FloatKind] = "uniform"
    block: int = Field(default=0, ge=0)
    observer: str = "percentile"
    heads: Literal["apart", "joined"] = "apart"

    def spec(self, bits: int | None = None) -> QuantSpec:
        """The grid, at another width where `bits` says so."""
        bits = bits or self.bits
        symmetric = self.symmetric or bits > 8 or self.kind in FLOAT_FORMATS
        return QuantSpec(bits, symmetric, signed=self.signed, kind=self.kind, block=self.block)


class WeightGrid(Strict):
    """Grid of kernels: symmetric, without its lowest code; "float16" stores them so instead.

    `unpacked_bits` is the width of those layers whose 4-bit codes the target would keep in 8 bits; None leaves it at
    `bits`.
    """

    bits: int = Field(default=8, ge=2, le=8)
    unpacked_bits: int | None = Field(default=None, ge=2, le=8)
    symmetric: Literal[True] = True
    per_axis: bool = True
    kind: Kind = "uniform"
    block: int = Field(default=0, ge=0)
    dtype: Literal["int", "float16"] = "int"
    observer: str = "minmax"

    def spec(self) -> QuantSpec:
        """The grid."""
        return QuantSpec(
            self.bits, symmetric=True, narrow=True, per_axis=self.per_axis, kind=self.kind, block=self.block
        )


# What weights of up to 4 bits are for: packed wherever the target takes them so, or only where that costs no time.
Prefer = Literal["bytes", "latency"]

OWN = "custom"  # the name of a recipe that says none

# The tables that a rule may change for its layers.
SECTIONS: dict[str, type[BaseModel]] = {
    "activations": Activations,
    "weights": WeightGrid,
    "training": Training,
    **sections(),
}
OneSection = TypeVar("OneSection", bound=Section)

# What the sections add, by their keys: a table of the recipe each, and one of every rule.
# For a type checker plain tables: it cannot follow classes that are made when the package loads.
if TYPE_CHECKING:
    RecipeTables = RuleTables = Strict
else:
    RecipeTables = create_model(
        "RecipeTables", __base__=Strict, **{key: (section | None, None) for key, section in sections().items()}
    )
    RuleTables = create_model(
        "RuleTables", __base__=Strict, **{key: (dict[str, Any], Field(default_factory=dict)) for key in sections()}
    )


class Step(BaseModel):
    """One thing to do to the quantized model before export: a name, or a table of a name and its options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, given: Any) -> Any:
        # most steps need no options, so that a list of names will do
        return {"name": given} if isinstance(given, str) else given

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the step beside the model and the data."""
        return dict(self.model_extra or {})


class LayerRule(RuleTables):
    """Settings for the layers that match all of `layer`, `type` and `position` that are given."""

    layer: str | None = None
    type: str | None = None
    position: Literal["first", "last"] | None = None
    activations: dict[str, Any] = Field(default_factory=dict)
    weights: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    prefer: Prefer | None = None
    skip: bool | None = None
    stays_float: bool | None = Field(default=None, alias="float")

    @model_validator(mode="after")
    def _has_condition(self) -> LayerRule:
        if not (self.layer or self.type or self.position):
            raise ValueError("a rule needs layer, type or position")
        return self

    @field_validator(*SECTIONS)
    @classmethod
    def _known_settings(cls, given: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        section = SECTIONS[str(info.field_name)]
        if "batch_norm" in given:
            raise ValueError("training.batch_norm holds for the whole recipe; give it in [training]")
        try:
            # the few keys of a rule on defaults: each is checked as if it stood in the recipe's own table
            section(**given)
        except ValidationError as error:
            raise ValueError("; ".join(_explain(e, section) for e in error.errors())) from None
        return plain(given)

    def table(self, section: type[Section]) -> dict[str, Any]:
        """What the rule changes of a section."""
        return getattr(self, section.key)

    def matches(self, name: str, kind: str, position: str | None) -> bool:
        """True where the rule speaks for this layer."""
        return (
            (self.layer is None or fits(name, self.layer))
            and (self.type is None or fits(kind, self.type))
            and (self.position is None or self.position == position)
        )


class Settings(NamedTuple):
    """What a recipe says of one layer.

    Attributes:
        activations, weights: grids.
        skip: left float in the model only; `export` refuses it.
        stays_float: left float in the file too.
        training: how it trains.
        prefer: where weights of up to 4 bits are packed.
    """

    activations: Activations
    weights: WeightGrid
    skip: bool
    stays_float: bool
    training: Training
    prefer: Prefer = "bytes"


class Recipe(RecipeTables):
    """A whole recipe.

    Attributes:
        name: what reports call it; any.
        steps: what `kquant.compress` does between `quantize` and `export`, in order.
        mode: "static" quantizes activations with calibrated ranges; the two others leave them float: "dynamic" has the
            kernels quantize them as they run, "weight-only" has them compute in float with weights stored small.
        prefer: "bytes" packs weights of up to 4 bits wherever the target takes them so; "latency" gives those layers 8
            bits whose operator the target's runtime computes slower with packed weights.

    Example:
        >>> recipe = Recipe(name="mine", rules=[{"type": "Dense", "weights": {"per_axis": False}}])
        >>> recipe.settings([("head", "Dense")], None)[1].per_axis
        False
    """

    name: str = OWN
    title: str = ""
    fold: bool = True
    mode: Literal["static", "dynamic", "weight-only"] = "static"
    prefer: Prefer = "bytes"
    activations: Activations = Activations()
    weights: WeightGrid = WeightGrid()
    training: Training = Training()
    steps: tuple[Step, ...] = Field((Step(name="calibrate"),), strict=False)  # a list will do, as TOML has no tuples
    rules: tuple[LayerRule, ...] = Field(default=(), strict=False)

    def __repr__(self) -> str:
        bits = f"{self.weights.bits}-bit weights, {self.activations.bits}-bit activations"
        rules = f", {len(self.rules)} rules" if self.rules else ""
        return f"Recipe({self.name!r}, {bits}{rules}, steps: {', '.join(s.name for s in self.steps) or 'none'})"

    @model_validator(mode="after")
    def _may_act(self) -> Recipe:
        changes = [table for rule in self.rules for table in (rule.activations, rule.weights)]
        # the narrowest grid anywhere: what starts wider than that has somewhere to go
        widths = [self.activations.bits, self.weights.bits, self.weights.unpacked_bits]
        widths += [table.get(key) for table in changes for key in ("bits", "unpacked_bits")]
        tables = [self.training.model_dump(by_alias=True), *(rule.training for rule in self.rules)]
        useless = idle(tables, min(width for width in widths if width), self._grids())
        if useless:
            raise ValueError(f"{useless}. Change it, or leave it out")
        return self

    def _grids(self) -> Grids:
        grids = [self.weights.model_dump(), *(rule.weights for rule in self.rules)]
        told = {key: {grid[key] for grid in grids if key in grid} for key in self.weights.model_dump()}
        # "latency" gives layers 8 bits, see above
        wide = {8} if "latency" in (self.prefer, *(rule.prefer for rule in self.rules)) else set[int]()
        # rules add up on a layer: each key is looked at by itself, so that nothing is refused that some layer may do
        specs = [QuantSpec(kind=kind) for kind in told["kind"] if kind not in FLOAT_FORMATS]
        codes = any(spec.has_codes for spec in specs) and 0 in told["block"] and "int" in told["dtype"]
        bits = {width for width in told["bits"] | told["unpacked_bits"] | wide if width}
        return Grids(bits, True in told["per_axis"], codes, activations=self.mode == "static")

    def plain(self) -> dict[str, Any]:
        """All of it as JSON takes it, defaults too: equal for equal recipes, and `load` makes one of it again.

        Example:
            >>> recipe = Recipe(name="mine", prefer="latency")
            >>> recipe.plain()["prefer"], Recipe.model_validate(recipe.plain()) == recipe
            ('latency', True)
        """
        return self.model_dump(mode="json", by_alias=True)

    def settings(self, names: Sequence[tuple[str, str]], position: str | None) -> Settings:
        """What holds for one layer, given as (name, class) under which it is known; the last matching rule wins."""
        so_far = Settings(self.activations, self.weights, False, self.mode != "static", self.training, self.prefer)
        for rule in self.rules:
            if any(rule.matches(name, kind, position) for name, kind in names):
                # `model_copy` checks nothing: `_known_settings` has
                activations = so_far.activations.model_copy(update=rule.activations)
                weights = so_far.weights.model_copy(update=rule.weights)
                skip = so_far.skip if rule.skip is None else rule.skip
                # activations of a recipe that is not static are float, whatever a rule says
                stays = so_far.stays_float if rule.stays_float is None else rule.stays_float or self.mode != "static"
                # tables inside this one (progressive, oscillations) come as dicts: validation makes them what they are
                training = Training.model_validate({**so_far.training.model_dump(by_alias=True), **rule.training})
                so_far = Settings(activations, weights, skip, stays, training, rule.prefer or so_far.prefer)
        return so_far

    def section(self, section: type[OneSection]) -> OneSection | None:
        """A table of a method; None where the recipe has none."""
        return getattr(self, section.key)

    def section_of(
        self, section: type[OneSection], names: Sequence[tuple[str, str]], position: str | None
    ) -> OneSection | None:
        """A table of a method as it holds for one layer, named as for `settings`."""
        so_far = self.section(section)
        for rule in self.rules if so_far is not None else ():
            if so_far is not None and rule.table(section) and any(rule.matches(n, kind, position) for n, kind in names):
                so_far = so_far.model_copy(update=rule.table(section))
        return so_far


def names() -> list[str]:
    """The recipes that ship with kquant."""
    return sorted(p.name.removesuffix(".toml") for p in _folder().iterdir() if p.name.endswith(".toml"))


def load(recipe: str | Path | dict[str, Any] | Recipe) -> Recipe:
    """A recipe by name, file, plain data, or as it is.

    One that says no name has that of its file; plain data and `Recipe` are called "custom".

    Raises:
        ValueError: unknown name or key, or a wrong value; names the nearest one that exists.

    Example:
        >>> load("int8").activations.bits
        8
    """
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, dict):
        return _parse(recipe, "recipe")
    given: Any = recipe  # whatever the annotation says
    if not isinstance(given, str | Path):
        raise ValueError(f"recipe: expected a name, a .toml or .json file, a dict or a Recipe. Received: {given!r}.")
    path = Path(given)
    # of LiteRT Quantizer: kquant's own recipes are TOML
    if path.suffix == ".json":
        return recipe_from_aeq(path)
    if path.suffix == ".toml":
        if not path.is_file():
            raise ValueError(f"recipe: no file {path}.")
        # lines that a report shows make a file of their own, whose name is the recipe's
        given = {"name": path.stem, **parse_toml(read_text(path, str(path), MOST_SETTINGS_BYTES), str(path))}
        return _parse(given, str(path))
    if str(recipe) not in names():
        hint = did_you_mean(recipe, names())
        raise ValueError(
            f"recipe: no recipe '{recipe}'.{hint} There are: {', '.join(names())}; or give a .toml or .json file."
        )
    return _read((_folder() / f"{recipe}.toml").read_text("utf-8"), f"{recipe}.toml")


def recipe_from_aeq(recipe: str | Path | list[dict[str, Any]], name: str | None = None) -> Recipe:
    """A recipe of LiteRT Quantizer (once AI Edge Quantizer) as kquant's own.

    Args:
        recipe: path of its JSON file, or its entries.
        name: of the new recipe; the file's name by default.

    Returns:
        The recipe. Its observer is "minmax", which is that tool's calibration.

    Raises:
        ValueError: no such file, or a key or value without counterpart, with the reason.

    Example:
        >>> entries = kquant.recipe_to_aeq(kquant.Recipe(name="mine", activations={"observer": "minmax"}))
        >>> kquant.recipe_from_aeq(entries).weights.per_axis
        True
    """
    where, entries = "recipe", recipe
    if isinstance(recipe, str | Path):
        where = str(recipe)
        if not Path(recipe).is_file():
            raise ValueError(f"recipe: no file {recipe}.")
        entries = read_json(recipe, where)
        check_plain(entries, where)
        name = name or Path(recipe).stem
    return _parse(litert_quantizer.read(entries, name or "aeq", where), where)


def recipe_to_aeq(recipe: str | Path | dict[str, Any] | Recipe) -> list[dict[str, Any]]:
    """A recipe as LiteRT Quantizer's entries, for `json.dump`.

    What it has no place for is a warning, where the recipe says anything of it: observers, steps and training. Folding
    is a matter of the float model there.

    Args:
        recipe: see `kquant.quantize`.

    Returns:
        Its entries.

    Raises:
        ValueError: a key or value without counterpart, with the reason; a recipe that prunes or clusters.

    Example:
        >>> recipe = kquant.Recipe(name="mine", activations={"observer": "minmax"})
        >>> kquant.recipe_to_aeq(recipe)[0]["op_config"]["weight_tensor_config"]["granularity"]
        'CHANNELWISE'
    """
    chosen = load(recipe)
    where = f"recipe '{chosen.name}'"
    entries = litert_quantizer.write(chosen.model_dump(by_alias=True), where)
    if chosen.prefer != "bytes" or any(rule.prefer for rule in chosen.rules):
        warn(
            f"{where}: prefer: LiteRT Quantizer's recipe has no place for it; that tool decides by itself which "
            "operators have packed 4-bit weights."
        )
    # what is so by default says nothing, and is not lost
    lost = [name for name in ("training", "steps") if getattr(chosen, name) != Recipe.model_fields[name].default]
    lost += ["training of rules"] if any(rule.training for rule in chosen.rules) else []
    if lost:
        warn(
            f"{where}: {', '.join(lost)}: LiteRT Quantizer's recipe has no place for them; its file gets ranges of "
            "calibration and weights rounded to nearest."
        )
    return entries


def recipe_to_toml(recipe: str | Path | dict[str, Any] | Recipe) -> str:
    """A recipe as the text of a TOML file, without what is so by default.

    Args:
        recipe: see `kquant.quantize`.

    Returns:
        The text; `Path("mine.toml").write_text(...)` makes it a recipe for every verb and command.

    Example:
        >>> print(kquant.recipe_to_toml({"name": "mine", "weights": {"bits": 4}}))
        name = "mine"
        <BLANKLINE>
        [weights]
        bits = 4
        <BLANKLINE>
    """
    # TOML has no null, and what is left out is None again when it is read
    said = load(recipe).model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude_none=True)
    return str(tomli_w.dumps(said))  # pyright: ignore[reportUnknownMemberType]


def _folder() -> Any:
    """Inside the wheel `kquant/recipes`; in a checkout the folder beside the package."""
    packaged = resources.files("kquant") / "recipes"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "recipes"


def _read(text: str, where: str) -> Recipe:
    return _parse(parse_toml(text, where), where)


def _parse(data: dict[str, Any], where: str) -> Recipe:
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        # from None: pydantic's own text would follow, with all that was given
        raise ValueError("\n".join(f"{where}: {_explain(e, Recipe)}" for e in error.errors())) from None


def _explain(error: Any, section: type[BaseModel]) -> str:
    """What is wrong with one key of a section."""
    path = ".".join(str(p) for p in error["loc"])
    # a wrong value: pydantic says what it wants
    if error["type"] != "extra_forbidden":
        said = _wanted(error, section) or error["msg"].removeprefix("Value error, ").rstrip(".")
        # a message of ours has told what was received
        if not path and section is Recipe:
            return f"{said}."
        place = path or "the rule"
        told = "Known here" in said or "Received: " in said
        return f"{place}: {said}." if told else f"{place}: {said}. Received: {error['input']!r}."
    known = _keys_at(error["loc"][:-1], section)
    if section is Activations or "activations" in error["loc"]:
        if error["loc"][-1] == "per_axis":
            return (
                f"unknown key '{path}': a tensor of activations has one scale, as kernels read it, or one for each "
                "block (block = 32, floating-point kinds). Leave per_axis out here; weights = { per_axis = ... } is "
                "for weights."
            )
    return f"unknown key '{path}'.{did_you_mean(error['loc'][-1], known)} Known here: {', '.join(known)}."


def _wanted(error: Any, section: type[BaseModel]) -> str:
    """What was expected, where pydantic says less: both ends of what a number may be, and lists by TOML's name."""
    if error["type"] == "tuple_type":
        return "expected a list, like [{ ... }]"
    if error["type"] not in ("greater_than_equal", "less_than_equal"):
        return ""
    named = {**SECTIONS, "rules": LayerRule}
    table = next((named[str(part)] for part in reversed(error["loc"][:-1]) if str(part) in named), section)
    field = table.model_fields.get(str(error["loc"][-1]))
    ends = [
        getattr(limit, end)
        for end in ("ge", "le")
        for limit in (field.metadata if field else ())
        if hasattr(limit, end)
    ]
    return f"expected {ends[0]} to {ends[1]}" if len(ends) == 2 else ""


def _keys_at(loc: tuple[Any, ...], section: type[BaseModel]) -> list[str]:
    tables = {**SECTIONS, "rules": LayerRule, "progressive": Progressive, "robust": Robust}
    tables["oscillations"] = Oscillations
    # the innermost table on the way to the fault: a rule's weights have the keys of weights
    innermost = next((tables[str(part)] for part in reversed(loc) if str(part) in tables), section)
    fields = sorted(innermost.model_fields.items(), key=lambda pair: pair[0] in sections())  # last, as in a recipe
    return [field.alias or name for name, field in fields]
