"""The cluster of one document, found again in the links that joining wrote.

A file of links is laid out as `rust/web/dedup/container.rs` says: records from its beginning on,
here four u32 (shard and row of either end), then a footer, and 48 bytes that say where it is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rslm.data.pipeline.places import Place, rows_dropped
from rslm.data.pipeline.plan import PLACES, Plan
from rslm.errors import FormatError

_MAGIC = b"RSLMDUP\0"
_TRAILER = struct.Struct("<QQQQII8s")
_SECTION = struct.Struct("<QQQQ")
_EDGES = 4
Keys = npt.NDArray[np.uint64]


def members_of(plan: Plan, kind: str, place: Place) -> list[Place]:
    """All places of the cluster of a place, ascending: itself alone where it is in none.

    Reads all links of the run, 16 bytes each.
    """
    return members_among(links_of(plan, kind), place)


def links_of(plan: Plan, kind: str) -> list[Keys]:
    """All links of the run that were found for a kind of copies."""
    join = plan.stage(f"{kind}.join")
    files = [plan.path(join.name, index, PLACES) for index in range(join.n_tasks)]
    return [pair for path in files if len(pair := read_links(path))]


def members_among(links: Sequence[Keys], place: Place) -> list[Place]:
    """The same among links that were read: they are gone through for each step between members."""
    known = np.array([_key(place)], np.uint64)
    while True:
        touched = [pair[np.isin(pair, known).any(axis=1)].ravel() for pair in links]
        grown: Keys = np.unique(np.concatenate([known, *touched]))
        if len(grown) == len(known):
            return [(int(key) >> 32, int(key) & 0xFFFF_FFFF) for key in known]
        known = grown


def kept_of(plan: Plan, kind: str, members: Sequence[Place]) -> Place | None:
    """The member that is not dropped."""
    return kept_among(members, lambda shard: rows_dropped(plan, f"{kind}.cluster", shard))


def kept_among(
    members: Sequence[Place], dropped_of: Callable[[int], frozenset[int]]
) -> Place | None:
    """The same, by the rows that are dropped of a shard."""
    dropped = {shard: dropped_of(shard) for shard in {shard for shard, _ in members}}
    return next((place for place in members if place[1] not in dropped[place[0]]), None)


def read_links(path: Path) -> Keys:
    """Both ends of each link, as `shard << 32 | row`.

    Raises:
        FormatError: it is no whole file of links.
    """
    data = path.read_bytes()
    try:
        footer, n_numbers, n_sections, _, kind, _, magic = _TRAILER.unpack(data[-_TRAILER.size :])
        if (magic, kind, n_sections) != (_MAGIC, _EDGES, 1):
            raise ValueError("it is of another kind")
        start, n_bytes, _, _ = _SECTION.unpack_from(data, footer + 8 * n_numbers)
        ends = np.frombuffer(data, "<u4", n_bytes // 4, start).reshape(-1, 4)
    except (struct.error, ValueError) as error:
        raise FormatError(f"{path}: must be a file of links between documents: {error}") from error
    keys: Keys = ends[:, ::2].astype(np.uint64) << np.uint64(32) | ends[:, 1::2]
    return keys


def _key(place: Place) -> int:
    return place[0] << 32 | place[1]
