"""Messages to token ids and the mask of what is trained on, and the equal Jinja template.

Three formats. `rslm` begins every segment with a special token of its own,
`<|endoftext|><|user|>Hi<|end|><|assistant|>Hello<|end|>`, so no merge can join a header and
what follows. `chatml` is that of SmolLM2 and Qwen, `<|im_start|>user` and a line break before
the text. Both encode what people and models say with special tokens as ordinary text: no message
can end a turn or begin one. `plain` is a transcript for base models, whose tokenizer has no chat
tokens; there a message that contains `User:` on a line of its own looks like a turn.

A tokenizer gets the tokens by `train_bpe(..., special_tokens=["<|endoftext|>", *CHAT_TOKENS])`,
or later by `Tokenizer.load(path, special_tokens=CHAT_TOKENS)`, which gives them the next ids; a
model that was trained before then lacks their rows, and its embedding has to be resized before
it is fine-tuned.

Nothing adds a begin of text but the renderer: `rslm` and `plain` begin with `<|endoftext|>`, as
documents in a token file follow one, `chatml` with nothing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypedDict, get_args

from rslm.tokenizer import Tokenizer

FormatName = Literal["rslm", "chatml", "plain"]
Role = Literal["system", "user", "assistant", "tool"]
FORMAT_NAMES: tuple[FormatName, ...] = get_args(FormatName)
ROLES: tuple[Role, ...] = get_args(Role)

END = "<|end|>"
CHAT_TOKENS = (*(f"<|{role}|>" for role in ROLES), END)
"""What a tokenizer must have for the format `rslm`."""
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
"""What a tokenizer must have for the format `chatml`."""

END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>", END)
"""Special tokens at which the answers of known models end."""
_BEGIN_TOKENS = ("<|begin_of_text|>", "<|endoftext|>")


class Message(TypedDict):
    """What somebody says in a conversation."""

    role: Role
    content: str


class Rendered(NamedTuple):
    """A conversation as a model reads it."""

    token_ids: list[int]
    train_mask: list[bool]
    """Which ids are trained on: answers, each with the token that ends it."""


@dataclass(frozen=True)
class _Layout:
    """What stands around the text of a message; names of special tokens, and ordinary text."""

    before: Mapping[str, str]
    """By role: a special token that begins the turn, "" for none."""
    header: Mapping[str, str]
    """By role: ordinary text after it."""
    is_joined: bool
    """Whether header and message are encoded as one string."""
    end: str
    """A special token that ends the turn, "" for none; trained on."""
    tail: str
    """Ordinary text after it; trained on where there is no `end`."""


_LAYOUTS: dict[FormatName, _Layout] = {
    "rslm": _Layout(
        {role: f"<|{role}|>" for role in ROLES}, dict.fromkeys(ROLES, ""), False, END, ""
    ),
    "chatml": _Layout(
        dict.fromkeys(ROLES, "<|im_start|>"),
        {role: f"{role}\n" for role in ROLES},
        True,
        "<|im_end|>",
        "\n",
    ),
    "plain": _Layout(
        dict.fromkeys(ROLES, ""),
        {role: f"{role.capitalize()}:\n" for role in ROLES},
        False,
        "",
        "\n\n",
    ),
}


@dataclass(frozen=True)
class ChatFormat:
    """How a conversation becomes token ids, for one tokenizer; made by `ChatFormat.of`.

    Attributes:
        name: of the format.
        tokenizer: encodes what is said.
        default_system: system message of conversations that begin without one.
    """

    name: FormatName
    tokenizer: Tokenizer
    default_system: str | None = None

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        name: FormatName | None = None,
        *,
        default_system: str | None = None,
    ) -> "ChatFormat":
        """The format of that name; None takes the first for which the tokenizer has the tokens.

        Raises:
            ValueError: there is no such format, or the tokenizer lacks its special tokens.
        """
        if name is None:
            names = (n for n in FORMAT_NAMES if not missing_tokens(tokenizer, n))
            return cls(next(names), tokenizer, default_system)
        if missing := missing_tokens(tokenizer, name):
            raise ValueError(
                f"chat format {name} needs a tokenizer trained with the special tokens "
                f"{' '.join(missing)}"
            )
        return cls(name, tokenizer, default_system)

    def render(self, messages: Sequence[Message], *, finished: bool = True) -> Rendered:
        """Token ids of a conversation and which of them are trained on, in one pass.

        What is rendered of fewer messages is how this begins. The last trained id of an answer
        is what ends it; with `finished` false the last turn was cut off and has no end.

        Raises:
            ValueError: a message is none, or a token would lie across the border between the
                header and the text of an answer (chatml, where it begins with white space).
            TypeError: `messages` is a str, or no sequence.
        """
        checked = self._checked(messages)
        token_ids = self._begin()
        train_mask = [False] * len(token_ids)
        for i, (role, content) in enumerate(checked):
            is_cut = not finished and i == len(checked) - 1
            for ids, is_trained in self._turn(role, content, is_cut=is_cut):
                token_ids += ids
                train_mask += [is_trained and role == "assistant"] * len(ids)
        return Rendered(token_ids, train_mask)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation and of the header of the answer that is to follow.

        With the ids of an answer and of its end it is what `render` makes of both, provided that
        the answer's ids are those that `encode_ordinary` gives for its text.

        Raises:
            ValueError: a message is none.
            TypeError: `messages` is a str, or no sequence.
        """
        token_ids = self._begin()
        for role, content in self._checked(messages):
            token_ids += self._opening(role) + self._said(role, content) + self._closing()
        return token_ids + self._opening("assistant") + self._said("assistant", "")

    @property
    def template(self) -> str:
        """The Jinja template that gives the text whose ids `render` and `prompt` give.

        It marks what is trained on by `generation`, as `transformers` reads it. Equal ids are
        promised for messages that contain no special token: there is no way to say in a
        template that text is to stay text. For `plain` it gives the text alone.
        """
        return _template(self.name, self._begin_token(), self.default_system)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids at which an answer ends; the first is what `render` puts there, if it is one id."""
        end = _LAYOUTS[self.name].end
        names = ([end] if end else []) + [name for name in END_TOKENS if name != end]
        specials = self.tokenizer.special_tokens
        return tuple(specials[name] for name in names if name in specials)

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings before which an answer ends; only base models need them."""
        if self.is_injection_proof:
            return ()
        headers = [f"\n{role.capitalize()}:" for role in ROLES]
        return (*(f"\n{header}" for header in headers), *headers)

    @property
    def is_injection_proof(self) -> bool:
        """Whether no message can pass for the end of a turn or the begin of another."""
        return bool(_LAYOUTS[self.name].end)

    @property
    def note(self) -> str | None:
        """A sentence for whoever talks to the model, where a guarantee is missing."""
        if self.is_injection_proof:
            return None
        return (
            "the tokenizer has no chat tokens: the conversation is a plain transcript, in which "
            "a message can pass for a turn of somebody else"
        )

    def _turn(self, role: Role, content: str, *, is_cut: bool) -> list[tuple[list[int], bool]]:
        """The ids of one message in pieces, and whether a piece is trained on in an answer."""
        opening, said = self._opening(role), self._said(role, content)
        n_header = len(said)
        if role == "assistant":  # Only where the mask changes must a token begin with the text.
            header = self._said(role, "")
            n_header = len(header)
            if said[:n_header] != header:
                raise ValueError(
                    f"the text of an assistant message must not share a token with its header, "
                    f"and in the chat format {self.name} that of {content[:20]!r} does"
                )
        pieces = [(opening + said[:n_header], False), (said[n_header:], True)]
        if is_cut:
            return pieces
        end, tail = self._end(), self._encode(_LAYOUTS[self.name].tail)
        return [*pieces, (end, True), (tail, not end)]

    @property
    def begin_id(self) -> int | None:
        """The id that `render` and `prompt` begin with, None where they begin with none."""
        name = self._begin_token()
        return None if name is None else self.tokenizer.special_tokens[name]

    def _begin(self) -> list[int]:
        return [] if self.begin_id is None else [self.begin_id]

    def _begin_token(self) -> str | None:
        if self.name == "chatml":
            return None
        specials = self.tokenizer.special_tokens
        return next((name for name in _BEGIN_TOKENS if name in specials), None)

    def _opening(self, role: Role) -> list[int]:
        before = _LAYOUTS[self.name].before[role]
        return [self.tokenizer.special_tokens[before]] if before else []

    def _said(self, role: Role, content: str) -> list[int]:
        """The header of a turn and its text."""
        layout = _LAYOUTS[self.name]
        header = layout.header[role]
        if layout.is_joined:
            return self._encode(header + content)
        return self._encode(header) + self._encode(content)

    def _end(self) -> list[int]:
        end = _LAYOUTS[self.name].end
        return [self.tokenizer.special_tokens[end]] if end else []

    def _closing(self) -> list[int]:
        return self._end() + self._encode(_LAYOUTS[self.name].tail)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode_ordinary(text) if text else []

    def _checked(self, messages: Sequence[Message]) -> list[tuple[Role, str]]:
        """Roles and texts, the default system message among them."""
        if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
            raise TypeError(
                f"messages must be a list of messages, each with role and content, "
                f"got a {type(messages).__name__}"
            )
        if not messages:
            raise ValueError("messages must hold at least one message, got none")
        checked = [_check_message(message, i) for i, message in enumerate(messages)]
        if self.default_system is not None and checked[0][0] != "system":
            checked.insert(0, ("system", self.default_system))
        return checked


