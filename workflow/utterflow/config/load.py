"""From YAML files to a validated `Config`, or to an error that lists all that is wrong and what to write."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from utterflow.config.base import NAME_PATTERN
from utterflow.config.models import RUN_SECTIONS, Config, ReferenceFault, reference_faults
from utterflow.config.reference import KeyInfo, all_keys, example, in_yaml, key_tree
from utterflow.errors import UserError

BASE_FILE = Path("config/config.yaml")
VALUE_LIMIT = 120
NOTHING = object()
NAME_RULE = "a name has lower-case letters, digits and underscores only, and begins with a letter or digit"
QUOTE_HINT = ("YAML reads no, off, yes and on as false and true: put the word in quotes",)

TYPE_ERRORS = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
}
RANGE_ERRORS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "above"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "below"),
}
SECTION_ERRORS = {"model_type", "model_attributes_type", "dict_type", "dict_attributes_type", "mapping_type"}
LIST_ERRORS = {"tuple_type", "list_type"}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, with which value, in plain words, and YAML that would be right."""

    path: tuple[str | int, ...]
    what: str
    value: Any = NOTHING
    hints: tuple[str, ...] = ()
    yaml: str | None = None

    def text(self) -> str:
        place = ".".join(map(str, self.path)) or "(the whole file)"
        hidden = bool(self.path) and self.path[-1] == "key_env"  # who writes the key itself there must not see it again
        value = "" if self.value is NOTHING or hidden else f" = {_short(self.value)}"
        lines = [f"{place}{value}", f"  {self.what}", *(f"  {hint}" for hint in self.hints)]
        if self.yaml:
            lines += ["  write:", *(f"    {line}" for line in self.yaml.splitlines())]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Place:
    """Where an error stands: its path without union tags, and what the models know of it."""

    path: tuple[str | int, ...]
    info: KeyInfo | None
    parent: KeyInfo
    variant: str | None


def load_config(raw: Mapping[str, Any], source: str | None = None) -> Config:
    """The validated configuration.

    Args:
        raw: as parsed from YAML.
        source: where it came from, for the error.

    Raises:
        UserError: lists every problem: path, value, what is wrong and, where it can be told, the right YAML.
    """
    if not isinstance(raw, Mapping):
        raise UserError(f"the configuration must be keys with values, not {_short(raw)}", where=source)
    truths = list(_truths_for_numbers(raw, key_tree()))
    errors: list[ErrorDetails] = []
    try:
        config = Config.model_validate(dict(raw))
        if not truths:
            return config
    except ValidationError as error:
        errors = error.errors(include_url=False)
    faults = reference_faults(raw)
    problems = [_problem(item, raw) for item in [*truths, *errors] if not _is_said_elsewhere(item, bool(faults))]
    problems += [_reference_problem(fault) for fault in faults if _is_name_or_path(fault)]
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    listed = "\n\n".join(problem.text() for problem in problems)
    raise UserError(
        f"the configuration has {count}:\n\n{listed}\n",
        where=source,
        fix="`utterflow config explain KEY` says what a key means; config/README.md lists them all",
    )


def effective_raw(paths: Sequence[Path], base: Path = BASE_FILE) -> dict[str, Any]:
    """The configuration files merged as Snakemake merges them, not yet validated.

    Later files are laid over earlier ones: sections key by key, lists and values whole. `base` comes first,
    unless one of the files has a top-level `name`.

    Raises:
        UserError: a file is missing, is not YAML, has a key twice, or is not a set of keys.
    """
    from snakemake.utils import update_config

    given = [read_config_file(path) for path in paths]
    merged = {} if any("name" in config for config in given) else read_config_file(base)
    for config in given:
        update_config(merged, config)
    return merged


def check_config_files(paths: Sequence[Path], raw: Mapping[str, Any], base: Path = BASE_FILE) -> None:
    """Look for what Snakemake takes silently when it reads config files itself.

    Args:
        paths: the files; what is no file on disk (a pipe) can be read only once, and is passed over.
        raw: what Snakemake made of them.

    Raises:
        UserError: a key twice in one section, or files that should lie over `base`, which is not here.
    """
    for path in dict.fromkeys(paths):
        if path.suffix != ".json" and path.is_file():
            read_config_file(path)
    if "name" not in raw and not base.is_file():
        raise UserError(
            f"a config file without a top-level `name` lies over {base}, and there is none in {Path.cwd()}",
            where=", ".join(map(str, paths)) or None,
            fix="run snakemake in the folder of the Snakefile, or write a configuration of its own, with a `name`",
        )


