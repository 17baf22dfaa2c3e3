import pytest
import torch
import torch.nn.functional as F

import sparsekern as sk
from sparsekern.experiments.build import build_model
from sparsekern.experiments.errors import RecipeError
from sparsekern.experiments.optimizer import build_optimizer
from sparsekern.experiments.updates import HoldoutLoss, attach_method, prune_record


def attach(recipe, digits, on_update=lambda statistics: None):
    model, _ = build_model(recipe)
    optimizer = build_optimizer(model, recipe)
    return model, optimizer, attach_method(model, optimizer, digits, recipe, on_update)


@pytest.mark.parametrize("method", ["dense", "small_dense", "static"])
def test_methods_that_keep_their_masks_have_nothing_to_attach(short_recipe, digits, method):
    _, optimizer, attached = attach(short_recipe.override({"method": method}), digits)
    assert attached is None
    assert "sparsekern" not in optimizer.state_dict()


@pytest.mark.parametrize(
    ("name", "cls"),
    [("set", sk.SET), ("rigl", sk.RigL), ("rigl_inverted", sk.RigLInverted), ("snfs", sk.SNFS)],
)
def test_every_key_reaches_the_method(short_recipe, digits, name, cls):
    changes = {"update_every": 3, "drop_fraction": 0.2, "drop_schedule": "cosine", "stop_at": 10}
    changes |= {"regrow_dropped": False, "update": "replaces_step", "new_values": "per_neuron"}
    _, _, method = attach(short_recipe.override({"method": name, **changes}), digits)
    assert type(method) is cls
    options = {key: getattr(method.options, key) for key in changes if key != "drop_schedule"}
    assert options == {key: value for key, value in changes.items() if key != "drop_schedule"}
    assert method.options.schedule == "cosine"
    grows_on_holdout = name in ("rigl", "rigl_inverted")
    assert method.options.grow_gradient == ("holdout" if grows_on_holdout else "batch")


def test_draws_follow_from_the_seed(short_recipe, digits):
    seeds = [
        attach(short_recipe.override({"method": "set", "update_every": 2, **changes}), digits)[2].options.seed
        for changes in ({"seed": 1}, {"seed": 1, "mask_seed": 2}, {"seed": 2})
    ]
    assert seeds[0] == seeds[1] != seeds[2]


def test_every_key_reaches_gradual_pruning(short_recipe, digits):
    changes = {"method": "gradual_pruning", "prune_begin": 3, "prune_end": 10, "update_every": 4}
    updates = []
    recipe = short_recipe.override({**changes, "distribution": "erk", "sparsity": 0.8, "storage": "compact"})
    model, optimizer, method = attach(recipe, digits, updates.append)
    assert type(method) is sk.GradualPruning
    options = vars(method.options)
    assert options == {
        "sparsity": 0.8, "begin": 3, "end": 10, "update_every": 4, "scope": "layer", "distribution": "erk",
    }  # fmt: skip
    for _ in range(10):
        optimizer.step()
    assert {layer.layer.storage for layer in method.layers} == {"masked"}  # in the end too
    assert [prune_record(update, update.step + 1) for update in updates] == [
        {
            "kind": "prune",
            "step": step + 1,
            "sparsity": update.sparsity,
            "active": sum(update.active.values()),
        }
        for step, update in zip((3, 7, 10), updates, strict=True)
    ]
    assert sum(layer.pattern.nnz for layer in method.layers) == sum(updates[-1].active.values()) == 8838
    assert updates[0].sparsity == 0


@pytest.mark.parametrize("storage", ["compact", "masked"])
@pytest.mark.parametrize(("optimizer", "decay"), [("sgd", 0.5), ("sgd", 0.0), ("adamw", 0.5)])
def test_the_holdout_loss_is_the_mean_cross_entropy_and_half_the_decayed_squares(
    short_recipe, digits, storage, optimizer, decay
):
    recipe = short_recipe.override(
        {"storage": storage, "optimizer": optimizer, "weight_decay": decay, "grow_batch_size": 37}
    )
    model = build_model(recipe)[0]
    loss = HoldoutLoss(model, digits, recipe)()
    with torch.no_grad():
        expected = F.cross_entropy(model(digits.train_images[:37]), digits.train_labels[:37])
        # Decoupled decay, as AdamW's, is no part of the loss.
        if optimizer == "sgd":
            layers = [module for module in model.modules() if hasattr(module, "pattern")]
            expected += 0.5 * decay * sum((layer.to_dense() ** 2).sum() for layer in layers)
    torch.testing.assert_close(loss.detach(), expected)
    loss.backward()
    before = model.fc1.stored_weight.grad.clone()
    model.zero_grad()
    F.cross_entropy(model(digits.train_images[:37]), digits.train_labels[:37]).backward()
    term = decay * model.fc1.stored_weight.detach() if optimizer == "sgd" else 0.0
    torch.testing.assert_close(before, model.fc1.stored_weight.grad + term)


def test_the_holdout_loss_smooths_labels_as_training_does(short_recipe, digits):
    changes = {"label_smoothing": 0.3, "weight_decay": 0, "grow_batch_size": 37, "grow_batch_start": 11}
    recipe = short_recipe.override(changes)
    model = build_model(recipe)[0]
    images, labels = digits.train_images[11:48], digits.train_labels[11:48]
    expected = F.cross_entropy(model(images), labels, label_smoothing=0.3)
    torch.testing.assert_close(HoldoutLoss(model, digits, recipe)(), expected)


def test_more_holdout_examples_than_there_are_is_one_line(short_recipe, digits):
    recipe = short_recipe.override({"method": "rigl", "update_every": 2, "grow_batch_size": 1438})
    with pytest.raises(RecipeError, match=r"grow_batch_size must be at most .*, 1,437, got 1,438"):
        attach(recipe, digits)
    recipe = recipe.override({"grow_batch_size": 1000, "grow_batch_start": 438})
    with pytest.raises(RecipeError, match=r"1,437, got 1,000 and 438 before them"):
        attach(recipe, digits)
