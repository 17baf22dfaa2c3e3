"""`TwoFour`: a matrix with two of every four neighbours in a row, packed as values and two-bit columns."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparsekern.formats.checks import describe

__all__ = ["LAYOUTS", "MASKS", "PAIRS", "TwoFour", "check_metadata", "columns_of", "metadata_of"]

GROUP = 4
# The two columns of a group that are kept, those with the earliest positions first.
PAIRS = tuple(itertools.combinations(range(GROUP), 2))
# Four pairs, one for each row of a tile, that keep two positions of each column as well: 90 masks.
MASKS = tuple(
    mask
    for mask in itertools.product(range(len(PAIRS)), repeat=GROUP)
    if all(sum(column in PAIRS[pair] for pair in mask) == 2 for column in range(GROUP))
)
# How the metadata is arranged: row by row, or as the 2:4 kernels of PyTorch take it.
LAYOUTS = ("rows", "cutlass", "cusparselt")


@dataclass(frozen=True, eq=False)
class TwoFour:
    """A matrix of N rows and K columns of which every group of 4 columns in a row has 2 positions stored.

    Attributes
    ----------
    values : Tensor
        ``(N, K / 2)``, any dtype: group g of row n has ``values[n, 2 g]`` and ``values[n, 2 g + 1]``, in the
        order of their columns.
    metadata : Tensor
        uint8 ``(N, ceil(K / 8))`` in the layout "rows": the columns of the two values within their group are
        ``i0 < i1``, the group's four bits are ``i0 | i1 << 2``, and byte b of a row has group 2 b in its low
        half and group 2 b + 1 in its high one (0 where there is none).
    transposed : TwoFour, optional
        The transpose, packed likewise. It can only be where the mask is 2:4 along both dimensions.
    layout : str
        "rows", or "cutlass" or "cusparselt", whose metadata PyTorch's own 2:4 kernels read.

    Raises
    ------
    TypeError, ValueError
        For tensors that do not fit together. What the metadata says is checked by :meth:`check`.
    """

    values: Tensor
    metadata: Tensor
    transposed: TwoFour | None = None
    layout: str = "rows"

    def __post_init__(self) -> None:
        values, metadata = self.values, self.metadata
        if not isinstance(values, Tensor) or values.dim() != 2 or values.shape[1] % 2:
            raise ValueError(
                f"values must be a tensor of shape (N, K / 2), K a multiple of 4, got {describe(values)}"
            )
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {describe(self.layout)}")
        if self.layout == "rows":
            shape = (values.shape[0], metadata_width(2 * values.shape[1]))
            if not isinstance(metadata, Tensor) or metadata.dtype != torch.uint8 or metadata.shape != shape:
                raise ValueError(
                    f"metadata must be a uint8 tensor of shape {shape} for values of shape "
                    f"{tuple(values.shape)}, got {describe(metadata)}"
                )
        elif not isinstance(metadata, Tensor):
            raise ValueError(f"metadata must be a tensor, got {describe(metadata)}")
        if self.transposed is not None and not isinstance(self.transposed, TwoFour):
            raise ValueError(f"transposed must be a sparsekern.TwoFour, got {describe(self.transposed)}")
        if self.transposed is not None and self.transposed.shape != self.shape[::-1]:
            raise ValueError(
                f"transposed must have shape {self.shape[::-1]}, got {tuple(self.transposed.shape)}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Of the dense matrix: (N, K)."""
        return self.values.shape[0], 2 * self.values.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def nbytes(self) -> int:
        """Bytes of values and metadata, those of the transpose included."""
        own = sum(tensor.numel() * tensor.element_size() for tensor in (self.values, self.metadata))
        return own + (0 if self.transposed is None else self.transposed.nbytes)

    def with_values(self, values: Tensor) -> TwoFour:
        """Other values at the same positions, without the transpose."""
        return replace(self, values=values, transposed=None)

    def to_mask(self) -> Tensor:
        """bool ``(N, K)``: True where a value is stored. For the layout "rows"."""
        rows, columns = self.shape
        mask = torch.zeros(rows, columns // GROUP, GROUP, dtype=torch.bool, device=self.metadata.device)
        return mask.scatter_(2, columns_of(self.metadata, columns), True).view(rows, columns)

    def check(self) -> TwoFour:
        """Return this when its metadata is that of a 2:4 matrix in the layout "rows", its transpose's too.

        Raises
        ------
        ValueError
            Names the first group that is not.
        """
        check_metadata(self.metadata, self.shape[1])
        if self.transposed is not None:
            check_metadata(self.transposed.metadata, self.shape[0], "transposed.metadata")
            if not torch.equal(self.transposed.to_mask().T, self.to_mask()):
                raise ValueError("transposed must store the transpose's positions, got others")
        return self

    def _map(self, move: Callable[[Tensor], Tensor]) -> TwoFour:
        transposed = None if self.transposed is None else self.transposed._map(move)
        return replace(self, values=move(self.values), metadata=move(self.metadata), transposed=transposed)

    def to(self, device: torch.device | str) -> TwoFour:
        """All of it on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def detach(self) -> TwoFour:
        return self._map(Tensor.detach)


def metadata_width(columns: int) -> int:
    """Bytes of metadata for a row."""
    return (columns + 7) // 8


def columns_of(metadata: Tensor, columns: int) -> Tensor:
    """int64 ``(N, K / 4, 2)``: the columns of the stored values within their groups."""
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=metadata.device)
    each = metadata.unsqueeze(-1).bitwise_right_shift(shifts).bitwise_and(3)
    return each.flatten(1)[:, : columns // 2].unflatten(1, (-1, 2)).long()


def metadata_of(columns: Tensor) -> Tensor:
    """The inverse of `columns_of`."""
    halves = (columns[..., 0] | columns[..., 1] << 2).to(torch.uint8)
    if halves.shape[1] % 2:
        halves = torch.nn.functional.pad(halves, (0, 1))
    return halves[:, 0::2] | halves[:, 1::2] << 4


def check_metadata(metadata: Tensor, columns: int, name: str = "metadata") -> None:
    """Raise ValueError unless every group has two ascending columns, and the half byte beyond them is 0."""
    pairs = columns_of(metadata, columns)
    wrong = (pairs[..., 0] >= pairs[..., 1]).nonzero()
    if len(wrong):
        row, group = wrong[0].tolist()
        first, second = pairs[row, group].tolist()
        raise ValueError(
            f"{name} must have two ascending columns for each group of 4, got {first} and {second} in row "
            f"{row}, group {group}"
        )
    if columns % 8 and bool((metadata[:, -1] >> 4).any()):
        row = int((metadata[:, -1] >> 4).nonzero()[0])
        raise ValueError(
            f"{name} must end in a half byte of 0 where columns are {columns}, got others in row {row}"
        )
