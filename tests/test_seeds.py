import subprocess
import sys

import torch

from sparsekern.seeds import derive_seed, generator


def test_seeds_are_the_same_in_every_process_and_version():
    # Python's hash() of a text differs from process to process; a run's seeds must not.
    program = "from sparsekern.seeds import derive_seed; print(derive_seed(0, 'init'))"
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert int(printed) == derive_seed(0, "init") == 1_391_976_149_099_393_129


def test_seeds_differ_by_seed_purpose_and_index():
    seeds = {derive_seed(s, p, i) for s in range(5) for p in ("init", "mask", "data") for i in range(5)}
    assert len(seeds) == 75
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_are_independent_of_the_global_one():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = torch.rand(5, generator=generator(1, "mask"))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, torch.rand(5, generator=generator(1, "mask")))
