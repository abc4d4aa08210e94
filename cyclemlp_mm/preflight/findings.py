"""What the checks find, and how it is reported."""

from __future__ import annotations

from dataclasses import dataclass, field

from cyclemlp_mm.errors import UserError

ERROR, WARNING, NOTE = 'error', 'warning', 'note'


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        level (str): 'error' (training would fail or be wrong), 'warning' or 'note'.
        where (str): The file, folder or config key.
        what (str): What is there, with counts and examples.
        fix (str): What to do; may be empty. Defaults to ''.
    """

    level: str
    where: str
    what: str
    fix: str = ''

    def __str__(self) -> str:
        return f'{self.level}: {self.where}: {self.what}' + (f'. {self.fix}' if self.fix else '')


@dataclass
class Report:
    """All findings of a preflight, in the order of the checks."""

    findings: list[Finding] = field(default_factory=list)

    def error(self, where: object, what: str, fix: str = '') -> None:
        """Add what has to be fixed first."""
        self.findings.append(Finding(ERROR, str(where), what, fix))

    def warning(self, where: object, what: str, fix: str = '') -> None:
        """Add what may be intended, but often is not."""
        self.findings.append(Finding(WARNING, str(where), what, fix))

    def note(self, where: object, what: str, fix: str = '') -> None:
        """Add what is good to know."""
        self.findings.append(Finding(NOTE, str(where), what, fix))

    def of(self, level: str) -> list[Finding]:
        """The findings of a level."""
        return [finding for finding in self.findings if finding.level == level]

    def has(self, where: str) -> bool:
        """Whether there is a finding about a key or a part of it."""
        return any(finding.where.startswith(where) for finding in self.findings)

    def raise_errors(self, before: str = 'training', more: str = '') -> None:
        """Raise a UserError with all errors, if any, and the warnings about their files."""
        errors = self.of(ERROR)
        if errors:
            places = {error.where for error in errors}
            about = [f for f in self.findings if f.where in places and f.level != NOTE]
            lines = '\n  '.join(str(f).removeprefix('error: ') for f in about)
            raise UserError(
                f'the check before {before} found {count(len(errors), "error")}:\n  {lines}'
                + (f'\n{more}' if more else '')
            )

    def __str__(self) -> str:
        counts = [count(len(self.of(level)), level) for level in (ERROR, WARNING, NOTE)]
        return '\n'.join([*map(str, self.findings), f'check: {", ".join(counts)}'])


def count(number: int, noun: str) -> str:
    """'1 box', '2 boxes'."""
    if number == 1:
        return f'1 {noun}'
    return f'{number} {noun}{"es" if noun.endswith(("x", "ss")) else "s"}'


def some(things: list, most: int = 5) -> str:
    """The first few of a list, and how many more there are."""
    more = f' and {len(things) - most} more' if len(things) > most else ''
    return f'{", ".join(map(str, things[:most]))}{more}'
