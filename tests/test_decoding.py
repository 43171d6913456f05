"""Which encoding a page has, and what its text may not hold."""

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rslm.data.decoding import charset_of, clean_text, decode_page, encoding_named

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
