"""What the checks find, and how it is reported."""

from __future__ import annotations

from functools import partialmethod
from typing import NamedTuple

from cyclemlp_mm.errors import UserError, count

ERROR, WARNING, NOTE = 'error', 'warning', 'note'


class Finding(NamedTuple):
    """One thing that was found.

    Attributes:
        level (str): 'error' (training would fail or be wrong), 'warning' or 'note'.
        where (str): The file, folder or config key.
        what (str): What is there, with counts and examples.
        fix (str): What to do; may be empty.
    """

    level: str
    where: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f'{self.level}: {self.where}: {self.what}' + (f'. {self.fix}' if self.fix else '')


class Report:
    """All findings of a check, in the order in which they were found.

    Attributes:
        findings (list[Finding]): Added by ``error`` (has to be fixed first), ``warning`` (may be
            intended, but often is not) and ``note``, which take where, what and a fix.
    """

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def _add(self, level: str, where: object, what: str, fix: str = '') -> None:
        self.findings.append(Finding(level, str(where), what, fix))

    error = partialmethod(_add, ERROR)
    warning = partialmethod(_add, WARNING)
    note = partialmethod(_add, NOTE)

    def of(self, level: str) -> list[Finding]:
        """The findings of a level."""
        return [finding for finding in self.findings if finding.level == level]

    def raise_errors(self, before: str = 'training', more: str = '') -> None:
        """Raise a UserError with all errors, if any, and the warnings about their files."""
        errors = self.of(ERROR)
        if errors:
            places = {error.where for error in errors}
            about = [f for f in self.findings if f.where in places and f.level != NOTE]
            lines = [str(finding).removeprefix('error: ') for finding in about]
            first = f'the check before {before} found {count(len(errors), "error")}:'
            raise UserError('\n  '.join([first, *lines]) + (f'\n{more}' if more else ''))

    def __str__(self) -> str:
        counts = [count(len(self.of(level)), level) for level in (ERROR, WARNING, NOTE)]
        return '\n'.join([*map(str, self.findings), f'check: {", ".join(counts)}'])
