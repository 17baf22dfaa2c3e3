"""The largest of all layers' scores, against stable sorts of everything."""

from __future__ import annotations

import pytest
import torch

from sparsekern.methods.at_init.selection import keep_largest

SHAPES = {"a": (3, 5), "b": (2, 3, 2, 1), "c": (1, 1), "d": (7, 2)}
NUMEL = sum(torch.Size(shape).numel() for shape in SHAPES.values())


def everything():
    return {name: torch.ones(shape, dtype=torch.bool) for name, shape in SHAPES.items()}


def sorted_choice(scores, masks, count):
    """By sorting (score, -index); the best of each layer first, if a layer gets none otherwise."""
    items, offset = [], 0
    for name, score in scores.items():
        for i, (value, active) in enumerate(zip(score.flatten().tolist(), masks[name].flatten().tolist())):
            if active:
                items.append((value, -(offset + i), name))
        offset += score.numel()
    items.sort(reverse=True)
    chosen = items[:count]
    empty = [name for name in scores if not any(item[2] == name for item in chosen)]
    if empty:
        best = [next(item for item in items if item[2] == name) for name in scores]
        chosen = best + [item for item in items if item not in best][: count - len(best)]
    kept = {name: torch.zeros(score.numel(), dtype=torch.bool) for name, score in scores.items()}
    starts = dict(zip(scores, torch.tensor([0, *(s.numel() for s in scores.values())]).cumsum(0).tolist()))
    for _, index, name in chosen:
        kept[name][-index - starts[name]] = True
    return {name: mask.view(scores[name].shape) for name, mask in kept.items()}, empty


@pytest.mark.parametrize("least", [-9, -2, 0], ids=lambda least: f"from{least}")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_every_count_with_many_ties(least, dtype):
    generator = torch.Generator().manual_seed(least + 20)
    scores = {
        name: torch.randint(least, 3, shape, generator=generator).to(dtype) for name, shape in SHAPES.items()
    }
    masks = {name: torch.rand(shape, generator=generator) < 0.7 for name, shape in SHAPES.items()}
    for mask in masks.values():
        mask.view(-1)[0] = True
    for given in (everything(), masks):
        for count in range(len(SHAPES), sum(int(mask.sum()) for mask in given.values()) + 1):
            kept, empty = keep_largest(scores, given, count)
            expected, expected_empty = sorted_choice(scores, given, count)
            assert sum(int(mask.sum()) for mask in kept.values()) == count
            assert empty == expected_empty
            for name, mask in expected.items():
                assert torch.equal(kept[name], mask), (name, count)


def test_equal_scores_stay_from_the_first_one_on():
    kept, empty = keep_largest({name: torch.zeros(shape) for name, shape in SHAPES.items()}, everything(), 28)
    assert empty == ["d"]
    assert [mask.flatten().long().tolist() for mask in kept.values()] == [
        [1] * 15, [1] * 11 + [0], [1], [1] + [0] * 13
    ]  # fmt: skip


def test_what_is_given_stays_as_it_is():
    scores = {name: torch.rand(shape) for name, shape in SHAPES.items()}
    scores["b"] -= 9
    masks = everything()
    copies = {name: score.clone() for name, score in scores.items()}
    _, empty = keep_largest(scores, masks, 5)
    assert "b" in empty
    for name in SHAPES:
        assert torch.equal(scores[name], copies[name])
        assert masks[name].all()


def test_mixed_dtypes_are_compared_exactly():
    scores = {"a": torch.tensor([[1.0 + 2**-7]], dtype=torch.bfloat16), "b": torch.tensor([[1.0, 1 + 2**-8]])}
    kept, _ = keep_largest(scores, {name: torch.ones_like(s).bool() for name, s in scores.items()}, 2)
    assert kept["a"].tolist() == [[True]]
    assert kept["b"].tolist() == [[False, True]]


def test_masks_do_not_share_memory():
    scores = {name: torch.rand(shape) for name, shape in SHAPES.items()}
    kept, _ = keep_largest(scores, everything(), NUMEL)
    assert len({mask.untyped_storage().data_ptr() for mask in kept.values()}) == len(SHAPES)
