"""The C++ backend: each op's kernel of ``sparsekern._C`` on torch tensors.

A function for each op, under its name. They are handed checked arguments (see `sparsekern.ops`); they arrange
memory and pass addresses. Sizes are checked once more by the extension itself.
"""

from sparsekern.cpp.conv2d import conv2d, conv2d_grad_input, conv2d_grad_values
from sparsekern.cpp.grow_candidates import grow_candidates, grow_candidates_conv2d
from sparsekern.cpp.linear import linear, linear_grad_input, linear_grad_values
from sparsekern.cpp.memory import DTYPES
from sparsekern.cpp.topology import update_topology
from sparsekern.cpp.two_four_linear import (
    two_four_linear,
    two_four_linear_grad_input,
    two_four_linear_grad_values,
    two_four_linear_int8,
)
from sparsekern.cpp.two_four_packing import gather_two_four, pack_two_four, unpack_two_four
from sparsekern.cpp.values import pack, transfer, transfer_all, unpack

__all__ = [
    "DTYPES",
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
    "transfer",
    "transfer_all",
    "two_four_linear",
    "two_four_linear_grad_input",
    "two_four_linear_grad_values",
    "two_four_linear_int8",
    "unpack",
    "unpack_two_four",
    "update_topology",
]
