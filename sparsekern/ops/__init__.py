"""The ops: functions of tensors and a `sparsekern.Pattern`, differentiable any number of times.

`grow_candidates` alone has no gradient.

Each is also registered as ``torch.ops.sparsekern.<name>``, for ``torch.compile`` and ``torch.export``.
"""

from sparsekern.ops.conv2d import conv2d, conv2d_grad_input, conv2d_grad_values
from sparsekern.ops.grow_candidates import grow_candidates, grow_candidates_conv2d
from sparsekern.ops.linear import linear, linear_grad_input, linear_grad_values
from sparsekern.ops.topology import Candidates, transfer_all, update_topology
from sparsekern.ops.two_four_int8 import quantize_two_four, two_four_linear_int8
from sparsekern.ops.two_four_linear import (
    two_four_linear,
    two_four_linear_dense,
    two_four_linear_grad_input,
    two_four_linear_grad_values,
)
from sparsekern.ops.two_four_values import gather_two_four, pack_two_four, unpack_two_four
from sparsekern.ops.values import pack, transfer, unpack

__all__ = [
    "Candidates",
    "conv2d",
    "conv2d_grad_input",
    "conv2d_grad_values",
    "gather_two_four",
    "grow_candidates",
    "grow_candidates_conv2d",
    "linear",
    "linear_grad_input",
    "linear_grad_values",
    "pack",
    "pack_two_four",
    "quantize_two_four",
    "transfer",
    "transfer_all",
    "two_four_linear",
    "two_four_linear_dense",
    "two_four_linear_grad_input",
    "two_four_linear_grad_values",
    "two_four_linear_int8",
    "unpack",
    "unpack_two_four",
    "update_topology",
]
