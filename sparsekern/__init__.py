"""sparsekern: training sparse neural networks with weights, gradients and optimizer state at nnz size."""

from sparsekern import init, nn, ops
from sparsekern._version import __version__
from sparsekern.backends import BackendError
from sparsekern.formats.pattern import Pattern
from sparsekern.nn import densify_, sparsify_

__all__ = ["BackendError", "Pattern", "__version__", "densify_", "init", "nn", "ops", "sparsify_"]
