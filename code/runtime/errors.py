"""Errors that a user can act on: one sentence, no traceback."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend. The message says what is wrong, where, and what to do, in one sentence."""


def cli(main: Callable[[], None]) -> None:
    """Run a script's `main`; a UserError becomes one line on stderr and exit status 2, Ctrl-C one and status 130."""
    try:
        main()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
