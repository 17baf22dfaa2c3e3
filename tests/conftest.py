"""What holds for all tests."""

import gc
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.process_state import changes, process_state

# Nothing is downloaded: models are made from their configurations.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# torchvision's Python code registers fake implementations of these two operators of its extension.
OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def pytest_configure() -> None:
    """Makes torchvision importable beside a PyTorch for CPUs, for which PyPI's builds cannot load.

    They are for CUDA. Nothing here calls an operator of torchvision, but timm, transformers and torchmetrics
    import it as soon as it is installed, and that fails where the operators are not even declared.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None:
        return
    import torch

    try:
        for extension in Path(found.origin).parent.glob("_C*.so"):
            torch.ops.load_library(extension)
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for operator in OPERATORS:
            library.define(operator)
        # A library takes its operators with it when it goes.
        pytest_configure.library = library


def pytest_collection_finish() -> None:
    """Leave tens of thousands of test items to no garbage collection from here on: each would walk them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """A file of tests leaves the process as it found it: which files share one differs from run to run."""
    before = process_state()
    yield
    assert not (found := changes(before, process_state())), "the tests of this file leave: " + "; ".join(
        found
    )


@pytest.fixture
def forget_modules(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """forget_modules(*packages): they are imported anew in this test, and are as they were after it."""

    def forget(*packages: str) -> None:
        for name in [name for name in sys.modules if name.startswith(packages)]:
            parent, _, child = name.rpartition(".")
            # The parent's attribute as well, in which an import leaves the new module.
            if hasattr(sys.modules.get(parent), child):
                monkeypatch.delattr(sys.modules[parent], child)
            monkeypatch.delitem(sys.modules, name)

    return forget
