"""Masks that are learned: scores for all weights, trained straight through the choice of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparsekern.formats.checks import check_bool, check_choice, check_generator, check_sparsity
from sparsekern.methods.arguments import check_model as check_module
from sparsekern.methods.at_init.selection import check_finite, largest
from sparsekern.nn import SparsifyReport, sparsify_
from sparsekern.nn.checks import STORAGES, check_unwrapped
from sparsekern.nn.conversion import PatternConversion
from sparsekern.nn.distributions import DISTRIBUTIONS, Distribution, layer_counts
from sparsekern.nn.survey import check_any, check_model, check_replaceable, survey, tied_groups

__all__ = ["LearnedMask", "fix_learned_masks_", "learned_mask", "straight_through_"]

SCORES = ("edge_popup", "sigmoid")
RANKS = ("magnitude", "value")


def straight_through_(
    model: nn.Module,
    sparsity: float,
    scores: str = "edge_popup",
    *,
    rank: str = "magnitude",
    sample: bool = False,
    train_weights: bool = False,
    distribution: Distribution = "uniform",
    exclude: Iterable[str] = (),
    generator: torch.Generator | None = None,
) -> list[str]:
    r"""Gives every weight a score that decides whether it is there, and trains the scores, in place.

    .. math:: W = w \odot m(s), \qquad
              \frac{\partial L}{\partial s} = \frac{\partial L}{\partial W} \odot w \odot m'(s)

    - ``"edge_popup"``: m is 1 for the largest scores of a layer, exactly as many as `sparsity` and
      `distribution` leave it (ties to the lower index), and :math:`m' = 1`; ranked by :math:`|s|`, the
      gradient has the sign of s. Scores start from Kaiming's uniform distribution.
    - ``"sigmoid"``: m is 1 where :math:`\sigma(s) > 1/2` or, with `sample`, with probability
      :math:`\sigma(s)`, and :math:`m' = \sigma'(s) = \sigma(s) (1 - \sigma(s))`. How many are 1 is learned as
      well; `sparsity` is the expected one at the start.

    It is a parametrization of PyTorch's (`torch.nn.utils.parametrize`): layers stay ``nn.Linear`` and
    ``nn.Conv2d`` with a ``weight`` that anything may read, so any loop trains them; forward, subclasses'
    too, need no change; ``copy.deepcopy`` and state dicts have the scores. Make the optimizer afterwards.
    Products are dense until `fix_learned_masks_` makes sparse layers of them.

    Parameters
    ----------
    model : torch.nn.Module
        Layers are those that `sparsify_` would convert. Those that share a weight share the scores.
    sparsity : float
        Fraction of zeros in [0, 1) over all these layers; above 0 for ``"sigmoid"``.
    scores : str
        ``"edge_popup"`` or ``"sigmoid"``.
    rank : str
        For ``"edge_popup"``: ``"magnitude"`` ranks by :math:`|s|`, as the authors' code does,
        ``"value"`` by s, as their equation has it.
    sample : bool
        For ``"sigmoid"``: draw the mask anew whenever a training pass reads the weight, from torch's global
        generator; in evaluation mode it is the threshold's.
    train_weights : bool
        False freezes these layers' weights. Biases and all else go on training unless you freeze them.
    distribution : str
        ``"uniform"``, ``"er"`` or ``"erk"``, see `layer_sparsities`.
    exclude : names or glob patterns
        Layers to leave as they are.
    generator : torch.Generator, optional
        Source of the first scores, in module order; torch's global one by default.

    Returns
    -------
    list of str
        The names of the layers, those that share a weight included.

    Raises
    ------
    TypeError, ValueError
        For arguments out of range or without a meaning here, names that match nothing, and a model that
        `sparsify_` refuses or without a dense layer. Nothing has been changed then.

    References
    ----------
    Ramanujan et al., *What's hidden in a randomly weighted neural network?* (2020), edge-popup;
    ``utils/conv_type.py`` in allenai/hidden-networks. Zhou et al., *Deconstructing lottery tickets: zeros,
    signs, and the supermask* (2019), Section 5, sampled sigmoids.
    """
    sparsity = _check_options(sparsity, scores, rank, sample)
    check_bool(train_weights, "train_weights")
    check_choice(distribution, DISTRIBUTIONS, "distribution")
    check_generator(generator)
    check_model(model)
    check_replaceable(model, PatternConversion.types)
    found = survey(model, exclude, None, None)
    check_any(model, found)
    groups = tied_groups(found)
    if not groups:
        raise ValueError(
            f"model must have a dense layer, got {type(model).__name__}, whose layers are sparse"
        )
    weights = [group[0].module.weight for group in groups]
    shapes = [tuple(weight.shape) for weight in weights]
    counts = layer_counts(shapes, sparsity, distribution, [weight.numel() for weight in weights])
    for group, weight, count in zip(groups, weights, counts):
        mask = LearnedMask(weight, scores, count, rank=rank, sample=sample, generator=generator)
        weight.requires_grad_(train_weights)
        for entry in group:
            # Unchecked: the check would read the weight, and so draw a mask.
            parametrize.register_parametrization(entry.module, "weight", mask, unsafe=True)
    converted = {id(entry.module): entry.name for group in groups for entry in group}
    return [entry.name for entry in found if id(entry.module) in converted]


def _check_options(sparsity: Any, scores: Any, rank: Any, sample: Any) -> float:
    sparsity = check_sparsity(sparsity)
    check_choice(scores, SCORES, "scores")
    check_choice(rank, RANKS, "rank")
    check_bool(sample, "sample")
    if scores == "sigmoid" and rank != "magnitude":
        raise ValueError(f"rank must be left out unless scores='edge_popup', got {rank!r}")
    if scores == "edge_popup" and sample:
        raise ValueError("sample must be left out unless scores='sigmoid', got True")
    if scores == "sigmoid" and not sparsity:
        raise ValueError("sparsity must be above 0 with scores='sigmoid', which start from its logit, got 0")
    return sparsity


class LearnedMask(nn.Module):
    """``weight * mask``, the mask decided by scores that the gradient reaches straight through.

    Attributes
    ----------
    scores : nn.Parameter
        Of the weight's shape, dtype and device.
    kind : str
        ``"edge_popup"`` or ``"sigmoid"``.
    count : int
        Weights that edge-popup keeps.
    """

    def __init__(
        self,
        weight: nn.Parameter,
        kind: str,
        count: int,
        *,
        rank: str,
        sample: bool,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.kind, self.count, self.rank, self.sample = kind, count, rank, sample
        self.was_trained = weight.requires_grad
        self.scores = nn.Parameter(self._first_scores(weight, generator))

    def _first_scores(self, weight: Tensor, generator: torch.Generator | None) -> Tensor:
        # A layer without a zero begins with half a weight's worth of them, so that its logit is finite.
        probability = min(self.count, weight.numel() - 0.5) / weight.numel()
        if self.kind == "sigmoid" and self.sample:
            logit = math.log(probability / (1 - probability))
            return torch.full_like(weight, logit, requires_grad=False)
        device = "cpu" if generator is None else generator.device
        uniform = torch.rand(weight.shape, dtype=torch.float64, generator=generator, device=device)
        if self.kind == "sigmoid":
            # On an interval of length 2 around 0 of which the asked fraction is above it.
            uniform = 2 * (uniform - (1 - probability))
        else:
            # Kaiming's for a leaky ReLU of slope sqrt(5), as nn.Linear and nn.Conv2d have it.
            uniform = (2 * uniform - 1) / math.sqrt(weight[0].numel())
        return uniform.to(weight.device, weight.dtype)

    def forward(self, weight: Tensor) -> Tensor:
        if self.kind == "edge_popup":
            ranked = self.scores.abs() if self.rank == "magnitude" else self.scores
            return weight * _Choose.apply(ranked, self.count)
        probability = torch.sigmoid(self.scores)
        return weight * _Round.apply(probability, self.sample and self.training)

    @torch.no_grad()
    def mask(self) -> Tensor:
        """The mask that evaluation uses: bool, of the weight's shape."""
        if self.kind == "sigmoid":
            return torch.sigmoid(self.scores) > 0.5
        ranked = self.scores.abs() if self.rank == "magnitude" else self.scores
        return largest(ranked.flatten(), self.count).view(ranked.shape)

    def extra_repr(self) -> str:
        if self.kind == "sigmoid":
            return f"kind={self.kind}, sample={self.sample}"
        return f"kind={self.kind}, count={self.count}, rank={self.rank}"


