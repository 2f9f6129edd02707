"""How the inputs of a stage open, one finding each: what `dry_run=true` and the doctor list.

A stage opens everything it reads in one function, which hands every step to `Findings.open`. A run ends at the first
problem; a dry run and the doctor go on, so that one call names all of them.
"""

import io
import warnings
from collections.abc import Callable, Collection, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from runtime.errors import UserError, in_words

T = TypeVar("T")
OK, NOTE, LATER, WRONG = "ok", "note", "later", "WRONG"  # `later`: an earlier stage makes it


@dataclass
class Finding:
    """One input and how it opens."""

    subject: str  # such as "stage A checkpoint"
    state: str
    message: str
    paths: list[Path] = field(default_factory=list)


class Findings:
    """Opens inputs and keeps what each shows; with `keep_going` a UserError becomes a finding instead of the end."""

    def __init__(self, keep_going: bool = False, later: Collection[str] = ()) -> None:
        """later: subjects whose files an earlier stage will make, so that they may be missing."""
        self.keep_going, self.later = keep_going, later
        self.findings: list[Finding] = []

    @property
    def ready(self) -> bool:
        """Whether the stage can start."""
        return all(finding.state != WRONG for finding in self.findings)

    def add(self, subject: str, state: str, message: str, paths: Sequence[Path] = ()) -> None:
        """Keep a finding; the message becomes one line."""
        self.findings.append(Finding(subject, state, " ".join(message.split()), list(paths)))

    def open(
        self, subject: str, opener: Callable[[], T], describe: Callable[[T], str] = lambda value: "",
        paths: Sequence[Path] = (),
    ) -> T | None:  # fmt: skip
        """The value of `opener()`; None where it raises a UserError and `keep_going` is set.

        Args:
            describe: value -> what to say of it where it opens.
            paths: files that it is read from.
        """
        if not self.keep_going:
            return opener()
        try:
            with redirect_stdout(io.StringIO()) as printed, warnings.catch_warnings(action="ignore"), in_words():
                value = opener()
                message = "; ".join(filter(None, [describe(value), *printed.getvalue().splitlines()]))
        except UserError as error:
            self.add(subject, WRONG, str(error), paths)
            return None
        self.add(subject, OK, message, paths)
        return value

    def comes_later(self, subject: str, path: Path) -> bool:
        """Whether `path` is missing and an earlier stage will make it; then kept as a finding."""
        if later := subject in self.later and not path.exists():
            self.add(subject, LATER, f"{path}: the stage before puts it there")
        return later

    def lines(self) -> list[str]:
        """A line each, for the terminal."""
        return [f"  {finding.state:5}  {finding.subject}: {finding.message}" for finding in self.findings]

    def report(self, stage: str) -> int:
        """Print all findings and whether the stage can start; the exit status of a dry run, 0 or 1."""
        wrong = sum(finding.state == WRONG for finding in self.findings)
        end = "can start" if self.ready else f"cannot start: {wrong} of {len(self.findings)} are WRONG"
        print(*self.lines(), f"stage {stage} {end}", sep="\n")
        return int(not self.ready)
