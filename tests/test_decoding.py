"""Which encoding a page has, and what its text may not hold."""

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rslm.data.decoding import (
    _LABELS,
    _clean_by_patterns,
    charset_of,
    clean_text,
    decode_page,
    encoding_named,
)

META = b'<html><head><meta charset="%b"></head><body>'


@pytest.mark.parametrize(
    ("page", "content_type", "text", "name"),
    [
        ("é".encode(), "", "é", "utf-8"),
        ("é".encode("latin-1"), "", "é", "cp1252"),
        ("é".encode("latin-1"), "text/html; charset=ISO-8859-1", "é", "cp1252"),
        ("“€”".encode("cp1252"), "text/html;Charset='latin1'", "“€”", "cp1252"),
        # The header goes before the page, and a mark before both.
        ("ж".encode("cp1251"), 'a/b; q=1; charset="windows-1251"', "ж", "cp1251"),
        (b"\xef\xbb\xbf" + "ж".encode(), "text/html; charset=windows-1251", "ж", "utf-8"),
        (b"\xff\xfe" + "ж€".encode("utf-16-le"), "text/html; charset=utf-8", "ж€", "utf-16-le"),
        (b"\xfe\xff" + "ж€".encode("utf-16-be"), "", "ж€", "utf-16-be"),
        ("日本".encode("shift_jis"), "text/html; charset=Shift_JIS", "日本", "cp932"),
        ("①".encode("cp932"), "text/html; charset=shift_jis", "①", "cp932"),
        ("中文".encode("gbk"), "text/html; charset=gb2312", "中文", "gb18030"),
        ("한국".encode("euc-kr"), "text/html; charset=EUC-KR", "한국", "cp949"),
        # An unknown label says nothing; neither do codecs of Python that are no encodings.
        ("é".encode(), "text/html; charset=rot13", "é", "utf-8"),
        (b"+AOk-", "text/html; charset=utf-7", "+AOk-", "utf-8"),
        (b"a\x81b", "text/html; charset=windows-1252", "a\x81b", "cp1252"),
        (b"a\xff\xc3b", "text/html; charset=utf-8", "a\ufffd\ufffdb", "utf-8"),
        # A greek letter's hole is no control.
        (b"\xaa", "text/html; charset=windows-1253", "\ufffd", "cp1253"),
    ],
)
def test_decode_page_reads_as_browsers_do(page: bytes, content_type: str, text: str, name: str):
    assert decode_page(page, content_type) == (text, name)


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (META % b"windows-1251", "cp1251"),
        (b"<META http-equiv=x content='text/html; charset=koi8-r'>", "koi8-r"),
        (b"<?xml version='1.0' encoding='iso-8859-2'?>", "iso8859-2"),
        (b"<!-- <meta charset=koi8-r> --><meta charset=big5>", "big5hkscs"),
        (b"<meta name=a><meta\ncharset = 'euc-jp'>", "euc_jp"),
        # It can be read as ASCII, so it is not UTF-16.
        (META % b"utf-16", "utf-8"),
        (b" " * 1024 + META % b"koi8-r", "utf-8"),
        (b"<p charset=koi8-r>", "utf-8"),
        (META % b"no-such-thing", "utf-8"),
    ],
)
def test_decode_page_believes_the_declaration(start: bytes, name: str):
    assert decode_page(start + b"text")[1] == name
    assert decode_page(start + b"text", "text/html; charset=cp866")[1] == "cp866"


@given(st.binary(), st.sampled_from(["", "utf-8", "shift_jis", "big5", "gbk", "cp1255", "utf-16"]))
def test_any_bytes_become_clean_text(page: bytes, label: str):
    text, name = decode_page(page, f"text/html; charset={label}")
    assert codecs.lookup(name)
    text.encode()
    assert clean_text(text) == text


# What the standard library's tables and browsers' differ in.
OTHER_BYTES = {"koi8-u": b"\xae\xbe", "cp1255": b"\xca"}
EAST_ASIAN = ("gb18030", "big5hkscs", "euc_jp", "iso2022_jp", "cp932", "cp949")


