"""Byte-level BPE in plain Python: the specification of the tokenizer and its test oracle.

It shares no code with the Rust core and imports nothing of ours, so that the two can be
compared. It is written to be read, not to be fast. Where the two disagree, this file is right
or is to be changed first.

Source: Sennrich et al. 2016, Algorithm 1 (arXiv:1508.07909), on the bytes of pre-tokens as in
Radford et al. 2019, section 2.2 (GPT-2). We differ from Sennrich in the order of equal counts,
which Algorithm 1 leaves open and `train_bpe` fixes.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Literal

import regex

Pair = tuple[bytes, bytes]

# Each pattern cuts a text into pre-tokens, and no merge crosses their borders. The spellings are
# those of tiktoken, in quantifiers that give the same matches.
PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    # As first published with GPT-4: differs where the last whitespace of a text holds a newline.
    "cl100k_2023": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    # The same splitter as cl100k_2023.
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def replace_surrogates(text: str) -> str:
    """The text with lone surrogates as U+FFFD and paired ones joined, as tiktoken does."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def split_special(text: str, special_tokens: Iterable[str]) -> list[str]:
    """The text cut at special tokens, which stand at the odd indices.

    The leftmost special token is cut out first; of several that start there, the longest.
    """
    longest_first = sorted(special_tokens, key=len, reverse=True)
    if not longest_first:
        return [text]
    pieces: list[str] = regex.split(f"({'|'.join(map(regex.escape, longest_first))})", text)
    return pieces


def pretokenize(text: str, pattern: str) -> list[str]:
    """The pre-tokens of a text without special tokens; joined, they give the text back.

    `pattern` is a key of PATTERNS or a regular expression. What an expression leaves between
    two of its matches is a pre-token too, so that no text is lost.
    """
    pretokens, end = [], 0
    for match in regex.finditer(PATTERNS.get(pattern, pattern), text):
        pretokens += [text[end : match.start()], match[0]]
        end = match.end()
    return [pretoken for pretoken in [*pretokens, text[end:]] if pretoken]


