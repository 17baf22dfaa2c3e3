"""2:4 weights on a device: packing bit for bit what the CPU packs, and products on every layout."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

from sparsekern import cpp, semi_structured, triton, two_four_layouts
from sparsekern import cuda as cuda_backend
from sparsekern.cpp.two_four_packing import to_cutlass
from sparsekern.semi_structured import choose_layout, semi_structured_linear
from sparsekern.two_four_layouts import MULTIPLES, arrange, arrange_new_values

HALVES = (torch.float16, torch.bfloat16)
DTYPES = (*HALVES, torch.float32, torch.int8)
LAYOUTS = semi_structured.LAYOUTS


def named(dtypes):
    return pytest.mark.parametrize("dtype", dtypes, ids=lambda dtype: str(dtype).removeprefix("torch."))


def random(shape, dtype: torch.dtype, device, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.int8:
        return torch.randint(-128, 128, shape, generator=generator).to(device, dtype)
    return torch.randn(shape, generator=generator).to(device, dtype)


def kinds(shape, dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights on the CPU: random ones, such with many ties, and such that are hard to add up."""
    weight = random(shape, dtype, "cpu")
    found = {"random": weight, "few": weight % 4 if dtype == torch.int8 else (weight * 2).round() / 2}
    if dtype != torch.int8:
        powers = torch.randint(-14, 10, shape, generator=torch.Generator().manual_seed(2))
        found["apart"] = torch.ldexp(weight.float(), powers).to(dtype)
        # Hardly any tile of these is added up the fast way.
        found["far apart"] = torch.ldexp(weight.float(), 3 * powers).to(dtype)
    return {kind: torch.where(w.isfinite(), w, 0).to(dtype) for kind, w in found.items()}


def pack(
    weight: Tensor, transposable: bool = True, transpose: bool = True, layout: str = "rows"
) -> list[Tensor]:
    if weight.device.type == "cpu":
        packed = cpp.pack_two_four([weight], transposable, transpose)
        if layout == "rows":
            return packed
        return [t for i in range(0, len(packed), 2) for t in to_cutlass(*packed[i : i + 2])]
    return cuda_backend.pack_two_four([weight], transposable, transpose, layout)


def unpack(values: Tensor, metadata: Tensor) -> Tensor:
    return (cpp if values.device.type == "cpu" else triton).unpack_two_four(values, metadata)


def same_bits(a: Tensor, b: Tensor) -> bool:
    a, b = (t.cpu().contiguous().view(torch.uint8) for t in (a, b))
    return torch.equal(a, b)


@named(DTYPES)
@pytest.mark.parametrize("shape", [(4, 4), (132, 68), (100, 260), (1024, 512), (264, 2048)], ids=str)
def test_packing_is_that_of_the_cpu(device, shape, dtype):
    for kind, weight in kinds(shape, dtype).items():
        right = pack(weight)
        for found, wanted in zip(pack(weight.to(device)), right, strict=True):
            assert found.device.type == device.type
            assert same_bits(found, wanted), kind
        assert same_bits(pack(weight.to(device), transpose=False)[0], right[0])


@named(DTYPES)
@pytest.mark.parametrize("shape", [(1, 4), (131, 68), (7, 2052), (512, 1024)], ids=str)
def test_packing_of_rows_is_that_of_the_cpu(device, shape, dtype):
    for weight in kinds(shape, dtype).values():
        right = pack(weight, False, False)
        assert all(map(same_bits, pack(weight.to(device), False, False), right))


def test_a_large_weight_and_several_at_once(cuda):
    weights = [
        random((4096, 4096), torch.bfloat16, "cpu"),
        random((1000, 3000), torch.float32, "cpu", 1),
        *(random((256, 64 + 4 * i), torch.bfloat16, "cpu", i) for i in range(40)),
    ]
    found = iter(cuda_backend.pack_two_four([weight.to(cuda) for weight in weights], True, True))
    for weight in weights:
        for wanted in pack(weight):
            assert same_bits(next(found), wanted)


@named([*HALVES, torch.int8])
def test_the_layout_of_cutlass_is_pytorchs(device, dtype):
    """Bit for bit, also where kept weights are 0."""
    for weight in kinds((256, 384), dtype).values():
        weight = weight.to(device)
        values, metadata, *transposed = pack(weight, layout="cutlass")
        pruned = unpack(*pack(weight)[:2])
        for found, dense in (((values, metadata), pruned), (transposed, pruned.t().contiguous())):
            right = sparse_semi_structured_from_dense_cutlass(dense)
            assert all(map(same_bits, found, right))


