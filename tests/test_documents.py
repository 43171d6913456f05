"""Documents out of every kind of file that holds them."""

import datetime
import gzip
import json
import tarfile
from collections import Counter
from pathlib import Path

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from rslm.data.byte_stream import Limits
from rslm.data.document import Document
from rslm.data.documents import read_documents, read_rows


def read(path: Path, **options) -> tuple[list[Document], Counter[str]]:
    skipped: Counter[str] = Counter()
    return list(read_documents(path, skipped=skipped, **options)), skipped


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


PACKINGS = {"": bytes, ".gz": gzip.compress, ".zst": zstd}
ROWS = [
    {"id": "a", "text": "first\r\ntext", "source": "web", "metadata": {"url": "http://a/", "n": 1}},
    {"text": "zwei \ud83d\ude00", "url": "http://b/", "date": "2024"},
    {"id": 7, "text": "\u0000three\ud800"},
]
EXPECTED = [
    Document(text="first\ntext", id="a", url="http://a/", source="web", metadata={"n": 1}),
    Document(
        text="zwei 😀", id="x.jsonl:1", url="http://b/", source="x.jsonl", metadata={"date": "2024"}
    ),
    Document(text="three\ufffd", id="7", source="x.jsonl"),
]


@pytest.mark.parametrize("packing", PACKINGS)
def test_json_lines_are_documents(tmp_path: Path, packing: str):
    lines = [json.dumps(row).encode() for row in ROWS]
    path = tmp_path / f"x.jsonl{packing}"
    path.write_bytes(PACKINGS[packing](b"\n".join([lines[0], b"", *lines[1:]])))
    documents, skipped = read(path)
    named = [
        Document(
            text=document.text,
            id=document.id.replace(path.name, "x.jsonl"),
            url=document.url,
            source=document.source.replace(path.name, "x.jsonl"),
            metadata=document.metadata,
        )
        for document in documents
    ]
    assert named == EXPECTED
    assert not skipped


def test_broken_lines_are_counted(tmp_path: Path):
    lines = [
        b'{"text": "good"}',
        b'{"text": "cut',
        b'{"text": "\xff"}',
        b'["text"]',
        b'{"text": 1}',
        b"{}",
        b'{"text": " \\n"}',
        b'{"text": "%b"}' % (b"a" * 200_000),
        b'{"text": "deep", "a": %b1%b}' % (b"[" * 100_000, b"]" * 100_000),
        b'{"text": "deep", "a": %b1%b}' % (b"[" * 900, b"]" * 900),
        b'{"text": "good too", "a": NaN, "b": 1e999}',
    ]
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n".join(lines))
    documents, skipped = read(path, limits=Limits(max_record_bytes=150_000))
    assert [document.text for document in documents] == ["good", "good too"]
    assert json.loads(json.dumps(documents[1].metadata, allow_nan=False))
    assert skipped["no_text"] == 2
    assert skipped["empty"] == 1
    assert skipped["too_large"] == 2
    assert skipped["not_json"] + skipped["too_deep"] == 4


def test_damaged_member_costs_its_lines(tmp_path: Path):
    members = [
        gzip.compress(b"".join(b'{"text": "%d"}\n' % n for n in range(start, start + 100)))
        for start in range(0, 300, 100)
    ]
    members[1] = members[1][:60] + b"\xff\xff\xff" + members[1][63:]
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(b"".join(members))
    documents, skipped = read(path)
    texts = [int(document.text) for document in documents]
    assert {*range(100), *range(200, 300)} <= set(texts)
    assert skipped["corrupt_member"] == 1


def test_lines_go_on_over_members(tmp_path: Path):
    path = tmp_path / "x.jsonl.gz"
    parts = [b'{"te', b"", b'xt": "a"}\n{"text"', b': "b"}']
    path.write_bytes(b"".join(map(gzip.compress, parts)))
    documents, skipped = read(path)
    assert [document.text for document in documents] == ["a", "b"]
    assert not skipped


@pytest.mark.parametrize("packing", PACKINGS)
def test_text_is_parted_by_its_mark(tmp_path: Path, packing: str):
    texts = ["first\n\ntext", "zwei", "x" * 300_000, "last"]
    data = "\n<|endoftext|>\n".join([*texts, " \n"]).encode()
    path = tmp_path / f"x.txt{packing}"
    path.write_bytes(PACKINGS[packing](b"\xef\xbb\xbf" + data))
    documents, skipped = read(path)
    assert [document.text for document in documents] == texts
    assert [document.id for document in documents] == [f"{path.name}:{n}" for n in range(4)]
    assert not skipped
    documents, skipped = read(path, limits=Limits(max_record_bytes=200_000))
    assert [document.text for document in documents] == [texts[0], texts[1], texts[3]]
    assert skipped == {"too_large": 1}