class _Choose(torch.autograd.Function):
    """1 for the `count` largest scores, 0 for the others; the gradient passes as it is."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, count: int) -> Tensor:
        return largest(scores.flatten(), count).view(scores.shape).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Round(torch.autograd.Function):
    """1 where a probability is above one half, or drawn with it; the gradient passes as it is."""

    @staticmethod
    def forward(ctx: Any, probability: Tensor, sample: bool) -> Tensor:
        return torch.bernoulli(probability) if sample else (probability > 0.5).to(probability.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def fix_learned_masks_(model: nn.Module, *, storage: str = "compact") -> SparsifyReport:
    """Turns the layers of `straight_through_` into sparse ones with the masks that were learned, in place.

    They compute what the model computes in evaluation mode. Scores are gone, and the weights train if they
    did before `straight_through_`; make the optimizer afterwards.

    Parameters
    ----------
    model : torch.nn.Module
    storage : str
        ``"compact"`` or ``"masked"``, see `SparseLinear`.

    Returns
    -------
    SparsifyReport
        Of `sparsify_`.

    Raises
    ------
    TypeError, ValueError
        When `model` is no module, is wrapped in DDP or has no such layer, and for such a layer with another
        parametrization too or that `sparsify_` refuses. Nothing has been changed then.
    FloatingPointError
        When a score is NaN or infinite: names the layer.
    """
    check_module(model)
    check_unwrapped(model)
    check_choice(storage, STORAGES, "storage")
    layers = _learned_layers(model)
    if not layers:
        raise ValueError(
            f"model must have a layer of straight_through_, got {type(model).__name__} with none"
        )
    check_finite(
        {name: mask.scores.detach() for name, (_, mask) in layers.items()},
        "straight_through_",
        "lower the learning rate of the scores",
    )
    masks = {name: mask.mask() for name, (_, mask) in layers.items()}
    before = [_Parametrized(module) for module, _ in layers.values()]
    try:
        for module, mask in layers.values():
            _unparametrize(module, mask)
        return sparsify_(model, masks=masks, storage=storage)
    except BaseException:
        for layer in before:
            layer.put_back()
        raise


class _Parametrized:
    """A layer as `straight_through_` left it."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._type = type(module)
        self._steps = module.parametrizations
        self._trains = self._steps.weight.original.requires_grad

    def put_back(self) -> None:
        self._module._parameters.pop("weight", None)
        self._module.__class__ = self._type
        self._module._modules["parametrizations"] = self._steps
        self._steps.weight.original.requires_grad_(self._trains)


def _learned_layers(model: nn.Module) -> dict[str, tuple[nn.Module, LearnedMask]]:
    layers = {}
    for name, module in model.named_modules():
        if (mask := learned_mask(module)) is not None:
            layers[name] = module, mask
        elif parametrize.is_parametrized(module) and any(
            isinstance(step, LearnedMask) for step in module.parametrizations.modules()
        ):
            raise ValueError(
                f"model must have no parametrization beside the one of straight_through_, got layer {name!r} "
                "with several; torch.nn.utils.parametrize.remove_parametrizations takes others away"
            )
    return layers


def _unparametrize(module: nn.Module, mask: LearnedMask) -> None:
    weight = module.parametrizations.weight.original
    # Not remove_parametrizations: it takes the property from a class that copies of the layer share.
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module._modules["parametrizations"]
    module.register_parameter("weight", weight.requires_grad_(mask.was_trained))


def learned_mask(module: nn.Module) -> LearnedMask | None:
    """The mask of a layer of `straight_through_`, None for others."""
    if not parametrize.is_parametrized(module) or list(module.parametrizations) != ["weight"]:
        return None
    steps = list(module.parametrizations.weight)
    return steps[0] if len(steps) == 1 and isinstance(steps[0], LearnedMask) else None
