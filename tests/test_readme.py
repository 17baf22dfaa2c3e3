"""The documents: the README runs as printed, its tables are true, and all name only what is there."""

from __future__ import annotations

import inspect
import re
import shlex
from itertools import chain
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F

import sparsekern as sk
from sparsekern import env, ops
from sparsekern.backends import BACKENDS
from sparsekern.experiments.arguments import given_keys
from sparsekern.experiments.command import build_parser, read_recipe
from sparsekern.experiments.pipeline.plan import load_pipeline, pipeline_keys, pipeline_names
from sparsekern.experiments.recipe import load_recipe, recipe_keys, recipe_names
from sparsekern.experiments.sweep.command import build_parser as build_sweep_parser

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
ARCHITECTURE = ROOT / "ARCHITECTURE.md"
OPS = ROOT / "docs" / "ops.md"
GUIDES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [README, ARCHITECTURE, ROOT / "CONTRIBUTING.md", *GUIDES]
FOLDERS = ("csrc", "kernels", "sparsekern", "benchmarks", "docs", "examples", "tests")
SOURCE_SUFFIXES = {".py", ".h", ".cpp", ".inl", ".cu", ".cuh", ".toml"}
# The op that CONTRIBUTING adds as its example.
EXAMPLE = "scale_rows"


def name(path: Path) -> str:
    return path.name


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def code_spans(text: str) -> list[str]:
    """What stands between single backquotes, line breaks made spaces."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def table(text: str, *header: str) -> list[list[str]]:
    """The rows of the Markdown table whose header begins with `header`, the first column's backquotes off."""
    lines = iter(text.splitlines())
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[: len(header)] == list(header):
            break
    else:
        raise AssertionError(f"no table with the header {header}")
    next(lines)
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        found.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return found


def named_files(text: str) -> list[str]:
    """Code spans that are paths: they begin with a folder of the repository, or end like a file."""
    begins = re.compile(rf"({'|'.join(FOLDERS)}|\.ci)/[\w./*-]*")
    ends = re.compile(r"[\w-]+\.(py|md|toml|txt|cpp|cu|cuh|h|inl|sh)")
    return [span for span in code_spans(text) if begins.fullmatch(span) or ends.fullmatch(span)]


def exists(path: str) -> bool:
    """Whether there is such a path from the root or, for a name without folders, in any folder."""
    if any(ROOT.glob(path.rstrip("/"))):
        return True
    return "/" not in path and any(any((ROOT / folder).rglob(path)) for folder in FOLDERS)


def missing(paths: list[str]) -> list[str]:
    return [path for path in paths if EXAMPLE not in path and not exists(path)]


@pytest.fixture(scope="module")
def readme() -> str:
    return README.read_text(encoding="utf-8")


def test_readme_is_short(readme):
    assert len(readme.splitlines()) < 200


def test_python_blocks_run_one_after_another(readme, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = fenced(readme, "python")
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)
    assert len(blocks) >= 2
    assert "converted 2 of 2 layers" in capsys.readouterr().out


