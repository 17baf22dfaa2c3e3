"""PyTorch's own 2:4 products as a backend: what they are handed, on CPU tensors, with stand-ins for them."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
import torch.nn.functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from sparsekern import semi_structured, two_four_layouts
from sparsekern.backends import BackendError, select
from sparsekern.semi_structured import choose_layout, semi_structured_linear
from sparsekern.two_four_layouts import LAYOUTS, arrange, size_refusals
from tests.two_four_stand_ins import HALVES, KINDS, Cutlass, Library, install, name, random, recorded, weight

CUDA = torch.device("cuda", 0)


@pytest.fixture
def library(monkeypatch):
    return install(monkeypatch, Library())


@pytest.fixture
def cutlass(monkeypatch):
    kernels = Cutlass()
    monkeypatch.setattr(torch, "_sparse_semi_structured_mm", kernels.mm)
    monkeypatch.setattr(torch, "_sparse_semi_structured_addmm", kernels.addmm)
    return kernels


@pytest.fixture
def kept(monkeypatch):
    """Nothing that other tests have arranged."""
    monkeypatch.setattr(semi_structured, "_arranged", WeakTensorKeyDictionary())
    return semi_structured._arranged


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "has_bias"),
    [(torch.int8, False), *itertools.product(HALVES, (False, True))],
    ids=lambda value: name(value) if isinstance(value, torch.dtype) else "bias" if value else "no-bias",
)
def test_linear(library, cutlass, dtype, layout, has_bias):
    values, metadata, dense = weight(64, 128, dtype)
    bias = random((64,), dtype, 3) if has_bias else None
    arranged = arrange(values, metadata, layout)
    for shape in ((16,), (1,), (13,), (3, 5), (2, 1, 4), (0,), (3, 0)):
        x = random((*shape, 128), dtype, 4)
        for given in (x, random((128, *shape), dtype, 5).movedim(0, -1)):
            y = semi_structured_linear(given, arranged[0], bias, arranged[1], layout, 64)
            right = F.linear(given.double(), dense.double(), None if bias is None else bias.double())
            assert y.is_contiguous()
            assert y.dtype == (torch.int32 if dtype == torch.int8 else dtype)
            assert torch.equal(y, right.to(y.dtype))
    padded = {shape[1] for shape in cutlass.shapes} | {shape[1] for shape, _ in library.products}
    assert padded == ({16} if dtype == torch.int8 else {8, 16})


def test_the_fastest_algorithm_is_searched_for_once_for_a_problem(library):
    values, metadata, _ = weight(32, 64, torch.bfloat16)
    packed, _ = arrange(values, metadata, "cusparselt")

    def run(samples, bias=None):
        x = random((samples, 64), torch.bfloat16)
        semi_structured_linear(x, packed, bias, None, "cusparselt", 32)

    for samples in (8, 5, 100, 128, 70):
        run(samples)
    run(8, random((32,), torch.bfloat16))
    assert library.searches == [((64, 8), False), ((64, 104), False), ((64, 8), True)]
    assert {algorithm for _, algorithm in library.products} == {7}


@pytest.mark.parametrize("while_", ["captured", "compiled"])
def test_nothing_is_searched_for_in_a_capture_or_in_compiling(library, monkeypatch, while_):
    values, metadata, _ = weight(32, 64, torch.bfloat16)
    packed, _ = arrange(values, metadata, "cusparselt")
    x = random((8, 64), torch.bfloat16)
    with monkeypatch.context() as patch:
        if while_ == "captured":
            recorded(patch)
        else:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
        semi_structured_linear(x, packed, None, None, "cusparselt", 32)
    assert library.searches == []
    semi_structured_linear(x, packed, None, None, "cusparselt", 32)
    assert [algorithm for _, algorithm in library.products] == [0, 7]


BFLOAT16, FLOAT16, INT8 = torch.bfloat16, torch.float16, torch.int8


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_op_sees_every_change_of_the_weight(monkeypatch, cutlass, kept, layout, kind):
    """In place or not, of values or of metadata, in a recording too; the arrangement goes with the weight."""
    library = install(monkeypatch, Library(kind))
    monkeypatch.setattr(semi_structured, "choose_layout", lambda *arguments: (layout, []))
    x = random((8, 128), torch.bfloat16, 4)

    def check():
        dense = two_four_layouts._unpacked(values, metadata)
        y = semi_structured.two_four_linear(x, values, None, metadata)
        assert torch.equal(y, F.linear(x.double(), dense.double()).to(torch.bfloat16))

    values, metadata, _ = weight(128, 128, torch.bfloat16)
    check()
    check()
    compressed = library.compressed
    check()
    assert library.compressed == compressed
    values.mul_(-2)
    check()
    # As fused optimizers do: nothing counts what is written.
    values.requires_grad_()
    for _ in range(2):
        version = values._version
        values.data.add_(1)
        assert values._version == version
        check()
    values = values.detach()
    check()
    values = values.flip(1)
    check()
    metadata.copy_(weight(128, 128, torch.bfloat16, seed=5)[1])
    check()
    with monkeypatch.context() as patch:
        recorded(patch)
        before = kept[metadata]
        check()
        assert kept[metadata] is before
    with torch.inference_mode():
        values, metadata = values.clone(), metadata.clone()
        check()
        values.mul_(3)
        check()
    assert len(kept) == 0


REFUSED = [
    (
        (100, 128, BFLOAT16, "cutlass"),
        "out_features must be a multiple of 32 for bfloat16 in layout cutlass, got 100; "
        "the nearest are 96 and 128",
    ),
    (
        (32, 32, FLOAT16, "cutlass"),
        "in_features must be a multiple of 64 for float16 in layout cutlass, got 32; the nearest is 64",
    ),
    (
        (32, 48, INT8, "cusparselt"),
        "in_features must be a multiple of 32 for int8 in layout cusparselt, got 48; "
        "the nearest are 32 and 64",
    ),
    (
        (0, 64, BFLOAT16, "cusparselt"),
        "out_features must be a multiple of 16 for bfloat16 in layout cusparselt, got 0; the nearest is 16",
    ),
    (
        (32, 64, torch.float32, "cutlass"),
        "it multiplies float16, bfloat16 and int8, and the inputs are float32, "
        "whose sparsity on tensor cores is 1:2",
    ),
    (
        (32, 64, torch.float64, "cusparselt"),
        "it multiplies float16, bfloat16 and int8, and the inputs are float64",
    ),
]


@pytest.mark.parametrize(("case", "reason"), REFUSED, ids=range(len(REFUSED)))
def test_sizes_and_dtypes_are_refused_in_words(case, reason):
    rows, columns, dtype, layout = case
    assert size_refusals(rows, columns, dtype, layout) == [reason]
    values, metadata = torch.zeros(rows, columns // 2, dtype=dtype), torch.zeros(rows, columns // 8).byte()
    x = torch.zeros(8, columns, dtype=dtype)
    exactly = f"^{re.escape(reason)}$"
    with pytest.raises(ValueError, match=exactly):
        arrange(values, metadata, layout)
    with pytest.raises(ValueError, match=exactly):
        semi_structured_linear(x, values, None, metadata, layout, rows)


def test_every_size_that_does_not_fit_is_named():
    assert len(size_refusals(100, 100, torch.bfloat16, "cutlass")) == 2


def test_a_bias_for_int8_is_refused():
    values, metadata, _ = weight(32, 128, torch.int8)
    x, bias = random((16, 128), torch.int8), random((32,), torch.int8)
    with pytest.raises(ValueError, match="bias: expected None for int8"):
        semi_structured_linear(x, values, bias, metadata, "cutlass", 32)


@pytest.fixture
def gpu(monkeypatch):
    """gpu(capability, cusparselt): a GPU is said to be there."""

    def pretend(capability, cusparselt=True):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: cusparselt)

    return pretend


@pytest.mark.parametrize(
    ("capability", "cusparselt", "shape", "layout"),
    [
        ((8, 0), True, (4096, 4096), "cutlass"),
        ((8, 6), False, (4096, 4096), "cutlass"),
        ((8, 0), True, (48, 80), "cusparselt"),
        ((8, 0), False, (48, 80), "rows"),
        ((9, 0), True, (4096, 4096), "cusparselt"),
        ((9, 0), False, (4096, 4096), "rows"),
        ((10, 0), True, (4096, 4096), "cusparselt"),
        ((9, 0), True, (100, 4096), "rows"),
        ((7, 5), True, (4096, 4096), "rows"),
    ],
    ids=str,
)
def test_the_layout_for_a_gpu(gpu, capability, cusparselt, shape, layout):
    gpu(capability, cusparselt)
    found, reasons = choose_layout(*shape, torch.bfloat16, CUDA)
    assert found == layout
    passed_over = {"cutlass": set(), "cusparselt": {"cutlass"}, "rows": {"cutlass", "cusparselt"}}[layout]
    assert {reason.partition(": ")[0] for reason in reasons} == passed_over


def test_why_a_layout_was_passed_over(gpu):
    gpu((9, 0), cusparselt=False)
    assert choose_layout(100, 4096, torch.bfloat16, CUDA)[1] == [
        "cutlass: PyTorch's CUTLASS kernels are for compute capability 8.x, and cuda:0 has 9.0",
        "cutlass: out_features must be a multiple of 32 for bfloat16 in layout cutlass, got 100; "
        "the nearest are 96 and 128",
        "cusparselt: this PyTorch is built without cuSPARSELt",
        "cusparselt: out_features must be a multiple of 16 for bfloat16 in layout cusparselt, got 100; "
        "the nearest are 96 and 112",
    ]
    assert choose_layout(64, 64, torch.float32, torch.device("cpu"))[0] == "rows"


class TestBackend:
    op = "semi_structured_linear"

    @pytest.fixture(autouse=True)
    def _answers_are_forgotten(self):
        yield
        # A GPU that was not there must not be remembered.
        select.cache_clear()

    def test_it_runs_where_one_layout_does(self, gpu):
        gpu((9, 0))
        assert select(self.op, torch.bfloat16, CUDA, "torch") is semi_structured_linear
        assert select(self.op, torch.int8, CUDA, "torch") is semi_structured_linear

    @pytest.mark.parametrize(
        ("dtype", "device", "capability", "reasons"),
        [
            (
                torch.float32,
                CUDA,
                (9, 0),
                ["it computes in float16, bfloat16, int8, and the inputs are float32"],
            ),
            (
                torch.int8,
                torch.device("cpu"),
                None,
                ["PyTorch's 2:4 products run on CUDA devices, and the inputs are on cpu"],
            ),
            (
                torch.bfloat16,
                CUDA,
                (7, 5),
                ["it needs a GPU of compute capability 8.0 or newer, and cuda:0 has 7.5"],
            ),
        ],
        ids=["dtype", "device", "capability"],
    )
    def test_it_refuses_in_words(self, gpu, dtype, device, capability, reasons):
        gpu(capability)
        with pytest.raises(BackendError) as refused:
            select(self.op, dtype, device, "torch")
        assert str(refused.value).splitlines()[1:] == [f"  torch: {reason}" for reason in reasons]

    def test_it_has_no_other_kernel(self, gpu):
        gpu((9, 0))
        with pytest.raises(BackendError, match="torch: it has no kernel for linear"):
            select("linear", torch.bfloat16, CUDA, "torch")