@pytest.mark.parametrize("length", [65_530, 65_536, 131_072, 131_066])
def test_marks_at_borders_of_reading_are_found(tmp_path: Path, length: int):
    for shift in range(14):
        texts = ["a" * (length - shift), "b" * 5, "c" * (65_536 + shift), "d"]
        path = tmp_path / "x.txt"
        path.write_text("<|endoftext|>".join(texts))
        assert [document.text for document in read(path)[0]] == texts
        limits = Limits(max_record_bytes=10)
        documents, skipped = read(path, limits=limits)
        assert [document.text for document in documents] == ["b" * 5, "d"]
        assert skipped == {"too_large": 2}


def test_a_line_of_64_megabytes_is_counted(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + bytes(64 << 20) + b'\n{"text": "b"}\n')
    documents, skipped = read(path)
    assert [document.text for document in documents] == ["a", "b"]
    assert skipped == {"too_large": 1}


def test_tables_are_documents(tmp_path: Path):
    when = datetime.datetime(2024, 5, 6, 7, 8)
    table = pyarrow.table(
        {
            "text": ["a", None, "c"],
            "id": ["i", "j", "k"],
            "dump": ["d", "d", "e"],
            "date": [when, when, None],
        }
    )
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    documents, skipped = read(tmp_path / "x.parquet")
    assert documents == [
        Document(
            text="a",
            id="i",
            source="x.parquet",
            metadata={"dump": "d", "date": "2024-05-06 07:08:00"},
        ),
        Document(text="c", id="k", source="x.parquet", metadata={"dump": "e", "date": None}),
    ]
    assert skipped == {"no_text": 1}
    assert read(tmp_path / "x.parquet", text_field="dump")[0][0].text == "d"


def test_damaged_tables_are_counted(tmp_path: Path):
    path = tmp_path / "x.parquet"
    table = pyarrow.table({"text": [f"text {n} " * 40 for n in range(100)]})
    parquet.write_table(table, path, row_group_size=10, write_page_checksum=True)
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    assert read(path) == ([], {"corrupt_file": 1})
    path.write_bytes(b"binary junk")
    assert read(path) == ([], {"corrupt_file": 1})
    path.write_bytes(data)
    with parquet.ParquetFile(path) as file:
        start = file.metadata.row_group(3).column(0).dictionary_page_offset
    damaged = bytearray(data)
    damaged[start : start + 12] = bytes([255]) * 12
    path.write_bytes(damaged)
    documents, skipped = read(path)
    numbers = [int(document.text.split()[1]) for document in documents]
    assert numbers == [*range(30), *range(40, 100)]
    assert skipped == {"corrupt_rows": 1}


def test_rows_that_python_cannot_hold_are_counted(tmp_path: Path):
    offsets = pyarrow.array([0, 1, 2, 3], pyarrow.int32()).buffers()[1]
    texts = pyarrow.StringArray.from_buffers(3, offsets, pyarrow.py_buffer(b"a\xffc"))
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "x.parquet")
    documents, skipped = read(tmp_path / "x.parquet")
    assert [document.text for document in documents] == ["a", "c"]
    assert skipped == {"corrupt_rows": 1}


def test_folder_is_read_in_the_order_of_its_paths(tmp_path: Path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "z.html").write_bytes("<meta charset=koi8-r><p>я".encode("koi8-r"))
    (tmp_path / "b" / "a.HTM").write_bytes(b"<p>a")
    (tmp_path / "c.html.gz").write_bytes(gzip.compress(b"<p>") + gzip.compress(b"c"))
    (tmp_path / "a.txt").write_bytes(b"text")
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    (tmp_path / "empty.html").write_bytes(b"")
    (tmp_path / "large.html").write_bytes(b"a" * 1001)
    (tmp_path / "cut.html.gz").write_bytes(gzip.compress(b"<p>cut")[:-3])
    documents, skipped = read(tmp_path, limits=Limits(max_record_bytes=1000))
    assert [(document.id, document.text) for document in documents] == [
        ("a.txt:0", "text"),
        ("b/a.HTM", "<p>a"),
        ("b/z.html", "<meta charset=koi8-r><p>я"),
        ("c.html.gz", "<p>c"),
    ]
    assert documents[2].metadata == {"media_type": "text/html", "charset": "koi8-r"}
    assert skipped == {"other_file": 1, "empty": 1, "too_large": 1, "truncated": 1}


