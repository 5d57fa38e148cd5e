"""Reading a recipe file: YAML in, or one error that says everything that is wrong, by key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ValidationError

Recipe = TypeVar("Recipe", bound=BaseModel)


class RecipeError(ValueError):
    """A recipe file that cannot be used; names the file and the key, and the remedy."""


def _module(name: str) -> str:
    if not re.fullmatch(r"recipes(\.\w+)+", name):
        raise ValueError(f"expected a module such as recipes.fsdd.train, found {name!r}")
    return name


Module = Annotated[str, AfterValidator(_module)]
"""A module of the repository's recipes: a recipe file has nothing else run."""

KINDS = {"corpus": "speech", "users": "photos"}
"""The key that only a recipe of this kind has."""


def kind_of_recipe(path: Path) -> str:
    """ "speech" or "photos", by the keys of a recipe file; raises RecipeError for neither."""
    content = read_yaml(path, "model: openai/whisper-tiny.en")
    found = [kind for key, kind in KINDS.items() if key in content]
    if len(found) == 1:
        return found[0]
    hints = (near for name in content if (near := nearest(str(name), KINDS)))
    raise RecipeError(
        f"{path}: expected either the key corpus (a recipe for speech) or the key users (one for "
        f"photos), found {'both' if found else 'neither'}{next(hints, '')}"
    )


def read_yaml(path: Path, example: str) -> dict[str, Any]:
    """The keys and values of a YAML file; raises RecipeError when there are none to read."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path} does not exist: expected a recipe file (YAML)") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path} is no YAML file that can be read: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(
            f"{path}: expected keys and values such as `{example}`, found {type(content).__name__}"
        )
    return content


def validated(
    recipe: type[Recipe],
    content: Mapping[str, Any],
    where: str,
    sections: Mapping[str, type[BaseModel]],
) -> Recipe:
    """The recipe that `content` describes; raises RecipeError with a line a mistake.

    where: the file's name, for the errors. sections: the settings below a top-level key.
    """
    try:
        return recipe.model_validate(content)
    except ValidationError as error:
        lines = dict.fromkeys(_explained(error, recipe, sections))
        raise RecipeError("\n".join(f"{where}: {line}" for line in lines)) from error


def distinct(values: list[Any]) -> list[Any]:
    """The same values; raises ValueError for one that is there more than once."""
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"expected {value!r} once, found it {values.count(value)} times")
    return values


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at the name that was probably meant, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _explained(
    error: ValidationError, recipe: type[BaseModel], sections: Mapping[str, type[BaseModel]]
) -> Iterator[str]:
    for each in error.errors():
        place = [str(part) for part in each["loc"]]
        if place[:1] == ["speakers"] and each["type"] != "value_error":
            yield f"speakers: expected all, or a list of names, found {each['input']!r}"
            continue
        key = f"{'.'.join(place)}: " if place else ""
        if each["type"] == "extra_forbidden":
            section = sections.get(place[0], recipe) if len(place) > 1 else recipe
            known = list(section.model_fields)
            hint = nearest(place[-1], known)
            yield f"{key}no such key{hint}; the keys are {', '.join(known)}"
        elif each["type"] == "missing":
            yield f"{key}expected this key, found none"
        elif each["type"] == "model_type" and place[0] in sections:
            known = list(sections[place[0]].model_fields)
            yield f"{key}expected keys of its own ({', '.join(known)}), found {each['input']!r}"
        elif each["type"] == "value_error":
            yield f"{key}{each['ctx']['error']}"
        else:
            expected = each["msg"].removeprefix("Input should be ")
            yield f"{key}expected {expected}, found {each['input']!r}"
