"""A scored text as one self-contained page: heat-map, where the loss comes from, surprises."""

import heapq
import math
from collections.abc import Sequence
from pathlib import Path

from rslm.evaluate.text_scores import TextScores, TokenScore
from rslm.files import require_place, write_atomically
from rslm.html_report.blocks import (
    Bar,
    Bars,
    Cell,
    Fact,
    Facts,
    Page,
    ScoredToken,
    Section,
    Table,
    Tokens,
)
from rslm.html_report.page import render

N_SURPRISES = 40
CONTEXT_CHARACTERS = 48
N_STRETCHES = 20
BANDS = (0.9, 0.6, 0.35, 0.15, 0.05, 0.01, 0.001, 0.0)
"""Least probabilities of the bands, those of the heat-map's shades."""


def write_page(scores: TextScores, out: Path, *, text_name: str, model_name: str) -> int:
    """Writes the page beside its place, renames it, and gives its size in bytes.

    Raises:
        FileNotFoundError: `out` is to be in no folder.
        ValueError: it is a folder.
    """
    if out.is_dir():
        raise ValueError(f"out must be a file, and {out} is a folder")
    require_place(out)
    data = render(make_page(scores, text_name=text_name, model_name=model_name))
    write_atomically(out, data)
    return len(data)


def make_page(scores: TextScores, *, text_name: str, model_name: str) -> Page:
    """The page as blocks."""
    return Page(
        title=f"{text_name} under {model_name}",
        lead=(
            f"Each token's probability given all before it, as {model_name} predicts it. "
            f"The likeliest token was the right one {scores.accuracy:.0%} of the time."
        ),
        sections=[
            Section(title="In numbers", blocks=[_facts(scores)]),
            Section(title="The text", blocks=[_heat_map(scores)]),
            Section(title="Most surprising tokens", blocks=[_surprises(scores)]),
            Section(title="Where the loss comes from", blocks=[_bands(scores), _course(scores)]),
        ],
    )


def _facts(scores: TextScores) -> Facts:
    bits = scores.bits_per_byte
    shown = "-" if bits is None else f"{bits:.4f}"
    return Facts(
        facts=[
            Fact(label="Loss", value=f"{scores.loss:.4f}", note="nats per token"),
            Fact(label="Perplexity", value=_readable(scores.perplexity)),
            Fact(label="Bits per byte", value=shown, note=f"over {scores.n_bytes:,} bytes"),
            Fact(label="Tokens", value=f"{len(scores.losses):,}", note="predicted"),
            Fact(label="Right at once", value=f"{scores.accuracy:.1%}", note="likeliest token"),
        ]
    )


def _readable(value: float) -> str:
    return f"{value:,.2f}" if value < 1e6 else f"{value:.3g}"


def _heat_map(scores: TextScores) -> Tokens:
    return Tokens(
        caption="Point at a token for its alternatives, or move with the arrow keys.",
        vocab=scores.vocab,
        tokens=[ScoredToken(**vars(token)) for token in scores.tokens],
    )


def _surprises(scores: TextScores) -> Table:
    numbered = [
        (-token.log_prob, n, token)
        for n, token in enumerate(scores.tokens)
        if token.log_prob is not None
    ]
    worst = heapq.nlargest(N_SURPRISES, numbered, key=lambda one: (one[0], -one[1]))
    return Table(
        caption=f"The {len(worst)} tokens with the lowest probability",
        columns=[
            ("Token", ""),
            ("Loss", "in nats"),
            ("Probability", ""),
            ("Rank", "how many were thought at least as likely"),
            ("Expected", "the likeliest token instead, with its probability"),
            ("Position", "number of the token in the text"),
            ("Before it", "the text that led there"),
        ],
        rows=[_surprise(scores, loss, n, token) for loss, n, token in worst],
    )


def _surprise(scores: TextScores, loss: float, n: int, token: TokenScore) -> list[Cell]:
    best_id, best = token.top[0] if token.top else (token.token_id, -loss)
    expected = f"{name_of(scores.vocab[best_id])} {math.exp(best):.1%}"
    before = name_of(_text_before(scores, n))
    assert token.rank is not None
    return [
        Cell(
            value=name_of(scores.vocab[token.token_id]), text=name_of(scores.vocab[token.token_id])
        ),
        Cell(value=loss, text=f"{loss:.2f}"),
        Cell(value=math.exp(-loss), text=f"{math.exp(-loss):.2g}"),
        Cell(value=token.rank, text=f"{token.rank:,}"),
        Cell(value=expected, text=expected),
        Cell(value=n + 1, text=f"{n + 1:,}"),
        Cell(value=before, text=before, tone="muted"),
    ]


def _text_before(scores: TextScores, n: int) -> bytes:
    """The end of the text before token `n`, from a character on."""
    first = max(0, n - CONTEXT_CHARACTERS)
    data = b"".join(scores.vocab[token.token_id] for token in scores.tokens[first:n])
    return data.decode("utf-8", "ignore")[-CONTEXT_CHARACTERS:].encode()


def name_of(data: bytes) -> str:
    r"""Bytes of a token as a name: signs for blanks and line ends, `\xe2` for half characters.

    >>> name_of(b" a\n")
    '␣a↵'
    """
    text = data.decode("utf-8", "backslashreplace")
    signs = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}
    return "".join(signs.get(character, character) for character in text) or "(no text)"


def _bands(scores: TextScores) -> Bars:
    losses, total = scores.losses, math.fsum(scores.losses)
    bars, rest = [], losses
    for above, least in zip((1.0, *BANDS), BANDS, strict=False):
        inside = [loss for loss in rest if math.exp(-loss) >= least]
        rest = [loss for loss in rest if math.exp(-loss) < least]
        tokens, share = len(inside) / len(losses), math.fsum(inside) / total if total else 0.0
        name = f"{least:.3g} and more" if least else f"below {above:.3g}"
        bars.append(Bar(name=name, parts=[share], texts=[f"{tokens:.1%}", f"{share:.1%}"]))
    return Bars(
        caption="By probability: how many tokens, and how much of the whole loss is theirs",
        name="Probability",
        parts=["share of the loss"],
        columns=["Tokens", "Loss"],
        bars=bars,
    )


def _course(scores: TextScores) -> Bars:
    losses = scores.losses
    size = -(-len(losses) // N_STRETCHES)
    stretches = [losses[at : at + size] for at in range(0, len(losses), size)]
    return Bars(
        caption="Along the text",
        name="Tokens",
        parts=["mean loss"],
        columns=["Loss"],
        bars=[_stretch(n * size, stretch) for n, stretch in enumerate(stretches)],
    )


def _stretch(first: int, losses: Sequence[float]) -> Bar:
    mean = math.fsum(losses) / len(losses)
    return Bar(
        name=f"{first + 1:,} to {first + len(losses):,}", parts=[mean], texts=[f"{mean:.3f}"]
    )
