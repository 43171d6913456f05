"""Bytes of web pages as text: which character encoding they have, and what text may not hold.

The labels and what they mean are those of browsers, which is what pages are written for.

Source: WHATWG, Encoding Standard, section 4.2; HTML Standard, section 13.2.3.2 for the prescan,
which this one simplifies to the first `charset=` of a `<meta>` tag outside comments.
"""

from __future__ import annotations

import codecs
import re
from typing import Literal

from rslm import _rslm

Implementation = Literal["rust", "reference"]

# What a page may declare within; browsers look no further.
_META_BYTES = 1024
_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_COMMENT = re.compile(rb"<!--.*?(?:-->|$)", re.DOTALL)
_META = re.compile(rb"<meta[\s/][^>]*?charset\s*=\s*[\"']?\s*([^\s\"'/>;]+)", re.IGNORECASE)
_XML = re.compile(rb"<\?xml\s[^>]*?encoding\s*=\s*[\"']([^\"'>]+)[\"']")
_PARAMETER = re.compile(r";\s*charset\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s;\"']+))", re.IGNORECASE)
_LINE_ENDS = re.compile(r"\r\n?")
# C0 controls but tab and newline, and lone surrogates.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f]")
_SURROGATES = re.compile("[\ud800-\udfff]")

# Python's name of an encoding, and its labels. Browsers read Latin-1 and ASCII as windows-1252,
# GB2312 as GB18030 and Shift_JIS with Microsoft's additions, for that is what such pages hold.
_LABELS = {
    "utf-8": "unicode-1-1-utf-8 unicode11utf8 unicode20utf8 utf-8 utf8 x-unicode20utf8",
    "cp866": "866 cp866 csibm866 ibm866",
    "iso8859-2": "csisolatin2 iso-8859-2 iso-ir-101 iso8859-2 iso88592 iso_8859-2 l2 latin2",
    "iso8859-3": "csisolatin3 iso-8859-3 iso-ir-109 iso8859-3 iso88593 iso_8859-3 l3 latin3",
    "iso8859-4": "csisolatin4 iso-8859-4 iso-ir-110 iso8859-4 iso88594 iso_8859-4 l4 latin4",
    "iso8859-5": "csisolatincyrillic cyrillic iso-8859-5 iso-ir-144 iso8859-5 iso88595 iso_8859-5",
    "iso8859-6": "arabic asmo-708 csisolatinarabic ecma-114 iso-8859-6 iso-8859-6-e iso-8859-6-i "
    "iso-ir-127 iso8859-6 iso88596 iso_8859-6",
    "iso8859-7": "csisolatingreek ecma-118 elot_928 greek greek8 iso-8859-7 iso-ir-126 iso8859-7 "
    "iso88597 iso_8859-7 sun_eu_greek",
    "iso8859-8": "csisolatinhebrew hebrew iso-8859-8 iso-8859-8-e iso-8859-8-i iso-ir-138 "
    "iso8859-8 iso88598 iso_8859-8 logical visual",
    "iso8859-10": "csisolatin6 iso-8859-10 iso-ir-157 iso8859-10 iso885910 l6 latin6",
    "iso8859-13": "iso-8859-13 iso8859-13 iso885913",
    "iso8859-14": "iso-8859-14 iso8859-14 iso885914",
    "iso8859-15": "csisolatin9 iso-8859-15 iso8859-15 iso885915 iso_8859-15 l9",
    "iso8859-16": "iso-8859-16",
    "koi8-r": "cskoi8r koi koi8 koi8-r koi8_r",
    "koi8-u": "koi8-ru koi8-u",
    "mac-roman": "csmacintosh mac macintosh x-mac-roman",
    "mac-cyrillic": "x-mac-cyrillic x-mac-ukrainian",
    "cp874": "dos-874 iso-8859-11 iso8859-11 iso885911 tis-620 windows-874",
    "cp1250": "cp1250 windows-1250 x-cp1250",
    "cp1251": "cp1251 windows-1251 x-cp1251",
    "cp1252": "ansi_x3.4-1968 ascii cp1252 cp819 csisolatin1 ibm819 iso-8859-1 iso-ir-100 "
    "iso8859-1 iso88591 iso_8859-1 l1 latin1 us-ascii windows-1252 x-cp1252",
    "cp1253": "cp1253 windows-1253 x-cp1253",
    "cp1254": "cp1254 csisolatin5 iso-8859-9 iso-ir-148 iso8859-9 iso88599 iso_8859-9 l5 latin5 "
    "windows-1254 x-cp1254",
    "cp1255": "cp1255 windows-1255 x-cp1255",
    "cp1256": "cp1256 windows-1256 x-cp1256",
    "cp1257": "cp1257 windows-1257 x-cp1257",
    "cp1258": "cp1258 windows-1258 x-cp1258",
    "gb18030": "chinese csgb2312 csiso58gb231280 gb18030 gb2312 gb_2312 gb_2312-80 gbk "
    "iso-ir-58 x-gbk",
    "big5hkscs": "big5 big5-hkscs cn-big5 csbig5 x-x-big5",
    "euc_jp": "cseucpkdfmtjapanese euc-jp x-euc-jp",
    "iso2022_jp": "csiso2022jp iso-2022-jp",
    "cp932": "csshiftjis ms932 ms_kanji shift-jis shift_jis sjis windows-31j x-sjis",
    "cp949": "cseuckr csksc56011987 euc-kr iso-ir-149 korean ks_c_5601-1987 ks_c_5601-1989 "
    "ksc5601 ksc_5601 windows-949",
    "utf-16-be": "unicodefffe utf-16be",
    "utf-16-le": "csunicode iso-10646-ucs-2 ucs-2 unicode unicodefeff utf-16 utf-16le",
}
_ENCODINGS = {label: name for name, labels in _LABELS.items() for label in labels.split()}


