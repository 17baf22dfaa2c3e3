"""Whatever an optimizer keeps for a weight moves with the weight, and closures."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsekern as sk

# All that treat every element by itself: an optimizer of dense weights then is an oracle.
ELEMENTWISE = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05),
    "sgd_momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01),
    "sgd_nesterov": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    "adam_amsgrad": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01),
    "adamw_fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "adamw_foreach": lambda p: torch.optim.AdamW(p, 0.01, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9, centered=True),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01),
    "radam": lambda p: torch.optim.RAdam(p, 0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.05),
    "adadelta": lambda p: torch.optim.Adadelta(p, 1.0),
    "adamax": lambda p: torch.optim.Adamax(p, 0.01),
}
# Adafactor clips by the norm of a whole tensor, and factors what has two dimensions.
COMPACT = {**ELEMENTWISE, "adafactor": lambda p: torch.optim.Adafactor(p, 0.05)}
STEPS, EVERY = 15, 4
storages = pytest.mark.parametrize("storage", ["compact", "masked"])


def network(storage="compact"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(19, 23), nn.Tanh(), nn.Linear(23, 6)).double()
    sk.sparsify_(model, sparsity=0.8, init="per_neuron", storage=storage)
    return model


def loss(model, step):
    generator = torch.Generator().manual_seed(1000 + step)
    return model(torch.randn(8, 19, generator=generator, dtype=torch.float64)).square().mean()


def train(model, optimizer, steps=range(STEPS)):
    for step in steps:
        optimizer.zero_grad()
        loss(model, step).backward()
        optimizer.step()


class Dense:
    """The same training with dense weights and masks, given the masks of each update."""

    def __init__(self, make, masks):
        self.model = sk.densify_(model := network()) and model
        self.masks = masks
        self.optimizer = make(self.model.parameters())

    def train(self, updates):
        for step in range(STEPS):
            self.optimizer.zero_grad()
            loss(self.model, step).backward()
            for i, mask in self.masks.items():
                self.model[i].weight.grad *= mask
            self.optimizer.step()
            for i, mask in updates.get(step + 1, {}).items():
                self.move(i, mask)

    @torch.no_grad()
    def move(self, i, mask):
        """What was inactive before or is now becomes 0."""
        weight = self.model[i].weight
        for tensor in (weight, *self.states(weight)):
            tensor *= self.masks[i] & mask
        self.masks[i] = mask

    def states(self, weight):
        return [state for state in self.optimizer.state[weight].values() if state.shape == weight.shape]


@storages
@pytest.mark.parametrize("make", ELEMENTWISE.values(), ids=ELEMENTWISE.keys())
def test_training_is_that_of_dense_weights_under_masks(make, storage):
    model = network(storage)
    optimizer = make(model.parameters())
    masks, updates = {i: model[i].mask for i in (0, 2)}, {}
    dense = Dense(make, dict(masks))
    sk.RigL(
        model,
        optimizer,
        update_every=EVERY,
        on_update=lambda update: updates.update({update.step: {i: model[i].mask for i in (0, 2)}}),
    )
    train(model, optimizer)
    assert list(updates) == [4, 8, 12]
    assert not any(torch.equal(masks[i], updates[4][i]) for i in masks)
    dense.train(updates)
    for i in masks:
        layer, twin = model[i], dense.model[i]
        torch.testing.assert_close(layer.to_dense(), twin.weight * layer.mask)
        for state, other in zip(states(optimizer, layer), dense.states(twin.weight), strict=True):
            state = layer.pattern.unpack(state) if storage == "compact" else state * layer.mask
            torch.testing.assert_close(state, other * layer.mask)


def states(optimizer, layer):
    weight = layer.stored_weight
    kept = optimizer.state[weight].values()
    return [v for v in kept if isinstance(v, torch.Tensor) and v.shape == weight.shape]


@pytest.mark.parametrize("make", COMPACT.values(), ids=COMPACT.keys())
def test_an_update_moves_weights_and_state_and_nothing_else(make):
    """Against the same steps without an update: what stays active is equal, bit for bit; the new is 0."""
    still, model = network(), network()
    fixed, optimizer = make(still.parameters()), make(model.parameters())
    sk.RigL(model, optimizer, update_every=EVERY)
    for each, its in ((still, fixed), (model, optimizer)):
        train(each, its, range(EVERY))
    for i in (0, 2):
        old, new = still[i].pattern, model[i].pattern
        kept = [still[i].values.detach(), still[i].values.grad, *states(fixed, still[i])]
        found = [model[i].values.detach(), model[i].values.grad, *states(optimizer, model[i])]
        assert old != new
        for before, after in zip(kept, found, strict=True):
            assert torch.equal(new.unpack(after), old.unpack(before) * new.to_mask())
    train(model, optimizer, range(EVERY, STEPS))


@pytest.mark.parametrize("update", ["after_step", "replaces_step"])
def test_closures(update):
    runs = []
    for with_closure in (True, False):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        method = sk.RigL(model, optimizer, update_every=EVERY, update=update)
        for step in range(STEPS):

            def closure(model=model, optimizer=optimizer, step=step):
                optimizer.zero_grad()
                (found := loss(model, step)).backward()
                return found

            found = optimizer.step(closure) if with_closure else closure()
            assert found.isfinite()
            if not with_closure:
                optimizer.step()
        assert (method.steps, method.updates) == (STEPS, 3)
        runs.append(model.state_dict())
    for key, tensor in runs[0].items():
        assert torch.equal(tensor, runs[1][key]), key


@pytest.mark.parametrize("with_closure", [True, False])
def test_an_update_in_place_of_a_step_leaves_weights_as_they_are(with_closure):
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    method = sk.RigL(model, optimizer, update_every=EVERY, update="replaces_step")
    train(model, optimizer, range(EVERY - 1))
    before = {i: (model[i].to_dense().detach(), model[i].bias.detach().clone()) for i in (0, 2)}
    optimizer.zero_grad()
    if with_closure:
        optimizer.step(lambda: (found := loss(model, EVERY)).backward() or found)
    else:
        loss(model, EVERY).backward()
        optimizer.step()
    assert method.updates == 1
    for i, (weight, bias) in before.items():
        assert torch.equal(model[i].to_dense(), weight * model[i].mask)
        assert torch.equal(model[i].bias, bias)
        assert model[i].values.grad is not None
