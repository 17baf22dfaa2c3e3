"""The values that reports print as the paper's, against tables typed a second time, in the paper's layout."""

import pytest

from sparsekern.experiments.reproduce.paper import (
    ACCURACY,
    DEVIATIONS,
    DISTANCES,
    IMAGENET,
    INVERTED,
    SIMILARITY,
    Printed,
)
from sparsekern.experiments.reproduce.runs import INITS

# Columns: Original, Liu et al., Ours; each mean and standard deviation.
BY_INIT = {
    "lenet5": """
        scratch  62.99 42    96.64 0.83  97.70 0.09
        set      63.33 42    97.77 0.31  98.16 0.06
        rigl     80.82 35    98.14 0.17  98.13 0.09
    """,
    "mlp": """
        scratch  94.40 4.00  96.66 0.18  96.70 0.12
        set      96.49 0.36  96.56 0.22  96.48 0.10
        rigl     96.82 0.25  96.76 0.19  96.94 0.12
    """,
}
# Columns: Dense, Lottery, Small-Dense.
WITHOUT_INIT = {
    "lenet5": "99.21 0.07  98.26 0.27  98.21 0.46",
    "mlp": "98.55 0.04  97.73 0.11  91.69 1.85",
}
# Columns: test accuracy, its standard deviation, ensemble, disagreement, disagreement with the pruned one.
AGREEMENT = """
    lottery             98.52 0.02  98.58  0.0043  0.0089
    scratch             97.04 0.15  98.00  0.0316  0.0278
    scratch_other_init  97.19 0.33  98.43  0.0352  0.0278
    restart             98.60 0.01  98.63  0.0027  0.0077
    pruned              98.30 0.23  99.07  0.0214  0.0197
"""


def rows(text):
    for line in text.strip().splitlines():
        name, *numbers = line.split()
        yield name, [float(number) for number in numbers]


@pytest.mark.parametrize("network", ["lenet5", "mlp"])
def test_tables_1_and_5(network):
    expected = {}
    for method, numbers in rows(BY_INIT[network]):
        for init, mean, std in zip(INITS, numbers[::2], numbers[1::2], strict=True):
            expected[method, init] = Printed(mean, std)
    numbers = [float(number) for number in WITHOUT_INIT[network].split()]
    for role, mean, std in zip(("dense", "lottery", "small_dense"), numbers[::2], numbers[1::2], strict=True):
        expected[role, "dense"] = Printed(mean, std)
    assert INITS == ("dense", "per_layer", "per_neuron")
    assert ACCURACY[network] == expected
    assert len(expected) == 12


def test_table_2():
    expected = {
        group: (Printed(accuracy, std), Printed(ensemble), Printed(pairs), Printed(with_pruned))
        for group, (accuracy, std, ensemble, pairs, with_pruned) in rows(AGREEMENT)
    }
    assert expected == SIMILARITY


def test_inverted_growth_and_distances():
    assert Printed(92.71, 7.67) == INVERTED
    # The start, then the end of training.
    assert DISTANCES == {"lottery": (13.61, 8.03), "scratch": (17.46, 25.64)}


def test_imagenet():
    assert IMAGENET == {
        "VGG-16": {"scratch": 62.52, "set": 63.13, "rigl": 63.56, "dense": 69.25},
        "ResNet-50": {
            "scratch": 70.63,
            "set": 72.56,
            "rigl": 74.38,
            "dense": 76.75,
            "lottery": 75.75,
            "rigl_inverted": 73.83,
        },
    }


def test_deviations_are_rows_of_four_cells_about_different_things():
    assert all(len(row) == 4 and all(isinstance(cell, str) for cell in row) for row in DEVIATIONS)
    subjects = [what for what, _, _, _ in DEVIATIONS]
    assert len(set(subjects)) == len(subjects)
    assert all(what and followed for what, _, _, followed in DEVIATIONS)