def decode_page(
    page: bytes, content_type: str = "", *, implementation: Implementation = "rust"
) -> tuple[str, str]:
    """The page as clean text, and the encoding it was read in, by Python's name.

    The first that says: a byte order mark, `charset` of the HTTP header `content_type`, a
    `<meta>` tag or XML declaration in the first 1,024 bytes, the bytes themselves if they are
    UTF-8; else what the bytes look like. An unknown label says nothing. Bytes that the encoding
    does not know become U+FFFD.

    "reference" takes the standard library's codecs. They differ from browsers, which "rust"
    follows, in few characters of the East Asian encodings and in what of a broken sequence of
    those is replaced; and what is neither declared nor UTF-8 it reads as windows-1252.
    """
    name, start = _named(page, content_type)
    decode = _decode if implementation == "rust" else _decode_by_codecs
    return decode(page[start:] if start else page, name)


def _named(page: bytes, content_type: str) -> tuple[str, int]:
    """Python's name of the encoding that the page or its header names, and where text begins."""
    for mark, name in _BOMS:
        if page.startswith(mark):
            return name, len(mark)
    return encoding_named(charset_of(content_type)) or _declared(page), 0


def _decode(page: bytes, name: str) -> tuple[str, str]:
    text, found = _rslm.decode_bytes(page, _LABELS[name].partition(" ")[0] if name else "")
    return text, name or encoding_named(found)


def _decode_by_codecs(page: bytes, name: str) -> tuple[str, str]:
    name = name or ("utf-8" if _is_utf8(page) else "cp1252")
    # What windows-125x and 874 leave undefined in the C1 range are those controls to browsers.
    errors = "rslm.c1" if name.startswith(("cp125", "cp874")) else "replace"
    return _clean_by_patterns(page.decode(name, errors)), name


def charset_of(content_type: str) -> str:
    """The parameter `charset` of a Content-Type header; "" without one."""
    found = _PARAMETER.search(content_type)
    return next(filter(None, found.groups()), "") if found else ""


def encoding_named(label: str) -> str:
    """Python's name of the encoding with this label, which may have any case; "" if none has."""
    return _ENCODINGS.get(label.strip("\t\n\f\r ").lower(), "")


def clean_text(text: str) -> str:
    r"""Text with `\n` as its only line end, and without other C0 controls than tab.

    A carriage return ends a line, with the newline behind it or alone. Lone surrogates, which
    have no UTF-8, become U+FFFD.
    """
    try:
        return _rslm.clean_controls(text)
    except UnicodeEncodeError:
        return _clean_by_patterns(text)


def _clean_by_patterns(text: str) -> str:
    return _SURROGATES.sub("�", _CONTROLS.sub("", _LINE_ENDS.sub("\n", text)))


def _declared(page: bytes) -> str:
    start = page[:_META_BYTES]
    found = _XML.match(start.lstrip()) or _META.search(_COMMENT.sub(b"", start))
    name = encoding_named(found[1].decode("latin-1")) if found else ""
    # A page whose declaration can be read as ASCII is not UTF-16, whatever it says.
    return "utf-8" if name.startswith("utf-16") else name


def _is_utf8(page: bytes) -> bool:
    try:
        page.decode()
    except UnicodeDecodeError:
        return False
    return True


def _c1_or_replacement(error: UnicodeError) -> tuple[str, int]:
    """The C1 control of an undefined byte below 0xA0, U+FFFD for others."""
    assert isinstance(error, UnicodeDecodeError)
    byte = error.object[error.start]
    return chr(byte) if byte < 0xA0 else "�", error.start + 1


codecs.register_error("rslm.c1", _c1_or_replacement)
