"""The package fastText, which trains classifiers, and texts as it takes them.

Models are read and asked by `rslm._rslm.FastText`, in Rust, which answers as the package's
version 0.9.2 does to the bit and refuses files that would end a process there.
"""

from __future__ import annotations

import re
from typing import Any

# What is a mark to fastText where it stands as a word, or at the beginning of one.
_LABEL = re.compile(r"(?:(?<=[ \t\v\f\r\0])|^)__label__")
_END = "</s>"

_FIX = "pip install --force-reinstall --no-deps fasttext-community"


def fasttext_module(needed: str) -> Any:
    """The module `fasttext`, which must have the function that is needed.

    Several packages install a module of this name over each other; some can only predict.

    Raises:
        ValueError: it is missing, broken, or another.
    """
    try:
        import fasttext
    except ModuleNotFoundError as error:
        raise ValueError(
            "this needs fasttext-community, which is not installed: pip install 'rslm[data]'"
        ) from error
    except ImportError as error:
        raise ValueError(f"the module fasttext is damaged ({error}); mend it: {_FIX}") from error
    if not hasattr(fasttext, needed):
        raise ValueError(
            f"the module fasttext must have {needed}, but another package installed its own over "
            f"that of fasttext-community; mend it: {_FIX}"
        )
    return fasttext


def one_line(text: str) -> str:
    """The text as fastText takes it: one line, in which no word is a mark.

    Line ends become blanks. `</s>` would end the text there, and a word that begins with
    `__label__` would be a label; both are text that anybody may write on a page.
    """
    if "\n" in text:
        text = text.replace("\n", " ")
    if _END in text:
        text = text.replace(_END, " ")
    if "__label__" in text:
        text = _LABEL.sub("label ", text)
    try:
        text.encode()
    except UnicodeEncodeError:
        units = text.encode("utf-16-le", "surrogatepass")
        text = units.decode("utf-16-le", "replace")
    return text
