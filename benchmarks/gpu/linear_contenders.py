"""`linear` and its gradients on a GPU: what a user may pick, with a sparse weight or a dense one."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import sparsekern as sk
from benchmarks.contenders import DENSE, SPARSE, Contender
from benchmarks.gpu.problem import Problem

MASKED = "sparsekern masked"
UNPACKED = "unpack + dense"
Builders = dict[str, Callable[[Problem], Contender]]


def csr(weight: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return weight.to_sparse_csr()


def bsr(p: Problem, weight: Tensor) -> Tensor:
    if p.case.block is None:
        raise NotImplementedError("it is for block sparsity")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse BSR tensor support is in beta")
        return weight.contiguous().to_sparse_bsr(p.case.block)


def packed(p: Problem) -> Callable[[Tensor], tuple[Tensor]]:
    """How to read a dense gradient of the weight: its values in the pattern's order."""
    return lambda gradient: (p.pattern.pack(gradient),)


def dense_forward(p: Problem) -> Contender:
    return Contender(DENSE, lambda: F.linear(p.x, p.weight, p.bias))


def sparse_forward(p: Problem) -> Contender:
    return Contender(SPARSE, lambda: sk.ops.linear(p.x, p.values, p.pattern, p.bias))


def masked_storage_forward(p: Problem) -> Contender:
    return Contender(MASKED, lambda: sk.ops.linear(p.x, p.dense_weight, p.pattern, p.bias))


def masked_forward(p: Problem) -> Contender:
    mask = p.mask.to(p.dtype)
    return Contender("masked-dense", lambda: F.linear(p.x, p.dense_weight * mask, p.bias))


def unpacked_forward(p: Problem) -> Contender:
    return Contender(UNPACKED, lambda: F.linear(p.x, sk.ops.unpack(p.values, p.pattern), p.bias))


def csr_forward(p: Problem) -> Contender:
    weight = csr(p.weight)
    return Contender("torch CSR", lambda: torch.addmm(p.bias[:, None], weight, p.x.t()).t())


def bsr_forward(p: Problem) -> Contender:
    weight = bsr(p, p.weight)
    return Contender("torch BSR", lambda: F.linear(p.x, weight, p.bias))


def dense_grad_input(p: Problem) -> Contender:
    return Contender(DENSE, lambda: p.grad_y @ p.weight)


def sparse_grad_input(p: Problem) -> Contender:
    return Contender(SPARSE, lambda: sk.ops.linear_grad_input(p.grad_y, p.values, p.pattern))


def masked_storage_grad_input(p: Problem) -> Contender:
    return Contender(MASKED, lambda: sk.ops.linear_grad_input(p.grad_y, p.dense_weight, p.pattern))


def unpacked_grad_input(p: Problem) -> Contender:
    return Contender(UNPACKED, lambda: p.grad_y @ sk.ops.unpack(p.values, p.pattern))


def csr_grad_input(p: Problem) -> Contender:
    transposed = csr(p.weight.t().contiguous())
    return Contender("torch CSR", lambda: torch.sparse.mm(transposed, p.grad_y.t()).t())


def bsr_grad_input(p: Problem) -> Contender:
    transposed = bsr(p, p.weight.t())
    return Contender("torch BSR", lambda: F.linear(p.grad_y, transposed))


def dense_grad_values(p: Problem) -> Contender:
    return Contender(DENSE, lambda: p.grad_y.t() @ p.x, packed(p))


def sparse_grad_values(p: Problem) -> Contender:
    return Contender(SPARSE, lambda: sk.ops.linear_grad_values(p.grad_y, p.x, p.pattern))


def masked_storage_grad_values(p: Problem) -> Contender:
    run = lambda: sk.ops.linear_grad_values(p.grad_y, p.x, p.pattern, dense=True)  # noqa: E731
    return Contender(MASKED, run, packed(p))


def masked_grad_values(p: Problem) -> Contender:
    mask = p.mask.to(p.dtype)
    return Contender("masked-dense", lambda: (p.grad_y.t() @ p.x).mul_(mask), packed(p))


def packed_grad_values(p: Problem) -> Contender:
    return Contender("dense + pack", lambda: sk.ops.pack(p.grad_y.t() @ p.x, p.pattern))


def csr_grad_values(p: Problem) -> Contender:
    weight, transposed = csr(p.weight), p.grad_y.t()
    run = lambda: torch.sparse.sampled_addmm(weight, transposed, p.x, beta=0.0)  # noqa: E731
    return Contender("torch CSR", run, lambda result: (p.pattern.pack(result.to_dense()),))


LINEAR: dict[str, Builders] = {
    "linear": {
        DENSE: dense_forward,
        SPARSE: sparse_forward,
        MASKED: masked_storage_forward,
        "masked-dense": masked_forward,
        UNPACKED: unpacked_forward,
        "torch CSR": csr_forward,
        "torch BSR": bsr_forward,
    },
    "linear_grad_input": {
        DENSE: dense_grad_input,
        SPARSE: sparse_grad_input,
        MASKED: masked_storage_grad_input,
        UNPACKED: unpacked_grad_input,
        "torch CSR": csr_grad_input,
        "torch BSR": bsr_grad_input,
    },
    "linear_grad_values": {
        DENSE: dense_grad_values,
        SPARSE: sparse_grad_values,
        MASKED: masked_storage_grad_values,
        "masked-dense": masked_grad_values,
        "dense + pack": packed_grad_values,
        "torch CSR": csr_grad_values,
    },
}
