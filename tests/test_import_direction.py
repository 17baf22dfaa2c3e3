"""The structure of the source: imports point downward, and files and functions stay small.

Everything is read from syntax trees, so nothing is imported here and lazy imports count too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sparsekern"

# From the bottom up. A unit is a folder or a file of the package; it imports from its own line and below.
# __init__ is the public interface: what stands above it uses it as any user does, what is below never does.
LAYERS = [
    {"_version", "files", "state_files", "timing", "user_code"},
    {"native", "kernels", "_C"},
    {"formats", "seeds", "geometry", "candidates"}
    | {"backends", "cpp", "cuda", "semi_structured", "triton", "two_four_layouts", "reference"},
    {"ops"},
    {"nn", "init"},
    {"analysis", "methods"},
    {"distributed", "export", "integrations"},
    {"__init__"},
    {"experiments", "env", "bench", "convert"},
    {"cli"},
    {"__main__"},
]
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def python_files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


PRODUCT_PYTHON = [*python_files("sparsekern", "kernels", "benchmarks"), ROOT / "setup.py"]
ALL_PYTHON = [*PRODUCT_PYTHON, *python_files("tests")]
NATIVE = [
    path
    for path in sorted((ROOT / "csrc").rglob("*"))
    if path.suffix in {".h", ".cuh", ".inl", ".cpp", ".cu"}
]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> list[str]:
    """The module's dotted name in parts; kernels/ is installed as sparsekern.kernels."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] == "kernels":
        parts.insert(0, "sparsekern")
    return parts


def imported_modules(source: str, module: list[str]) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything that a module imports, relative imports resolved."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # Both module.py and package/__init__.py resolve "." to the folder that they are in.
            parents = module[: len(module) - node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def unit_of(dotted: str) -> str | None:
    """The unit of the package that an imported name is in, or None for another package."""
    parts = dotted.split(".")
    if parts[0] != "sparsekern":
        return None
    # `import sparsekern` and `from sparsekern import linear` go through the package's own __init__.
    return parts[1] if len(parts) > 1 and parts[1] in LEVEL else "__init__"


def upward_imports(source: str, module: list[str]) -> list[str]:
    importer = module[1]
    return [
        f"line {line}: {importer} imports {dotted}"
        for line, dotted in imported_modules(source, module)
        if (unit := unit_of(dotted)) is not None and LEVEL[unit] > LEVEL[importer]
    ]


@pytest.mark.parametrize("path", python_files("sparsekern", "kernels"), ids=name)
def test_imports_point_downward(path):
    module = module_of(path)
    assert module[1] in LEVEL, f"{module[1]} has no layer; give it one in LAYERS"
    assert upward_imports(path.read_text(), module) == []


def test_units_of_one_layer_do_not_import_each_other_in_a_circle():
    imports: dict[str, set[str]] = {unit: set() for unit in LEVEL}
    for path in python_files("sparsekern", "kernels"):
        module = module_of(path)
        units = {unit_of(dotted) for _, dotted in imported_modules(path.read_text(), module)}
        imports[module[1]] |= units - {None, module[1]}
    while leaves := [unit for unit, used in imports.items() if not used]:
        imports = {unit: used - set(leaves) for unit, used in imports.items() if unit not in leaves}
    assert imports == {}


@pytest.mark.parametrize("path", ALL_PYTHON, ids=name)
def test_nothing_imports_the_kernels_folder(path):
    """`import kernels` works from the root and makes a second copy of every JIT function."""
    module = module_of(path)
    roots = {dotted.split(".")[0] for _, dotted in imported_modules(path.read_text(), module)}
    assert "kernels" not in roots


@pytest.mark.parametrize("path", NATIVE, ids=name)
def test_only_the_bindings_know_python_and_nothing_knows_torch(path):
    included = re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)', path.read_text(), re.MULTILINE)
    banned = ("torch/", "ATen/", "c10/")
    if not path.name.startswith("bindings"):
        banned += ("pybind11", "Python.h")
    assert [header for header in included if header.startswith(banned)] == []


@pytest.mark.parametrize("path", [*ALL_PYTHON, *NATIVE], ids=name)
def test_file_is_short(path):
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_FILE_LINES


def long_functions(source: str) -> list[str]:
    """Functions over the limit; a docstring does not count, since a formula is worth its lines."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            documented = ast.get_docstring(node) is not None
            docstring = node.body[0].end_lineno - node.body[0].lineno + 1 if documented else 0
            lines = node.end_lineno - node.lineno + 1 - docstring
            if lines > MAX_FUNCTION_LINES:
                found.append(f"{node.name}: {lines} lines")
    return found


@pytest.mark.parametrize("path", ALL_PYTHON, ids=name)
def test_functions_are_short(path):
    assert long_functions(path.read_text()) == []


class TestTheseChecksCanFail:
    @pytest.mark.parametrize(
        "statement",
        [
            "from sparsekern.nn import SparseLinear",
            "import sparsekern.methods",
            "import sparsekern as sk",
            "from sparsekern import linear",
            "from ..nn import base",
            "def f():\n    from sparsekern.cli import main",
        ],
    )
    def test_upward(self, statement):
        assert len(upward_imports(statement, ["sparsekern", "ops", "linear"])) == 1

    @pytest.mark.parametrize(
        "statement",
        [
            "from sparsekern.formats import Pattern",
            "from sparsekern import native",
            "from .conv2d import conv2d",
            "from . import schema",
            "from sparsekern.kernels import tile_decode",
            "import torch",
        ],
    )
    def test_downward(self, statement):
        assert upward_imports(statement, ["sparsekern", "ops", "linear"]) == []

    def test_long_function(self):
        body = "    x = 1\n"
        assert long_functions("def f():\n" + body * MAX_FUNCTION_LINES) == ["f: 61 lines"]
        assert long_functions("def f():\n" + body * (MAX_FUNCTION_LINES - 1)) == []
        documented = 'def f():\n    """One.\n\n    Two.\n    """\n' + body * (MAX_FUNCTION_LINES - 1)
        assert long_functions(documented) == []
