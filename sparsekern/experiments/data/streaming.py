"""Images read by worker processes, in an order that is known ahead."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sparsekern.experiments.data.batches import BatchOrder
from sparsekern.experiments.data.dataset import Examples
from sparsekern.experiments.data.images import (
    normalize,
    read_image,
    testing_pixels,
    training_pixels,
)
from sparsekern.experiments.errors import DataError

# Images that a worker hands over at a time: large batches are shared out, and few images wait in memory.
_CHUNK = 64


@dataclass(frozen=True)
class ImageStream:
    """Image files that are read on demand.

    Attributes
    ----------
    folder : Path
    names : numpy.ndarray
        Of the files, below the folder, as bytes.
    image_size : int
        Pixels of a side that images are given with.
    workers : int
        Processes that read; 0 reads in this one.
    """

    folder: Path
    names: numpy.ndarray
    image_size: int
    workers: int


class StreamedBatches:
    """The batches of a training run. Asking for any step but the next one starts to read anew from there.

    Parameters
    ----------
    stream : ImageStream
    labels : Tensor
        Of all its images.
    order : BatchOrder
        Which images each step takes; its seed is that of the crops.
    device : torch.device
    """

    def __init__(self, stream: ImageStream, labels: Tensor, order: BatchOrder, device: torch.device) -> None:
        self._stream = stream
        self._labels = labels
        self._order = order
        self._device = device
        self._next = 0
        self._chunks: Generator[Tensor] | None = None

    def __call__(self, step: int) -> Examples:
        """Images and labels of training step ``step``."""
        if self._chunks is None or step != self._next:
            self.close()
            self._chunks = _read(self._stream, self._places(step), self._device, self._order.seed)
        chunks = -(-self._order.batch_size // _CHUNK)
        images = torch.cat([next(self._chunks) for _ in range(chunks)])
        self._next = step + 1
        return images, self._labels[self._order.indices(step)].to(self._device)

    def close(self) -> None:
        """Stop the workers."""
        if self._chunks is not None:
            self._chunks.close()
        self._chunks = None

    def _places(self, step: int) -> Iterator[list[tuple[int, int]]]:
        """Image and place in the stream of examples, in chunks that end where batches do."""
        # Its own: the workers are steps ahead of training, maybe in the next epoch.
        order = BatchOrder(self._order.num_examples, self._order.batch_size, self._order.seed)
        while True:
            first = step * order.batch_size
            batch = [(image, first + offset) for offset, image in enumerate(order.indices(step).tolist())]
            yield from _chunks(batch)
            step += 1


def read_all(stream: ImageStream, images: Iterable[int], device: torch.device) -> Iterator[Tensor]:
    """The centers of some images, normalized, a chunk at a time."""
    return _read(stream, _chunks([(image, 0) for image in images]), device, seed=None)


def _chunks(places: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    for begin in range(0, len(places), _CHUNK):
        yield places[begin : begin + _CHUNK]


def _read(
    stream: ImageStream, places: Iterable[list[tuple[int, int]]], device: torch.device, seed: int | None
) -> Generator[Tensor]:
    loader = DataLoader(
        _Reader(stream, seed),
        batch_sampler=places,
        num_workers=stream.workers,
        collate_fn=_as_it_is,
        worker_init_fn=_prepare_worker,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # PyTorch's own is left alone
    )
    chunks = iter(loader)
    while True:
        try:
            pixels = next(chunks, None)
        except RuntimeError as error:  # a worker died: of memory, mostly
            reason = " ".join(str(error).split())
            raise DataError(
                f"a process that reads images died; fewer --workers need less: {reason}"
            ) from None
        if pixels is None:
            return
        if isinstance(pixels, str):
            raise DataError(pixels)
        yield normalize(pixels.to(device, non_blocking=True))


class _Reader:
    """Reads a chunk of images: random parts with a seed, centers without one."""

    def __init__(self, stream: ImageStream, seed: int | None) -> None:
        self._stream = stream
        self._seed = seed

    def __getitems__(self, places: list[tuple[int, int]]) -> Tensor | str:
        """Pixels (images, 3, size, size) uint8; or the message of an error, which arrives as one line."""
        try:
            return torch.stack([self._pixels(*place) for place in places])
        except DataError as error:
            return str(error)

    def _pixels(self, image: int, place: int) -> Tensor:
        stream = self._stream
        decoded = read_image(stream.folder / os.fsdecode(stream.names[image]))
        if self._seed is None:
            return testing_pixels(decoded, stream.image_size)
        return training_pixels(decoded, stream.image_size, self._seed, place)


def _as_it_is(chunk: Tensor | str) -> Tensor | str:
    return chunk


def _prepare_worker(worker: int) -> None:
    # A keyboard's interrupt reaches all processes; the run decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
