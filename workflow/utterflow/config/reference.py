"""What the config models say about themselves: JSON schema, reference page, help on one key.

Everything here is read off the models' JSON schema, so nothing about a key is written twice.
`python -m utterflow.config.reference` writes `config/schema.json` and `config/README.md`; with `--check` it
fails where they are out of date.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic.json_schema import GenerateJsonSchema

from utterflow.config.base import NAME_PATTERN
from utterflow.config.models import Config
from utterflow.errors import UserError
from utterflow.files import atomic_writer

CONFIG_FOLDER = Path(__file__).resolve().parents[3] / "config"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
NO_RULE = {"none": "nothing", "targets": "nothing; changes what is asked for"}


@dataclass(frozen=True)
class KeyInfo:
    """One place in the configuration.

    Attributes:
        path: dotted; `*` stands for a name that the user gives, or for a list's index.
        kind: `key` holds a value, `section` has fixed keys, `names` has keys that the user names, `list` has
            sections.
        default: the default of a key that is not required.
        reruns: the first rules that rerun when the key changes; empty where no rule reruns.
        choices: the allowed values, where they are few.
        variant: the choice of the section's discriminator (e.g. `adapter`) that has this key; None: all do.
        variants: a section's choices of its discriminator.
    """

    path: str
    kind: Literal["key", "section", "names", "list"]
    type: str
    required: bool
    default: Any
    description: str
    reruns: tuple[str, ...]
    choices: tuple[Any, ...]
    examples: tuple[Any, ...]
    variant: str | None
    variants: tuple[str, ...]
    children: tuple[KeyInfo, ...]

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    def child(self, name: str | int, variant: str | None = None) -> KeyInfo | None:
        """The key called `name` (of this variant), or what stands for any name."""
        for child in self.children:
            if child.name in (name, "*") and (variant is None or child.variant in (None, variant)):
                return child
        return None

    def keys_of(self, variant: str | None) -> list[str]:
        """Names of the keys that a section (of this variant) knows."""
        return [child.name for child in self.children if child.variant in (None, variant)]


class _Schema(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


@functools.cache
def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a configuration that stands alone."""
    schema = Config.model_json_schema(schema_generator=_Schema)
    _close_names(schema)
    return {"$schema": DIALECT, **schema, "title": "Utterflow configuration"}


def _close_names(schema: Any) -> None:
    """Names that break their pattern are errors in an editor too."""
    if isinstance(schema, dict):
        if "patternProperties" in schema:
            schema.setdefault("additionalProperties", False)
        for value in schema.values():
            _close_names(value)
    elif isinstance(schema, list):
        for value in schema:
            _close_names(value)


@functools.cache
def key_tree() -> KeyInfo:
    """The whole configuration as a tree of keys; the root's path is empty."""
    return _info("", json_schema(), required=True, variant=None)


def all_keys() -> list[KeyInfo]:
    """Every key that holds a value, in the order of the models.

    A key that only some choices of a discriminator have comes once for each of them, with its `variant`.
    """
    return [info for info in _walk(key_tree()) if info.kind == "key"]


def _walk(info: KeyInfo) -> Iterator[KeyInfo]:
    yield info
    for child in info.children:
        yield from _walk(child)


def _info(path: str, raw: Mapping[str, Any], *, required: bool, variant: str | None) -> KeyInfo:
    schema = _resolved(raw)
    children = tuple(_children(path, schema, variant))
    reruns = str(schema.get("reruns", "none"))
    return KeyInfo(
        path=path,
        kind=_kind(schema, children),
        type=_type_text(raw),
        required=required,
        default=schema.get("default"),
        description=_description(schema),
        reruns=() if reruns == "none" else tuple(name.strip() for name in reruns.split(",")),
        choices=_choices(schema),
        examples=tuple(schema.get("examples", ())),
        variant=variant,
        variants=tuple(tag for tag, _ in _tagged(schema)),
        children=children,
    )


def _description(schema: Mapping[str, Any]) -> str:
    if "discriminator" in schema and "description" not in schema:
        return f"its keys depend on `{schema['discriminator']['propertyName']}`"
    return " ".join(str(schema.get("description", "")).split())


