"""The ops: functions of tensors and a `sparsekern.Pattern`, differentiable any number of times.

`grow_candidates` alone has no gradient.

Each is also registered as ``torch.ops.sparsekern.<name>``, for ``torch.compile`` and ``torch.export``.
"""

from sparsekern.ops.conv2d import conv2d, conv2d_grad_input, conv2d_grad_values
from sparsekern.ops.grow_candidates import grow_candidates, grow_candidates_conv2d
from sparsekern.ops.linear import linear, linear_grad_input, linear_grad_values
from sparsekern.ops.topology import Candidates, transfer_all, update_topology
from sparsekern.ops.values import pack, transfer, unpack

__all__ = [
    "Candidates",
    "conv2d",
    "conv2d_grad_input",
    "conv2d_grad_values",
    "grow_candidates",
    "grow_candidates_conv2d",
    "linear",
    "linear_grad_input",
    "linear_grad_values",
    "pack",
    "transfer",
    "transfer_all",
    "unpack",
    "update_topology",
]
