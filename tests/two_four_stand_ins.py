"""CPU stand-ins for PyTorch's 2:4 products, and weights for them."""

from __future__ import annotations

import itertools

import torch
from torch.sparse._semi_structured_conversions import sparse_semi_structured_to_dense_cutlass

from sparsekern import semi_structured, two_four_layouts
from sparsekern.two_four_layouts import blocked

PAIRS = torch.tensor(list(itertools.combinations(range(4), 2)))
HALVES = [torch.float16, torch.bfloat16]
DTYPES = [*HALVES, torch.int8]
KINDS = ["known", "values known", "unknown"]


def name(dtype):
    return str(dtype).removeprefix("torch.")


def random(shape, dtype, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (x * 40).round().clamp(-128, 127).to(dtype) if dtype == torch.int8 else x.to(dtype)


def weight(rows, columns, dtype, zeros=False, seed=0):
    """Values and metadata, and the dense weight that they are; with many kept zeros if asked for."""
    generator = torch.Generator().manual_seed(seed)
    kept = PAIRS[torch.randint(6, (rows, columns // 4), generator=generator)]
    nibbles = kept[..., 0] | kept[..., 1] << 2
    values = random((rows, columns // 2), dtype, seed)
    values = (
        values.masked_fill(torch.rand(values.shape, generator=generator) < 0.5, 0) if zeros else values + 1
    )
    values = torch.where(values == 0, 0 if zeros else 1, values).to(dtype)
    places = (kept + 4 * torch.arange(columns // 4)[:, None]).flatten(1)
    dense = torch.zeros(rows, columns, dtype=dtype).scatter_(1, places, values)
    return values, (nibbles[:, ::2] | nibbles[:, 1::2] << 4).to(torch.uint8), dense


def product(dense, x_t, bias, out_dtype):
    y = dense.double() @ x_t.double()
    y = y if bias is None else y + bias.double()[:, None]
    return y.to(out_dtype or x_t.dtype)


class Library:
    """In place of cuSPARSELt, whose kept weights are those that are not 0.

    Its layout is the one that is expected ("known"), or one with metadata ("values known") or all of it
    ("unknown") where nobody would guess.
    """

    def __init__(self, kind="unknown"):
        self.kind = kind
        self.compressed = 0
        self.searches = []
        self.products = []

    def compress(self, dense):
        self.compressed += 1
        rows, columns = dense.shape
        groups = dense.view(rows, -1, 4)
        # Those that are not 0 first, else those of low columns.
        order = (groups == 0).to(torch.uint8).argsort(dim=-1, stable=True)[..., :2].sort(-1).values
        values = groups.gather(-1, order).flatten()
        nibbles = order[..., 0] | order[..., 1] << 2
        metadata = (nibbles[:, ::2] | nibbles[:, 1::2] << 4).to(torch.uint8)
        if self.kind == "known":
            return torch.cat([values, blocked(metadata).view(dense.dtype).flatten()])
        metadata = metadata.flatten().flip(0).view(dense.dtype)
        return torch.cat([values if self.kind == "values known" else values.flip(0), metadata])

    def dense(self, packed, columns):
        rows, count = packed.shape[0], packed.shape[0] * columns // 2
        values, metadata = packed.view(-1)[:count], packed.view(-1)[count:].view(torch.uint8).flip(0)
        if self.kind == "known":
            # Where each word went is where its number went.
            words = torch.arange(rows * columns // 16)
            places = places_of(blocked, rows, columns // 16)
            found = torch.empty(len(words), dtype=torch.int16)
            found[places] = packed.view(-1)[count:].view(torch.int16)
            metadata = found.view(torch.uint8)
        values = values.flip(0) if self.kind == "unknown" else values
        nibbles = torch.stack([metadata & 15, metadata >> 4], -1).flatten()
        places = torch.stack([nibbles & 3, nibbles >> 2], -1).long()
        groups = packed.new_zeros(len(places), 4).scatter_(1, places, values.view(-1, 2))
        return groups.view(rows, columns)

    def multiply(self, packed, x_t, bias=None, *, out_dtype, transpose_result, alg_id):
        assert packed.dim() == 2
        assert not x_t.is_contiguous()
        assert x_t.t().is_contiguous()
        assert transpose_result
        self.products.append((tuple(x_t.shape), alg_id))
        return product(self.dense(packed, x_t.shape[0]), x_t, bias, out_dtype).t().contiguous()

    def search(self, packed, x_t, bias=None, *, out_dtype, transpose_result):
        self.searches.append((tuple(x_t.shape), bias is not None))
        return 7


def places_of(order, rows, words):
    """Which word of metadata is at each place of an order of them; there may be more than an int16 counts."""
    low, high = (torch.arange(rows * words) >> shift & 0xFF for shift in (0, 8))
    numbers = [order(part.to(torch.int16).view(rows, words).view(torch.uint8)) for part in (low, high)]
    return numbers[0].flatten().long() | numbers[1].flatten().long() << 8


class Cutlass:
    """In place of PyTorch's CUTLASS kernels."""

    def __init__(self):
        self.shapes = []

    def mm(self, values, metadata, x_t, *, out_dtype):
        return self.addmm(None, values, metadata, x_t, out_dtype=out_dtype)

    def addmm(self, bias, values, metadata, x_t, *, out_dtype):
        assert x_t.t().is_contiguous()
        self.shapes.append(tuple(x_t.shape))
        return product(sparse_semi_structured_to_dense_cutlass(values, metadata), x_t, bias, out_dtype)


def recorded(patch):
    """From now on everything is said to be recorded as a CUDA graph."""
    for module in (semi_structured, two_four_layouts):
        patch.setattr(module, "is_recorded", lambda tensor: True)


def install(monkeypatch, library):
    monkeypatch.setattr(torch, "_cslt_compress", library.compress)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", library.multiply)
    monkeypatch.setattr(torch, "_cslt_sparse_mm_search", library.search)
    monkeypatch.setattr(semi_structured, "_algorithms", {})
    monkeypatch.setattr(two_four_layouts, "_knowledge", {})
    return library
