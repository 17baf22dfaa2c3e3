"""How many examples the fuzz tests of the extension try."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from sparsekern import _C

# The same examples in each run, so that a change is to blame for what fails.
settings.register_profile("few", max_examples=100, derandomize=True, deadline=None, database=None)
# New examples in each run, for `make fuzz`.
settings.register_profile("many", max_examples=600, deadline=None, print_blob=True)
settings.load_profile("few")

if "libasan" in os.environ.get("LD_PRELOAD", "") and "build/sanitize" not in _C.__file__:
    raise ImportError(f"expected the extension of `make sanitize`, found {_C.__file__}")


@pytest.fixture(scope="module", autouse=True)
def the_instruction_set_comes_back() -> Iterator[None]:
    """The tests here try all, and other tests compare what two processes compute."""
    before = _C.get_isa()
    yield
    _C.set_isa(before)
