"""Build of the native extension `sparsekern._C` (C++17, and CUDA where nvcc is found).

Everything that needs no code is in pyproject.toml. Nothing here imports torch: the extension takes
plain pointers, so one wheel serves every torch. Variables that are read:

SPARSEKERN_CUDA        auto (default): with nvcc if it is found; 1: with nvcc or fail; 0: without
SPARSEKERN_CUDA_ARCHS  compute capabilities, "80;90;100" by default; the last one is also embedded as PTX
CUDA_HOME, CXX, CXXFLAGS, LDFLAGS   as usual
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = Path("csrc")
DEFAULT_CUDA_ARCHS = ("80", "90", "100")
ON_X86 = platform.machine().lower() in {"x86_64", "amd64"}

# Instruction sets are a matter of the file: the code picks one of them at run time, so everything else has
# to stay on the baseline that every machine has.
AVX2_FLAGS = "-mavx2 -mfma -mbmi -mbmi2 -mpopcnt -mlzcnt".split()
AVX512_FLAGS = [*"-mavx512f -mavx512bw -mavx512dq -mavx512vl".split(), *AVX2_FLAGS]
X86_FLAGS = {
    "_avx2": AVX2_FLAGS,
    "_avx512": AVX512_FLAGS,
    "_vbmi2": ["-mavx512vbmi", "-mavx512vbmi2", *AVX512_FLAGS],
    "_vnni": ["-mavx512vnni", "-mavx512vbmi", *AVX512_FLAGS],
}

# -ffp-contract=fast is GCC's default, stated because compilers differ in it: a multiply and an add fuse where
# the instruction set has FMA. No other floating-point liberty is taken.
# -fopenmp asks for libgomp.so.1. torch ships a library of that soname and is always imported before
# sparsekern._C, so both share one OpenMP runtime and one pool of threads.
# -mno-mmx: where GCC runs out of registers it uses those of MMX, and never empties them. They are the x87
# unit's, whose next results, those of NumPy's fmod for one, are NaN then.
CXX_FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=fast -fopenmp -Wall -Wextra".split()
CXX_FLAGS += ["-mno-mmx"] if ON_X86 else []
# For `build_ext --sanitize`. Without optimization, which would remove what the sanitizers look for, and take
# half a minute for some files. The bindings are compiled as ever: they take longest, and only hand on.
SANITIZERS = ["-fsanitize=address", "-fsanitize=undefined"]
SANITIZE_FLAGS = [*"-O0 -g1 -fno-omit-frame-pointer -fno-sanitize-recover=all".split(), *SANITIZERS]
NVCC_FLAGS = "-std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden".split()


def fail(message: str) -> NoReturn:
    raise SystemExit(f"error: {message}")


def isa_suffix(source: Path) -> str:
    """The instruction set in a source's name ("_avx2", "_avx512", ...), or "" for the baseline."""
    return next((suffix for suffix in X86_FLAGS if source.stem.endswith(suffix)), "")


def cpp_sources() -> list[Path]:
    """C++ sources in link order.

    The baseline comes first: of an inline function that several objects define, the linker keeps the first
    copy, and a copy compiled for AVX-512 must not be the one that an older machine runs.
    """
    sources = [*sorted((CSRC / "cpu").glob("*.cpp")), *sorted(CSRC.glob("bindings*.cpp"))]
    if not ON_X86:
        sources = [source for source in sources if not isa_suffix(source)]
    order = ["", *X86_FLAGS]
    return sorted(sources, key=lambda source: order.index(isa_suffix(source)))


def find_cxx() -> list[str]:
    """The C++ compiler's command, from CXX or PATH."""
    if os.environ.get("CXX"):
        command = shlex.split(os.environ["CXX"])
        if shutil.which(command[0]) is None:
            fail(f"CXX is set to {os.environ['CXX']!r}, which is no command on this machine")
        return command
    found = next((name for name in ("g++", "c++", "clang++") if shutil.which(name)), None)
    if found is None:
        fail(
            "sparsekern is compiled on installation, and no C++ compiler (g++, c++, clang++) is on PATH; "
            "install one, for example with `apt-get install g++`, or name it in CXX"
        )
    return [found]


