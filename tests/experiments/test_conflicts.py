import pytest

from sparsekern.experiments.errors import RecipeError
from sparsekern.experiments.recipe import load_recipe

CONFLICTS = [
    ({"method": "rigl", "sparsity": 0}, "method rigl needs a sparsity above 0, got 0"),
    ({"method": "set", "sparsity": 0}, "method set needs a sparsity above 0, got 0"),
    ({"sparsity": 0, "masks": "a.pt"}, "masks must be left out with sparsity 0, .*, got a.pt"),
    ({"method": "rigl", "update_every": 3000}, "update_every must be below steps, 3,000, .*, got 3,000"),
    (
        {"method": "rigl", "update_every": 1, "update": "replaces_step"},
        "update_every must be at least 2 with update replaces_step",
    ),
    ({"method": "rigl", "drop_schedule": "cosine"}, "stop_at must be given with drop_schedule cosine"),
    ({"method": "rigl", "stop_at": 100}, "stop_at must be above update_every, 100, .*, got 100"),
    (
        {"method": "set", "drop_schedule": "cosine", "stop_at": 3001},
        "stop_at must be at most steps, 3,000, with drop_schedule cosine, got 3,001",
    ),
    ({"at_init": "snip", "masks": "a.pt"}, "at_init must be left out with masks, .*, got snip"),
    ({"at_init": "snip", "sparsity": 0}, "at_init must be left out with sparsity 0, .*, got snip"),
    (
        {"at_init": "grasp", "distribution": "erk", "method": "rigl"},
        "distribution must be left at uniform with at_init_scope global, .*, got erk",
    ),
    ({"first_step": 3000}, "first_step must be below steps, 3,000, got 3,000"),
    (
        {"first_step": 2, "method": "gradual_pruning"},
        "first_step must be 0 with method gradual_pruning, which counts its own steps, got 2",
    ),
    ({"first_step": 2, "method": "rigl"}, "first_step must be 0 with method rigl, .*, got 2"),
    ({"keep_step": 3001}, "keep_step must be above first_step, 0, and at most steps, 3,000, got 3,001"),
    ({"first_step": 9, "keep_step": 9}, "keep_step must be above first_step, 9, .*, got 9"),
    ({"method": "gradual_pruning", "sparsity": 0}, "method gradual_pruning needs a sparsity above 0, got 0"),
    (
        {"method": "gradual_pruning", "masks": "a.pt"},
        "masks must be left out with method gradual_pruning, which starts with the dense network",
    ),
    (
        {"method": "gradual_pruning", "at_init": "snip"},
        "at_init must be left out with method gradual_pruning, which starts with the dense network",
    ),
    (
        {"method": "gradual_pruning", "prune_begin": 3000, "prune_end": 3000},
        "prune_end must be above prune_begin, 3,000, and at most steps, 3,000, got 3,000",
    ),
    (
        {"method": "gradual_pruning", "prune_begin": 100, "prune_end": 3001},
        "prune_end must be above prune_begin, 100, and at most steps, 3,000, got 3,001",
    ),
    ({"schedule": "step"}, "milestones must be given with schedule step, which falls there, got none"),
    ({"warmup_steps": 3000}, "warmup_steps must be below steps, 3,000, .*, got 3,000"),
    ({"nesterov": True, "momentum": 0}, "nesterov needs a momentum above 0, got 0"),
    (
        {"model": "vgg16"},
        "dataset must be image_folder or cifar10 with model vgg16, got digits",
    ),
    ({"dataset": "image_folder"}, "dataset must be digits or mnist with model lenet5, got image_folder"),
    ({"dataset": "cifar10"}, "dataset must be digits or mnist with model lenet5, got cifar10"),
    ({"model": "gpt", "dataset": "mnist"}, "dataset must be text with model gpt, got mnist"),
    (
        {"model": "gpt", "dataset": "text", "at_init": "snip"},
        "at_init must be random or magnitude with dataset text, whose examples have no classes, got snip",
    ),
    ({"warmup_steps": "100%"}, "warmup_steps must be below steps, 3,000, .*, got 100%"),
    ({"method": "rigl", "stop_at": "3%"}, "stop_at must be above update_every, 100, .*, got 3%"),
    (
        {"method": "small_dense", "model": "small-mlp"},
        r"method small_dense needs a model with a Small-Dense twin \(lenet5, mlp\), got model small-mlp",
    ),
]


@pytest.mark.parametrize(("changes", "message"), CONFLICTS, ids=lambda value: str(value)[:60])
def test_keys_that_do_not_go_together_are_one_line(changes, message):
    with pytest.raises(RecipeError, match=f"^{message}") as caught:
        load_recipe("lenet5-digits").override(changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "static", "update_every": 5000, "stop_at": 3},
        {"method": "dense", "sparsity": 0, "masks": "a.pt", "drop_schedule": "cosine"},
        {"method": "rigl", "drop_schedule": "cosine", "stop_at": 3000},
        {"method": "rigl", "stop_at": 9000},
        {"method": "rigl", "drop_schedule": "cosine", "stop_at": "100%"},
        {"model": "resnet20", "dataset": "image_folder"},
        {"model": "gpt", "dataset": "text", "at_init": "magnitude", "tokens": "characters"},
        {"milestones": "9000", "step_factor": 1},
        {"optimizer": "adamw", "nesterov": True, "momentum": 0},
        {"image_size": 32, "num_classes": 3},
        {"method": "dense", "at_init": "snip", "masks": "a.pt", "sparsity": 0, "distribution": "erk"},
        {"method": "static", "at_init": "synflow", "at_init_scope": "layer", "distribution": "erk"},
        {"method": "static", "at_init": "magnitude", "at_init_examples": 10**6},
        {"method": "rigl", "prune_begin": 9000, "prune_end": 5},
        {"method": "gradual_pruning", "prune_begin": 1, "prune_end": 3000, "update_every": 9000},
        {"method": "gradual_pruning", "prune_begin": 1, "prune_end": 9, "drop_schedule": "cosine"},
    ],
    ids=str,
)
def test_keys_that_the_method_does_not_use_are_left_alone(changes):
    load_recipe("lenet5-digits").override(changes)
