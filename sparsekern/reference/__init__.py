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

__all__ = [
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
