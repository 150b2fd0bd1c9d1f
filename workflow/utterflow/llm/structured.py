"""Answers that follow a JSON schema: the schema file, the grammar of constrained decoding, the check of answers.

Both back ends decode with llguidance, and write objects and lists as Python's `json.dumps` does (`{"a": 1, "b": [1,
2]}`): free white space would let a model fill its answer with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jsonschema.exceptions import SchemaError, best_match  # type: ignore[import-untyped]
from jsonschema.validators import validator_for  # type: ignore[import-untyped]
from referencing import Registry

from utterflow.errors import UserError
from utterflow.files import read_json

WRITING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def read_schema(path: Path) -> dict[str, Any]:
    """A JSON schema from a file.

    Raises:
        UserError: the file is missing, is not JSON, is not a valid schema, or points to another document.
    """
    schema = read_json(path)
    if not isinstance(schema, dict):
        raise UserError(
            f"a JSON schema is an object, found {type(schema).__name__}",
            where=str(path),
            fix='write for instance {"type": "object", "properties": {"answer": {"type": "string"}}}',
        )
    try:
        validator_for(schema).check_schema(schema)
    except SchemaError as error:
        place = "/".join(str(part) for part in error.absolute_path) or "(whole)"
        raise UserError(f"not a valid JSON schema: {error.message}", where=f"{path}, at {place}") from None
    for place, target in _references(schema, ""):
        if not _is_within(schema, target):
            raise UserError(
                f"$ref {target!r} leads nowhere in this file",
                where=f"{path}, at {place or '(whole)'}",
                fix='define it in the same file, under "$defs", and write "#/$defs/<name>"',
            )
    return schema


def with_writing(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with the way of writing, in llguidance's own keyword."""
    return {**schema, "x-guidance": WRITING}


def grammar_of(schema: Mapping[str, Any], where: str) -> str:
    """The schema as a grammar of llguidance.

    Raises:
        UserError: the schema uses something that constrained decoding does not know.
    """
    from llguidance import LLMatcher

    grammar = LLMatcher.grammar_from_json_schema(with_writing(schema))
    if problem := LLMatcher.validate_grammar(grammar):
        raise UserError(
            f"constrained decoding cannot follow this JSON schema: {problem.strip()}",
            where=where,
            fix="say it in other words of JSON schema, or leave `json_schema` out",
        )
    return grammar


def json_value(text: str, schema: Mapping[str, Any]) -> Any:
    """The answer's value; None where it is not JSON or does not follow the schema."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    validator = validator_for(schema)(schema, registry=Registry())
    return value if validator.is_valid(value) else None


def json_fault(text: str, schema: Mapping[str, Any]) -> str | None:
    """Why the answer's text is not JSON or does not follow the schema; None where it does."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except RecursionError:
        return "not valid JSON: nested too deep"
    except json.JSONDecodeError as error:
        return f"not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
    except ValueError as error:
        return f"not valid JSON: it holds {error}"
    fault = best_match(validator_for(schema)(schema, registry=Registry()).iter_errors(value))
    if fault is None:
        return None
    place = "/".join(str(part) for part in fault.absolute_path) or "(whole)"
    return f"does not follow the JSON schema, at {place}: {str(fault.message)[:300]}"


def _refuse(name: str) -> None:
    raise ValueError(name)


def _references(schema: Any, place: str) -> Iterator[tuple[str, str]]:
    """(place, target) of every $ref."""
    if isinstance(schema, dict):
        for name, item in schema.items():
            if name == "$ref" and isinstance(item, str):
                yield place, item
            else:
                yield from _references(item, f"{place}/{name}".strip("/"))
    elif isinstance(schema, list):
        for index, item in enumerate(schema):
            yield from _references(item, f"{place}/{index}".strip("/"))


def _is_within(schema: Any, target: str) -> bool:
    """Whether a JSON pointer (`#`, `#/$defs/name`) leads to a part of this schema."""
    if not target.startswith("#") or (len(target) > 1 and target[1] != "/"):
        return False
    found = schema
    for part in target[2:].split("/") if len(target) > 1 else []:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and key in found:
            found = found[key]
        elif isinstance(found, list) and key.isdigit() and int(key) < len(found):
            found = found[int(key)]
        else:
            return False
    return True
