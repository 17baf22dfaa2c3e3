"""`PlainOperator`: an op on lists of tensors that has no gradient, as PyTorch sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _len_torch_dispatch_stack
from torch.compiler import is_dynamo_compiling

from sparsekern.backends import select
from sparsekern.ops.operator import library

__all__ = ["PlainOperator"]


class PlainOperator:
    """An op in the namespace ``torch.ops.sparsekern`` without a gradient, called as its schema says.

    The counterpart of `Operator` for what moves or chooses whole sets of tensors. Its results never require a
    gradient.

    Parameters
    ----------
    schema : str
        As `torch.library.define` takes it. The first argument is a list of tensors that is not empty; the
        first of them chooses the backend. The last one is ``str backend``.
    fake : callable
        Shapes and dtypes of the results, from the same arguments.
    """

    def __init__(self, schema: str, *, fake: Callable[..., list[Tensor]]) -> None:
        name = schema.partition("(")[0]
        self.name = name

        def kernel(*arguments: Any) -> list[Tensor]:
            first = arguments[0][0]
            return select(name, first.dtype, first.device, arguments[-1])(*arguments[:-1])

        self._kernel = kernel
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(name, kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(f"sparsekern::{name}", fake, lib=library)
        self._registered = getattr(torch.ops.sparsekern, name).default

    @torch.no_grad()
    def __call__(self, *arguments: Any) -> list[Tensor]:
        if is_dynamo_compiling() or _len_torch_dispatch_stack() > 0 or torch.jit.is_tracing():
            return self._registered(*arguments)
        # Fake tensors outside their mode, other subclasses, and those that have no contents.
        first = arguments[0][0]
        is_plain = type(first) in (Tensor, torch.nn.Parameter) and not first.is_meta
        if not is_plain or _are_functorch_transforms_active():
            return self._registered(*arguments)
        return self._kernel(*arguments)
