"""The results as a document for someone who decides whether sparse layers pay on his machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import bars
from benchmarks.contenders import DENSE, SPARSE
from benchmarks.gpu.tables import bar_table, missing
from benchmarks.machine import IDLE_LOAD
from benchmarks.report import KINDS, break_even_text, sweeps, tables
from benchmarks.speed import break_even, speedup
from benchmarks.store import Results
from benchmarks.table import Table

HEADINGS = {
    "breakeven": "From which sparsity on it pays",
    "linear": "Linear layers",
    "conv": "Convolutions",
    "lenet": "A training step",
    "memory": "Memory",
    "topology": "Dropping and growing",
    "dynamic": "Training with updates",
    "overhead": "Cost of a call",
    "gpu-memory": "Memory of a training step",
    "gpu-training": "Training steps of whole networks",
    "gpu": "Ops",
}
METHOD = """\
Float32, random patterns, inputs and outputs in PyTorch's own layouts (batch-major, NCHW), any transposing
inside the op counted. All contenders of a row run in one process and take turns in random order; a figure is
the median of wall-clock times, each of half a millisecond or more: shorter calls are repeated. Each result is
first compared with float64 dense PyTorch, and only right ones are timed.

- **dense**: `F.linear` (MKL) and `F.conv2d` (oneDNN) with a dense weight. Gradients of linear layers go to
  memory that is allocated beforehand, which spares dense and masked-dense a cost that the others pay.
- **sparsekern**: `SparseLinear` and `SparseConv2d` with `(nnz,)` values; backward is `*_grad_input` and
  `*_grad_values`.
- **oneDNN**: the same dense linear layer through `torch.ops.mkldnn._linear_pointwise`.
- **channels-last**: dense convolution with input, weight and gradient in that layout.
- **masked-dense**: `F.linear(x, w * m, b)`; backward also masks the gradient.
- **torch CSR**: `torch.addmm` with a CSR weight (`torch.mv` for a batch of 1), which is faster than
  `F.linear` with one and leaves its result feature-major; backward is a product with the transposed CSR and
  `torch.sparse.sampled_addmm`. Convolutions unfold their input first.
- **scipy CSR**: `csr_array @ x.T`, one thread; it cannot compute the gradient of the values alone.
- **Dropping and growing**: 30 % of the positions at 90 % sparsity, by |weight| and |gradient|, and the values
  moved. sparsekern starts from and ends with a pattern, the others with a mask and a dense weight. **topk**
  is two `torch.topk` of the positions exchanged; **full topk** ranks all positions, as google-research/rigl
  does; **argpartition** is NumPy's, one thread; **copy** reads and writes the dense gradient once.
- **LeNet-5**: the models take turns every ten steps; a figure is the median of the means of ten.
- **Dropping and growing**: 30 % of the active positions by dense scores, values moved along. **topk** is two
  `torch.topk` of as many, **full topk** ranks all positions twice, **argpartition** is NumPy's on one thread,
  **pass** is `gradient.abs()`, **copy** the same traffic to memory that is there already.
- **Training with updates**: medians of single steps; methods take turns every ten, the last with an update.
  RigL takes the step's own gradient, **RigL holdout** that of 1,000 examples more.
- **bar**: what sparsekern is meant to reach (`benchmarks/bars.py`), set for two cores with AVX-512.
"""
GPU_SECTIONS = {"gpu", "gpu-memory", "gpu-training"}
GPU_METHOD = """\
Random patterns and numbers. All contenders of a row run in one process and take turns in random order; a
figure is the median of times between CUDA events around one call, each after a buffer of 1 GiB was written:
nothing is in the L2 cache, and the call is queued before the GPU comes to it. Each result is first compared
with dense PyTorch in float64 (convolutions: float32), and only right ones are timed. Float32 is IEEE float32
for all. Speed-ups are of the faster memory format, dense and sparse.

