"""What a user can get wrong with `sparsekern convert`."""


class ConvertError(Exception):
    """Says in one line which file or option, what was expected and what came."""
