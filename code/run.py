"""Every command beside the three stages: python code/run.py NAME [setting=value ...]; without a name, the list of them.

python code/run.py                                   # names, and what each is for
python code/run.py simulate_eeg                      # one of them
python code/run.py check_setup --help                # its settings
"""

import ast
import difflib
import importlib
import sys
from pathlib import Path

from runtime.errors import UserError, cli

COMMANDS = Path(__file__).parent / "commands"


def commands() -> dict[str, str]:
    """Name -> first line of the docstring of every command; nothing is imported, so the list costs no time."""
    files = sorted(path for path in COMMANDS.glob("*.py") if path.stem != "__init__")
    return {path.stem: (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0] for path in files}


def main() -> None:
    """Run the command that the first word names; the words behind it are its own."""
    known, words = commands(), sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, known))
        print("python code/run.py NAME [setting=value ...]", "", sep="\n")
        print(*(f"  {name:{width}}  {about}" for name, about in known.items()), sep="\n")
        return
    name = words[0]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise UserError(f"{name}: no such command; {hint} (python code/run.py lists them)")
    sys.argv = [f"run.py {name}", *words[1:]]
    importlib.import_module(f"commands.{name}").main()


if __name__ == "__main__":
    cli(main)
