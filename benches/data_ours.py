"""rslm's jobs of `data_peers.py`, as `data_worker.py` runs them."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from data_worker import Call, Input, Job

Prepared = tuple[Call, Any]


def same(result: Any) -> Any:
    return result


def nothing(_: Any) -> None:
    """Where no answer can be compared."""


# Reading and extraction.


def read(given: Input) -> Prepared:
    from rslm.data.warc import read_warc

    path = packed(given)
    return lambda: [len(record.payload) for record in read_warc(path)], same


def packed(given: Input) -> Path:
    """The pages as a crawl file; both sides make the same."""
    from data_inputs import write_warc

    path = given.scratch / "pages.warc.gz"
    if not path.exists():
        write_warc(path, given.pages())
    return path


def read_decoded(given: Input) -> Prepared:
    from rslm.data.documents import read_documents

    path = packed(given)
    return lambda: [document.text for document in read_documents(path)], digests


def digests(texts: list[str]) -> list[str]:
    return [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts]


def extract(given: Input, extractor: Any) -> Prepared:
    from rslm.data.extract import extract_batch

    pages = [page["html"] for page in given.pages()]
    return lambda: [found.text for found in extract_batch(pages, extractor=extractor)], same


# One document at a time.


def language(given: Input) -> Prepared:
    from rslm.data.language import LanguageModel

    model, texts = LanguageModel(), given.texts()
    return lambda: [code for code, _ in model.identify_batch(texts)], same


def pii(given: Input) -> Prepared:
    from rslm.data.pii import mask_pii_batch

    texts = given.texts()
    return lambda: [masked.text for masked in mask_pii_batch(texts, "fineweb")], (
        lambda masked: [new == old for new, old in zip(masked, texts, strict=True)]
    )


def rules(given: Input, step: int | None) -> Prepared:
    from rslm import _rslm

    texts = given.texts()
    return lambda: _rslm.check_quality(texts, "fineweb", 1, step), (
        lambda rows: [not row[0] for row in rows]
    )


def url_filter(given: Input) -> Prepared:
    from rslm.data.url_filter import UrlFilter

    urls = json.loads((given.folder / "urls.json").read_text())
    given.n_bytes = sum(len(url.encode()) for url in urls)
    found = UrlFilter.read(given.folder.parent / "lists")
    return lambda: found.reason_batch(urls), lambda reasons: [not r for r in reasons]


def decontaminate(given: Input) -> Prepared:
    from rslm.data.decontaminate import EvaluationNgrams

    texts = given.texts()
    ngrams = EvaluationNgrams.read([given.folder / "evaluation.txt"])
    return lambda: ngrams.overlaps_batch(texts), same


# Deduplication.


def sign(given: Input) -> Prepared:
    from rslm.data.dedup import stages
    from rslm.data.dedup.near_duplicates import PRESETS

    texts, options = given.texts(), PRESETS["fineweb"]
    path = given.scratch / "signatures"
    return lambda: stages.sign_minhash(texts, 0, path, options=options, n_ranges=1), (
        lambda _: signatures(texts)
    )


def signatures(texts: list[str]) -> list[str]:
    """Of each text the digest of its signature, "" where it has none."""
    from rslm import _rslm
    from rslm.data.dedup.minhash import draw_hash_functions
    from rslm.data.dedup.near_duplicates import PRESETS, minhash_arguments

    options = PRESETS["fineweb"]
    arguments = minhash_arguments(options, draw_hash_functions(options.n_hashes, options.seed))
    found = (_rslm.minhash_signature(text, arguments) for text in texts)
    return ["" if s is None else digest_of(s.tolist()) for s in found]


def digest_of(values: list[int]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def buckets(given: Input) -> Prepared:
    from rslm.data.dedup import stages

    sign(given)[0]()
    edges = edges_of(given)
    signed = [given.scratch / "signatures"]

    def join() -> None:
        for part, target in enumerate(edges):
            stages.join(signed, part, target)

    return join, nothing


def edges_of(given: Input) -> list[Path]:
    from rslm.data.dedup import stages
    from rslm.data.dedup.near_duplicates import PRESETS

    return [given.scratch / f"e{part}" for part in range(stages.n_parts(PRESETS["fineweb"], 1))]


def clusters(given: Input) -> Prepared:
    from rslm.data.dedup import stages

    buckets(given)[0]()
    n_rows, target = [len(given.texts())], given.scratch / "clusters"
    edges = edges_of(given)
    return lambda: stages.cluster(edges, n_rows, target, keep="first", seed=0), (
        lambda _: stages.dropped_rows(target, 0).tolist()
    )


def exact(given: Input) -> Prepared:
    from rslm.data.dedup import stages

    texts, folder = given.texts(), given.scratch

    def run() -> list[int]:
        stages.sign_exact(texts, 0, folder / "x", n_ranges=1)
        stages.join([folder / "x"], 0, folder / "xe")
        stages.cluster([folder / "xe"], [len(texts)], folder / "xc", keep="first", seed=0)
        dropped: list[int] = stages.dropped_rows(folder / "xc", 0).tolist()
        return dropped

    return run, same


def lines(given: Input) -> Prepared:
    from rslm.data.dedup import stages

    texts, folder = given.texts(), given.scratch

    def run() -> list[str]:
        stages.count_lines(texts, 0, folder / "l", n_ranges=1)
        stages.merge_lines([folder / "l"], 0, folder / "m", n_ranges=1)
        rewritten = stages.RepeatedLines([folder / "m"]).rewrite(texts, 0, 0, "first")
        return [text for text, _ in rewritten]

    return run, lines_left


def lines_left(texts: list[str]) -> list[str]:
    """Of each text the digest of its lines that are not blank."""
    lines = (map(str.strip, text.splitlines()) for text in texts)
    return digests(["\n".join(filter(None, each)) for each in lines])


# Tokenizing, and the whole path.


def tokenize(given: Input) -> Prepared:
    from rslm.data.token_stage import write_token_file

    shard = write_shard(given)
    numbers = iter(range(1 << 30))

    def run() -> Path:
        out = given.scratch / f"tokens-{next(numbers)}"
        tokenizer = given.folder.parent / "tokenizer.json"
        write_token_file([shard], tokenizer, out, shuffle_seed=1, n_workers=1, n_threads=1)
        return out

    return run, documents_of_tokens


def write_shard(given: Input) -> Path:
    """The texts as a shard that both sides read."""
    from rslm.data.pipeline.shards import LinesWriter

    path = given.scratch / "shard.jsonl.zst"
    with LinesWriter(path, "1") as writer:
        for row in given.rows():
            writer.write({"id": row["id"], "text": row["text"], "source": "", "metadata": {}})
    return path


def documents_of_tokens(out: Path) -> list[str]:
    from rslm import TokenFile

    file = TokenFile.open(out / "train")
    documents = (file.document(index) for index in range(file.n_documents))
    return sorted(digest_of(document.tolist()) for document in documents)


def whole(given: Input) -> Prepared:
    """The stage that reads, extracts and judges a shard, with all that it writes."""
    from rslm.data.pipeline.config import (
        InputConfig,
        LanguageConfig,
        PipelineConfig,
        QualityConfig,
        UrlFilterConfig,
    )
    from rslm.data.pipeline.marks import Task
    from rslm.data.pipeline.plan import make_plan
    from rslm.data.pipeline.shards import read_lines
    from rslm.data.pipeline.stages import run_task

    config = PipelineConfig(
        out=given.scratch / "out",
        inputs=(InputConfig(paths=(str(packed(given)),)),),
        url_filter=UrlFilterConfig(lists=given.folder.parent / "lists"),
        language=LanguageConfig(languages=("en",)),
        quality=QualityConfig(presets=("fineweb",)),
    )
    plan = make_plan(config)
    config.out.mkdir()
    # Models and lists are loaded once in a process.
    task = functools.partial(run_task, plan, Task(stage="filter", index=0, upstream=""), "1")
    task()
    ids = sorted({page["id"] for page in given.pages()})

    def kept(_: Any) -> list[bool]:
        rows = list(read_lines(plan.path("filter", 0, "jsonl.zst")))
        found = {row["id"].strip("<>") for row in rows}
        return [id.strip("<>") in found for id in ids]

    return task, kept


JOBS: dict[str, Job] = {
    "read": read,
    "read and decode": read_decoded,
    "readability": functools.partial(extract, extractor="readability"),
    "resiliparse": functools.partial(extract, extractor="resiliparse-main"),
    "language": language,
    "pii": pii,
    "repetition": functools.partial(rules, step=0),
    "quality": functools.partial(rules, step=1),
    "c4": functools.partial(rules, step=2),
    "fineweb": functools.partial(rules, step=3),
    "rules": functools.partial(rules, step=None),
    "url": url_filter,
    "decontaminate": decontaminate,
    "exact": exact,
    "lines": lines,
    "sign": sign,
    "buckets": buckets,
    "clusters": clusters,
    "tokenize": tokenize,
    "whole": whole,
}
