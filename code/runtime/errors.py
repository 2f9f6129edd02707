"""Errors that a user can act on: one sentence, no traceback."""

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend. The message says what is wrong, where, and what to do, in one sentence."""


def cli(main: Callable[[], None]) -> None:
    """Run a script's `main`; a UserError becomes one line on stderr and exit status 2, Ctrl-C one and status 130.

    So does what the system refuses of a file that it names: one that cannot be read, a folder in a file's place.
    """
    try:
        main()
    except (UserError, OSError) as error:
        message = str(error)
        if isinstance(error, OSError):
            if not error.filename or int(os.environ.get("WORLD_SIZE", 1)) > 1:  # `ranks` ends several processes at once
                raise
            message = f"{os.fsdecode(error.filename)}: {error.strerror}; make it usable, or name another"
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
