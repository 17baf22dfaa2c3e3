import gzip
import struct

import pytest
import torch


@pytest.fixture
def idx_bytes():
    """The bytes of an IDX file with a tensor's content."""

    def encode(tensor):
        header = struct.pack(f">BBBB{tensor.dim()}I", 0, 0, 8, tensor.dim(), *tensor.shape)
        return header + tensor.to(torch.uint8).numpy().tobytes()

    return encode


@pytest.fixture
def mnist_folder(tmp_path, idx_bytes):
    """A function that writes four small files in MNIST's format, in one of the spellings."""

    def write(joint="-", compressed=True, train=20, test=10):
        generator = torch.Generator().manual_seed(0)
        for part, count in (("train", train), ("t10k", test)):
            images = torch.randint(0, 256, (count, 28, 28), generator=generator)
            labels = torch.arange(count) % 10
            for kind, tensor in (("images", images), ("labels", labels)):
                content = idx_bytes(tensor)
                name = f"{part}-{kind}{joint}idx{tensor.dim()}-ubyte"
                if compressed:
                    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
                else:
                    (tmp_path / name).write_bytes(content)
        return tmp_path

    return write
