import re

import numpy
import PIL.Image
import pytest
import torch

from sparsekern.experiments.data.images import (
    _random_box,
    normalize,
    read_image,
    testing_pixels,
    training_pixels,
)
from sparsekern.experiments.errors import DataError

# pytest would take the imported function for a test.
testing_pixels.__test__ = False


def gradient_image(width=60, height=48):
    """Red is the column, green the row: what is seen says where it came from."""
    rows, columns = numpy.mgrid[:height, :width]
    pixels = numpy.stack([columns, rows, numpy.zeros_like(rows)], axis=2).astype(numpy.uint8)
    return PIL.Image.fromarray(pixels)


def test_training_pixels_are_a_part_of_the_image_that_follows_from_seed_and_place():
    image = gradient_image()
    parts = [training_pixels(image, 32, seed=3, place=place) for place in range(20)]
    assert all(part.shape == (3, 32, 32) and part.dtype == torch.uint8 for part in parts)
    assert torch.equal(parts[7], training_pixels(image, 32, seed=3, place=7))
    assert not torch.equal(parts[7], training_pixels(image, 32, seed=4, place=7))
    assert not torch.equal(parts[7], parts[8])
    red = torch.stack(parts)[:, 0].float().mean(1)
    mirrored = red[:, 0] > red[:, -1]
    assert 4 <= int(mirrored.sum()) <= 16


def test_training_draws_are_the_same_on_every_machine_and_in_every_version():
    # Changed draws would break the exact resume of runs that are under way.
    part = training_pixels(gradient_image(), 32, seed=0, place=3).double()
    mirrored_columns, rows = part[0, 0, [0, -1]], part[1, [0, -1], 0]
    torch.testing.assert_close(mirrored_columns, torch.tensor([59.0, 32.0]).double(), atol=1, rtol=0)
    torch.testing.assert_close(rows, torch.tensor([5.0, 26.0]).double(), atol=1, rtol=0)


def test_boxes_have_the_areas_and_shapes_of_the_paper():
    generator = torch.Generator().manual_seed(0)
    boxes = [_random_box(260, 240, torch.rand(40, generator=generator).tolist()) for _ in range(500)]
    areas, shapes = [], []
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= 260
        assert 0 <= top < bottom <= 240
        areas.append((right - left) * (bottom - top) / (260 * 240))
        shapes.append((right - left) / (bottom - top))
    assert 0.078 < min(areas) < 0.12
    assert 0.9 < max(areas) <= 1
    assert 0.74 < min(shapes) < 0.78
    assert 1.28 < max(shapes) < 1.36


def test_an_image_that_no_draw_fits_gives_its_center():
    draws = [0.9, 0.5, 0.5, 0.5] * 10
    assert _random_box(100, 10, draws) == (45, 0, 55, 10)
    assert _random_box(10, 100, draws) == (0, 45, 10, 55)


def test_testing_pixels_are_the_center():
    pixels = testing_pixels(gradient_image(96, 64), 56).int()
    # 7/8 of 64 rows is 56, one pixel for each: rows 4 to 59, columns 20 to 75.
    rows, columns = torch.meshgrid(torch.arange(4, 60), torch.arange(20, 76), indexing="ij")
    assert torch.equal(pixels, torch.stack([columns, rows, torch.zeros_like(rows)]).int())


def test_normalize_is_the_formula():
    pixels = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    x = pixels.double() / 255
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = torch.stack([(x[:, c] - mean[c]) / deviation[c] for c in range(3)], dim=1)
    torch.testing.assert_close(normalize(pixels), expected.float())


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_other_colors_become_rgb(tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    gradient_image().convert("RGB").convert(mode).save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}")
    assert (image.mode, image.size) == ("RGB", (60, 48))


@pytest.mark.parametrize("content", [b"", b"no image", "cut"], ids=["empty", "text", "cut"])
def test_a_file_that_is_no_image_is_one_line_that_names_it(tmp_path, content):
    path = tmp_path / "a.png"
    gradient_image().save(path)
    path.write_bytes(path.read_bytes()[:-60] if content == "cut" else content)
    message = f"{path}: expected an image, found what cannot be read: "
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png: expected an image, found .*No such file or directory$"):
        read_image(tmp_path / "gone.png")
