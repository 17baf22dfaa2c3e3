"""From an image file to pixels: a random crop for training, the center for testing."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor

from sparsekern.experiments.errors import DataError
from sparsekern.seeds import generator

if TYPE_CHECKING:
    from PIL.Image import Image

_AREA = (0.08, 1.0)
_LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))
_TRIES = 10
# The center that is tested is this fraction of the image's shorter side.
_CENTER = 224 / 256
# Of ImageNet's pixels in [0, 1], for each channel.
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)


def require_pillow() -> None:
    """Refuse to go on without the package that decodes images.

    Raises
    ------
    DataError
        Names the extra to install.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise DataError(
            "the data set 'image_folder' needs Pillow to read images: pip install 'sparsekern[images]'"
        ) from None


def read_image(path: Path) -> Image:
    """Decode an image file as RGB, whatever its own colors are.

    Raises
    ------
    DataError
        Names the file.
    """
    import PIL.Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata, which is not read
            with PIL.Image.open(path) as image:
                return image.convert("RGB")
    # Damaged files fail in more ways than Pillow documents.
    except Exception as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: expected an image, found what cannot be read: {reason}") from None


def training_pixels(image: Image, size: int, seed: int, place: int) -> Tensor:
    """A random part of the image, stretched to ``size`` x ``size``, and mirrored half of the time.

    The part has 8 % to 100 % of the image's area and a width of 3/4 to 4/3 of its height; after ten draws
    that do not fit into the image, it is the largest square at the center.

    Parameters
    ----------
    image : Image
        RGB.
    size : int
        Pixels of a side.
    seed, place : int
        All that the draws depend on: the run's data seed and the example's place in its stream of examples.

    Returns
    -------
    Tensor
        (3, size, size) uint8.

    References
    ----------
    Szegedy et al., *Going Deeper with Convolutions* (2015), Section 6; the input pipeline that
    google-research/rigl takes from tensorflow/tpu.
    """
    draws = torch.rand(4 * _TRIES + 1, generator=generator(seed, "augment", place), dtype=torch.float64)
    *crops, mirrored = draws.tolist()
    return _pixels(image, _random_box(*image.size, crops), size, mirrored < 0.5)


def testing_pixels(image: Image, size: int) -> Tensor:
    """The square at the center, 7/8 of the shorter side, as (3, size, size) uint8.

    For 224 pixels: the shorter side becomes 256, then the center is cut out.
    """
    return _pixels(image, _center_box(*image.size, _CENTER), size, mirrored=False)


def normalize(pixels: Tensor) -> Tensor:
    """``(pixels / 255 - mean) / deviation`` in float32, by ImageNet's means and deviations of channels."""
    mean = torch.tensor(_MEAN, device=pixels.device).view(3, 1, 1)
    deviation = torch.tensor(_DEVIATION, device=pixels.device).view(3, 1, 1)
    return pixels.to(torch.float32).div_(255).sub_(mean).div_(deviation)


Box = tuple[float, float, float, float]


def _random_box(width: int, height: int, draws: list[float]) -> Box:
    for start in range(0, len(draws), 4):
        area, ratio, left, top = draws[start : start + 4]
        pixels = width * height * (_AREA[0] + (_AREA[1] - _AREA[0]) * area)
        shape = math.exp(_LOG_RATIO[0] + (_LOG_RATIO[1] - _LOG_RATIO[0]) * ratio)
        part_width, part_height = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < part_width <= width and 0 < part_height <= height:
            x, y = int(left * (width - part_width + 1)), int(top * (height - part_height + 1))
            return x, y, x + part_width, y + part_height
    return _center_box(width, height, 1)


def _center_box(width: int, height: int, fraction: float) -> Box:
    side = min(width, height) * fraction
    x, y = (width - side) / 2, (height - side) / 2
    return x, y, x + side, y + side


def _pixels(image: Image, box: Box, size: int, mirrored: bool) -> Tensor:
    import PIL.Image

    part = image.resize((size, size), PIL.Image.Resampling.BICUBIC, box=box)
    if mirrored:
        part = part.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(numpy.array(part)).permute(2, 0, 1).contiguous()
