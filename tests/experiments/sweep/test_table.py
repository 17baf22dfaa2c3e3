import json
import statistics

import pytest

from sparsekern.experiments.sweep.outcome import Outcome
from sparsekern.experiments.sweep.table import cells, summary_data, summary_text, table


@pytest.fixture
def outcomes(jobs, finished):
    """Dense 99 and 98 %; rigl from dense fails twice, from per_neuron once."""
    dense0, rigl0, rigl_neuron0, dense1, rigl1, rigl_neuron1 = jobs
    return [
        finished(dense0, 0.99),
        Outcome(rigl0, error="the loss became nan"),
        finished(rigl_neuron0, 0.9),
        finished(dense1, 0.98),
        Outcome(rigl1, error="the loss became nan"),
        Outcome(rigl_neuron1, error="its process ended with SIGKILL"),
    ]


def test_cells_have_mean_and_sample_deviation(outcomes):
    dense, rigl, rigl_neuron = cells(outcomes)
    assert dense["test_accuracies"] == [0.99, 0.98]
    assert dense["mean"] == pytest.approx(0.985)
    assert dense["std"] == pytest.approx(statistics.stdev([0.99, 0.98])) == pytest.approx(0.01 / 2**0.5)
    assert (rigl["finished"], rigl["runs"], rigl["mean"], rigl["std"]) == (0, 2, None, None)
    assert (rigl_neuron["mean"], rigl_neuron["std"]) == (0.9, None)


def test_the_table_is_method_by_init(outcomes):
    assert table(outcomes).splitlines() == [
        "| method | dense init       | per_neuron init |",
        "|--------|------------------|-----------------|",
        "| dense  | 98.50 ± 0.71 (2) |                 |",
        "| rigl   | failed           | 90.00 (1 of 2)  |",
    ]


def test_the_text_has_every_run_and_every_error(outcomes, short_recipe):
    text = summary_text(short_recipe, {"steps": 12}, outcomes)
    assert table(outcomes) in text
    assert "Recipe `lenet5-digits` with `steps` 12; 12 steps a run." in text
    assert "| dense | dense | 0: 99.00%, 1: 98.00% |" in text
    assert "| rigl | per_neuron | 0: 90.00%, 1: failed |" in text
    assert "- `rigl-per_neuron-seed1`: its process ended with SIGKILL" in text


def test_the_data_is_json(outcomes, short_recipe):
    data = json.loads(json.dumps(summary_data(short_recipe, {"steps": 12}, outcomes), allow_nan=False))
    assert data["overrides"] == {"steps": 12}
    assert data["settings"]["steps"] == 12
    assert [run["status"] for run in data["runs"]].count("failed") == 3
    assert data["cells"][0]["mean"] == pytest.approx(0.985)
