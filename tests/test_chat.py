"""Conversations as ids and mask, against the template in `transformers`; what is refused."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import TEXTS, texts_with_special

from rslm.chat import CHAT_TOKENS, CHATML_TOKENS, FORMAT_NAMES, ROLES, ChatFormat, Message
from rslm.tokenizer import Tokenizer

END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = [END_OF_TEXT, *CHAT_TOKENS, *CHATML_TOKENS]
PATTERNS = ["gpt2", "qwen2", "llama3"]
DEFAULT_SYSTEM = 'You\'re "good"\\ {{ x }} {% é 世 😀\n\tB'


@pytest.fixture(scope="session")
def chat_tokenizer(rust_tokenizer) -> Any:
    """`chat_tokenizer(pattern)`: with the special tokens of all formats."""

    def build(pattern: str = "gpt2", special_tokens: Any = SPECIAL_TOKENS) -> Tokenizer:
        twin = rust_tokenizer()
        return Tokenizer(twin.vocab, twin.merges, special_tokens, pattern=pattern)

    return build


@pytest.fixture(scope="session", params=[(n, p) for n in FORMAT_NAMES for p in PATTERNS])
def chat_format(request, chat_tokenizer) -> ChatFormat:
    name, pattern = request.param
    return ChatFormat.of(chat_tokenizer(pattern), name)


def say(*turns: tuple[str, str]) -> list[Message]:
    return [{"role": role, "content": content} for role, content in turns]  # type: ignore[misc]


MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(ROLES), "content": TEXTS | texts_with_special(SPECIAL_TOKENS)}
    ),
    min_size=1,
    max_size=6,
)


def test_the_ids_of_each_format_are_these(chat_tokenizer) -> None:
    tokenizer = chat_tokenizer()
    messages = say(("user", "Hi"), ("assistant", "Yes"))

    def rendered(name: str) -> tuple[str, str]:
        token_ids, mask = ChatFormat.of(tokenizer, name).render(messages)
        trained = [token_id for token_id, m in zip(token_ids, mask, strict=True) if m]
        return tokenizer.decode(token_ids), tokenizer.decode(trained)

    assert rendered("rslm") == (
        "<|endoftext|><|user|>Hi<|end|><|assistant|>Yes<|end|>",
        "Yes<|end|>",
    )
    assert rendered("chatml") == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n",
        "Yes<|im_end|>",
    )
    assert rendered("plain") == ("<|endoftext|>User:\nHi\n\nAssistant:\nYes\n\n", "Yes\n\n")


def test_an_answer_that_was_cut_off_has_no_end(chat_format: ChatFormat) -> None:
    messages = say(("user", "Hi"), ("assistant", "One two"))
    whole, cut = chat_format.render(messages), chat_format.render(messages, finished=False)
    said = chat_format.tokenizer.encode_ordinary("One two")
    assert whole.token_ids[: len(cut.token_ids)] == cut.token_ids
    assert cut.token_ids[-len(said) :] == said
    assert whole.train_mask[len(cut.token_ids)]


@settings(deadline=None)
@given(messages=MESSAGES)
def test_fewer_messages_are_how_more_begin(chat_format: ChatFormat, messages) -> None:
    token_ids, mask = rendered_or_none(chat_format, messages) or ([], [])
    for n in range(1, len(messages) if token_ids else 1):
        fewer = chat_format.render(messages[:n])
        assert token_ids[: len(fewer.token_ids)] == fewer.token_ids
        assert mask[: len(fewer.token_ids)] == fewer.train_mask


def rendered_or_none(chat_format: ChatFormat, messages: list[Message]) -> Any:
    """None where chatml cannot say where an answer begins."""
    try:
        return chat_format.render(messages)
    except ValueError as error:
        if chat_format.name == "chatml" and "share a token with its header" in str(error):
            return None
        raise


@settings(deadline=None)
@given(messages=MESSAGES, answer=TEXTS)
def test_prompt_answer_and_end_are_what_is_rendered_of_all(
    chat_format: ChatFormat, messages, answer: str
) -> None:
    whole = rendered_or_none(chat_format, [*messages, *say(("assistant", answer))])
    if whole is None:
        return
    prompt = chat_format.prompt(messages)
    answer_ids = chat_format.tokenizer.encode_ordinary(answer)
    assert whole.token_ids[: len(prompt)] == prompt
    assert whole.token_ids[len(prompt) :][: len(answer_ids)] == answer_ids
    # What follows is the end, and in chatml a line break that belongs to the next turn.
    rest, rest_mask = (part[len(prompt) + len(answer_ids) :] for part in whole)
    assert whole.train_mask[len(prompt) :][: len(answer_ids)] == [True] * len(answer_ids)
    assert rest_mask == [True, False] if chat_format.name == "chatml" else all(rest_mask)
    if chat_format.is_injection_proof:
        assert rest[0] == chat_format.stop_token_ids[0]


@settings(deadline=None)
@given(messages=MESSAGES)
def test_nothing_that_is_said_makes_a_special_token(chat_format: ChatFormat, messages) -> None:
    token_ids = chat_format.prompt(messages)
    specials = set(chat_format.tokenizer.special_tokens.values())
    silent = [{**message, "content": ""} for message in messages]
    expected = [i for i in chat_format.prompt(silent) if i in specials]
    assert [i for i in token_ids if i in specials] == expected
    text = chat_format.tokenizer.decode(token_ids)
    for message in messages:
        assert message["content"] in text


@pytest.mark.parametrize("name", ["rslm", "chatml"])
def test_only_base_models_get_a_warning_and_stop_strings(name: str, chat_tokenizer) -> None:
    chat_format = ChatFormat.of(chat_tokenizer(), name)
    assert (chat_format.stop, chat_format.note) == ((), None)
    plain = ChatFormat.of(chat_tokenizer(), "plain")
    assert plain.stop[0] == "\n\nSystem:"
    assert "can pass for a turn" in plain.note


def test_the_format_follows_from_the_tokens(chat_tokenizer) -> None:
    for special_tokens, name in [
        (SPECIAL_TOKENS, "rslm"),
        ([END_OF_TEXT, *CHATML_TOKENS, "<|user|>"], "chatml"),
        ([END_OF_TEXT], "plain"),
        ([], "plain"),
    ]:
        chat_format = ChatFormat.of(chat_tokenizer(special_tokens=special_tokens))
        assert chat_format.name == name
        specials = chat_format.tokenizer.special_tokens
        ends = [s for s in special_tokens if s in (END_OF_TEXT, "<|end|>", "<|im_end|>")]
        assert set(chat_format.stop_token_ids) == {specials[token] for token in ends}
    with pytest.raises(ValueError, match=r"trained with the special tokens <\|system\|> <\|user"):
        ChatFormat.of(chat_tokenizer(special_tokens=[]), "rslm")
    with pytest.raises(ValueError, match="chat format must be one of rslm, chatml, plain, got 'x'"):
        ChatFormat.of(chat_tokenizer(), "x")  # type: ignore[arg-type]


def test_a_trained_tokenizer_takes_the_tokens(tmp_path) -> None:
    tokenizer = Tokenizer.train(
        None, 280, [END_OF_TEXT, *CHAT_TOKENS], texts=["some text, some more text"]
    )
    assert ChatFormat.of(tokenizer).name == "rslm"
    base = Tokenizer.train(None, 280, [END_OF_TEXT], texts=["some text, some more text"])
    base.save(tmp_path / "tokenizer.json")
    later = Tokenizer.load(tmp_path / "tokenizer.json", special_tokens=CHAT_TOKENS)
    assert ChatFormat.of(later).name == "rslm"
    assert later.vocab_size == base.vocab_size + len(CHAT_TOKENS)


def test_one_begin_of_text_and_no_second(chat_format: ChatFormat) -> None:
    begin = chat_format.tokenizer.end_of_text
    token_ids = chat_format.prompt(say(("system", END_OF_TEXT), ("user", END_OF_TEXT)))
    assert token_ids.count(begin) == (0 if chat_format.name == "chatml" else 1)


def test_a_default_system_message_stands_where_there_is_none(chat_tokenizer) -> None:
    for name in FORMAT_NAMES:
        with_default = ChatFormat.of(chat_tokenizer(), name, default_system="Be good.")
        without = ChatFormat.of(chat_tokenizer(), name)
        talk = say(("user", "Hi"), ("assistant", "Yes"))
        assert with_default.render(talk) == without.render(
            say(("system", "Be good."), ("user", "Hi"), ("assistant", "Yes"))
        )
        own = say(("system", "Be bad."), ("user", "Hi"))
        assert with_default.prompt(own) == without.prompt(own)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("Hi", "messages must be a list of messages, each with role and content, got a str"),
        (b"Hi", "got a bytes"),
        ({"role": "user", "content": "Hi"}, "got a dict"),
        (iter([]), "got a list_iterator"),
        (None, "got a NoneType"),
    ],
)
def test_what_is_no_list_of_messages_is_refused(messages, message: str, chat_format) -> None:
    for method in (chat_format.render, chat_format.prompt):
        with pytest.raises(TypeError, match=message):
            method(messages)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages must hold at least one message, got none"),
        (["Hi"], r"messages\[0\] must have role and content and nothing else, got a str"),
        ([{"role": "user"}], r"got the keys \['role'\]"),
        ([{"role": "user", "content": "", "name": "x"}], "nothing else, got the keys"),
        ([{"role": "User", "content": ""}], r"messages\[0\].role must be one of system, user,"),
        ([{"role": ["user"], "content": ""}], "role must be one of"),
        ([{"role": "user", "content": None}], "content must be a string, got a NoneType"),
        (say(("user", "a")) + [{"role": "user", "content": [1]}], r"messages\[1\].content must"),
    ],
)
def test_what_is_no_message_is_refused(messages, message: str, chat_format) -> None:
    for method in (chat_format.render, chat_format.prompt):
        with pytest.raises(ValueError, match=message):
            method(messages)


def test_chatml_refuses_an_answer_that_shares_a_token_with_its_header(chat_tokenizer) -> None:
    tokenizer = Tokenizer(
        {**{i: bytes([i]) for i in range(256)}, 256: b"\n\n"},
        [(b"\n", b"\n")],
        CHATML_TOKENS,
        pattern="gpt2",
    )
    chat_format = ChatFormat.of(tokenizer)
    talk = say(("user", "\n\nHi"), ("assistant", "\n\nYes"))
    with pytest.raises(ValueError, match=r"in the chat format chatml that of '\\n\\nYes' does"):
        chat_format.render(talk)
    # What nobody trains on may: it is the text that the template makes.
    assert 256 in chat_format.prompt(talk)


# The template, in the software that runs exported models.


def theirs(chat_format: ChatFormat, folder: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    chat_format.tokenizer.save(folder / "tokenizer.json", "hf")
    made = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    made.chat_template = chat_format.template
    return made


# fmt: off
PIECES = [
    *(" ", "  ", "\n", "\n\n", "\t", "\r\n", "a", "the", " the", "Hello", "12", "345", "don't"),
    *("é", "e\u0301", "世界", "😀", "👩\u200d🌾", "{{ x }}", "{% if %}", "<|", "|>", "<|end"),
    *("!", "...", "\u3000", "\xa0", "User:\n", "_", '"', "\\", "\\n", "\x00", "\ufeff", "ſ", "½"),
    "user",
]
# fmt: on


def made_up_conversation(draw: random.Random) -> list[Message]:
    """Pieces that join to a special token are left out: a template would let it be one."""
    turns = []
    while len(turns) < draw.randint(1, 5):
        content = "".join(draw.choices(PIECES, k=draw.randint(0, 12)))
        if not any(token in content for token in SPECIAL_TOKENS):
            turns.append((draw.choice(ROLES), content))
    return say(*turns)


def compare(chat_format: ChatFormat, their_tokenizer: Any, messages: list[Message]) -> int:
    """Holds ids, mask and prompt against theirs; returns how many ids are trained on."""
    chat = [dict(message) for message in messages]
    prompt = their_tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert prompt == chat_format.prompt(messages)
    ours = rendered_or_none(chat_format, messages)
    if ours is None:
        return 0
    out = their_tokenizer.apply_chat_template(
        chat, return_assistant_tokens_mask=True, return_dict=True
    )
    assert out["input_ids"] == ours.token_ids
    assert out["assistant_masks"] == [int(m) for m in ours.train_mask]
    return sum(ours.train_mask)


def agree(chat_tokenizer, folder, name: str, pattern: str, n: int, system: str | None) -> None:
    chat_format = ChatFormat.of(chat_tokenizer(pattern), name, default_system=system)
    their_tokenizer, draw = theirs(chat_format, folder), random.Random(f"{name} {pattern}")
    counts = [compare(chat_format, their_tokenizer, made_up_conversation(draw)) for _ in range(n)]
    # Conversations without an answer, and answers that chatml cannot tell apart, are the few.
    assert sum(map(bool, counts)) > n // 3


@pytest.mark.parametrize("name", ["rslm", "chatml"])
@pytest.mark.parametrize("system", [None, DEFAULT_SYSTEM])
def test_ids_mask_and_template_agree(name: str, system, chat_tokenizer, tmp_path) -> None:
    agree(chat_tokenizer, tmp_path, name, "gpt2", 150, system)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rslm", "chatml"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_ids_mask_and_template_agree_on_many(name, pattern, chat_tokenizer, tmp_path) -> None:
    agree(chat_tokenizer, tmp_path, name, pattern, 1700, None)


def test_the_template_of_plain_gives_its_text(chat_tokenizer, tmp_path) -> None:
    chat_format = ChatFormat.of(chat_tokenizer(), "plain", default_system=DEFAULT_SYSTEM)
    their_tokenizer, draw = theirs(chat_format, tmp_path), random.Random(0)
    for _ in range(50):
        messages = made_up_conversation(draw)
        text = their_tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
        )
        assert text == chat_format.tokenizer.decode(chat_format.prompt(messages))


def test_the_template_refuses_an_unknown_role(chat_format: ChatFormat, tmp_path) -> None:
    jinja2 = pytest.importorskip("jinja2")
    with pytest.raises(jinja2.exceptions.TemplateError, match="role must be one of"):
        theirs(chat_format, tmp_path).apply_chat_template([{"role": "end", "content": "x"}])
