import copy
import re

import pytest
import torch
import torch.nn.functional as F

import sparsekern as sk
from sparsekern.experiments.build import build_model
from sparsekern.experiments.errors import CheckpointError, TrainingError
from sparsekern.experiments.trainer import Trainer

VARIANTS = {
    "dense": {"sparsity": 0},
    "compact": {},
    "masked": {"storage": "masked"},
    "adamw": {"optimizer": "adamw", "learning_rate": 1e-3},
    **{
        method: {"method": method, "update_every": 2, "grow_batch_size": 100}
        for method in ("set", "rigl", "rigl_inverted", "snfs")
    },
    "rigl, batch": {"method": "rigl", "update_every": 2, "grow_gradient": "batch"},
    "rigl, masked": {"method": "rigl", "update_every": 2, "storage": "masked", "grow_batch_size": 100},
    "rigl, replaces step": {"method": "rigl", "update_every": 3, "update": "replaces_step"},
    "set, per_neuron": {"method": "set", "update_every": 2, "new_values": "per_neuron"},
    **{
        f"pruning, {optimizer}": {
            "method": "gradual_pruning",
            "prune_begin": 2,
            "prune_end": 7,
            "update_every": 2,
            "optimizer": optimizer,
        }
        for optimizer in ("sgd", "adamw")
    },
}


def make(recipe, digits):
    return Trainer(build_model(recipe)[0], digits, recipe)


def run(trainer, steps):
    for _ in range(steps):
        trainer.train_step()
    return trainer


def assert_same_tensors(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, dict):
            assert_same_tensors(value, second[key])
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, second[key]), key


@pytest.mark.parametrize("variant", VARIANTS)
def test_resuming_at_any_step_is_exact(short_recipe, digits, variant):
    recipe = short_recipe.override(VARIANTS[variant])
    whole = run(make(recipe, digits), 8)
    for stop in (0, 1, 5, 7):
        state = run(make(recipe, digits), stop).state_dict()
        resumed = make(recipe, digits)
        resumed.load_state_dict(state)
        run(resumed, 8 - stop)
        assert_same_tensors(resumed.model.state_dict(), whole.model.state_dict())
        assert_same_tensors(resumed.optimizer.state_dict()["state"], whole.optimizer.state_dict()["state"])
        ours, theirs = resumed.train_record(), whole.state_dict()["window"]
        assert ours["loss"] == theirs["loss"].item() / theirs["examples"]


def without_a_tensor(state):
    del state["model"]["fc1.values"]


def with_another_shape(state):
    state["model"]["fc1.bias"] = torch.zeros(7)


def without_optimizer_state(state):
    state["optimizer"]["state"] = {}


def with_another_momentum(state):
    state["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(3)


def with_text_for_a_step(state):
    state["step"] = "3"


def without_a_window(state):
    state["window"] = None


def with_updates_in_disorder(state):
    state["update_steps"] = [2, 1]


def with_text_for_updates(state):
    state["update_steps"] = "2"


def without_the_methods_state(state):
    del state["optimizer"]["sparsekern"]


def with_a_damaged_pattern(state):
    state["model"]["fc1.pattern"] = state["model"]["fc1.pattern"][:-3]


def with_the_pattern_of_another_layer(state):
    state["model"]["fc1.pattern"] = state["model"]["fc2.pattern"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_a_tensor, "the trainer's state['model']: expected the keys "),
        (with_another_shape, "['model']['fc1.bias']: expected a tensor float32 (120,), found a tensor"),
        (without_optimizer_state, "['optimizer']['state']: expected the keys 0, 1, 2"),
        (with_another_momentum, "['state'][0]['momentum_buffer']: expected a tensor float32 (8,), found"),
        (with_text_for_a_step, "['step']: expected int, found str"),
        (without_a_window, "['window']: expected a dictionary, found nothing"),
    ],
)
def test_a_state_that_does_not_fit_is_one_line_and_changes_nothing(short_recipe, digits, change, message):
    state = run(make(short_recipe, digits), 3).state_dict()
    change(state)
    trainer = make(short_recipe, digits)
    before = copy.deepcopy(trainer.state_dict())
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        trainer.load_state_dict(state)
    assert "\n" not in str(caught.value)
    assert_same_tensors(trainer.state_dict(), before)


