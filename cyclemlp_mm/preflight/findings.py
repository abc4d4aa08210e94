"""What the checks find, and how it is reported."""

from functools import partialmethod
from typing import NamedTuple

from cyclemlp_mm.errors import UserError, count

LEVELS = ('error', 'warning', 'note')


class Finding(NamedTuple):
    """One thing that was found."""

    level: str  # 'error' (training would fail or be wrong), 'warning' or 'note'
    where: str  # the file, folder or config key
    what: str  # what is there, with counts and examples
    fix: str  # what to do; may be empty

    def __str__(self) -> str:
        return f'{self.level}: {self.where}: {self.what}' + (f'. {self.fix}' if self.fix else '')


class Report:
    """All ``findings`` of a check, in the order in which they were found.

    ``error``, ``warning`` and ``note`` add one: where, what, and how to fix it.
    """

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def add(self, level: str, where: object, what: str, fix: str = '') -> None:
        """Add a finding of a level, unless the same is there already."""
        finding = Finding(level, str(where), what, fix)
        if finding not in self.findings:
            self.findings.append(finding)

    error = partialmethod(add, 'error')
    warning = partialmethod(add, 'warning')
    note = partialmethod(add, 'note')

    def of(self, level: str) -> list[Finding]:
        """The findings of a level."""
        return [finding for finding in self.findings if finding.level == level]

    def raise_errors(self, before: str = 'training', more: str = '') -> None:
        """Raise a UserError with all errors, if any, and the warnings about their files."""
        errors = self.of('error')
        if errors:
            places = {error.where for error in errors}
            about = [f for f in self.findings if f.where in places and f.level != 'note']
            lines = [f'the check before {before} found {count(len(errors), "error")}:']
            lines += [f'  {str(finding).removeprefix("error: ")}' for finding in about]
            raise UserError('\n'.join([*lines, more]).rstrip())

    def __str__(self) -> str:
        counts = [count(len(self.of(level)), level) for level in LEVELS]
        return '\n'.join([*map(str, self.findings), f'check: {", ".join(counts)}'])
