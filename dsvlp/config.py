"""Strict TOML: load with at most one `base`, override by `key=value`, refuse what nobody asked for.

Precedence: default < base < file < command line. TOML because YAML reads `1e-4` as a string and
`no` as false. Torch-free, so that a login node can check a recipe in a fraction of a second.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from dsvlp.errors import RecipeError

RECIPES = Path(__file__).parent / "recipes"


class Strict(BaseModel):
    """Base of every table of a recipe: frozen, strictly typed, unknown keys refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )


S = TypeVar("S", bound=Strict)


def recipe_path(name: str) -> Path:
    """Returns the file of a recipe: a path to a `.toml`, or the name of one that ships with the package."""
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise RecipeError(f"there is no recipe file {name!r}", "a .toml file", "Check the path")
        return path
    path = RECIPES / f"{name}.toml"
    if not path.is_file():
        names = sorted(p.stem for p in RECIPES.glob("*.toml"))
        near = difflib.get_close_matches(name, names, 1)
        raise RecipeError(
            f"there is no recipe {name!r}",
            f"one of {', '.join(names)}, or a path ending in .toml",
            f"Did you mean {near[0]!r}?" if near else "`dsvlp recipes` lists them",
        )
    return path


def read_toml(name: str) -> dict[str, Any]:
    """Returns a recipe's tables with its `base` merged underneath. A base has no base of its own."""
    path = recipe_path(name)
    tables = _parse(path)
    base_name = tables.pop("base", None)
    if base_name is None:
        return tables
    if not isinstance(base_name, str):
        raise RecipeError(f"{path}: base = {base_name!r}", "the name or path of one recipe")
    relative = path.parent / base_name
    base = _parse(relative if relative.is_file() else recipe_path(base_name))
    if "base" in base:
        raise RecipeError(f"{path}: its base {base_name!r} has a base of its own", "at most one level")
    return merge(base, tables)


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not TOML: {error}", "a recipe in TOML") from error


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Returns `under` with `over` laid on top, table by table; `false` removes an optional table."""
    out = dict(under)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(out.get(key), dict):
            same_kind = all(value.get(k, out[key].get(k)) == out[key].get(k) for k in ("kind", "system"))
            out[key] = merge(out[key], value) if same_kind else value
        elif value is False and isinstance(out.get(key), dict):
            del out[key]
        else:
            out[key] = value
    return out


def parse_override(text: str) -> dict[str, Any]:
    """Returns nested tables of one `a.b.c=value`; the value is TOML, a bare word is a string."""
    key, equals, raw = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"the argument {text!r} is not key=value", "e.g. optimizer.lr=1e-4")
    try:
        value = tomllib.loads(f"v = {raw.strip()}")["v"]
    except tomllib.TOMLDecodeError:
        value = raw.strip()
    for part in reversed(key.strip().split(".")):
        value = {part: value}
    return value  # type: ignore[no-any-return]


def load(model: type[S], name: str, overrides: tuple[str, ...] | list[str] = ()) -> S:
    """Returns the validated recipe.

    Raises:
        RecipeError: names every wrong key with its value, what was expected and the nearest valid key.
    """
    tables = read_toml(name)
    for text in overrides:
        tables = merge(tables, parse_override(text))
    return validate(model, tables, name)


def validate(model: type[S], tables: dict[str, Any], where: str) -> S:
    """Returns `model` built of TOML or JSON tables; raises `RecipeError` in words of ours."""
    try:
        # JSON mode: a strict float takes 1, a tuple takes a list, and nothing else is converted. What
        # JSON has no word for (TOML's dates and times) goes in as its text.
        return model.model_validate_json(json.dumps(tables, default=str))
    except ValidationError as error:
        lines = [_explain(model, detail) for detail in error.errors()]
        raise RecipeError(
            f"recipe {where}: " + "; ".join(lines), fix="`dsvlp recipes --keys` lists all keys"
        ) from error


def _explain(model: type[BaseModel], detail: ErrorDetails) -> str:
    path = [str(part) for part in detail["loc"]]
    key = ".".join(path)
    if detail["type"] == "extra_forbidden":
        valid = _siblings(model, path)
        near = difflib.get_close_matches(path[-1], [v.split(".")[-1] for v in valid], 1, 0.5)
        hint = f", did you mean {near[0]!r}?" if near else f", valid keys: {', '.join(sorted(valid))}"
        return f"unknown key {key!r}{hint}"
    if detail["type"] == "missing":
        return f"the key {key!r} is missing"
    if detail["type"] == "value_error":
        return (f"{key}: " if key else "") + detail["msg"].removeprefix("Value error, ")
    return f"{key or 'the whole'} = {detail['input']!r}: {detail['msg'][0].lower() + detail['msg'][1:]}"


def _siblings(model: type[BaseModel], path: list[str]) -> list[str]:
    """Returns the valid keys of the table that holds the last part of `path`."""
    schema = model.model_json_schema()
    tables = [schema]
    for part in path[:-1]:
        tables = [t for table in tables for t in _descend(schema, table, part)]
    return sorted({key for table in tables for key in table.get("properties", {})})


def _descend(schema: dict[str, Any], table: dict[str, Any], part: str) -> list[dict[str, Any]]:
    def resolve(node: dict[str, Any]) -> list[dict[str, Any]]:
        if "$ref" in node:
            return [schema["$defs"][node["$ref"].rsplit("/", 1)[1]]]
        options = node.get("anyOf", []) + node.get("oneOf", [])
        return [t for option in options for t in resolve(option)] or [node]

    if part in table.get("properties", {}):
        return resolve(table["properties"][part])
    if "items" in table:  # a list: `part` is the index
        return resolve(table["items"])
    kinds = [table.get("properties", {}).get(k, {}).get("const") for k in ("kind", "system")]
    return [table] if part in kinds else []  # a discriminator's tag in the error's path


def dump(recipe: Strict) -> dict[str, Any]:
    """Returns the resolved recipe as JSON tables; `validate` reads it back."""
    return recipe.model_dump(mode="json")


def digest(recipe: Strict) -> str:
    """Returns the first 12 hexadecimal digits of the SHA-256 of the resolved recipe."""
    text = json.dumps(dump(recipe), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Returns one line "key: old -> new" for each leaf that differs between two resolved recipes."""
    lines: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {json.dumps(a)} -> {json.dumps(b)}")
    return lines
