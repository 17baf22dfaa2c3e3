"""The environment report: complete, aligned, and of use when something is broken."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sparsekern
from sparsekern import env, native

ENV_FILE = Path(env.__file__)


def test_values_are_those_of_this_process():
    found = env.collect_env()
    assert found["sparsekern"] == sparsekern.__version__
    assert found["Python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert found["PyTorch"].startswith(f"{torch.__version__}, {torch.get_num_threads()} thread")
    assert all(level in found["CPU kernels"] for level in native.isa_levels())


def test_report_is_aligned():
    found = env.collect_env()
    lines = env.report().splitlines()
    column = max(map(len, found)) + 2
    assert [line[:column].strip() for line in lines] == list(found)
    assert [line[column:] for line in lines] == list(found.values())


def test_variables_are_shown(monkeypatch):
    monkeypatch.setenv("SPARSEKERN_CUDA_ARCHS", "90")
    monkeypatch.delenv("SPARSEKERN_CUDA", raising=False)
    found = env.collect_env()
    assert found["SPARSEKERN_CUDA_ARCHS"] == "90"
    assert found["SPARSEKERN_CUDA"] == "not set"


def test_every_variable_that_is_read_is_shown():
    root = ENV_FILE.parents[1]
    sources = [root / "setup.py", *(root / "sparsekern").rglob("*.py"), *(root / "kernels").rglob("*.py")]
    lines = (line for source in sources for line in source.read_text().splitlines() if "environ" in line)
    read = {name for line in lines for name in re.findall(r'"(SPARSEKERN_\w+)"', line)}
    assert read == set(env.VARIABLES)


def test_a_missing_extension_is_an_answer(monkeypatch):
    monkeypatch.setitem(sys.modules, "sparsekern.native", None)
    found = env.collect_env()
    assert found["CPU kernels"].startswith("not available: ")
    assert found["CUDA kernels"].startswith("not available: ")
    assert found["PyTorch"].startswith(torch.__version__)


def test_an_error_without_text_is_named():
    def broken() -> str:
        raise RuntimeError

    assert env._answer(broken) == "not available: RuntimeError"


@pytest.mark.parametrize(
    ("archs", "shown"), [("80;90", "sm_80, sm_90"), (["80"], "sm_80"), (None, "not built")], ids=str
)
def test_cuda_architectures(monkeypatch, archs, shown):
    class Extension:
        pass

    if archs is not None:
        Extension.cuda_archs = staticmethod(lambda: archs)
    monkeypatch.setattr(native, "_C", Extension)
    assert env.collect_env()["CUDA kernels"] == shown


def test_importing_the_module_imports_nothing_heavy():
    script = (
        "import importlib.util, sys, types\n"
        "package = types.ModuleType('sparsekern'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['sparsekern'] = package\n"
        "import sparsekern.env\n"
        "print(sorted({'numpy', 'torch', 'triton', 'sparsekern._C'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, str(ENV_FILE.parent)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"
