"""What holds for all tests."""

import gc


def pytest_collection_finish() -> None:
    """Leave tens of thousands of test items to no garbage collection from here on: each would walk them."""
    gc.collect()
    gc.freeze()
