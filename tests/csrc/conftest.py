"""How many examples the fuzz tests of the extension try."""

from hypothesis import settings

# The same examples in each run, so that a change is to blame for what fails.
settings.register_profile("few", max_examples=100, derandomize=True, deadline=None, database=None)
# New examples in each run, for `make fuzz`.
settings.register_profile("many", max_examples=1000, deadline=None, print_blob=True)
settings.load_profile("few")
