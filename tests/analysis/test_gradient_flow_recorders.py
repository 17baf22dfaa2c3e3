"""Recorders measure at the steps they say, around updates of the masks too, and can be resumed."""

from __future__ import annotations

import copy
import json
import math
import re

import pytest
import torch
from torch import nn

import sparsekern as sk
from sparsekern.analysis import GradientFlowRecorder, MaskUpdateRecorder, gradient_flow
from sparsekern.nn import SparseLinear


class Line(nn.Module):
    """A sparse weight with a loss whose gradient is known: sum(a w^2) / 2 has a w."""

    def __init__(self):
        super().__init__()
        mask = torch.tensor([[True] * 4 + [False] * 4])
        self.layer = SparseLinear(8, 1, bias=False, mask=mask, dtype=torch.float64)
        with torch.no_grad():
            self.layer.values.copy_(torch.tensor([4.0, 3.0, 2.0, 1.0]))


A = torch.arange(1.0, 9.0).double()


def bowl(model):
    """Its gradient on zeros that grow is not zero: a (w - 1)."""
    return (A * (model.layer(torch.eye(8).double()).flatten() - 1).square()).sum() / 2


def norm_of(weight, mask):
    return math.sqrt(float((A * (weight - 1))[mask].square().sum()))


@pytest.mark.parametrize("recorder", [GradientFlowRecorder, MaskUpdateRecorder])
def test_other_arguments_of_recorders_are_refused(recorder):
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got 3"):
        recorder(3, optimizer, bowl)
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, got 3"):
        recorder(model, 3, bowl)
    with pytest.raises(TypeError, match="loss must be a function of the model, got 3"):
        recorder(model, optimizer, 3)
    assert not optimizer._optimizer_step_post_hooks


def test_around_an_update_it_is_taken_after_the_step_and_after_the_update():
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    recorder = MaskUpdateRecorder(model, optimizer, bowl)
    seen, steps = [], []
    method = sk.RigL(
        model, optimizer, update_every=2, drop_fraction=0.25, schedule="constant",
        on_update=lambda statistics: seen.append((recorder.after(), model.layer.mask.flatten())),
    )  # fmt: skip
    recorder.follow(method)
    weight = torch.tensor([4.0, 3.0, 2.0, 1.0, 0, 0, 0, 0]).double()
    mask = torch.tensor([True] * 4 + [False] * 4)
    for step in range(1, 5):
        optimizer.zero_grad()
        bowl(model).backward()
        optimizer.step()
        gradient = A * (weight - 1)
        weight = torch.where(mask, weight - 0.01 * gradient, 0.0)
        if step % 2 == 0:
            before = norm_of(weight, mask)
            mask = seen[-1][1]
            weight = torch.where(mask, weight, 0.0)
            steps.append((before, norm_of(weight, mask)))
        torch.testing.assert_close(model.layer.to_dense().flatten(), weight)
    assert mask[7]  # the largest gradient at the first update is that of the last position
    assert [(pair[0].norm, pair[1].norm) for pair, _ in seen] == [pytest.approx(s, rel=1e-12) for s in steps]
    assert steps[0][0] != steps[0][1]


def test_the_first_measurement_is_at_once_and_the_others_every_so_many_steps():
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    recorder = GradientFlowRecorder(model, optimizer, bowl, every=3)
    expected = {}
    for step in range(8):
        expected[step] = gradient_flow(model, bowl).norm
        optimizer.zero_grad()
        bowl(model).backward()
        optimizer.step()
    assert [(step, flow.norm) for step, flow in recorder.history] == [(s, expected[s]) for s in (0, 3, 6)]
    recorder.remove()
    bowl(model).backward()
    optimizer.step()
    assert len(recorder.history) == 3
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        GradientFlowRecorder(model, optimizer, bowl, every=0)


def recorded(steps, resumed_at=None, every=3):
    """A recorder's history after training, with a model, optimizer and recorder made anew in between."""
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    recorder = GradientFlowRecorder(model, optimizer, bowl, every=every)
    for step in range(steps):
        if step == resumed_at:
            states = json.loads(json.dumps(recorder.state_dict())), model.state_dict(), optimizer.state_dict()
            model = Line()
            optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
            recorder = GradientFlowRecorder(model, optimizer, bowl, every=every)
            for part, state in zip((recorder, model, optimizer), copy.deepcopy(states)):
                part.load_state_dict(state)
        optimizer.zero_grad()
        bowl(model).backward()
        optimizer.step()
    return recorder.history


@pytest.mark.parametrize("resumed_at", [0, 2, 3, 4, 7])
def test_a_recorder_is_resumed(resumed_at):
    expected = recorded(8)
    assert [step for step, _ in expected] == [0, 3, 6]
    assert recorded(8, resumed_at) == expected


