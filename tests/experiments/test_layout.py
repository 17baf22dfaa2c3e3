import pytest
import torch

from sparsekern.experiments.layout import misfit

EXPECTED = {"a": [1, 2.0, None], "b": {"w": torch.zeros(2, 3)}}


def test_other_values_and_another_order_of_keys_fit():
    assert misfit({"b": {"w": torch.ones(2, 3)}, "a": [7, 0.5, None]}, EXPECTED) == ""


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "it: expected a dictionary, found nothing"),
        ({"a": []}, "it: expected the keys a, b, found a"),
        ({}, "it: expected the keys a, b, found none"),
        ({**EXPECTED, "a": [1, 2.0]}, "it['a']: expected 3 entries, found 2"),
        ({**EXPECTED, "a": [True, 2.0, None]}, "it['a'][0]: expected int, found bool"),
        ({**EXPECTED, "a": [1, 2.0, "x"]}, "it['a'][2]: expected nothing, found str"),
        (
            {**EXPECTED, "b": {"w": torch.zeros(3, 2)}},
            "it['b']['w']: expected a tensor float32 (2, 3), found a tensor float32 (3, 2)",
        ),
        (
            {**EXPECTED, "b": {"w": torch.zeros(2, 3, dtype=torch.int64)}},
            "it['b']['w']: expected a tensor float32 (2, 3), found a tensor int64 (2, 3)",
        ),
        ({**EXPECTED, "b": {"w": 3}}, "it['b']['w']: expected a tensor float32 (2, 3), found int"),
    ],
)
def test_the_first_misfit_is_named(found, message):
    assert misfit(found, EXPECTED, "it") == message


def test_many_keys_stay_on_a_readable_line():
    assert len(misfit(dict.fromkeys(range(1000)), EXPECTED)) < 100
