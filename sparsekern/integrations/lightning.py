"""Sparse training in Lightning: one callback, for ``lightning.pytorch`` or ``pytorch_lightning``."""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any

import torch
from torch import nn

from sparsekern.formats.checks import check_bool, describe, is_integer
from sparsekern.integrations.plan import Plan
from sparsekern.methods import DynamicMethod
from sparsekern.nn import SparseLayer
from sparsekern.nn.report import SparsifyReport

__all__ = ["SparseTraining"]

# Strategies whose checkpoints hold neither whole weights nor all of an optimizer's state.
SHARDED = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")


def _callback_type() -> type:
    """That of the package which the script uses: the two have the same classes, and refuse each other's."""
    packages = ("lightning.pytorch", "pytorch_lightning")
    loaded = [package for package in packages if package in sys.modules]
    for package in [*loaded, *packages]:
        try:
            return importlib.import_module(package).Callback
        except ModuleNotFoundError as error:
            # Anything else that is not there is the package's own trouble.
            if error.name not in ("lightning", *packages):
                raise
    raise ImportError("sparsekern.integrations.lightning needs the package lightning: pip install lightning")


class SparseTraining(_callback_type()):  # type: ignore[misc]
    """Trains a LightningModule sparsely: ``Trainer(callbacks=[SparseTraining(0.9, distribution="erk")])``.

    The module is made sparse by `sparsekern.sparsify_` before its optimizer is made and before a checkpoint
    is loaded; the method is attached to the optimizer. Checkpoints hold all of it, so ``ckpt_path`` resumes
    exactly. A module that makes its layers in ``configure_model`` gets them sparse there. The averages of
    callbacks such as ``WeightAveraging``, listed after this one, follow the method. What is validated or
    tested becomes sparse with the checkpoint that is loaded, and stays as it is without one.

    Parameters
    ----------
    sparsity : float, optional
        Fraction of zeros. Without it, and without `masks`, the module's layers are sparse already.
    method : str or type
        ``"static"``, ``"set"``, ``"rigl"``, ``"rigl_inverted"``, ``"snfs"``, or a subclass of
        `sparsekern.methods.DynamicMethod`.
    optimizer : int, optional
        Index, in what ``configure_optimizers`` returns, of the optimizer that trains the layers; to be given
        where several train sparse layers. Those of the others stay on their patterns.
    log : bool
        Whether the statistics of each update go to the Trainer's loggers and to ``callback_metrics``, as
        ``sparsekern/`` and ``sparsity``, ``dropped``, ``grown``, ``drop_fraction``, ``exploration_rate``.
    **options
        `distribution`, `pattern`, `block_size`, `storage`, `init`, `masks`, `filter_fn` and `generator` of
        `sparsekern.sparsify_`; all that `method` takes, as `update_every`; and `exclude`, the layers to leave
        dense, or those of a sparse module to leave as they are. Patterns and weights are drawn from `seed`.

    Attributes
    ----------
    method : DynamicMethod or None
        Attached when fitting begins.
    report : SparsifyReport or None
        Of the module that was made sparse.

    Raises
    ------
    TypeError, ValueError
        Here, for unknown options and those out of range. When fitting begins, for a module that is sparse
        although `sparsity` is given, or has nothing to make sparse; an optimizer made before its module was
        sparse; several optimizers to choose from; and strategies that spread Parameters over processes.
    """

    def __init__(
        self,
        sparsity: float | None = None,
        *,
        method: str | type[DynamicMethod] = "rigl",
        optimizer: int | None = None,
        log: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        if optimizer is not None and (not is_integer(optimizer) or optimizer < 0):
            raise TypeError(f"optimizer must be the index of an optimizer, from 0, got {describe(optimizer)}")
        self._plan = Plan(sparsity, method, dict(options))
        self._optimizer = optimizer
        self._log = check_bool(log, "log")
        self._dense: set[str] = set()
        self._handle: Any = None
        self.method: DynamicMethod | None = None

    @property
    def report(self) -> SparsifyReport | None:
        """What `sparsify_` said; None before, and for a module that was sparse."""
        return self._plan.report

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        names = {base.__name__ for base in type(trainer.strategy).__mro__}
        if sharded := names.intersection(SHARDED):
            raise ValueError(
                f"strategy must be one that leaves Parameters whole, such as 'ddp', got {sharded.pop()}; "
                "call sparsify_ in configure_model, shard the module, and make the method in on_fit_start"
            )
        if self.report is not None and _is_sparse(pl_module):
            return  # since a stage before
        if stage != "fit":
            self._sparsify_with_checkpoint(pl_module)
        elif _overrides_configure_model(pl_module):
            _call_after_configure_model(pl_module, functools.partial(self._sparsify, pl_module))
        else:
            self._sparsify(pl_module)

    def on_init_end(self, *arguments: Any, **others: Any) -> None:
        """The first hook of Hugging Face's Trainer, whose callback is another one."""
        raise TypeError(
            "callbacks must have SparseTraining of sparsekern.integrations.transformers for this Trainer, "
            "got that of sparsekern.integrations.lightning"
        )

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        made_late = sorted(_convertible(pl_module) - self._dense) if self._plan.converts else []
        if made_late:
            raise ValueError(
                "model must have all its layers before setup, or make them in configure_model, got "
                f"{made_late[0]!r}, which came after the others were made sparse"
            )
        if self.method is not None:
            # Of an earlier fit, whose optimizer is not used any more.
            self.method.detach()
        optimizer, others = self._choose(trainer.optimizers, _sparse_weights(pl_module))
        self.method = self._plan.attach(pl_module, optimizer, others)
        for callback in trainer.callbacks:
            # Of WeightAveraging and StochasticWeightAveraging.
            average = getattr(callback, "_average_model", None)
            if isinstance(average, nn.Module):
                self._follow(average, callback)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        metrics = self._plan.take_metrics() if self._log else {}
        if not metrics:
            return
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        # Not by log_dict, which leaves out steps that log_every_n_steps passes over. Loggers count from 0.
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step - 1)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._forget_checkpoint()

    def _sparsify_with_checkpoint(self, module: nn.Module) -> None:
        """Once the state dict of a sparse module is loaded into one that is dense."""
        if not self._plan.converts or _is_sparse(module):
            return

        def before_loading(module: nn.Module, state_dict: dict[str, Any], *others: Any) -> None:
            self._forget_checkpoint()
            if any(key.endswith(".pattern") for key in state_dict):
                self._sparsify(module)

        self._handle = module.register_load_state_dict_pre_hook(before_loading)

    def _forget_checkpoint(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _sparsify(self, module: nn.Module) -> None:
        self._plan.sparsify(module)
        self._dense = _convertible(module)

    def _choose(
        self, optimizers: list[torch.optim.Optimizer], weights: dict[str, nn.Parameter]
    ) -> tuple[torch.optim.Optimizer, list[str]]:
        """The optimizer, and the sparse layers of the others."""
        if len(optimizers) == 1 and not self._optimizer:
            # A layer that it does not have is a mistake, which the method reports.
            return optimizers[0], []
        held = [{id(p) for group in o.param_groups for p in group["params"]} for o in optimizers]
        training = [i for i, ids in enumerate(held) if any(id(weight) in ids for weight in weights.values())]
        chosen = self._optimizer
        if chosen is None and len(training) == 1:
            chosen = training[0]
        if chosen not in training:
            rule = "optimizer must be the index of one that trains sparse layers"
            names = (
                ", ".join(f"{i} ({type(optimizers[i]).__name__})" for i in training) or "none of them does"
            )
            raise ValueError(f"{rule}, got {chosen} for {len(optimizers)} optimizers: {names}")
        return optimizers[chosen], [n for n, weight in weights.items() if id(weight) not in held[chosen]]

    def _follow(self, average: nn.Module, callback: Any) -> None:
        try:
            self.method.follow(average)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"callbacks must have SparseTraining before {type(callback).__name__}, which copies the "
                f"module as it is then: {error}"
            ) from error


def _is_sparse(module: nn.Module) -> bool:
    return any(isinstance(m, SparseLayer) for m in module.modules())


def _sparse_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    layers = ((name, m) for name, m in module.named_modules() if isinstance(m, SparseLayer))
    return {name: layer.stored_weight for name, layer in layers if layer.stored_weight.requires_grad}


def _convertible(module: nn.Module) -> set[str]:
    """Names of the layers of a type that `sparsify_` converts."""
    return {name for name, m in module.named_modules() if type(m) in (nn.Linear, nn.Conv2d)}


def _overrides_configure_model(module: nn.Module) -> bool:
    return type(module).configure_model.__qualname__ != "ModelHooks.configure_model"


def _call_after_configure_model(module: Any, then: functools.partial[None]) -> None:
    """Once, after the next call of ``configure_model``: no hook of a callback comes between that and the
    loading of a checkpoint."""

    def configure_model() -> None:
        del module.configure_model
        module.configure_model()
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            # Lightning calls it with other defaults, which are meant for new layers.
            with torch.device("cpu"):
                then()
        finally:
            torch.set_default_dtype(dtype)

    module.configure_model = configure_model
