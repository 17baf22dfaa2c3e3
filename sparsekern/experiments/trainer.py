"""One training step after another, and the state that lets another process carry on at any of them."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sparsekern.experiments.data import BatchOrder, Dataset
from sparsekern.experiments.errors import CheckpointError, DivergedError
from sparsekern.experiments.evaluate import evaluate_batches
from sparsekern.experiments.gradients import Gradients
from sparsekern.experiments.layout import misfit
from sparsekern.experiments.loss import cross_entropy
from sparsekern.experiments.metrics import bits_of
from sparsekern.experiments.optimizer import build_optimizer
from sparsekern.experiments.recipe import Recipe
from sparsekern.experiments.updates import attach_method, prune_record, update_record
from sparsekern.formats import Pattern
from sparsekern.methods import PruningUpdate, UpdateStatistics
from sparsekern.nn import SparseLayer


class Trainer:
    """A network, its optimizer, the method that updates its masks, and its place in the run.

    A step's batch and learning rate are functions of the step, so ``state_dict`` holds no random state: a run
    that is stopped after any step and loaded by another process ends with the same weights, bit for bit,
    given the same number of threads.

    Parameters
    ----------
    model : nn.Module
        The network, trained in place.
    dataset : Dataset
        Moved to the network's device.
    recipe : Recipe
        Optimizer, schedule, method, batch size and data seed.
    before_update : callable, optional
        Called after an optimizer's step that an update of the masks follows, before the update.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        recipe: Recipe,
        before_update: Callable[[], None] | None = None,
    ) -> None:
        device = next(model.parameters()).device
        self.model = model.train()
        self.dataset = dataset.to(device)
        self.recipe = recipe
        self.optimizer = build_optimizer(model, recipe)
        # Hooks are called in the order they were registered in: these before the method's, which updates.
        if before_update is not None:
            self._call_before_update(before_update)
        self.gradients = Gradients(model, self.optimizer, self.dataset, recipe)
        self.method = attach_method(model, self.optimizer, self.dataset, recipe, self._note_update)
        self.gradients.follow(self.method)
        self.order = BatchOrder(len(dataset.train_labels), recipe.batch_size, recipe.seed_of("data"))
        #: Images or tokens, and labels, of a training step.
        self.batch = self.dataset.train_batches(self.order)
        self.step = recipe.first_step
        self.seconds = 0.0
        # Training steps that came with a mask update, and the metrics of the last one until they are read.
        self.update_steps: list[int] = []
        self._updates: list[dict[str, Any]] = []
        self._window = _Window(device)

    def train_step(self) -> None:
        """One step of the optimizer on the next batch."""
        started = time.perf_counter()
        rate = self.recipe.learning_rate_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        images, labels = self.batch(self.step)
        self.optimizer.zero_grad()
        logits = self.model(images)
        loss = cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        loss.backward()
        try:
            self.optimizer.step()
        except FloatingPointError as error:  # the method's, whose update would be of no use
            raise self._diverged(error) from None
        self._window.add(loss.detach(), logits.detach(), labels)
        self.step += 1
        self.seconds += time.perf_counter() - started

    def _call_before_update(self, function: Callable[[], None]) -> None:
        def after_step(*step: object) -> None:
            # The method counts this step later, in its own hook.
            if self.method is not None and self.method.next_update == self.method.steps + 1:
                function()

        self.optimizer.register_step_post_hook(after_step)

    def _note_update(self, statistics: UpdateStatistics | PruningUpdate) -> None:
        step = self.step + 1
        if isinstance(statistics, PruningUpdate):
            self._updates = [prune_record(statistics, step)]
        else:
            self._updates = [update_record(statistics, step), *self.gradients.change_records(step)]
        self.update_steps.append(step)

    def update_records(self) -> list[dict[str, Any]]:
        """Metrics of the mask update that came with the last step; none if there was none."""
        updates, self._updates = self._updates, []
        return updates

    def train_record(self) -> dict[str, Any]:
        """Metrics of the steps since the last call: their mean loss and accuracy, and how fast they went."""
        self.check_finite()
        started = time.perf_counter()
        window, self._window = self._window, _Window(self._window.loss.device)
        means = window.means()
        self.seconds += time.perf_counter() - started
        self._window.started = self.seconds
        return {
            "kind": "train",
            "step": self.step,
            "epoch": self.order.epochs(self.step),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            **means,
            **bits_of(self.recipe, means["loss"]),
            "seconds": self.seconds,
            "steps_per_second": window.steps / max(self.seconds - window.started, 1e-9),
        }

    def test_record(self) -> dict[str, Any]:
        """Loss and accuracy on the whole test set."""
        self.check_finite()
        loss, accuracy = evaluate_batches(self.model, self.dataset.test_batches())
        return {
            "kind": "test",
            "step": self.step,
            "loss": loss,
            "accuracy": accuracy,
            **bits_of(self.recipe, loss),
            "seconds": self.seconds,
        }

    def gradient_record(self) -> dict[str, Any]:
        """Norm of the gradient on the fixed examples."""
        self.check_finite()
        try:
            return self.gradients.record(self.step)
        except FloatingPointError as error:
            raise self._diverged(error) from None

    def check_finite(self) -> None:
        """Refuse to go on, or to save anything, once the loss is nan or infinite.

        Raises
        ------
        DivergedError
            Names the step and the learning rate.
        """
        if not torch.isfinite(self._window.loss):
            raise DivergedError(
                f"the loss became {self._window.loss.item()} in the {self._window.steps:,} steps before step "
                f"{self.step:,}: {self._hint()}"
            )

    def _diverged(self, error: FloatingPointError) -> DivergedError:
        return DivergedError(f"{error}: {self._hint()}")

    def _hint(self) -> str:
        return f"a learning_rate below {self.recipe.learning_rate:g} may help"

    def close(self) -> None:
        """Let go of the network and the data: nothing outside refers to the method, nothing reads ahead."""
        self.batch.close()
        if self.method is not None:
            self.method.detach()

    def state_dict(self) -> dict[str, Any]:
        """Everything another process needs to go on from here."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),  # with the method's
            "update_steps": list(self.update_steps),
            "window": self._window.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        Raises
        ------
        CheckpointError
            If ``state`` is not one of this network and optimizer; nothing is changed then.
        """
        if wrong := misfit(state, self._expected_state(state), "the trainer's state"):
            raise CheckpointError(wrong)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.seconds = state["seconds"]
        self.update_steps = list(state["update_steps"])
        self._window.load_state_dict(state["window"])

    def _expected_state(self, state: Any) -> dict[str, Any]:
        """What ``state`` must have the form of, given how far its run is."""
        expected = self.state_dict()
        if not isinstance(state, dict):
            return expected
        if state.get("step") != 0:
            expected["optimizer"]["state"] = self._optimizer_state_after_a_step()
        steps = state.get("update_steps")
        if isinstance(steps, list) and steps == sorted({step for step in steps if type(step) is int}):
            expected["update_steps"] = steps
        model = state.get("model")
        for name, layer in self.model.named_modules():
            key = f"{name}.pattern"
            if isinstance(layer, SparseLayer) and isinstance(model, dict) and key in model:
                fewer = self.recipe.prunes
                expected["model"][key] = _other_form(model[key], layer.pattern, fewer)
        return expected

    def _optimizer_state_after_a_step(self) -> dict[int, Any]:
        """An optimizer holds nothing before its first step: the form is that of a twin which took one."""
        groups = [
            {**group, "params": [torch.zeros_like(parameter) for parameter in group["params"]]}
            for group in self.optimizer.param_groups
        ]
        for group in groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        twin = type(self.optimizer)(groups)
        twin.step()
        return twin.state_dict()["state"]


def _other_form(data: Any, pattern: Pattern, fewer: bool) -> torch.Tensor:
    """``data`` if it is a pattern of the same weight, else the pattern's own.

    Tiles may be others and, with ``fewer``, the number of weights may be below the pattern's.
    """
    try:
        found = Pattern(data)
    except (TypeError, ValueError, RuntimeError):
        return pattern.data
    fits = found.nnz <= pattern.nnz if fewer else found.nnz == pattern.nnz
    return found.data if found.shape == pattern.shape and fits else pattern.data


class _Window:
    """Sums over the steps since the last record, kept on the device: reading them is what waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.examples = 0
        self.steps = 0
        self.started = 0.0

    def add(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        self.loss += loss.double() * labels.numel()
        self.correct += (logits.argmax(-1) == labels).sum()
        self.examples += labels.numel()
        self.steps += 1

    def means(self) -> dict[str, float]:
        examples = max(self.examples, 1)
        return {"loss": self.loss.item() / examples, "accuracy": self.correct.item() / examples}

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.loss.device
        for name, value in state.items():
            setattr(self, name, value.to(device) if isinstance(value, torch.Tensor) else value)
