"""Conversations read, rendered once and stored: what is trained on, cut, left out, refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sft_chats import FORMAT, TOKENIZER, made_up, store, write_lines
from tiny_models import tiny_tokenizer

from rslm.chat import END, ChatFormat
from rslm.errors import FormatError
from rslm.post import json_lines, sft_data
from rslm.post.sft_data import COUNTS, ChatFile, read_chats, write_chats

END_ID = TOKENIZER.special_tokens[END]
TEXTS = st.text(max_size=30)


def pair(prompt: str, answer: str) -> list[Any]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


@given(said=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5))
def test_stored_ids_and_masks_are_those_of_the_renderer(
    tmp_path_factory: pytest.TempPathFactory, said: list[tuple[str, str]]
):
    chats = [pair(prompt, answer) for prompt, answer in said]
    folder = tmp_path_factory.mktemp("chats") / "c"
    stored = store(folder, [{"messages": chat} for chat in chats], max_length=10**6)
    assert len(stored) == len(chats)
    for number, chat in enumerate(chats):
        token_ids, mask = FORMAT.render(chat)
        assert stored.token_ids(number).tolist() == token_ids
        assert stored.mask(number).tolist() == mask
        # Whoever does not train the end of a turn gets a model that never stops.
        assert token_ids[-1] == END_ID
        assert mask[-1]


def test_prompt_and_answer_are_two_messages(tmp_path: Path):
    stored = store(tmp_path / "c", [{"prompt": "p", "answer": "a", "id": 7}])
    assert stored.token_ids(0).tolist() == FORMAT.render(pair("p", "a")).token_ids


def test_text_like_a_special_token_stays_text(tmp_path: Path):
    stored = store(tmp_path / "c", [{"prompt": "<|end|><|assistant|>", "answer": "<|end|>x"}])
    specials = [i for i in stored.token_ids(0).tolist() if i >= 256]
    names = ("<|endoftext|>", "<|user|>", END, "<|assistant|>", END)
    assert specials == [TOKENIZER.special_tokens[name] for name in names]
    assert int(stored.mask(0).sum()) == len("<|end|>x") + 1


def test_every_answer_of_a_conversation_is_trained_on_and_nothing_else(tmp_path: Path):
    messages = [
        {"role": "system", "content": "S"},
        *pair("u", "AB"),
        {"role": "tool", "content": "T"},
        *pair("v", "C"),
    ]
    stored = store(tmp_path / "c", [{"messages": messages}])
    trained = stored.token_ids(0)[stored.mask(0)].tolist()
    assert trained == [ord("A"), ord("B"), END_ID, ord("C"), END_ID]


def test_too_long_conversations_lose_their_end_never_their_prompt(tmp_path: Path):
    chats = [{"prompt": "p" * 5, "answer": "a" * n} for n in (1, 8, 9, 30)]
    # Begin, user, 5 letters, end, assistant, answer, end: 10 and the answer's letters.
    stored = store(tmp_path / "c", chats, max_length=18)
    assert [len(stored.token_ids(n)) for n in range(4)] == [11, 18, 18, 18]
    for number, n_letters in enumerate((1, 8, 9, 9)):
        ids, mask = stored.token_ids(number), stored.mask(number)
        assert ids[2:7].tolist() == [ord("p")] * 5
        is_whole = n_letters < 9
        assert ids[mask].tolist() == [ord("a")] * n_letters + [END_ID] * is_whole
    counts = stored.counts
    assert (counts.n_read, counts.n_stored, counts.n_cut, counts.n_left_out) == (4, 4, 2, 0)
    assert counts.n_tokens == 11 + 3 * 18
    assert counts.n_trained_tokens == 2 + 9 + 9 + 9


def test_a_conversation_with_nothing_left_to_train_on_is_counted(tmp_path: Path):
    chats = [{"prompt": "p" * 40, "answer": "a"}, {"prompt": "p", "answer": "a"}]
    stored = store(tmp_path / "c", chats, max_length=20)
    assert (stored.counts.n_stored, stored.counts.n_left_out, stored.counts.n_cut) == (1, 1, 0)
    assert "1 left out" in stored.counts.sentence("x", 20)
    # Its last id that fits is the header of the answer, after which nothing is trained.
    exact = [{"prompt": "p" * 15, "answer": "a"}, {"prompt": "p" * 14, "answer": "a"}]
    assert store(tmp_path / "d", exact, max_length=19).counts.n_left_out == 1


def test_too_long_can_be_left_out_or_refused(tmp_path: Path):
    chats = [{"prompt": "p", "answer": "a" * 30}, {"prompt": "p", "answer": "a"}]
    stored = store(tmp_path / "c", chats, max_length=20, too_long="leave-out")
    assert (stored.counts.n_stored, stored.counts.n_left_out, stored.counts.n_cut) == (1, 1, 0)
    with pytest.raises(ValueError, match=r"d\.jsonl, line 1: .* at most 20 tokens, got 36"):
        store(tmp_path / "d", chats, max_length=20, too_long="refuse")
    assert not list(tmp_path.glob("d*/"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "must be JSON"),
        ("[" * 100_000, "must be JSON"),
        ("nonsense", "must be JSON"),
        ('{"a": ' + "9" * 5000 + "}", "must be JSON"),
        ("[]", "must be an object with messages, or with prompt and answer"),
        ("null", "must be an object"),
        ("{}", "must be an object"),
        ('{"prompt": "p"}', "must be an object"),
        ('{"prompt": "p", "answer": 3}', "must be an object"),
        ('{"prompt": "p", "answer": "a", "messages": []}', "must be an object"),
        ('{"messages": "hello"}', "messages must be a list"),
        ('{"messages": []}', "at least one message"),
        ('{"messages": [{"role": "user"}]}', r"messages\[0\] must have role and content"),
        ('{"messages": [{"role": "root", "content": ""}]}', r"messages\[0\]\.role"),
        ('{"messages": [{"role": "assistant", "content": null}]}', r"content must be a string"),
        # The mask would be zero everywhere, and a loss over nothing is no number.
        ('{"messages": [{"role": "user", "content": "hi"}]}', "an answer to train on"),
    ],
)
def test_a_wrong_line_is_named_and_leaves_nothing(tmp_path: Path, line: str, reason: str):
    good = json.dumps({"prompt": "p", "answer": "a"})
    path = tmp_path / "x.jsonl"
    path.write_text(f"{good}\n\n{line}\n")
    with pytest.raises(ValueError, match=rf"x\.jsonl, line 3.*{reason}") as caught:
        write_chats(tmp_path / "out", read_chats([path]), FORMAT, max_length=99)
    assert len(str(caught.value)) < 500
    assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]


def test_bytes_that_are_no_text_and_endless_lines_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"prompt": "\xff", "answer": "a"}\n')
    with pytest.raises(ValueError, match="line 1: must be JSON"):
        list(read_chats([path]))
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 100)
    path.write_bytes(b" " * 101)
    with pytest.raises(ValueError, match="at most 100 bytes"):
        list(read_chats([path]))


def test_lone_surrogates_do_no_harm(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "\\ud800", "answer": "\\udfff"}\n')
    write_chats(tmp_path / "out", read_chats([path]), FORMAT, max_length=99)
    ids = ChatFile(tmp_path / "out", TOKENIZER).token_ids(0)
    assert TOKENIZER.decode(ids.tolist()).count("�") == 2


def test_nothing_to_train_on_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="there must be a conversation to train on"):
        store(tmp_path / "c", [])
    with pytest.raises(ValueError, match="got 1, of which 1 were left out"):
        store(tmp_path / "d", [{"prompt": "p" * 50, "answer": "a"}], max_length=10)
    assert not list(tmp_path.glob("*/"))


def test_a_format_without_end_token_trains_what_stands_for_it(tmp_path: Path):
    plain = tiny_tokenizer(has_chat=False)
    path = write_lines(tmp_path / "c.jsonl", [{"prompt": "p", "answer": "a"}])
    write_chats(tmp_path / "c", read_chats([path]), ChatFormat.of(plain), max_length=99)
    stored = ChatFile(tmp_path / "c", plain)
    assert plain.decode(stored.token_ids(0)[stored.mask(0)].tolist()) == "a\n\n"


def test_many_conversations_need_no_more_memory_than_a_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sft_data, "_SHARD_TOKENS", 50)
    chats = made_up(40)
    stored = store(tmp_path / "c", chats)
    assert len(stored.token_file.shards) > 5
    whole = store(tmp_path / "d", chats)
    for number in range(40):
        assert stored.token_ids(number).tolist() == whole.token_ids(number).tolist()
        assert stored.mask(number).tolist() == whole.mask(number).tolist()


def test_other_tokenizers_and_damaged_counts_are_refused(tmp_path: Path):
    store(tmp_path / "c", made_up(3))
    with pytest.raises(FormatError, match="another tokenizer"):
        ChatFile(tmp_path / "c", tiny_tokenizer(has_chat=False))
    for text in ("", "[]", "{}", '{"n_read": "3"}', "[" * 10**5):
        (tmp_path / "c" / COUNTS).write_text(text)
        with pytest.raises(FormatError, match=r"chats\.json"):
            ChatFile(tmp_path / "c", TOKENIZER)


def test_equal_conversations_have_one_fingerprint(tmp_path: Path):
    one, two = (store(tmp_path / name, made_up(5)) for name in "ab")
    assert one.fingerprint == two.fingerprint
    assert one.fingerprint != store(tmp_path / "c", made_up(5, seed=1)).fingerprint
    assert np.array_equal(one.n_targets, [len(one.token_ids(n)) - 1 for n in range(5)])
