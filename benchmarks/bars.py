"""What sparsekern is meant to reach on a CPU: float32, two threads, PyTorch's own layouts."""

from __future__ import annotations

from benchmarks.cases import CONV_CASES, LINEAR_CASES

#: Speed-up over dense PyTorch at 90 % sparsity, by (kind, direction) and the case's name.
AT_90_PERCENT: dict[tuple[str, str], dict[str, float]] = {
    ("linear", "forward"): dict(zip([case.name for case in LINEAR_CASES], [8.0, 8.0, 7.0, 6.5, 12.0, 8.0])),
    ("linear", "backward"): {"512x768->3072": 5.0, "2048x1024->1024": 5.0},
    ("conv", "forward"): dict(zip([case.name for case in CONV_CASES], [5.0, 4.5, 4.5, 4.5, 4.5])),
    ("conv", "backward"): {case.name: 3.5 for case in CONV_CASES},
}
#: The bar at a sparsity over the one at 90 %.
SCALE = {0.80: 0.55, 0.90: 1.0, 0.95: 1.5, 0.98: 2.2}

#: Highest sparsity at which the forward pass may break even with dense, by kind and the case's name.
BREAK_EVEN: dict[str, dict[str, float]] = {
    "linear": {"512x768->3072": 0.40},
    "conv": {case.name: 0.50 for case in CONV_CASES},
}

#: Speed-up of LeNet-5's training step at 95 %, batch 128.
LENET5_STEP = 1.7


def speedup_bar(kind: str, direction: str, case: str, sparsity: float) -> float | None:
    """The bar of a measurement, None where there is none."""
    bar = AT_90_PERCENT.get((kind, direction), {}).get(case)
    scale = SCALE.get(round(sparsity, 4))
    return None if bar is None or scale is None else bar * scale


#: Times that an update of a topology is to be faster than two `torch.topk`.
TOPOLOGY = 5.0
#: Time of an update in units of a pass that reads and writes all scores.
TOPOLOGY_PASSES = 3.0
#: What updates every hundred steps may add to the time of training, as a fraction.
DYNAMIC_OVERHEAD = 0.03
