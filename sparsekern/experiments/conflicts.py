"""Keys of a recipe that are right one by one and wrong together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsekern.experiments.keys import step_of
from sparsekern.experiments.models import DATA_OF, SMALL_DENSE
from sparsekern.experiments.settings import DENSE_METHODS, TWO_FOUR_METHODS

if TYPE_CHECKING:
    from sparsekern.experiments.recipe import Recipe


def find_conflict(recipe: Recipe) -> str:
    """One line about the first conflict, or nothing.

    Keys that the recipe's method does not use are left alone, so that one recipe serves many methods.
    """
    if recipe.method == "small_dense" and recipe.model not in SMALL_DENSE:
        return (
            f"method small_dense needs a model with a Small-Dense twin ({', '.join(SMALL_DENSE)}), "
            f"got model {recipe.model}"
        )
    if recipe.method == "static" and recipe.masks and not recipe.sparsity:
        return f"masks must be left out with sparsity 0, which trains the dense network, got {recipe.masks}"
    checks = (_conflict_of_data, _conflict_of_optimizer, _conflict_of_span, _conflict_of_masks)
    if conflict := next(filter(None, (check(recipe) for check in checks)), ""):
        return conflict
    if recipe.prunes:
        return _conflict_of_pruning(recipe)
    return _conflict_of_updates(recipe) if recipe.updates_masks else ""


def _conflict_of_data(recipe: Recipe) -> str:
    known = DATA_OF[recipe.model]
    if recipe.dataset in known:
        return ""
    return f"dataset must be {' or '.join(known)} with model {recipe.model}, got {recipe.dataset}"


def _conflict_of_optimizer(recipe: Recipe) -> str:
    if recipe.schedule == "step" and recipe.milestones is None:
        return "milestones must be given with schedule step, which falls there, got none"
    if step_of(recipe.warmup_steps, recipe.steps) >= recipe.steps:
        return (
            f"warmup_steps must be below steps, {recipe.steps:,}, for the learning rate to be reached, "
            f"got {_shown(recipe.warmup_steps)}"
        )
    if recipe.optimizer == "sgd" and recipe.nesterov and not recipe.momentum:
        return "nesterov needs a momentum above 0, got 0"
    return ""


def _conflict_of_span(recipe: Recipe) -> str:
    if recipe.first_step >= recipe.steps:
        return f"first_step must be below steps, {recipe.steps:,}, got {recipe.first_step:,}"
    if recipe.first_step and (recipe.prunes or recipe.updates_masks):
        return (
            f"first_step must be 0 with method {recipe.method}, which counts its own steps, "
            f"got {recipe.first_step:,}"
        )
    if recipe.keep_step is not None and not recipe.first_step < recipe.keep_step <= recipe.steps:
        return (
            f"keep_step must be above first_step, {recipe.first_step:,}, and at most steps, "
            f"{recipe.steps:,}, got {recipe.keep_step:,}"
        )
    return ""


def _conflict_of_pruning(recipe: Recipe) -> str:
    if not recipe.sparsity:
        return (
            f"method {recipe.method} needs a sparsity above 0, got 0 (method dense trains the dense network)"
        )
    if recipe.masks or recipe.at_init:
        given = "masks" if recipe.masks else "at_init"
        return f"{given} must be left out with method {recipe.method}, which starts with the dense network"
    if not recipe.prune_begin < recipe.prune_end <= recipe.steps:
        return (
            f"prune_end must be above prune_begin, {recipe.prune_begin:,}, and at most steps, "
            f"{recipe.steps:,}, got {recipe.prune_end:,}"
        )
    return ""


def _conflict_of_masks(recipe: Recipe) -> str:
    if recipe.at_init is None or recipe.method in (*DENSE_METHODS, *TWO_FOUR_METHODS):
        return ""
    if recipe.masks:
        return f"at_init must be left out with masks, which are ready ones, got {recipe.at_init}"
    if not recipe.sparsity:
        return (
            f"at_init must be left out with sparsity 0, which trains the dense network, got {recipe.at_init}"
        )
    if recipe.dataset == "text" and recipe.at_init not in ("random", "magnitude"):
        return (
            f"at_init must be random or magnitude with dataset text, whose examples have no classes, "
            f"got {recipe.at_init}"
        )
    if recipe.at_init_scope == "global" and recipe.distribution != "uniform":
        return (
            f"distribution must be left at uniform with at_init_scope global, where layers have no share of "
            f"their own, got {recipe.distribution}"
        )
    return ""


def _conflict_of_updates(recipe: Recipe) -> str:
    if not recipe.sparsity:
        return (
            f"method {recipe.method} needs a sparsity above 0, got 0 (sparsity 0 trains the dense network, "
            "as method dense does)"
        )
    if recipe.update_every >= recipe.steps:
        return (
            f"update_every must be below steps, {recipe.steps:,}, for method {recipe.method} to update its "
            f"masks, got {recipe.update_every:,}"
        )
    if recipe.update_every == 1 and recipe.update == "replaces_step":
        return "update_every must be at least 2 with update replaces_step, which leaves no step else, got 1"
    if recipe.stop_at is None:
        if recipe.drop_schedule == "cosine":
            return "stop_at must be given with drop_schedule cosine, which falls to 0 there, got none"
        return ""
    if recipe.last_update <= recipe.update_every:
        return (
            f"stop_at must be above update_every, {recipe.update_every:,}, for method {recipe.method} to "
            f"update its masks, got {_shown(recipe.stop_at)}"
        )
    if recipe.drop_schedule == "cosine" and recipe.last_update > recipe.steps:
        return (
            f"stop_at must be at most steps, {recipe.steps:,}, with drop_schedule cosine, "
            f"got {_shown(recipe.stop_at)}"
        )
    return ""


def _shown(value: int | str) -> str:
    return value if isinstance(value, str) else f"{value:,}"
