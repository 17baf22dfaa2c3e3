"""The reference backend: every op as one dense PyTorch expression. It defines what the others compute.

A function for each op, under its name. They work on any device and dtype that PyTorch has, with dense
temporaries; they run only when asked for.
"""

from sparsekern.reference.patterns import (
    conv2d,
    conv2d_grad_input,
    conv2d_grad_values,
    grow_candidates,
    grow_candidates_conv2d,
    linear,
    linear_grad_input,
    linear_grad_values,
    pack,
    transfer,
    transfer_all,
    unpack,
    update_topology,
)
from sparsekern.reference.two_four import (
    gather_two_four,
    pack_two_four,
    two_four_linear,
    two_four_linear_grad_input,
    two_four_linear_grad_values,
    two_four_linear_int8,
    unpack_two_four,
)

__all__ = [
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
