"""From raw text to a language model that you trained, understood and post-trained yourself.

>>> import rslm
>>> tokenizer = rslm.Tokenizer.train(None, 300, ["<|endoftext|>"], texts=["low lower lowest"])
>>> tokenizer.decode(tokenizer.encode("lower"))
'lower'

Importing `rslm` takes no torch; the network and the loops are modules of their own. What is
exported here is loaded when it is asked for, so that the command can prepare its process first.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rslm import _rslm
    from rslm.errors import FormatError
    from rslm.token_file import TokenFile
    from rslm.tokenizer import StreamDecoder, Tokenizer, train_bpe

    # The same as the metadata's, which take longer to read than all else here.
    __version__: str = _rslm.VERSION

__all__ = ["FormatError", "StreamDecoder", "TokenFile", "Tokenizer", "__version__", "train_bpe"]

_HOMES = {
    "FormatError": "errors",
    "StreamDecoder": "tokenizer",
    "TokenFile": "token_file",
    "Tokenizer": "tokenizer",
    "train_bpe": "tokenizer",
}


def __getattr__(name: str) -> Any:
    """Loads an exported name, or a module that holds some."""
    from importlib import import_module

    if name == "__version__":
        value = import_module("rslm._rslm").VERSION
    elif name in _HOMES:
        value = getattr(import_module(f"rslm.{_HOMES[name]}"), name)
    elif name == "_rslm" or name in _HOMES.values():
        value = import_module(f"rslm.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
