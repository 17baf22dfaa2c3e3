"""Files that are either there as a whole or not at all, and one that a single process holds."""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``; whatever goes wrong on the way, the file that was there stays as it
    was.

    The bytes go to a temporary file in the same folder, are forced to the disk, and take the name in one
    step.

    Raises
    ------
    OSError
        As the operating system reports it (a full disk, no permission), with ``path`` as its file name; the
        temporary file is gone by then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold ``path``, an empty file, against other processes that ask for it: also when this one is killed, it
    is free again.

    Raises
    ------
    BlockingIOError
        When another process holds it.
    OSError
        When it cannot be made. File systems without locks hold nothing.
    """
    with open(path, "a") as file:
        _lock(file.fileno())
        yield


@contextlib.contextmanager
def exclusive_folder(folder: Path) -> Iterator[None]:
    """As :func:`exclusive`, for a folder that is there: nothing is put into it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def remove_unfinished(path: Path) -> None:
    """Remove what processes that were killed inside :func:`write_atomically` left of ``path``."""
    temporary = re.compile(rf"\.{re.escape(path.name)}\.[0-9]+\.tmp")
    for file in path.parent.iterdir():
        if temporary.fullmatch(file.name):
            file.unlink(missing_ok=True)


def _lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass  # no locks here, as on some network file systems


def sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
