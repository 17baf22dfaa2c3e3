"""Advice from made-up figures: what is said, and which layers are to be left dense."""

from __future__ import annotations

import pytest

from sparsekern.bench.advice import advise, expected, pays_from, shortened, slower_layers
from sparsekern.bench.findings import About, Bytes, Cost, Findings, LayerFinding, Variant, WholeFinding
from sparsekern.bench.model_tables import text

MS = 1e-3
HALF, MOST = Variant("unstructured", 0.5), Variant("unstructured", 0.9)
TWO_FOUR = Variant("2:4", 0.5)


def whole(step, evaluation=None, held=160, peak=200, optimizer=0.0):
    sizes = Bytes(weights=held, gradients=0, optimizer=0, pattern=0, peak=peak)
    return WholeFinding(Cost(step * MS, (evaluation or step) * MS), optimizer * MS, sizes)


def layer(names, dense, **gains):
    """Milliseconds of the dense layer, and speed-ups: half, most and two_four; None where it stays dense."""
    known = {"half": HALF, "most": MOST, "two_four": TWO_FOUR}
    sparse = {
        known[name]: None if gain is None else Cost(dense / gain * MS, dense / gain * MS)
        for name, gain in gains.items()
    }
    names = tuple(names.split())
    return LayerFinding(names, "Linear", (8, 8), ((4, 8),), True, Cost(dense * MS, dense * MS), sparse)


def findings(layers, dense, sparse, left=(), share=1.0, masked=10.0, spread=0.0, load=0.5):
    about = About("net", "Net", 1000, round(1000 * share), "4x8", 4, "AdamW", "float32", "CPU, 1 thread")
    return Findings(about, tuple(layers), dict(left), dense, whole(masked), sparse, spread, load)


def advice_of(*arguments, **options):
    found = findings(*arguments, **options)
    advice = advise(found)
    # Whatever is said fits a terminal.
    assert max(map(len, text(found, advice).splitlines())) <= 120
    return "\n".join(advice.lines), advice.exclude


def test_everything_faster():
    said, exclude = advice_of(
        [layer("a b", 4.0, half=1.2, most=4.0)],
        whole(10.0, held=160),
        {HALF: whole(9.0, 8.0, held=80), MOST: whole(5.0, 4.0, held=20)},
    )
    assert "a step is 2.00 times as fast as dense at 90 % unstructured" in said
    assert "Evaluation: faster, 2.50 times as fast at the best" in said
    assert "nothing to exclude" in said
    assert "Slower than dense" not in said
    assert exclude == {HALF: (), MOST: ()}
    # Two layers of 4 ms in a step of 10.
    assert "About 20% of a dense step is not in layers that can be sparse" in said
    assert "cannot be more than 5.0 times as fast" in said
    assert "(8.0 times less)" in said
    assert "Memory is what sparsity gains" not in said


def test_everything_slower_says_so_and_excludes_nothing_by_name():
    said, _ = advice_of(
        [layer("a b", 4.0, half=0.5, most=0.8)],
        whole(10.0, held=160),
        {HALF: whole(18.0, held=80), MOST: whole(12.5, held=20)},
    )
    assert "sparse is slower than dense here, whatever the sparsity (0.80 times at the best, 90 %" in said
    assert "Evaluation: slower than dense" in said
    assert "50 and 90 % unstructured: all, so leave the model dense" in said
    assert "exclude=" not in said
    assert "Memory is what sparsity gains here." in said
    assert "--exclude" not in said


def test_mixed_layers_are_excluded_where_they_are_slower():
    found = [layer("conv", 6.0, half=0.8, most=3.0), layer("head", 2.0, half=0.5, most=0.5)]
    sparse = {HALF: whole(13.0), MOST: whole(8.0)}
    said, exclude = advice_of(found, whole(10.0), sparse)
    assert exclude == {HALF: ("conv", "head"), MOST: ("head",)}
    assert "50 % unstructured: all, so leave the model dense" in said
    assert '90 % unstructured: exclude=["head"]' in said
    assert "Slower than dense: 50 % unstructured (0.77 times)" in said
    # The head costs 4 ms sparse and 2 dense.
    assert expected(findings(found, whole(10.0), sparse), MOST) == pytest.approx(6 * MS)
    assert "so a step at 90 % unstructured should be about 1.67 times as fast" in said


def test_a_few_percent_are_no_difference():
    said, exclude = advice_of(
        [layer("a", 4.0, half=0.96, most=1.03)], whole(10.0), {HALF: whole(10.3), MOST: whole(9.8)}
    )
    assert exclude == {HALF: (), MOST: ()}
    assert "sparse is about as fast as dense here (1.02 times at the best" in said
    assert "Evaluation: no faster" in said


