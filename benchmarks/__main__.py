"""``python -m benchmarks``: measure, print tables, and merge the figures into the machine's results file."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import dynamic, lenet, machine, memory, overhead, speed, store, topology
from benchmarks.cases import SPARSITIES
from benchmarks.contenders import SPARSE
from benchmarks.gpu import sections as gpu
from benchmarks.gpu.tables import bar_table, missing
from benchmarks.markdown import document
from benchmarks.plot import draw
from benchmarks.report import tables
from benchmarks.settings import Settings
from sparsekern.files import write_atomically

Sections = dict[str, tuple[str, Callable[[Settings], Iterable[dict[str, Any]]]]]
RESULTS = machine.ROOT / "benchmarks" / "results"
SECTIONS: Sections = {
    "linear": ("linear layers, forward and backward", lambda s: speed.layers("linear", s)),
    "conv": ("convolutions, forward and backward", lambda s: speed.layers("conv", s)),
    "breakeven": ("the sparsity from which on sparse is faster", speed.sweep),
    "memory": ("weights, gradients, optimizer state and a step's peak", memory.measure),
    "lenet": ("a training step of LeNet-5", lenet.measure),
    "topology": ("dropping and growing positions", topology.measure),
    "dynamic": ("training steps with updates of the masks", dynamic.measure),
    "overhead": ("the cost of a call", overhead.measure),
}
CUDA_SECTIONS: Sections = {
    "gpu-memory": ("memory of training a transformer (with --device cuda)", gpu.training),
    "gpu-training": ("training steps of whole networks (with --device cuda)", gpu.steps),
    "gpu": ("ops on a GPU (with --device cuda)", gpu.ops),
}
QUICK_SECONDS = 0.005
SECONDS = {"cpu": 0.5, "cuda": 0.05}
# Of what did not run, as many lines are printed.
MOST_LINES = 20
# The contenders that are this project's: a wrong result of theirs fails the run.
OURS = (SPARSE, "sparsekern masked", "sparsekern channels-last")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections asked for; 0, or 1 when a result of sparsekern's is wrong."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    offered = CUDA_SECTIONS if options.device == "cuda" else SECTIONS
    chosen = list(offered) if options.sections in ([], ["all"]) else options.sections
    if options.quick:
        # On tensors of the CPU, so that every line runs where no GPU is.
        offered = {**offered, **CUDA_SECTIONS}
    unknown = [name for name in chosen if name not in offered and chosen not in (["report"], ["bars"])]
    if unknown:
        names = ", ".join([*offered, "all", "report", "bars"])
        parser.error(f"unknown section {unknown[0]!r}; on {options.device} there are {names}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that PyTorch can use; `sparsekern env` says what it finds")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    folder = options.output or (None if options.quick else RESULTS)
    # Quick figures have a file of their own, and so never replace real ones.
    name = machine.file_name(options.device) + ("-quick" if options.quick else "")
    path = None if folder is None else folder / f"{name}.json"
    old = _load(parser, path)
    if chosen in (["report"], ["bars"]):
        return _report(parser, path, old, only_bars=chosen == ["bars"])
    if old is not None and not store.belongs(old, machine.describe(options.device)):
        print(f"note: {path} is of another machine and will be replaced", file=sys.stderr)
    settings = Settings(
        options.quick,
        options.sparsity,
        QUICK_SECONDS if options.quick else options.seconds or SECONDS[options.device],
        options.device,
        time.monotonic() + options.seconds_total,
        options.tuned,
    )
    command = " ".join(["python -m benchmarks", *chosen, *(["--quick"] if options.quick else [])])
    run = machine.provenance(command, machine.load())
    if run["load_at_start"] > machine.IDLE_LOAD:
        print(f"note: the machine is busy (load {run['load_at_start']})", file=sys.stderr)
    found: dict[str, list[dict[str, Any]]] = {}
    try:
        for section in chosen:
            records = found[section] = []
            _measure(section, offered[section][1], settings, run, path, records)
    except KeyboardInterrupt:
        settings.done()
        print("stopped; the sections above are complete", file=sys.stderr)
        return 130
    if set(chosen) & set(CUDA_SECTIONS):
        _print_bars(found)
    return int(_is_wrong(found))


def _measure(
    section: str,
    measure: Callable[[Settings], Iterable[dict[str, Any]]],
    settings: Settings,
    run: dict[str, Any],
    path: Path | None,
    records: list[dict[str, Any]],
) -> None:
    """Measure one section into `records`, print its tables and save it."""
    try:
        for record in measure(settings):
            records.append(record)
    finally:
        settings.done()
        # On a GPU, where a section is a list by importance, what was measured before a stop is worth keeping.
        if records and (section in CUDA_SECTIONS or sys.exc_info()[0] is None):
            about = machine.describe(settings.device)
            merged = store.merge(None, about, run, section, records, quick=settings.quick)
            for table in tables(merged, section):
                print(table.text())
            if path is not None:
                save(path, store.merge(store.load(path), about, run, section, records, quick=settings.quick))


def _is_wrong(found: dict[str, list[dict[str, Any]]]) -> bool:
    """Whether a result of sparsekern's is wrong."""
    times = [record.get("times", {}) for records in found.values() for record in records]
    return any("wrong" in time.get(name, {}) for time in times for name in OURS)