@pytest.mark.parametrize("name", sorted(set(_LABELS) - set(EAST_ASIAN)))
def test_decode_page_equals_the_reference(name: str):
    label = f"a/b;charset={_LABELS[name].split()[0]}"
    every = bytes(set(range(256)) - set(OTHER_BYTES.get(name, b"")))
    for page in (every, every[1:], b"a" + every[::-1], *(bytes([byte, 0x20]) for byte in every)):
        found = decode_page(page, label)
        assert found == decode_page(page, label, implementation="reference")
        assert found[1] == name


@pytest.mark.parametrize("name", EAST_ASIAN)
@given(st.text("aé日本語中文한국어ひらカタ、。！\n\r 1", max_size=20))
def test_east_asian_text_equals_the_reference(name: str, text: str):
    label = f"a/b;charset={_LABELS[name].split()[0]}"
    page = text.encode(name, "ignore")
    expected = decode_page(page, label, implementation="reference")
    assert decode_page(page, label) == expected
    assert expected[0] == clean_text(page.decode(name))


@given(st.binary(), st.sampled_from(["utf-8", "utf-16le", "utf-16be", "windows-1252", "latin2"]))
def test_any_bytes_equal_the_reference(page: bytes, label: str):
    content_type = f"a/b;charset={label}"
    expected = decode_page(page, content_type, implementation="reference")
    assert decode_page(page, content_type) == expected


@given(st.text())
def test_clean_text_equals_the_reference(text: str):
    assert clean_text(text) == _clean_by_patterns(text)


TEXTS = {
    "cp1251": "Это обычная страница на русском языке, каких много в старых собраниях сайтов.",
    # The detector takes either for the one that has all letters of the other.
    "koi8-u": "Это обычная страница на русском языке, каких много в старых собраниях сайтов.",
    "cp1253": "Αυτή είναι μια συνηθισμένη ελληνική σελίδα από τις παλιές συλλογές ιστοσελίδων.",
    "cp932": "これは普通の日本語のページです。昔のサイトにはこのようなページがたくさんあります。",
    "euc_jp": "これは普通の日本語のページです。昔のサイトにはこのようなページがたくさんあります。",
    "gb18030": "这是一个普通的中文网页，在旧的网站里有很多这样的网页，没有声明编码。",
    "cp949": "이것은 평범한 한국어 페이지입니다. 오래된 사이트에는 이런 페이지가 많이 있습니다.",
    "cp1252": "Voilà une page française très ordinaire, déjà âgée, où rien n'est déclaré.",
    "utf-8": "Это обычная страница на русском языке, каких много в старых собраниях сайтов.",
}


@pytest.mark.parametrize("name", TEXTS)
def test_undeclared_pages_are_read_in_their_encoding(name: str):
    page = b"<p>" + TEXTS[name].encode(name) + b"</p>"
    assert decode_page(page) == (f"<p>{TEXTS[name]}</p>", name)


def test_guesses_are_at_least_as_good_as_resiliparse():
    encoding = pytest.importorskip("resiliparse.parse.encoding")
    pages = {name: b"<p>" + text.encode(name) * 20 + b"</p>" for name, text in TEXTS.items()}
    theirs = {name: encoding_named(encoding.detect_encoding(page)) for name, page in pages.items()}
    # It takes the others for UTF-8, which they are not.
    assert {name for name in pages if theirs[name] == name} == {
        *("cp1251", "cp932", "gb18030", "cp1252", "utf-8")
    }
    assert all(decode_page(page)[1] == name for name, page in pages.items())


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_utf8_comes_back(text: str):
    text = clean_text(text).lstrip("\ufeff")
    assert decode_page(text.encode(), "text/html; charset=UTF-8")[0] == text


def test_every_label_names_an_encoding_of_python():
    from rslm.data.decoding import _ENCODINGS

    assert len(_ENCODINGS) > 200
    for label, name in _ENCODINGS.items():
        assert b"abc 123".decode(name if not name.startswith("utf-16") else "ascii") == "abc 123"
        assert encoding_named(f" {label.upper()}\n") == name


def test_charset_is_a_parameter_of_its_own():
    assert charset_of("text/html; mycharset=a; charset=b") == "b"
    assert charset_of("text/html") == ""
    assert charset_of('text/html; charset=""') == ""


def test_clean_text_keeps_only_what_text_holds():
    assert clean_text("a\r\nb\rc\n\td\0\x1b\x7f\x85\ud800") == "a\nb\nc\n\td\x7f\x85\ufffd"
