"""The peers' jobs of `data_peers.py`, run by the interpreter that has the peers.

    python data_theirs.py --versions
    python data_theirs.py --lists FOLDER     lists of addresses that datatrove and tldextract carry

Each is told what its own documentation says for the task, and datatrove what FineWeb told it.
Loading of models, lists and word splitters is not timed.
"""

import functools
import gzip
import importlib.metadata
import json
import logging
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import data_theirs_dedup
from data_ours import Prepared, digest_of, digests, packed, same
from data_theirs_dedup import SEED, documents, fresh
from data_worker import Input, Job

PACKAGES = (
    *("datatrove", "spacy", "trafilatura", "datasketch", "rensa", "warcio", "fastwarc"),
    *("resiliparse", "fasttext-numpy2-wheel", "tokenizers"),
)


# Reading and extraction. The crawl file is the one that rslm reads.


def warcio(given: Input) -> Prepared:
    from warcio.archiveiterator import ArchiveIterator

    path = packed(given)

    def read() -> list[int]:
        with path.open("rb") as file:
            return [len(record.content_stream().read()) for record in ArchiveIterator(file)]

    return read, same


def fastwarc(given: Input) -> Prepared:
    from fastwarc.warc import ArchiveIterator

    path = packed(given)

    def read() -> list[int]:
        with path.open("rb") as file:
            return [len(record.reader.read()) for record in ArchiveIterator(file, parse_http=True)]

    return read, same


def warc_reader(given: Input) -> Any:
    from datatrove.pipeline.readers import WarcReader

    logging.disable()
    path = packed(given)
    return WarcReader(str(path.parent), glob_pattern=path.name)


def datatrove_read(given: Input) -> Prepared:
    reader = warc_reader(given)
    return lambda: [document.text for document in reader.run()], digests


def datatrove_extract(given: Input) -> Prepared:
    from datatrove.pipeline.extractors import Trafilatura

    return extracted(given, Trafilatura(favour_precision=True).extract)


def trafilatura(given: Input, **options: Any) -> Prepared:
    from trafilatura import extract

    return extracted(given, functools.partial(extract, include_comments=False, **options))


def resiliparse(given: Input) -> Prepared:
    from resiliparse.extract.html2text import extract_plain_text

    options = {"links": False, "alt_texts": False, "form_fields": False}
    return extracted(given, functools.partial(extract_plain_text, main_content=True, **options))


def extracted(given: Input, extract: Any) -> Prepared:
    pages = [page["html"] for page in given.pages()]
    return lambda: [tolerant(extract, page) for page in pages], same


def tolerant(extract: Any, page: str) -> str:
    try:
        return extract(page) or ""
    except Exception:
        return ""


# One document at a time.


def language_filter(model: Path) -> Any:
    from datatrove.pipeline.filters import LanguageFilter
    from fasttext.FastText import _FastText

    judge = LanguageFilter(languages=["en"])
    judge.model._model = _FastText(str(model))
    return judge


def datatrove_language(given: Input) -> Prepared:
    judge, data = language_filter(given.folder.parent / "lid.176.ftz"), documents(given)

    def run() -> list[str]:
        for document in data:
            judge.filter(document)
        return [document.metadata["language"] for document in data]

    return run, same


def fasttext(given: Input) -> Prepared:
    from fasttext.FastText import _FastText

    model, texts = _FastText(str(given.folder.parent / "lid.176.ftz")), given.texts()

    def run() -> list[str]:
        found = (model.predict(text.replace("\n", " ")) for text in texts)
        return [labels[0].removeprefix("__label__") for labels, _ in found]

    return run, same


def datatrove_pii(given: Input) -> Prepared:
    from datatrove.pipeline.formatters import PIIFormatter

    mask, texts = PIIFormatter().format, given.texts()
    return lambda: [mask(text) for text in texts], (
        lambda masked: [new == old for new, old in zip(masked, texts, strict=True)]
    )


def rule_filters() -> dict[str, Any]:
    from datatrove.pipeline import filters

    return {
        "repetition": filters.GopherRepetitionFilter(),
        "quality": filters.GopherQualityFilter(),
        "c4": filters.C4QualityFilter(filter_no_terminal_punct=False),
        "fineweb": filters.FineWebQualityFilter(),
    }


def datatrove_rules(given: Input, name: str) -> Prepared:
    """One family; of each document the answer holds text, words and reason."""
    from datatrove.utils.text import split_into_words

    judge, rows = rule_filters()[name], given.rows()
    judged(judge, next(iter(fresh(rows))))
    return lambda: [judged(judge, document) for document in fresh(rows)], (
        lambda reasons: [
            (row["text"], split_into_words(row["text"]), reason)
            for row, reason in zip(rows, reasons, strict=True)
        ]
    )


def datatrove_all_rules(given: Input) -> Prepared:
    judges, rows = list(rule_filters().values()), given.rows()

    def run() -> list[bool]:
        return [not any(judged(judge, one) for judge in judges) for one in fresh(rows)]

    run()
    return run, same


def judged(judge: Any, document: Any) -> str:
    """The filter's reason, "" if it keeps the document."""
    try:
        verdict = judge.filter(document)
    except ZeroDivisionError:  # A page without a word, which datatrove counts as failed.
        return "error"
    return "" if verdict is True else str(verdict[1])


def url_lists() -> Any:
    from datatrove.pipeline.filters import URLFilter
    from tldextract import TLDExtract

    judge = URLFilter()
    # The list that it carries; else it would ask the network first.
    judge.tldextractor = TLDExtract(suffix_list_urls=(), cache_dir=None)
    judge.download_data()
    return judge


