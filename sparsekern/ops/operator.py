"""`Operator`: one op as PyTorch sees it, from its schema, its fake implementation and its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _has_storage, _len_torch_dispatch_stack
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling
from torch.nn import Parameter

from sparsekern.backends import select

__all__ = ["PLAIN", "Operator", "library"]

library = torch.library.Library("sparsekern", "DEF")


# What the eager way takes, if it has memory. Subclasses (fake tensors, DTensor) and the meta device go
# through the dispatcher, and so do batched gradients (``is_grads_batched=True``), which have none: it runs
# the op on one at a time.
PLAIN = frozenset((Tensor, Parameter))


def _function(name: str, **methods: Callable[..., Any]) -> type[torch.autograd.Function]:
    namespace = {key: staticmethod(method) for key, method in methods.items()}
    return type(f"{name}_function", (torch.autograd.Function,), namespace)


# By the arguments' names; all others have the dtype of the first.
_DTYPES = {
    **dict.fromkeys(("pattern", "source", "target"), torch.int32),
    **dict.fromkeys(("metadata", "metadata_t"), torch.uint8),
    **dict.fromkeys(("scale", "x_scale"), torch.float32),
    "quantized": torch.int8,
}


def _check_dtypes(tensors: dict[str, Tensor | None]) -> None:
    """Raise for a tensor of another dtype than its name says: a registered op is called by anyone."""
    first = next(iter(tensors))
    for name, tensor in tensors.items():
        expected = _DTYPES.get(name, tensors[first].dtype)
        if tensor is not None and tensor.dtype != expected:
            raise TypeError(f"{name} must have dtype {expected}, got {tensor.dtype}")


class Operator:
    """An op in the namespace ``torch.ops.sparsekern``, callable with the arguments of its schema.

    The registered op is what ``torch.compile``, ``torch.export`` and fake tensors see. Plain tensors in eager
    mode take an `autograd.Function` built from the same pieces, which is cheaper than the way through the
    dispatcher: a training step of LeNet-5 makes fifteen such calls.

    Parameters
    ----------
    schema : str
        As `torch.library.define` takes it; the last argument is ``str backend``. The first argument is the
        tensor whose device and dtype choose the backend.
    fake : callable
        Shape and dtype of the result, from the same arguments.
    save : callable
        ``save(ctx, inputs, output)``: keeps what the gradient needs.
    backward : callable
        ``backward(ctx, grad)``, with a grad for each result: one gradient (or None) for each argument.
    ran : callable, optional
        ``ran(arguments, result)``: called after every run on real tensors, in whatever way it was called.
    inputs : int, optional
        How many of the leading arguments the backends take; the others are for the gradient. All by default.
    prefer : callable, optional
        ``prefer(*arguments)``: the backend to take where none is named, ``""`` for the first that can run.
    run : callable, optional
        Computes the result from the same arguments, in place of the backends' function of the op's name.
    """

    def __init__(
        self,
        schema: str,
        *,
        fake: Callable[..., Tensor | tuple[Tensor, ...]],
        save: Callable[[Any, tuple[Any, ...], Any], None],
        backward: Callable[..., tuple[Tensor | None, ...]],
        ran: Callable[[tuple[Any, ...], Any], None] | None = None,
        inputs: int | None = None,
        prefer: Callable[..., str] | None = None,
        run: Callable[..., Any] | None = None,
    ) -> None:
        name = schema.partition("(")[0]
        self.name = name

        def selected(*arguments: Any) -> Any:
            first, backend = arguments[0], arguments[-1]
            if prefer is not None and not backend:
                backend = prefer(*arguments)
            return select(name, first.dtype, first.device, backend)(*arguments[:-1][:inputs])

        compute = selected if run is None else run

        def kernel(*arguments: Any) -> Any:
            result = compute(*arguments)
            if ran is not None:
                ran(arguments, result)
            return result

        self._kernel = kernel
        declared = schema.partition("(")[2].partition(") ->")[0].split(", ")
        tensors = {i: text.split()[-1] for i, text in enumerate(declared) if text.startswith("Tensor")}
        self._tensor_positions = tuple(tensors)

        def registered_kernel(*arguments: Any) -> Any:
            _check_dtypes({argument: arguments[i] for i, argument in tensors.items()})
            return kernel(*arguments)

        library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(name, registered_kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(f"sparsekern::{name}", fake, lib=library)
        torch.library.register_autograd(f"sparsekern::{name}", backward, setup_context=save, lib=library)
        self._registered = getattr(torch.ops.sparsekern, name).default

        # With a separate setup_context, PyTorch binds the arguments by inspecting signatures at every call.
        def forward(ctx: Any, *arguments: Any) -> Any:
            output = kernel(*arguments)
            save(ctx, arguments, output)
            return output

        eager = _function(name, forward=forward, backward=backward)
        # `Function.apply` without its own preparations for torch.func, which comes another way.
        self._eager = super(torch.autograd.Function, eager).apply
        # torch.func can only transform the other kind; without a jvp it refuses forward mode.
        self._transformed = _function(name, forward=kernel, setup_context=save, backward=backward)

    def __call__(self, *arguments: Any) -> Any:
        if is_dynamo_compiling() or _len_torch_dispatch_stack() > 0 or torch.jit.is_tracing():
            return self._registered(*arguments)
        if _are_functorch_transforms_active():
            return self._transformed.apply(*arguments)
        for position in self._tensor_positions:
            tensor = arguments[position]
            if tensor is None:
                continue
            if type(tensor) not in PLAIN or not _has_storage(tensor) or tensor.is_meta:
                return self._registered(*arguments)
        if not torch.is_grad_enabled() and forward_ad._current_level < 0:
            return self._kernel(*arguments)  # as in a backward pass: nothing is recorded
        return self._eager(*arguments)
