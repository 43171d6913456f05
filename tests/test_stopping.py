import pytest
from engines import TOKENIZER
from hypothesis import given
from hypothesis import strategies as st

from rslm.infer.stopping import StoppedText

STOPS = st.lists(st.text("ab€", min_size=1, max_size=4), max_size=3)


def cut(whole: str, stops: list[str], *, keep_stop: bool) -> tuple[str, str | None]:
    """The text up to the stop string that completes first, found character by character."""
    for end in range(1, len(whole) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if whole[:end].endswith(stop):
                return whole[: end if keep_stop else end - len(stop)], stop
    return whole, None


def read(text: StoppedText, token_ids: list[int]) -> tuple[list[str], int]:
    """The pieces, and how many ids were taken."""
    pieces = []
    for n, token_id in enumerate(token_ids, 1):
        pieces.append(text.add(token_id))
        if text.stopped_by is not None:
            return pieces, n
    return [*pieces, text.finish()], len(token_ids)


@given(st.text("ab€é", max_size=12), STOPS, st.booleans())
def test_text_ends_at_the_stop_string_that_completes_first(
    whole: str, stops: list[str], keep_stop: bool
):
    """Through bytes as tokens: every character and every stop string is cut."""
    text = StoppedText(TOKENIZER.stream_decoder(), stops, keep_stop=keep_stop)
    pieces, n_taken = read(text, list(whole.encode()))
    expected, stop = cut(whole, stops, keep_stop=keep_stop)
    assert "".join(pieces) == expected
    assert text.stopped_by == stop
    if stop is not None:
        kept, _ = cut(whole, stops, keep_stop=True)
        assert n_taken == len(kept.encode())


class Pieces:
    """A decoder whose ids are indices of strings."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces

    def add(self, token_id: int) -> str:
        return self.pieces[token_id]

    def finish(self) -> str:
        return ""


@given(st.lists(st.text("ab", max_size=4), max_size=8), STOPS, st.booleans())
def test_how_tokens_cut_the_text_changes_nothing(
    pieces: list[str], stops: list[str], keep_stop: bool
):
    text = StoppedText(Pieces(pieces), stops, keep_stop=keep_stop)  # type: ignore[arg-type]
    shown, _ = read(text, list(range(len(pieces))))
    assert ("".join(shown), text.stopped_by) == cut("".join(pieces), stops, keep_stop=keep_stop)


@given(st.lists(st.text("ab", max_size=4), max_size=8), STOPS)
def test_no_more_is_held_back_than_may_begin_a_stop_string(pieces: list[str], stops: list[str]):
    text = StoppedText(Pieces(pieces), stops)  # type: ignore[arg-type]
    shown = whole = ""
    for i, piece in enumerate(pieces):
        shown += text.add(i)
        whole += piece
        if text.stopped_by is not None:
            return
        held = whole[len(shown) :]
        assert whole.startswith(shown)
        assert held == "" or any(stop.startswith(held) and len(held) < len(stop) for stop in stops)
        # And nothing longer could still become one.
        for start in range(len(shown)):
            assert not any(stop.startswith(whole[start:]) for stop in stops)


def test_half_a_character_is_held_and_then_flushed():
    text = StoppedText(TOKENIZER.stream_decoder())
    first, second, third = "€".encode()
    assert [text.add(97), text.add(first), text.add(second)] == ["a", "", ""]
    assert text.add(third) == "€"
    assert [text.add(first), text.add(second), text.finish()] == ["", "", "\ufffd"]


def test_a_stop_string_may_be_a_replacement_character():
    text = StoppedText(TOKENIZER.stream_decoder(), ["\ufffd"])
    assert [text.add(97), text.add(0xE2), text.finish()] == ["a", "", ""]
    assert text.stopped_by == "\ufffd"


@pytest.mark.parametrize("keep_stop", [False, True])
def test_the_longest_of_stop_strings_that_complete_together_counts(keep_stop: bool):
    text = StoppedText(TOKENIZER.stream_decoder(), ["c", "abc", "bc"], keep_stop=keep_stop)
    pieces, _ = read(text, list(b"xabcd"))
    assert "".join(pieces) == ("xabc" if keep_stop else "x")
    assert text.stopped_by == "abc"
