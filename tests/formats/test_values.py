"""Moving values between compact and dense, and counting what a pattern connects."""

import numpy as np
import pytest
import torch

from sparsekern import native
from sparsekern.formats import Pattern
from sparsekern.formats.layout import value_positions

SHAPES = {
    "6x25": (6, 25),
    "100x300": (100, 300),
    "130x129": (130, 129),
    "conv_16x6x5x5": (16, 6, 5, 5),
    "conv_70x9x1x1": (70, 9, 1, 1),
    "conv_12x33x3x2": (12, 33, 3, 2),
}
DENSITIES = {"none": 0.0, "few": 0.02, "half": 0.5, "all": 1.0}
TILE_SIZES = [8, 16, 32, 64]
DTYPES = [
    torch.bool,
    torch.int8,
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float64,
    torch.int64,
    torch.complex64,
]


def random_mask(shape, density, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


def random_dense(shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, dtype=dtype, generator=generator)
    return torch.randint(0, 100, shape, generator=generator).to(dtype)


def as_matrix(dense):
    return dense if dense.dim() == 2 else dense.permute(0, 2, 3, 1).reshape(len(dense), -1)


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def shape(request):
    return request.param


@pytest.fixture(params=DENSITIES.values(), ids=DENSITIES.keys())
def mask(request, shape):
    return random_mask(shape, request.param)


@pytest.fixture(params=TILE_SIZES, ids="tile_{}".format)
def pattern(request, mask):
    return Pattern.from_mask(mask, tile_size=request.param)


def test_pack_takes_the_active_positions_in_value_order(pattern):
    dense = random_dense(pattern.shape)
    values = pattern.pack(dense)
    assert torch.equal(values, as_matrix(dense)[pattern.value_rows(), pattern.value_cols()])


def test_unpack_puts_them_back_and_zeros_elsewhere(pattern, mask):
    dense = random_dense(pattern.shape)
    assert torch.equal(pattern.unpack(pattern.pack(dense)), torch.where(mask, dense, 0.0))


def test_transfer_keeps_common_positions_and_zeros_new_ones(pattern):
    dense = random_dense(pattern.shape)
    values = pattern.pack(dense)
    mask = pattern.to_mask()
    for density in (0.0, 0.1, 0.9, 1.0):
        other_mask = random_mask(pattern.shape, density, seed=1)
        other = Pattern.from_mask(other_mask, tile_size=pattern.tile_size)
        expected = other.pack(torch.where(mask & other_mask, dense, 0.0))
        assert torch.equal(pattern.transfer(values, other), expected)
    assert torch.equal(pattern.transfer(values, pattern), values)


def test_transfer_between_tile_sizes():
    dense = random_dense((50, 70))
    small = Pattern.from_mask(random_mask((50, 70), 0.5), tile_size=8)
    large = Pattern.from_mask(random_mask((50, 70), 0.5, seed=1), tile_size=64)
    moved = small.transfer(small.pack(dense), large)
    assert torch.equal(moved, large.pack(torch.where(small.to_mask(), dense, 0.0)))


def test_fan_in_counts_the_active_columns_of_each_row(pattern, mask):
    assert torch.equal(pattern.fan_in(), as_matrix(mask).sum(dim=1))


@pytest.mark.parametrize("groups", [1, 2])
def test_fan_out_counts_the_weights_that_read_each_channel(pattern, mask, groups):
    # In grouped convolutions the same column of two groups is two different input channels.
    parts = mask.chunk(groups, dim=0)
    expected = torch.cat([part.sum(dim=[d for d in range(part.dim()) if d != 1]) for part in parts])
    assert torch.equal(pattern.fan_out(groups), expected)


def test_fan_out_of_a_depthwise_convolution():
    mask = random_mask((24, 1, 3, 3), 0.4)
    pattern = Pattern.from_mask(mask)
    assert torch.equal(pattern.fan_out(24), mask.sum(dim=(1, 2, 3)))


def test_tensor_operations_find_the_same_positions_as_native_code(pattern):
    rows, cols = value_positions(pattern.data, pattern._layout)
    assert torch.equal(rows, pattern.value_rows())
    assert torch.equal(cols, pattern.value_cols())
    dense = random_dense(pattern.shape)
    assert torch.equal(dense.flatten()[pattern._flat_positions()], pattern.pack(dense))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(65, 130), (10, 6, 3, 3)], ids=["linear", "conv"])
def test_every_dtype_is_copied_bit_for_bit(shape, dtype):
    pattern = Pattern.from_mask(random_mask(shape, 0.4))
    other = Pattern.from_mask(random_mask(shape, 0.4, seed=1))
    dense = random_dense(shape, dtype)
    values = pattern.pack(dense)
    assert values.dtype == dtype
    assert torch.equal(values, as_matrix(dense)[pattern.value_rows(), pattern.value_cols()])
    unpacked = torch.where(pattern.to_mask(), dense, torch.zeros((), dtype=dtype))
    assert torch.equal(pattern.unpack(values), unpacked)
    assert torch.equal(pattern.transfer(values, other), other.pack(unpacked))


