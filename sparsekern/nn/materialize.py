"""Memory and first contents for the tensors of a model that are on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sparsekern.formats.checks import describe
from sparsekern.nn.module import SparseModule

ResetFn = Callable[[nn.Module], Any]
# What modules call the method that writes their first contents; the second is `nn.MultiheadAttention`'s.
RESETS = ("reset_parameters", "_reset_parameters")


def check_device(device: Any) -> torch.device:
    """A device that holds contents and is there, with its index."""
    rule = "device must be one that holds contents, such as 'cpu' or 'cuda:0'"
    if not isinstance(device, (str, int, torch.device)) or isinstance(device, bool):
        raise TypeError(f"{rule}, got {describe(device)}")
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{rule}, got {str(device)!r}: {why}") from None
    if found.type == "meta":
        raise ValueError(f"{rule}, got {str(device)!r}")
    return found


def tensors_on_meta(module: nn.Module) -> dict[str, Tensor]:
    """The module's own parameters and buffers on meta, by name; not those of modules in it."""
    own = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in own.items() if tensor is not None and tensor.is_meta}


class Materialization:
    """New tensors in the place of those on meta, one for each, so that what was shared stays shared.

    Parameters
    ----------
    model : torch.nn.Module
    device : torch.device
        Where the new tensors are.
    reset_fn : callable (module), optional
        Writes first contents in place of ``reset_parameters()``, but for sparse layers.
    leave : collection of torch.nn.Module
        Modules of the model that are not looked at.

    Attributes
    ----------
    modules : dict from str to torch.nn.Module
        Those that have tensors on meta, inner ones first, as constructors make them.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        reset_fn: ResetFn | None = None,
        leave: Collection[nn.Module] = (),
    ) -> None:
        left = {id(module) for module in leave}
        self.modules = {
            name: module
            for name, module in _inner_first(model)
            if id(module) not in left and tensors_on_meta(module)
        }
        self._device = device
        self._reset_fn = reset_fn
        # By the identity of the old ones, which `_old` keeps alive.
        self._new: dict[int, Tensor] = {}
        self._old: list[Tensor] = []
        self._written: set[int] = set()
        self._undo: list[tuple[nn.Module, str, Tensor]] = []

    def check(self, resets: Collection[str]) -> None:
        """Raise ValueError for lazy modules, and for those of the names that nothing gives contents."""
        for module in self.modules.values():
            if any(is_lazy(tensor) for tensor in tensors_on_meta(module).values()):
                raise ValueError(
                    f"model must have initialized modules, got {self._named(module)}, a lazy one that has not"
                    " run yet"
                )
        without = [self.modules[name] for name in resets if self._reset_of(self.modules[name]) is None]
        if without:
            some = ", ".join(f"{self._named(m)} with {' and '.join(tensors_on_meta(m))}" for m in without[:5])
            more = f", and {len(without) - 5} more" if len(without) > 5 else ""
            raise ValueError(
                "model must have a method reset_parameters on every module with tensors on meta, got none on"
                f" {some}{more}: define it, pass reset_fn, or build these modules on a real device"
            )

    def _named(self, module: nn.Module) -> str:
        name = next(name for name, other in self.modules.items() if other is module)
        return (
            f"{name!r} ({type(module).__name__})" if name else f"the model itself ({type(module).__name__})"
        )

    def tensor(self, old: Tensor) -> Tensor:
        """The new tensor for one on meta: its shape, dtype, flags and attributes; uninitialized."""
        if id(old) not in self._new:
            new = _empty(old, self._device)
            if isinstance(old, nn.Parameter):
                new = nn.Parameter(new, requires_grad=old.requires_grad)
            new.__dict__.update(old.__dict__)
            self._new[id(old)] = new
            self._old.append(old)
        return self._new[id(old)]

    def zeros(self, old: nn.Parameter | None) -> nn.Parameter | None:
        """As `tensor`, with zeros; what is not on meta as it is."""
        if old is None or not old.is_meta:
            return old
        new = self.tensor(old)
        new.data.zero_()
        self._written.add(id(new))
        return new

    def fill(self, resets: Collection[str]) -> None:
        """Puts new tensors in all places, and lets the modules of these names write their first contents.

        A tensor that several modules share is written by the first of them, and what was not on meta by
        none: the others meet one on meta in its place, which takes no memory.

        Raises
        ------
        ValueError
            When a tensor has nothing written to it. Whatever is raised, also by `reset_fn` and the modules,
            all is on meta again then.
        """
        try:
            for module in self.modules.values():
                self._allocate(module)
            # What modules make anew is on this device as well.
            with torch.no_grad(), self._device:
                for name in resets:
                    self._reset(self.modules[name])
        except BaseException:
            while self._undo:
                setattr(*self._undo.pop())
            raise

    def _allocate(self, module: nn.Module) -> None:
        for name, old in tensors_on_meta(module).items():
            self._undo.append((module, name, old))
            setattr(module, name, self.tensor(old))  # which recurrent layers follow
        if isinstance(module, SparseModule):
            module.to(self._device)  # for its mask: the weight is there

    def _reset_of(self, module: nn.Module) -> Callable[[], Any] | None:
        if self._reset_fn is not None and not isinstance(module, SparseModule):
            return lambda: self._reset_fn(module)
        methods = (getattr(module, name, None) for name in RESETS)
        return next((method for method in methods if callable(method)), None)

    def _reset(self, module: nn.Module) -> None:
        new = {id(tensor) for tensor in self._new.values()} - self._written
        held = [
            (slots, key, tensor)
            for slots in (module._parameters, module._buffers)
            for key, tensor in slots.items()
            if tensor is not None
        ]
        due = {key: tensor for _, key, tensor in held if id(tensor) in new}
        if not due:
            return
        others = [(slots, key, tensor) for slots, key, tensor in held if key not in due]
        for slots, key, tensor in others:
            slots[key] = _twin_on_meta(tensor)
        try:
            self._write(module, due)
        finally:
            for slots, key, tensor in others:
                slots[key] = tensor

    def _write(self, module: nn.Module, due: dict[str, Tensor]) -> None:
        for tensor in due.values():
            tensor.data.fill_(_mark(tensor))
        versions = {key: tensor._version for key, tensor in due.items()}
        self._reset_of(module)()
        for key, tensor in due.items():
            # Writing through ``.data`` is not counted, so contents decide where the count has not moved.
            if tensor._version == versions[key] and _slot(module, key) is tensor and _is_untouched(tensor):
                by = "reset_parameters" if self._reset_fn is None else "reset_fn"
                raise ValueError(
                    f"{by} must write all tensors of a module, got {self._named(module)}, whose {key!r} it "
                    "leaves as it was"
                )
            self._written.add(id(tensor))


def _inner_first(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules with their names, each once and after those in it, as constructors make them."""
    seen: set[int] = set()

    def walk(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        seen.add(id(module))
        for key, child in module._modules.items():
            if child is not None and id(child) not in seen:
                yield from walk(f"{name}.{key}" if name else key, child)
        yield name, module

    return walk("", model)


def _empty(tensor: Tensor, device: torch.device) -> Tensor:
    # `torch.empty_like` of what is on meta imports hundreds of modules first.
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device)


def _twin_on_meta(tensor: Tensor) -> Tensor:
    twin = _empty(tensor, torch.device("meta"))
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(twin, requires_grad=tensor.requires_grad) if is_parameter else twin


def _slot(module: nn.Module, name: str) -> Tensor | None:
    return module._parameters.get(name, module._buffers.get(name))


def _mark(tensor: Tensor) -> float | int | bool:
    """What nobody starts from: it tells which tensors were left as they were."""
    if tensor.is_floating_point() or tensor.is_complex():
        return float("nan")
    return True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max


def _is_untouched(tensor: Tensor) -> bool:
    mark = _mark(tensor)
    return tensor.numel() > 0 and bool((tensor.isnan() if mark != mark else tensor == mark).all())
