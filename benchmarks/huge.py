"""A GPT too large to be held dense: built sparse on the CPU, trained for a step, saved and loaded.

``python -m benchmarks.huge`` takes the one of 8 billion weights at 95 %, which needs 13 GB of memory and 4 GB
of disk; ``--size 1b`` is an eighth of it. Two processes, one that trains and saves and one that loads.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.machine import ROOT
from benchmarks.table import Table
from sparsekern.experiments.models.gpt import GPT_SIZES

# Bytes of a pattern for each position, in tiles of 64: a bit, two bytes a row, sixteen a tile.
PATTERN_BYTES = 1 / 8 + 1 / 32 + 1 / 256
# float32: the weight, its gradient, two moments of AdamW.
VECTORS = {"weights": 1, "gradients": 1, "optimizer": 2}
PHASES = {
    "build": "building: patterns, first values",
    "gradients": "loss and gradients",
    "update": "AdamW's update, with the making of its state",
    "save": "saving, with the state of AdamW held",
    "load": "loading, in a process of its own",
}


def measure(size: str, sparsity: float, tokens: int) -> dict[str, Any]:
    """One record of all that is measured.

    Raises
    ------
    RuntimeError
        With what a process wrote, when one fails.
    """
    load = machine.load()
    with tempfile.TemporaryDirectory() as folder:
        trained, loaded = (
            _run(action, size, sparsity, tokens, f"{folder}/model") for action in ("train", "load")
        )
    if trained["loss_after"] != loaded["loss_after"]:
        raise RuntimeError(f"the model has another loss when it is loaded: {trained}, {loaded}")
    command = f"python -m benchmarks.huge --size {size} --sparsity {sparsity} --tokens {tokens}"
    return {
        "size": size,
        "sparsity": sparsity,
        "tokens": tokens,
        "machine": machine.describe("cpu"),
        "run": machine.provenance(command, load),
        **loaded,
        **trained,
    }


def _run(action: str, size: str, sparsity: float, tokens: int, folder: str) -> dict[str, Any]:
    print(f"{action} {size} ...", file=sys.stderr, flush=True)
    numbers = [size, sparsity, tokens, torch.get_num_threads(), folder]
    command = [sys.executable, "-m", "benchmarks.huge_process", action, *map(str, numbers)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{action} of {size} failed:\n{result.stderr.strip() or result.returncode}")
    return json.loads(result.stdout)


def expected_bytes(found: dict[str, Any]) -> dict[str, float]:
    """Bytes of each kind by the formula, for the positions of sparse layers and what is dense."""
    parameters = (1 - found["sparsity"]) * found["positions"] + found["dense_parameters"]
    expected = {kind: 4 * count * parameters for kind, count in VECTORS.items()}
    return {**expected, "pattern": PATTERN_BYTES * found["positions"]}


def document(found: dict[str, Any]) -> str:
    """The record in words and two tables."""
    expected = expected_bytes(found)
    dense = 16 * (found["positions"] + found["dense_parameters"])
    kinds = Table("Bytes that are held to train", ["", "by the formula", "measured"])
    for kind, count in expected.items():
        kinds.add(kind, f"{count / 1e9:.3f} GB", f"{found[f'{kind}_bytes'] / 1e9:.3f} GB")
    together = sum(found[f"{kind}_bytes"] for kind in expected)
    kinds.add("together", f"{sum(expected.values()) / 1e9:.3f} GB", f"{together / 1e9:.3f} GB")
    phases = Table("Time, and the most memory of the process", ["", "seconds", "peak"])
    for phase, words in PHASES.items():
        peak = f"{found[f'{phase}_peak_bytes'] / 1e9:.2f} GB"
        phases.add(words, f"{found[f'{phase}_seconds']:.1f}", peak)
    peak = max(found[f"{phase}_peak_bytes"] for phase in PHASES)
    run, where = found["run"], found["machine"]
    return f"""# A GPT of {found["positions"]:,} sparse positions on one CPU

{machine.title(where)}, {where["memory_gib"]} GiB, PyTorch {run["versions"]["PyTorch"]},
commit {run["commit"]}, {run["date"][:10]}, `{run["command"]}`.
The load was {run["load_at_start"]} at the start: where other work ran beside it, the seconds are upper
bounds; bytes do not depend on it.

`GPT_SIZES["{found["size"]}"]` was built on the meta device, {found["sparsity"]:.0%} of its linear layers
zero: {found["nnz"]:,} weights are left, beside {found["dense_parameters"]:,} dense parameters, mostly
embeddings. One step of AdamW on {found["tokens"]} tokens, float32: loss {found["loss"]:.4f} before it,
{found["loss_after"]:.4f} after it, and the same bits from the loaded model. Dense, weights, gradients and
AdamW's state alone are {dense / 1e9:.0f} GB; no process here held more than **{peak / 1e9:.2f} GB**,
{found["process_bytes"] / 1e9:.2f} of them Python and PyTorch.

{kinds.markdown()}
{phases.markdown()}
The save is {found["saved_bytes"] / 1e9:.2f} GB in {found["files"]} files.
"""


def main() -> None:
    """Measure, print, and write the results where they are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=GPT_SIZES, default="8b")
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--tokens", type=int, default=64, help="of the one sequence that is trained on")
    parser.add_argument("--output", type=Path, help="writes OUTPUT.json and OUTPUT.md")
    options = parser.parse_args()
    found = measure(options.size, options.sparsity, options.tokens)
    text = document(found)
    print(text)
    if options.output:
        options.output.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n")
        options.output.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
