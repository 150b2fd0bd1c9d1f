"""Errors that a user can act on."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend: says what is wrong, where, and what to do instead.

    It is printed without a traceback by the command line and by every rule's script.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        lines = [what]
        if where:
            lines.append(f"  where: {where}")
        if fix:
            lines.append(f"  do:    {fix}")
        super().__init__("\n".join(lines))