def record(type: str, block: bytes, **fields: str) -> bytes:
    header = {"WARC-Type": type, "Content-Length": str(len(block))}
    header |= {name.replace("_", "-"): value for name, value in fields.items()}
    lines = [f"{name}: {value}\r\n" for name, value in header.items()]
    return b"".join([b"WARC/1.0\r\n", *map(str.encode, lines), b"\r\n", block, b"\r\n\r\n"])


def response(status: int, media_type: str, body: bytes = b"<p>page", **fields: str) -> bytes:
    content_type = f"Content-Type: {media_type}\r\n" if media_type else ""
    block = f"HTTP/1.1 {status} x\r\n{content_type}\r\n".encode() + body
    return record("response", block, Content_Type="application/http;msgtype=response", **fields)


def test_crawl_gives_pages_and_counts_the_rest(tmp_path: Path):
    pages = [
        response(200, "text/html; charset=koi8-r", "я".encode("koi8-r"), WARC_Record_ID="<a>"),
        response(200, "APPLICATION/xhtml+xml"),
        response(200, "", WARC_Identified_Payload_Type="text/html"),
        record("conversion", "ж".encode(), Content_Type="text/plain", WARC_Target_URI="http://c/"),
    ]
    others = {
        "http_status": response(404, "text/html"),
        "media_type": response(200, "image/png", WARC_Identified_Payload_Type="text/html"),
        "cut_by_crawler": response(200, "text/html", WARC_Truncated="length"),
        "bad_http": record("response", b"junk", Content_Type="application/http"),
        "empty": response(200, "text/html", b" \n"),
        "request": record("request", b"GET / HTTP/1.1\r\n\r\n", Content_Type="application/http"),
        "revisit": record("revisit", b""),
        "other_record": record("hostile", b"x"),
        "bad_length": b"WARC/1.0\r\nWARC-Type: response\r\n\r\n",
    }
    path = tmp_path / "x.warc"
    path.write_bytes(b"".join([*others.values(), *pages]))
    documents, skipped = read(path)
    assert [document.text for document in documents] == ["я", "<p>page", "<p>page", "ж"]
    assert documents[0].id == "a"
    assert documents[0].metadata == {"media_type": "text/html", "charset": "koi8-r"}
    assert (documents[3].url, documents[3].metadata) == ("http://c/", {})
    assert len({document.id for document in documents}) == 4
    assert skipped == dict.fromkeys(others, 1)


def test_rows_of_datasets_are_documents():
    dataset = datasets.Dataset.from_dict({"text": ["a", "", "c"], "n": [1, 2, 3]})
    for rows in (dataset, dataset.to_iterable_dataset()):
        skipped: Counter[str] = Counter()
        documents = list(read_rows(rows, source="set", skipped=skipped))
        assert documents == [
            Document(text="a", id="set:0", source="set", metadata={"n": 1}),
            Document(text="c", id="set:2", source="set", metadata={"n": 3}),
        ]
        assert skipped == {"empty": 1}


def test_unknown_format_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="format must be one of warc, jsonl"):
        list(read_documents(tmp_path, format="xml"))  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        list(read_documents(tmp_path / "missing.jsonl"))


def test_samples_of_the_web_are_read(test_data: Path, tmp_path: Path):
    documents, skipped = read(test_data / "web" / "cc_en_head-0091.jsonl.gz")
    assert (len(documents), skipped) == (10, {})
    assert all(document.url.startswith("http") for document in documents)
    documents, skipped = read(test_data / "web" / "warc")
    # Responses of status 200 by the media types of their headers, counted with warcio.
    per_file = Counter(document.source for document in documents)
    assert per_file["sample-0000.warc.gz"] + per_file["sample-0001.warc.gz"] == 37
    assert per_file["warcfile.warc.gz"] == 16
    assert per_file["whirlwind.warc.wet.gz"] == 1
    assert skipped["other_file"] == 1
    with tarfile.open(test_data / "web" / "articles.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    documents, skipped = read(tmp_path)
    assert sum(document.metadata.get("media_type") == "text/html" for document in documents) == 181
    assert "<html" in documents[0].text.lower()
