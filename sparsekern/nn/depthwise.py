"""Which convolutions are depthwise."""

from __future__ import annotations

from torch import nn

from sparsekern.nn.conv import SparseConv2d
from sparsekern.nn.two_four_conv import TwoFourConv2d


def is_depthwise(module: nn.Module) -> bool:
    """Whether a module is a convolution each of whose outputs reads one of several channels; dense or sparse.

    An output of such a layer has as few weights as its kernel has positions, 9 for one of 3 x 3, so a random
    pattern of 90 % leaves more than a third of the outputs without any; and all of them together are
    few. To leave them dense: ``sparsify_(model, 0.9, filter_fn=lambda module, name: not
    is_depthwise(module))``.

    Parameters
    ----------
    module : torch.nn.Module
        Of any kind.

    Returns
    -------
    bool
        False for what is no convolution, and for one input channel.
    """
    kinds = (nn.Conv2d, SparseConv2d, TwoFourConv2d)
    return isinstance(module, kinds) and module.groups == module.in_channels > 1
