"""Which documents share a row of a training batch: each policy in plain Python.

A row has `capacity` places, each with an input and the target one token ahead. A document of n
tokens fills n places: each of its tokens is a target once, and the inputs begin with the
end-of-text token before it. So a row of whole documents begins each with end of text and ends
each with predicting it, and no place is lost at a border.

A plan is a list of rows, a row a list of pieces (document, start, length): the targets from the
document's token `start` on. Places that no piece fills are padding.

- `chunk` cuts the stream of all tokens into rows wherever they end. Nothing is dropped but the
  very first token, which nothing predicts, and the tail that fills no row.
- `bos-bestfit` fills a row with whole documents, always the longest that fits among those in a
  buffer, and cuts the shortest to fill what is left. Every piece begins a document and rows are
  full, but for the last; the rest of a document that was cut is never trained on.
- `obfd` cuts documents into rows and a rest, and puts the rests, the longest first, where the
  least room is left: best-fit decreasing. Nothing is dropped, and little is padding.

Source: bos-bestfit as in nanochat's data loader (github.com/karpathy/nanochat), whose rows have
one token more, a target only, and whose buffer is refilled by batches of documents; obfd by Ding
et al. 2024, Fewer Truncations Improve Language Modeling, section 3 and algorithm 1
(arXiv:2404.10830), as in OLMo-core. What they leave open is settled here: of documents of equal
length the first goes first, of rows with equal room the one that has had it the longest.
"""

from collections.abc import Sequence
from typing import Literal

PackingPolicy = Literal["chunk", "bos-bestfit", "obfd"]
Piece = tuple[int, int, int]

BUFFER_DOCUMENTS = 1000
"""Documents among which bos-bestfit looks for the best one; it defines what a run reads."""


def pack(lengths: Sequence[int], capacity: int, policy: PackingPolicy) -> list[list[Piece]]:
    """The rows of a policy, for documents of these lengths, each at least 1.

    >>> pack([6, 25, 4], 10, "obfd")
    [[(1, 0, 10)], [(1, 10, 10)], [(0, 0, 6), (2, 0, 4)], [(1, 20, 5)]]
    """
    return {"chunk": chunk, "bos-bestfit": bos_bestfit, "obfd": obfd}[policy](lengths, capacity)


def chunk(lengths: Sequence[int], capacity: int) -> list[list[Piece]]:
    """Rows of the stream without its first token; its tail is dropped."""
    stream = [(d, start) for d, length in enumerate(lengths) for start in range(length)][1:]
    rows = []
    for first in range(0, len(stream) - capacity + 1, capacity):
        row: list[Piece] = []
        for document, start in stream[first : first + capacity]:
            if row and row[-1][0] == document:
                row[-1] = (document, row[-1][1], row[-1][2] + 1)
            else:
                row.append((document, start, 1))
        rows.append(row)
    return rows


def bos_bestfit(lengths: Sequence[int], capacity: int) -> list[list[Piece]]:
    """Rows of whole documents from a buffer, the last one of each row cut where it must be."""
    waiting = list(range(len(lengths)))
    rows: list[list[Piece]] = [[]]
    room = capacity
    while waiting:
        buffer = waiting[:BUFFER_DOCUMENTS]
        fitting = [document for document in buffer if lengths[document] <= room]
        if fitting:
            chosen = max(fitting, key=lambda document: lengths[document])
        else:
            chosen = min(buffer, key=lambda document: lengths[document])
        length = min(lengths[chosen], room)
        rows[-1].append((chosen, 0, length))
        waiting.remove(chosen)
        room -= length
        if room == 0:
            rows.append([])
            room = capacity
    return [row for row in rows if row]


def obfd(lengths: Sequence[int], capacity: int) -> list[list[Piece]]:
    """Rows of whole documents and of pieces of those that are longer than a row."""
    pieces = [
        (document, start, min(capacity, length - start))
        for document, length in enumerate(lengths)
        for start in range(0, length, capacity)
    ]
    rows: list[list[Piece]] = []
    # Of each row its room and the turn at which it got it, so that the first minimum is the best.
    rooms: list[tuple[int, int]] = []
    for turn, piece in enumerate(sorted(pieces, key=lambda piece: -piece[2])):
        length = piece[2]
        fitting = [row for row, (room, _) in enumerate(rooms) if room >= length]
        row = min(fitting, key=lambda row: rooms[row], default=len(rows))
        if row == len(rows):
            rows.append([])
            rooms.append((capacity, turn))
        rows[row].append(piece)
        rooms[row] = (rooms[row][0] - length, turn)
    return rows
