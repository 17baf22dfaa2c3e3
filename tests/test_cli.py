import builtins
import os
import subprocess
import sys

import pytest

from sparsekern._version import __version__
from sparsekern.cli import COMMANDS, main


def sparsekern(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "sparsekern", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_train_from_start_to_end(tmp_path):
    run = sparsekern("train", "lenet5-digits", "--steps", 30, "--benchmark-steps", 3, "--output", tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert "lenet5-digits: lenet5 on digits, " in run.stdout
    for text in ("step 30/30   train loss", "bytes held to train", "ms a training step", "test accuracy "):
        assert text in run.stdout
    assert (tmp_path / "result.json").exists()


def test_a_users_mistake_has_no_traceback(tmp_path):
    run = sparsekern("train", "lenet5-digits", "--sparsity", 2, "--output", tmp_path / "run")
    assert run.returncode == 2
    assert run.stdout == ""
    message = "sparsity must be a number of at least 0 and below 1, got 2"
    assert run.stderr == f"sparsekern train: error: {message}\n"


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"sparsekern {__version__}\n"


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["trian"],
            "unknown command 'trian'; did you mean train? "
            "(the commands are train, sweep, reproduce, bench, convert, env)",
        ),
        (["x"], "unknown command 'x' (the commands are train, sweep, reproduce, bench, convert, env)"),
        ([], "the following arguments are required: COMMAND"),
        (["env", "--all"], "unrecognized arguments: --all"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_code_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_env_prints_the_report(capsys, monkeypatch):
    from sparsekern import env

    monkeypatch.setattr(env, "report", lambda: "the report")
    assert main(["env"]) == 0
    assert capsys.readouterr().out == "the report\n"


@pytest.mark.parametrize("package", ["yaml", "tqdm"])
def test_train_without_its_packages_says_what_to_install(capsys, monkeypatch, forget_modules, package):
    original = builtins.__import__

    def without_package(name, *arguments, **keywords):
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, *arguments, **keywords)

    forget_modules("sparsekern.experiments")
    monkeypatch.setattr(builtins, "__import__", without_package)
    assert main(["train", "lenet5-digits"]) == 2
    error = capsys.readouterr().err
    hint = f"needs the package {package}, of the extra [train]: pip install -e '.[train]'"
    assert error == f"sparsekern train: error: {hint}\n"
