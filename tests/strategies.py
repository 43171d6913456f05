"""Hypothesis strategies for the texts, special tokens and corpora that tokenizers get wrong."""

from hypothesis import strategies as st

# The code points that `regex` and the Rust table class alike: theirs is a newer and a pinned
# Unicode. Unassigned ones are left out, and U+0295, a lower-case letter until Unicode 17.
KNOWN_CHARACTERS = st.characters(exclude_categories=("Cn", "Cs"), exclude_characters="\u0295")

# Where the patterns' branches meet: spaces, newlines, contractions, digits, cases, marks, scripts.
# fmt: off
PIECES = st.sampled_from([
    " ", "  ", "   ", "\n", "\r\n", "\r", "\t", "\x0b", "\x0c", "\x1c", "\x85", "\xa0", "\u2028",
    "\u3000", "\x00", "a", "aa", "ab", "A", "Aa", "AAa", "aA", "the", " the", "1", "12", "12345",
    "'", "'s", "'S", "'t", "'re", "'VE", "'ll", "'Ll", "'d", "'m", "\u017f", "'\u017f", "’s",
    "!", "...", "/", "//\n", "!\n", "_", "é", "e\u0301", "\u0301", "世", "世界", "ǅ", "ʰ", "ª",
    "½", "٣", "Ⅷ", "😀", "👩\u200d🌾", "🇫🇷", "\ufeff", "\ufffd", "\U0010ffff", "ß", "Σς", "İ",
])
# fmt: on
TEXTS = st.one_of(
    st.lists(PIECES, max_size=30).map("".join),
    st.text(KNOWN_CHARACTERS, max_size=40),
    st.lists(PIECES | KNOWN_CHARACTERS, max_size=30).map("".join),
)

# They overlap, start and end alike, and look like plain text.
# fmt: off
SPECIAL_TOKENS = st.lists(
    st.sampled_from([
        "<|endoftext|>", "<|endoftext|><|endoftext|>", "<|end", "|>", "ab", "aba", "the", "\n\n",
        "'s", "é世", "[.*]", "\x00\x00",
    ]),
    max_size=4,
    unique=True,
)
# fmt: on


@st.composite
def texts_with_special(draw: st.DrawFn, special_tokens: list[str]) -> str:
    """A text in which the special tokens, and parts of them, turn up."""
    pieces = TEXTS
    if special_tokens:
        token = st.sampled_from(special_tokens)
        pieces |= token | token.map(lambda t: t[:-1]) | token.map(lambda t: t[1:])
    return "".join(draw(st.lists(pieces, max_size=6)))


# Few letters and many repeats make nearly every choice of the trainer a tie.
WORDS = st.text(st.sampled_from("aab"), min_size=1, max_size=7) | st.sampled_from(
    ["aaaa", "abab", "baab", "a\x00b", "\x00\x00\x00", "éé", "世世", "zz", "12", "1212", "'s", "!!"]
)
CORPORA = st.lists(
    st.lists(WORDS | st.sampled_from([" ", "  ", "\n", "\n\n", "\r\n"]), max_size=25).map("".join)
    | TEXTS,
    max_size=3,
)
