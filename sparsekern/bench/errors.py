"""What a user of ``sparsekern bench`` can mend; the command prints it as one line."""


class BenchError(Exception):
    """What was asked for cannot be measured."""


def one_line(error: BaseException) -> str:
    """The kind of an error and the first line of its text, as ``ValueError: ...``."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
