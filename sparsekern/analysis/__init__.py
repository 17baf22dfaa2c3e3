"""What the paper measures of a network, for any PyTorch model."""

from __future__ import annotations

from sparsekern.analysis.gradient_flow import (
    GradientFlow,
    GradientFlowRecorder,
    MaskUpdateRecorder,
    gradient_flow,
)

__all__ = ["GradientFlow", "GradientFlowRecorder", "MaskUpdateRecorder", "gradient_flow"]