def test_only_a_network_that_is_pruned_may_have_lost_whole_tiles(short_recipe, digits):
    mask = torch.zeros(120, 256, dtype=torch.bool)
    mask[:, :8] = True
    changes = {"prune_begin": 2, "prune_end": 7, "update_every": 2, "storage": "masked"}
    for method in ("gradual_pruning", "static"):
        recipe = short_recipe.override({**changes, "method": method})
        state = run(make(recipe, digits), 3).state_dict()
        state["model"]["fc1.pattern"] = sk.Pattern.from_mask(mask).data
        trainer = make(recipe, digits)
        if method == "gradual_pruning":
            trainer.load_state_dict(state)
            assert torch.equal(trainer.model.fc1.mask, mask)
        else:
            message = "['model']['fc1.pattern']: expected a tensor int32 "
            with pytest.raises(CheckpointError, match=re.escape(message)):
                trainer.load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_updates_in_disorder, "['update_steps']: expected 0 entries, found 2"),
        (with_text_for_updates, "['update_steps']: expected list, found str"),
        (without_the_methods_state, "['optimizer']: expected the keys "),
        (with_a_damaged_pattern, "['model']['fc1.pattern']: expected a tensor int32 "),
        (with_the_pattern_of_another_layer, "['model']['fc1.pattern']: expected a tensor int32 "),
    ],
)
def test_a_state_of_updates_that_does_not_fit_is_one_line(short_recipe, digits, change, message):
    recipe = short_recipe.override({"method": "rigl", "update_every": 2, "grow_batch_size": 50})
    state = run(make(recipe, digits), 3).state_dict()
    change(state)
    trainer = make(recipe, digits)
    before = copy.deepcopy(trainer.state_dict())
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        trainer.load_state_dict(state)
    assert "\n" not in str(caught.value)
    assert_same_tensors(trainer.state_dict(), before)


