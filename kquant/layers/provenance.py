"""`Provenance`: what the layers of a quantized model remember of how it was made.

    {"recipe": "int8", "target": "tflm", "float": "stem head"}   # in each layer's config, so that it is saved
        ->  layer.origin  ->  origin.load_target(), origin.load_recipe(), origin.floats

Everything that export, analysis and inference ask of a model's past is read here, and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kquant import targets
from kquant.recipe import recipe as recipes
from kquant.recipe.recipe import Recipe
from kquant.targets import Target

KEYS = ("recipe", "target", "settings", "skip", "float")  # in configs, also of files that were saved
ALL = "*"  # in place of names: the recipe leaves every activation float


@dataclass(frozen=True)
class Provenance:
    """How a quantized model was made.

    Attributes:
        recipe: its name; empty where no verb made the model.
        target: its name; empty likewise.
        settings: the recipe as JSON, where it is none that ships; else empty.
        skips: layers that the recipe skips: float in the model, and nowhere else.
        floats: layers that it leaves float, in the file too; `ALL` for all.
    """

    recipe: str = ""
    target: str = ""
    settings: str = ""
    skips: tuple[str, ...] = ()
    floats: tuple[str, ...] = ()

    @classmethod
    def of(cls, recipe: Recipe, target: Target, skips: Iterable[str], floats: Iterable[str]) -> Provenance:
        """Of a model that is made now; the whole recipe where its name does not tell it.

        Args:
            recipe: it is made with.
            target: it is made for.
            skips: layers that the recipe skips.
            floats: those that it leaves float; with a recipe that leaves activations float, all of them.
        """
        ships = recipe.name in recipes.names() and recipes.load(recipe.name) == recipe
        settings = "" if ships else recipe.model_dump_json(by_alias=True, exclude_defaults=True)
        left = sorted(set(floats))
        left = [ALL] if left and recipe.mode != "static" else left
        return cls(recipe.name, target.name, settings, tuple(sorted(set(skips))), tuple(left))

    @classmethod
    def read(cls, config: Mapping[str, str] | None) -> Provenance:
        """From a layer's config, also one that an earlier kquant saved.

        Example:
            >>> Provenance.read({"recipe": "int8", "target": "tflm", "float": "a b"}).floats
            ('a', 'b')
        """
        given = dict(config or {})
        recipe, target, settings, skips, floats = (given.get(key, "") for key in KEYS)
        # names in a rewritten model have no spaces (`graph.rewrite` sees to that)
        return cls(recipe, target, settings, tuple(skips.split()), tuple(floats.split()))

    def to_config(self) -> dict[str, str]:
        """Plain data, without what is empty.

        Example:
            >>> Provenance("int8", "tflm", floats=("a", "b")).to_config()
            {'recipe': 'int8', 'target': 'tflm', 'float': 'a b'}
        """
        texts = (self.recipe, self.target, self.settings, " ".join(self.skips), " ".join(self.floats))
        return {key: text for key, text in zip(KEYS, texts, strict=True) if text}

    def load_target(self) -> Target:
        """The target that the model was made for.

        Raises:
            ValueError: see `kquant.targets.load`: the model was quantized where that target had a file.
        """
        return targets.load(self.target or targets.DEFAULT)

    def load_recipe(self) -> Recipe | None:
        """The recipe that the model was made with; None for one of an older kquant that did not ship."""
        if self.settings:
            return Recipe.model_validate(json.loads(self.settings))
        return recipes.load(self.recipe) if self.recipe in recipes.names() else None


NOWHERE = Provenance()  # of layers that no verb made


def provenance_of(layers: Iterable[Any]) -> Provenance:
    """That of the model which these layers are of: all that a verb made remember the same."""
    return next((origin for x in layers if (origin := getattr(x, "origin", NOWHERE)) != NOWHERE), NOWHERE)