def _check_message(message: Any, index: int) -> tuple[Role, str]:
    """Role and content of what should be a message."""
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        shown = f"the keys {sorted(map(str, message))}" if isinstance(message, Mapping) else ""
        raise ValueError(
            f"messages[{index}] must have role and content and nothing else, "
            f"got {shown or f'a {type(message).__name__}'}"
        )
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise ValueError(
            f"messages[{index}].role must be one of {', '.join(ROLES)}, got {role!r:.80}"
        )
    if not isinstance(content, str):
        raise ValueError(
            f"messages[{index}].content must be a string, got a {type(content).__name__}"
        )
    return role, content


def missing_tokens(tokenizer: Tokenizer, name: FormatName) -> list[str]:
    """The special tokens that a format needs and the tokenizer lacks.

    Raises:
        ValueError: there is no such format.
    """
    if name not in FORMAT_NAMES:
        raise ValueError(f"chat format must be one of {', '.join(FORMAT_NAMES)}, got {name!r}")
    needed = {"rslm": CHAT_TOKENS, "chatml": CHATML_TOKENS, "plain": ()}[name]
    specials = tokenizer.special_tokens
    return [token for token in needed if token not in specials]


def _template(name: FormatName, begin: str | None, default_system: str | None) -> str:
    """Jinja source; every tag strips the blanks around it, and values keep theirs."""
    layout = _LAYOUTS[name]
    # What is trained on ends with the token that ends a turn, or with what stands for it.
    ending = _literal(layout.end or layout.tail)
    tail = f"{{{{- {_literal(layout.tail)} -}}}}" if layout.end and layout.tail else ""
    lines = [] if begin is None else [f"{{{{- {_literal(begin)} -}}}}"]
    if default_system is not None:
        system = f"{_opening_literal(layout, 'system')} + {_literal(default_system)} + {ending}"
        lines.append("{%- if messages[0]['role'] != 'system' -%}")
        lines.append(f"  {{{{- {system} -}}}}{tail}")
        lines.append("{%- endif -%}")
    lines.append("{%- for message in messages -%}")
    for i, role in enumerate(ROLES):
        lines.append(f"  {{%- {'elif' if i else 'if'} message['role'] == '{role}' -%}}")
        lines.append(f"    {{{{- {_opening_literal(layout, role)} -}}}}")
        said = f"{{{{- message['content'] + {ending} -}}}}"
        if role == "assistant":
            said = f"{{%- generation -%}}{said}{{%- endgeneration -%}}"
        lines.append(f"    {said}{tail}")
    lines += [
        "  {%- else -%}",
        "    {{- raise_exception('role must be one of " + ", ".join(ROLES) + "') -}}",
        "  {%- endif -%}",
        "{%- endfor -%}",
        "{%- if add_generation_prompt -%}",
        f"  {{{{- {_opening_literal(layout, 'assistant')} -}}}}",
        "{%- endif -%}",
    ]
    return "\n".join(lines) + "\n"


def _opening_literal(layout: _Layout, role: Role) -> str:
    return _literal(layout.before[role] + layout.header[role])


def _literal(text: str) -> str:
    """A Jinja string, whose escapes are those of JSON; quotes of either kind stay inside."""
    return json.dumps(text, ensure_ascii=False)
