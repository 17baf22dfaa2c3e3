"""update_topology: the exact positions that the reference chooses, whatever the scores and the tiles."""

from __future__ import annotations

import re

import pytest
import torch

from sparsekern import cpp
from sparsekern.formats import Pattern
from sparsekern.ops import Candidates, transfer, update_topology

pytestmark = pytest.mark.usefixtures("poisoned")

SHAPES = {"1x1": (1, 1), "65x130": (65, 130), "conv 12x5x3x2": (12, 5, 3, 2), "conv 70x9x1x1": (70, 9, 1, 1)}
MASKS = ["all", "none", "one element", "tenth", "half", "empty rows", "empty tiles"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
BY = ["magnitude", "value"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random(shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


# NaN in their smallest and largest forms, the latter negative: all are one to an order.
NANS = {
    torch.float16: torch.tensor([0x7C01, -1], dtype=torch.int16),
    torch.bfloat16: torch.tensor([0x7F81, -1], dtype=torch.int16),
    torch.float32: torch.tensor([0x7F800001, -1], dtype=torch.int32),
    torch.float64: torch.tensor([0x7FF0000000000001, -1], dtype=torch.int64),
}


def numbers(kind, shape, dtype, seed=0):
    """Scores or values of a kind that is hard to order."""
    x = random(shape, dtype, seed)
    if kind == "few":
        return (x * 2).round() / 2
    if kind == "equal":
        return torch.full(shape, 0.75, dtype=dtype)
    if kind == "zeros":
        return torch.where(x > 0, 0.0, -0.0).to(dtype)
    if kind == "special":
        tiny = torch.finfo(dtype).smallest_normal * 0.25
        finite = torch.tensor([0.0, -0.0, 1.0, -1.0, tiny, -tiny, torch.inf, -torch.inf], dtype=dtype)
        special = torch.cat([finite, NANS[dtype].view(dtype)])
        return special[torch.randint(len(special), shape, generator=generator(seed))]
    return x


NUMBERS = ["random", "few", "equal", "zeros", "special"]


def counts_of(nnz):
    return sorted({0, min(1, nnz), nnz // 3, max(0, nnz - 1), nnz})


def check(values, patterns, scores, counts, by="magnitude"):
    """The C++ backend against the reference, to the last bit of the pattern."""
    got = update_topology(values, patterns, scores, counts, by=by)
    expected = update_topology(values, patterns, scores, counts, by=by, backend="reference")
    for old, new, right in zip(patterns, got, expected, strict=True):
        new.validate()
        assert new.nnz == old.nnz
        assert new.num_tiles == len(new.tile_row_ptr[1:]) * len(new.tile_ptr_t[1:])
        assert torch.equal(new.data, right.data)
        assert new == right
    return got


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def shape(request):
    return request.param


@pytest.mark.parametrize("complete", [False, True], ids=["stored where active", "complete grid"])
@pytest.mark.parametrize("tile_size", [8, 16, 32, 64], ids="tile_{}".format)
@pytest.mark.parametrize("kind", MASKS)
def test_masks(make_mask, shape, kind, tile_size, complete):
    pattern = Pattern.from_mask(make_mask(kind, shape, tile_size), tile_size=tile_size, complete=complete)
    values, scores = random(pattern.nnz), random(shape, seed=1)
    for count in counts_of(pattern.nnz):
        for by in BY:
            check([values], [pattern], [scores], [count], by)


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("value_kind", NUMBERS)
@pytest.mark.parametrize("score_kind", NUMBERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers(make_mask, value_kind, score_kind, dtype, by):
    for size in ((65, 130), (12, 5, 3, 2)):
        pattern = Pattern.from_mask(make_mask("half", size))
        values = numbers(value_kind, (pattern.nnz,), dtype)
        scores = numbers(score_kind, size, dtype, seed=1)
        for count in counts_of(pattern.nnz):
            check([values], [pattern], [scores], [count], by)


def test_several_layers_of_several_dtypes_at_once(make_mask):
    shapes = [(65, 130), (12, 5, 3, 2), (1, 1), (70, 9, 1, 1)]
    patterns = [Pattern.from_mask(make_mask("half", size, seed=i)) for i, size in enumerate(shapes)]
    patterns.append(Pattern.from_mask(torch.zeros(9, 20, dtype=torch.bool)))
    shapes.append((9, 20))
    value_dtypes = [torch.float64, torch.bfloat16, torch.float32, torch.float16, torch.float32]
    score_dtypes = [torch.float32, torch.float64, torch.float16, torch.float32, torch.bfloat16]
    values = [random(p.nnz, dtype) for p, dtype in zip(patterns, value_dtypes)]
    scores = [random(size, dtype, seed=9) for size, dtype in zip(shapes, score_dtypes)]
    counts = [pattern.nnz // 3 for pattern in patterns]
    together = check(values, patterns, scores, counts)
    alone = [update_topology([v], [p], [s], [c])[0] for v, p, s, c in zip(values, patterns, scores, counts)]
    assert together == alone
    assert update_topology([], [], [], []) == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("size", [(700, 901), (130, 67, 3, 3)], ids=str)
def test_sizes_at_which_scores_are_sampled(size, by, kind, dtype, threads):
    """Few are collected, or with equal scores all are searched; any number of threads chooses the same."""
    pattern = Pattern.random(size, 0.9, generator=generator())
    values, scores = numbers(kind, (pattern.nnz,), dtype), numbers(kind, size, dtype, seed=1)
    counts = [pattern.nnz // 3]
    threads(2)
    (right,) = check([values], [pattern], [scores], counts, by)
    threads(1)
    assert update_topology([values], [pattern], [scores], counts, by=by) == [right]


def test_a_sample_that_misleads():
    """All scores that a sample can see are small, or all of them are large."""
    size = (1200, 1201)
    pattern = Pattern.random(size, 0.99, generator=generator())
    values, count = random(pattern.nnz), pattern.nnz // 2
    for largest in (0, 1000, size[0] * size[1] - 5000):
        scores = torch.arange(size[0] * size[1], dtype=torch.float64).view(size)
        scores[scores < largest] += 1e9
        check([values], [pattern], [scores], [count])


def test_layout_of_the_scores_does_not_matter():
    pattern = Pattern.random((12, 5, 3, 2), 0.7, generator=generator())
    values, scores = random(pattern.nnz), random(pattern.shape, seed=1)
    (right,) = check([values], [pattern], [scores], [7])
    others = [
        scores.contiguous(memory_format=torch.channels_last),
        scores.repeat_interleave(2, dim=3)[..., ::2],
        torch._neg_view(-scores),
        scores.clone().requires_grad_(),
    ]
    for other in others:
        assert update_topology([values], [pattern], [other], [7], by="value") == update_topology(
            [values], [pattern], [scores], [7], by="value"
        )
    spread = values.repeat_interleave(2)[::2].requires_grad_()
    assert update_topology([spread], [pattern], [scores], [7]) == [right]


def test_what_it_says_in_words():
    """-0.0 ties with 0.0 and comes first, a NaN value stays and a NaN score grows."""
    pattern = Pattern.from_mask(torch.tensor([[True, True, True, False], [True, False, False, False]]))
    values = torch.tensor([3.0, -0.0, torch.nan, 0.0])
    scores = torch.tensor([[9.0, 0.5, 9.0, -7.0], [1.0, 0.5, torch.nan, 0.5]])
    (new,) = update_topology([values], [pattern], [scores], [2])
    assert new.to_mask().tolist() == [[True, False, True, True], [False, False, True, False]]
    assert transfer(values, pattern, new).nan_to_num(-1).tolist() == [3.0, -1.0, 0.0, 0.0]
    (new,) = update_topology([values], [pattern], [scores], [2], by="value")
    assert new.to_mask().tolist() == [[True, False, True, False], [True, False, True, False]]


def test_random_scores_by_value_are_set():
    """Negative scores grow last by value and first by magnitude: SET, RigL and its inversion."""
    pattern = Pattern.from_mask(torch.eye(4, dtype=torch.bool))
    values, gradient = torch.ones(4), torch.arange(16.0).view(4, 4) - 8
    (largest,) = update_topology([values], [pattern], [gradient], [1])
    (smallest,) = update_topology([values], [pattern], [-gradient.abs()], [1], by="value")
    assert largest.to_mask()[0, 0]
    assert smallest.to_mask()[2, 0]


def candidates_of(pattern, dense, listed):
    """All or the first `listed` inactive positions, in no order."""
    mask = pattern.to_mask()
    matrix, scores = (
        t if t.dim() == 2 else t.permute(0, 2, 3, 1).flatten(1).contiguous() for t in (mask, dense)
    )
    inactive = (~matrix).flatten().nonzero()[:, 0]
    inactive = inactive[torch.randperm(len(inactive), generator=generator(3))][:listed]
    return Candidates(pattern.pack(dense), inactive, scores.flatten()[inactive])


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("mask", ["all", "none", "tenth", "half", "empty tiles"])
def test_candidates(make_mask, shape, mask, kind, by):
    pattern = Pattern.from_mask(make_mask(mask, shape))
    values, dense = numbers(kind, (pattern.nnz,), torch.float32), numbers(kind, shape, torch.bfloat16, seed=1)
    everything = candidates_of(pattern, dense, pattern.numel)
    for count in counts_of(pattern.nnz):
        assert check([values], [pattern], [everything], [count], by) == check(
            [values], [pattern], [dense], [count], by
        )
        check([values], [pattern], [candidates_of(pattern, dense, count)], [count], by)


def test_candidates_beside_dense_scores():
    patterns = [Pattern.random((40, 30), 0.8, generator=generator(i)) for i in range(2)]
    values, dense = [random(p.nnz) for p in patterns], random((40, 30), seed=1)
    check(values, patterns, [candidates_of(patterns[0], dense, 300), dense], [50, 60])


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([5, 200], r"positions: expected inactive ones below 80, got 200 at 1"),
        ([-1, 5], r"positions: expected inactive ones below 80, got -1 at 0"),
        ([5, 0], r"positions: expected inactive ones below 80, got 0 at 1"),
        ([5, 5], r"positions: one is named twice"),
    ],
)
def test_positions_that_cannot_grow(positions, message):
    mask = torch.zeros(8, 10, dtype=torch.bool)
    mask[0, 0] = mask[1, 1] = True
    pattern = Pattern.from_mask(mask)
    listed = Candidates(-torch.ones(2), torch.tensor(positions), torch.ones(2))
    for by in BY:
        with pytest.raises(ValueError, match=message):
            update_topology([torch.ones(2)], [pattern], [listed], [2], by=by)


PATTERN = Pattern.random((6, 9), 0.5, generator=generator())
GOOD = {
    "values": [random(PATTERN.nnz)],
    "patterns": [PATTERN],
    "scores": [random((6, 9))],
    "counts": [3],
    "by": "magnitude",
}
ACTIVE, POSITIONS = random(PATTERN.nnz), torch.arange(PATTERN.numel)[~PATTERN.to_mask().flatten()]
BAD = {
    "values are one tensor": ({"values": random(27)}, TypeError, "values must be a list with an entry"),
    "another length": (
        {"counts": [1, 2]},
        ValueError,
        "counts must have an entry for each of 1 layers, got 2",
    ),
    "values of another size": (
        {"values": [random(5)]},
        ValueError,
        r"values[0] must have shape (27,), got (5,)",
    ),
    "integers": (
        {"values": [torch.ones(27, dtype=torch.int32)]},
        TypeError,
        "values[0] must have a floating-",
    ),
    "float8": (
        {"scores": [random((6, 9)).to(torch.float8_e4m3fn)]},
        TypeError,
        "scores[0] must have one of the dtypes float16, bfloat16, float32, float64, got torch.float8_e4m3fn",
    ),
    "no pattern": (
        {"patterns": [PATTERN.data]},
        TypeError,
        "patterns[0] must be a sparsekern.Pattern, got Tens",
    ),
    "scores of another shape": ({"scores": [random((9, 6))]}, ValueError, "scores[0] must have shape (6, 9)"),
    "another device": (
        {"scores": [torch.ones(6, 9, device="meta")]},
        ValueError,
        "scores[0] must be on the pattern's device cpu, got meta",
    ),
    "negative": ({"counts": [-1]}, ValueError, "counts[0] must be at least 0, got -1"),
    "too many": ({"counts": [28]}, ValueError, "counts[0] must be at most nnz, 27, got 28"),
    "a fraction": ({"counts": [0.5]}, TypeError, "counts[0] must be an integer, got 0.5"),
    "by": ({"by": "gradient"}, ValueError, "by must be 'magnitude' or 'value', got 'gradient'"),
    "backend": (
        {"backend": "cudnn"},
        ValueError,
        "backend must be one of cpp, cuda, triton, torch, reference, got 'cudnn'",
    ),
    "active": (
        {"scores": [Candidates(random(5), POSITIONS, random(27))]},
        ValueError,
        "scores[0].active must have shape (27,), got (5,)",
    ),
    "positions of another dtype": (
        {"scores": [Candidates(ACTIVE, POSITIONS.int(), random(27))]},
        TypeError,
        "scores[0].positions must be a 1-D int64 tensor",
    ),
    "candidates of another size": (
        {"scores": [Candidates(ACTIVE, POSITIONS, random(26))]},
        ValueError,
        "scores[0].scores must have shape (27,), got (26,)",
    ),
    "candidates of another dtype": (
        {"scores": [Candidates(ACTIVE, POSITIONS, random(27).double())]},
        TypeError,
        "scores[0].scores and scores[0].active must have one dtype, got torch.float64 and torch.float32",
    ),
    "too few candidates": (
        {"scores": [Candidates(ACTIVE, POSITIONS[:2], random(2))]},
        ValueError,
        "scores[0].positions must name at least 3 positions, got 2",
    ),
}


@pytest.mark.parametrize(("change", "error", "message"), BAD.values(), ids=BAD.keys())
def test_arguments(change, error, message):
    arguments = {**GOOD, **change}
    layers = [arguments.pop(name) for name in ("values", "patterns", "scores", "counts")]
    with pytest.raises(error, match="^" + re.escape(message)):
        update_topology(*layers, **arguments)


class TestTheRegisteredOp:
    def arguments(self):
        conv = Pattern.random((4, 3, 3, 2), 0.5, generator=generator())
        patterns, dense = [PATTERN, conv], [random((6, 9)), random((4, 3, 3, 2))]
        listed = candidates_of(PATTERN, dense[0], 20)
        values = [random(pattern.nnz) for pattern in patterns]
        right = update_topology(values, patterns, [listed, dense[1]], [5, 9])
        words = [pattern.data.numel() for pattern in right]
        scores, active, positions = [listed.scores, dense[1]], [listed.active, None], [listed.positions, None]
        data = [pattern.data for pattern in patterns]
        return (values, data, scores, active, positions, [5, 9], words, "magnitude", ""), right

    def test_opcheck(self):
        arguments, _ = self.arguments()
        torch.library.opcheck(torch.ops.sparsekern.update_topology.default, arguments)

    def test_compiled(self):
        arguments, right = self.arguments()
        compiled = torch.compile(torch.ops.sparsekern.update_topology, fullgraph=True, backend="aot_eager")
        assert [Pattern(data) for data in compiled(*arguments)] == right

    def test_other_dtypes_are_refused(self):
        (values, *rest), _ = self.arguments()
        with pytest.raises(
            TypeError, match="values and scores must be float16, bfloat16, float32 or float64"
        ):
            torch.ops.sparsekern.update_topology([v.to(torch.float8_e4m3fn) for v in values], *rest)

    def test_the_extension_checks_sizes_once_more(self):
        arguments, _ = self.arguments()
        for place, wrong, message in [
            (6, [100, 100], "result: expected words"),
            (5, [5, 99], "count: expected 0"),
        ]:
            changed = [*arguments[:place], wrong, *arguments[place + 1 : -1]]
            with pytest.raises(ValueError, match=message):
                cpp.update_topology(*changed)