def splitmix64(seed: int) -> Iterator[int]:
    """Random numbers of 64 bits. Source: Steele, Lea and Flood 2014, figure 17."""
    mask = 2**64 - 1
    while True:
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = (seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        yield z ^ (z >> 31)


def merge_pair(symbols: list[bytes], pair: Pair) -> list[bytes]:
    """The symbols with every occurrence of the pair joined, left to right, without overlap."""
    merged: list[bytes] = []
    i = 0
    while i < len(symbols):
        if tuple(symbols[i : i + 2]) == pair:
            merged.append(pair[0] + pair[1])
            i += 2
        else:
            merged.append(symbols[i])
            i += 1
    return merged


def count_pretokens(
    texts: Iterable[str],
    special_tokens: Iterable[str],
    pattern: str,
    unit: Literal["document", "line"],
) -> Counter[bytes]:
    """How often each pre-token occurs between the special tokens of the texts.

    With unit "line" each segment is cut after every newline first, so that no pre-token and no
    lookahead of the pattern passes the end of a line: what Hugging Face does with files.
    """
    counts: Counter[bytes] = Counter()
    for text in texts:
        for segment in split_special(replace_surrogates(text), special_tokens)[::2]:
            units = [segment] if unit == "document" else regex.findall(r"[^\n]*\n|[^\n]+", segment)
            for piece in units:
                counts.update(pretoken.encode() for pretoken in pretokenize(piece, pattern))
    return counts


def learn_merges(
    pretokens: Mapping[bytes, int],
    n_merges: int,
    symbol_ids: dict[bytes, int],
    tie_break: Literal["bytes", "hf", "first_id"],
) -> list[Pair]:
    """At most n merges, most frequent pair first, from pre-tokens and their counts.

    A pair occurs at every adjacent position: "aaa" holds (a, a) twice. `symbol_ids` holds the
    ids of the 256 bytes and gains one id per merge; two merges never make the same bytes
    (arXiv:2309.08715), so bytes name a symbol.
    """
    words = [[bytes([byte]) for byte in pretoken] for pretoken in pretokens]
    word_counts = list(pretokens.values())
    pair_counts: Counter[Pair] = Counter()
    words_with: dict[Pair, set[int]] = defaultdict(set)

    def add_pairs(word_index: int, sign: int) -> None:
        for pair in pairwise(words[word_index]):
            pair_counts[pair] += sign * word_counts[word_index]
            words_with[pair].add(word_index)

    for word_index in range(len(words)):
        add_pairs(word_index, +1)
    merges: list[Pair] = []
    while len(merges) < n_merges and (count := max(pair_counts.values(), default=0)) > 0:
        most_frequent = [pair for pair in pair_counts if pair_counts[pair] == count]
        if tie_break == "bytes":
            best = max(most_frequent)  # The greatest tuple, not the greatest joined bytes.
        else:
            best = min(most_frequent, key=lambda pair: (symbol_ids[pair[0]], symbol_ids[pair[1]]))
        for word_index in words_with.pop(best):
            add_pairs(word_index, -1)
            words[word_index] = merge_pair(words[word_index], best)
            add_pairs(word_index, +1)
        del pair_counts[best]  # Nothing of it is left, in any word.
        merges.append(best)
        symbol_ids[best[0] + best[1]] = len(symbol_ids)
    return merges


def train_bpe(
    text: str | Sequence[str],
    vocab_size: int,
    special_tokens: Sequence[str] = (),
    *,
    pattern: str = "gpt2",
    tie_break: Literal["bytes", "hf", "first_id"] = "bytes",
    unit: Literal["document", "line"] = "document",
) -> tuple[dict[int, bytes], list[Pair]]:
    """The vocabulary and the merges, in the order of their creation, learnt from the text.

    Several texts are documents that do not touch. `vocab_size` counts special tokens, bytes and
    merges; training ends early when no pair is left. Special tokens are cut out first and never
    counted. `tie_break` says which of several most frequent pairs is merged, and the order of ids:

    - "bytes": the greatest (bytes, bytes); special tokens, then bytes, then merges (CS336).
    - "hf": the smallest (id, id); special tokens, then bytes by the code point of GPT-2's
      printable character for them, then merges (Hugging Face).
    - "first_id": the smallest (id, id); bytes, then merges, then special tokens (rustbpe).

    Raises:
        ValueError: vocab_size leaves no room for the bytes and the special tokens.
    """
    special = [token.encode() for token in special_tokens]
    if vocab_size < 256 + len(special):
        least = 256 + len(special)
        raise ValueError(
            f"vocab_size must be at least {least} (256 bytes and the special tokens), "
            f"got {vocab_size}"
        )
    alphabet = [bytes([byte]) for byte in range(256)]
    if tie_break == "hf":
        alphabet.sort(key=lambda byte: (not is_printable(byte[0]), byte))
    texts = [text] if isinstance(text, str) else text
    pretokens = count_pretokens(texts, special_tokens, pattern, unit)
    symbol_ids = {symbol: i for i, symbol in enumerate(alphabet)}
    merges = learn_merges(pretokens, vocab_size - 256 - len(special), symbol_ids, tie_break)
    learnt = list(symbol_ids)
    tokens = [*learnt, *special] if tie_break == "first_id" else [*special, *learnt]
    return dict(enumerate(tokens)), merges


def is_printable(byte: int) -> bool:
    """Whether GPT-2's files write the byte as the Latin-1 character of the same number.

    The other 68 bytes are written as U+0100 and up, in their order.
    """
    return 0x21 <= byte <= 0x7E or (0xA1 <= byte <= 0xFF and byte != 0xAD)


class Tokenizer:
    """Encodes text as token ids and back, with a given vocabulary and given merges."""

    def __init__(
        self,
        vocab: Mapping[int, bytes],
        merges: Sequence[Pair],
        special_tokens: Iterable[str] | None = None,
        *,
        pattern: str = "gpt2",
    ) -> None:
        """Special tokens that `vocab` lacks get the next ids."""
        self.pattern = pattern
        self.vocab = dict(sorted(vocab.items()))
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.ids = {token_bytes: token_id for token_id, token_bytes in self.vocab.items()}
        self.special_tokens: dict[str, int] = {}
        for token in special_tokens or ():
            token_id = self.ids.get(token.encode(), max(self.vocab, default=-1) + 1)
            self.special_tokens[token] = token_id
            self.vocab[token_id] = token.encode()
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """The token ids of the text; special tokens in it become their ids."""
        token_ids = []
        for i, piece in enumerate(split_special(replace_surrogates(text), self.special_tokens)):
            token_ids += [self.special_tokens[piece]] if i % 2 else self.encode_ordinary(piece)
        return token_ids

    def encode_ordinary(self, text: str) -> list[int]:
        """The token ids of the text; special tokens in it are plain text."""
        token_ids = []
        for pretoken in pretokenize(replace_surrogates(text), self.pattern):
            if pretoken not in self._cache:
                self._cache[pretoken] = self._encode_pretoken(pretoken.encode())
            token_ids += self._cache[pretoken]
        return token_ids

    def encode_with_dropout(self, text: str, dropout: float, seed: int) -> list[int]:
        """As `encode`, with each possible merge left out by chance in every step.

        Pairs are asked in the order of rank and place; the first that stays is merged.

        Source: Provilkov et al. 2020, Algorithm 1 (arXiv:1910.13267). SplitMix64 draws.
        """
        draws = splitmix64(seed)
        token_ids = []
        for i, piece in enumerate(split_special(replace_surrogates(text), self.special_tokens)):
            if i % 2:
                token_ids.append(self.special_tokens[piece])
                continue
            for pretoken in pretokenize(piece, self.pattern):
                symbols = [bytes([byte]) for byte in pretoken.encode()]
                while True:
                    ranks = [(self.ranks.get(pair), i) for i, pair in enumerate(pairwise(symbols))]
                    candidates = sorted((rank, i) for rank, i in ranks if rank is not None)
                    stay = (i for _, i in candidates if (next(draws) >> 11) / 2**53 >= dropout)
                    if (at := next(stay, None)) is None:
                        break
                    symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
                token_ids += [self.ids[symbol] for symbol in symbols]
        return token_ids

    def encode_iterable(self, texts: Iterable[str]) -> Iterator[int]:
        """The token ids of the joined texts, wherever the joints are."""
        yield from self.encode("".join(texts))

    def _encode_pretoken(self, pretoken: bytes) -> list[int]:
        """Merges the pair of lowest rank, the leftmost of equals, until none is left."""
        symbols = [bytes([byte]) for byte in pretoken]
        while len(symbols) > 1:
            ranks = [self.ranks.get(pair, len(self.ranks)) for pair in pairwise(symbols)]
            if (rank := min(ranks)) == len(self.ranks):
                break
            i = ranks.index(rank)
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
        return [self.ids[symbol] for symbol in symbols]

    def decode_bytes(self, token_ids: Iterable[int]) -> bytes:
        """The bytes of the tokens, joined."""
        return b"".join(self.vocab[token_id] for token_id in token_ids)

    def decode(self, token_ids: Iterable[int], errors: str = "replace") -> str:
        """The text of the tokens; bytes that are no UTF-8 become U+FFFD, or what `errors` says."""
        return self.decode_bytes(token_ids).decode("utf-8", errors)
