import errno
import os
import signal
import subprocess
import sys

import pytest

from sparsekern.files import exclusive, remove_unfinished, write_atomically


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, failing):
    path = tmp_path / "file"
    write_atomically(path, b"one")

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_atomically(path, b"two")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["file"]


def test_data_reach_the_disk_before_the_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("replace"), replace(*names)))
    write_atomically(tmp_path / "file", b"one")
    assert calls == ["fsync", "replace", "fsync"]


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "nothing" / "file", b"one")


def test_only_the_temporary_files_of_this_name_are_removed(tmp_path):
    ours = [".run.pt.1.tmp", ".run.pt.99999.tmp"]
    others = ["run.pt", ".run.pt.tmp", ".run.pt.a1.tmp", "run.pt.1.tmp", ".runxpt.1.tmp", ".other.1.tmp"]
    for name in ours + others:
        (tmp_path / name).touch()
    remove_unfinished(tmp_path / "run.pt")
    assert sorted(os.listdir(tmp_path)) == sorted(others)


def test_one_at_a_time_holds_a_path(tmp_path):
    path = tmp_path / "lock"
    with exclusive(path):
        with pytest.raises(BlockingIOError), exclusive(path):
            pytest.fail("held twice")
    with exclusive(path):
        pass
    assert path.read_bytes() == b""


def test_a_process_that_is_killed_lets_go(tmp_path):
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from sparsekern.files import exclusive\n"
        "with exclusive(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / "lock"
    assert subprocess.run([sys.executable, "-c", program, path]).returncode == -signal.SIGKILL
    with exclusive(path):
        pass


def test_a_process_killed_while_it_writes_leaves_what_is_removed(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"one")
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from sparsekern.files import write_atomically\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(Path(sys.argv[1]), b'two')"
    )
    assert subprocess.run([sys.executable, "-c", program, path]).returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 2
    remove_unfinished(path)
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == b"one"
