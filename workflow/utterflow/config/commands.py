"""`utterflow config`: the effective configuration, its check, its schema, the meaning of a key."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from utterflow import targets
from utterflow.config.load import BASE_FILE, effective_raw, load_config
from utterflow.config.models import Config
from utterflow.config.reference import explain, json_schema

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_parser(subparsers: Subparsers) -> None:
    """Add `config` with its commands; each sets `func`, which takes the parsed arguments and returns 0."""
    parser = subparsers.add_parser("config", help="show, check and explain the configuration")
    commands = parser.add_subparsers(dest="config_command", required=True, metavar="command")

    show = commands.add_parser("show", help="print the effective configuration, defaults included, as YAML")
    add_configfile(show)
    show.set_defaults(func=_show)

    check = commands.add_parser("check", help="check the configuration and list all that is wrong")
    add_configfile(check)
    check.set_defaults(func=_check)

    schema = commands.add_parser("schema", help="print the JSON schema, for editors and other programs")
    schema.set_defaults(func=_schema)

    explained = commands.add_parser("explain", help="say what a key means, its values, what reruns with it")
    explained.add_argument("key", help="dotted path; `*` for any name, e.g. 'asr.*.num_beams'")
    explained.set_defaults(func=_explain)


def add_configfile(parser: argparse.ArgumentParser) -> None:
    """The option `--configfile`, as Snakemake has it."""
    parser.add_argument(
        "--configfile",
        nargs="+",
        action="extend",
        default=[],
        type=Path,
        metavar="FILE",
        help=f"files laid over {BASE_FILE}, as with snakemake; one with a top-level `name` stands alone",
    )


def config_of(args: argparse.Namespace) -> Config:
    """The validated configuration of the `--configfile` options.

    Raises:
        UserError: a file cannot be read, or the configuration is wrong.
    """
    return load_config(effective_raw(args.configfile), source=source_text(args.configfile))


def source_text(files: list[Path]) -> str:
    """The given files, for an error."""
    return ", ".join(map(str, files)) or str(BASE_FILE)


def _show(args: argparse.Namespace) -> int:
    effective: dict[str, Any] = config_of(args).model_dump(mode="json")
    yaml.safe_dump(effective, sys.stdout, sort_keys=False, allow_unicode=True, width=110)
    return 0


def _check(args: argparse.Namespace) -> int:
    config = config_of(args)
    print(f"ok: {config.name}: {len(targets.all_scores(config))} results from {source_text(args.configfile)}")
    lists = targets.used_lists(config)
    used = {
        "corpora": {corpus for corpus, _ in lists},
        "asr": {asr for _, asr in lists},
        "scoring": {name for run in config.runs for name in run.scoring},
    }
    for section, names in used.items():
        if unused := [name for name in getattr(config, section) if name not in names]:
            print(f"note: no run uses {section}: {', '.join(unused)}")
    return 0


def _schema(args: argparse.Namespace) -> int:
    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return 0


def _explain(args: argparse.Namespace) -> int:
    print(explain(args.key))
    return 0
