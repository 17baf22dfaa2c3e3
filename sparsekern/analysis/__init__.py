"""Measurements of networks, dense or sparse: signals, gradients, curvature, paths, distances, predictions."""

from __future__ import annotations

from sparsekern.analysis.distances import Embedding, distance_matrix, flat_weights, l2_distance, mds
from sparsekern.analysis.gradient_flow import (
    GradientFlow,
    GradientFlowRecorder,
    MaskUpdateRecorder,
    gradient_flow,
)
from sparsekern.analysis.hessian import Hessian, hessian
from sparsekern.analysis.interpolation import barrier, interpolate, paper_alphas
from sparsekern.analysis.lanczos import (
    ExtremeEigenvalues,
    SpectralDensity,
    Tridiagonal,
    active_size,
    extreme_eigenvalues,
    hessian_vector_product,
    lanczos,
    spectral_density,
)
from sparsekern.analysis.predictions import (
    disagreement,
    disagreement_with,
    ensemble_accuracy,
    jensen_shannon_divergence,
    kl_divergence,
    pairwise_disagreement,
    pairwise_jensen_shannon_divergence,
    pairwise_kl_divergence,
    predict,
)
from sparsekern.analysis.signal_propagation import output_std

__all__ = [
    "Embedding",
    "ExtremeEigenvalues",
    "GradientFlow",
    "GradientFlowRecorder",
    "Hessian",
    "MaskUpdateRecorder",
    "SpectralDensity",
    "Tridiagonal",
    "active_size",
    "barrier",
    "disagreement",
    "disagreement_with",
    "distance_matrix",
    "ensemble_accuracy",
    "extreme_eigenvalues",
    "flat_weights",
    "gradient_flow",
    "hessian",
    "hessian_vector_product",
    "interpolate",
    "jensen_shannon_divergence",
    "kl_divergence",
    "l2_distance",
    "lanczos",
    "mds",
    "output_std",
    "pairwise_disagreement",
    "pairwise_jensen_shannon_divergence",
    "pairwise_kl_divergence",
    "paper_alphas",
    "predict",
    "spectral_density",
]
