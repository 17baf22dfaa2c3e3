"""update_topology and transfer_all on a GPU, at the sizes of real layers: what the CPU gives, to the bit."""

from __future__ import annotations

import pytest
import torch

from sparsekern.formats import Pattern
from sparsekern.ops import Candidates, transfer_all, update_topology

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

SHAPES = {"4096x4096": (4096, 4096), "50257x768": (50257, 768), "conv 512x512x3x3": (512, 512, 3, 3)}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def layer(shape, sparsity=0.9, dtype=torch.float32, seed=0, kind="random"):
    generator = torch.Generator().manual_seed(seed)
    pattern = Pattern.random(shape, sparsity, generator=generator)
    values, scores = (torch.randn(size, generator=generator).to(dtype) for size in ((pattern.nnz,), shape))
    if kind == "equal":
        values, scores = torch.ones_like(values), torch.ones_like(scores)
    if kind == "mostly zero":
        scores = scores * (scores > 2.5)
    return values, pattern, scores, round(0.3 * pattern.nnz)


def to_gpu(item):
    if isinstance(item, Candidates):
        return Candidates(*(tensor.cuda() for tensor in item))
    return item.to("cuda") if isinstance(item, (torch.Tensor, Pattern)) else item


def check(layers, by="magnitude"):
    right = update_topology(*map(list, zip(*layers)), by=by)
    on_gpu = [[to_gpu(item) for item in one] for one in layers]
    got = update_topology(*map(list, zip(*on_gpu)), by=by)
    for new, expected in zip(got, right, strict=True):
        assert new.device.type == "cuda"
        assert torch.equal(new.data.cpu(), expected.data)
        new.validate()
    return on_gpu, got


@pytest.mark.parametrize("by", ["magnitude", "value"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_real_layers(shape, dtype, by):
    on_gpu, got = check([layer(shape, dtype=dtype)], by)
    # Once more, from the complete grid that came out.
    ((values, pattern, scores, count),) = on_gpu
    (moved,) = transfer_all([values], pattern, got[0])
    check([(moved.cpu(), got[0].to("cpu"), scores.cpu(), count)], by)


@pytest.mark.parametrize("kind", ["equal", "mostly zero"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ties(kind, dtype):
    check([layer((2048, 1024), dtype=dtype, kind=kind), layer((256, 128, 3, 3), dtype=dtype, kind=kind)])


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.99, 0.9999])
def test_sparsities(sparsity):
    check([layer((1500, 1300), sparsity), layer((70, 30, 5, 5), sparsity)])


def test_many_layers_at_once():
    shapes = [(64, 3, 7, 7), (64, 64, 1, 1), (64, 64, 3, 3), (512, 2048), (1000, 2048), (1, 1), (10, 84)]
    check([layer(shapes[i % 7], dtype=DTYPES[i % 4], seed=i) for i in range(60)])


def test_candidates():
    values, pattern, scores, count = layer((2048, 1024))
    inactive = (~pattern.to_mask()).flatten().nonzero()[:, 0]
    inactive = inactive[torch.randperm(len(inactive), generator=torch.Generator().manual_seed(1))][
        : 2 * count
    ]
    candidates = Candidates(pattern.pack(scores), inactive, scores.flatten()[inactive])
    check([(values, pattern, candidates, count), (values, pattern, scores, count)])


def test_vectors_of_several_dtypes():
    (_, source, _, _), (_, target, _, _) = layer((1500, 1300)), layer((1500, 1300), seed=1)
    vectors = [torch.randn(source.nnz).to(DTYPES[i % 4]) for i in range(11)]
    right = transfer_all(vectors, source, target)
    got = transfer_all([vector.cuda() for vector in vectors], source.to("cuda"), target.to("cuda"))
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, right, strict=True))


def step(values, pattern, scores, count):
    (new,) = update_topology([values], [pattern], [scores], [count])
    return new, transfer_all([values, values.double()], pattern, new)


def test_another_stream_and_nothing_waited_for():
    one = [to_gpu(item) for item in layer((2048, 1024))]
    right, moved = step(*one)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            got, same = step(*one)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    stream.synchronize()
    assert torch.equal(got.data, right.data)
    assert all(map(torch.equal, same, moved))


def test_a_cuda_graph_replays_it():
    values, pattern, scores, count = (to_gpu(item) for item in layer((2048, 1024)))
    step(values, pattern, scores, count)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got, moved = step(values, pattern, scores, count)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        values.copy_(torch.randn(values.shape, generator=generator))
        scores.copy_(torch.randn(scores.shape, generator=generator))
        graph.replay()
        right, right_moved = step(values, pattern, scores, count)
        assert torch.equal(got.data, right.data)
        assert all(map(torch.equal, moved, right_moved))
