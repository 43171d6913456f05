"""Text from outside made harmless: in HTML, and in JSON that stands in HTML."""

import html
import json
import re

from rslm.process import printable


def escape(text: str) -> str:
    """The text in HTML, between tags or as an attribute; control characters show as escapes."""
    return html.escape(clean(text))


def clean(text: str) -> str:
    """Without control characters, and without what UTF-8 cannot hold: names may be any bytes."""
    return printable(text).encode("utf-8", "backslashreplace").decode()


def clean_lines(text: str) -> str:
    """The same of a text of several lines, whose ends stay."""
    return "\n".join(line.replace("\t", "    ") for line in map(clean, re.split("\r?\n", text)))


def to_json(value: object) -> str:
    """JSON that may stand in a script element: without a character that HTML looks for."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def attribute(name: str, value: str) -> str:
    """An attribute of a tag, with a blank before it; nothing where it is empty."""
    return f' {name}="{escape(value)}"' if value else ""
