"""`Pattern` as an object: it never changes, compares by content, and travels."""

import copy
import io
import pickle

import pytest
import torch
from safetensors.torch import load, save

from sparsekern.formats import Pattern


def make(seed=0, shape=(70, 90), sparsity=0.8, **options):
    return Pattern.random(shape, sparsity, generator=torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize("name", ["data", "shape", "nnz", "tile_size", "device", "something_new"])
def test_attributes_cannot_be_set_or_deleted(name):
    pattern = make()
    before = pattern.data.clone()
    with pytest.raises(AttributeError, match=f"a Pattern is immutable: '{name}' cannot be set"):
        setattr(pattern, name, 1)
    with pytest.raises(AttributeError, match=f"a Pattern is immutable: '{name}' cannot be deleted"):
        delattr(pattern, name)
    assert torch.equal(pattern.data, before)


def test_the_data_it_is_made_from_is_copied():
    data = make().data.clone()
    pattern = Pattern(data)
    data.zero_()
    pattern.validate()


def test_data_of_any_alignment_and_stride_is_taken():
    data = make().data
    shifted = torch.cat([torch.zeros(1, dtype=torch.int32), data])[1:]
    spread = torch.stack([data, data], dim=1)[:, 0]
    assert Pattern(shifted) == Pattern(spread) == make()


def test_equality_and_hash_follow_the_content():
    assert make(0) == make(0)
    assert hash(make(0)) == hash(make(0))
    assert make(0) != make(1)
    assert make(0).checksum() != make(1).checksum()
    assert len({make(0), make(0), make(1)}) == 2
    assert make() != "a pattern"


def test_the_shape_and_the_tile_size_belong_to_the_content():
    mask = torch.ones(8, 12, dtype=torch.bool)
    assert Pattern.from_mask(mask) != Pattern.from_mask(mask, tile_size=16)
    assert Pattern.from_mask(mask) != Pattern.from_mask(mask.view(8, 3, 2, 2))
    assert Pattern.from_mask(mask) != Pattern.from_mask(torch.ones(12, 8, dtype=torch.bool))


def test_the_checksum_fits_int64_and_sees_every_word():
    pattern = make(shape=(20, 30))
    checksums = {pattern.checksum()}
    assert all(-(2**63) <= value < 2**63 for value in checksums)
    for word in range(pattern.data.numel()):
        changed = Pattern(pattern.data)
        changed.data[word] ^= 1
        checksums.add(changed.checksum())
    assert len(checksums) == pattern.data.numel() + 1


def test_copies_are_the_pattern_itself():
    pattern = make()
    assert copy.copy(pattern) is pattern
    assert copy.deepcopy(pattern) is pattern
    assert copy.deepcopy({"a": [pattern]})["a"][0] is pattern


def test_pickle_and_torch_save():
    pattern = make(shape=(12, 7, 3, 3))
    assert pickle.loads(pickle.dumps(pattern)) == pattern
    buffer = io.BytesIO()
    torch.save(pattern.data, buffer)
    buffer.seek(0)
    assert Pattern(torch.load(buffer, weights_only=True)) == pattern


def test_safetensors():
    pattern = make(shape=(12, 7, 3, 3))
    # An odd number of bytes before it puts the data at an address that is no multiple of eight.
    stored = save({"a": torch.zeros(3, dtype=torch.uint8), "pattern": pattern.data})
    assert Pattern(load(stored)["pattern"]) == pattern


def test_to_the_device_it_is_on_is_itself():
    pattern = make()
    assert pattern.to("cpu") is pattern
    assert pattern.device == torch.device("cpu")


def test_it_cannot_move_to_the_meta_device():
    with pytest.raises(ValueError, match="cannot move to the meta device"):
        make().to("meta")


def test_repr_and_size():
    pattern = Pattern.from_mask(torch.eye(64, dtype=torch.bool))
    assert repr(pattern) == (
        "Pattern(shape=(64, 64), nnz=64, sparsity=0.9844, tile_size=64, num_tiles=1, device='cpu')"
    )
    # Header, two tile starts, four words for each of the four index sections, 64 offsets, 64 rows of 64 bits.
    assert pattern.nbytes == 64 + 16 + 4 * 16 + 128 + 512


def test_sections_are_views_of_the_data():
    pattern = make()
    storage = pattern.data.untyped_storage().data_ptr()
    for name in (
        "tile_start",
        "tile_row_ptr",
        "tile_col",
        "tile_ptr_t",
        "tile_order_t",
        "row_offset",
        "bits",
    ):
        assert getattr(pattern, name).untyped_storage().data_ptr() == storage


@pytest.mark.parametrize(
    ("tile_size", "dtype", "words"),
    [(8, torch.uint8, 1), (16, torch.int16, 1), (32, torch.int32, 1), (64, torch.int32, 2)],
)
def test_the_bits_have_the_dtype_of_their_row(tile_size, dtype, words):
    pattern = make(tile_size=tile_size)
    assert pattern.bits.dtype == dtype
    assert pattern.bits.shape == (pattern.num_tiles, tile_size, words)
    assert pattern.row_offset.shape == (pattern.num_tiles, tile_size)


class UsesItsPattern(torch.nn.Module):
    def __init__(self, pattern):
        super().__init__()
        self.pattern = pattern

    def forward(self, x):
        pattern = self.pattern
        rows, cols = pattern.matrix_shape
        scale = pattern.nnz / (rows * cols) + pattern.sparsity + pattern.tile_size
        return x * scale + pattern.data.sum() + pattern.tile_start.sum() + pattern.bits.sum()


def test_a_module_that_holds_one_compiles_as_one_graph_and_follows_a_new_one():
    module = UsesItsPattern(make(0))
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    x = torch.ones(3)
    assert torch.equal(compiled(x), module(x))
    module.pattern = make(1, sparsity=0.5)
    assert torch.equal(compiled(x), module(x))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [(70, 90), (20, 7, 3, 3)], ids=["linear", "conv"])
def test_on_a_gpu_everything_is_as_on_the_cpu(shape):
    here = make(shape=shape)
    there = here.to("cuda")
    assert there.device.type == "cuda"
    assert there.to("cpu") == there == Pattern(here.data.cuda()) == Pattern.from_mask(here.to_mask().cuda())
    dense = torch.randn(shape)
    values = here.pack(dense)
    other = make(1, shape=shape)
    there.validate()
    results = {
        "to_mask": (there.to_mask(), here.to_mask()),
        "pack": (there.pack(dense.cuda()), values),
        "unpack": (there.unpack(values.cuda()), here.unpack(values)),
        "transfer": (there.transfer(values.cuda(), other.to("cuda")), here.transfer(values, other)),
        "fan_in": (there.fan_in(), here.fan_in()),
        "fan_out": (there.fan_out(2), here.fan_out(2)),
        "value_rows": (there.value_rows(), here.value_rows()),
        "value_cols": (there.value_cols(), here.value_cols()),
    }
    for name, (found, expected) in results.items():
        assert found.device.type == "cuda", name
        assert torch.equal(found.cpu(), expected), name