def read_config_file(path: Path) -> dict[str, Any]:
    """One YAML file.

    Raises:
        UserError: it is missing, is not YAML, has a key twice (with the lines), or is not a set of keys.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("config file not found", where=str(path)) from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text: {error.reason}", where=str(path), fix="save it as UTF-8") from None
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            value = None if node is None else _constructed(loader, node, path)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise _yaml_error(error, path) from None
    if not isinstance(value, dict):
        found = "nothing" if value is None else in_yaml(value)[:VALUE_LIMIT]
        raise UserError(
            f"a config file holds keys with values, this one holds {found}",
            where=str(path),
            fix="e.g. name: my_experiment",
        )
    return value


def _constructed(loader: yaml.SafeLoader, node: yaml.Node, path: Path) -> Any:
    if repeated := list(_repeated_keys(node, set())):
        listed = "; ".join(f"`{key}` on line {first} and again on line {again}" for key, first, again in repeated)
        raise UserError(
            f"a key stands twice in one section: {listed}",
            where=f"{path}, line {repeated[0][2]}",
            fix="keep one of the two: YAML silently takes the last",
        )
    value = loader.construct_document(node)
    try:
        json.dumps(value, skipkeys=True, default=str)
    except (ValueError, RecursionError):
        raise UserError(
            "a section holds itself, or sections are nested without end",
            where=str(path),
            fix="an alias (*name) must not stand inside of what its anchor (&name) marks",
        ) from None
    return value


def _repeated_keys(node: yaml.Node, seen: set[int]) -> Iterator[tuple[str, int, int]]:
    """(key, first line, line of the repetition), lines from 1; anchors may make the node graph cyclic."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated_keys(item, seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode):
                if key.value in lines:
                    yield key.value, lines[key.value], line
                lines.setdefault(key.value, line)
            yield from _repeated_keys(value, seen)


def _yaml_error(error: yaml.YAMLError, path: Path) -> UserError:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    fix = "check indentation and quotes: text that holds `: ` or begins with one of *&!%@`[{ is put in quotes"
    if "\\t" in what:
        what, fix = "a tab where YAML wants spaces", "indent with spaces"
    elif "expected a single document" in str(error):
        what, fix = (
            "several YAML documents in one file",
            "remove the `---` line and what follows, or use two files",
        )
    where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
    return UserError(f"not valid YAML: {what}", where=where, fix=fix)


def _truths_for_numbers(value: Any, info: KeyInfo, path: tuple[str | int, ...] = ()) -> Iterator[ErrorDetails]:
    """Places where a number should stand and `true` or `false` does: `limit: yes` must not mean 1."""
    kind = re.match("(whole )?number", info.type)
    if isinstance(value, bool) and info.kind == "key" and kind:
        yield {"type": "int_type" if kind[1] else "float_type", "loc": path, "msg": "", "input": value}
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if isinstance(name, str) and (child := info.child(name)):
                yield from _truths_for_numbers(item, child, (*path, name))


def _is_said_elsewhere(error: ErrorDetails, broken_references: bool) -> bool:
    """An error that only follows from another one, or that `reference_faults` reports beside all others."""
    if error["type"] == "too_short":
        return bool(len(error["input"]) >= error["ctx"]["min_length"])
    return error["type"] == "value_error" and not error["loc"] and broken_references


def _place(loc: Sequence[str | int]) -> _Place:
    """Walk an error's location through the key tree; a tagged union puts its tag into the location."""
    path: list[str | int] = []
    parent = info = key_tree()
    known: KeyInfo | None = info
    variant: str | None = None
    at_union = False
    for part in loc:
        if part == "[key]":
            continue
        if at_union and part in info.variants:
            variant, at_union = str(part), False
            continue
        path.append(part)
        if known is None:
            continue
        parent, known = known, known.child(part, variant)
        if known is not None:
            info = known
            at_union = bool(info.variants)
        elif parent.kind == "key":
            known = parent
    return _Place(tuple(path), known, parent, variant)


def _problem(error: ErrorDetails, raw: Mapping[str, Any]) -> Problem:
    kind, value = error["type"], error["input"]
    place = _place(error["loc"])
    if kind == "extra_forbidden":
        return _unknown_key(place, value)
    if error["loc"][-1:] == ("[key]",):
        return _bad_name(place)
    if kind == "missing":
        return _missing_key(place, raw)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _bad_tag(place, value)
    if kind == "literal_error":
        return _not_a_choice(place, value)
    if kind in SECTION_ERRORS:
        return _not_a_section(place, value, raw)
    if kind in LIST_ERRORS:
        listed = _example(place, raw) if value is None or isinstance(value, Mapping) else _as_list(value, place.info)
        return Problem(place.path, "must be a list", value, yaml=_snippet(place.path, listed))
    if kind == "value_error":
        shown = NOTHING if isinstance(value, Mapping) else value
        return Problem(place.path, str(error["ctx"]["error"]), shown)
    return _bad_value(place, error, raw)