def _kind(schema: Mapping[str, Any], children: Sequence[KeyInfo]) -> Literal["key", "section", "names", "list"]:
    if not children:
        return "key"
    if "items" in schema:
        return "list"
    return "section" if "properties" in schema or "oneOf" in schema else "names"


def _resolved(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with its reference followed and `or null` taken off."""
    found = dict(schema)
    options = [option for option in found.get("anyOf", ()) if option.get("type") != "null"]
    if len(options) == 1:
        found = {**options[0], **{name: value for name, value in found.items() if name != "anyOf"}}
    if "$ref" in found:
        target = json_schema()["$defs"][found["$ref"].rpartition("/")[2]]
        found = {**target, **{name: value for name, value in found.items() if name != "$ref"}}
    return found


def _tagged(schema: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(tag, schema) of each member of a tagged union."""
    if "discriminator" not in schema:
        return []
    key = schema["discriminator"]["propertyName"]
    members = [_resolved(member) for member in schema["oneOf"]]
    return [(member["properties"][key]["const"], member) for member in members]


def _children(path: str, schema: Mapping[str, Any], variant: str | None) -> Iterator[KeyInfo]:
    prefix = f"{path}." if path else ""
    if members := _tagged(schema):
        yield from _union_children(prefix, schema["discriminator"]["propertyName"], members)
    elif "properties" in schema:
        needed = schema.get("required", ())
        for name, value in schema["properties"].items():
            yield _info(f"{prefix}{name}", value, required=name in needed, variant=variant)
    elif "patternProperties" in schema:
        for value in schema["patternProperties"].values():
            yield _info(f"{prefix}*", value, required=False, variant=variant)
    elif isinstance(schema.get("additionalProperties"), dict):
        yield _info(f"{prefix}*", schema["additionalProperties"], required=False, variant=variant)
    elif "properties" in _resolved(schema.get("items", {})):
        yield _info(f"{prefix}*", schema["items"], required=False, variant=variant)


def _union_children(prefix: str, key: str, members: list[tuple[str, dict[str, Any]]]) -> Iterator[KeyInfo]:
    """The discriminator, then what all members share, then what each has of its own."""
    choices = [tag for tag, _ in members]
    meanings = "; ".join(f"`{tag}`: {member['properties'][key].get('description', '')}" for tag, member in members)
    first = members[0][1]["properties"][key]
    merged = {
        "enum": choices,
        "type": "string",
        "description": meanings,
        "reruns": first.get("reruns", "none"),
    }
    yield _info(f"{prefix}{key}", merged, required=True, variant=None)
    shared = [
        name
        for name, value in members[0][1]["properties"].items()
        if all(member["properties"].get(name) == value for _, member in members)
    ]
    for name in shared:
        needed = name in members[0][1].get("required", ())
        yield _info(f"{prefix}{name}", members[0][1]["properties"][name], required=needed, variant=None)
    for tag, member in members:
        for name, value in member["properties"].items():
            if name != key and name not in shared:
                yield _info(f"{prefix}{name}", value, required=name in member.get("required", ()), variant=tag)


def _choices(schema: Mapping[str, Any]) -> tuple[Any, ...]:
    if "const" in schema:
        return (schema["const"],)
    if schema.get("type") == "boolean":
        return (True, False)
    return tuple(schema.get("enum", ()))


def _type_text(raw: Mapping[str, Any]) -> str:
    if len(options := raw.get("anyOf", ())) > 1:
        return " or ".join("null" if option.get("type") == "null" else _type_text(option) for option in options)
    schema = _resolved(raw)
    if choices := _choices(schema):
        return " or ".join(f"`{in_yaml(choice)}`" for choice in choices)
    kind = schema.get("type")
    if kind == "array":
        return _list_text(schema)
    if kind in ("integer", "number"):
        return " ".join(filter(None, ("whole number" if kind == "integer" else "number", _range_text(schema))))
    if kind == "string":
        pattern = schema.get("pattern")
        if pattern == f"^{NAME_PATTERN}$":
            return "name (lower-case letters, digits, `_`)"
        return f"text like `{pattern}`" if pattern else "text"
    return "section"


def _list_text(schema: Mapping[str, Any]) -> str:
    if "prefixItems" in schema:
        return f"list of {len(schema['prefixItems'])}: {', '.join(map(_type_text, schema['prefixItems']))}"
    least = f", at least {schema['minItems']} of them" if schema.get("minItems") else ""
    return f"list, each entry: {_type_text(schema.get('items', {}))}{least}"


def _range_text(schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f"{low} to {high}"
    bounds = (
        ("minimum", "at least"),
        ("exclusiveMinimum", "above"),
        ("maximum", "at most"),
        ("exclusiveMaximum", "below"),
    )
    return ", ".join(f"{words} {schema[bound]}" for bound, words in bounds if bound in schema)


def in_yaml(value: Any) -> str:
    """A value as it stands in a YAML file, on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def example(info: KeyInfo, variant: str | None = None) -> Any:
    """A value that a user could write for this key or section: required keys only."""
    if info.examples:
        return info.examples[0]
    if info.kind == "section":
        variant = variant or next(iter(info.variants), None)
        needed = [child for child in info.children if child.required and child.variant in (None, variant)]
        tag = {info.children[0].name: variant} if info.variants else {}
        return {child.name: example(child) for child in needed} | tag
    if info.kind == "names":
        return {"my_name": example(info.children[0])}
    if info.kind == "list":
        return [example(info.children[0])]
    return info.choices[0] if info.choices else info.default


def find_keys(path: str) -> list[KeyInfo]:
    """The keys and sections at a dotted path, names given or `*`; several where variants differ.

    Raises:
        UserError: there is no such key; names the nearest ones.
    """
    parts = path.strip().strip(".").split(".")
    if found := list(_match(key_tree(), parts)):
        deepest = max(info.path.count(".") for info in found)
        return [info for info in found if info.path.count(".") == deepest]
    near = _near_paths(parts)
    raise UserError(
        f"there is no config key `{path}`",
        fix=f"did you mean {' or '.join(f'`{item}`' for item in near)}?" if near else "see config/README.md",
    )


def _match(info: KeyInfo, parts: Sequence[str]) -> Iterator[KeyInfo]:
    """A name that is a path (under `downloads`) may hold dots, so there `*` may take several parts."""
    if not parts:
        yield info
        return
    for child in info.children:
        if child.name == "*":
            longest = len(parts) if "/" in parts[0] else 1
            for taken in range(1, longest + 1):
                yield from _match(child, parts[taken:])
        elif child.name == parts[0]:
            yield from _match(child, parts[1:])


def _near_paths(parts: Sequence[str]) -> list[str]:
    known = list(dict.fromkeys(info.path for info in _walk(key_tree()) if info.path))
    same_name = [path for path in known if path.rpartition(".")[2] == parts[-1]]
    if same_name:
        return same_name[:5]
    siblings = [child for parent in _match(key_tree(), parts[:-1]) for child in parent.children]
    if close := difflib.get_close_matches(parts[-1], [child.name for child in siblings], n=3, cutoff=0.6):
        return [child.path for child in siblings if child.name in close]
    spelled = difflib.get_close_matches(".".join(parts), known, n=3, cutoff=0.6)
    names = list(dict.fromkeys(path.rpartition(".")[2] for path in known))
    close = difflib.get_close_matches(parts[-1], names, n=2, cutoff=0.7)
    by_name = [path for path in known if path.rpartition(".")[2] in close]
    return list(dict.fromkeys([*by_name, *spelled]))[:5]


def explain(path: str) -> str:
    """What one key or section means, for the terminal.

    Raises:
        UserError: there is no such key.
    """
    return "\n\n".join(_explanation(info) for info in find_keys(path))


def _explanation(info: KeyInfo) -> str:
    title = info.path + (f"  (with {info.variant})" if info.variant else "")
    lines = [title, f"  {info.description}"]
    if info.kind == "key":
        lines += [
            f"  value:   {info.type.replace('`', '')}",
            f"  default: {'none, the key is required' if info.required else in_yaml(info.default)}",
            f"  reruns:  {_reruns_text(info)}",
        ]
        if info.examples:
            lines.append(f"  example: {in_yaml(info.examples[0])}")
        return "\n".join(lines)
    lines.append("  keys:")
    width = max(len(child.name) for child in info.children)
    for child in info.children:
        only = f" [{child.variant}]" if child.variant != info.variant else ""
        lines.append(f"    {child.name:<{width}}  {child.description}{only}")
    return "\n".join(lines)


def _reruns_text(info: KeyInfo) -> str:
    if not info.reruns:
        return NO_RULE["none"]
    return ", ".join(NO_RULE.get(name, name) for name in info.reruns)


INTRO = """# Configuration reference

This page and `schema.json` are generated from the models in `workflow/utterflow/config`; do not edit them.
`python -m utterflow.config.reference` writes them anew.

**Which files count.** `config/config.yaml` is the base. `snakemake --configfile mine.yaml` lays your file
over it: sections are merged key by key, lists are replaced. A file with a top-level `name` stands alone: the
base is not read. Every file in `config/experiments/` does.

**Names.** `*` in a path below stands for a name of your own (lower-case letters, digits and underscores), or
for an entry of a list. They name files and table rows: `asr: {turbo: ...}` gives `results/asr/*/turbo/`.

**Reruns** says which rule is the first to run again when the key changes; what depends on that rule's output
follows. Nothing else runs again.

**Editors.** Put this line at the top of a file that stands alone, and an editor with YAML support completes
and checks it (the path is relative to that file):

```yaml
# yaml-language-server: $schema=../schema.json
```

**Asking on the command line.** `utterflow config explain 'asr.*.num_beams'`;
`utterflow config check --configfile mine.yaml`; `utterflow config show --configfile mine.yaml` (everything,
defaults included).
"""


def reference_page() -> str:
    """The text of `config/README.md`."""
    root = key_tree()
    top = [child for child in root.children if child.kind == "key"]
    parts = [INTRO, "## Top level\n", *_table(top)]
    for child in root.children:
        if child.kind != "key":
            parts += _section(child, level=2)
    return "\n".join(parts) + "\n"


def _section(info: KeyInfo, level: int) -> Iterator[str]:
    if info.kind in ("names", "list"):
        (entry,) = info.children
        yield f"\n{'#' * level} `{entry.path}`\n"
        listed = " A list." if info.kind == "list" else ""
        yield f"{_sentence(info.description)}{listed} Each one: {entry.description}\n"
        yield from _section_body(entry, level)
        return
    yield f"\n{'#' * level} `{info.path}`\n"
    yield f"{_sentence(info.description)}{f' Only with `{info.variant}`.' if info.variant else ''}\n"
    yield from _section_body(info, level)


def _section_body(info: KeyInfo, level: int) -> Iterator[str]:
    yield from _table([child for child in info.children if child.kind == "key" and child.variant == info.variant])
    for tag in info.variants:
        own = [child for child in info.children if child.kind == "key" and child.variant == tag]
        if own:
            yield f"\nOnly with `{info.children[0].name}: {tag}`:\n"
            yield from _table(own)
    for child in info.children:
        if child.kind != "key":
            yield from _section(child, level + 1)


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", ":")) else text + "."


def _table(keys: Sequence[KeyInfo]) -> Iterator[str]:
    if not keys:
        return
    yield "| key | value | default | meaning | reruns |"
    yield "|---|---|---|---|---|"
    for info in keys:
        default = "**required**" if info.required else f"`{in_yaml(info.default)}`"
        reruns = ", ".join(NO_RULE.get(name, f"`{name}`") for name in info.reruns or ("none",))
        cells = (f"`{info.path}`", info.type, default, info.description, reruns)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def generated_files() -> dict[str, str]:
    """File name in `config/` -> its text."""
    return {
        "schema.json": json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n",
        "README.md": reference_page(),
    }


def out_of_date(folder: Path = CONFIG_FOLDER) -> list[str]:
    """Names of the generated files that differ from what the models say now."""
    return [
        name
        for name, text in generated_files().items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write config/schema.json and config/README.md from the models.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is out of date")
    parser.add_argument("--folder", type=Path, default=CONFIG_FOLDER, help="where they stand")
    options = parser.parse_args(arguments)
    stale = out_of_date(options.folder)
    if options.check and stale:
        print(f"out of date: {', '.join(stale)}; run: python -m utterflow.config.reference", file=sys.stderr)
        return 1
    for name in stale:
        with atomic_writer(options.folder / name) as handle:
            handle.write(generated_files()[name])
        print(f"wrote {options.folder / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