def test_compact_storage_trains_as_a_masked_dense_network_does(short_recipe, digits):
    # The oracle is what everybody writes: a dense network whose weights are multiplied by masks.
    compact = make(short_recipe, digits)
    layers = {name: m for name, m in compact.model.named_modules() if hasattr(m, "pattern")}
    weights = {name: layer.to_dense().detach().clone().requires_grad_() for name, layer in layers.items()}
    biases = {name: layer.bias.detach().clone().requires_grad_() for name, layer in layers.items()}
    masks = {name: layer.mask for name, layer in layers.items()}
    optimizer = torch.optim.SGD(
        [{"params": list(weights.values()), "weight_decay": 1e-3}, {"params": list(biases.values())}],
        lr=0.05,
        momentum=0.9,
    )

    def forward(x):
        w = {name: weights[name] * masks[name] for name in weights}
        x = F.max_pool2d(F.relu(F.conv2d(x, w["conv1"], biases["conv1"])), 2)
        x = F.max_pool2d(F.relu(F.conv2d(x, w["conv2"], biases["conv2"])), 2).flatten(1)
        x = F.relu(F.linear(x, w["fc1"], biases["fc1"]))
        return F.linear(F.relu(F.linear(x, w["fc2"], biases["fc2"])), w["fc3"], biases["fc3"])

    for step in range(6):
        images, labels = compact.batch(step)
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.05 * (
            0.5 + 0.5 * torch.cos(torch.tensor(torch.pi * step / 12)).item()
        )
        optimizer.zero_grad()
        F.cross_entropy(forward(images), labels).backward()
        optimizer.step()
        compact.train_step()
    for name, layer in layers.items():
        torch.testing.assert_close(layer.to_dense(), weights[name] * masks[name], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(layer.bias, biases[name], rtol=1e-4, atol=1e-6)


def test_a_sparse_network_with_the_per_neuron_init_learns(short_recipe, digits):
    recipe = short_recipe.override({"steps": 300, "learning_rate": 0.1})
    trainer = run(make(recipe, digits), 300)
    assert trainer.test_record()["accuracy"] > 0.8


def test_labels_are_smoothed_by_hand(short_recipe, digits):
    recipe = short_recipe.override({"label_smoothing": 0.2, "sparsity": 0, "momentum": 0, "weight_decay": 0})
    trainer = make(recipe, digits)
    images, labels = trainer.batch(0)
    before = trainer.model.fc3.bias.detach().clone()
    logits = trainer.model(images)
    targets = 0.8 * F.one_hot(labels, 10) + 0.2 / 10
    loss = -(targets * logits.log_softmax(1)).sum(1).mean()
    (gradient,) = torch.autograd.grad(loss, trainer.model.fc3.bias)
    trainer.train_step()
    torch.testing.assert_close(trainer.model.fc3.bias.detach(), before - 0.05 * gradient)
    assert trainer.train_record()["loss"] == pytest.approx(loss.item(), rel=1e-6)


def test_train_record_holds_the_means_since_the_last_one(short_recipe, digits):
    trainer = make(short_recipe.override({"learning_rate": 1e-30}), digits)
    losses = []
    for step in range(4):
        images, labels = trainer.batch(step)
        with torch.no_grad():
            losses.append(F.cross_entropy(trainer.model(images), labels).item())
    record = run(trainer, 3).train_record()
    assert record["loss"] == pytest.approx(sum(losses[:3]) / 3, rel=1e-6)
    assert (record["step"], record["epoch"]) == (3, pytest.approx(3 * 128 / 1437))
    assert run(trainer, 1).train_record()["loss"] == pytest.approx(losses[3], rel=1e-6)


@pytest.mark.parametrize("update", ["after_step", "replaces_step"])
def test_updates_have_records_that_are_read_once(short_recipe, digits, update):
    recipe = short_recipe.override({"method": "set", "update_every": 2, "update": update})
    trainer = make(recipe, digits)
    found = []
    for _ in range(6):
        trainer.train_step()
        found.append(trainer.update_records())
    assert trainer.update_records() == []
    updates = [record for records in found for record in records]
    assert trainer.update_steps == [record["step"] for record in updates]
    assert trainer.update_steps == [step for step, records in enumerate(found, 1) if records]
    assert len(updates) >= 2
    for record in updates:
        assert record["dropped"] == record["grown"] + record["regrown"] > 0
        assert 0 < record["drop_fraction"] <= 0.3
    assert updates[0]["exploration_rate"] < updates[1]["exploration_rate"] < 1


def test_a_loss_that_is_not_finite_stops_the_run(short_recipe, digits):
    trainer = run(make(short_recipe.override({"learning_rate": 1e20}), digits), 5)
    with pytest.raises(
        TrainingError, match=r"the loss became nan .* before step 5: a learning_rate below 1e\+20"
    ):
        trainer.train_record()


def test_an_update_on_a_gradient_that_is_not_finite_stops_the_run(short_recipe, digits):
    changes = {"method": "rigl", "update_every": 4, "grow_batch_size": 50, "learning_rate": 1e20}
    with pytest.raises(TrainingError, match=r"after step 4: a learning_rate below 1e\+20 may help") as caught:
        run(make(short_recipe.override(changes), digits), 5)
    assert "\n" not in str(caught.value)


def test_the_global_generator_is_neither_read_nor_moved(short_recipe, digits):
    state = torch.get_rng_state()
    run(make(short_recipe, digits), 2)
    assert torch.equal(state, torch.get_rng_state())
