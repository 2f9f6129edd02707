"""Figures of training to wandb, where that is asked for; once it has begun, nothing that fails there ends a run."""

import contextlib
from pathlib import Path

from runtime.errors import UserError, first_line


class _Log:
    works = False


def start(folder: Path) -> None:
    """Begin a run of wandb, which keeps its files in `folder`. Raises UserError: wandb is missing, no login, no net."""
    try:
        import wandb

        wandb.init(dir=folder, name=folder.name, settings=wandb.Settings(finish_timeout=60))
    except Exception as error:  # which of its many, and of its libraries', wandb does not promise
        mend = "run `wandb login`, set WANDB_MODE=offline in the environment, or use wandb=false"
        raise UserError(f"wandb=true, but wandb cannot begin ({first_line(error)}): {mend}") from error
    _Log.works = True


def call(method: str, *arguments: object) -> None:
    """Of wandb, if it was started: `log` with figures and their step, or `teardown`, which takes a minute at most."""
    if _Log.works:
        import wandb

        try:
            getattr(wandb, method)(*arguments)
        except Exception as error:  # as above
            _Log.works = False
            print(
                f"note: wandb failed ({first_line(error)}) and is left out from here on; metrics.csv holds all figures"
            )
            with contextlib.suppress(Exception):  # else it fails once more, as the process ends
                wandb.teardown()