@named(HALVES)
def test_the_packing_is_that_of_pytorchs_kernel_where_the_mask_is(cuda, dtype):
    """PyTorch's masks are chosen greedily; on a weight that is pruned already they have no choice."""
    weight = random((512, 256), dtype, cuda)
    pruned = unpack(*pack(weight)[:2])
    packed, meta, packed_t, meta_t, _ = torch._sparse_semi_structured_tile(
        pruned, algorithm="largest_abs_values_greedy", use_cutlass=True
    )
    values, metadata, values_t, metadata_t = pack(pruned, layout="cutlass")
    for found, right in ((values, packed), (values_t, packed_t)):
        assert same_bits(found, right)
    for found, right in ((metadata, meta), (metadata_t, meta_t)):
        # Three-dimensional there, and the same in memory.
        assert same_bits(found.flatten(), right.permute(2, 0, 1).flatten())


@named([*HALVES, torch.float32])
def test_what_is_not_finite_is_kept_and_shows(cuda, dtype):
    weight = random((256, 256), dtype, cuda)
    weight[3, 17], weight[200, 100] = float("nan"), float("-inf")
    values, metadata, values_t, _ = pack(weight)
    for packed in (values, values_t):
        assert (int(packed.isnan().sum()), int(packed.isinf().sum())) == (1, 1)
    y = triton.two_four_linear(torch.ones(4, 256, device=cuda, dtype=dtype), values, None, metadata)
    assert y[:, 3].isnan().all()
    assert y[:, 200].isinf().all()
    assert int(y.isfinite().sum()) == 4 * 254


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(4, 4), (132, 68), (2048, 1024)], ids=str)
def test_the_transpose_of_a_packing(cuda, shape, dtype):
    values, metadata, *transposed = pack(random(shape, dtype, cuda))
    assert all(map(same_bits, cuda_backend.transpose_two_four([values], [metadata]), transposed))


def test_gather_and_unpack(device):
    weight = random((1028, 2052), torch.float32, device)
    values, metadata = pack(weight)[:2]
    backend = cpp if device.type == "cpu" else triton
    assert torch.equal(backend.gather_two_four(weight, metadata), values)
    dense = unpack(values, metadata)
    assert torch.equal(dense, torch.where(dense != 0, weight, 0))
    assert int((dense != 0).sum()) == values.numel()


