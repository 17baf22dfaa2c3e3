"""Runs every op on memory that ends (or begins) at a page nobody may touch, and compares with dense PyTorch.

A script, run by test_memory.py in a process of its own: an access out of bounds ends it with a signal. Its
argument says where the page is, "before" or "behind" every tensor.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

import torch
import torch.nn.functional as F

from sparsekern import cpp, native
from sparsekern.cpp.two_four_packing import from_cutlass, to_cutlass
from sparsekern.formats import Pattern

PAGE = mmap.PAGESIZE
PROT_NONE = 0
SIDE = sys.argv[1] if len(sys.argv) > 1 else "behind"
# Stride, padding and dilation.
STRIDED = (2, 1, 1, 0, 1, 2)
PLAIN = (1, 1, 0, 0, 1, 1)

libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
regions: list[mmap.mmap] = []
guarded_outputs = 0


def guarded(size: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A tensor full of NaN (or -1, 255) between forbidden pages, with not a byte to spare on one side."""
    count = max(1, torch.Size(size).numel())
    data_bytes = count * dtype.itemsize
    pages = (data_bytes + PAGE - 1) // PAGE
    region = mmap.mmap(-1, (pages + 2) * PAGE)
    regions.append(region)
    start = ctypes.addressof(ctypes.c_char.from_buffer(region))
    for edge in (start, start + (pages + 1) * PAGE):
        if libc.mprotect(edge, PAGE, PROT_NONE) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = PAGE if SIDE == "before" else (pages + 1) * PAGE - data_bytes
    flat = torch.frombuffer(region, dtype=dtype, count=count, offset=offset)
    flat.fill_(torch.nan if dtype.is_floating_point else -1 if dtype.is_signed else 255)
    return flat[: torch.Size(size).numel()].view(size)


def keep(tensor: torch.Tensor) -> torch.Tensor:
    return guarded(tuple(tensor.shape), tensor.dtype).copy_(tensor)


def guarded_result(
    like: torch.Tensor, *size: int | tuple[int, ...], dtype: torch.dtype | None = None
) -> torch.Tensor:
    """In place of `Tensor.new_empty`, with which the ops make their results."""
    global guarded_outputs
    guarded_outputs += 1
    flat = size[0] if isinstance(size[0], (tuple, list)) else size
    return guarded(tuple(flat), dtype or like.dtype)


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2}[got.dtype]
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance * 10)


