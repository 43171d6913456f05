"""The peers' deduplication for `data_theirs.py`, and datatrove's documents."""

import functools
import logging
import shutil
from collections.abc import Iterable
from typing import Any

from data_ours import Prepared, digest_of, lines_left, nothing
from data_worker import Input, Job

SEED = 1


def documents(given: Input) -> list[Any]:
    from datatrove.data import Document

    logging.disable()
    return [
        Document(text=row["text"], id=row["id"], metadata={"url": row["url"]})
        for row in given.rows()
    ]


def fresh(rows: list[dict[str, str]]) -> Iterable[Any]:
    """Documents anew: C4's filter changes those that it keeps."""
    from datatrove.data import Document

    return (Document(text=row["text"], id=row["id"]) for row in rows)


class Blanks:
    """Words as blanks part them, so that the work beside the splitting is compared."""

    @staticmethod
    def word_tokenize(text: str) -> list[str]:
        return text.split()


def signature_step(given: Input, hash_name: str, given_words: bool) -> Any:
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.utils.hashing import HashConfig

    logging.disable()
    config = MinhashConfig(
        hash_config=HashConfig(precision=64, hash_fc=hash_name),
        num_buckets=14,
        hashes_per_bucket=8,
        n_grams=5,
        seed=SEED,
    )
    step = MinhashDedupSignature(output_folder=str(given.scratch / "signatures"), config=config)
    if given_words:
        step.word_tokenizer = Blanks()
    step.word_tokenizer.word_tokenize("Loads what it needs.")
    return step


def datatrove_sign(given: Input, hash_name: str, given_words: bool) -> Prepared:
    step, data = signature_step(given, hash_name, given_words), documents(given)

    def signatures(_: Any) -> list[str] | None:
        if hash_name != "sha1" or not given_words:
            return None
        found = []
        for document in data:
            shingles = step.get_shingles(document.text)
            signed = step.get_signature(shingles) if shingles.size else []
            values = [int(value) for band in signed for value in band]
            found.append(digest_of(values) if values else "")
        return found

    return lambda: step.run(data), signatures


def datatrove_buckets(given: Input) -> Prepared:
    from datatrove.pipeline.dedup import MinhashDedupBuckets

    step = signature_step(given, "sha1", True)
    step.run(documents(given))
    bucket = MinhashDedupBuckets(
        input_folder=str(given.scratch / "signatures"),
        output_folder=str(given.scratch / "buckets"),
        config=step.config,
    )

    def run() -> None:
        for rank in range(14):
            bucket.run(None, rank, 14)

    return run, nothing


def datatrove_clusters(given: Input) -> Prepared:
    from datatrove.pipeline.dedup import MinhashDedupCluster

    datatrove_buckets(given)[0]()
    folder = given.scratch / "remove"
    cluster = MinhashDedupCluster(
        input_folder=str(given.scratch / "buckets"),
        output_folder=str(folder),
        config=signature_step(given, "sha1", True).config,
    )

    def dropped(_: Any) -> list[int]:
        data = b"".join(path.read_bytes() for path in sorted(folder.glob("*.remove")))
        return [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]

    return cluster.run, dropped


def shingles_of(given: Input) -> list[list[str]]:
    """Made beforehand: what is timed is the peers' own work."""
    lists = []
    for text in given.texts():
        words = text.lower().split()
        lists.append([" ".join(words[at : at + 5]) for at in range(max(1, len(words) - 4))])
    return lists


def datasketch_sign(given: Input) -> Prepared:
    from datasketch import MinHash

    lists = [[shingle.encode() for shingle in shingles] for shingles in shingles_of(given)]

    def sign() -> list[Any]:
        made = []
        for shingles in lists:
            made.append(MinHash(num_perm=112, seed=SEED))
            made[-1].update_batch(shingles)
        return made

    return sign, nothing


def datasketch_join(given: Input) -> Prepared:
    from datasketch import MinHashLSH

    made = datasketch_sign(given)[0]()

    def join() -> None:
        index = MinHashLSH(num_perm=112, params=(14, 8))
        for number, signature in enumerate(made):
            index.query(signature)
            index.insert(str(number), signature)

    return join, nothing


def rensa_sign(given: Input) -> Prepared:
    import rensa

    lists = shingles_of(given)

    def sign() -> list[Any]:
        made = []
        for shingles in lists:
            made.append(rensa.RMinHash(112, SEED))
            made[-1].update(shingles)
        return made

    return sign, nothing


def rensa_join(given: Input) -> Prepared:
    import rensa

    made = rensa_sign(given)[0]()

    def join() -> None:
        index = rensa.RMinHashLSH(0.72, 112, 14)
        for number, signature in enumerate(made):
            index.query(signature)
            index.insert(number, signature)

    return join, nothing


def datatrove_exact(given: Input) -> Prepared:
    from datatrove.pipeline.dedup import ExactDedupFilter, ExactDedupSignature, ExactFindDedups
    from datatrove.pipeline.dedup.exact_dedup import ExactDedupConfig

    def content(document: Any) -> str:
        return str(document.text)

    content.__annotations__["return"] = str
    config, data = ExactDedupConfig(content_getter=content), documents(given)
    signed, found = str(given.scratch / "signed"), str(given.scratch / "found")

    def run() -> set[str]:
        ExactDedupSignature(signed, config).run(data)
        ExactFindDedups(signed, found, config).run()
        return {document.id for document in ExactDedupFilter(found, config).run(iter(data))}

    return run, lambda ids: [row for row, document in enumerate(data) if document.id not in ids]


def datatrove_lines(given: Input) -> Prepared:
    from datatrove.pipeline.dedup import (
        SentenceDedupFilter,
        SentenceDedupSignature,
        SentenceFindDedups,
    )
    from datatrove.pipeline.dedup.sentence_dedup import SentDedupConfig
    from datatrove.utils.text import TextNormConfig

    logging.disable()
    plain = TextNormConfig(**dict.fromkeys(TextNormConfig.__dataclass_fields__, False))
    config = SentDedupConfig(
        n_sentences=1,
        split_sentences=False,
        min_doc_words=0,
        min_num_sentences=0,
        norm_config=plain,
    )
    signed, found = str(given.scratch / "signed"), str(given.scratch / "found")
    rows = given.rows()

    def run() -> dict[str, str]:
        shutil.rmtree(found, ignore_errors=True)
        SentenceDedupSignature(signed, config=config).run(fresh(rows))
        SentenceFindDedups(signed, found, config=config).run()
        left = SentenceDedupFilter(found, config=config).run(fresh(rows))
        return {document.id: document.text for document in left}

    return run, lambda left: lines_left([left.get(row["id"], "") for row in rows])


JOBS: dict[str, Job] = {
    "datatrove exact": datatrove_exact,
    "datatrove lines": datatrove_lines,
    "datatrove sign": functools.partial(datatrove_sign, hash_name="sha1", given_words=False),
    "datatrove sign, words given": functools.partial(
        datatrove_sign, hash_name="sha1", given_words=True
    ),
    "datasketch sign": datasketch_sign,
    "rensa sign": rensa_sign,
    "datatrove buckets": datatrove_buckets,
    "datasketch join": datasketch_join,
    "rensa join": rensa_join,
    "datatrove clusters": datatrove_clusters,
}