class Layer:
    """A linear layer whose weight is packed by rows, with its transpose."""

    def __init__(self, device, dtype, samples, rows, columns) -> None:
        self.x, self.grad_y = (
            random((*samples, columns), dtype, device, 1),
            random((*samples, rows), dtype, device, 2),
        )
        self.bias = None if dtype == torch.int8 else random((rows,), dtype, device, 3)
        weight = random((rows, columns), dtype, device)
        self.values, self.metadata, self.values_t, self.metadata_t = pack(weight)
        self.dense = unpack(self.values, self.metadata)

    def expected(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        dense, bias = self.dense.to(dtype), None if self.bias is None else self.bias.to(dtype)
        return F.linear(self.x.to(dtype), dense, bias), self.grad_y.to(dtype) @ dense


def check(found: Tensor, exact: Tensor, dense: Tensor) -> None:
    """By norm, no result is farther from float64 than twice the dense op of its dtype, or its rounding."""
    assert found.shape == exact.shape
    assert found.is_contiguous()
    if not found.dtype.is_floating_point:
        assert torch.equal(found.double(), exact)
        return
    rounding = torch.finfo(found.dtype).eps * exact.norm()
    assert (found.double() - exact).norm() <= 2 * (dense.double() - exact).norm() + rounding


@named([torch.float32, *HALVES])
@pytest.mark.parametrize(
    "size",
    [(1, 4096, 4096), (16, 2048, 3072), (65, 300, 784), (1000, 1000, 1100), (129, 7, 4000), (64, 12, 4)],
    ids=str,
)
def test_products_from_the_packing_by_rows(cuda, size, dtype):
    samples, rows, columns = size
    x, grad_y = random((samples, columns), dtype, cuda, 1), random((samples, rows), dtype, cuda, 2)
    bias, weight = random((rows,), dtype, cuda, 3), random((rows, columns), dtype, cuda)
    values, metadata = pack(weight, False, False)
    dense = unpack(values, metadata)
    results = {}
    for as_dtype in (torch.float64, dtype):
        x_, grad_, bias_, dense_ = (t.to(as_dtype) for t in (x, grad_y, bias, dense))
        grad_values = triton.gather_two_four(grad_.t() @ x_, metadata)
        results[as_dtype] = F.linear(x_, dense_, bias_), grad_ @ dense_, grad_values
    found = (
        triton.two_four_linear(x, values, bias, metadata),
        triton.two_four_linear_grad_input(grad_y, values, metadata),
        triton.two_four_linear_grad_values(grad_y, x, metadata),
    )
    for result, exact, same in zip(found, results[torch.float64], results[dtype], strict=True):
        check(result, exact, same)


def supported(layout: str, device) -> None:
    if refusals := semi_structured.device_refusals(layout, device):
        pytest.skip("; ".join(refusals))


@pytest.mark.parametrize("samples", [(1,), (13,), (128,), (3, 2, 8)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@named([*HALVES, torch.int8])
def test_products_on_sparse_tensor_cores(cuda, dtype, layout, samples):
    """The weight and its transpose, which is the gradient of the input; any number of samples."""
    supported(layout, cuda)
    layer = Layer(cuda, dtype, samples, 256, 384)
    exact = layer.expected(torch.float64)
    same = layer.expected(torch.float64 if dtype == torch.int8 else dtype)
    arranged = arrange(layer.values, layer.metadata, layout)
    arranged_t = arrange(layer.values_t, layer.metadata_t, layout)
    check(
        semi_structured_linear(layer.x, arranged[0], layer.bias, arranged[1], layout, 256), exact[0], same[0]
    )
    found = semi_structured_linear(layer.grad_y, arranged_t[0], None, arranged_t[1], layout, 384)
    check(found, exact[1], same[1])


@named([*HALVES, torch.int8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_smallest_weight_of_a_layout(cuda, layout, dtype):
    supported(layout, cuda)
    rows, columns, samples = MULTIPLES[layout, dtype]
    rows, columns = max(rows, 4), max(columns, 4)
    layer = Layer(cuda, dtype, (samples,), rows, columns)
    arranged = arrange(layer.values, layer.metadata, layout)
    y = semi_structured_linear(layer.x, arranged[0], layer.bias, arranged[1], layout, rows)
    same = layer.expected(torch.float64 if dtype == torch.int8 else dtype)[0]
    check(y, layer.expected(torch.float64)[0], same)


@named(HALVES)
def test_cutlass_multiplies_what_is_packed_for_it(cuda, dtype):
    supported("cutlass", cuda)
    layer = Layer(cuda, dtype, (96,), 512, 256)
    packed = pack(layer.dense, layout="cutlass")
    exact, same = layer.expected(torch.float64), layer.expected(dtype)
    check(
        semi_structured_linear(layer.x, packed[0], layer.bias, packed[1], "cutlass", 512), exact[0], same[0]
    )
    check(semi_structured_linear(layer.grad_y, packed[2], None, packed[3], "cutlass", 256), exact[1], same[1])


@named([*HALVES, torch.int8])
def test_cusparselt_takes_new_values(cuda, dtype):
    """Also where kept ones are 0, before or after."""
    supported("cusparselt", cuda)
    layer = Layer(cuda, dtype, (32,), 128, 256)
    packed, _ = arrange(layer.values.where(layer.values > 0, 0), layer.metadata, "cusparselt")
    for values in (layer.values, layer.values.where(layer.values < 0, 0), layer.values.flip(0)):
        packed = arrange_new_values(packed, values, layer.metadata)
        dense = unpack(values, layer.metadata)
        y = semi_structured_linear(layer.x, packed, None, None, "cusparselt", 128)
        exact = layer.x.double() @ dense.double().t()
        check(y, exact, exact if dtype == torch.int8 else layer.x @ dense.t())


@named(HALVES)
@pytest.mark.parametrize("shape", [(128, 128), (384, 256), (1024, 4096)], ids=str)
def test_what_is_known_of_the_layout_of_cusparselt(cuda, shape, dtype):
    """Where it is another, the library arranges every weight, which is right too but slow."""
    supported("cusparselt", cuda)
    values, metadata = pack(random(shape, dtype, cuda))[:2]
    arrange(values, metadata, "cusparselt")
    assert two_four_layouts._knowledge[two_four_layouts._key(values)] == two_four_layouts.KNOWN


def test_a_weight_that_is_trained(cuda):
    """`two_four_linear` of the torch backend after every step, recorded as a CUDA graph and not."""
    if choose_layout(256, 384, torch.bfloat16, cuda)[0] == "rows":
        pytest.skip("this GPU has no 2:4 products of PyTorch's")
    layer = Layer(cuda, torch.bfloat16, (128,), 256, 384)

    def work():
        layer.values.mul_(-1)
        return (semi_structured.two_four_linear(layer.x, layer.values, layer.bias, layer.metadata),)

    for _ in range(3):
        (y,) = work()
        dense = unpack(layer.values, layer.metadata)
        check(
            y,
            F.linear(layer.x.double(), dense.double(), layer.bias.double()),
            F.linear(layer.x, dense, layer.bias),
        )
    (y,) = record(work, cuda)
    dense = unpack(layer.values, layer.metadata)
    check(
        y,
        F.linear(layer.x.double(), dense.double(), layer.bias.double()),
        F.linear(layer.x, dense, layer.bias),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_compiled_product_equals_the_eager_one(cuda, layout):
    supported(layout, cuda)
    layer = Layer(cuda, torch.bfloat16, (64,), 256, 128)
    arranged = arrange(layer.values, layer.metadata, layout)

    def run(x):
        return F.relu(semi_structured_linear(x, arranged[0], layer.bias, arranged[1], layout, 256))

    torch.testing.assert_close(torch.compile(run)(layer.x), run(layer.x), rtol=2e-2, atol=2e-2)


def test_a_weight_is_chosen_a_layout_that_multiplies_it(cuda):
    for rows, columns in ((4096, 4096), (48, 80), (100, 100)):
        layer = Layer(cuda, torch.bfloat16, (16,), rows, columns)
        layout, reasons = choose_layout(rows, columns, torch.bfloat16, cuda)
        if layout == "rows":
            assert reasons
            y = triton.two_four_linear(layer.x, layer.values, layer.bias, layer.metadata)
        else:
            arranged = arrange(layer.values, layer.metadata, layout)
            y = semi_structured_linear(layer.x, arranged[0], layer.bias, arranged[1], layout, rows)
        check(y, layer.expected(torch.float64)[0], layer.expected(torch.bfloat16)[0])


def record(work, device):
    """What `work` returns, from the replay of a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()  # compiles, and looks for the fastest way
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = work()
    for tensor in found:
        tensor.zero_()
    graph.replay()
    torch.cuda.synchronize()
    return found


def test_a_cuda_graph_records_packing_and_products(cuda):
    layer = Layer(cuda, torch.bfloat16, (70,), 260, 132)

    def work():
        packed = cuda_backend.pack_two_four([layer.dense, layer.dense.float()], True, True)
        products = (
            triton.two_four_linear(layer.x, packed[0], layer.bias, packed[1]),
            triton.two_four_linear_grad_input(layer.grad_y, packed[0], packed[1]),
            triton.two_four_linear_grad_values(layer.grad_y, layer.x, packed[1]),
        )
        return *packed, *products, triton.unpack_two_four(packed[0], packed[1])

    right = [tensor.clone() for tensor in work()]
    assert all(map(same_bits, record(work, cuda), right))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cuda_graph_records_products_on_sparse_tensor_cores(cuda, layout):
    supported(layout, cuda)
    layer = Layer(cuda, torch.bfloat16, (64,), 256, 128)
    arranged = arrange(layer.values, layer.metadata, layout)

    def work():
        return (semi_structured_linear(layer.x, arranged[0], layer.bias, arranged[1], layout, 256),)

    right = work()[0].clone()
    torch.testing.assert_close(record(work, cuda)[0], right, rtol=2e-2, atol=2e-2)


def test_a_stream_of_its_own(cuda):
    weight = random((1024, 1024), torch.bfloat16, cuda)
    right = pack(weight)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Long work first: a kernel on another stream would overtake it.
        torch.cuda._sleep(50_000_000)
        found = pack(weight * 1)
    stream.synchronize()
    assert all(map(same_bits, found, right))


def test_what_cannot_be_packed_is_refused(cuda):
    weight = torch.randn(64, 66, device=cuda)
    with pytest.raises(RuntimeError, match="expected columns in fours"):
        pack(weight[:, :62].contiguous())
    with pytest.raises(RuntimeError, match="for the cutlass layout rows in multiples of 32"):
        pack(torch.randn(40, 64, device=cuda).bfloat16(), layout="cutlass")
    with pytest.raises(ValueError, match="out_features must be a multiple of 16 for bfloat16"):
        arrange(*pack(torch.randn(40, 64, device=cuda).bfloat16())[:2], "cusparselt")
