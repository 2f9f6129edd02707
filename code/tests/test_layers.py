"""The arrows between the parts, and names that must not shadow the standard library or a dependency (DESIGN 2)."""

import ast
import sys
from importlib import metadata
from pathlib import Path

CODE = Path(__file__).parents[1]
PACKAGES = {"sc_mbm", "dc_ldm", "miniature", "runtime", "data", "vision", "evaluation", "commands"}
MODULES = {p.stem for p in CODE.glob("*.py")}
MAY_IMPORT = {"runtime": {"runtime"}, **{p: {p, "runtime"} for p in ("sc_mbm", "dc_ldm", "miniature")}}


def imports(path: Path) -> set[str]:
    """First words of all modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def sources() -> list[Path]:
    return [p for p in CODE.rglob("*.py") if "tests" not in p.parts]


def test_packages_import_only_what_they_may():
    for package, allowed in MAY_IMPORT.items():
        for path in (CODE / package).rglob("*.py"):
            ours = imports(path) & (PACKAGES | MODULES)
            assert ours <= allowed, f"{path.name} imports {ours - allowed}"


def test_config_imports_nothing_of_ours_but_errors():
    assert imports(CODE / "config.py") & (PACKAGES | MODULES) <= {"runtime"}


def test_data_metrics_and_page_build_no_model():
    for name in ("dataset", "eval_metrics", "evaluation/page/page"):
        assert not imports(CODE / f"{name}.py") & {"sc_mbm", "dc_ldm", "miniature"}, name


def test_code_is_no_package():
    # code/__init__.py would hide the standard library's `code`, and with it pdb and pytest
    assert not (CODE / "__init__.py").exists()


def test_no_module_is_named_like_another():
    taken = set(sys.stdlib_module_names) | set(metadata.packages_distributions())
    ours = MODULES | {p.name for p in CODE.iterdir() if p.is_dir()}
    assert not (ours - {"conftest", "tests", "__pycache__"}) & taken


def test_file_and_function_sizes():
    for path in sources():
        text = path.read_text()
        assert text.count("\n") <= 300, f"{path.name} has more than 300 lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= 60, f"{path.name}: {node.name} has {length} lines"
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{path.name}:{node.lineno}: bare except"
