"""The safetensors format: files of others, and damaged ones."""

from __future__ import annotations

import json

import pytest

from sparsekern.export import safetensors_stream

HEADERS = {
    "short": (b"abc", "expected a safetensors file, found one of 3 bytes"),
    "long": (b"\xff" * 16, r"expected a header within the file's 16 bytes, found one of \d+ bytes"),
    "no json": (b"\x08" + bytes(7) + b"nonsense", "expected a header of safetensors, found a damaged one"),
    "a gap": ({"a": ("F32", [1], [4, 8])}, r"expected 4 bytes from \d+ on for 'a', found \d+ to \d+"),
    "an overlap": (
        {"a": ("U8", [4], [0, 4]), "b": ("U8", [4], [2, 6])},
        r"expected 4 bytes from \d+ on for 'b'",
    ),
    "another size": ({"a": ("F32", [2], [0, 4])}, r"expected 8 bytes from \d+ on for 'a'"),
    "too much": ({"a": ("F32", [1], [0, 4])}, r"expected \d+ bytes, found \d+"),
    "another dtype": ({"a": ("F4", [8], [0, 8])}, r"found a damaged one \('F4'\)"),
    "less than nothing": ({"a": ("U8", [-8], [0, 8])}, r"found a damaged one \(shape and data_offsets"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_damaged_headers(name, tmp_path):
    content, message = HEADERS[name]
    if isinstance(content, dict):
        entries = {
            key: {"dtype": dtype, "shape": shape, "data_offsets": offsets}
            for key, (dtype, shape, offsets) in content.items()
        }
        text = json.dumps(entries).encode()
        content = len(text).to_bytes(8, "little") + text + bytes(8)
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with open(path, "rb") as file, pytest.raises(ValueError, match=message):
        safetensors_stream.read_header(path, file)
