"""The compiled extension: threads, instruction sets, and what its entry points refuse."""

import os
import subprocess
import sys

import pytest
import torch

from sparsekern import native
from sparsekern.formats import Pattern


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
    )


def test_threads_follow_torch():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert native.threads() == 3
    finally:
        torch.set_num_threads(before)


def test_torch_and_the_extension_share_one_openmp_runtime():
    code = """
from sparsekern import native
libraries = {line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line or "libiomp" in line}
print(len(libraries), libraries)
"""
    result = run_python(code)
    assert result.stdout.startswith("1 "), result.stdout + result.stderr


def test_a_missing_extension_says_how_to_build_it():
    result = run_python("import sys; sys.modules['sparsekern._C'] = None; import sparsekern.native")
    assert result.returncode == 1
    assert "ImportError: sparsekern's compiled extension sparsekern._C cannot be imported" in result.stderr
    assert "`pip install -e .`" in result.stderr


def test_portable_code_is_always_there():
    levels = native.isa_levels()
    assert levels[0] == "portable"
    assert levels == [level for level in ("portable", "avx2", "avx512") if level in levels]


def test_isa_is_restored_also_after_an_error():
    before = native._C.get_isa()
    with native.isa("portable"):
        assert native._C.get_isa() == "portable"
    assert native._C.get_isa() == before
    with pytest.raises(ZeroDivisionError), native.isa("portable"):
        raise ZeroDivisionError
    assert native._C.get_isa() == before


def test_an_unknown_isa_changes_nothing():
    before = native._C.get_isa()
    with pytest.raises(ValueError, match=r"level must be one of portable.* on this machine, got 'sse9'"):
        native.set_isa("sse9")
    assert native._C.get_isa() == before


def test_the_environment_variable_sets_the_isa():
    result = run_python(
        "from sparsekern import native; print(native._C.get_isa())", SPARSEKERN_ISA="portable"
    )
    assert result.stdout.strip() == "portable", result.stderr


def test_a_wrong_environment_variable_is_named():
    result = run_python("import sparsekern.native", SPARSEKERN_ISA="mmx")
    assert "ValueError: the environment variable SPARSEKERN_ISA must be one of portable" in result.stderr


PATTERN = Pattern.random((20, 30), 0.5, generator=torch.Generator().manual_seed(0))
DENSE = torch.zeros(20, 30)
VALUES = torch.zeros(PATTERN.nnz)
COUNTS = torch.zeros(1000, dtype=torch.int64)
WORDS = (PATTERN.data.data_ptr(), PATTERN.data.numel())
DENSE_AT = DENSE.data_ptr()
VALUES_AT = VALUES.data_ptr()
COUNTS_AT = COUNTS.data_ptr()

REFUSED = {
    "validate_words": ("validate", (WORDS[0], WORDS[1] - 4, 1), "words, but the data holds"),
    "validate_null": ("validate", (0, 100, 1), "the data must hold at least"),
    "validate_alignment": ("validate", (WORDS[0] + 4, WORDS[1], 1), "the data must be aligned to 8 bytes"),
    "validate_threads": ("validate", (*WORDS, 0), "threads: expected at least 1"),
    "to_mask_elements": ("to_mask", (*WORDS, DENSE_AT, 599, 1), "mask must hold 600 elements, got 599"),
    "pack_dense": (
        "pack",
        (*WORDS, DENSE_AT, 601, VALUES_AT, 300, 4, 1),
        "dense must hold 600 elements, got 601",
    ),
    "pack_values": ("pack", (*WORDS, DENSE_AT, 600, VALUES_AT, 299, 4, 1), "values must hold 300 elements"),
    "pack_element_size": ("pack", (*WORDS, DENSE_AT, 600, VALUES_AT, 300, 3, 1), "1, 2, 4 or 8 bytes, got 3"),
    "pack_threads": (
        "pack",
        (*WORDS, DENSE_AT, 600, VALUES_AT, 300, 4, -1),
        "threads: expected at least 1, got -1",
    ),
    "unpack_dense": (
        "unpack",
        (*WORDS, VALUES_AT, 300, DENSE_AT, 0, 4, 1),
        "dense must hold 600 elements, got 0",
    ),
    "transfer_to": (
        "transfer",
        (*WORDS, VALUES_AT, 300, *WORDS, VALUES_AT, 301, 4, 1),
        "to_values must hold 300 elements, got 301",
    ),
    "fan_in": ("fan_in", (*WORDS, COUNTS_AT, 30, 1), "counts must hold 20 elements, got 30"),
    "fan_out": ("fan_out", (*WORDS, 2, COUNTS_AT, 30, 1), "counts must hold 60 elements, got 30"),
    "fan_out_groups": ("fan_out", (*WORDS, 3, COUNTS_AT, 90, 1), "groups must divide the 20 rows, got 3"),
    "value_rows": ("value_rows", (*WORDS, COUNTS_AT, 301, 1), "out must hold 300 elements, got 301"),
    "value_cols": ("value_cols", (*WORDS, COUNTS_AT, 299, 1), "out must hold 300 elements, got 299"),
    "mask_elements": (
        "mask_builder",
        (DENSE_AT, 599, (20, 30), 8, False, 1),
        "mask must hold 600 elements, got 599",
    ),
    "mask_tile_size": (
        "mask_builder",
        (DENSE_AT, 600, (20, 30), 24, False, 1),
        "tile_size must be 8, 16, 32 or 64",
    ),
    "mask_shape": ("mask_builder", (DENSE_AT, 600, (20, 30, 1), 8, False, 1), "2 or 4 dimensions, got 3"),
    "random_count": (
        "random_builder",
        ((20, 30), 601, 1, 0, 8, 1),
        "count must be between 0 and 600, got 601",
    ),
    "random_block": (
        "random_builder",
        ((20, 30), 1, 0, 0, 8, 1),
        "block_size must be between 1 and 65536, got 0",
    ),
    "random_rows": ("random_builder", ((2**31, 30), 1, 1, 0, 8, 1), "rows must be between 1 and 2147483647"),
    "random_cols": ("random_builder", ((2, 2**20, 64, 64), 1, 1, 0, 8, 1), "columns must be between 1"),
    "random_threads": ("random_builder", ((20, 30), 1, 1, 0, 8, 0), "threads: expected at least 1"),
}


@pytest.mark.parametrize(("function", "arguments", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_pattern_functions_refuse_sizes_that_do_not_fit(function, arguments, message):
    assert PATTERN.nnz == 300
    with pytest.raises(ValueError, match=message):
        getattr(native._C.pattern, function)(*arguments)


def test_transfer_refuses_other_shapes_and_tile_sizes():
    for other, message in [
        (Pattern.random((30, 20), 0.5), "the two patterns must have the same shape"),
        (Pattern.random((20, 30), 0.5, tile_size=64), "the two patterns must have the same tile size"),
    ]:
        words = (other.data.data_ptr(), other.data.numel())
        with pytest.raises(ValueError, match=message):
            native._C.pattern.transfer(*WORDS, VALUES_AT, 300, *words, VALUES_AT, 300, 4, 1)


def test_a_builder_refuses_a_buffer_of_another_size():
    builder = native._C.pattern.random_builder((20, 30), 300, 1, 0, 8, 1)
    data = torch.empty(builder.words + 4, dtype=torch.int32)
    with pytest.raises(ValueError, match=f"data must hold {builder.words} words, got {data.numel()}"):
        builder.fill(data.data_ptr(), data.numel(), 1)
    with pytest.raises(ValueError, match="data must be aligned to 8 bytes"):
        builder.fill(data.data_ptr() + 4, builder.words, 1)
