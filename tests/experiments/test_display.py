import pytest

from sparsekern.experiments.display import Display

TRAIN = {
    "kind": "train",
    "step": 500,
    "loss": 0.03125,
    "accuracy": 0.991,
    "learning_rate": 0.045,
    "steps_per_second": 212.4,
}
TEST = {"kind": "test", "step": 500, "loss": 0.2, "accuracy": 0.9528}


def test_an_evaluation_is_one_line_on_standard_output(capsys):
    display = Display("lenet5", 0, 2500)
    display.record(TRAIN)
    display.record(TEST)
    display.close()
    captured = capsys.readouterr()
    assert captured.out == (
        "step   500/2,500   train loss 0.0312, accuracy 99.10%   test loss 0.2000, accuracy 95.28%   "
        "lr 0.045     212 steps/s\n"
    )
    assert captured.err == ""


def test_without_training_metrics_the_line_is_shorter(capsys):
    display = Display("lenet5", 0, 2500)
    display.record(TEST)
    assert capsys.readouterr().out == "step   500/2,500   test loss 0.2000, accuracy 95.28%\n"


@pytest.mark.parametrize(
    ("rate", "shown"), [(0.284, " 0.3"), (9.94, " 9.9"), (9.96, "  10"), (999.6, "1000")]
)
def test_slow_steps_have_a_decimal(capsys, rate, shown):
    display = Display("gpt", 0, 2500)
    display.record({**TRAIN, "steps_per_second": rate})
    display.record(TEST)
    assert capsys.readouterr().out.endswith(f"lr 0.045    {shown} steps/s\n")


def test_of_text_bits_are_shown_too(capsys):
    display = Display("gpt", 0, 2500)
    display.record({**TEST, "bits_per_byte": 0.28854})
    assert capsys.readouterr().out == (
        "step   500/2,500   test loss 0.2000, accuracy 95.28%, 0.289 bits per byte\n"
    )


def test_the_bar_starts_where_the_run_resumes(capsys):
    display = Display("lenet5", 500, 1000, bar=True)
    display.advance()
    display.record(TRAIN)
    display._bar.refresh()
    error = capsys.readouterr().err
    assert "lenet5  50% |" in error
    assert "501/1000" in error
    assert "loss 0.0312, accuracy 99.10%, lr 0.045" in error
    display.close()


def test_pruning_and_the_gradient_go_to_the_end_of_the_bar(capsys):
    display = Display("lenet5", 500, 1000, bar=True)
    display.record(TRAIN)
    display.record({"kind": "prune", "step": 500, "sparsity": 0.87654, "active": 5000})
    display.record({"kind": "gradient", "step": 500, "norm": 0.12345})
    display.record({"kind": "gradient_change", "step": 500, "before": 1.0, "after": 2.0})
    display._bar.refresh()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "lr 0.045, sparsity 87.65%, gradient 0.123" in captured.err
    display.record(TEST)
    display.close()
    assert "accuracy 95.28%   sparsity 87.65%   lr 0.045" in capsys.readouterr().out


def test_a_mask_update_goes_to_the_end_of_the_bar_and_is_no_line(capsys):
    display = Display("lenet5", 500, 1000, bar=True)
    display.record(TRAIN)
    display.record({"kind": "update", "step": 500, "grown": 1200, "exploration_rate": 0.1234})
    display._bar.refresh()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "lr 0.045, moved 1,200, explored 12.3%" in captured.err
    display.close()
