"""From raw text to a language model that you trained, understood and post-trained yourself.

>>> import rslm
>>> tokenizer = rslm.Tokenizer.train(None, 300, ["<|endoftext|>"], texts=["low lower lowest"])
>>> tokenizer.decode(tokenizer.encode("lower"))
'lower'

Importing `rslm` takes no torch; the network and the loops are modules of their own.
"""

from rslm import _rslm
from rslm.errors import FormatError
from rslm.token_file import TokenFile
from rslm.tokenizer import StreamDecoder, Tokenizer, train_bpe

# The same as the metadata's, which take longer to read than all else here.
__version__: str = _rslm.VERSION

__all__ = ["FormatError", "StreamDecoder", "TokenFile", "Tokenizer", "__version__", "train_bpe"]
