"""What the compiler makes of the launch configs, for three kinds of GPU that need not be here."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from benchmarks.compiled import compiled, listed
from sparsekern.kernels.configs import MAX_CONFIGS, SHARED_MEMORY

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1 is set: nothing can be compiled"
)
PRODUCTS = ("linear", "linear_grad_input", "linear_grad_values")
TWO_FOUR_PRODUCTS = tuple(f"two_four_{name}" for name in PRODUCTS)
MATRIX_INSTRUCTION = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}


#: Of the arithmetics beside bfloat16, what is made on its own: what multiplies.
MULTIPLY = (*PRODUCTS, *TWO_FOUR_PRODUCTS, "conv2d_nchw", "conv2d_grad_input_nchw", "conv2d_grad_values_nchw")


def best_guesses(entries):
    """The first config of each kernel in each form on Hopper; most types have compact values alone, as loads
    differ. On the others, what multiplies in bfloat16, and on Blackwell float32, whose registers are
    scarcest there."""
    first = {}
    for entry in entries:
        on_blackwell = (entry.capability, entry.arithmetic) == (100, "ieee")
        on_hopper = entry.capability == 90 and entry.arithmetic == "bf16"
        half = entry.arithmetic == "bf16" and not entry.config.narrow
        if on_hopper or ((on_blackwell or half or entry.capability == 90) and _is_its_own(entry)):
            key = (entry.capability, entry.arithmetic, entry.name, entry.storage, entry.config.narrow)
            first.setdefault(key, entry)
    return list(first.values())


def _is_its_own(entry):
    return entry.storage in ("compact", "two-four") and entry.name in MULTIPLY


@pytest.fixture(scope="module")
def resources():
    """What the best guesses take, compiled in two processes; all others are left to `make test-all`."""
    return list(compiled(best_guesses(listed())))


def check(rows):
    """Every row compiles, spills nothing and fits its chip; all that do not are named."""
    assert rows
    assert {str(row.entry): row.error for row in rows if row.error} == {}
    bad = {
        str(row.entry): (row.spilled, row.counts["STL"], row.counts["LDL"])
        for row in rows
        if row.spilled or row.counts["STL"] or row.counts["LDL"]
    }
    assert bad == {}
    too_large = [
        str(row.entry) for row in rows if row.shared > SHARED_MEMORY[row.entry.capability] or row.blocks < 1
    ]
    assert too_large == []


def test_nothing_spills_and_all_fits(resources):
    check(resources)


@pytest.mark.slow
@pytest.mark.parametrize("arithmetic", ["bf16", "fp16", "tf32", "ieee"])
@pytest.mark.parametrize("capability", [80, 90, 100], ids=lambda capability: f"sm_{capability}")
def test_no_config_at_all_spills(capability, arithmetic):
    check(list(compiled(listed((capability,), (arithmetic,)))))


@pytest.mark.parametrize(
    ("arithmetic", "capability"), [("bf16", 80), ("bf16", 90), ("bf16", 100), ("fp16", 90)]
)
def test_half_products_use_the_newest_tensor_cores(resources, arithmetic, capability):
    chosen = [
        row
        for row in resources
        if row.entry.name in PRODUCTS + TWO_FOUR_PRODUCTS
        and (row.entry.arithmetic, row.entry.capability) == (arithmetic, capability)
    ]
    instructions = {str(row.entry): row.instruction for row in chosen}
    assert {row.entry.name for row in chosen} == {*PRODUCTS, *TWO_FOUR_PRODUCTS}
    assert set(instructions.values()) == {MATRIX_INSTRUCTION[capability]}, instructions


def test_tf32_uses_tensor_cores_and_ieee_does_not(resources):
    for row in resources:
        if row.entry.name in PRODUCTS + TWO_FOUR_PRODUCTS and row.entry.arithmetic in ("tf32", "ieee"):
            assert row.instruction.startswith("FFMA") == (row.entry.arithmetic == "ieee"), row.entry


def test_bits_are_counted_by_one_instruction(resources):
    chosen = [
        row
        for row in resources
        if row.entry.storage == "compact" and row.entry.name in (*PRODUCTS, "pack", "unpack")
    ]
    assert [str(row.entry) for row in chosen if row.counts["POPC"] == 0] == []


def test_an_op_has_at_most_eight_configs_of_each_kind():
    """Of one arithmetic, storage and size class; the sizes of the catalog are four."""
    counts = {}
    for entry in listed():
        key = (
            entry.capability,
            entry.arithmetic,
            entry.storage,
            entry.name,
            entry.config.narrow,
            entry.config.samples,
        )
        counts[key] = counts.get(key, 0) + 1
    assert max(counts.values()) <= MAX_CONFIGS