@pytest.mark.parametrize("guide", GUIDES, ids=name)
def test_python_blocks_of_the_guides_run(guide, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in fenced(guide.read_text(encoding="utf-8"), "python"):
        exec(compile(block, str(guide), "exec"), namespace)
    if "Mixed" in namespace:
        assert_trains(namespace["Mixed"])


def assert_trains(method: type) -> None:
    """Three updates of a method on a small model."""
    model = torch.nn.Sequential(torch.nn.Linear(20, 20))
    sk.sparsify_(model, sparsity=0.5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    attached = method(model, optimizer, update_every=1)
    for _ in range(3):
        model(torch.randn(4, 20)).square().sum().backward()
        optimizer.step()
    assert attached.updates == 3


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_commands_that_set_everything_up_are_named(readme, target):
    assert re.search(rf"^make {target}\b", readme, re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_make_targets_exist(document):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", document.read_text(encoding="utf-8"), re.MULTILINE))
    assert {target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_relative_links_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    places = [link.partition("#")[0] for link in links if "://" not in link]
    assert [place for place in places if not (document.parent / place).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_named_files_exist(document):
    paths = named_files(document.read_text(encoding="utf-8"))
    assert paths or document in GUIDES
    assert missing(paths) == []


def test_architecture_names_only_what_the_source_has():
    """Every identifier in it, such as `native.isa_levels()`, is a word of the code: by its last part."""
    spans = code_spans(ARCHITECTURE.read_text(encoding="utf-8"))
    named = [re.fullmatch(r"(?:\w+\.)*([A-Za-z_]\w*)(?:\(.*\))?", span) for span in spans]
    files = chain([ROOT / "setup.py"], *((ROOT / folder).rglob("*") for folder in FOLDERS))
    sources = (path for path in files if path.suffix in SOURCE_SUFFIXES and path != Path(__file__).resolve())
    words = set(chain.from_iterable(re.findall(r"\w+", path.read_text(encoding="utf-8")) for path in sources))
    found = {match[1] for match in named if match and match[0] not in named_files(f"`{match[0]}`")}
    assert len(found) > 30
    assert found - words == set()


def test_figures_have_their_place(readme):
    begin, end = "<!-- figures:begin -->", "<!-- figures:end -->"
    assert readme.count(begin) == readme.count(end) == 1
    assert readme.index(begin) < readme.index(end)


def rows_of_ops() -> list[list[str]]:
    """All tables of ops, one after another."""
    _, *sections = OPS.read_text(encoding="utf-8").split("\n## ")
    return [row for section in sections for row in table(section, "op")]


class TestTheOpsTable:
    """Integers in float32, so that both sides are exact."""

    options: ClassVar[dict[str, int]] = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}

    def names(self, shape: tuple[int, ...], x_shape: tuple[int, ...]) -> dict[str, object]:
        """What the expressions in the table speak of."""
        generator = torch.Generator().manual_seed(0)

        def integers(*size: int) -> torch.Tensor:
            return torch.randint(-4, 5, size, generator=generator).float()

        pattern, other = (sk.Pattern.random(shape, 0.7, generator=generator) for _ in range(2))
        x, values = integers(*x_shape), integers(pattern.nnz)
        W = pattern.unpack(values)
        y = F.linear(x, W) if len(shape) == 2 else F.conv2d(x, W, **self.options)
        order = pattern.unpack(torch.arange(pattern.nnz) + 1)
        return {op: getattr(ops, op) for op in ops.__all__} | {
            "torch": torch,
            "F": F,
            "grad": torch.nn.grad,
            "options": self.options,
            "pattern": pattern,
            "other": other,
            "active": order.nonzero()[order[order > 0].argsort()].unbind(1),
            "values": values,
            "W": W,
            "mask": pattern.to_mask(),
            "count": 50,
            "dense": integers(*shape),
            "x": x,
            "dy": integers(*y.shape),
            "b": integers(shape[0]),
        }

    def two_four_names(self) -> dict[str, object]:
        dense = torch.randint(-4, 5, (20, 32), generator=torch.Generator().manual_seed(1)).float()
        packed = ops.pack_two_four(dense, transposable=True)
        mask = packed.to_mask()
        return {"dense": dense, "packed": packed, "mask": mask, "V": dense.where(mask, 0)}

    def test_has_every_op_once_with_its_backends(self):
        listed = rows_of_ops()
        rows = {row[0].partition("(")[0]: row[2].split(", ") for row in listed}
        assert len(rows) == len(listed)
        assert rows.keys() == {op for op in ops.__all__ if inspect.isfunction(getattr(ops, op))}
        for op, backends in rows.items():
            # Those made of other ops have no kernel of their own.
            named = [backend.name for backend in BACKENDS.values() if hasattr(backend.kernels, op)]
            assert not named or backends == named

    def test_both_sides_are_equal(self):
        checked = 0
        for call, expression, _ in rows_of_ops():
            expression = expression.partition("`, with")[0]
            try:
                compile(expression, call, "eval")
            except SyntaxError:
                continue  # a sentence in place of an expression
            checked += 1
            names = self.names((20, 30), (9, 30))
            if "packed" in call:
                names = self.names((20, 32), (9, 32)) | self.two_four_names()
            if "conv2d" in call:
                names = self.names((6, 4, 3, 3), (3, 8, 11, 13))
            got, expected = eval(call, names), eval(expression, names)
            if call.startswith("grow_candidates"):
                # In the order of positions, where topk is in that of values.
                got, expected = got[1].sort(descending=True).values, expected.values
            torch.testing.assert_close(got, expected, rtol=0, atol=0, msg=call)
        assert checked >= 18


@pytest.mark.parametrize("sparsity", [0.8, 0.9, 0.95, 0.98])
def test_memory_figures_are_those_of_a_pattern(readme, sparsity):
    pattern = sk.Pattern.random((4096, 4096), sparsity, generator=torch.Generator().manual_seed(0))
    header = ["", "dense", "80 %", "90 %", "95 %", "98 %"]
    for (_, dense, *cells), vectors in zip(table(readme, *header), (1, 4), strict=True):
        cell = cells[header.index(f"{100 * sparsity:g} %") - 2]
        stated, ratio = re.match(r"([\d.]+) \(([\d.]+)x", cell).groups()
        sparse = (4 * vectors * pattern.nnz + pattern.nbytes) / pattern.numel
        assert float(dense) == 4 * vectors
        assert float(stated) == round(sparse, 2)
        assert float(ratio) == round(4 * vectors / sparse, 1)


def test_all_recipes_are_named(readme):
    assert set(recipe_names()) <= set(code_spans(readme))


def test_the_demo_is_the_recipe_that_is_shown(readme):
    demo = load_recipe("lenet5-digits")
    assert f"step {demo.steps:,}/{demo.steps:,}" in readme
    assert f"LeNet-5 at {100 * demo.sparsity:g} % sparsity" in readme


@pytest.mark.parametrize("document", [README, ROOT / "docs" / "training.md"], ids=name)
def test_training_commands_are_accepted(document):
    text = document.read_text(encoding="utf-8")
    spans = [span for span in code_spans(text) if re.match(r"sparsekern train [a-z]", span)]
    assert len(spans) >= 2
    for span in spans:
        options = build_parser().parse_args(shlex.split(span)[2:])
        if options.recipe in pipeline_names():
            load_pipeline(options.recipe, given_keys(options, [*pipeline_keys(), *recipe_keys()]))
        else:
            read_recipe(options)


def test_sweep_commands_are_accepted():
    blocks = fenced((ROOT / "docs" / "training.md").read_text(encoding="utf-8"), "")
    commands = [block for block in blocks if block.startswith("sparsekern sweep")]
    assert commands
    for command in commands:
        build_sweep_parser().parse_args(shlex.split(command)[2:])


def test_all_environment_variables_are_named(readme):
    assert tuple(row[0] for row in table(readme, "variable")) == env.VARIABLES


def test_these_checks_can_fail():
    text = "`csrc/cpu/no_such_file.cpp`, `no_such_file.h` and `csrc/cpu/linear.cpp`, not `values.shape`"
    assert missing(named_files(text)) == ["csrc/cpu/no_such_file.cpp", "no_such_file.h"]
    with pytest.raises(AssertionError, match="no table"):
        table("| a | b |\n|---|---|\n| 1 | 2 |\n", "b")
    assert table("| a | b |\n|---|---|\n| `1` | 2 |\n", "a") == [["1", "2"]]
