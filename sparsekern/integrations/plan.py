"""What a callback is asked for: how the model becomes sparse, and which method moves it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from sparsekern import seeds
from sparsekern.formats.checks import check_choice, check_generator, describe
from sparsekern.methods import SET, SNFS, DynamicMethod, RigL, RigLInverted, Static, UpdateStatistics
from sparsekern.methods.options import Options
from sparsekern.nn import SparseLayer, sparsify_
from sparsekern.nn.checks import near_names
from sparsekern.nn.conversion import PatternConversion
from sparsekern.nn.report import SparsifyReport

__all__ = ["Plan"]

METHODS = {"static": Static, "set": SET, "rigl": RigL, "rigl_inverted": RigLInverted, "snfs": SNFS}
# What `sparsify_` takes beside the sparsity, with its defaults; `exclude` is there in any case.
CONVERSION = {
    "distribution": "uniform",
    "pattern": "unstructured",
    "block_size": None,
    "storage": "compact",
    "init": "keep",
    "masks": None,
    "filter_fn": None,
    "generator": None,
}


class Plan:
    """Options of `sparsify_` and of a method, checked before there is a model.

    Parameters
    ----------
    sparsity : float or None
        None, and no masks: the model is sparse already.
    method : str or type
        A key of `METHODS`, or a subclass of `DynamicMethod`.
    options : dict
        Those of `sparsify_` and of the method, by name.

    Attributes
    ----------
    report : SparsifyReport or None
        Of the model that was made sparse.

    Raises
    ------
    TypeError, ValueError
        For options that neither has, or that are out of range.
    """

    def __init__(self, sparsity: float | None, method: Any, options: dict[str, Any]) -> None:
        self._method = _checked_method(method)
        self._sparsity = sparsity
        self.converts = sparsity is not None or options.get("masks") is not None
        self._conversion = {name: options.pop(name) for name in list(options) if name in CONVERSION}
        self._exclude = _checked_names(options.pop("exclude", ()))
        self._on_update = options.pop("on_update", None)
        self._options = options
        self._latest: UpdateStatistics | None = None
        self.report: SparsifyReport | None = None
        self._check_method_options()
        self._check_conversion()

    def sparsify(self, model: nn.Module) -> None:
        """Make the model sparse, unless it is to be so already.

        Raises
        ------
        ValueError
            For a model that is sparse where it should be dense, or the other way round; and as `sparsify_`.
        """
        is_sparse = any(isinstance(module, SparseLayer) for module in model.modules())
        if not self.converts:
            if not is_sparse:
                raise ValueError(
                    f"sparsity must be given for a model without sparse layers, got None and a dense "
                    f"{type(model).__name__}"
                )
            return
        if is_sparse:
            raise ValueError(
                "sparsity and masks must be left out for a model that is sparse already and taken as it is, "
                f"got them for a sparse {type(model).__name__}"
            )
        # All processes draw the same: a DDP wrapper would send weights to the others, but no patterns.
        drawn_from = seeds.generator(int(self._options.get("seed", 0)), "mask")
        given = {name: value for name, value in self._conversion.items() if value is not None}
        conversion = {"generator": drawn_from, **given}
        self.report = sparsify_(model, self._sparsity, exclude=self._exclude, **conversion)

    def attach(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, others: Iterable[str] = ()
    ) -> DynamicMethod:
        """The method, on the optimizer.

        Parameters
        ----------
        others : names
            Sparse layers that the method is not for.
        """
        excluded = [*others] if self.converts else [*self._exclude, *others]
        self._latest = None
        return self._method(model, optimizer, exclude=excluded, on_update=self._keep, **self._options)

    def take_metrics(self) -> dict[str, float]:
        """The statistics of the last update, by name; empty where there was none since the last call."""
        latest, self._latest = self._latest, None
        if latest is None:
            return {}
        layers = latest.layers.values()
        nnz, numel = (sum(getattr(layer, count) for layer in layers) for count in ("nnz", "numel"))
        metrics = {
            "sparsity": 1 - nnz / numel,
            "dropped": latest.dropped,
            "grown": latest.grown,
            "drop_fraction": latest.drop_fraction,
            "exploration_rate": latest.exploration_rate,
        }
        return {f"sparsekern/{name}": value for name, value in metrics.items()}

    def _keep(self, statistics: UpdateStatistics) -> None:
        self._latest = statistics
        if self._on_update is not None:
            self._on_update(statistics)

    def _check_method_options(self) -> None:
        allowed = _keywords(self._method)
        for name in self._options:
            if name not in allowed:
                hint = near_names(name, [*allowed, *CONVERSION, "exclude", "on_update"])
                raise TypeError(
                    f"options must be those of sparsify_ and of {self._method.__name__}, got {name!r}{hint}"
                )
        if self._on_update is not None and not callable(self._on_update):
            raise TypeError(
                f"on_update must be a function of the update's statistics, got {describe(self._on_update)}"
            )
        # A class of the user's may have other defaults.
        if self._method in METHODS.values():
            defaults = inspect.signature(DynamicMethod.__init__).parameters
            names = [*(field.name for field in fields(Options)), "holdout"]
            Options.checked(**{name: self._options.get(name, defaults[name].default) for name in names})

    def _check_conversion(self) -> None:
        if not self.converts:
            for name, value in self._conversion.items():
                if value is not None:
                    raise ValueError(
                        f"{name} must be left out without sparsity, where the model is sparse already, got "
                        f"{describe(value)}"
                    )
            return
        given = {**CONVERSION, **self._conversion}
        check_choice(given["pattern"], ("unstructured", "block"), "pattern")
        filter_fn = given.pop("filter_fn")
        if filter_fn is not None and not callable(filter_fn):
            raise TypeError(f"filter_fn must be callable, got {describe(filter_fn)}")
        check_generator(given["generator"])
        PatternConversion(self._sparsity, given.pop("masks"), **given)


def _checked_names(exclude: Any) -> tuple[str, ...]:
    """Names or patterns, which are looked for in the model once it is there."""
    if not isinstance(exclude, Iterable):
        raise TypeError(f"exclude must be names or glob patterns of modules, got {describe(exclude)}")
    return (exclude,) if isinstance(exclude, str) else tuple(exclude)


def _checked_method(method: Any) -> type[DynamicMethod]:
    if isinstance(method, type) and issubclass(method, DynamicMethod):
        return method
    rule = f"method must be {', '.join(map(repr, METHODS))} or a subclass of DynamicMethod"
    if not isinstance(method, str):
        raise TypeError(f"{rule}, got {describe(method)}")
    if method not in METHODS:
        raise ValueError(f"{rule}, got {method!r}{near_names(method, METHODS)}")
    return METHODS[method]


def _keywords(method: type) -> set[str]:
    """The options of a class and of those that it passes the rest to."""
    inits = [vars(base)["__init__"] for base in method.__mro__[:-1] if "__init__" in vars(base)]
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [p for init in inits for p in inspect.signature(init).parameters.values()]
    return {p.name for p in parameters if p.kind in kinds} - {"self", "model", "optimizer"}
