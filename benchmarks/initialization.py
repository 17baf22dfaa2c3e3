"""Does a sparse LeNet-5 learn MNIST, and from which initialization? Runs, and a table of the test accuracies.

``python -m benchmarks.initialization --data-dir MNIST`` trains the recipe ``lenet5-mnist`` at 95 % sparsity
with uniform random static masks, from each initialization and for each seed, and the dense model once. A run
takes one thread; as many go side by side as there are CPUs. Finished runs are kept in ``--runs`` and not
repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch

from benchmarks.machine import commit
from sparsekern.env import collect_env

RESULTS = Path(__file__).parent / "results"
INITIALIZATIONS = ("per_neuron", "dense")


@dataclass(frozen=True)
class Run:
    """One training run: what differs from the recipe."""

    sparsity: float
    init: str
    seed: int

    @property
    def name(self) -> str:
        return f"sparsity-{self.sparsity:g}-{self.init}-seed-{self.seed}"

    def train(self, data_dir: Path, runs: Path, steps: int | None) -> dict[str, object]:
        """Train, or take the result that is there, and return it as a row of the results."""
        folder = runs / self.name
        command = [sys.executable, "-m", "sparsekern", "train", "lenet5-mnist", "--threads", "1"]
        command += ["--data-dir", str(data_dir), "--output", str(folder)]
        command += ["--sparsity", f"{self.sparsity:g}", "--init", self.init, "--seed", str(self.seed)]
        command += ["--steps", str(steps)] if steps else []
        command += ["--resume"] if (folder / "checkpoint.pt").exists() else []
        if not (folder / "result.json").exists():
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                raise SystemExit(f"{self.name} failed: {done.stderr.strip()}")
        result = json.loads((folder / "result.json").read_text())
        print(
            f"{self.name}: test accuracy {result['test_accuracy']:.2%} in {result['seconds']:.0f} s",
            flush=True,
        )
        return {
            "sparsity": self.sparsity,
            "init": self.init,
            "seed": self.seed,
            "steps": result["steps"],
            "test_accuracy": result["test_accuracy"],
            "test_loss": result["test_loss"],
        }


def markdown(results: dict[str, object]) -> str:
    """The results as a page: one row for each model, accuracies of all seeds."""
    rows = results["runs"]
    lines = [
        "# LeNet-5 on MNIST, 95 % sparse with random static masks",
        "",
        f"Recipe `lenet5-mnist`, {rows[0]['steps']:,} steps, test accuracy in %. {results['machine']}, "
        f"one thread a run, PyTorch {results['torch']}, commit {results['commit']}, {results['date']}.",
        "",
        "| model | initialization | seeds | mean |",
        "|---|---|---|---|",
    ]
    for sparsity, init in dict.fromkeys((row["sparsity"], row["init"]) for row in rows):
        found = [100 * r["test_accuracy"] for r in rows if (r["sparsity"], r["init"]) == (sparsity, init)]
        model = f"{sparsity:.0%} sparse" if sparsity else "dense"
        each = " / ".join(f"{accuracy:.2f}" for accuracy in found)
        lines.append(f"| {model} | `{init}` | {each} | {statistics.mean(found):.2f} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.initialization", description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the MNIST IDX files")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each sparse model (default: 3)")
    parser.add_argument("--runs", type=Path, default=Path("runs/initialization"), help="where runs are kept")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the table goes")
    parser.add_argument("--steps", type=int, help="fewer steps than the recipe's, to try it out")
    options = parser.parse_args(arguments)
    runs = [Run(0.95, init, seed) for init in INITIALIZATIONS for seed in range(options.seeds)]
    runs.insert(0, Run(0.0, "dense", 0))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = list(pool.map(lambda run: run.train(options.data_dir, options.runs, options.steps), runs))
    results = {
        "machine": collect_env()["CPU"].rpartition(",")[0],
        "torch": torch.__version__,
        "commit": commit(),
        "date": date.today().isoformat(),
        "runs": rows,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "lenet5-mnist.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.output / "lenet5-mnist.md").write_text(markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
