"""grow_candidates: exactly the positions and scores that a stable sort of the dense gradient selects.

Sums of small integers are exact in every order, so results are compared for equality, ties and all.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn.grad import conv2d_weight

from sparsekern import candidates, native
from sparsekern.formats import Pattern
from sparsekern.ops import conv2d, grow_candidates, grow_candidates_conv2d

SIZES = [(1, 1, 1), (5, 3, 7), (33, 130, 70), (200, 70, 65), (17, 515, 390)]  # batch, rows, columns
MASKS = ["all", "none", "one element", "tenth", "half", "empty rows", "empty tiles"]
CONV2D = {
    "plain": ((6, 3, 5, 5), (2, 3, 14, 14), {}),
    "groups and padding": ((40, 6, 3, 3), (3, 12, 9, 9), {"groups": 2, "padding": 1}),
    "stride": ((70, 50, 3, 3), (1, 50, 10, 11), {"stride": 2, "padding": (1, 2)}),
    "depthwise": ((24, 1, 3, 3), (2, 24, 7, 7), {"groups": 24, "dilation": 2, "padding": 3}),
    "pointwise": ((33, 60, 1, 1), (2, 60, 9, 5), {}),
    "pointwise with a stride": ((33, 60, 1, 1), (2, 60, 9, 5), {"stride": (1, 2)}),
    "one pixel": ((8, 4, 2, 3), (2, 4, 2, 3), {}),
    "mostly padding": ((4, 2, 3, 3), (1, 2, 1, 1), {"padding": 5}),
    "no images": ((8, 4, 2, 3), (0, 4, 5, 5), {}),
}


@pytest.fixture(params=["cpp", "reference"])
def backend(request):
    return request.param


@pytest.fixture(params=[None, 40, 0], ids=["one emission", "histograms", "exact keys and rows of ties"])
def surplus(request, monkeypatch):
    """How many positions too many are written down, which decides how many passes there are."""
    if request.param is not None:
        monkeypatch.setattr(candidates, "SURPLUS", request.param)


def integers(*shape, dtype=torch.float32, seed=0):
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def expected(gradient, mask, count):
    """From the dense gradient in matrix order."""
    scores = gradient.abs().masked_fill(mask, -1).flatten()
    count = min(count, int((~mask).sum()))
    positions = torch.argsort(scores, descending=True, stable=True)[:count].sort().values
    return positions, scores[positions]


def assert_equal(got, gradient, mask, count):
    truth = expected(gradient, mask, count)
    dtype = torch.float64 if gradient.dtype == torch.float64 else torch.float32
    assert got[0].dtype == torch.int64
    assert got[1].dtype == dtype
    assert torch.equal(got[0], truth[0])
    assert torch.equal(got[1], truth[1].to(dtype))


def counts(mask):
    inactive = int((~mask).sum())
    return sorted({0, min(1, inactive), inactive // 7, inactive // 2, inactive, inactive + 5})


@pytest.mark.usefixtures("isa", "surplus", "poisoned")
@pytest.mark.parametrize(("batch", "rows", "columns"), SIZES)
def test_sizes(dtype, batch, rows, columns, make_mask):
    mask = make_mask("tenth", (rows, columns))
    grad_y, x = integers(batch, rows, dtype=dtype), integers(batch, columns, dtype=dtype, seed=1)
    gradient = grad_y.double().T @ x.double() if dtype == torch.float64 else grad_y.float().T @ x.float()
    for count in counts(mask):
        assert_equal(grow_candidates(grad_y, x, Pattern.from_mask(mask), count), gradient, mask, count)


@pytest.mark.usefixtures("surplus")
@pytest.mark.parametrize("tile_size", [8, 64])
@pytest.mark.parametrize("kind", MASKS)
def test_masks_of_every_kind(backend, kind, tile_size, make_mask):
    mask = make_mask(kind, (130, 201), tile_size)
    pattern = Pattern.from_mask(mask, tile_size=tile_size)
    grad_y, x = integers(20, 130), integers(20, 201, seed=1)
    for count in counts(mask):
        got = grow_candidates(grad_y, x, pattern, count, backend=backend)
        assert_equal(got, grad_y.T @ x, mask, count)


def check_conv2d(weight, images, options, dtype, make_mask, backend):
    mask = make_mask("tenth", weight)
    pattern = Pattern.from_mask(mask)
    x = integers(*images, dtype=dtype)
    y = conv2d(x, torch.zeros(pattern.nnz, dtype=dtype), pattern, **options)
    grad_y = integers(*y.shape, dtype=dtype, seed=1)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    gradient = conv2d_weight(x.to(wide), weight, grad_y.to(wide), **options)
    mask, gradient = (tensor.permute(0, 2, 3, 1).flatten(1) for tensor in (mask, gradient))
    for count in counts(mask):
        got = grow_candidates_conv2d(grad_y, x, pattern, count, backend=backend, **options)
        assert_equal(got, gradient, mask, count)


@pytest.mark.usefixtures("isa", "surplus", "poisoned")
@pytest.mark.parametrize(("weight", "images", "options"), CONV2D.values(), ids=CONV2D.keys())
def test_conv2d(dtype, weight, images, options, make_mask):
    check_conv2d(weight, images, options, dtype, make_mask, "cpp")


@pytest.mark.parametrize(("weight", "images", "options"), CONV2D.values(), ids=CONV2D.keys())
def test_conv2d_reference(dtype, weight, images, options, make_mask):
    check_conv2d(weight, images, options, dtype, make_mask, "reference")


def test_strides_and_leading_dimensions(backend, make_mask):
    mask = make_mask("half", (37, 50))
    pattern = Pattern.from_mask(mask)
    x = integers(50, 3, 4, 2)[..., 0].permute(2, 1, 0)
    grad_y = integers(1, 3, 37, seed=1).expand(4, 3, 37)
    gradient = grad_y.reshape(12, 37).T @ x.reshape(12, 50)
    got = grow_candidates(grad_y, x, pattern, 100, backend=backend)
    assert_equal(got, gradient, mask, 100)
    vector = grow_candidates(integers(37), integers(50, seed=1), pattern, 100, backend=backend)
    assert_equal(vector, torch.outer(integers(37), integers(50, seed=1)), mask, 100)


@pytest.mark.usefixtures("isa", "surplus")
@pytest.mark.parametrize("batch", [0, 3])
def test_a_gradient_of_zeros_is_all_ties(batch, backend, dtype, make_mask):
    mask = make_mask("tenth", (70, 90))
    grad_y = torch.zeros(batch, 70, dtype=dtype)
    grad_y[:1] = -0.0
    x = integers(batch, 90, dtype=dtype)
    got = grow_candidates(grad_y, x, Pattern.from_mask(mask), 1000, backend=backend)
    assert torch.equal(got[0], (~mask).flatten().nonzero().squeeze(1)[:1000])
    assert torch.equal(got[1], torch.zeros(1000, dtype=got[1].dtype))


@pytest.mark.usefixtures("isa", "surplus")
def test_nan_is_largest_then_infinity(backend, dtype):
    mask = torch.zeros(40, 50, dtype=torch.bool)
    mask[5, :10] = True
    grad_y, x = torch.ones(2, 40, dtype=dtype), torch.ones(2, 50, dtype=dtype)
    grad_y[0, 20], grad_y[0, 5] = -torch.inf, torch.nan
    gradient = torch.ones(40, 50).double() * 2
    gradient[20], gradient[5] = torch.inf, torch.nan
    for count in (7, 40, 60, 91):
        positions, scores = grow_candidates(grad_y, x, Pattern.from_mask(mask), count, backend=backend)
        rows = torch.tensor([5] * 40 + [20] * 50 + [0])[:count].sort().values
        assert torch.equal(positions // 50, rows)
        assert torch.equal(positions[rows == 5] % 50, torch.arange(10, 50)[:count])
        assert torch.equal(scores.isnan(), rows == 5)
        assert torch.equal(scores == torch.inf, rows == 20)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("shape", [(600, 700), (1030, 300)], ids=str)
def test_random_gradients_with_several_passes(shape, threads):
    """Beyond the surplus in size: scores are right to rounding, and nothing larger is left out."""
    generator = torch.Generator().manual_seed(0)
    pattern = Pattern.random(shape, 0.9, generator=generator)
    grad_y, x = (torch.randn(150, size, generator=generator) for size in shape)
    exact = (grad_y.double().T @ x.double()).abs()
    exact[pattern.to_mask()] = -1
    found = []
    for number in (1, 2, 3):
        threads(number)
        found.append(grow_candidates(grad_y, x, pattern, 3000))
    positions, scores = found[0]
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other))
    assert (positions.diff() > 0).all()
    chosen = exact.flatten()[positions]
    torch.testing.assert_close(scores.double(), chosen, rtol=1e-5, atol=1e-4)
    left = exact.flatten().index_fill(0, positions, -1)
    assert left.max() <= chosen.min() + 1e-4


def test_ties_within_one_row(backend, monkeypatch):
    """A row whose ties are only partly wanted: the first of them are taken."""
    monkeypatch.setattr(candidates, "SURPLUS", 0)
    mask = torch.zeros(10, 300, dtype=torch.bool)
    pattern = Pattern.from_mask(mask)
    got = grow_candidates(torch.ones(1, 10), torch.ones(1, 300), pattern, 450, backend=backend)
    assert torch.equal(got[0], torch.arange(450))


def test_results_are_constants(backend, make_mask):
    pattern = Pattern.from_mask(make_mask("half", (12, 14)))
    grad_y, x = torch.randn(3, 12, requires_grad=True), torch.randn(3, 14, requires_grad=True)
    for result in grow_candidates(grad_y, x, pattern, 5, backend=backend):
        assert not result.requires_grad


@pytest.mark.parametrize("name", ["grow_candidates", "grow_candidates_conv2d"])
def test_registered_op(name, make_mask):
    if name == "grow_candidates":
        pattern = Pattern.from_mask(make_mask("half", (12, 14)))
        arguments = (torch.randn(3, 12), torch.randn(3, 14), pattern.data, (12, 14), 5, "cpp")
    else:
        pattern = Pattern.from_mask(make_mask("half", (6, 4, 3, 3)))
        images = torch.randn(2, 6, 5, 5), torch.randn(2, 4, 7, 7)
        arguments = (*images, pattern.data, (6, 4, 3, 3), 5, (1, 1, 0, 0, 1, 1, 1), "cpp")
    torch.library.opcheck(getattr(torch.ops.sparsekern, name), arguments)


def test_compiled():
    pattern = Pattern.from_mask(torch.eye(12, 14, dtype=torch.bool))
    compiled = torch.compile(grow_candidates, fullgraph=True, backend="aot_eager")
    grad_y, x = integers(3, 12), integers(3, 14)
    for got, truth in zip(compiled(grad_y, x, pattern, 9), grow_candidates(grad_y, x, pattern, 9)):
        assert torch.equal(got, truth)


PATTERN = Pattern.from_mask(torch.eye(12, 14, dtype=torch.bool))
WRONG = {
    "negative count": (lambda: grow_candidates(GRAD_Y, X, PATTERN, -1), "count must be at least 0, got -1"),
    "fractional count": (lambda: grow_candidates(GRAD_Y, X, PATTERN, 1.5), "count must be an integer"),
    "another batch": (lambda: grow_candidates(GRAD_Y[:2], X, PATTERN, 1), "grad_y must match x but in its"),
    "another width": (
        lambda: grow_candidates(GRAD_Y, X[:, :3], PATTERN, 1),
        r"x must have shape \(..., 14\)",
    ),
    "another dtype": (lambda: grow_candidates(GRAD_Y.double(), X, PATTERN, 1), "grad_y must match x but"),
    "matrix for a kernel": (
        lambda: grow_candidates_conv2d(GRAD_Y, X, PATTERN, 1),
        "pattern must have 4 dimensions",
    ),
    "more than there are, below the checks": (
        lambda: torch.ops.sparsekern.grow_candidates(GRAD_Y, X, PATTERN.data, (12, 14), 157, "cpp"),
        "count must be at least 0 and at most the 156 inactive positions, got 157",
    ),
    "more than there are, in the reference": (
        lambda: torch.ops.sparsekern.grow_candidates(GRAD_Y, X, PATTERN.data, (12, 14), 157, "reference"),
        "count must be at most the 156 inactive positions, got 157",
    ),
}
GRAD_Y, X = torch.zeros(3, 12), torch.zeros(3, 14)


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("count", (0, 15, 17), "digit: expected 1 to 16 bits of a key of 31 bits"),
        ("count", (0, 16, 16), "digit: expected 1 to 16 bits of a key of 31 bits"),
        ("count", (0, 15, 15), "counts: expected length 32768, got 65536"),
        ("count_ties", (0,), "ties: expected length 12, got 65536"),
    ],
)
def test_native_passes_check_their_room(name, arguments, message):
    room = torch.zeros(65536, dtype=torch.int64)
    passes = native._C.grow_candidates(
        0,
        PATTERN.data.data_ptr(),
        PATTERN.data.numel(),
        GRAD_Y.data_ptr(),
        36,
        3,
        12,
        1,
        X.data_ptr(),
        42,
        14,
        1,
        1,
    )
    with pytest.raises(ValueError, match=message):
        getattr(passes, name)(*arguments, room.data_ptr(), room.numel())


def test_native_emission_stays_in_its_room():
    positions, scores = torch.full((12,), -1), torch.full((12,), -1.0)
    passes = native._C.grow_candidates(
        0,
        PATTERN.data.data_ptr(),
        PATTERN.data.numel(),
        GRAD_Y.data_ptr(),
        36,
        3,
        12,
        1,
        X.data_ptr(),
        42,
        14,
        1,
        1,
    )
    found = passes.emit(0, 12, positions.data_ptr(), 10, scores.data_ptr(), 10)
    assert found == 156
    assert (positions[10:] == -1).all()
    assert (scores[10:] == -1).all()
