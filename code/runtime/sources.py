"""The files that a run reads: hashed as it begins, compared as it goes on, because a run is its settings and its data.

Their sha256 lie in `inputs.json` of the run's folder, written once all is read and before anything is made of it.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from runtime import atomic, digests, ranks
from runtime.errors import UserError
from runtime.plain import checked, read_json

Files = Callable[[Any], Iterable[dict[str, Path]]]  # settings -> what is read, by what messages call it, in groups
RECORD = "inputs.json"
MEND = "choose another name=, or overwrite=true to move it aside"
WORK = ("last.pth", "begun.json", "finished.json")  # what a folder holds in which something was made


class Sources:
    """The files that a run reads, by what messages call them; only the first of several processes looks at them."""

    def __init__(self, folder: Path, files: Callable[[], Iterable[dict[str, Path]]]) -> None:
        """files: gives them; a group is asked for when those before it are as ever."""
        self.folder, self.files, self.record = folder, files, folder / RECORD
        self.sha256: dict[str, str] = {}  # of each file as the run began, or as this process found it first
        self.is_new = True  # what it reads is still to be written down

    def compare(self) -> None:
        """Refuse, for a run that is there, files that are not those it began with; of missing ones `begin` says so.

        Raises:
            UserError: names those that are new or other; or the record is damaged.
        """
        done = [name for name in WORK if (self.folder / name).exists()]
        if not self.record.exists():
            self.is_new = not done
            if done:
                print(f"note: {self.folder}: an earlier version began it, and recorded no hashes of what it read then")
            return
        self.is_new = False
        self.sha256 = checked(dict[str, str], read_json(self.record, "record of inputs"), str(self.record), MEND)
        for now in self._hashed():
            self._refuse(now)

    def note(self) -> None:
        """Hash the files before they are read, unless the run's record says what it began with. Raises UserError."""
        self.sha256 = ranks.from_lead(lambda: self.sha256 or [*self._hashed()][-1])

    @ranks.together()
    def begin(self, read: dict[str, str]) -> None:
        """Once all is read: write down what, if the run is new.

        read: sha256 of files as their readers saw them, among them all that was not there before.

        Raises:
            UserError: a file is not what `note` found.
        """
        if ranks.lead():
            now = [*self._hashed()][-1] | read
            known = {name: value for name, value in now.items() if name in self.sha256 or name not in read}
            self._refuse(known, whole=True)
            if self.is_new:
                atomic.write_text(self.record, json.dumps(now, indent=1))

    def _hashed(self) -> Iterator[dict[str, str]]:
        """sha256 of each file that is there, after each group. Raises UserError."""
        now: dict[str, str] = {}
        for group in self.files():
            try:
                now |= {name: digests.sha256(path) for name, path in group.items() if path.is_file()}
            except OSError as error:
                raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
            digests.write_down()
            yield now

    def _refuse(self, now: dict[str, str], whole: bool = False) -> None:
        """UserError where a file is not as it was; whole: nothing is to come, so that none may be missing."""
        was = self.sha256
        differ = [f"{name} ({'changed' if name in was else 'new'})" for name in now if now[name] != was.get(name)]
        differ += [f"{name} (missing)" for name in was if whole and name not in now]
        if differ:
            more = f" and {len(differ) - 4} more" if len(differ) > 4 else ""
            what, mend = "what it reads changed meanwhile", "give the same command again when it is whole"
            if self.record.exists():
                what, mend = "holds a run that began with other data", f"put it back, {MEND}"
            raise UserError(f"{self.folder}: {what}: {', '.join(differ[:4])}{more}; {mend}")