def test_layers_that_do_not_fit_two_four_are_not_called_slower():
    found = [layer("a", 4.0, half=2.0, two_four=1.5), layer("odd", 1.0, half=2.0, two_four=None)]
    said, exclude = advice_of(found, whole(10.0), {HALF: whole(6.0), TWO_FOUR: whole(8.0)})
    assert exclude == {HALF: (), TWO_FOUR: ()}
    assert "pays most here is unstructured: 50 % unstructured (1.67 times), then 2:4 (1.25 times)" in said
    slow = [layer("a", 4.0, half=2.0, two_four=0.5), layer("odd", 1.0, half=2.0, two_four=None)]
    said, _ = advice_of(slow, whole(10.0), {HALF: whole(6.0), TWO_FOUR: whole(14.0)})
    assert "2:4: all that fit the pattern, so leave the model dense" in said


def test_no_pattern_pays():
    said, _ = advice_of(
        [layer("a", 4.0, half=0.7, two_four=0.9)], whole(10.0), {HALF: whole(14.0), TWO_FOUR: whole(11.0)}
    )
    assert "No pattern pays here; the nearest: 2:4 (0.91 times), then 50 % unstructured" in said


def test_tiny_layers_are_told_about_calls():
    sparse = {HALF: whole(2.0)}
    tiny = [layer("a", 0.03, half=0.5), layer("b", 0.9, half=2.0)]
    assert "They take at most 0.03 ms each" in advice_of(tiny, whole(2.0), sparse)[0]
    assert "take at most" not in advice_of([layer("a", 0.9, half=0.5)], whole(2.0), sparse)[0]


def test_the_optimizer_counts_by_the_share_of_weights():
    dense = whole(10.0, optimizer=4.0)
    said, _ = advice_of([layer("a", 5.0, half=2.0)], dense, {HALF: whole(5.0)}, share=0.5)
    # 5 ms of the layer, and half of the optimizer's 4.
    assert "About 30% of a dense step" in said
    said, _ = advice_of([layer("a", 9.0, half=2.0)], dense, {HALF: whole(5.0)}, share=0.5)
    assert "Nearly all of a dense step" in said


def test_no_bound_contradicts_what_was_measured():
    said, _ = advice_of([layer("a", 4.0, half=2.0)], whole(10.0), {HALF: whole(5.0)})
    assert "Layers by themselves add up to 40% of a dense step, too little for a step that is 2.00" in said
    assert "cannot be more" not in said


def test_simulated_sparsity_is_compared():
    said, _ = advice_of([layer("a", 5.0, half=2.0)], whole(10.0), {HALF: whole(5.0)}, masked=12.5)
    assert "Masks multiplied to dense weights train 0.80 times as fast as dense" in said


def test_a_busy_machine_is_told_of():
    found = [layer("a", 5.0, half=2.0)], whole(10.0), {HALF: whole(5.0)}
    assert "a dense step varies by 40%" in advice_of(*found, spread=0.4)[0]
    assert "busy when this began, 6.2 processes for each core" in advice_of(*found, load=6.2)[0]
    said, _ = advice_of(*found, spread=0.1, load=1.0)
    assert "busy" not in said
    assert "rough" not in said


@pytest.mark.parametrize(
    ("half", "most", "first"),
    [(1.5, 2.0, HALF), (0.5, 2.0, MOST), (0.97, 0.97, HALF), (0.5, 0.5, None), (2.0, 0.5, None)],
)
def test_pays_from_the_sparsity_after_which_all_do(half, most, first):
    assert pays_from(layer("a", 1.0, half=half, most=most), "unstructured") == first
    assert pays_from(layer("a", 1.0, half=half, most=most), "2:4") is None


def test_slower_layers_are_all_names_of_a_kind():
    found = findings([layer("a b", 1.0, half=0.5)], whole(1.0), {HALF: whole(1.0)})
    assert slower_layers(found, HALF) == ["a", "b"]


@pytest.mark.parametrize(
    ("names", "others", "expected_names"),
    [
        (["blocks.0.key", "blocks.1.key"], ["blocks.0.value"], ("blocks.*.key",)),
        (["blocks.0.key", "blocks.1.key"], ["blocks.2.key"], ("blocks.0.key", "blocks.1.key")),
        (["blocks.0.key"], [], ("blocks.0.key",)),
        (["0", "2"], ["4"], ("0", "2")),
        (["0", "2"], [], ("*",)),
        # The pattern of a module takes all that is in it.
        (["a.0", "a.1"], ["a.0.b"], ("a.0", "a.1")),
        (["a.0.k", "a.1.k", "head"], ["a.0.v"], ("a.*.k", "head")),
    ],
)
def test_names_are_shortened_to_patterns_that_match_no_other(names, others, expected_names):
    assert shortened(names, [*names, *others]) == expected_names
