"""PyTorch's fused inference of transformer encoders, off while it would bypass layers of ours."""

from __future__ import annotations

from torch import nn

from sparsekern.nn.int8 import TwoFourLinearInt8
from sparsekern.nn.module import SparseModule
from sparsekern.nn.split_attention import SplitAttention

# The attribute of each class that lets it read ``linear1.weight``, ``linear2.weight`` and
# ``self_attn.in_proj_weight`` itself, past the forward of sparse and split layers, and its value for no.
SWITCHES = {
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
    nn.TransformerEncoder: ("use_nested_tensor", False),
}
UNREADABLE = (SparseModule, TwoFourLinearInt8, SplitAttention)
# Where a module keeps what the switch was.
BEFORE = "_fused_before_sparsify"


def leave_fused_paths(model: nn.Module) -> None:
    """Turns the switches off wherever they would bypass such a layer."""
    for module, switch, off in _switches(model):
        if getattr(module, switch, off) != off and _holds_unreadable(module):
            setattr(module, BEFORE, getattr(module, switch))
            setattr(module, switch, off)


def restore_fused_paths(model: nn.Module) -> None:
    """Undoes `leave_fused_paths` where no such layer is left."""
    for module, switch, _ in _switches(model):
        if hasattr(module, BEFORE) and not _holds_unreadable(module):
            setattr(module, switch, getattr(module, BEFORE))
            delattr(module, BEFORE)


def _switches(model: nn.Module) -> list[tuple[nn.Module, str, int]]:
    return [
        (module, switch, off)
        for module in model.modules()
        for kind, (switch, off) in SWITCHES.items()
        if isinstance(module, kind)
    ]


def _holds_unreadable(module: nn.Module) -> bool:
    return any(isinstance(inner, UNREADABLE) for inner in module.modules())