def test_a_recorder_takes_what_was_measured_of_a_loss_that_is_not_finite():
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    recorder = GradientFlowRecorder(model, optimizer, lambda model: bowl(model) * math.inf)
    other = GradientFlowRecorder(model, optimizer, bowl)
    other.load_state_dict(recorder.state_dict())
    assert [(step, math.isnan(flow.norm)) for step, flow in other.history] == [(0, True)]


FLOW = {"steps": 0, "norm": 1.0, "parameters": {"a": 1.0}}


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (3, "state must be a dict of steps, history, got 3 (int)"),
        ({"steps": 1}, "state must be a dict of steps, history"),
        ({"steps": True, "history": []}, "state['steps'] must be an integer from 0, got True"),
        ({"steps": -1, "history": []}, "state['steps'] must be an integer from 0, got -1"),
        ({"steps": 1, "history": {}}, "state['history'] must be a list"),
        (
            {"steps": 1, "history": [(0, 1.0)]},
            "state['history'][0] must be a dict of steps, norm, parameters",
        ),
        ({"steps": 1, "history": [FLOW, FLOW]}, "state['history'][1]['steps'] must be from 1 to 1, got 0"),
        ({"steps": 1, "history": [{**FLOW, "steps": 2}]}, "['steps'] must be from 0 to 1, got 2"),
        (
            {"steps": 1, "history": [{**FLOW, "norm": "1"}]},
            "['norm'] must be a number from 0 or NaN, got '1'",
        ),
        ({"steps": 1, "history": [{**FLOW, "parameters": {1: 1.0}}]}, "['parameters'] must be norms by name"),
        (
            {"steps": 1, "history": [{**FLOW, "parameters": {"a": -1.0}}]},
            "['parameters']['a'] must be a number",
        ),
    ],
)
def test_other_states_are_refused_and_change_nothing(state, text):
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    recorder = GradientFlowRecorder(model, optimizer, bowl, every=2)
    bowl(model).backward()
    optimizer.step()
    before = copy.deepcopy(recorder.state_dict())
    with pytest.raises(ValueError, match=re.escape(text)):
        recorder.load_state_dict(state)
    assert recorder.state_dict() == before
    optimizer.step()
    assert [step for step, _ in recorder.history] == [0, 2]


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_a_grad_scaler_leaves_out_do_not_count(fused):
    """A fused optimizer is called for them, and finds that they are none."""

    def run(overflows):
        model = Line()
        optimizer = torch.optim.SGD(model.parameters(), 0.01, fused=fused)
        recorder = MaskUpdateRecorder(model, optimizer, bowl)
        flows = GradientFlowRecorder(model, optimizer, bowl, every=2)
        changes = []
        keywords = {"update_every": 3, "on_update": lambda statistics: changes.append(recorder.after())}
        method = sk.RigL(model, optimizer, **keywords)
        recorder.follow(method)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=100)
        for step in range(6 + len(overflows)):
            optimizer.zero_grad()
            scaler.scale(bowl(model)).backward()
            if step in overflows:
                model.layer.values.grad.fill_(torch.inf)
            scaler.step(optimizer)
            scaler.update()
        assert method.updates == 2
        return changes, flows.history

    changes, history = run({2, 3, 5})
    expected, other = run(set())
    assert [step for step, _ in history] == [step for step, _ in other] == [0, 2, 4, 6]
    for mine, theirs in zip(changes + history, expected + other, strict=True):
        for a, b in zip(mine, theirs):
            assert getattr(a, "norm", a) == pytest.approx(getattr(b, "norm", b), rel=1e-12)


@pytest.mark.parametrize("every", [1, 3])
def test_a_recorder_made_after_the_method_is_an_error(every):
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    method = sk.SET(model, optimizer, update_every=every, on_update=lambda statistics: recorder.after())
    recorder = MaskUpdateRecorder(model, optimizer, bowl)
    recorder.follow(method)
    bowl(model).backward()
    for _ in range(every - 1):
        optimizer.step()
    with pytest.raises(RuntimeError, match="the recorder must follow the method, and be made before it"):
        optimizer.step()


def test_a_recorder_that_follows_nothing_or_was_removed_measures_nothing():
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    idle, removed = (MaskUpdateRecorder(model, optimizer, bowl) for _ in range(2))
    removed.follow(sk.SET(model, optimizer, update_every=1))
    removed.remove()
    bowl(model).backward()
    optimizer.step()
    assert idle.before is removed.before is None
    with pytest.raises(RuntimeError, match="got no measurement"):
        idle.after()


def test_a_recorder_follows_nothing_but_methods():
    model = Line()
    recorder = MaskUpdateRecorder(model, torch.optim.SGD(model.parameters(), 0.1), bowl)
    with pytest.raises(TypeError, match=r"method must be a DynamicMethod or GradualPruning, got 3 \(int\)"):
        recorder.follow(3)
