"""Files with other bytes than were written: the same contents are read, or a documented error comes."""

import copy
import gzip
import json
import struct

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsekern as sk
from sparsekern.experiments.checkpoint import read_checkpoint, save_checkpoint
from sparsekern.experiments.data.idx import read_idx
from sparsekern.experiments.digest import digest
from sparsekern.experiments.errors import CheckpointError, DataError
from sparsekern.formats import Pattern

# The same examples in each run.
few = settings(max_examples=50, derandomize=True, deadline=None, database=None)
generators = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def damaged(generator, content, times=8):
    """Copies with some bytes changed, left out, repeated or added, near the front as often as anywhere."""
    for _ in range(times):
        data = bytearray(content)
        for _ in range(generator.integers(1, 4)):
            if not data:
                break
            at = int(
                generator.integers(generator.choice([min(len(data), size) for size in (32, 600, len(data))]))
            )
            kind = generator.integers(6)
            if kind == 0:
                data[at] ^= 1 << int(generator.integers(8))
            elif kind == 1:
                data[at] = generator.choice([0, 1, 0x7F, 0x80, 0xFF, ord("9"), ord('"'), ord("[")])
            elif kind == 2:
                size = int(generator.choice([1, 4, 8]))
                data[at : at + size] = int(generator.choice([0, 1, 255])).to_bytes(1, "big") * size
            elif kind == 3:
                del data[at : at + int(generator.integers(1, 20))]
            elif kind == 4:
                data[at:at] = data[at : at + int(generator.integers(1, 20))]
            else:
                data = data[: max(at, 1)] if generator.random() < 0.3 else data + bytes(at % 9)
        yield bytes(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


def outcome(errors, function, *arguments):
    """What a call returns, and how it is refused."""
    try:
        return function(*arguments), None
    except errors as error:
        return None, error


def read_all(generator, path, content, read, errors, same):
    """Every damaged copy is read as one of `errors` or as contents of which `same` holds."""
    for data in damaged(generator, content):
        path.write_bytes(data)
        result, error = outcome(errors, read, path)
        assert path.name in str(error) if error else same(result)


@few
@given(generators)
def test_checkpoints(folder, generator):
    path = folder / "run.checkpoint"
    pattern = Pattern.random((20, 30), 0.9, generator=torch.Generator().manual_seed(0))
    state = {
        "step": 3,
        "model": {"layer.pattern": pattern.data, "layer.values": torch.arange(60.0)},
        "name": "run",
    }
    save_checkpoint(path, state)
    expected = digest(state)
    read_all(
        generator,
        path,
        path.read_bytes(),
        read_checkpoint,
        CheckpointError,
        lambda it: digest(it) == expected,
    )


@few
@given(generators, st.booleans(), st.sampled_from((1, 3)))
def test_idx(folder, generator, compressed, rank):
    """The format has no checksum: elements may be others, their number not."""
    shape = (5, 4, 3)[:rank]
    elements = generator.integers(0, 256, shape, np.uint8)
    content = bytes([0, 0, 8, rank]) + struct.pack(f">{rank}I", *shape) + elements.tobytes()
    content = gzip.compress(content) if compressed else content
    path = folder / "images.idx"
    read_all(
        generator, path, content, lambda path: read_idx(path, rank), DataError, lambda it: it.dim() == rank
    )


@pytest.mark.parametrize("shape", [(0, 2**32 - 1, 2**32 - 1), (2**32 - 1,) * 3, (2**32 - 1, 0, 2**32 - 1)])
def test_idx_of_impossible_sizes(tmp_path, shape):
    path = tmp_path / "images.idx"
    path.write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">3I", *shape))
    with pytest.raises(DataError, match=r"images\.idx: expected .* found"):
        read_idx(path, 3)


@few
@given(generators, st.sampled_from(("masks.safetensors", "masks.pt")))
def test_masks(folder, generator, name):
    path = folder / name
    mask = torch.from_numpy(generator.random((12, 20)) < 0.3)
    sk.methods.save_masks({"first": mask, "second": Pattern.from_mask(mask[:7])}, path)

    def same(masks):
        # Names are no part of what safetensors checks, and two bytes may exchange positions.
        return all(isinstance(name, str) and pattern.validate() is None for name, pattern in masks.items())

    read_all(generator, path, path.read_bytes(), sk.methods.load_masks, ValueError, same)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(40, 24), torch.nn.ReLU(), torch.nn.Linear(24, 8))
    sk.sparsify_(model, sparsity=0.8, exclude=["2"])
    return model


@few
@given(generators)
def test_models(folder, model, generator):
    """What is refused changes nothing; what is loaded has the model's layers, with valid patterns."""
    path = folder / "model.safetensors"
    sk.export.save_safetensors(model, path)
    loaded = copy.deepcopy(model)
    before = {key: tensor.clone() for key, tensor in loaded.state_dict().items()}
    for data in damaged(generator, path.read_bytes()):
        path.write_bytes(data)
        _, error = outcome(ValueError, sk.export.load_safetensors, loaded, path)
        if error:
            assert path.name in str(error)
            state = loaded.state_dict()
            assert all(torch.equal(state[key].nan_to_num(), before[key].nan_to_num()) for key in before)
        else:
            loaded[0].pattern.validate()
            assert loaded(torch.ones(2, 40)).shape == (2, 8)
            loaded = copy.deepcopy(model)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["0", "0.values", "0.pattern", "x"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["0", "x", "0.values"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@few
@given(st.sampled_from(("version", "layers", "aliases")), json_values)
def test_headers_of_models(folder, model, key, value):
    """Any JSON in the header is refused, unless it means the same."""
    path = folder / "header.safetensors"
    sk.export.save_safetensors(model, path)
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["sparsekern"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    right = dict(header)
    header[key] = value
    path.write_bytes(safetensors.torch.save(tensors, {"sparsekern": json.dumps(header)}))
    _, error = outcome(ValueError, sk.export.load_safetensors, copy.deepcopy(model), path)
    if error:
        assert "header.safetensors: expected" in str(error)
    else:
        assert key == "aliases" or value == right[key]


@few
@given(generators)
def test_pattern_data(generator):
    """Any int32 tensor is a pattern, and then writes the same words, or a ValueError."""
    words = Pattern.random((40, 50), 0.9, generator=torch.Generator().manual_seed(1)).data.numpy()
    for data in damaged(generator, words.tobytes()):
        data = torch.from_numpy(np.frombuffer(data[: len(data) // 4 * 4], np.int32).copy())
        pattern, error = outcome(ValueError, Pattern, data)
        if error:
            assert str(error).startswith("pattern: ")
        else:
            again = Pattern.from_mask(pattern.to_mask(), tile_size=pattern.tile_size)
            assert torch.equal(again.data, data) or pattern.num_tiles > again.num_tiles
