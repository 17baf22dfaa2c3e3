"""`conv2d` and its gradients on a GPU, in both memory formats. PyTorch has no sparse convolution."""

from __future__ import annotations

import torch
from torch import Tensor

import sparsekern as sk
from benchmarks.contenders import DENSE, SPARSE, Contender
from benchmarks.gpu.linear_contenders import UNPACKED, Builders, packed
from benchmarks.gpu.problem import Problem

LAST = "channels-last"
SPARSE_LAST = "sparsekern channels-last"


def last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def dense_forward(p: Problem) -> Contender:
    return Contender(DENSE, lambda: p.convolve(p.x, p.weight, p.bias))


def last_forward(p: Problem) -> Contender:
    x, weight = last(p.x), last(p.weight)
    return Contender(LAST, lambda: p.convolve(x, weight, p.bias))


def sparse_forward(p: Problem, name: str = SPARSE) -> Contender:
    x = last(p.x) if name == SPARSE_LAST else p.x
    return Contender(name, lambda: sk.ops.conv2d(x, p.values, p.pattern, p.bias, **p.geometry))


def masked_forward(p: Problem) -> Contender:
    mask = p.mask.to(p.dtype)
    return Contender("masked-dense", lambda: p.convolve(p.x, p.dense_weight * mask, p.bias))


def unpacked_forward(p: Problem) -> Contender:
    return Contender(UNPACKED, lambda: p.convolve(p.x, sk.ops.unpack(p.values, p.pattern), p.bias))


def dense_grad_input(p: Problem) -> Contender:
    return Contender(DENSE, lambda: p.convolution_gradient(p.grad_y, p.x, p.weight, "input"))


def last_grad_input(p: Problem) -> Contender:
    grad_y, x, weight = last(p.grad_y), last(p.x), last(p.weight)
    return Contender(LAST, lambda: p.convolution_gradient(grad_y, x, weight, "input"))


def sparse_grad_input(p: Problem, name: str = SPARSE) -> Contender:
    grad_y = last(p.grad_y) if name == SPARSE_LAST else p.grad_y
    shape, gradient = p.layer.input_shape, sk.ops.conv2d_grad_input
    return Contender(name, lambda: gradient(grad_y, p.values, p.pattern, shape, **p.geometry))


def unpacked_grad_input(p: Problem) -> Contender:
    def run():
        return p.convolution_gradient(p.grad_y, p.x, sk.ops.unpack(p.values, p.pattern), "input")

    return Contender(UNPACKED, run)


def dense_grad_values(p: Problem) -> Contender:
    return Contender(DENSE, lambda: p.convolution_gradient(p.grad_y, p.x, p.weight, "weight"), packed(p))


def last_grad_values(p: Problem) -> Contender:
    grad_y, x, weight = last(p.grad_y), last(p.x), last(p.weight)
    return Contender(LAST, lambda: p.convolution_gradient(grad_y, x, weight, "weight"), packed(p))


def sparse_grad_values(p: Problem, name: str = SPARSE) -> Contender:
    grad_y, x = (last(p.grad_y), last(p.x)) if name == SPARSE_LAST else (p.grad_y, p.x)
    return Contender(name, lambda: sk.ops.conv2d_grad_values(grad_y, x, p.pattern, **p.geometry))


def masked_grad_values(p: Problem) -> Contender:
    mask = p.mask.to(p.dtype)

    def run():
        return p.convolution_gradient(p.grad_y, p.x, p.weight, "weight").mul_(mask)

    return Contender("masked-dense", run, packed(p))


CONV: dict[str, Builders] = {
    "conv2d": {
        DENSE: dense_forward,
        LAST: last_forward,
        SPARSE: sparse_forward,
        SPARSE_LAST: lambda p: sparse_forward(p, SPARSE_LAST),
        "masked-dense": masked_forward,
        UNPACKED: unpacked_forward,
    },
    "conv2d_grad_input": {
        DENSE: dense_grad_input,
        LAST: last_grad_input,
        SPARSE: sparse_grad_input,
        SPARSE_LAST: lambda p: sparse_grad_input(p, SPARSE_LAST),
        UNPACKED: unpacked_grad_input,
    },
    "conv2d_grad_values": {
        DENSE: dense_grad_values,
        LAST: last_grad_values,
        SPARSE: sparse_grad_values,
        SPARSE_LAST: lambda p: sparse_grad_values(p, SPARSE_LAST),
        "masked-dense": masked_grad_values,
    },
}
