"""From raw text to a language model that you trained, understood and post-trained yourself.

>>> import rslm
>>> tokenizer = rslm.Tokenizer.train(None, 300, ["<|endoftext|>"], texts=["low lower lowest"])
>>> tokenizer.decode(tokenizer.encode("lower"))
'lower'

Importing `rslm` takes no torch; the network and the loops are modules of their own.
"""

from typing import TYPE_CHECKING, Any

from rslm import _rslm
from rslm.errors import FormatError
from rslm.tokenizer import StreamDecoder, Tokenizer, train_bpe

if TYPE_CHECKING:
    from rslm.token_file import TokenFile

# The same as the metadata's, which take longer to read than all else here.
__version__: str = _rslm.VERSION

__all__ = ["FormatError", "StreamDecoder", "TokenFile", "Tokenizer", "__version__", "train_bpe"]


def __getattr__(name: str) -> Any:
    """Loads what not every program needs when it is asked for."""
    if name == "TokenFile":
        from rslm.token_file import TokenFile

        return TokenFile
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
