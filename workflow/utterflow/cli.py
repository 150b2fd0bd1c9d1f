"""The `utterflow` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from utterflow import __version__, doctor
from utterflow.config import commands as config
from utterflow.errors import UserError
from utterflow.evaluate import commands as score
from utterflow.rationale import preview
from utterflow.report import commands as report


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it went well, 2 when the user has something to mend.

    A command's module adds its parser with `add_parser(subparsers)` and sets `func`, which takes the parsed
    arguments and returns the exit code.
    """
    parser = argparse.ArgumentParser(prog="utterflow", description="Speech-and-language-model experiments.")
    parser.add_argument("--version", action="version", version=f"utterflow {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    for module in (score, config, doctor, preview, report):
        module.add_parser(subparsers)
    args = parser.parse_args(argv)
    try:
        code = int(args.func(args) or 0)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has left; closing must not fail too
        return 1
    except OSError as error:
        print(f"error: {error.strerror or error}: {error.filename or ''}".rstrip(": "), file=sys.stderr)
    return 2
