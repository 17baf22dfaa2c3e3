"""sparsekern: training sparse neural networks with weights, gradients and optimizer state at nnz size."""

from sparsekern import analysis, distributed, export, init, integrations, methods, nn, ops
from sparsekern._version import __version__
from sparsekern.backends import BackendError
from sparsekern.formats.pattern import Pattern
from sparsekern.formats.two_four import TwoFour
from sparsekern.methods import (
    SET,
    SNFS,
    GradualPruning,
    RigL,
    RigLInverted,
    Static,
    compact_,
    nm_mask_,
    prune_,
)
from sparsekern.nn import densify_, sparsify_

__all__ = [
    "SET",
    "SNFS",
    "BackendError",
    "GradualPruning",
    "Pattern",
    "RigL",
    "RigLInverted",
    "Static",
    "TwoFour",
    "__version__",
    "analysis",
    "compact_",
    "densify_",
    "distributed",
    "export",
    "init",
    "integrations",
    "methods",
    "nm_mask_",
    "nn",
    "ops",
    "prune_",
    "sparsify_",
]
