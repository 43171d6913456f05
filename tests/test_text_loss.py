"""The loss on a token file: by whose ids it is measured."""

from collections.abc import Sequence

import pytest

from rslm.chat import CHAT_TOKENS
from rslm.evaluate.text_loss import has_ids_of
from rslm.tokenizer import Tokenizer

END_OF_TEXT = "<|endoftext|>"


def of_bytes(special_tokens: Sequence[str], last: str = "ab") -> Tokenizer:
    vocab = dict(enumerate([*(bytes([i]) for i in range(256)), last.encode()]))
    return Tokenizer(vocab, [(last[:1].encode(), last[1:].encode())], special_tokens)


@pytest.mark.parametrize(
    ("before", "is_same"),
    [
        (of_bytes([END_OF_TEXT, *CHAT_TOKENS]), True),
        (of_bytes([END_OF_TEXT]), True),
        (of_bytes([END_OF_TEXT, *CHAT_TOKENS[:2]]), True),
        (of_bytes([END_OF_TEXT], last="cd"), False),
        (of_bytes(["<|other|>"]), False),
        (of_bytes([END_OF_TEXT, *CHAT_TOKENS, "<|more|>"]), False),
    ],
)
def test_a_tokenizer_has_the_ids_it_had_before_it_got_chat_tokens(
    before: Tokenizer, is_same: bool
) -> None:
    assert has_ids_of(of_bytes([END_OF_TEXT, *CHAT_TOKENS]), before.sha256) == is_same


def test_special_tokens_in_front_are_not_taken_for_later_ones() -> None:
    words = [END_OF_TEXT.encode(), *(bytes([i]) for i in range(256)), CHAT_TOKENS[0].encode()]
    grown = Tokenizer(dict(enumerate(words)), [], [END_OF_TEXT, CHAT_TOKENS[0]])
    before = Tokenizer(dict(enumerate(words[:-1])), [], [END_OF_TEXT])
    assert has_ids_of(grown, before.sha256)
    assert not has_ids_of(before, grown.sha256)
