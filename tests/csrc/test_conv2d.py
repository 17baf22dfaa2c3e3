"""`conv2d` and its gradients, and where its weight should grow, called with addresses."""

import numpy as np
from hypothesis import given

from sparsekern import _C
from tests.csrc import calls
from tests.csrc.candidates import check_passes
from tests.csrc.memory import Buffer
from tests.csrc.numerics import (
    DTYPES,
    assert_same,
    generators,
    integer,
    pick,
    small_integers,
    stored,
    untouched,
)
from tests.csrc.patterns import as_matrix, draw_pattern, pack_mask, random_mask

ISA = _C.isa_levels()
RESULTS = ("y", "grad_x", "grad_values")
GEOMETRY = (
    "batch",
    "groups",
    "height",
    "width",
    "stride",
    "stride",
    "padding",
    "padding",
    "dilation",
    "dilation",
)


def unfolded(x, kernel, out, geometry):
    """What each tap reads: x (batch, channels, height, width) as (kh, kw, batch, channels, out_h, out_w)."""
    stride, padding, dilation = geometry
    batch, channels, height, width = x.shape
    reach = [(k - 1) * d + (o - 1) * s + 1 for k, d, o, s in zip(kernel, dilation, out, stride)]
    padded = np.zeros(
        (batch, channels, *(max(r, n + 2 * p) for r, n, p in zip(reach, (height, width), padding)))
    )
    padded[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width] = x
    taps = np.empty((*kernel, batch, channels, *out))
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            rows = slice(i * dilation[0], i * dilation[0] + (out[0] - 1) * stride[0] + 1, stride[0])
            cols = slice(j * dilation[1], j * dilation[1] + (out[1] - 1) * stride[1] + 1, stride[1])
            taps[i, j] = padded[:, :, rows, cols]
    return taps


def folded(taps, size, geometry):
    """The transpose of `unfolded`."""
    stride, padding, dilation = geometry
    kh, kw, batch, channels, *out = taps.shape
    shape = [(k - 1) * d + (o - 1) * s + 1 for k, d, o, s in zip((kh, kw), dilation, out, stride)]
    x = np.zeros((batch, channels, *(max(r, n + 2 * p) for r, n, p in zip(shape, size, padding))))
    for i in range(kh):
        for j in range(kw):
            rows = slice(i * dilation[0], i * dilation[0] + (out[0] - 1) * stride[0] + 1, stride[0])
            cols = slice(j * dilation[1], j * dilation[1] + (out[1] - 1) * stride[1] + 1, stride[1])
            x[:, :, rows, cols] += taps[i, j]
    return x[:, :, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]


