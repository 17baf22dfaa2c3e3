"""`Pattern`: which weights of a layer are active, packed in one int32 tensor.

A weight is a matrix ``(N, K)``: ``(out, in)`` for a linear layer, ``(Cout, kh * kw * Cin / groups)`` with
columns in (kh, kw, cin) order for a convolution. The matrix is cut into T x T tiles; tiles without an active
position are not stored, unless the grid of tiles is stored complete. A tile holds one bit for each position,
and the values of the active ones lie in a separate vector ``(nnz,)``, tile by tile (tile row, then tile
column) and row by row within a tile:

    value index of (n, k) = tile_start[t] + row_offset[t, n % T] + popcount(bits[t, n % T] below k % T)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparsekern import native
from sparsekern.formats.checks import (
    active_count,
    check_bool,
    check_generator,
    check_integer,
    check_mask,
    check_positions,
    check_shape,
    check_sparsity,
    check_strided,
    describe,
)
from sparsekern.formats.layout import (
    BLOCK_SIZES,
    HEADER_WORDS,
    Layout,
    check_block_size,
    check_tile_size,
    default_tile_size,
    value_positions,
)
from sparsekern.formats.membership import are_active
from sparsekern.formats.packed import PackedPattern

__all__ = ["Pattern"]

_pattern = native._C.pattern


class Pattern(PackedPattern):
    """Immutable set of active positions of a weight, shared by all vectors of its values.

    Parameters
    ----------
    data : Tensor
        int32, 1-D: a packed pattern, as `Pattern.data` gives it. It is copied, and checked in full.

    Attributes
    ----------
    data : Tensor
        int32, 1-D: header and sections; what a state dict stores. Not to be written to.
    shape : tuple of int
        Shape of the dense weight: ``(N, K)`` or ``(Cout, Cin / groups, kh, kw)``.
    matrix_shape : tuple of int
        ``(N, K)``.
    tile_size : int
        T: 8, 16, 32 or 64.
    nnz : int
        Number of active positions; may be 0.
    num_tiles : int
        Number of tiles stored: those with at least one active position, or all of the grid.

    Raises
    ------
    TypeError
        When `data` is not an int32 tensor.
    ValueError
        Naming the first invariant of the format that `data` breaks.

    Notes
    -----
    Two patterns are equal when their packed data are: the same shape, positions, tile size and stored tiles,
    on any device. A pattern with empty tiles in a complete grid, as `sparsekern.ops.update_topology` returns
    it, thus differs from that of `from_mask` for the same positions, while their values have the same order.
    """

    @classmethod
    def _from_builder(cls, builder: Any) -> Pattern:
        # The device is named because a default device may be set, as in `with torch.device("meta")`.
        data = torch.empty(builder.words, dtype=torch.int32, device="cpu")
        builder.fill(data.data_ptr(), data.numel(), native.threads())
        return cls._from_valid(data, Layout.from_header(data[:HEADER_WORDS].tolist()))

    @classmethod
    def from_mask(cls, mask: Tensor, *, tile_size: int | None = None, complete: bool = False) -> Pattern:
        """Pattern whose active positions are those where `mask` is True.

        Parameters
        ----------
        mask : Tensor
            bool, ``(N, K)`` or ``(Cout, Cin / groups, kh, kw)``; may be all False. The pattern is put on its
            device.
        tile_size : int, optional
            8, 16, 32 or 64; by default `default_tile_size` of the weight matrix.
        complete : bool
            Store every tile of the grid, also those without an active position.

        Raises
        ------
        TypeError
            When `mask` is not a bool tensor of strided layout, or `complete` is not a bool.
        ValueError
            When it is on the meta device, its shape is not a weight's, or `tile_size` is none of the above.
        """
        shape = check_shape(tuple(check_mask(mask).shape), "mask.shape")
        tile_size = _tile_size(shape, tile_size)
        host_mask = mask.detach().cpu().contiguous()
        builder = _pattern.mask_builder(
            host_mask.data_ptr(),
            host_mask.numel(),
            shape,
            tile_size,
            check_bool(complete, "complete"),
            native.threads(),
        )
        return cls._from_builder(builder).to(mask.device)

    @classmethod
    def random(
        cls,
        shape: Sequence[int],
        sparsity: float,
        *,
        generator: torch.Generator | None = None,
        block_size: int | None = None,
        tile_size: int | None = None,
    ) -> Pattern:
        """Pattern with exactly ``max(1, round((1 - sparsity) * numel))`` active positions, uniformly random.

        All subsets of that size are equally likely. With `block_size`, the same holds for whole blocks of the
        weight matrix: ``max(1, round((1 - sparsity) * blocks))`` of them are active, and those that reach
        beyond the last row or column are cut off there. One number is drawn from `generator`; the result
        follows from it on any machine and for any number of threads. No dense temporary is made beyond one
        bit for each position.

        Parameters
        ----------
        shape : sequence of int
            ``(out, in)`` or ``(out_channels, in_channels / groups, kh, kw)``.
        sparsity : float
            Fraction of zeros, in [0, 1).
        generator : torch.Generator, optional
            The source of randomness; torch's global one by default.
        block_size : int, optional
            32, 64 or 128: activate whole blocks; a multiple of the tile size.
        tile_size : int, optional
            8, 16, 32 or 64; by default `default_tile_size` of the weight matrix, at most `block_size`.

        Raises
        ------
        TypeError, ValueError
            When an argument is none of the above.
        """
        shape = check_shape(shape)
        sparsity = check_sparsity(sparsity)
        block_size = None if block_size is None else check_block_size(block_size)
        check_generator(generator)
        tile_size = _tile_size(shape, tile_size, block_size)
        rows, cols = _matrix_shape(shape)
        block = block_size or 1
        count = active_count(sparsity, -(-rows // block) * -(-cols // block))
        device = generator.device if generator is not None else "cpu"
        drawn = torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, generator=generator, device=device)
        seed = int(drawn.item()) % 2**64
        return cls._from_builder(
            _pattern.random_builder(shape, count, block, seed, tile_size, native.threads())
        )

    def to_mask(self) -> Tensor:
        """Mask of the active positions: bool, of `shape`."""
        mask = torch.empty(self.shape, dtype=torch.bool, device=self.device)
        if self.device.type != "cpu":
            mask.zero_().view(-1)[self._flat_positions()] = True
            return mask
        _pattern.to_mask(*self._words(), mask.data_ptr(), mask.numel(), native.threads())
        return mask

    def pack(self, dense: Tensor) -> Tensor:
        """``dense[active]`` in the order of the values. Not differentiable; `sparsekern.ops.pack` is.

        Parameters
        ----------
        dense : Tensor
            Of `shape`, on the pattern's device, of any dtype of 1, 2, 4 or 8 bytes.

        Returns
        -------
        Tensor
            ``(nnz,)``, of the same dtype.

        Raises
        ------
        TypeError, ValueError
            When `dense` is not such a tensor.
        """
        dense = self._checked("dense", dense, self.shape)
        if self.device.type != "cpu":
            return dense.view(-1)[self._flat_positions()]
        values = torch.empty(self.nnz, dtype=dense.dtype, device="cpu")
        _pattern.pack(
            *self._words(), *_buffer(dense), *_buffer(values), dense.element_size(), native.threads()
        )
        return values

    def unpack(self, values: Tensor) -> Tensor:
        """Dense weight with `values` at the active positions and 0 elsewhere. Not differentiable.

        Parameters
        ----------
        values : Tensor
            ``(nnz,)``, on the pattern's device, of any dtype of 1, 2, 4 or 8 bytes.

        Returns
        -------
        Tensor
            Of `shape`, of the same dtype.

        Raises
        ------
        TypeError, ValueError
            When `values` is not such a tensor.
        """
        values = self._checked("values", values, (self.nnz,))
        dense = torch.empty(self.shape, dtype=values.dtype, device=self.device)
        if self.device.type != "cpu":
            dense.zero_().view(-1)[self._flat_positions()] = values
            return dense
        _pattern.unpack(
            *self._words(), *_buffer(values), *_buffer(dense), values.element_size(), native.threads()
        )
        return dense

    def transfer(self, values: Tensor, to: Pattern) -> Tensor:
        """``to.pack(self.unpack(values))``: kept positions keep their value, new ones get 0.

        Parameters
        ----------
        values : Tensor
            ``(nnz,)``, on the pattern's device, of any dtype of 1, 2, 4 or 8 bytes.
        to : Pattern
            Pattern of the same shape on the same device.

        Returns
        -------
        Tensor
            ``(to.nnz,)``, of the same dtype.

        Raises
        ------
        TypeError, ValueError
            When an argument is none of the above.
        """
        if not isinstance(to, Pattern):
            raise TypeError(f"to must be a Pattern, got {describe(to)}")
        if to.shape != self.shape or to.device != self.device:
            raise ValueError(
                f"to must have shape {self.shape} on {self.device}, got {to.shape} on {to.device}"
            )
        values = self._checked("values", values, (self.nnz,))
        if self.device.type != "cpu" or to.tile_size != self.tile_size:
            return to.pack(self.unpack(values))
        moved = torch.empty(to.nnz, dtype=values.dtype, device="cpu")
        _pattern.transfer(
            *self._words(),
            *_buffer(values),
            *to._words(),
            *_buffer(moved),
            values.element_size(),
            native.threads(),
        )
        return moved

    def fan_in(self) -> Tensor:
        """Active inputs of each output neuron: int64 ``(N,)``."""
        return self._counted(_pattern.fan_in, self.matrix_shape[0])

    def fan_out(self, groups: int = 1) -> Tensor:
        """Active weights that read each input channel, kernel summed: int64 ``(groups * shape[1],)``.

        Parameters
        ----------
        groups : int
            Groups of the convolution; input channel ``g * shape[1] + c`` feeds the outputs of group g.

        Raises
        ------
        TypeError, ValueError
            When `groups` is not an integer, or does not divide the rows.
        """
        groups = check_integer(groups, "groups")
        if self.shape[0] % groups:
            raise ValueError(f"groups must be a divisor of the {self.shape[0]} outputs, got {groups}")
        return self._counted(_pattern.fan_out, groups * self.shape[1], groups)

    def value_rows(self) -> Tensor:
        """Row of the weight matrix that each value belongs to: int64 ``(nnz,)``."""
        if self.device.type != "cpu":
            return value_positions(self.data, self._layout)[0]
        return self._counted(_pattern.value_rows, self.nnz)

    def value_cols(self) -> Tensor:
        """Column of the weight matrix that each value belongs to: int64 ``(nnz,)``."""
        if self.device.type != "cpu":
            return value_positions(self.data, self._layout)[1]
        return self._counted(_pattern.value_cols, self.nnz)

    def is_active(self, positions: Tensor) -> Tensor:
        """Whether each of some positions is active: bool, of the shape of `positions`.

        Parameters
        ----------
        positions : Tensor
            int64, on the pattern's device: indices ``n * K + k`` of the weight matrix, in any order, also
            repeated. Their range is checked, which waits for a GPU.

        Raises
        ------
        TypeError, ValueError
            When `positions` is not such a tensor, or names a position outside the matrix.
        """
        check_positions(positions, self.numel, self.device)
        return are_active(self.data, self._layout, positions)

    def _counted(self, function: Callable[..., None], count: int, *arguments: int) -> Tensor:
        out = torch.empty(count, dtype=torch.int64, device="cpu")
        function(*self._words(), *arguments, *_buffer(out), native.threads())
        return out.to(self.device)

    def _flat_positions(self) -> Tensor:
        """Index of every value in the flattened dense weight: int64 ``(nnz,)``."""
        rows, cols = value_positions(self.data, self._layout)
        if len(self.shape) == 4:
            _, cin, kh, kw = self.shape
            cols = cols % cin * (kh * kw) + cols // cin
        return rows * self.matrix_shape[1] + cols

    def _checked(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {describe(tensor)}")
        check_strided(tensor, name)
        if tuple(tensor.shape) != shape or tensor.device != self.device:
            raise ValueError(
                f"{name} must have shape {shape} on {self.device}, "
                f"got {tuple(tensor.shape)} on {tensor.device}"
            )
        if tensor.element_size() not in (1, 2, 4, 8):
            raise TypeError(f"{name} must have a dtype of 1, 2, 4 or 8 bytes, got {tensor.dtype}")
        return tensor.detach().resolve_conj().resolve_neg().contiguous()


def _buffer(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.numel()


def _matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    rows, *columns = shape
    cols = 1
    for size in columns:
        cols *= size
    return rows, cols


def _tile_size(shape: tuple[int, ...], tile_size: int | None, block_size: int | None = None) -> int:
    if tile_size is None:
        return min(default_tile_size(*_matrix_shape(shape)), block_size or max(BLOCK_SIZES))
    tile_size = check_tile_size(tile_size)
    if block_size is not None and block_size % tile_size:
        raise ValueError(f"block_size must be a multiple of the tile size {tile_size}, got {block_size}")
    return tile_size
