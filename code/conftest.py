"""Its place puts `code/` first on the path of the tests; fixtures that several of them share."""

import re
from pathlib import Path

import pytest

CODE = Path(__file__).parent
SHARED = CODE.parents[1] / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real recordings and pictures beside the checkout; the test is skipped where they are missing."""
    if not (SHARED / "data").is_dir():
        pytest.skip("../shared/data is not there")
    return SHARED / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fidelity", action="store_true", help="print how far each part is from its oracle, as a table")
    parser.addoption("--room", help="run only the test files that import this folder or module of code/, such as data")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    room = config.getoption("--room")
    if not room or not collection_path.name.startswith("test_"):
        return None
    if not (CODE / room).is_dir() and not (CODE / f"{room}.py").is_file():
        raise pytest.UsageError(f"--room {room}: there is no such folder or module in code/")
    return None if re.search(rf"^\s*(from|import) {room}\b", collection_path.read_text(), re.MULTILINE) else True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--fidelity"):
        import fidelity  # its folder is on the path once tests were collected

        terminalreporter.write_line(fidelity.table())
