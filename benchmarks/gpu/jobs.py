"""One case measured: every contender checked, then all that are right timed in turns, and the bars judged."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.contenders import DENSE, SPARSE, Contender
from benchmarks.gpu import bars
from benchmarks.gpu.cases import PRODUCTS, TWO_FOUR_OPS, WEIGHT_OPS, Case
from benchmarks.gpu.conv_contenders import CONV, LAST, SPARSE_LAST
from benchmarks.gpu.linear_contenders import LINEAR, Builders
from benchmarks.gpu.problem import Problem
from benchmarks.gpu.supervise import Broken
from benchmarks.gpu.two_four_contenders import GREEDY, TWO_FOUR, TwoFourProblem
from benchmarks.gpu.weight_contenders import GRADIENT, WEIGHTS, YARDSTICKS, WeightProblem
from benchmarks.measure import first_line, relative_error
from benchmarks.roofline import H200, Sizes, product_work
from sparsekern.timing import CudaClock, cpu_clock, interleave

BUILDERS: dict[str, Builders] = {**LINEAR, **CONV, **WEIGHTS, **TWO_FOUR}
PRODUCT_OPS = tuple(op for ops in PRODUCTS.values() for op in ops)
PROBLEMS = {**dict.fromkeys(PRODUCT_OPS, Problem), **dict.fromkeys(TWO_FOUR_OPS, TwoFourProblem)}
EXACT = (*WEIGHT_OPS, "pack_two_four")
# Largest error over the largest right value, of sums; what moves values is exact. Float32 sums of a weight's
# gradient have up to three million terms.
ERRORS = {"float32": 2e-4, "bfloat16": 2e-2, "float16": 5e-3}
TIMING = "the timing"
# In the order in which they stand in for dense PyTorch and for sparsekern, whose best memory format counts.
DENSE_NAMES, SPARSE_NAMES = (DENSE, LAST), (SPARSE, SPARSE_LAST)


@dataclass(frozen=True)
class OpJob:
    """A case to measure on a device, with `seconds` for each contender; see `supervise.Job`."""

    case: Case
    device: str
    seconds: float
    tuned: bool = False

    @torch.no_grad()
    def measure(self, broken: Mapping[str, str], tell: Callable[[str], None]) -> dict[str, Any]:
        case = self.case
        if TIMING in broken:
            raise RuntimeError(f"timing ended the process: {broken[TIMING]}")
        problem = PROBLEMS.get(case.op, WeightProblem)(case, self.device)
        with _tuned() if self.tuned else nullcontext():
            found, right = self._checked(problem, broken, tell)
        tell(TIMING)
        clock = CudaClock() if problem.device.type == "cuda" else cpu_clock
        runs = {name: contender.run for name, contender in right.items()}
        for name, timing in interleave(runs, seconds=self.seconds, calls=1, clock=clock).items():
            found[name] = {**timing.record(), **found[name]}
        return self._record(found)

    def _checked(
        self, problem: Problem | TwoFourProblem, broken: Mapping[str, str], tell: Callable[[str], None]
    ) -> tuple[dict[str, dict[str, Any]], dict[str, Contender]]:
        """What is known of each contender, and those that are right."""
        op = self.case.op
        largest = 0.0 if op in EXACT else ERRORS[self.case.dtype]
        found: dict[str, dict[str, Any]] = {}
        right: dict[str, Contender] = {}
        for name, build in BUILDERS[op].items():
            if name in broken:
                found[name] = {"missing": broken[name]}
                continue
            tell(name)
            try:
                contender = build(problem)
                (result,) = contender.dense(contender.run())
                error = 0.0 if name in (*YARDSTICKS, *GREEDY) else _error(result, problem.right)
            except Exception as reason:
                # What others raise where they cannot do the work is theirs to choose.
                self._check_alive(problem, first_line(reason))
                found[name] = {"missing": first_line(reason)}
                continue
            if error <= largest:
                right[name] = contender
                found[name] = {"error": float(f"{error:.2g}")}
            else:
                found[name] = {"wrong": error}
        return found, right

    @staticmethod
    def _check_alive(problem: Problem | TwoFourProblem, reason: str) -> None:
        if problem.device.type == "cuda":
            try:
                torch.cuda.synchronize()
            except RuntimeError as error:
                raise Broken(reason) from error

    def _record(self, times: dict[str, dict[str, Any]]) -> dict[str, Any]:
        case = self.case
        record = {**name_of(case), "times": times}
        if case.op in PRODUCT_OPS:
            sizes = Sizes.of(case.layer.weight_shape, case.sparsity, case.block)
            work = product_work(case.layer, sizes, case.dtype)
            record |= {"bytes": work.bytes, "flops": work.useful}
        on_h200 = self.device == "cuda" and "H200" in torch.cuda.get_device_name()
        return {**record, "bars": judged(case, record, on_h200)}


def name_of(case: Case) -> dict[str, Any]:
    """The fields that name a record."""
    about = {"op": case.op, "network": case.layer.network, "case": case.layer.name}
    return {**about, "pattern": case.pattern, "sparsity": case.sparsity, "dtype": case.dtype}


def _error(result: torch.Tensor, right: torch.Tensor) -> float:
    if result.dtype == torch.bool:
        return float((result != right).double().mean()) if result.shape == right.shape else float("inf")
    return relative_error(result, right.reshape(result.shape) if result.dim() == 1 else right)


def _tuned() -> Any:
    from sparsekern.kernels.tuning import tuned

    return tuned()


def fastest(times: Mapping[str, Mapping[str, Any]], names: tuple[str, ...]) -> float | None:
    """The least median of the contenders named, in milliseconds; None where none has one."""
    found = [times[name]["median_ms"] for name in names if "median_ms" in times.get(name, {})]
    return min(found, default=None)


def judged(case: Case, record: Mapping[str, Any], on_h200: bool) -> list[dict[str, Any]]:
    """The bars of a case that could be measured, as records.

    Those in absolute terms hold for an H200, and are judged nowhere else.
    """
    times = record["times"]
    ours = fastest(times, SPARSE_NAMES)
    if ours is None:
        return []
    found = []
    for bar in bars_of(case):
        reached = _reached(bar, record, ours)
        if reached is not None and (on_h200 or bar.measure not in ("roofline", "microseconds")):
            found.append(bar.record(reached))
    return found


def bars_of(case: Case) -> list[bars.Bar]:
    """What a case has to reach."""
    weight = case.layer.weight_shape
    if case.op in PRODUCT_OPS:
        found = bars.product_bars(case.layer, case.dtype, case.sparsity, case.block)
        # The example of few samples, and their roofline, are for the forward product.
        return found if case.op in ("linear", "conv2d") or case.layer.samples > bars.FEW_SAMPLES else []
    if case.op in TWO_FOUR_OPS:
        return bars.two_four_bars(case.op, case.layer, case.dtype)
    if case.op == "update_topology" and weight == (8192, 8192) and case.sparsity == 0.90:
        return [bars.TOPOLOGY] if case.dtype == "float32" else []
    return [bars.GROW] if case.op.startswith("grow") and case.layer.network in bars.LARGE else []


def _reached(bar: bars.Bar, record: Mapping[str, Any], ours: float) -> float | None:
    if bar.measure == "microseconds":
        return 1e3 * ours
    if bar.measure == "roofline":
        return record["bytes"] / H200.bandwidth / (ours / 1e3)
    if bar.measure == "passes":
        dense = fastest(record["times"], (GRADIENT,))
        return None if dense is None else ours / dense
    dense = fastest(record["times"], DENSE_NAMES)
    return None if dense is None else dense / ours


def prepare() -> None:
    """What every process of a run does first."""
    # Float32 is float32, for all contenders, and cuDNN takes the fastest of its ways.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    warnings.filterwarnings("ignore", "Sparse (CSR|BSR) tensor support is in beta")
