"""The same bits for any number of threads, on shapes that every kernel cuts into tasks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sparsekern.formats import Pattern
from sparsekern.ops import (
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
    unpack,
)

THREADS = (1, 2, 3, 5)

# Weight and batch: what is split between threads differs.
LINEAR = {
    "rows of tiles": ((600, 200), 70),
    "batch, for want of rows of tiles": ((10, 40), 1500),
    "batch beyond the scratch memory": ((30, 6000), 500),
    "one sample": ((700, 500), 1),
    "a few samples": ((700, 500), 7),
    "two vectors of samples, wide": ((130, 3000), 20),
}
CONV2D = {
    "images": ((40, 6, 3, 3), (23, 12, 9, 9), {"groups": 2, "padding": 1}),
    "batch, for want of rows of tiles": ((6, 3, 5, 5), (37, 3, 14, 14), {}),
    "channels of one image": ((70, 33, 3, 3), (1, 33, 10, 10), {"stride": 2, "padding": 1}),
    "channels of three images": ((24, 1, 3, 3), (3, 24, 12, 12), {"groups": 24}),
    "rows, with many values": ((400, 64, 3, 3), (5, 64, 6, 6), {}),
    "images beyond the scratch memory": ((8, 32, 3, 3), (9, 32, 90, 90), {}),
}


def random_tensor(shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def random_pattern(shape, seed=0):
    return Pattern.random(shape, 0.7, generator=torch.Generator().manual_seed(seed))


def linear_calls(shape, batch, dtype):
    pattern = random_pattern(shape)
    x, grad_y = random_tensor((batch, shape[1]), dtype), random_tensor((batch, shape[0]), dtype)
    values, bias = random_tensor((pattern.nnz,), dtype), random_tensor(shape[:1], dtype)
    return {
        "linear": lambda: linear(x, values, pattern, bias),
        "linear_grad_input": lambda: linear_grad_input(grad_y, values, pattern),
        "linear_grad_values": lambda: linear_grad_values(grad_y, x, pattern),
        "grow_candidates": lambda: grow_candidates(grad_y, x, pattern, pattern.nnz // 3)[1],
    }


def conv2d_calls(weight_shape, x_shape, geometry, dtype):
    pattern = random_pattern(weight_shape)
    x, values = random_tensor(x_shape, dtype), random_tensor((pattern.nnz,), dtype)
    bias = random_tensor(weight_shape[:1], dtype)
    grad_y = random_tensor(conv2d(x, values, pattern, **geometry).shape, dtype)
    return {
        "conv2d": lambda: conv2d(x, values, pattern, bias, **geometry),
        "conv2d_grad_input": lambda: conv2d_grad_input(grad_y, values, pattern, x_shape, **geometry),
        "conv2d_grad_values": lambda: conv2d_grad_values(grad_y, x, pattern, **geometry),
        "grow_candidates_conv2d": lambda: grow_candidates_conv2d(grad_y, x, pattern, 70, **geometry)[1],
    }


def assert_same_bits(calls, threads):
    for name, call in calls.items():
        results = []
        for count in THREADS:
            threads(count)
            results.append(call())
        for count, result in zip(THREADS[1:], results[1:]):
            assert torch.equal(result, results[0]), f"{name} with {count} threads"


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("shape", "batch"), LINEAR.values(), ids=LINEAR.keys())
def test_linear(shape, batch, dtype, threads):
    assert_same_bits(linear_calls(shape, batch, dtype), threads)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("weight", "x", "geometry"), CONV2D.values(), ids=CONV2D.keys())
def test_conv2d(weight, x, geometry, dtype, threads):
    assert_same_bits(conv2d_calls(weight, x, geometry, dtype), threads)


def test_pack_unpack_and_transfer(dtype, threads):
    source, target = random_pattern((300, 70, 3, 3)), random_pattern((300, 70, 3, 3), seed=1)
    dense = random_tensor(source.shape, dtype)
    values = source.pack(dense)
    calls = {
        "pack": lambda: pack(dense, source),
        "unpack": lambda: unpack(values, source),
        "transfer": lambda: transfer(values, source, target),
    }
    assert_same_bits(calls, threads)


def test_masked_storage(dtype, threads):
    pattern = random_pattern((600, 200))
    x, weight = random_tensor((70, 200), dtype), random_tensor((600, 200), dtype)
    grad_y = random_tensor((70, 600), dtype)
    calls = {
        "linear": lambda: linear(x, weight, pattern),
        "linear_grad_values": lambda: linear_grad_values(grad_y, x, pattern, dense=True),
    }
    assert_same_bits(calls, threads)


def test_calls_from_several_threads_at_once(threads):
    """The kernels release the GIL and share nothing."""
    threads(2)
    calls = [
        *linear_calls((600, 200), 70, torch.float32).values(),
        *linear_calls((10, 40), 1500, torch.bfloat16).values(),
        *conv2d_calls(*CONV2D["images"], torch.float64).values(),
    ]
    expected = [call() for call in calls]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for result, truth in zip(pool.map(lambda call: call(), calls), expected):
                assert torch.equal(result, truth)