def datatrove_url(given: Input) -> Prepared:
    from datatrove.data import Document

    judge = url_lists()
    urls = json.loads((given.folder / "urls.json").read_text())
    given.n_bytes = sum(len(url.encode()) for url in urls)
    data = [Document(text="", id="", metadata={"url": url}) for url in urls]
    judge.filter(data[0])
    return lambda: [judge.filter(document) is True for document in data], same


def datatrove_decontaminate(given: Input) -> Prepared:
    import numpy
    from datatrove.pipeline.decont import (
        NGramsDecontConfig,
        NGramsDecontFilter,
        NGramsDecontIndexer,
    )

    config, folder = NGramsDecontConfig(n_grams=13), given.scratch / "index"
    folder.mkdir()
    # Its indexer asks for lighteval, which has the tasks by name; not for hashing a text.
    NGramsDecontIndexer._requires_dependencies = []
    indexer = NGramsDecontIndexer(str(folder), config=config)
    items = (given.folder / "evaluation.txt").read_text().splitlines()
    hashes = {hash for item in items for hash in indexer.compute_hashes(item)}
    numpy.array(sorted(hashes), dtype="<u8").tofile(folder / "items.index.hashes")
    judge, data = NGramsDecontFilter(str(folder), config=config), documents(given)
    judge.filter(data[0])
    return lambda: [judge.filter(document) is not True for document in data], same


# Tokenizing, and the whole path.


def datatrove_tokenize(given: Input) -> Prepared:
    import numpy
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    logging.disable()
    rows = given.rows()
    (given.scratch / "in").mkdir()
    path = given.scratch / "in" / "shard.jsonl.gz"
    lines = "".join(json.dumps({"id": row["id"], "text": row["text"]}) + "\n" for row in rows)
    path.write_bytes(gzip.compress(lines.encode(), 1))
    out = given.scratch / "tokens"
    options = {"tokenizer_name_or_path": str(given.folder.parent / "tokenizer.json"), "seed": SEED}
    reader = JsonlReader(str(path.parent))
    step = DocumentTokenizer(str(out), eos_token="<|endoftext|>", **options)
    _ = step.tokenizer

    def run() -> None:
        shutil.rmtree(out, ignore_errors=True)
        step.run(reader.run())

    def written(_: Any) -> list[str]:
        (file,) = [path for path in out.iterdir() if path.name.endswith(".ds")]
        ids = numpy.fromfile(file, f"<u{step.token_size}")
        ends = numpy.fromfile(f"{file}.index", "<u8")
        parts = numpy.split(ids, ends[:-1].astype(int))
        return sorted(digest_of(part.tolist()) for part in parts)

    return run, written


def datatrove_whole(given: Input) -> Prepared:
    """FineWeb's steps up to its rules, but with the model and the lists at hand."""
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.writers import JsonlWriter

    # A page's second is one of the clock: a busy machine must not lose pages by it.
    extractor = Trafilatura(favour_precision=True, timeout=10)
    judges = [url_lists(), extractor, language_filter(given.folder.parent / "lid.176.ftz")]
    judges += rule_filters().values()
    reader, out = warc_reader(given), given.scratch / "out"
    ids = sorted({page["id"] for page in given.pages()})

    def run() -> None:
        shutil.rmtree(out, ignore_errors=True)
        data: Any = reader.run()
        for step in judges:
            data = step.run(data)
        for _ in JsonlWriter(str(out), output_filename="0.jsonl.gz").run(data):
            pass

    def left(_: Any) -> list[bool]:
        found = set()
        if (out / "0.jsonl.gz").exists():
            text = gzip.decompress((out / "0.jsonl.gz").read_bytes()).decode()
            found = {json.loads(line)["id"].strip("<>") for line in text.splitlines()}
        return [id.strip("<>") in found for id in ids]

    return run, left


JOBS: dict[str, Job] = {
    "warcio": warcio,
    "fastwarc": fastwarc,
    "datatrove read": datatrove_read,
    "datatrove extract": datatrove_extract,
    "trafilatura": trafilatura,
    "trafilatura fast": functools.partial(trafilatura, fast=True),
    "resiliparse": resiliparse,
    "datatrove language": datatrove_language,
    "fasttext": fasttext,
    "datatrove pii": datatrove_pii,
    "datatrove repetition": functools.partial(datatrove_rules, name="repetition"),
    "datatrove quality": functools.partial(datatrove_rules, name="quality"),
    "datatrove c4": functools.partial(datatrove_rules, name="c4"),
    "datatrove fineweb": functools.partial(datatrove_rules, name="fineweb"),
    "datatrove rules": datatrove_all_rules,
    "datatrove url": datatrove_url,
    "datatrove decontaminate": datatrove_decontaminate,
    **data_theirs_dedup.JOBS,
    "datatrove tokenize": datatrove_tokenize,
    "datatrove whole": datatrove_whole,
}


def write_lists(folder: Path) -> None:
    """datatrove's lists of addresses and tldextract's of public suffixes, as rslm names them."""
    import datatrove
    import tldextract

    assets = Path(datatrove.__file__).parent / "assets"
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(assets / "url_filterblacklistsv0_3_0.tar.gz") as tar:
        for name in ("domains", "urls"):
            file = tar.extractfile(name)
            assert file is not None
            (folder / name).write_bytes(file.read())
    for name in ("banned_words.txt", "soft_banned_words.txt", "banned_subwords.txt"):
        shutil.copy(assets / name, folder / name)
    suffixes = Path(tldextract.__file__).parent / ".tld_set_snapshot"
    shutil.copy(suffixes, folder / "public_suffix_list.dat")


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    if sys.argv[1] == "--lists":
        write_lists(Path(sys.argv[2]))
    else:
        print(json.dumps(versions()))
