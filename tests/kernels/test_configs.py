"""The choice of launch configs: rules that hold for any problem, without a GPU and without compiling."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from sparsekern.kernels import configs
from sparsekern.kernels.configs import (
    MAX_CONFIGS,
    NARROW_SAMPLES,
    SHARED_MEMORY,
    Config,
    Problem,
    padded,
    product_configs,
    sum_configs,
)

LARGE = Problem(
    op="linear",
    samples=8192,
    outputs=64,
    steps=64,
    tile_size=64,
    element_size=2,
    precision="half",
    complete=True,
    paired=True,
    full=False,
    capability=90,
    processors=132,
)
PRECISIONS = {"half": 2, "tf32": 4, "ieee": 4}
SIZES = [(1, 1, 1), (16, 64, 64), (64, 128, 12), (65, 5, 3), (512, 48, 12), (8192, 64, 64), (16384, 128, 128)]


def problems():
    """Problems of all kinds: sizes, precisions, chips and patterns."""
    for capability, processors in ((80, 108), (86, 84), (89, 142), (90, 132), (100, 148), (120, 170)):
        for precision, element_size in PRECISIONS.items():
            for samples, outputs, steps in SIZES:
                for complete, paired, full in (
                    (True, True, False),
                    (False, True, True),
                    (False, False, False),
                ):
                    for tile_size in (8, 32, 64):
                        yield Problem(
                            "linear",
                            samples,
                            outputs,
                            steps,
                            tile_size,
                            element_size,
                            precision,
                            complete,
                            paired,
                            full,
                            capability,
                            processors,
                        )


def both(problem):
    return product_configs(problem), sum_configs(replace(problem, steps=0))


def test_every_problem_has_one_to_eight_configs_and_no_two_are_equal():
    for problem in problems():
        for found in both(problem):
            assert 1 <= len(found) <= MAX_CONFIGS, problem
            assert len(set(found)) == len(found), problem


def test_blocks_fit_the_shared_memory_of_the_chip():
    for problem in problems():
        limit = SHARED_MEMORY.get(problem.capability, 99 << 10)
        products, sums = both(problem)
        assert all(configs._shared_bytes(config, problem) <= limit for config in products), problem
        no_steps = replace(problem, steps=0)
        assert all(configs._shared_bytes(config, no_steps) <= limit for config in sums), problem


def test_pairs_of_tiles_need_a_pattern_whose_tiles_come_in_pairs():
    assert any(config.group == 2 for config in product_configs(LARGE))
    assert any(config.group == 2 for config in sum_configs(replace(LARGE, steps=0)))
    for problem in problems():
        if not problem.paired:
            assert all(config.group == 1 for found in both(problem) for config in found), problem


@pytest.mark.parametrize("samples", [1, 15, 16, 17, 63, NARROW_SAMPLES])
def test_few_samples_are_the_columns_and_padded_to_a_power_of_two(samples):
    found = product_configs(replace(LARGE, samples=samples))
    assert all(config.narrow for config in found)
    assert {config.samples for config in found} == {padded(1 << (samples - 1).bit_length())}


def test_many_samples_are_the_rows():
    assert not any(config.narrow for config in product_configs(replace(LARGE, samples=NARROW_SAMPLES + 1)))


@pytest.mark.parametrize("samples", [1, 16, 64])
def test_few_samples_are_split_until_programs_fill_the_chip_four_times(samples):
    problem = replace(LARGE, samples=samples, outputs=16, steps=1024)
    first = product_configs(problem)[0]
    assert 4 * problem.processors - problem.outputs < first.splits * problem.outputs <= 4 * problem.processors


@pytest.mark.parametrize("samples", [65, 256, 1024])
def test_wide_blocks_that_are_too_few_are_split_and_enough_ones_are_not(samples):
    problem = replace(LARGE, samples=samples, outputs=4, steps=4096)
    for config in product_configs(problem):
        programs = -(-samples // config.samples) * -(-problem.outputs // config.group)
        assert config.splits == max(1, min(64, problem.processors // programs))


def test_sums_over_many_samples_are_split_until_programs_fill_the_chip_twice():
    problem = replace(LARGE, samples=1 << 20, outputs=16, steps=0)
    for config in sum_configs(problem):
        programs = -(-problem.outputs // config.group**2)
        assert config.splits == min(64, 2 * problem.processors // programs)


def test_no_sum_has_more_parts_than_steps():
    for problem in problems():
        assert all(1 <= config.splits <= problem.steps for config in product_configs(problem)), problem
        for config in sum_configs(replace(problem, steps=0)):
            assert config.splits <= max(1, problem.samples // config.samples), problem


def test_the_best_guess_has_a_program_for_each_multiprocessor_where_some_config_has():
    for problem in problems():
        found = product_configs(problem)
        if not found[0].narrow and any(configs._programs(c, problem) >= problem.processors for c in found):
            assert configs._programs(found[0], problem) >= problem.processors, problem


def test_inputs_come_two_stages_later_where_a_tile_has_to_be_found_first():
    blocks = replace(LARGE, complete=False)
    assert product_configs(blocks)[0] == replace(
        product_configs(LARGE)[0], stages=product_configs(LARGE)[0].stages + 2
    )


def test_older_chips_leave_registers_for_operands():
    for problem in problems():
        if problem.capability < 90:
            largest = 256 if problem.element_size == 2 else 128
            assert all(c.narrow or c.samples * c.group <= largest for c in product_configs(problem)), problem


def test_ieee_float32_has_no_block_that_triton_computes_in_tf32_on_blackwell():
    blackwell = replace(LARGE, element_size=4, precision="ieee", capability=100)
    assert max(config.samples for config in product_configs(blackwell)) == 32
    assert product_configs(replace(blackwell, capability=90))[0].samples == 64


@pytest.mark.parametrize(("size", "least"), [(1, 16), (8, 16), (16, 16), (17, 17), (64, 64)])
def test_padded(size, least):
    assert padded(size) == least


def test_configs_are_names_of_problems_and_can_be_kept_by_them():
    assert len({LARGE: 1, replace(LARGE): 2, replace(LARGE, samples=1): 3}) == 2
    assert Config(64, 1, 4, 3) == Config(64, 1, 4, 3, splits=1)


@pytest.mark.parametrize(("capability", "found"), [(80, "ieee"), (90, "ieee"), (100, "tf32x3")])
def test_convolutions_in_ieee_float32_are_not_left_to_tf32(capability, found):
    with configs.assumed_limits(capability, 132):
        assert configs.settled_precision("ieee", torch.device("cpu")) == found
        assert configs.settled_precision("tf32", torch.device("cpu")) == "tf32"
        assert configs.settled_precision("half", torch.device("cpu")) == "half"
