"""The one exception type of rslm's own; everything else raises built-ins."""


class FormatError(ValueError):
    """A token file, tokenizer file or checkpoint does not hold what its format requires.

    The message names the path, the offset where one is known, what must hold and
    what was found.
    """
