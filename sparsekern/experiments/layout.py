"""Whether a state that was read has the form of the state it is to replace."""

from typing import Any

import torch


def misfit(found: Any, expected: Any, name: str = "the state") -> str:
    """The first place where ``found`` has another form than ``expected``: other keys, types or shapes.

    Values are not compared, and neither is the order of a dictionary's items.

    Parameters
    ----------
    found, expected : Any
        Dictionaries, lists and tuples of tensors, numbers, text, None, nested in any way.
    name : str
        What ``found`` is called.

    Returns
    -------
    str
        ``"NAME: expected ..., found ..."``, or nothing if all fits.
    """
    if _form(found) != _form(expected):
        return _misfit(name, _form(expected), _form(found))
    if isinstance(expected, dict):
        if found.keys() != expected.keys():
            return _misfit(name, f"the keys {_keys(expected)}", _keys(found))
        parts = [(found[key], expected[key], f"{name}[{key!r}]") for key in expected]
    elif isinstance(expected, (list, tuple)):
        if len(found) != len(expected):
            return _misfit(name, f"{len(expected)} entries", str(len(found)))
        parts = [(*pair, f"{name}[{index}]") for index, pair in enumerate(zip(found, expected))]
    else:
        return ""
    return next(filter(None, (misfit(*part) for part in parts)), "")


def _misfit(name: str, expected: str, found: str) -> str:
    return f"{name}: expected {expected}, found {found}"


def _keys(content: dict[Any, Any]) -> str:
    """A few of the keys, so that the line stays readable."""
    shown = [str(key) for key in list(content)[:12]] + ["..."] * (len(content) > 12)
    return ", ".join(shown) or "none"


def _form(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, dict):
        return "a dictionary"
    return "nothing" if value is None else type(value).__name__