def random(*size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(size).to(dtype)


def check_linear(dtype: torch.dtype, shape: tuple[int, int], tile_size: int, batch: int) -> None:
    pattern = Pattern.from_mask(torch.rand(shape) < 0.5, tile_size=tile_size)
    data, (rows, columns) = keep(pattern.data), shape
    x, grad_y = keep(random(batch, columns, dtype=dtype)), keep(random(batch, rows, dtype=dtype))
    values, bias = keep(random(pattern.nnz, dtype=dtype)), keep(random(rows, dtype=dtype))
    weight = pattern.unpack(values).double()
    expected = F.linear(x.double(), weight, bias.double())
    close(cpp.linear(x, values, bias, data, shape), expected)
    close(cpp.linear(x, keep(weight.to(dtype)), bias, data, shape), expected)
    wide = keep(torch.cat([x, x], 1))
    close(cpp.linear(wide[:, columns:], values, bias, data, shape), expected)
    close(cpp.linear(keep(x.t()).t(), values, bias, data, shape), expected)
    close(cpp.linear_grad_input(grad_y, values, data, shape), grad_y.double() @ weight)
    grad_values = cpp.linear_grad_values(grad_y, x, data, shape, (pattern.nnz,))
    close(grad_values, pattern.pack(grad_y.double().t() @ x.double()))


def unpacked(values: torch.Tensor, metadata: torch.Tensor) -> torch.Tensor:
    """The dense weight of one packed 2:4."""
    rows, kept = values.shape
    columns = torch.stack([metadata.long() >> shift & 3 for shift in (0, 2, 4, 6)], -1).view(rows, -1)
    columns = columns[:, :kept] + torch.arange(kept) // 2 * 4
    return torch.zeros(rows, 2 * kept, dtype=values.dtype).scatter_(1, columns, values)


def check_two_four_products(dtype: torch.dtype, shape: tuple[int, int], batch: int) -> None:
    rows, columns = shape
    nibbles = torch.tensor([4, 8, 9, 12, 13, 14], dtype=torch.uint8)[torch.randint(6, (rows, columns // 4))]
    if columns % 8:
        nibbles = torch.cat([nibbles, torch.zeros(rows, 1, dtype=torch.uint8)], 1)
    metadata = keep(nibbles[:, 0::2] | nibbles[:, 1::2] << 4)
    x, grad_y = keep(random(batch, columns, dtype=dtype)), keep(random(batch, rows, dtype=dtype))
    values, bias = keep(random(rows, columns // 2, dtype=dtype)), keep(random(rows, dtype=dtype))
    weight = unpacked(values, metadata).double()
    close(cpp.two_four_linear(x, values, bias, metadata), F.linear(x.double(), weight, bias.double()))
    close(cpp.two_four_linear(keep(x.t()).t(), values, None, metadata), x.double() @ weight.t())
    close(cpp.two_four_linear_grad_input(grad_y, values, metadata), grad_y.double() @ weight)
    grad_values = cpp.two_four_linear_grad_values(grad_y, x, metadata)
    close(unpacked(grad_values, metadata), (grad_y.double().t() @ x.double()) * (weight != 0))
    if dtype != torch.float64:
        small, scale = keep(torch.randint(-128, 128, values.shape, dtype=torch.int8)), keep(torch.rand(rows))
        y = cpp.two_four_linear_int8(x, small, bias, metadata, scale, keep(torch.tensor([0.02])))
        q = (x.float() / 0.02).round().clamp(-127, 127).double()
        close(y, q @ unpacked(small, metadata).double().t() * (0.02 * scale.double()) + bias.double())
        cpp.two_four_linear_int8(x, small, None, metadata, scale, None)
    # Whatever metadata says, it names columns of its own group.
    anything = keep(torch.randint(256, metadata.shape, dtype=torch.uint8))
    cpp.two_four_linear(x, values, bias, anything)
    cpp.two_four_linear_grad_input(grad_y, values, anything)
    cpp.two_four_linear_grad_values(grad_y, x, anything)


def check_conv2d(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    size: tuple[int, ...],
    groups: int = 1,
    strides: tuple[int, ...] = STRIDED,
) -> None:
    pattern = Pattern.from_mask(torch.rand(shape) < 0.5)
    data = keep(pattern.data)
    x, values, bias = (keep(random(*s, dtype=dtype)) for s in (size, (pattern.nnz,), shape[:1]))
    leaves = [x.double().requires_grad_(), pattern.unpack(values).double().requires_grad_()]
    y = F.conv2d(*leaves, bias.double(), strides[0:2], strides[2:4], strides[4:6], groups)
    geometry = (*strides, groups)
    close(cpp.conv2d(x, values, bias, data, shape, geometry), y.detach())
    grad_y = keep(random(*y.shape, dtype=dtype))
    grad_x, grad_weight = torch.autograd.grad(y, leaves, grad_y.double())
    close(cpp.conv2d_grad_input(grad_y, values, data, shape, size, geometry), grad_x)
    got = cpp.conv2d_grad_values(grad_y, x, data, shape, (pattern.nnz,), geometry)
    close(got, pattern.pack(grad_weight))


def check_copies(shape: tuple[int, ...]) -> None:
    source, target = (Pattern.from_mask(torch.rand(shape) < 0.5, tile_size=8) for _ in range(2))
    dense = keep(torch.randn(shape))
    values = cpp.pack(dense, keep(source.data), source.nnz)
    assert torch.equal(values, source.pack(dense))
    assert torch.equal(cpp.unpack(values, keep(source.data), shape), source.unpack(values))
    moved = cpp.transfer(values, keep(source.data), keep(target.data), target.nnz)
    assert torch.equal(moved, source.transfer(values, target))


def check_topology(shape: tuple[int, ...], tile_size: int, dtype: torch.dtype) -> None:
    pattern = Pattern.from_mask(torch.rand(shape) < 0.5, tile_size=tile_size)
    values, scores = keep(random(pattern.nnz, dtype=dtype)), keep(random(*shape, dtype=dtype))
    words = Pattern.from_mask(pattern.to_mask(), tile_size=tile_size, complete=True).data.numel()
    count = pattern.nnz // 2
    inactive = keep((pattern.to_mask().flatten() == 0).nonzero()[:, 0])
    for listed in (False, True):
        # Of a matrix: the order of a convolution's columns is another.
        if listed and len(shape) > 2:
            continue
        active, positions = (keep(pattern.pack(scores)), inactive) if listed else (None, None)
        given = keep(scores.flatten()[inactive]) if listed else scores
        (new,) = cpp.update_topology(
            [values], [keep(pattern.data)], [given], [active], [positions], [count], [words], "magnitude"
        )
        assert Pattern(new).nnz == pattern.nnz
        moved = cpp.transfer_all([values, values], keep(pattern.data), new, pattern.nnz)
        assert torch.equal(moved[1], pattern.transfer(values, Pattern(new)))


def check_two_four(dtype: torch.dtype, rows: int, columns: int) -> None:
    """The transpose, twice; and unpacking, which masks what has been packed."""
    weight = keep((torch.randn(rows, columns) * 20).to(dtype))
    values, metadata, values_t, metadata_t = cpp.pack_two_four([weight], True, True)
    dense = cpp.unpack_two_four(keep(values), keep(metadata))
    assert torch.equal(dense, torch.where(dense != 0, weight, dense))
    assert torch.equal(cpp.unpack_two_four(values_t, metadata_t), dense.t())
    assert torch.equal(cpp.gather_two_four(weight, keep(metadata)), values)
    one = keep(weight[:1])
    values, metadata = cpp.pack_two_four([one], False, False)
    assert torch.equal(cpp.gather_two_four(one, metadata), values)
    if dtype.itemsize <= 2 and rows % 32 == 0 and columns % 128 == 0:
        given = cpp.pack_two_four([weight], False, False)
        back = from_cutlass(*map(keep, to_cutlass(*given)))
        assert torch.equal(cpp.unpack_two_four(*back), cpp.unpack_two_four(*given))


def main() -> None:
    torch.manual_seed(0)
    torch.Tensor.new_empty = guarded_result
    for level in native.isa_levels():
        with native.isa(level):
            for dtype in (torch.float32, torch.float64, torch.bfloat16):
                for tile_size in (8, 16, 32, 64):
                    for batch in (1, 2, 7, 19):
                        check_linear(dtype, (tile_size + 3, 2 * tile_size - 1), tile_size, batch)
                for batch in (1, 2, 7, 12, 19, 40, 150):
                    check_two_four_products(dtype, (9, 36), batch)
                    check_two_four_products(dtype, (33, 132), batch)
                check_two_four_products(dtype, (1, 4), 3)
                check_linear(dtype, (1, 1), 8, 1)
                check_linear(dtype, (9, 65), 8, 150)
                check_conv2d(dtype, (7, 5, 3, 3), (2, 5, 9, 8))
                check_conv2d(dtype, (6, 2, 1, 1), (1, 4, 6, 7), groups=2)
                check_conv2d(dtype, (9, 1, 2, 3), (3, 9, 7, 7), groups=9)
                check_conv2d(dtype, (4, 3, 3, 2), (2, 3, 5, 9), strides=PLAIN)
                # Nine vectors of some level: images are used where they lie, in panels that end beyond them.
                for pixels in ((3, 6), (6, 6), (8, 9), (12, 12)):
                    check_conv2d(dtype, (9, 40, 1, 1), (2, 40, *pixels), strides=PLAIN)
            for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8):
                for shape in ((4, 4), (4, 12), (36, 4), (12, 28), (68, 100), (132, 1052), (64, 128)):
                    check_two_four(dtype, *shape)
    for shape in ((9, 65), (64, 64), (7, 5, 3, 3)):
        check_copies(shape)
        for tile_size in (8, 64):
            for dtype in (torch.float32, torch.float64, torch.bfloat16):
                check_topology(shape, tile_size, dtype)
    check_topology((300, 700), 64, torch.float32)
    assert guarded_outputs > 100, guarded_outputs


if __name__ == "__main__":
    main()