- **dense**, **channels-last**: cuBLAS and cuDNN, which may try its ways first.
- **sparsekern**: `(nnz,)` values; **sparsekern masked**: a dense weight, read as 0 at inactive positions.
- **masked-dense**: the weight, or its gradient, is multiplied with a mask in each call.
- **unpack + dense**, **dense + pack**: `sparsekern.ops.unpack` and `pack` around the dense op.
- **torch CSR**, **torch BSR**: `torch.sparse`; BSR has the pattern's own blocks.
- **update_topology**: 30 % of the positions; **topk** is two `torch.topk`; **copy** moves the scores once.
- **grow_candidates**: as many; **dense gradient** is that alone, **dense + topk** selects from it.
- **Whole networks**: autocast to bfloat16, each alone in a process; the median of wall-clock times of steps
  with the optimizer's (SGD for ResNet-50, AdamW for GPT). **masked-dense** is `torch.nn.utils.prune`.
- **Memory**: blocks of GPT-2 without embeddings, one sequence; what the allocator counts.
- **bar**: what sparsekern is meant to reach on an H200 (`benchmarks/gpu/bars.py`).
"""


def document(results: Results, title: str, picture: str | None) -> str:
    parts = [f"# {title}\n"]
    if results["quick"]:
        parts.append("**A quick run on tiny shapes: these figures say nothing about speed.**\n")
    parts += [*_machine(results), "## Does sparse pay here?\n"]
    parts += [*(_gpu_summary(results) if results["machine"]["gpu"] else _summary(results))]
    if picture:
        parts.append(f"![Speed-up over dense PyTorch by sparsity, one panel a shape]({picture})\n")
    for section, heading in HEADINGS.items():
        if found := tables(results, section):
            parts.append(f"## {heading}\n")
            parts += [table.markdown() for table in found]
    method = GPU_METHOD if set(results["sections"]) <= GPU_SECTIONS else METHOD
    parts += ["## How it was measured\n", method, *_runs(results)]
    return "\n".join(parts)


def _machine(results: Results) -> Iterator[str]:
    machine = results["machine"]
    yield f"- CPU: {machine['cpu']}; threads used: {machine['threads']}; kernels: {machine['isa']}"
    yield f"- memory: {machine['memory_gib']} GiB"
    if machine["gpu"]:
        yield f"- GPU: {machine['gpu']}"
    yield ""


def _gpu_summary(results: Results) -> Iterator[str]:
    table = bar_table(results["sections"])
    yield table.markdown() if table.rows else "No bar could be judged.\n"
    yield from (f"- {line}" for line in missing(results["sections"]))
    yield ""


def _summary(results: Results) -> Iterator[str]:
    sections = results["sections"]
    records = [(kind, record) for kind in KINDS for record in sections.get(kind, [])]
    if records:
        yield _ranges(records).markdown()
    yield from (f"- {line}" for line in _findings(results, records))
    yield ""


def _ranges(records: list[tuple[str, dict[str, Any]]]) -> Table:
    """Lowest and highest speed-up over the shapes."""
    sparsities = sorted({record["sparsity"] for _, record in records})
    table = Table(
        "Speed-up over dense PyTorch, lowest to highest of the shapes", ["", *map(_percent, sparsities)]
    )
    for kind in KINDS:
        for direction in ("forward", "backward"):
            cells = []
            for sparsity in sparsities:
                gains = [
                    speedup(r)
                    for k, r in records
                    if (k, r["direction"], r["sparsity"]) == (kind, direction, sparsity)
                ]
                gains = [gain for gain in gains if gain is not None]
                cells.append(f"{min(gains):.1f} to {max(gains):.1f}" if gains else "-")
            if set(cells) != {"-"}:
                table.add(f"{KINDS[kind].lower()}, {direction}", *cells)
    return table


def _percent(sparsity: float) -> str:
    return f"{sparsity:.0%}"


def _findings(results: Results, records: list[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    sections = results["sections"]
    measured = [(kind, record) for kind, record in records if speedup(record) is not None]
    if measured:
        slower = [(kind, record) for kind, record in measured if speedup(record) < 1]
        yield f"Slower than dense: {_listed(slower)}."
        beaten = [(kind, record) for kind, record in measured if _best(record) != SPARSE]
        yield f"Not the fastest contender: {_listed(beaten, _best)}."
        judged = [(kind, record) for kind, record in measured if _bar(kind, record) is not None]
        missed = [(kind, record) for kind, record in judged if speedup(record) < _bar(kind, record)]
        if judged:
            yield f"Bars met: {len(judged) - len(missed)} of {len(judged)}; missed: {_listed(missed)}."
    swept = sweeps(sections.get("breakeven", []))
    if swept:
        found = [f"`{case}` {break_even_text(*break_even(points))}" for (_, case), points in swept.items()]
        yield f"Break-even sparsity of the forward pass: {', '.join(found)}."
    for record in sections.get("lenet", []):
        gain = speedup(record)
        if gain is not None:
            sparsity = _percent(record["sparsity"])
            yield f"A training step of LeNet-5 at {sparsity} sparsity: {gain:.2f} times as fast as dense."
    if "memory" in sections:
        yield from _memory(sections["memory"])


def _memory(records: list[dict[str, Any]]) -> Iterator[str]:
    by_model = {record["model"]: record for record in records}
    if {DENSE, SPARSE} <= by_model.keys():
        fields = ("weights", "gradients", "optimizer", "pattern")
        sums = {m: sum(by_model[m][f"{f}_bytes"] for f in fields) for m in (DENSE, SPARSE)}
        peaks = {m: by_model[m]["step_peak_bytes"] for m in (DENSE, SPARSE)}
        yield (
            f"Weights, gradients, AdamW state and pattern at {by_model[SPARSE]['sparsity']:.0%} take "
            f"{sums[DENSE] / sums[SPARSE]:.1f} times less memory than dense, the peak of a training step "
            f"{peaks[DENSE] / peaks[SPARSE]:.1f} times less. Activations are not smaller."
        )


def _bar(kind: str, record: dict[str, Any]) -> float | None:
    return bars.speedup_bar(kind, record["direction"], record["case"], record["sparsity"])


def _best(record: dict[str, Any]) -> str:
    """The fastest contender."""
    gains = {name: speedup(record, name) for name in record["times"]}
    return max((name for name in gains if gains[name] is not None), key=gains.get)


def _listed(
    records: list[tuple[str, dict[str, Any]]], remark: Callable[[dict[str, Any]], str] | None = None
) -> str:
    """Cases with their sparsities; those that differ in `remark` apart, and it in brackets."""
    found: dict[tuple[str, str], list[str]] = {}
    for kind, record in records:
        what = f"{kind} `{record['case']}` {record['direction']}"
        found.setdefault((what, remark(record) if remark else ""), []).append(_percent(record["sparsity"]))
    texts = []
    for (what, said), sparsities in found.items():
        texts.append(f"{what} at {', '.join(sparsities)}" + (f" ({said} is)" if said else ""))
    return "; ".join(texts) or "none"


def _runs(results: Results) -> Iterator[str]:
    yield "Every figure is the latest of its kind; they come from these runs:\n"
    table = Table("Runs", ["date", "sections", "commit", "PyTorch", "SciPy", "load at start"], 7)
    for name, run in sorted(results["runs"].items()):
        used = [s for s, records in results["sections"].items() if any(r["run"] == name for r in records)]
        versions = [run["versions"]["PyTorch"].partition(",")[0], run["scipy"]]
        busy = " (busy)" if run["load_at_start"] > IDLE_LOAD else ""
        table.add(name, ", ".join(used), run["commit"], *versions, f"{run['load_at_start']}{busy}")
    yield table.markdown()
    yield "`python -m benchmarks` measures another machine, `python -m benchmarks report` writes this anew.\n"
