"""Figures 8 and 9: whose eigenvalues are shown where, and how they are counted."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sparsekern import analysis
from sparsekern.experiments.data import InMemoryDataset
from sparsekern.experiments.reproduce.figures import hessian as hessian_module
from sparsekern.experiments.reproduce.figures.hessian import spectrum_section, update_spectrum_section

#: The runs of the first seed: method, init, and the seeds of data, initial weights and mask.
SCRATCH = ("static", "dense", 1003, 1003, 3)
SCRATCH_PLUS = ("static", "per_neuron", 1003, 1003, 3)
RIGL = ("rigl", "per_neuron", 1003, 1003, 3)
SET = ("set", "per_neuron", 1003, 1003, 3)
LOTTERY = ("static", "dense", 1003, 3, 3)
#: The eigenvalues of networks of these runs, ascending, and how many seconds they take.
SPECTRA = {
    (SCRATCH, "initial"): ([-1e-9, 0.0, 2e-9], 0.26),
    # Beyond a millionth of 4 lie two below 0 and three above.
    (SCRATCH_PLUS, "initial"): ([-2.0, -5e-6, -3e-6, 0.0, 3e-6, 5e-6, 1.0, 4.0], 12.34),
    # The largest magnitude is that of a negative one: 5e-6 is less than a millionth of it.
    (LOTTERY, "initial"): ([-10.0, -2e-5, 5e-6, 0.25], 3.0),
    (SCRATCH, "final"): ([-0.75, *[0.0] * 1200, *[0.5] * 1034], 151.2),
    (SCRATCH_PLUS, "final"): ([0.0, 0.0, 0.0], 1.0),
    (RIGL, "final"): ([-1.23456789, 0.123456789, 98765.4321], 2.0),
    (LOTTERY, "final"): ([1.0, 2.0, 3.0, 4.0], 7.0),
    (RIGL, "before"): ([-3.0, 6.0], 8.0),
    (RIGL, "after"): ([-4.0, 5.0, 7.0], 9.0),
    (SET, "before"): ([-1.5, -0.5, 2.5], 10.0),
    (SET, "after"): ([0.125, 0.25], 11.0),
}
HEADERS = ["network", "most negative", "largest", "negative, of all", "positive, of all", "seconds (threads)"]


class Named(nn.Module):
    """A network that says what it is."""

    def __init__(self, run, end):
        super().__init__()
        self.key = run, end


@pytest.fixture
def results(made_up, monkeypatch):
    """Makes results of networks whose Hessians have the eigenvalues of SPECTRA."""
    clock = SimpleNamespace(now=0.0)

    def make(examples, ends=None, **options):
        images, labels = torch.arange(float(examples))[:, None], torch.arange(examples)
        dataset = InMemoryDataset("made-up", images, labels, images[:0], labels[:0], "0" * 64)
        expected = min(examples, 500 if options.get("quick") else 10_000)

        def hessian(network, inputs, targets):
            assert torch.equal(inputs, images[:expected])
            assert torch.equal(targets, labels[:expected])
            eigenvalues, seconds = SPECTRA[network.key]
            clock.now += seconds
            return SimpleNamespace(eigenvalues=lambda: torch.tensor(eigenvalues, dtype=torch.float64))

        monkeypatch.setattr(analysis, "hessian", hessian)
        monkeypatch.setattr(hessian_module, "time", SimpleNamespace(perf_counter=lambda: clock.now))
        made = made_up(
            lambda facts: (ends or {}).get(facts[1:], 0.9),
            initial=lambda facts: named(facts, "initial"),
            final=lambda facts: named(facts, "final"),
            dataset=dataset,
            **options,
        )
        steps = []

        def around(given, run, step):
            steps.append(step)
            return named(made.facts[run.folder], "before"), named(made.facts[run.folder], "after")

        monkeypatch.setattr(hessian_module, "networks_around_update", around)
        return made.results, steps

    return make


def named(facts, end):
    assert facts.network == "lenet5"
    return Named(facts[1:], end)


def values(run, end):
    return SPECTRA[run, end][0]


def test_spectra_before_and_after_training_are_of_their_own_networks(results):
    found, _ = results(11)
    section = spectrum_section(found)
    assert section.title == "Figure 8: the Hessian before and after training"
    (figure,) = section.figures
    assert figure.name == "fig8"
    start, end = figure.panels
    assert start.title == "LeNet-5, at initialization"
    assert start.eigenvalues == {
        "Scratch": values(SCRATCH, "initial"),
        "Scratch+": values(SCRATCH_PLUS, "initial"),
        "Lottery": values(LOTTERY, "initial"),
    }
    assert end.title == "LeNet-5, after training"
    assert list(end.eigenvalues) == ["Scratch", "Scratch+", "RigL+", "Lottery"]
    assert end.eigenvalues == {
        "Scratch": values(SCRATCH, "final"),
        "Scratch+": values(SCRATCH_PLUS, "final"),
        "RigL+": [-1.23457, 0.123457, 98765.4],
        "Lottery": values(LOTTERY, "final"),
    }


def test_eigenvalues_count_beyond_a_millionth_of_the_largest_magnitude(results):
    found, _ = results(11)
    (table,) = spectrum_section(found).tables
    assert table.headers == HEADERS
    assert table.rows == [
        ["Scratch, at initialization", "-1e-09", "2e-09", "1 of 3", "1 of 3", "0 (1)"],
        ["Scratch+, at initialization", "-2", "4", "2 of 8", "3 of 8", "12 (1)"],
        ["Lottery, at initialization", "-10", "0.25", "2 of 4", "1 of 4", "3 (1)"],
        ["Scratch, after training", "-0.75", "0.5", "1 of 2,235", "1,034 of 2,235", "151 (1)"],
        ["Scratch+, after training", "0", "0", "0 of 3", "0 of 3", "1 (1)"],
        ["RigL+, after training", "-1.23", "9.88e+04", "1 of 3", "2 of 3", "2 (1)"],
        ["Lottery, after training", "1", "4", "0 of 4", "4 of 4", "7 (1)"],
    ]
    (note,) = table.notes
    assert "beyond 1e-06 of the largest magnitude" in note


def test_spectra_around_an_update_are_of_the_networks_before_and_after(results):
    found, steps = results(11)
    section = update_spectrum_section(found)
    assert section.title == "Figure 9: the Hessian around a mask update"
    (figure,) = section.figures
    assert figure.name == "fig9"
    rigl, of_set = figure.panels
    # A quarter of 11,719 steps is 2,929; masks change every 100.
    assert steps == [2900, 2900]
    assert rigl.title == "LeNet-5, RigL+, step 2,900"
    assert rigl.eigenvalues == {"before": values(RIGL, "before"), "after": values(RIGL, "after")}
    assert of_set.title == "LeNet-5, SET+, step 2,900"
    assert of_set.eigenvalues == {"before": values(SET, "before"), "after": values(SET, "after")}
    (table,) = section.tables
    assert table.headers == HEADERS
    assert table.rows == [
        ["RigL+, before", "-3", "6", "1 of 2", "1 of 2", "8 (1)"],
        ["RigL+, after", "-4", "7", "1 of 3", "2 of 3", "9 (1)"],
        ["SET+, before", "-1.5", "2.5", "2 of 3", "1 of 3", "10 (1)"],
        ["SET+, after", "0.125", "0.25", "0 of 2", "2 of 2", "11 (1)"],
    ]


def test_runs_without_an_end_have_no_spectrum(results):
    found, steps = results(11, {SCRATCH: "diverged", LOTTERY: "failed", RIGL: "failed"})
    section = spectrum_section(found)
    assert [list(panel.eigenvalues) for panel in section.figures[0].panels] == [["Scratch+"]] * 2
    assert [row[0] for row in section.tables[0].rows] == [
        "Scratch+, at initialization",
        "Scratch+, after training",
    ]
    assert section.tables[0].notes[1:] == [
        "Scratch: 1 of 1 runs diverged and are left out.",
        "RigL+: 1 of 1 runs failed and are left out.",
        "Lottery: 1 of 1 runs failed and are left out.",
    ]
    section = update_spectrum_section(found)
    assert [panel.title for panel in section.figures[0].panels] == ["LeNet-5, SET+, step 2,900"]
    assert [row[0] for row in section.tables[0].rows] == ["SET+, before", "SET+, after"]
    assert section.tables[0].notes[1:] == ["RigL+: 1 of 1 runs failed and are left out."]
    assert steps == [2900]


@pytest.mark.parametrize(
    ("quick", "examples", "shown", "step"),
    [(False, 10_003, "10,000", 2900), (True, 503, "500", 80), (True, 7, "7", 80)],
)
def test_the_first_examples_are_taken_and_the_text_says_how_many(results, quick, examples, shown, step):
    found, steps = results(examples, quick=quick)
    for section in (spectrum_section(found), update_spectrum_section(found)):
        assert f"on the first {shown} training examples (the paper: 60,000)" in section.text[0]
    assert set(steps) == {step}
