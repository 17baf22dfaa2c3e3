"""Callbacks refuse what no method and no `sparsify_` takes, before there is a model."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import sparsekern as sk
from sparsekern.integrations.plan import METHODS, Plan


class Mixed(sk.methods.DynamicMethod):
    """A method of a user's, with an option of its own."""

    def __init__(self, model, optimizer, *, share=0.5, **options):
        super().__init__(model, optimizer, **options)


def test_every_dynamic_method_has_a_name():
    every = [sk.Static, sk.SET, sk.RigL, sk.RigLInverted, sk.SNFS]
    assert list(METHODS.values()) == every
    for method in [*METHODS, *every, Mixed]:
        Plan(0.9, method, {"update_every": 10})


REFUSED = [
    ({"sparsity": 1.0}, ValueError, "sparsity must be"),
    ({"sparsity": "0.9"}, TypeError, "sparsity must be"),
    ({"method": "rgil"}, ValueError, r"method must be 'static', .*, got 'rgil'; did you mean 'rigl'\?"),
    ({"method": None}, TypeError, "method must be 'static'"),
    ({"method": sk.GradualPruning}, TypeError, "method must be .* or a subclass of DynamicMethod"),
    (
        {"updateevery": 10},
        TypeError,
        r"options must be those of sparsify_ and of RigL, got 'updateevery'; did",
    ),
    ({"momentum": 0.9}, TypeError, "options must be those of sparsify_ and of RigL, got 'momentum'"),
    ({"method": Mixed, "shares": 1}, TypeError, r"of Mixed, got 'shares'; did you mean 'share'"),
    ({"update_every": 0}, ValueError, "update_every must be at least 1, got 0"),
    ({"schedule": "cosine"}, ValueError, "stop_at must be given with schedule='cosine'"),
    ({"method": "snfs", "drop_fraction": 2}, ValueError, "drop_fraction must be a number above 0"),
    ({"on_update": 3}, TypeError, "on_update must be a function"),
    ({"distribution": "erkk"}, ValueError, "distribution must be"),
    ({"pattern": "2:4"}, ValueError, "pattern must be 'unstructured' or 'block', got '2:4'"),
    ({"block_size": 32}, ValueError, "block_size must be left out unless"),
    ({"init": "zeros"}, ValueError, "init must be"),
    ({"masks": {}}, ValueError, "masks must be for at least one layer"),
    ({"filter_fn": 3}, TypeError, "filter_fn must be callable"),
    ({"exclude": 3}, TypeError, "exclude must be names or glob patterns of modules, got 3"),
    ({"generator": 3}, TypeError, "generator must be a torch.Generator or None, got 3"),
    ({"sparsity": None, "distribution": "erk"}, ValueError, "distribution must be left out without sparsity"),
]


@pytest.mark.parametrize(("given", "error", "words"), REFUSED)
def test_bad_options_are_refused(given, error, words):
    given = {"sparsity": 0.9, "method": "rigl"} | given
    sparsity, method = given.pop("sparsity"), given.pop("method")
    with pytest.raises(error, match=words):
        Plan(sparsity, method, given)


def test_all_processes_draw_the_same():
    """Whatever state their generators are in."""
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(models))
        # As without the option, which a script may pass on from its own arguments.
        plan = Plan(0.9, "rigl", {"seed": seed, "init": "per_neuron", "generator": None})
        plan.sparsify(model := torch.nn.Sequential(torch.nn.Linear(31, 17, bias=False)))
        models.append(model.state_dict())
    first, second, other = (state["0.pattern"] for state in models)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(models[0]["0.values"], models[1]["0.values"])


def test_nothing_is_imported_before_it_is_asked_for():
    script = """
import sys, sparsekern as sk
assert not {"lightning", "pytorch_lightning", "transformers", "accelerate"} & sys.modules.keys()
assert {"lightning", "transformers"} <= set(dir(sk.integrations))
sys.modules["transformers"] = None
try:
    sk.integrations.transformers
except ImportError as error:
    assert "needs the package transformers: pip install transformers accelerate" in str(error), error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    with pytest.raises(AttributeError, match="no attribute 'keras'; it has lightning, transformers"):
        _ = sk.integrations.keras
