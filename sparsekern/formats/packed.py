"""The packed tensor behind a `Pattern`: what is in it, and that it never changes."""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from sparsekern import native
from sparsekern.formats.checks import check_strided, describe
from sparsekern.formats.known import remember
from sparsekern.formats.layout import HEADER_WORDS, Layout

__all__ = ["PackedPattern"]

Self = TypeVar("Self", bound="PackedPattern")

_pattern = native._C.pattern


class PackedPattern:
    """An immutable packed pattern: header, sections, identity; `Pattern` adds what it is for.

    Constructor, attributes and errors are described there.
    """

    data: Tensor
    shape: tuple[int, ...]
    matrix_shape: tuple[int, int]
    tile_size: int
    nnz: int
    num_tiles: int
    _hash: int | None = None

    def __init__(self, data: Tensor) -> None:
        if not isinstance(data, Tensor) or data.dtype != torch.int32 or data.dim() != 1:
            raise TypeError(f"data must be a 1-D int32 tensor, got {describe(data)}")
        check_strided(data, "data")
        # A copy, since a pattern must not change when the caller writes to the tensor it came from.
        data = data.detach().clone(memory_format=torch.contiguous_format)
        host_data = data.cpu()
        _pattern.validate(host_data.data_ptr(), host_data.numel(), native.threads())
        layout = Layout.from_header(host_data[:HEADER_WORDS].tolist())
        self._set(data, layout, host_data)

    def _set(self, data: Tensor, layout: Layout, host_data: Tensor | None) -> None:
        fields = {
            "data": data,
            "shape": layout.shape,
            "matrix_shape": (layout.rows, layout.cols),
            "tile_size": layout.tile_size,
            "nnz": layout.nnz,
            "num_tiles": layout.tiles,
            "_layout": layout,
            "_host_copy": data if data.is_cpu else host_data,
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        remember(data, layout, self._host_copy)

    @classmethod
    def _from_valid(cls: type[Self], data: Tensor, layout: Layout, host_data: Tensor | None = None) -> Self:
        pattern = cls.__new__(cls)
        pattern._set(data, layout, host_data)
        return pattern

    @property
    def _host_data(self) -> Tensor:
        """The data on the CPU, for the native functions: fetched when it is first needed, not before."""
        if self._host_copy is None:
            object.__setattr__(self, "_host_copy", self.data.cpu())
        return self._host_copy

    @property
    def numel(self) -> int:
        """Number of positions, N * K."""
        return self.matrix_shape[0] * self.matrix_shape[1]

    @property
    def sparsity(self) -> float:
        """Fraction of zeros, 1 - nnz / numel."""
        return 1.0 - self.nnz / self.numel

    @property
    def device(self) -> torch.device:
        """Where `data` is."""
        return self.data.device

    @property
    def nbytes(self) -> int:
        """Bytes of `data`, the cost of the pattern beside its values."""
        return self.data.numel() * 4

    @property
    def tile_start(self) -> Tensor:
        """int64 ``(num_tiles + 1,)``: index of the first value of each tile; the last is nnz."""
        return self._layout.section(self.data, self._layout.tile_start, self.num_tiles + 1, torch.int64)

    @property
    def tile_row_ptr(self) -> Tensor:
        """int32 ``(tile_rows + 1,)``: where each tile row begins among the tiles; the last is num_tiles."""
        layout = self._layout
        return layout.section(self.data, layout.tile_row_ptr, layout.tile_rows + 1, torch.int32)

    @property
    def tile_col(self) -> Tensor:
        """int32 ``(num_tiles,)``: tile column of each tile, ascending within a tile row."""
        return self._layout.section(self.data, self._layout.tile_col, self.num_tiles, torch.int32)

    @property
    def tile_ptr_t(self) -> Tensor:
        """int32 ``(tile_cols + 1,)``: where each tile column begins in `tile_order_t`."""
        layout = self._layout
        return layout.section(self.data, layout.tile_ptr_t, layout.tile_cols + 1, torch.int32)

    @property
    def tile_order_t(self) -> Tensor:
        """int32 ``(num_tiles,)``: the tiles by tile column, then tile row: the index of the transpose."""
        return self._layout.section(self.data, self._layout.tile_order_t, self.num_tiles, torch.int32)

    @property
    def row_offset(self) -> Tensor:
        """int16 ``(num_tiles, T)``: values of the tile that lie before each of its rows."""
        count = self.num_tiles * self.tile_size
        section = self._layout.section(self.data, self._layout.row_offset, count, torch.int16)
        return section.view(self.num_tiles, self.tile_size)

    @property
    def bits(self) -> Tensor:
        """Bits of every tile row, bit c for column c, little endian.

        int32 ``(num_tiles, T, T / 32)`` for T of 64 and 32, int16 ``(num_tiles, 16, 1)``, uint8
        ``(num_tiles, 8, 1)``.
        """
        t = self.tile_size
        dtype = {8: torch.uint8, 16: torch.int16}.get(t, torch.int32)
        words = max(1, t // 32)
        section = self._layout.section(self.data, self._layout.bits, self.num_tiles * t * words, dtype)
        return section.view(self.num_tiles, t, words)

    def checksum(self) -> int:
        """64-bit hash of `data` as a signed integer, so that it fits an int64 tensor; not cryptographic."""
        unsigned = _pattern.checksum(*self._words())
        return unsigned - 2**64 if unsigned >= 2**63 else unsigned

    def validate(self) -> None:
        """Check every invariant of the format; ValueError names the first that `data` breaks."""
        data = self.data.cpu()
        _pattern.validate(data.data_ptr(), data.numel(), native.threads())

    def to(self: Self, device: torch.device | str) -> Self:
        """The same pattern with its data on `device`; itself when it is there already."""
        device = torch.device(device)
        if device.type == "meta":
            raise ValueError(
                "a pattern cannot move to the meta device, which holds no bits; keep it on the cpu"
            )
        data = self._host_data if device.type == "cpu" else self.data.to(device)
        return self if data is self.data else self._from_valid(data, self._layout, self._host_copy)

    def copy(self: Self) -> Self:
        """The same pattern in memory of its own."""
        return self._from_valid(self.data.clone(), self._layout, self._host_copy)

    def _words(self) -> tuple[int, int]:
        return self._host_data.data_ptr(), self._host_data.numel()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PackedPattern):
            return NotImplemented
        return self is other or torch.equal(self._host_data, other._host_data)

    def __hash__(self) -> int:
        if self._hash is None:
            object.__setattr__(self, "_hash", hash(self.checksum()))
        return self._hash

    def __repr__(self) -> str:
        return (
            f"Pattern(shape={self.shape}, nnz={self.nnz}, sparsity={self.sparsity:.4f}, "
            f"tile_size={self.tile_size}, num_tiles={self.num_tiles}, device='{self.device}')"
        )

    def __copy__(self: Self) -> Self:
        return self

    def __deepcopy__(self: Self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[type[PackedPattern], tuple[Tensor]]:
        return type(self), (self.data,)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Pattern is immutable: {name!r} cannot be set; build a new Pattern")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a Pattern is immutable: {name!r} cannot be deleted")
