"""The C++ backend: each op's kernel of ``sparsekern._C`` on torch tensors.

A function for each op, under its name. They are handed checked arguments (see `sparsekern.ops`); they arrange
memory and pass addresses. Sizes are checked once more by the extension itself.
"""

from sparsekern.cpp.conv2d import conv2d, conv2d_grad_input, conv2d_grad_values
from sparsekern.cpp.grow_candidates import grow_candidates, grow_candidates_conv2d
from sparsekern.cpp.linear import linear, linear_grad_input, linear_grad_values
from sparsekern.cpp.memory import DTYPES
from sparsekern.cpp.topology import update_topology
from sparsekern.cpp.two_four_packing import (
    check_metadata,
    from_cutlass,
    gather_two_four,
    pack_two_four,
    to_cutlass,
    unpack_two_four,
)
from sparsekern.cpp.values import pack, transfer, transfer_all, unpack

__all__ = [
    "DTYPES",
    "check_metadata",
    "conv2d",
    "conv2d_grad_input",
    "conv2d_grad_values",
    "from_cutlass",
    "gather_two_four",
    "grow_candidates",
    "grow_candidates_conv2d",
    "linear",
    "linear_grad_input",
    "linear_grad_values",
    "pack",
    "pack_two_four",
    "to_cutlass",
    "transfer",
    "transfer_all",
    "unpack",
    "unpack_two_four",
    "update_topology",
]
