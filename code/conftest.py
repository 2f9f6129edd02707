"""Its place puts `code/` first on the path of the tests; fixtures that several of them share."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real recordings and pictures beside the checkout; the test is skipped where they are missing."""
    if not (SHARED / "data").is_dir():
        pytest.skip("../shared/data is not there")
    return SHARED / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fidelity", action="store_true", help="print how far each part is from its oracle, as a table")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--fidelity"):
        import fidelity  # its folder is on the path once tests were collected

        terminalreporter.write_line(fidelity.table())