def save(path: Path, results: store.Results) -> None:
    """The results and what is made from them: JSON, Markdown and, with matplotlib, the picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, store.dumps(results).encode())
    title = f"sparsekern on {machine.title(results['machine'])}"
    picture = None
    try:
        for suffix in ("png", "svg"):
            write_atomically(path.with_suffix(f".{suffix}"), draw(results, title, suffix))
        picture = path.with_suffix(".svg").name
    except ImportError:
        print("note: no picture, matplotlib is not installed", file=sys.stderr)
    except ValueError:
        pass  # nothing measured yet that has a sparsity axis
    write_atomically(path.with_suffix(".md"), document(results, title, picture).encode())
    print(f"{path.with_suffix('')}.json, .md{', .svg, .png' if picture else ''}\n")


def _load(parser: argparse.ArgumentParser, path: Path | None) -> store.Results | None:
    # Read before anything is measured, so that minutes of work do not end in an error.
    try:
        return None if path is None else store.load(path)
    except (OSError, ValueError) as error:
        parser.error(f"--output: {path} cannot be read as a results file: {error}")


def _print_bars(found: dict[str, list[dict[str, Any]]]) -> None:
    """What a GPU reaches of what it is meant to, and what of sparsekern's did not run."""
    table = bar_table(found)
    print(table.text() if table.rows else "No bar could be judged.\n")
    lines = missing(found)
    everything = "All of sparsekern's ops ran." if any(found.values()) else "Nothing was measured."
    print("\n".join(["Not measured:", *lines[:MOST_LINES]]) if lines else everything)


def _report(
    parser: argparse.ArgumentParser, path: Path | None, results: store.Results | None, *, only_bars: bool
) -> int:
    if results is None:
        parser.error(f"there are no results to report on in {path or 'a quick run without --output'}")
    if only_bars:
        _print_bars(results["sections"])
        return 0
    for section in results["sections"]:
        for table in tables(results, section):
            print(table.text())
    save(path, results)
    return 0


def build_parser() -> argparse.ArgumentParser:
    every = {**SECTIONS, **CUDA_SECTIONS}
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure sparsekern against what a user would pick instead.",
        epilog="\n".join(
            [
                "sections:",
                *(f"  {name:<12} {about}" for name, (about, _) in every.items()),
                "  all          every section of the device (the default)",
                "  report       writes tables and picture anew from the results file",
                "  bars         prints which bars the GPU's last results meet",
                "",
                "A section replaces its own figures in the machine's results file and leaves the others.",
            ]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="what to measure; see below")
    parser.add_argument("--quick", action="store_true", help="tiny shapes; kept only with --output")
    parser.add_argument(
        "--sparsity",
        type=_sparsities,
        default=SPARSITIES,
        metavar="S,S",
        help="fractions of zeros (default: 0.8,0.9,0.95,0.98)",
    )
    parser.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: torch's)")
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="T",
        help="for each contender of a comparison (default: 0.5, on a GPU 0.05)",
    )
    parser.add_argument(
        "--seconds-total",
        type=float,
        default=float("inf"),
        metavar="T",
        help="for all sections on a GPU, which leave out what matters least (default: no limit)",
    )
    parser.add_argument("--tuned", action="store_true", help="on a GPU: take the fastest launch config")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of the results files (default: benchmarks/results)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    return parser


def _sparsities(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (-1.0,)
    if not all(0 <= value < 1 for value in values):
        raise argparse.ArgumentTypeError(f"expected fractions from 0 to below 1, got {text!r}")
    return values


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