def _as_list(value: Any, info: KeyInfo | None) -> list[Any]:
    """A lone value as the list that the key wants: one number for both ends of a range."""
    fixed = re.match(r"list of (\d+)", info.type if info else "")
    return [value] * (int(fixed[1]) if fixed else 1)


def _unknown_key(place: _Place, value: Any) -> Problem:
    name = str(place.path[-1])
    known = place.parent.keys_of(place.variant)
    elsewhere = list(dict.fromkeys(info.path for info in all_keys() if info.name == name))
    if not elsewhere and (near := nearest(name, known)):
        line = _snippet((*place.path[:-1], near), value)
        return Problem(place.path, f"unknown key; did you mean `{near}`?", value, yaml=line)
    others = sorted({str(child.variant) for child in place.parent.children if child.name == name and child.variant})
    if others:
        tag = place.parent.children[0].name
        hint = f"only with `{tag}: {' or '.join(others)}`; with `{place.variant}` there are: {', '.join(known)}"
        return Problem(place.path, f"no key of `{tag}: {place.variant}`", value, (hint,))
    hint = f"`{name}` is known as {' and '.join(elsewhere[:5])}" if elsewhere else f"known here: {', '.join(known)}"
    return Problem(place.path, "unknown key", value, (hint,))


def _bad_name(place: _Place) -> Problem:
    name = str(place.path[-1])
    good = _as_name(name)
    line = _snippet((*place.path[:-1], good), NOTHING) if good else None
    what = NAME_RULE
    if not isinstance(place.path[-1], str):
        what = "a name must be text: put it in quotes"
        line = _snippet((*place.path[:-1], name), NOTHING)
    return Problem(place.path, what, yaml=line)


def _as_name(text: str) -> str | None:
    """The name that comes nearest to `text`; None where nothing of it can stay."""
    good = re.sub(r"[^a-z0-9_]+", "_", text.lower()).strip("_")
    return good if re.fullmatch(NAME_PATTERN, good) else None


def _missing_key(place: _Place, raw: Mapping[str, Any]) -> Problem:
    if place.info is None:
        return Problem(place.path, "a required key is missing")
    if isinstance(place.path[-1], int):
        return Problem(place.path[:-1], f"the list is too short; it must be a {place.info.type}")
    what = f"required key is missing: {place.info.description}"
    return Problem(place.path, what, yaml=_snippet(place.path, _example(place, raw)))


def _example(place: _Place, raw: Mapping[str, Any]) -> Any:
    """A value to write here; in `runs` with the names that the configuration has."""
    names = {section: list(map(str, raw[section])) for section in RUN_SECTIONS if isinstance(raw.get(section), Mapping)}
    run = {section: names.get(section) or [section] for section in RUN_SECTIONS}
    if place.path[:1] == ("runs",) and len(place.path) < 3:
        return [run] if len(place.path) == 1 else run
    if place.info is None:
        return NOTHING
    if place.info.path.startswith("runs.") and names.get(place.info.name):
        return names[place.info.name]
    return example(place.info, place.variant)


def _bad_tag(place: _Place, value: Any) -> Problem:
    """The discriminator of a section (e.g. a corpus's `adapter`) is missing or unknown."""
    section = place.info
    if section is None or not section.variants:
        return Problem(place.path, "cannot tell which kind of section this is", value)
    key = section.children[0].name
    given = value.get(key, NOTHING) if isinstance(value, Mapping) else NOTHING
    path = (*place.path, key)
    choices = f"one of: {', '.join(section.variants)}"
    if given is NOTHING:
        keys = set(value) if isinstance(value, Mapping) else set()
        fitting = max(section.variants, key=lambda tag: len(keys & set(section.keys_of(tag))))
        return Problem(path, f"required key is missing; {choices}", yaml=_snippet(path, fitting))
    near = nearest(str(given), section.variants)
    return Problem(path, f"must be {choices}", given, yaml=_snippet(path, near) if near else None)


def _not_a_choice(place: _Place, value: Any) -> Problem:
    info = place.info
    choices = info.choices if info else ()
    what = f"must be one of: {', '.join(map(in_yaml, choices))}"
    near = nearest(str(value), [choice for choice in choices if isinstance(choice, str)], cutoff=0.5)
    best = near if near is not None else (info.default if info and not info.required else NOTHING)
    hints = QUOTE_HINT if isinstance(value, bool) else ()
    return Problem(place.path, what, value, hints, _snippet(place.path, best) if best is not NOTHING else None)


