"""Callbacks for the training loops of others; none of their packages is imported before it is asked for.

``sparsekern.integrations.lightning`` is for Lightning's Trainer, ``sparsekern.integrations.transformers`` for
that of Hugging Face. Each has a ``SparseTraining``, which makes the model sparse and attaches a method.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["lightning", "transformers"]


def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
