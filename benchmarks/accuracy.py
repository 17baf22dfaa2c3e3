"""What sparse networks reach on MNIST, by method and initialization: runs, and tables of test accuracies.

``python -m benchmarks.accuracy --data-dir MNIST`` trains LeNet-5 from random uniform masks, ``--table
two-four-mnist`` networks of 2:4 weights, with `sparsekern sweep`: one thread a run, as many side by side as
there are CPUs. Finished runs are kept in ``--runs`` and not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import commit
from sparsekern.env import collect_env

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Sweep:
    """One call of `sparsekern sweep`."""

    name: str
    recipe: str
    methods: str
    init: str
    keys: tuple[str, ...] = ()
    one_seed: bool = False

    def run(self, data_dir: Path, runs: Path, seeds: int, steps: int | None) -> list[dict[str, Any]]:
        """Train what is not there yet; a row of the results for each method."""
        folder = runs / self.name
        command = [sys.executable, "-m", "sparsekern", "sweep", self.recipe, "--data-dir", str(data_dir)]
        command += ["--methods", self.methods, "--inits", self.init, "--output", str(folder), *self.keys]
        command += ["--seeds", "0" if self.one_seed or seeds == 1 else f"0-{seeds - 1}"]
        command += ["--steps", str(steps)] if steps else []
        if subprocess.run(command).returncode:
            raise SystemExit(f"the sweep {self.name} failed: {' '.join(command)}")
        summary = json.loads((folder / "summary.json").read_text())
        return [
            {
                "recipe": self.recipe,
                "method": cell["method"],
                "init": cell["init"],
                "keys": " ".join(self.keys),
                "steps": summary["settings"]["steps"],
                "test_accuracies": cell["test_accuracies"],
            }
            for cell in summary["cells"]
        ]


@dataclass(frozen=True)
class Table:
    """A page of results: its title, and the sweeps that its rows come from."""

    title: str
    sweeps: tuple[Sweep, ...]


TABLES = {
    "lenet5-mnist": Table(
        "LeNet-5 on MNIST, 95 % sparse, from random uniform masks",
        (
            Sweep("methods", "lenet5-mnist", "static,set,rigl", "per_neuron"),
            Sweep("batch-gradient", "lenet5-mnist", "rigl", "per_neuron", ("--grow-gradient", "batch")),
            Sweep("dense-init", "lenet5-mnist", "static", "dense"),
            Sweep("dense", "lenet5-mnist", "dense", "dense", one_seed=True),
        ),
    ),
    "two-four-mnist": Table(
        "2:4 weights on MNIST, beside dense ones",
        (
            Sweep("mlp", "mlp-mnist", "dense,sr_ste,ste,two_four_fixed", "dense"),
            Sweep("mlp-transposable", "mlp-mnist", "sr_ste", "dense", ("--transposable", "true")),
            Sweep("lenet5", "lenet5-mnist", "dense,sr_ste", "dense"),
        ),
    ),
}


def markdown(title: str, results: dict[str, Any]) -> str:
    """The results as a page: one row for each method, with all seeds."""
    rows = results["rows"]
    lines = [
        f"# {title}",
        "",
        f"{rows[0]['steps']:,} steps, test accuracy in %. {results['machine']}, one thread a run, PyTorch "
        f"{results['torch']}, commit {results['commit']}, {results['date']}.",
        "",
        "| recipe | method | initialization | seeds | mean | standard deviation |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        found = [100 * accuracy for accuracy in row["test_accuracies"]]
        spread = f"{statistics.stdev(found):.2f}" if len(found) > 1 else "-"
        method = f"{row['method']} `{row['keys']}`" if row["keys"] else row["method"]
        each = " / ".join(f"{accuracy:.2f}" for accuracy in found)
        start = f"| `{row['recipe']}` | {method} | `{row['init']}` "
        lines.append(f"{start}| {each} | {statistics.mean(found):.2f} | {spread} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the MNIST IDX files")
    parser.add_argument("--table", choices=tuple(TABLES), default="lenet5-mnist", help="which")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"), help="where runs are kept")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the table goes")
    parser.add_argument("--steps", type=int, help="fewer steps than the recipe's, to try it out")
    options = parser.parse_args(arguments)
    table = TABLES[options.table]
    rows = [
        row
        for sweep in table.sweeps
        for row in sweep.run(options.data_dir, options.runs / options.table, options.seeds, options.steps)
    ]
    results = {
        "machine": collect_env()["CPU"].rpartition(",")[0],
        "torch": torch.__version__,
        "commit": commit(),
        "date": date.today().isoformat(),
        "rows": rows,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / f"{options.table}.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.output / f"{options.table}.md").write_text(markdown(table.title, results))
    print(markdown(table.title, results))


if __name__ == "__main__":
    main()