def test_payloads_of_nan_and_the_sign_of_zero_survive():
    pattern = Pattern.from_mask(torch.ones(1, 3, dtype=torch.bool))
    bits = torch.tensor([[0x7FC00123, -(2**31), 0x7F800001]], dtype=torch.int32)
    assert torch.equal(pattern.pack(bits.view(torch.float32)).view(torch.int32), bits[0])


def test_inputs_that_are_not_contiguous_or_lazily_conjugated():
    pattern = Pattern.from_mask(random_mask((30, 40), 0.5))
    dense = random_dense((40, 30)).T
    assert torch.equal(pattern.pack(dense), pattern.pack(dense.contiguous()))
    values = random_dense((2 * pattern.nnz,))[::2]
    assert torch.equal(pattern.unpack(values), pattern.unpack(values.contiguous()))
    conjugated = random_dense((30, 40), torch.complex64).conj()
    assert torch.equal(pattern.pack(conjugated), pattern.pack(conjugated.resolve_conj()))


def test_a_parameter_gives_values_without_a_gradient():
    pattern = Pattern.from_mask(random_mask((30, 40), 0.5))
    assert not pattern.pack(torch.nn.Parameter(random_dense((30, 40)))).requires_grad


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch):
    pattern = Pattern.from_mask(random_mask((600, 300, 3, 3), 0.3))
    other = Pattern.from_mask(random_mask((600, 300, 3, 3), 0.3, seed=1))
    dense = random_dense(pattern.shape)

    def everything():
        values = pattern.pack(dense)
        return (
            values,
            pattern.unpack(values),
            pattern.transfer(values, other),
            pattern.to_mask(),
            pattern.fan_in(),
            pattern.fan_out(3),
            pattern.value_rows(),
            pattern.value_cols(),
        )

    results = []
    for threads in (1, 2, 7):
        monkeypatch.setattr(native, "threads", lambda threads=threads: threads)
        results.append(everything())
    for one, two, seven in zip(*results):
        assert torch.equal(one, two)
        assert torch.equal(one, seven)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(
            lambda p: p.pack(torch.ones(3, 5)),
            ValueError,
            r"dense must have shape \(4, 5\) on cpu, got \(3, 5\) on cpu",
            id="pack_wrong_shape",
        ),
        pytest.param(
            lambda p: p.pack(torch.ones(4, 5, device="meta")),
            ValueError,
            "dense must be a tensor with contents, got one on the meta device",
            id="pack_meta",
        ),
        pytest.param(
            lambda p: p.pack(np.ones((4, 5))),
            TypeError,
            r"dense must be a tensor, got array\(.*\(ndarray\)",
            id="pack_numpy",
        ),
        pytest.param(
            lambda p: p.pack(torch.ones(4, 5, dtype=torch.complex128)),
            TypeError,
            "dense must have a dtype of 1, 2, 4 or 8 bytes, got torch.complex128",
            id="pack_16_bytes",
        ),
        pytest.param(
            lambda p: p.unpack(torch.ones(19)),
            ValueError,
            r"values must have shape \(20,\)",
            id="unpack_too_short",
        ),
        pytest.param(
            lambda p: p.transfer(torch.ones(20), torch.ones(4, 5)),
            TypeError,
            "to must be a Pattern, got a torch.float32",
            id="transfer_to_a_tensor",
        ),
        pytest.param(
            lambda p: p.transfer(torch.ones(20), Pattern.random((5, 4), 0.5)),
            ValueError,
            r"to must have shape \(4, 5\) on cpu, got \(5, 4\) on cpu",
            id="transfer_to_another_shape",
        ),
        pytest.param(
            lambda p: p.fan_out(3),
            ValueError,
            "groups must be a divisor of the 4 outputs, got 3",
            id="groups_3",
        ),
        pytest.param(lambda p: p.fan_out(0), ValueError, "groups must be at least 1, got 0", id="groups_0"),
        pytest.param(
            lambda p: p.fan_out("2"), TypeError, "groups must be an integer, got '2'", id="groups_str"
        ),
        pytest.param(
            lambda p: p.pack(torch.ones(4, 5).to_sparse()),
            TypeError,
            "dense must be a tensor of layout torch.strided, got torch.sparse_coo",
            id="pack_sparse",
        ),
    ],
)
def test_bad_input(call, error, message):
    pattern = Pattern.from_mask(torch.ones(4, 5, dtype=torch.bool))
    with pytest.raises(error, match=message):
        call(pattern)


def test_groups_may_be_a_numpy_integer():
    pattern = Pattern.from_mask(torch.ones(4, 5, dtype=torch.bool))
    assert torch.equal(pattern.fan_out(np.int64(2)), pattern.fan_out(2))