def find_nvcc() -> str | None:
    """nvcc, or None where SPARSEKERN_CUDA does without."""
    wanted = os.environ.get("SPARSEKERN_CUDA", "auto")
    if wanted not in {"auto", "0", "1"}:
        fail(f"SPARSEKERN_CUDA must be auto, 0 or 1, not {wanted!r}")
    if wanted == "0":
        return None
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=str(Path(home, "bin"))) if home else None
    nvcc = nvcc or shutil.which("nvcc")
    if nvcc is None and wanted == "1":
        fail("SPARSEKERN_CUDA=1 needs nvcc, and it is neither in CUDA_HOME/bin nor on PATH")
    return nvcc


def cuda_archs(nvcc: str) -> tuple[str, ...]:
    """The compute capabilities to compile for: those asked for, or those of the default that nvcc knows."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"compute_(\w+)", listed))
    text = os.environ.get("SPARSEKERN_CUDA_ARCHS")
    if text is None:
        default = tuple(arch for arch in DEFAULT_CUDA_ARCHS if arch in known)
        if not default:
            fail(
                f"{nvcc} compiles for none of {', '.join(DEFAULT_CUDA_ARCHS)}; name compute capabilities in "
                "SPARSEKERN_CUDA_ARCHS, or set SPARSEKERN_CUDA=0"
            )
        return default
    archs = tuple(part.strip() for part in text.split(";"))
    unknown = [arch for arch in archs if arch.rstrip("af") not in known]
    if unknown:
        fail(
            f"SPARSEKERN_CUDA_ARCHS={text!r}: {unknown[0]!r} is not one of this nvcc's architectures "
            f"({';'.join(sorted(known, key=lambda arch: (len(arch), arch)))})"
        )
    return archs


def python_includes() -> list[str]:
    """Include flags for Python and pybind11, whose own warnings are of no interest."""
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").exists():
        fail(f"Python.h is not in {include}; install Python's headers, e.g. `apt-get install python3-dev`")
    try:
        import pybind11
    except ImportError:
        fail("pybind11 is needed to build without isolation; run `pip install pybind11`")
    return ["-isystem", include, "-isystem", pybind11.get_include()]


@dataclass(frozen=True)
class Toolchain:
    """The commands that turn one source into an object and the objects into the extension."""

    cxx: list[str]
    nvcc: str | None
    archs: tuple[str, ...]
    sanitize: bool

    @classmethod
    def find(cls, sanitize: bool = False) -> Toolchain:
        cxx = find_cxx()
        nvcc = find_nvcc()
        return cls(cxx, nvcc, cuda_archs(nvcc) if nvcc else (), sanitize)

    def sources(self) -> list[Path]:
        return cpp_sources() + (sorted((CSRC / "cuda").glob("*.cu")) if self.nvcc else [])

    def sanitizes(self, source: Path) -> bool:
        return self.sanitize and source.parent.name == "cpu"

    def compile_command(self, source: Path) -> list[str]:
        include = ["-I", str(CSRC / "include")]
        if source.suffix == ".cu":
            return [*self._nvcc(), *NVCC_FLAGS, *self._gencode(), *include, "-c", str(source)]
        command = [*self.cxx, *CXX_FLAGS, *X86_FLAGS.get(isa_suffix(source), [])]
        if not ON_X86:
            command.append("-DSPARSEKERN_NO_X86")
        if source.name.startswith("bindings"):
            command += python_includes()
            if self.nvcc:
                command += ["-DSPARSEKERN_WITH_CUDA", f'-DSPARSEKERN_CUDA_ARCHS="{";".join(self.archs)}"']
        command += shlex.split(os.environ.get("CXXFLAGS", ""))
        return [*command, *(SANITIZE_FLAGS if self.sanitizes(source) else []), *include, "-c", str(source)]

    def link_command(self, objects: list[Path]) -> list[str]:
        names = [str(path) for path in objects]
        flags = shlex.split(os.environ.get("LDFLAGS", ""))
        flags += SANITIZERS if self.sanitize else []
        if not self.nvcc:
            return [*self.cxx, "-shared", "-fopenmp", *flags, *names]
        # nvcc links, because it knows where its static runtime is. With a static runtime nothing of CUDA is
        # looked for when the extension is loaded, so it loads on a machine without a GPU or a driver.
        host = ["-Xcompiler", ",".join(["-fopenmp", *flags])]
        return [*self._nvcc(), "-shared", "-cudart", "static", *self._gencode(), *host, *names]

    def _nvcc(self) -> list[str]:
        named = ["-ccbin", shutil.which(self.cxx[0])] if os.environ.get("CXX") and len(self.cxx) == 1 else []
        return [self.nvcc, *named]

    def _gencode(self) -> list[str]:
        code = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in self.archs]
        return [*code, f"-gencode=arch=compute_{self.archs[-1]},code=compute_{self.archs[-1]}"]


def run(command: list[str], output: Path, what: str) -> None:
    """Runs a command that writes `output`, which appears whole or not at all."""
    partial = output.with_name(f"{output.name}.{os.getpid()}.partial")
    output.parent.mkdir(parents=True, exist_ok=True)
    result = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True)
    if result.returncode != 0:
        partial.unlink(missing_ok=True)
        fail(f"could not {what}:\n  {shlex.join(command)}\n{result.stdout}{result.stderr}")
    sys.stderr.write(result.stderr)
    os.replace(partial, output)


def compile_source(tools: Toolchain, source: Path, objects: Path, headers_time: float) -> Path:
    """Compiles one source unless its object is newer than it and all headers and was made the same way."""
    output = objects / source.with_suffix(source.suffix + ".o")
    made_by = output.with_suffix(".command")
    command = tools.compile_command(source)
    if output.exists() and made_by.exists() and made_by.read_text() == shlex.join(command):
        if output.stat().st_mtime > max(headers_time, source.stat().st_mtime):
            return output
    run(command, output, f"compile {source}")
    made_by.write_text(shlex.join(command))
    return output


def build_native(target: Path, sanitize: bool = False) -> None:
    """Compiles what changed, as many files at once as there are cores, and links the extension."""
    tools = Toolchain.find(sanitize)
    sources = tools.sources()
    headers = [path for path in CSRC.rglob("*") if path.suffix in {".h", ".cuh", ".inl"}]
    headers_time = max((path.stat().st_mtime for path in headers), default=0.0)
    # Under build/ rather than in the temporary folder that pip gives, which would be empty every time.
    objects = Path("build", "native", sysconfig.get_config_var("SOABI"))

    def compiled(source: Path) -> Path:
        folder = Path("build", "sanitize", "objects") if tools.sanitizes(source) else objects
        return compile_source(tools, source, folder, headers_time)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        made = list(pool.map(compiled, sources))
    run(tools.link_command(made), target, f"link {target.name}")


class BuildNative(build_ext):
    """`build_ext` with this file's compilation in place of distutils' one file after another."""

    user_options = [  # noqa: RUF012 (as distutils has it)
        *build_ext.user_options,
        ("sanitize", None, "the CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer"),
    ]
    boolean_options = [*build_ext.boolean_options, "sanitize"]  # noqa: RUF012

    def initialize_options(self) -> None:
        super().initialize_options()
        self.sanitize = False

    def build_extension(self, ext: Extension) -> None:
        build_native(Path(self.get_ext_fullpath(ext.name)).resolve(), bool(self.sanitize))


os.chdir(ROOT)
setup(
    packages=[
        *find_packages(include=["sparsekern", "sparsekern.*"]),
        "sparsekern.experiments.recipes",
        "sparsekern.experiments.pipelines",
        "sparsekern.kernels",
    ],
    package_dir={"sparsekern.kernels": "kernels"},
    package_data={
        "sparsekern": ["py.typed"],
        "sparsekern.experiments.recipes": ["*.yaml"],
        "sparsekern.experiments.pipelines": ["*.yaml"],
    },
    ext_modules=[Extension("sparsekern._C", [str(source) for source in cpp_sources()])],
    cmdclass={"build_ext": BuildNative},
)
