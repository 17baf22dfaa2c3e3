"""Convolutions: what computes ``F.conv2d`` and its two gradients with a sparse weight.

PyTorch's dense convolution on the CPU is oneDNN's, so it is not listed a second time. PyTorch has no dense
gradient that writes to memory given by the caller; the largest of these gradients is 9 MB, which the C
library reuses from call to call.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import sparsekern as sk
from benchmarks.cases import ConvCase, Problem
from benchmarks.contenders import DENSE, SPARSE, Contender


def dense_forward(p: Problem) -> Contender:
    return Contender(DENSE, lambda: p.case.dense(p.x, p.weight, p.bias))


def dense_backward(p: Problem) -> Contender:
    run = lambda: p.case.dense_gradients(p.grad_y, p.x, p.weight)  # noqa: E731
    return Contender(DENSE, run, lambda result: (result[0], result[1] * p.mask))


def sparse_forward(p: Problem) -> Contender:
    case = p.case
    layer = sk.nn.SparseConv2d(
        case.channels, case.outputs, case.kernel, padding=case.padding, pattern=p.pattern, init=None
    )
    with torch.no_grad():
        layer.values.copy_(p.pattern.pack(p.weight))
        layer.bias.copy_(p.bias)
    return Contender(SPARSE, lambda: layer(p.x))


def sparse_backward(p: Problem) -> Contender:
    values, padding = p.pattern.pack(p.weight), p.case.padding

    def run():
        grad_x = sk.ops.conv2d_grad_input(p.grad_y, values, p.pattern, p.x.shape, padding=padding)
        return grad_x, sk.ops.conv2d_grad_values(p.grad_y, p.x, p.pattern, padding=padding)

    return Contender(SPARSE, run, lambda result: (result[0], p.pattern.unpack(result[1])))


def channels_last_forward(p: Problem) -> Contender:
    x, weight = (tensor.to(memory_format=torch.channels_last) for tensor in (p.x, p.weight))
    return Contender("channels-last", lambda: p.case.dense(x, weight, p.bias))


def channels_last_backward(p: Problem) -> Contender:
    tensors = [tensor.to(memory_format=torch.channels_last) for tensor in (p.grad_y, p.x, p.weight)]
    run = lambda: p.case.dense_gradients(*tensors)  # noqa: E731
    return Contender("channels-last", run, lambda result: (result[0], result[1] * p.mask))


def masked_forward(p: Problem) -> Contender:
    mask = p.mask.float()
    return Contender("masked-dense", lambda: p.case.dense(p.x, p.dense_weight * mask, p.bias))


def masked_backward(p: Problem) -> Contender:
    mask = p.mask.float()

    def run():
        grad_x, grad_weight = p.case.dense_gradients(p.grad_y, p.x, p.weight)
        return grad_x, grad_weight.mul_(mask)

    return Contender("masked-dense", run)


def unfolded(case: ConvCase, x: Tensor) -> Tensor:
    """``(channels * k * k, batch * positions)``: the matrix that the weight is multiplied with."""
    columns = x.flatten(2) if case.kernel == 1 else F.unfold(x, case.kernel, padding=case.padding)
    return columns.transpose(0, 1).flatten(1)


def folded(case: ConvCase, columns: Tensor) -> Tensor:
    """The transpose of `unfolded`: sums what came from one pixel."""
    columns = columns.unflatten(1, (case.batch, -1)).transpose(0, 1)
    if case.kernel == 1:
        return columns.unflatten(2, (case.size, case.size))
    return F.fold(columns, (case.size, case.size), case.kernel, padding=case.padding)


def torch_csr_forward(p: Problem) -> Contender:
    case, csr = p.case, p.weight.flatten(1).to_sparse_csr()

    def run():
        y = torch.addmm(p.bias[:, None], csr, unfolded(case, p.x))
        return y.unflatten(1, (case.batch, case.size, case.size)).transpose(0, 1)

    return Contender("torch CSR", run)


def torch_csr_backward(p: Problem) -> Contender:
    case, csr = p.case, p.weight.flatten(1).to_sparse_csr()
    transposed = p.weight.flatten(1).t().contiguous().to_sparse_csr()
    # The forward pass has saved the unfolded input.
    saved = unfolded(case, p.x).t()

    def run():
        grad_y = p.grad_y.transpose(0, 1).flatten(1)
        grad_x = folded(case, torch.sparse.mm(transposed, grad_y))
        return grad_x, torch.sparse.sampled_addmm(csr, grad_y, saved, beta=0.0)

    def dense(result):
        return result[0], result[1].to_dense().reshape(case.weight_shape)

    return Contender("torch CSR", run, dense)


FORWARD: dict[str, Callable[[Problem], Contender]] = {
    DENSE: dense_forward,
    SPARSE: sparse_forward,
    "channels-last": channels_last_forward,
    "masked-dense": masked_forward,
    "torch CSR": torch_csr_forward,
}
BACKWARD: dict[str, Callable[[Problem], Contender]] = {
    DENSE: dense_backward,
    SPARSE: sparse_backward,
    "channels-last": channels_last_backward,
    "masked-dense": masked_backward,
    "torch CSR": torch_csr_backward,
}
