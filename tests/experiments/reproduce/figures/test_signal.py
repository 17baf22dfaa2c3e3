"""Figure 1c: which networks' outputs are measured, and which curve they are on."""

import numpy
import pytest
import torch

from sparsekern import analysis
from sparsekern.experiments.reproduce.figures import signal as signal_module
from sparsekern.experiments.reproduce.figures.signal import signal_section
from sparsekern.experiments.reproduce.runs import NETWORKS

SEEDS = (3, 4, 7)
INITS = {"Original": "dense", "Liu et al.": "per_layer", "Ours": "per_neuron"}
SPARSITIES = [0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99]


def draw(network, init, sparsity, seed):
    """The made-up deviation of a network's outputs."""
    key = [NETWORKS.index(network), list(INITS.values()).index(init), round(100 * sparsity), seed]
    return float(numpy.random.default_rng(key).uniform(0.01, 5))


@pytest.fixture
def inputs(monkeypatch):
    """What was given to networks whose outputs are made up by their recipes."""
    given = []

    def output_std(recipe, noise):
        given.append(noise)
        return draw(recipe.model, recipe.init, recipe.sparsity, recipe.seed)

    def build_model(recipe):
        # A mask is drawn for each network, and no weights or masks of a run are taken.
        assert (recipe.method, recipe.masks, recipe.weights, recipe.at_init) == ("static", None, None, None)
        assert (recipe.init_seed, recipe.mask_seed, recipe.distribution) == (None, None, "uniform")
        return recipe, None

    monkeypatch.setattr(analysis, "output_std", output_std)
    monkeypatch.setattr(signal_module, "build_model", build_model)
    return given


def test_curves_are_of_their_own_networks(made_up, inputs):
    section = signal_section(made_up(seeds=SEEDS).results)
    assert section.title == "Figure 1c: signal propagation at initialization"
    (figure,) = section.figures
    assert figure.name == "fig1c"
    assert [panel.title for panel in figure.panels] == ["LeNet-5", "MLP"]
    for network, panel in zip(("lenet5", "mlp"), figure.panels, strict=True):
        assert panel.log_y
        assert panel.sparsity_x
        assert panel.x_label.startswith("sparsity (fraction of zeros")
        assert panel.y_label == "std of the outputs (logits)"
        for series, (label, init) in zip(panel.series, INITS.items(), strict=True):
            values = numpy.array([[draw(network, init, s, seed) for s in SPARSITIES] for seed in SEEDS])
            assert (series.label, series.x) == (label, SPARSITIES)
            numpy.testing.assert_allclose(series.y, values.mean(0), rtol=1e-12)
            numpy.testing.assert_allclose(series.spread, values.std(0, ddof=0), rtol=1e-9)


def test_all_networks_get_the_same_thousand_images_of_standard_normal_noise(made_up, inputs):
    section = signal_section(made_up(seeds=SEEDS).results)
    assert "for 1,000 inputs of standard normal noise" in section.figures[0].caption
    assert len(inputs) == 2 * 3 * 9 * 3
    first = inputs[0]
    assert first.shape == (1000, 1, 28, 28)
    assert all(torch.equal(noise, first) for noise in inputs)
    # 784,000 numbers: their mean and deviation are within five standard errors.
    assert abs(float(first.mean())) < 5 / 784_000**0.5
    assert abs(float(first.std()) - 1) < 5 / (2 * 784_000) ** 0.5


def test_networks_without_zeros_are_one_and_the_paper_s_initialization_keeps_the_signal(made_up, monkeypatch):
    monkeypatch.setattr(signal_module, "SPARSITIES", (0.0, 0.95))
    monkeypatch.setattr(signal_module, "_EXAMPLES", 100)
    for panel in signal_section(made_up(seeds=(3, 4)).results).figures[0].panels:
        original, liu, ours = (series.y for series in panel.series)
        assert original[0] == liu[0] == ours[0] > 0
        assert original[1] < 0.1 * original[0]
        assert original[1] < liu[1]
        assert original[1] < ours[1]
        assert 0.5 < ours[1] / ours[0] < 2
        assert all(spread > 0 for series in panel.series for spread in series.spread)
