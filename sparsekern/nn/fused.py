"""PyTorch's fused inference of transformer encoders, off while they hold sparse layers."""

from __future__ import annotations

from torch import nn

from sparsekern.nn.module import SparseModule

# The attribute of each class that lets it read ``linear1.weight`` and ``linear2.weight`` itself, past the
# sparse layers' forward, and its value for no.
SWITCHES = {
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
    nn.TransformerEncoder: ("use_nested_tensor", False),
}
# Where a module keeps what the switch was.
BEFORE = "_fused_before_sparsify"


def leave_fused_paths(model: nn.Module) -> None:
    """Turns the switches off wherever they would bypass a sparse layer."""
    for module, switch, off in _switches(model):
        if getattr(module, switch, off) != off and _holds_sparse(module):
            setattr(module, BEFORE, getattr(module, switch))
            setattr(module, switch, off)


def restore_fused_paths(model: nn.Module) -> None:
    """Undoes `leave_fused_paths` where no sparse layer is left."""
    for module, switch, _ in _switches(model):
        if hasattr(module, BEFORE) and not _holds_sparse(module):
            setattr(module, switch, getattr(module, BEFORE))
            delattr(module, BEFORE)


def _switches(model: nn.Module) -> list[tuple[nn.Module, str, int]]:
    return [
        (module, switch, off)
        for module in model.modules()
        for kind, (switch, off) in SWITCHES.items()
        if isinstance(module, kind)
    ]


def _holds_sparse(module: nn.Module) -> bool:
    return any(isinstance(inner, SparseModule) for inner in module.modules())
