"""Chat templates of strangers, recognised and never executed.

A template is a program, so nothing here runs one. A template that is letter by letter one of ours
is its format. One that speaks of ChatML's tokens is taken for ChatML, with the system message that
it puts where there is none; how it renders anything else is not known, so a note says so. For any
other the model is talked to as a base model is.
"""

import contextlib
import hashlib
import json
import re
from typing import NamedTuple

from rslm.chat import CHATML_TOKENS, FORMAT_NAMES, ChatFormat, FormatName
from rslm.tokenizer import Tokenizer

# SHA-256 of templates that were read and render what `chatml` does: SmolLM2-Instruct's.
_KNOWN_CHATML = frozenset({"872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788"})

_OUR_SYSTEM = re.compile(
    r"^  \{\{- \"(?:[^\"\\]|\\.)*\" \+ (\"(?:[^\"\\]|\\.)*\") \+ ", re.MULTILINE
)
_CHATML_SYSTEM = re.compile(r"<\|im_start\|>system(?:\\n|\n)([^'\"{}<]*)<\|im_end\|>")


class Recognised(NamedTuple):
    """How a model with some template is talked to; a note where that is a guess."""

    name: FormatName | None
    default_system: str | None = None
    note: str | None = None


def recognise(template: str | None, tokenizer: Tokenizer) -> Recognised:
    """The format that a template means, for a tokenizer.

    None, for a format, takes what the tokenizer's special tokens suggest.
    """
    if template is None:
        return Recognised(None)
    if (ours := _as_ours(template, tokenizer)) is not None:
        return ours
    if all(token in tokenizer.special_tokens for token in CHATML_TOKENS) and all(
        token in template for token in CHATML_TOKENS
    ):
        system = _CHATML_SYSTEM.search(template)
        default = None if system is None else system[1].replace("\\n", "\n")
        if hashlib.sha256(template.encode()).hexdigest() in _KNOWN_CHATML:
            return Recognised("chatml", default)
        return Recognised(
            "chatml",
            default,
            "the chat template, which is not executed, speaks of <|im_start|> and is taken for "
            "plain chatml; tools and thinking that it may render are left out",
        )
    name = ChatFormat.of(tokenizer).name
    return Recognised(
        name,
        note=f"the chat template is none that is known and templates are not executed, so the "
        f"format is {name}",
    )


def _as_ours(template: str, tokenizer: Tokenizer) -> Recognised | None:
    """The format whose own template it is, letter by letter."""
    systems: list[str | None] = [None]
    if (match := _OUR_SYSTEM.search(template)) is not None:
        with contextlib.suppress(ValueError):
            systems.append(json.loads(match[1], strict=False))
    for name in FORMAT_NAMES:
        for system in systems:
            try:
                own = ChatFormat.of(tokenizer, name, default_system=system)
            except ValueError:  # The tokenizer has no such tokens.
                continue
            if own.template == template:
                return Recognised(name, system)
    return None
