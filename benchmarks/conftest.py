"""The option of ``pytest benchmarks`` that takes every shape and sparsity."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-shapes", action="store_true", help="every shape and sparsity, not one of each kind"
    )
