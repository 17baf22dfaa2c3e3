"""What is built and shipped: source archive, wheel and editable install, and the errors of the build."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md")
FOLDERS = ("csrc", "kernels", "sparsekern")
# Runs in an installation, away from the source tree.
CHECK = """
import sys, sparsekern
from importlib import import_module, resources
from sparsekern import native
for name in ("kernels", "ops", "nn", "analysis", "experiments"):
    import_module(f"sparsekern.{name}")
assert "kernels" not in sys.modules
recipes = resources.files("sparsekern") / "experiments" / "recipes"
assert any(entry.name.endswith(".yaml") for entry in recipes.iterdir())
assert (resources.files("sparsekern") / "py.typed").is_file()
print(sparsekern.__file__, native.isa_levels())
"""


def run(*command: str | Path, **options) -> subprocess.CompletedProcess:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result


def copy_of_the_source(folder: Path) -> Path:
    """The files that a build reads, without what builds and runs leave in the tree."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in SHIPPED:
        shutil.copy2(ROOT / name, folder / name)
    return folder


def reuse_objects(folder: Path) -> None:
    """Gives a copy the objects that the tree's own build left; what is out of date is compiled again."""
    objects = ROOT / "build" / "native"
    if objects.is_dir():
        shutil.copytree(objects, folder / "build" / "native")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    folder = copy_of_the_source(tmp_path_factory.mktemp("source"))
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder / "dist", folder)
    return next((folder / "dist").glob("*.tar.gz"))


@pytest.fixture(scope="module")
def unpacked(sdist, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder)
    return next(folder.iterdir())


@pytest.fixture(scope="module")
def wheel(unpacked) -> Path:
    reuse_objects(unpacked)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", unpacked / "dist", unpacked)
    return next((unpacked / "dist").glob("*.whl"))


def files_under(folder: Path) -> set[str]:
    paths = (path.relative_to(folder) for name in FOLDERS for path in (folder / name).rglob("*"))
    wanted = {".h", ".cuh", ".inl", ".cpp", ".cu", ".py", ".typed", ".yaml"}
    return {str(path) for path in paths if path.suffix in wanted}


def test_sdist_has_every_source_file(unpacked):
    assert files_under(unpacked) == files_under(ROOT)
    assert {"csrc/cuda/transfer.cu", "csrc/include/sparsekern/pattern.h"} <= files_under(unpacked)
    assert all((unpacked / name).is_file() for name in SHIPPED)


def test_wheel_has_the_package_the_kernels_and_the_extension(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        str(path) if path.parts[0] == "sparsekern" else str("sparsekern" / path)
        for path in map(Path, files_under(ROOT))
        if path.parts[0] in {"sparsekern", "kernels"}
    }
    extension = {name for name in names if name.startswith("sparsekern/_C.") and name.endswith(".so")}
    metadata = {name for name in names if ".dist-info/" in name}
    assert len(extension) == 1
    assert names - extension - metadata == expected


def test_wheel_is_complete_when_installed(wheel, tmp_path):
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "site", wheel)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    output = run(sys.executable, "-c", CHECK, cwd=tmp_path, env=environment).stdout
    assert output.startswith(str(tmp_path / "site"))


def test_editable_install_is_complete(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    copy_of_the_source(source)
    reuse_objects(source)
    venv.create(tmp_path / "venv")
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    # pip and the dependencies come from the environment that runs the tests. Only its folders are taken
    # along, so a sparsekern that is installed there as editable is not seen.
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if "site-packages" in path))
    python = tmp_path / "venv" / "bin" / "python"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-e",
        source,
    )
    output = run(python, "-c", CHECK, cwd=tmp_path).stdout
    assert output.startswith(str(source))


@pytest.mark.slow
def test_source_archive_builds_in_isolation_without_cuda(sdist, tmp_path):
    environment = {**os.environ, "SPARSEKERN_CUDA": "0"}
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, sdist]
    run(*command, env=environment)
    assert len(list(tmp_path.glob("sparsekern-*.whl"))) == 1


def build_error(tmp_path: Path, **variables: str) -> str:
    """The error lines of a build under other environment variables."""
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build_ext",
        "--build-lib",
        tmp_path,
        "--build-temp",
        tmp_path,
    ]
    environment = {**os.environ, "PATH": str(tmp_path), "PYTHONWARNINGS": "ignore", **variables}
    for name in ("CXX", "CUDA_HOME", "SPARSEKERN_CUDA", "SPARSEKERN_CUDA_ARCHS"):
        if name not in variables:
            environment.pop(name, None)
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert result.returncode == 1
    return result.stderr


def fake(tmp_path: Path, name: str, script: str = "exit 0") -> None:
    path = tmp_path / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_missing_compiler_is_one_clear_error(tmp_path):
    error = build_error(tmp_path)
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "apt-get install g++" in error


def test_wrong_cxx_is_named(tmp_path):
    assert "CXX is set to 'no-such-compiler'" in build_error(tmp_path, CXX="no-such-compiler")


def test_cuda_that_is_asked_for_and_missing_is_an_error(tmp_path):
    fake(tmp_path, "g++")
    assert "SPARSEKERN_CUDA=1 needs nvcc" in build_error(tmp_path, SPARSEKERN_CUDA="1")


def test_bad_cuda_setting_is_an_error(tmp_path):
    fake(tmp_path, "g++")
    assert "SPARSEKERN_CUDA must be auto, 0 or 1, not 'yes'" in build_error(tmp_path, SPARSEKERN_CUDA="yes")


def test_unknown_architecture_is_an_error(tmp_path):
    fake(tmp_path, "g++")
    fake(tmp_path, "nvcc", "echo compute_80; echo compute_90")
    error = build_error(tmp_path, SPARSEKERN_CUDA_ARCHS="80;33")
    assert "'33' is not one of this nvcc's architectures (80;90)" in error


def test_failing_compiler_shows_its_message_once(tmp_path):
    fake(tmp_path, "g++", 'echo "bindings.cpp:1: broken" >&2; exit 1')
    # A flag that no earlier build had, so that no object of one is used.
    error = build_error(tmp_path, SPARSEKERN_CUDA="0", CXXFLAGS="-DFROM_A_TEST")
    assert "error: could not compile csrc/" in error
    assert error.count("bindings.cpp:1: broken") == 1
