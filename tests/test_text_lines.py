"""Lines with texts alone: what Rust reads of JSON lines is what Python reads."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rslm import _rslm
from rslm.data.documents import read_documents
from rslm.data.text_lines import TextLine, read_text_lines

STRINGS = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["", " \u2003\x1f", "a\r\nb\rc", "\x00", "\x85x", '"\\/\b\f\n\t\x7f\u2028', "é😀"]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | STRINGS | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRINGS, inner, max_size=3),
    max_leaves=6,
)
ROWS = st.fixed_dictionaries(
    {"text": STRINGS, "id": STRINGS},
    optional={"source": STRINGS | ANYTHING, "metadata": ANYTHING, "url": STRINGS, "x": ANYTHING},
)
ODD_LINES = (
    *(b"", b" \x0b", b"[]", b"{", b"{}", b'"text"', b"null", b"NaN", b"\xff", b"{}{}"),
    *(b'{"text": "no id"}', b'{"text": "a", "id": 7}', b'{"text": "a", "id": true}'),
    *(b'{"text": "a", "id": null}', b'{"text": 1, "id": "b"}', b'{"text": null, "id": "b"}'),
    *(b'{"text": "a", "text": "b", "id": "c"}', b'{"text": "a", "id": "b", "id": 3}'),
    *(b'{"text": "a", "id": "b", "source": 3}', b'{"text": "a", "id": "b", "source": null}'),
    b'{"text": "a", "id": "b", "source": "c", "source": "d"}',
    *(b'{"text": "\\ud800", "id": "b"}', b'{"text": "a", "id": "\\udc00"}'),
    *(b'{"text": "\\ud83d\\ude00", "id": "b"}', b'{"te\\u0078t": "a", "\\u0069d": "b"}'),
    *(b'{"text": "a", "id": "b", "x": NaN}', b'{"text": "a", "id": "b", "x": -Infinity}'),
    *(b'{"text": "a", "id": "b", "x": 1e999}', b'{"text": "a", "id": "b", "x": 01}'),
    b'{"text": "a", "id": "b", "x": ' + b"1" * 5000 + b"}",
    b'{"text": "a", "id": "b", "x": ' + b"[" * 300 + b"]" * 300 + b"}",
    b'{"text": "a", "id": "b", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    *(
        b'{"text": "a\tb", "id": "b"}',
        b'{"text": "\xe9", "id": "b"}',
        b'{"text": "a", "id": "\xff"}',
    ),
    *(b'{"text": "a", "id": "b", "\xff": 1}', b'{"text": "a", "id": "b", "x": "\xff"}'),
    *(b'{"text": "a", "id": "b"},', b' \r\t{"text":"a","id":"b"}\r', b'\x0c{"text":"a","id":"b"}'),
    b'\xef\xbb\xbf{"text": "with a mark", "id": "b"}',
)


def both(path: Path, text_field: str = "text") -> tuple[list[TextLine], Counter[str]]:
    """What both ways give, which must be the same."""
    counts = Counter[str](), Counter[str]()
    read = read_text_lines(path, text_field=text_field, skipped=counts[0])
    by_rust = [text._replace(metadata={}) for text in read]
    read = read_text_lines(
        path, text_field=text_field, skipped=counts[1], implementation="reference"
    )
    by_python = [text._replace(metadata={}) for text in read]
    assert by_rust == by_python
    assert counts[0] == counts[1]
    documents = list(read_documents(path, text_field=text_field))
    assert [(d.source, d.id) for d in documents] == [(t.source, t.id) for t in by_rust]
    assert [d.text for d in documents] == [json.loads(t.line)["text"] for t in by_rust]
    assert [len(d.text.encode()) for d in documents] == [t.n_bytes for t in by_rust]
    return by_rust, counts[0]


@given(st.lists(ROWS | ANYTHING, max_size=6), st.booleans())
def test_lines_of_any_rows_are_those_of_python(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], ascii_only: bool
) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    path.write_bytes("\n".join(lines).encode(errors="surrogatepass"))
    both(path)


@given(st.binary(max_size=60), st.integers(0, 2**32))
def test_broken_lines_are_those_of_python(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, place: int
) -> None:
    line = '{"id": "1", "text": "a\\u00e9b", "source": "s", "x": [1, {"y": "é"}]}'.encode()
    at = place % len(line)
    path = tmp_path_factory.mktemp("broken") / "a.jsonl"
    path.write_bytes(line[:at] + noise + line[at:] + b"\n" + line[:at] + b"\n" + line[at:])
    both(path)


def test_odd_lines_are_those_of_python(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl.gz"
    plain = b'{"text": "plain", "id": "p", "source": "s"}'
    path.write_bytes(gzip.compress(b"\n".join(line + b"\n" + plain for line in ODD_LINES)))
    found, skipped = both(path)
    assert sum(text.id == "p" for text in found) == len(ODD_LINES)
    # The number in an id that a row has not counts the rows before it.
    assert "odd.jsonl.gz:11" in {text.id for text in found}
    assert {"not_json", "no_text"} <= skipped.keys()


def test_fields_of_a_document_are_read_by_python(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "the text", "source": "s"}\n')
    assert [text.id for text in both(path, "id")[0]] == ["the text"]


def test_metadata_is_given_where_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "1", "text": "a", "metadata": {"scores": {"q": 0.5}}}\n')
    found = read_text_lines(path, text_field="text", skipped=Counter(), with_metadata=True)
    assert [text.metadata for text in found] == [{"scores": {"q": 0.5}}]


def test_plain_lines_do_not_reach_python() -> None:
    line = b'{"id":"1","text":"a","source":"s","metadata":{"url":"u","scores":{"q":0.5}}}'
    assert _rslm.read_text_row(line, "text") == ("s", "1", b'{"text": "a"}\n', 1)
