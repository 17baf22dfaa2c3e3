"""Code of a user's own that a command is given by name, as ``MODULE:CALLABLE``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["UserCodeError", "find_callable", "one_line"]


class UserCodeError(ValueError):
    """What a name stands for cannot be imported, or is nothing that can be called."""


def find_callable(name: str) -> Callable[..., Any]:
    """What ``MODULE:CALLABLE`` names, imported from where the command is run or from what is installed.

    Parameters
    ----------
    name : str
        A module as ``import`` names it, a colon, and a name in it, with dots for attributes of attributes.

    Returns
    -------
    callable

    Raises
    ------
    UserCodeError
        For a name of another form, a module that cannot be imported, and what is not there or not callable.
    """
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise UserCodeError(f"a model must be MODULE:CALLABLE, such as my_models:build, got {name!r}")
    if module_name.endswith(".py"):
        dotted = module_name.removesuffix(".py").replace("/", ".").lstrip(".")
        raise UserCodeError(f"a module is named as import does it: {dotted}:{path}, got {name!r}")
    # As for `python -m`: scripts that are installed have their own folder there instead.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        # A module's own code may raise anything, and a script without a guard ends the process.
        raise UserCodeError(f"the module {module_name!r} cannot be imported: {one_line(error)}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise UserCodeError(f"the module {module_name!r} has no {path!r}")
        found = getattr(found, part)
    if not callable(found):
        raise UserCodeError(f"{name} must be callable, got {type(found).__name__}")
    return found


def one_line(error: BaseException) -> str:
    """The kind of an error and the first line of its text, as ``ValueError: ...``."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
