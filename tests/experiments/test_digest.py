import math

import pytest
import torch

from sparsekern.experiments.digest import digest

CONTENTS = {
    "number": 1,
    "another number": 2,
    "float": 1.0,
    "text": "1",
    "none": None,
    "list": [1],
    "nested list": [[1]],
    "two entries": [1, 2],
    "dictionary": {1: 2},
    "tensor": torch.tensor([1, 2]),
    "other shape": torch.tensor([[1, 2]]),
    "other dtype": torch.tensor([1, 2], dtype=torch.int32),
    "other value": torch.tensor([1, 3]),
    "last bit": torch.tensor([math.pi]),
    "last bit off": torch.tensor([math.pi]).nextafter(torch.tensor(4.0)),
}


def test_contents_that_differ_have_different_digests():
    assert len({digest(content) for content in CONTENTS.values()}) == len(CONTENTS)


@pytest.mark.parametrize("name", CONTENTS)
def test_the_same_content_has_the_same_digest(name):
    content = CONTENTS[name]
    again = content.clone() if isinstance(content, torch.Tensor) else content
    assert digest({"x": again}) == digest({"x": content})


def test_memory_layout_does_not_count():
    matrix = torch.arange(6).view(2, 3)
    assert digest(matrix.T) == digest(matrix.T.contiguous())
