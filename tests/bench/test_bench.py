"""``sparsekern bench``: what it prints and refuses; its times are nobody's business here."""

from __future__ import annotations

import re

import pytest
import torch

from sparsekern.bench.layer_command import verdict
from sparsekern.bench.layers import PATTERNS, Answer, Question, layers_of
from sparsekern.cli import main


def question(pattern="2:4"):
    return Question(8, 16, pattern, 0.5, torch.float32, torch.device("cpu"))


def answers(*speedups):
    """One for 1, 8, 64, ... tokens."""
    return [Answer(8**i, speedup, 1.0, speedup, 1.0) for i, speedup in enumerate(speedups)]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_table_for_every_pattern(pattern, capsys):
    assert main(["bench", "64x128", "--pattern", pattern, "--tokens", "4,1", "--seconds", "0.001"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"64 x 128, {pattern}")
    assert [line.split()[0] for line in lines[1:4]] == ["tokens", "1", "4"]
    assert all(re.fullmatch(r"[\d.]+x", line.split()[3]) for line in lines[2:4])
    assert lines[5].startswith("forward: sparse is ")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_both_layers_have_the_same_weights_where_sparse(pattern):
    dense, sparse = layers_of(Question(64, 128, pattern, 0.5, torch.float32, torch.device("cpu")))
    mask = sparse.mask
    assert 0.4 < mask.float().mean() < 0.6
    tolerance = 0.02 if pattern.endswith("int8") else 0
    assert ((sparse.to_dense() - dense.weight)[mask].abs() <= tolerance).all()


@pytest.mark.parametrize(
    ("speedups", "expected"),
    [
        ((1.1, 1.2, 1.3), "faster at all of these"),
        ((0.9, 0.8, 0.7), "slower at all of these"),
        ((0.9, 1.2, 1.3), "faster from 8 tokens on, slower at 1 and below"),
        ((1.9, 1.2, 0.3), "faster up to 8 tokens, slower at 64 and above"),
        ((1.9, 0.2, 1.3), "faster at 1, 64 tokens, slower at the others"),
    ],
)
def test_verdict(speedups, expected):
    lines = verdict(question(), answers(*speedups)).splitlines()
    assert lines[0] == f"forward: sparse is {expected}"
    assert lines[1] == f"forward and backward: sparse is {expected}"
    hint = "TwoFourLinear(dense_below=8) multiplies smaller batches densely"
    assert (hint in lines) is expected.startswith("faster from")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["4096"], "must be OUTxIN, such as 4096x4096, got '4096'"),
        (["0x8"], "must be OUTxIN"),
        (["8x8", "--tokens", "1,x"], "must be a whole number from 1 to"),
        (["8x8", "--pattern", "1:4"], "invalid choice: '1:4'"),
        (
            ["8x8", "--pattern", "2:4", "--sparsity", "0.9"],
            "--sparsity must be left out for --pattern 2:4, got 0.9",
        ),
        (["8x6", "--pattern", "2:4"], "multiple of 4"),
        (["8x8", "--sparsity", "1.5"], "sparsity must be"),
        (["8x8", "--device", "nowhere"], "nowhere"),
        (["8x8", "--device", "meta"], "--device must be cpu or cuda, got meta"),
        (["8x8", "--seconds", "nan"], "must be a number of seconds above 0"),
        (["8x8", "--seconds", "0"], "must be a number of seconds above 0"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    try:
        code = main(["bench", *arguments])
    except SystemExit as ended:
        code = ended.code
    printed = capsys.readouterr().err
    assert code == 2
    assert message in printed
    assert len(printed.splitlines()) == 1
