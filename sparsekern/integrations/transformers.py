"""Sparse training in the Trainer of Hugging Face: one callback."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from sparsekern.formats.checks import check_bool, describe
from sparsekern.integrations.plan import Plan
from sparsekern.methods import DynamicMethod
from sparsekern.methods.arguments import unwrapped_optimizer
from sparsekern.methods.attachment import KEY
from sparsekern.nn.report import SparsifyReport

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError(
        "sparsekern.integrations.transformers needs the package transformers: pip install transformers "
        f"accelerate ({error})"
    ) from error

__all__ = ["SparseTraining"]

# What Lightning's Trainer, whose callback is another one, asks a callback for first.
LIGHTNING = ("state_key", "setup", "on_exception")


class SparseTraining(TrainerCallback):
    """Trains a model sparsely: ``Trainer(model, callbacks=[SparseTraining(0.9, distribution="erk")])``.

    The model is made sparse by `sparsekern.sparsify_` when the Trainer is made, and the method is attached to
    the optimizer when training begins. The Trainer's checkpoints hold all of it, so that
    ``resume_from_checkpoint`` resumes exactly. ``load_best_model_at_end`` brings patterns back with weights.

    Statistics of each update go to ``trainer.state.log_history``, as ``sparsekern/`` and ``sparsity``,
    ``dropped``, ``grown``, ``drop_fraction``, ``exploration_rate``; to TensorBoard and the others only after
    :meth:`log_to`, since a callback does not know its Trainer.

    Parameters
    ----------
    sparsity : float, optional
        Fraction of zeros. Without it, and without `masks`, the model's layers are sparse already, as they
        must be where the Trainer gets `model_init` or an optimizer.
    method : str or type
        ``"static"``, ``"set"``, ``"rigl"``, ``"rigl_inverted"``, ``"snfs"``, or a subclass of
        `sparsekern.methods.DynamicMethod`.
    log : bool
        Whether statistics are logged.
    **options
        `distribution`, `pattern`, `block_size`, `storage`, `init`, `masks`, `filter_fn` and `generator` of
        `sparsekern.sparsify_`; all that `method` takes, as `update_every`; and `exclude`, the layers to leave
        dense, or those of a sparse model to leave as they are. Patterns and weights are drawn from `seed`.

    Attributes
    ----------
    method : DynamicMethod or None
        Attached when training begins, or at once to an optimizer that the Trainer is given.
    report : SparsifyReport or None
        Of the model that was made sparse.

    Raises
    ------
    TypeError, ValueError
        Here, for unknown options and those out of range. When the Trainer is made, for a model that is sparse
        although `sparsity` is given, or has nothing to make sparse; an optimizer made before; and FSDP and
        DeepSpeed, which spread Parameters over processes.
    """

    def __init__(
        self,
        sparsity: float | None = None,
        *,
        method: str | type[DynamicMethod] = "rigl",
        log: bool = True,
        **options: Any,
    ) -> None:
        self._plan = Plan(sparsity, method, dict(options))
        self._log = check_bool(log, "log")
        self._model: nn.Module | None = None
        self._trainer: Any = None
        self.method: DynamicMethod | None = None

    @property
    def report(self) -> SparsifyReport | None:
        """What `sparsify_` said; None before, and for a model that was sparse."""
        return self._plan.report

    def log_to(self, trainer: Any) -> None:
        """Let statistics go where the Trainer's own logs go, by its ``log``.

        Parameters
        ----------
        trainer : transformers.Trainer
            The one that has this callback.
        """
        if self not in getattr(getattr(trainer, "callback_handler", None), "callbacks", ()):
            raise ValueError(f"trainer must be the Trainer that has this callback, got {describe(trainer)}")
        self._trainer = trainer

    def on_init_end(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **others: Any
    ) -> None:
        for name in ("fsdp", "deepspeed"):
            if given := getattr(args, name, None):
                raise ValueError(
                    "args must leave Parameters whole, without FSDP and DeepSpeed, got "
                    f"{name}={describe(given)}"
                )
        if optimizer is not None and self._plan.converts:
            raise ValueError(
                f"optimizers must be left out where SparseTraining makes the model sparse, got "
                f"{type(optimizer).__name__} of the dense weights; or call sparsify_ before you make it, and "
                "leave sparsity out here"
            )
        self._plan.sparsify(model)
        self._model = model
        if optimizer is not None:
            self._attach(model, unwrapped_optimizer(optimizer))

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **others: Any
    ) -> None:
        if self._plan.converts and model is not self._model:
            late = (
                "add_callback is too late for that" if self._model is None else "model_init made another one"
            )
            raise ValueError(
                "model must be made sparse before its optimizer is made: give SparseTraining to "
                f"Trainer(callbacks=...), or call sparsify_ and leave sparsity out; {late}"
            )
        optimizer = unwrapped_optimizer(optimizer)
        if self.method is None or self.method.optimizer is not optimizer:
            self._attach(model, optimizer)
            self._resume(optimizer, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        metrics = self._plan.take_metrics() if self._log else {}
        if not metrics:
            return
        if self._trainer is not None:
            self._trainer.log(metrics)
        else:
            state.log_history.append({**metrics, "epoch": state.epoch, "step": state.global_step})

    def __getattr__(self, name: str) -> Any:
        if name in LIGHTNING:
            raise TypeError(
                "callbacks must have SparseTraining of sparsekern.integrations.lightning for this Trainer, "
                "got that of sparsekern.integrations.transformers"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    def _attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if self.method is not None:
            # Of an earlier model or optimizer.
            self.method.detach()
        self.method = self._plan.attach(model, optimizer)
        if any(layer.is_sharded for layer in self.method.layers):
            self.method.detach()
            raise ValueError("model must have whole Parameters, got those that FSDP2 sharded")
        optimizer.register_state_dict_post_hook(_add_to_group)
        optimizer.register_load_state_dict_post_hook(_take_from_group)

    def _resume(self, optimizer: torch.optim.Optimizer, steps: int) -> None:
        """Go on from the state that a checkpoint brought, which was loaded before the method was made."""
        states = _take_from_group(optimizer)
        if states:
            names = {layer.name for layer in self.method.layers}
            mine = [state for state in states if set(state.get("layers", ())) == names]
            self.method.load_state_dict((mine or states)[0])
        elif steps:
            warnings.warn(
                f"the checkpoint of step {steps:,} has no state of {type(self.method).__name__}, which "
                "counts from 0",
                stacklevel=2,
            )


def _add_to_group(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Save the methods' states in a parameter group too: of what an optimizer does not know, loading keeps
    only that. The Trainer makes the optimizer and loads it before any callback sees it."""
    first, *rest = state_dict["param_groups"]
    return (
        {**state_dict, "param_groups": [{**first, KEY: state_dict[KEY]}, *rest]}
        if KEY in state_dict
        else state_dict
    )


def _take_from_group(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return optimizer.param_groups[0].pop(KEY, [])
