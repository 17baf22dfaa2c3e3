import gzip
import re

import pytest
import torch

from sparsekern.experiments.data.idx import read_idx
from sparsekern.experiments.errors import DataError

IMAGES = torch.arange(2 * 3 * 5).view(2, 3, 5)


@pytest.mark.parametrize(
    "tensor", [IMAGES, torch.arange(7), torch.empty(0, 4, 4)], ids=["images", "labels", "empty"]
)
@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_reads_what_was_written(tmp_path, idx_bytes, tensor, compress):
    path = tmp_path / "file"
    path.write_bytes(compress(idx_bytes(tensor)))
    read = read_idx(path, rank=tensor.dim())
    assert read.dtype == torch.uint8
    assert torch.equal(read, tensor.to(torch.uint8))


def damaged_files(content):
    packed = gzip.compress(content)
    broken = bytearray(packed)
    broken[-10] ^= 0xFF
    return {
        "empty file": (b"", "0x00000803 .* found nothing"),
        "magic number of labels": (b"\0\0\x08\x01" + content[4:], "0x00000803 .* found 0x00000801"),
        "magic number of floats": (b"\0\0\x0d\x03" + content[4:], "0x00000803 .* found 0x00000d03"),
        "some other file": (b"\x89PNG" + content[4:], "0x00000803 .* found 0x89504e47"),
        "header cut short": (content[:10], "header of 16 bytes, found 10"),
        "one byte missing": (content[:-1], "46 bytes for 2 x 3 x 5 elements, found 45"),
        "one byte too many": (content + b"\0", "46 bytes for 2 x 3 x 5 elements, found 47"),
        "dimension larger than memory": (content[:4] + b"\xff" * 12 + content[16:], "found 46"),
        "gzip cut short": (packed[:-9], "whole gzip data, found damage"),
        "gzip with a flipped byte": (bytes(broken), "whole gzip data, found damage"),
        "gzip header only": (packed[:2], "whole gzip data, found damage"),
    }


@pytest.mark.parametrize("damage", damaged_files(bytes(46)))
def test_damage_is_one_error_with_file_expected_and_found(tmp_path, idx_bytes, damage):
    content, message = damaged_files(idx_bytes(IMAGES))[damage]
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{re.escape(str(path))}: expected .*{message}"):
        read_idx(path, rank=3)


def test_a_folder_in_its_place_is_named(tmp_path):
    with pytest.raises(DataError, match=f"{re.escape(str(tmp_path))}: cannot be read: Is a directory"):
        read_idx(tmp_path, rank=1)