def draw_problem(generator):
    """One convolution, and float64 results of its three products."""
    pattern = draw_pattern(generator, dims=(4,), most=40)
    rows, cin, *kernel = pattern.mask.shape
    groups = pick(generator, [g for g in range(1, min(rows, 5) + 1) if rows % g == 0])
    batch = pick(generator, (0, 1, 1, 2, 2, 3))
    size = [pick(generator, (0, 1, 2, 3, 5, 7, 7, 12, 12, 17, 33, 70)) for _ in range(2)]
    stride, padding, dilation = (
        [integer(generator, *ends) for _ in range(2)] for ends in ((1, 4), (0, 5), (1, 3))
    )
    geometry = stride, padding, dilation
    reach = [n + 2 * p - d * (k - 1) - 1 for n, p, d, k in zip(size, padding, dilation, kernel)]
    out = [0 if r < 0 else r // s + 1 for r, s in zip(reach, stride)]
    dtype, at_page_end = pick(generator, DTYPES), pick(generator, (False, True))
    weight = small_integers(generator, rows, cin, *kernel) * pattern.mask
    x = small_integers(generator, batch, groups * cin, *size)
    grad_y = small_integers(generator, batch, rows, *out)
    bias = small_integers(generator, rows) if pick(generator, (False, True)) else np.zeros(0)
    by_group = weight.reshape(groups, rows // groups, cin, *kernel)
    grouped_y = grad_y.reshape(batch, groups, rows // groups, *out)
    taps = np.zeros((*kernel, batch, groups * cin, *out))
    if 0 not in out:
        taps = unfolded(x, kernel, out, geometry)
    taps = taps.reshape(*kernel, batch, groups, cin, *out)
    y = np.einsum("grcij,ijbgcpq->bgrpq", by_group, taps, optimize=True).reshape(grad_y.shape)
    if bias.size:
        y = y + bias[:, None, None]
    grad_x = np.zeros(x.shape)
    if 0 not in out:
        spread = np.einsum("grcij,bgrpq->ijbgcpq", by_group, grouped_y, optimize=True)
        grad_x = folded(spread.reshape(*kernel, batch, groups * cin, *out), size, geometry)
    grad_weight = np.einsum("bgrpq,ijbgcpq->grcij", grouped_y, taps, optimize=True).reshape(weight.shape)
    sizes = [batch, groups, *size, *stride, *padding, *dilation]
    return {
        "generator": generator,
        "pattern": pattern,
        "words": Buffer(pattern.words, at_page_end),
        "isa": pick(generator, ISA),
        "dtype": dtype,
        "threads": integer(generator, 1, 3),
        "at_page_end": at_page_end,
        "sizes": sizes,
        "values": Buffer(stored(weight.reshape(-1)[pattern.flat], dtype), at_page_end),
        "x": Buffer(stored(x, dtype), at_page_end),
        "grad_y": Buffer(stored(grad_y, dtype), at_page_end),
        "bias": Buffer(stored(bias, dtype), at_page_end),
        "expected": {"y": y, "grad_x": grad_x, "grad_values": grad_weight.reshape(-1)[pattern.flat]},
        "grad_weight": grad_weight,
    }


def wrong_shapes(sizes, elements):
    """Other sizes of the convolution: none of them fits the buffers, or what an int32 holds."""
    for place, name in enumerate(GEOMETRY):
        least = 1 if name in ("groups", "stride", "dilation") else 0
        for value in (least - 1, -(2**63), 2**62, 2**63 - 1):
            # No image at all has no element, however many of them there were.
            if elements == 0 and name == "batch" and value > 0:
                continue
            yield _C.Conv2dShape(*sizes[:place], value, *sizes[place + 1 :])


def call_of(problem, name):
    """The product whose result is `name`."""
    dtype, words = problem["dtype"], problem["words"]
    out = Buffer(untouched(problem["expected"][name].size, dtype), problem["at_page_end"])
    values, x, grad_y = (calls.data(problem[key]) for key in ("values", "x", "grad_y"))
    bias = [calls.Argument(0), calls.Argument(0)]
    if problem["bias"].count:
        bias = calls.data(problem["bias"], optional=True)
    function, tensors = {
        "y": (_C.conv2d, values + x + bias),
        "grad_x": (_C.conv2d_grad_input, values + grad_y),
        "grad_values": (_C.conv2d_grad_values, grad_y + x),
    }[name]
    elements = problem["x"].count * problem["grad_y"].count
    shape = calls.Argument(_C.Conv2dShape(*problem["sizes"]), tuple(wrong_shapes(problem["sizes"], elements)))
    arguments = [
        calls.choice(dtype, 3),
        *calls.words(words),
        shape,
        *tensors,
        *calls.data(out),
        calls.threads(problem["threads"]),
    ]
    return calls.Call(function, arguments, [out])


@given(generators())
def test_products_are_exact(generator):
    problem, name = draw_problem(generator), pick(generator, RESULTS)
    _C.set_isa(problem["isa"])
    call = call_of(problem, name)
    calls.refuse_wrong_arguments(call, generator)
    call()
    (out,) = call.outputs
    assert_same(out.array, problem["expected"][name], problem["dtype"])
    assert out.is_intact()


def read_pixel(x, tap, out, geometry):
    """What a tap reads for one pixel of the result, with Python's integers; zeros outside the image."""
    at = [o * s - p + k * d for o, s, p, k, d in zip(out, geometry[0], geometry[1], tap, geometry[2])]
    inside = all(0 <= a < n for a, n in zip(at, x.shape[1:]))
    return x[:, at[0], at[1]] if inside else np.zeros(len(x))


FAR = 2**31 - 1


@given(generators())
def test_pixels_may_be_far_apart(generator):
    """Strides, paddings and dilations of the largest int32: the result, or an error that says what is far."""
    _C.set_isa(pick(generator, ISA))
    name = pick(generator, RESULTS)
    kernel = generator.integers(1, 4, 2)
    pattern = pack_mask(random_mask(generator, (3, 2, *kernel), 0.7), 8)
    size = generator.integers(1, 5, 2)
    geometry = [[int(generator.choice((FAR, FAR, *near, *near))) for _ in range(2)]
                for near in ((1, 2), (0, 1), (1, 2))]  # fmt: skip
    stride, padding, dilation = geometry
    reach = [int(n) + 2 * p - d * (int(k) - 1) - 1 for n, p, d, k in zip(size, padding, dilation, kernel)]
    out = [0 if r < 0 else r // s + 1 for r, s in zip(reach, stride)]
    if max(out) > 50:
        return
    x, grad_y = small_integers(generator, 2, *size), small_integers(generator, 3, *out)
    weight = small_integers(generator, *pattern.mask.shape) * pattern.mask
    expected = {"y": np.zeros((3, *out)), "grad_values": np.zeros(weight.shape)}
    for tap in np.ndindex(*kernel):
        for pixel in np.ndindex(*out):
            read = read_pixel(x, tap, pixel, geometry)
            expected["y"][(slice(None), *pixel)] += weight[(..., *tap)] @ read
            expected["grad_values"][(..., *tap)] += np.outer(grad_y[(slice(None), *pixel)], read)
    expected["grad_values"] = expected["grad_values"].reshape(-1)[pattern.flat]
    words, values = Buffer(pattern.words, True), Buffer(stored(weight.reshape(-1)[pattern.flat], 0), True)
    x_at, y_at = Buffer(stored(x, 0), True), Buffer(stored(grad_y, 0), True)
    result = Buffer(untouched(x.size if name == "grad_x" else expected[name].size, 0), True)
    function, tensors = {
        "y": (_C.conv2d, (*values, *x_at, 0, 0)),
        "grad_x": (_C.conv2d_grad_input, (*values, *y_at)),
        "grad_values": (_C.conv2d_grad_values, (*y_at, *x_at)),
    }[name]
    shape = _C.Conv2dShape(1, 1, *map(int, size), *stride, *padding, *dilation)
    _, refusal = calls.outcome(function, 0, *words, shape, *tensors, *result, 1)
    if refusal:
        assert "expected rows and dilations that keep what a tile of pixels reads below" in str(refusal)
    else:
        assert not np.isnan(result.array).any()
        if name != "grad_x":
            np.testing.assert_array_equal(result.array, expected[name].reshape(-1))
    assert result.is_intact()


@given(generators())
def test_growth_candidates_of_a_convolution_are_exact(generator):
    problem = draw_problem(generator)
    _C.set_isa(problem["isa"])
    elements = problem["x"].count * problem["grad_y"].count
    arguments = [
        calls.choice(problem["dtype"], 3),
        *calls.words(problem["words"]),
        calls.Argument(_C.Conv2dShape(*problem["sizes"]), tuple(wrong_shapes(problem["sizes"], elements))),
        *calls.data(problem["grad_y"]),
        *calls.data(problem["x"]),
        calls.threads(problem["threads"]),
    ]
    call = calls.Call(_C.grow_candidates_conv2d, arguments)
    calls.refuse_wrong_arguments(call, problem["generator"])
    check_passes(call(), as_matrix(problem["grad_weight"]), problem)
