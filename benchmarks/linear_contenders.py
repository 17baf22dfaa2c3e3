"""Linear layers: what computes ``y = x W^T + b`` and its two gradients with a sparse W."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

import sparsekern as sk
from benchmarks.cases import Problem
from benchmarks.contenders import DENSE, SPARSE, Contender


def dense_forward(p: Problem) -> Contender:
    return Contender(DENSE, lambda: F.linear(p.x, p.weight, p.bias))


def dense_backward(p: Problem) -> Contender:
    grad_x, grad_weight = torch.empty_like(p.x), torch.empty_like(p.weight)

    def run():
        torch.mm(p.grad_y, p.weight, out=grad_x)
        torch.mm(p.grad_y.t(), p.x, out=grad_weight)
        return grad_x, grad_weight

    return Contender(DENSE, run, lambda result: (result[0], result[1] * p.mask))


def sparse_forward(p: Problem) -> Contender:
    layer = sk.nn.SparseLinear(p.case.inputs, p.case.outputs, pattern=p.pattern, init=None)
    with torch.no_grad():
        layer.values.copy_(p.pattern.pack(p.weight))
        layer.bias.copy_(p.bias)
    return Contender(SPARSE, lambda: layer(p.x))


def sparse_backward(p: Problem) -> Contender:
    values = p.pattern.pack(p.weight)

    def run():
        grad_x = sk.ops.linear_grad_input(p.grad_y, values, p.pattern)
        return grad_x, sk.ops.linear_grad_values(p.grad_y, p.x, p.pattern)

    return Contender(SPARSE, run, lambda result: (result[0], p.pattern.unpack(result[1])))


def onednn_forward(p: Problem) -> Contender:
    linear = torch.ops.mkldnn._linear_pointwise
    return Contender("oneDNN", lambda: linear(p.x, p.weight, p.bias, "none", [], ""))


def onednn_backward(p: Problem) -> Contender:
    linear = torch.ops.mkldnn._linear_pointwise

    def run():
        grad_x = linear(p.grad_y, p.weight.t(), None, "none", [], "")
        return grad_x, linear(p.grad_y.t(), p.x.t(), None, "none", [], "")

    return Contender("oneDNN", run, lambda result: (result[0], result[1] * p.mask))


def masked_forward(p: Problem) -> Contender:
    mask = p.mask.float()
    return Contender("masked-dense", lambda: F.linear(p.x, p.dense_weight * mask, p.bias))


def masked_backward(p: Problem) -> Contender:
    # The masked weight is what the forward pass has saved.
    mask, grad_x, grad_weight = p.mask.float(), torch.empty_like(p.x), torch.empty_like(p.weight)

    def run():
        torch.mm(p.grad_y, p.weight, out=grad_x)
        torch.mm(p.grad_y.t(), p.x, out=grad_weight)
        return grad_x, grad_weight.mul_(mask)

    return Contender("masked-dense", run)


def torch_csr_forward(p: Problem) -> Contender:
    csr = p.weight.to_sparse_csr()
    if p.case.batch == 1:
        run = lambda: (torch.mv(csr, p.x[0]) + p.bias)[None]  # noqa: E731
    else:
        # F.linear takes the same weight and is several times slower.
        run = lambda: torch.addmm(p.bias[:, None], csr, p.x.t()).t()  # noqa: E731
    return Contender("torch CSR", run)


def torch_csr_backward(p: Problem) -> Contender:
    csr, transposed = p.weight.to_sparse_csr(), p.weight.t().contiguous().to_sparse_csr()

    def run():
        if p.case.batch == 1:
            grad_x = torch.mv(transposed, p.grad_y[0])[None]
        else:
            grad_x = torch.sparse.mm(transposed, p.grad_y.t()).t()
        return grad_x, torch.sparse.sampled_addmm(csr, p.grad_y.t(), p.x, beta=0.0)

    return Contender("torch CSR", run, lambda result: (result[0], result[1].to_dense()))


def scipy_csr_forward(p: Problem) -> Contender:
    import scipy.sparse

    csr = scipy.sparse.csr_array(p.weight.numpy())
    x, bias = p.x.numpy(), p.bias.numpy()
    return Contender("scipy CSR", lambda: torch.from_numpy((csr @ x.T).T + bias))


FORWARD: dict[str, Callable[[Problem], Contender]] = {
    DENSE: dense_forward,
    SPARSE: sparse_forward,
    "oneDNN": onednn_forward,
    "masked-dense": masked_forward,
    "torch CSR": torch_csr_forward,
    "scipy CSR": scipy_csr_forward,
}
# SciPy has no product that is computed at given positions only, so it has no gradient of the values.
BACKWARD: dict[str, Callable[[Problem], Contender]] = {
    DENSE: dense_backward,
    SPARSE: sparse_backward,
    "oneDNN": onednn_backward,
    "masked-dense": masked_backward,
    "torch CSR": torch_csr_backward,
}
