"""`HeldMask`: what a 2:4 weight keeps from one forward pass to the next."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparsekern.formats.two_four import GROUP, MASKS, PAIRS, TwoFour, metadata_of
from sparsekern.ops import pack_two_four
from sparsekern.ops.two_four_values import pack_at


class HeldMask:
    """The mask that a weight was packed with, its age, and the packed form while nothing changes.

    Layers that share one weight share one of these. A weight has changed when it is another tensor or another
    version of it: PyTorch counts what is written in place, such as the steps of an optimizer. The weight of
    FSDP2 that a layer computes with is written to without being counted; its sharded Parameter tells instead.

    Attributes
    ----------
    metadata : Tensor or None
        Of the last choice, or what is stored for good; None before any.
    metadata_t : Tensor or None
        Of the transpose, where it is packed too.
    age : int
        Changes of the weight since the choice, as far as they were counted.
    """

    def __init__(self, metadata: Tensor | None = None, age: int = 0) -> None:
        self.metadata = metadata
        self.metadata_t: Tensor | None = None
        self.age = age
        self._seen: _Version | None = None
        self._packed: tuple[_Version, int, TwoFour] | None = None
        self._sharded: weakref.ref[Tensor] | None = None

    def age_of(self, weight: Tensor) -> int:
        """The mask's age with the change that may have come since the last count."""
        return self.age + int(self._seen is not None and not self._seen.is_of(self._origin(weight)))

    def is_due(self, weight: Tensor, every: int) -> bool:
        """Whether another mask is to be chosen."""
        return self.metadata is None or self.age_of(weight) >= every

    def count(self, weight: Tensor) -> None:
        """Count the change that may have come since the last call."""
        self.age = self.age_of(weight)
        self._seen = _Version(self._origin(weight))

    def choose(self, packed: TwoFour) -> None:
        """Hold the mask of a weight that has just been packed."""
        metadata_t = None if packed.transposed is None else packed.transposed.metadata
        self.load(packed.metadata, metadata_t, 0)

    def load(self, metadata: Tensor | None, metadata_t: Tensor | None, age: int) -> None:
        """Hold a mask of that age; what is written to the weight before the next count is part of it."""
        self.metadata, self.metadata_t, self.age = metadata, metadata_t, age
        self._seen = None

    def pack(self, matrix: Tensor) -> TwoFour:
        """The weight, packed with the mask that is held."""
        return pack_at(matrix, self.metadata, self.metadata_t)

    def kept(self, weight: Tensor, pack: Callable[[], TwoFour]) -> TwoFour:
        """What `pack` returned when the weight was last another one."""
        origin = self._origin(weight)
        if origin.is_inference():
            return pack()  # such a tensor does not count what is written to it
        if self._packed is not None:
            version, address, packed = self._packed
            if version.is_of(origin) and address == weight.data_ptr():
                return packed
        self._packed = (_Version(origin), weight.data_ptr(), pack())
        return self._packed[2]

    def forget_packed(self) -> None:
        """Drop what is there for a weight that does not change."""
        self._packed = None

    def follow(self, weight: Tensor, age: int) -> None:
        """Go on with a weight that has been moved, whose mask was of that age before."""
        if self._seen is not None:
            # A change that was still to be counted is, and what comes on top of it is the same one.
            self._seen = _Version(self._origin(weight)) if age == self.age else None
            self.age = age
        self.forget_packed()

    def watch_sharded(self, weight: Tensor) -> None:
        """From now on, a sharded Parameter tells of changes."""
        self._sharded = weakref.ref(weight)

    def _origin(self, weight: Tensor) -> Tensor:
        sharded = None if self._sharded is None else self._sharded()
        return weight if sharded is None else sharded

    def move(self, device: torch.device) -> None:
        """To another device. There is no meta form: it would be lost."""
        if self.metadata is not None and device.type != "meta":
            self.metadata = self.metadata.to(device)
            self.metadata_t = None if self.metadata_t is None else self.metadata_t.to(device)

    def __getstate__(self) -> dict[str, Any]:
        """For copies, whose weight is another tensor."""
        last = None if self._seen is None else self._seen.tensor()
        changed = self._seen is not None and (last is None or not self._seen.is_of(last))
        return {
            **self.__dict__,
            "age": self.age + int(changed),
            "_seen": None,
            "_packed": None,
            "_sharded": None,
        }


class _Version:
    """A tensor as it was at one moment; the tensor is held weakly."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = weakref.ref(tensor)
        self._version = _version(tensor)

    def is_of(self, tensor: Tensor) -> bool:
        return self.tensor() is tensor and self._version == _version(tensor)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def first_metadata(rows: int, columns: int) -> Tensor:
    """A mask for nothing in particular, 2:4 along both dimensions where they are multiples of 4."""
    pairs = torch.tensor([PAIRS[0], PAIRS[-1]])[torch.arange(rows) // 2 % 2]
    return metadata_of(pairs.unsqueeze(1).expand(rows, columns // GROUP, 2))


def random_metadata(rows: int, columns: int, transposable: bool, generator: torch.Generator | None) -> Tensor:
    """A random mask, all being equally likely; on the generator's device, or the CPU."""
    device = "cpu" if generator is None else generator.device
    pairs = torch.tensor(PAIRS, device=device)
    options = {"generator": generator, "device": device}
    if not transposable:
        return metadata_of(pairs[torch.randint(len(PAIRS), (rows, columns // GROUP), **options)])
    masks = torch.tensor(MASKS, device=device)
    tiles = torch.randint(len(MASKS), (rows // GROUP, columns // GROUP), **options)
    return metadata_of(pairs[masks[tiles].transpose(1, 2).reshape(rows, columns // GROUP)])


def transposed_metadata(metadata: Tensor, columns: int, name: str) -> Tensor:
    """Of the transpose of a mask; ValueError unless that is 2:4 too."""
    mask = TwoFour(metadata.new_empty(len(metadata), columns // 2), metadata).to_mask()
    if bool((mask.unflatten(0, (-1, GROUP)).sum(1) != GROUP // 2).any()):
        raise ValueError(
            f"{name} must have two of every 4 neighbours in a column too, for a layer whose mask is "
            "transposable"
        )
    return pack_two_four(mask.T.to(torch.int8)).metadata
