import pytest

from sparsekern.cli import main
from sparsekern.experiments.command import build_parser, default_output, read_recipe
from sparsekern.experiments.recipe import recipe_keys, recipe_names


def train(*arguments):
    return main(["train", *map(str, arguments)])


def parsed(*arguments):
    return read_recipe(build_parser().parse_args(arguments))


def error_of(capsys, *arguments):
    """The one line on standard error of a command that must end with exit code 2."""
    try:
        code = train(*arguments)
    except SystemExit as exit:
        code = exit.code
    assert code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_help_lists_every_recipe_and_every_key(capsys):
    with pytest.raises(SystemExit) as caught:
        train("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in recipe_names())
    assert all(f"--{key.replace('_', '-')} " in text for key in recipe_keys())
    assert max(map(len, text.splitlines())) <= 120


def test_every_key_can_be_overridden_in_both_spellings():
    dashed, changed = parsed("lenet5-mnist", "--learning-rate", "0.1", "--seed", "-1", "--init=dense")
    assert (dashed.learning_rate, dashed.seed, dashed.init) == (0.1, -1, "dense")
    assert changed == {"init": "dense", "learning_rate": 0.1, "seed": -1}


def test_an_underscore_is_as_good_as_a_dash(tmp_path, capsys):
    message = error_of(capsys, "lenet5-digits", "--learning_rate=-1", "--output", tmp_path / "run")
    assert message == "sparsekern train: error: learning_rate must be a number above 0, got -1\n"


def test_the_default_folder_tells_overrides_apart():
    recipe, changed = parsed("mlp-mnist")
    assert str(default_output(recipe.name, changed)) == "runs/mlp-mnist"
    # A value equal to the recipe's own is no change.
    recipe, changed = parsed("mlp-mnist", "--sparsity", "0.98", "--seed", "1", "--init", "dense")
    assert str(default_output(recipe.name, changed)) == "runs/mlp-mnist-init=dense-seed=1"


def test_a_recipe_file_of_ones_own(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("model: small-mlp\ndataset: digits\nlearning_rate: 0.1\nsteps: 3\n")
    assert train(path, "--output", tmp_path / "run") == 0
    assert capsys.readouterr().out.startswith(
        "mine: small-mlp on digits, dense, sgd, 3 steps of 128, seed 0\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lenet5-digits", "--sparcity", "0.9"], "unknown option --sparcity; did you mean --sparsity?"),
        (["--sparcity=0.9", "lenet5-digits"], "unknown option --sparcity; did you mean --sparsity?"),
        (["lenet5-digits", "--zzz", "1"], "unknown option --zzz (--help lists them)"),
        (["lenet5-digits", "0.9"], "unexpected 0.9; a key is set with --KEY VALUE"),
        (["lenet5-digit"], "unknown recipe 'lenet5-digit'; did you mean lenet5-digits"),
        (["lenet5-digits", "--steps", "many"], "steps must be a whole number, got 'many'"),
        (
            ["lenet5-digits", "--init", "ours"],
            "init must be one of dense, per_layer, per_neuron, got 'ours'",
        ),
        (["lenet5-digits", "--threads", "0"], "--threads: must be a whole number from 1 to 1024, got '0'"),
        (["lenet5-digits", "--device", "gpu5"], "--device must be a device torch can use here, got 'gpu5': "),
        (["lenet5-digits", "--resume", "--overwrite"], "not allowed with argument --resume"),
        (["lenet5-mnist"], "the data set 'mnist' needs --data-dir"),
        (
            ["lenet5-mnist", "--data-dir", "nowhere"],
            "--data-dir must be a folder with the MNIST files, got nowhere",
        ),
        (
            ["vgg16-imagenet"],
            "the data set 'image_folder' needs --data-dir, the folder that holds train/ and",
        ),
        (
            ["vgg16-imagenet", "--data-dir", "nowhere"],
            "--data-dir must be a folder with train/ and val/, got nowhere, which is none",
        ),
        (["lenet5-digits", "--data-dir", "."], "--data-dir must be left out for the data set 'digits'"),
        (["lenet5-digits", "--batch-size", "99999999999"], "training examples, 1,437, got 99,999,999,999"),
        (["lenet5-digits", "--threads", "99999999999"], "a whole number from 1 to 1024, got '99999999999'"),
        (["nothing.yaml"], "nothing.yaml: cannot be read: No such file or directory"),
        ([], "the following arguments are required: RECIPE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    error = error_of(capsys, *arguments)
    assert error.startswith("sparsekern train: error: ")
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_errors_of_the_operating_system_name_the_file(tmp_path, capsys, monkeypatch):
    from sparsekern.experiments import run

    def refuse(path, content):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(run, "write_atomically", refuse)
    code = train("lenet5-digits", "--steps", 1, "--output", tmp_path / "run")
    assert code == 2
    assert capsys.readouterr().err.endswith("recipe.yaml: Permission denied\n")