def _not_a_section(place: _Place, value: Any, raw: Mapping[str, Any]) -> Problem:
    what = (
        "must hold keys of its own" if value is not None else "nothing stands under it; its keys must be indented below"
    )
    line = _snippet(place.path, _example(place, raw))
    return Problem(place.path, what, value, yaml=line)


def _bad_value(place: _Place, error: ErrorDetails, raw: Mapping[str, Any]) -> Problem:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    what: str = error["msg"]
    hints: tuple[str, ...] = ()
    best: Any = NOTHING
    if kind in TYPE_ERRORS:
        what = f"must be {TYPE_ERRORS[kind]}"
        if kind == "string_type" and isinstance(value, bool):
            hints = QUOTE_HINT
        elif kind == "string_type" and value is not None:
            best = str(value)
    elif kind in RANGE_ERRORS:
        name, words = RANGE_ERRORS[kind]
        what = f"must be {words} {context[name]:g}"
        best = type(value)(context[name]) if name in ("ge", "le") and isinstance(value, int | float) else NOTHING
    elif kind == "string_pattern_mismatch" and context["pattern"] == f"^{NAME_PATTERN}$":
        what, best = NAME_RULE, _as_name(str(value)) or NOTHING
    elif kind == "string_pattern_mismatch":
        what = f"must match the pattern {context['pattern']}"
    elif kind == "too_short":
        what, best = "needs at least {min_length} of them".format(**context), _example(place, raw)
    elif kind == "too_long":
        what = "must have at most {max_length} of them".format(**context)
    elif kind == "string_too_short":
        what = "must not be empty"
    if best is NOTHING and place.info is not None and place.info.kind == "key":
        best = example(place.info) if place.info.required or place.info.examples else place.info.default
    in_list = bool(place.path) and isinstance(place.path[-1], int)
    return Problem(
        place.path,
        what,
        value,
        hints,
        None if best in (NOTHING, None) or in_list else _snippet(place.path, best),
    )


def _is_name_or_path(fault: ReferenceFault) -> bool:
    return fault.path == "downloads" or re.fullmatch(NAME_PATTERN, fault.name) is not None


def _reference_problem(fault: ReferenceFault) -> Problem:
    path = tuple(int(part) if part.isdigit() else part for part in fault.path.split("."))
    if fault.path == "downloads":
        return Problem((*path, fault.name), fault.what, yaml=_snippet((*path, fault.known[0]), NOTHING))
    hint = f"there are: {', '.join(fault.known)}" if fault.known else f"there is no entry of `{path[-1]}` at all"
    near = nearest(fault.name, fault.known) or (fault.known[0] if len(fault.known) == 1 else None)
    names: Any = [near] if path[0] == "runs" else near
    return Problem(path, fault.what, fault.name, (hint,), _snippet(path, names) if near else None)


def nearest(word: str, known: Sequence[str], cutoff: float = 0.6) -> str | None:
    """The known word that `word` is most likely a misspelling of; None where there is none."""
    folded = {item.lower(): item for item in known}
    close = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=cutoff)
    return folded[close[0]] if close else None


def _snippet(path: Sequence[str | int], value: Any) -> str:
    """YAML that sets `path` to `value`, block style; without a value only the keys."""
    lines: list[str] = []
    indent, bullet = 0, ""
    for part in path:
        if isinstance(part, int):
            bullet = "- "
            continue
        lines.append(f"{' ' * indent}{bullet}{in_yaml(part)}:")
        indent += 2 + len(bullet)
        bullet = ""
    if value is NOTHING:
        return "\n".join([*lines[:-1], f"{lines[-1]} ..."])
    block = yaml.dump(value, Dumper=_ShortLists, sort_keys=False, default_flow_style=False, allow_unicode=True)
    if isinstance(value, Mapping) or block.startswith("- "):
        starts = [f"{' ' * indent}{bullet}", f"{' ' * (indent + len(bullet))}"]
        nested = [f"{starts[min(number, 1)]}{line}" for number, line in enumerate(block.splitlines())]
        return "\n".join([*lines, *nested])
    return "\n".join([*lines[:-1], f"{lines[-1]} {in_yaml(value)}"])


class _ShortLists(yaml.SafeDumper):
    """Lists of plain values on one line, the rest in block style."""


def _represent_list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.Node:
    plain = not any(isinstance(item, Mapping | list) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=plain)


_ShortLists.add_representer(list, _represent_list)


def _short(value: Any) -> str:
    try:
        text = in_yaml(value)
    except yaml.YAMLError:
        text = repr(value)
    text = re.sub(r"//[^/@\s]+@", "//...@", text)  # what an address should not hold, a message must not repeat
    return text if len(text) <= VALUE_LIMIT else text[: VALUE_LIMIT - 3] + "..."
