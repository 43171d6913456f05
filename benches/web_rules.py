"""Quality rules and masks of personal data beside datatrove's: agreement, then speed.

    python benches/web_rules.py --peers-python PATH --data FOLDER [--texts FILE.json ...]

The peer runs in its own interpreter on the same documents. Agreement is judged rule family by
rule family with datatrove's own words given to the reference, so that what differs is the rules.
Speed is MB of text per second of CPU time of one process, in turns, the best of each; ours with
its own words. FOLDER holds the project's shared data; each FILE.json, a list of texts, is another
row of the table.
"""

import argparse
import functools
import gzip
import json
import lzma
import subprocess
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rslm.data.pii import mask_pii, mask_pii_batch
from rslm.data.quality import Page, check_quality, check_quality_batch
from rslm.data.quality.c4 import check_c4
from rslm.data.quality.fineweb import check_fineweb
from rslm.data.quality.gopher import FINEWEB, check_gopher
from rslm.data.quality.repetition import check_repetition_fineweb

N_TURNS = 3
PAGE_CHARACTERS = 6_000
MAX_CHARACTERS = 250_000
# datatrove's reasons that bear another name than ours without its family.
NAMES = {
    "dup_para_frac": "paragraphs",
    "dup_para_char_frac": "paragraph_characters",
    "dup_line_frac": "lines",
    "dup_line_char_frac": "line_characters",
    "gopher_short_doc": "too_few_words",
    "gopher_long_doc": "too_many_words",
    "gopher_below_avg_threshold": "short_words",
    "gopher_above_avg_threshold": "long_words",
    "gopher_too_many_hashes": "too_many_symbols",
    "gopher_too_many_ellipsis": "too_many_symbols",
    "gopher_too_many_bullets": "bullet_lines",
    "gopher_too_many_end_ellipsis": "ellipsis_lines",
    "gopher_below_alpha_threshold": "few_alphabetic_words",
    "gopher_enough_stop_words": "few_stop_words",
    "line_punct_ratio": "line_punctuation",
    "short_line_ratio": "short_lines",
    "char_dup_ratio": "duplicate_characters",
    "list_ratio": "newlines",
}
# What rests on words or sentences, where the others rest on lines and characters alone.
OF_WORDS = ("top_", "duplicate_", "newlines", "sentences", "word", "symbols")


class Peer:
    """The other interpreter."""

    def __init__(self, python: str) -> None:
        worker = Path(__file__).with_name("web_rules_peer.py")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([python, str(worker)], **pipes)

    def ask(self, task: str, texts: list[str]) -> tuple[float, list[Any]]:
        """Seconds of CPU time, and what was found."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps({"task": task, "texts": texts}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["seconds"], answer["found"]


def read_texts(data: Path, files: list[Path]) -> dict[str, list[str]]:
    """Name -> documents of some kB each."""
    packed = gzip.decompress((data / "web" / "cc_en_head-0091.jsonl.gz").read_bytes())
    sets = {"crawl": [json.loads(line)["text"] for line in packed.splitlines()]}
    with tarfile.open(data / "web" / "articles.tar") as archive:
        file = archive.extractfile("articles/ground-truth.json")
        assert file is not None
        sets["articles"] = [article["articleBody"] for article in json.load(file).values()]
    for name, border in (("books-valid", "\n\n"), ("multilingual", "\n")):
        with lzma.open(data / "text" / f"{name}.txt.xz") as packed_text:
            text = packed_text.read(4 * MAX_CHARACTERS).decode(errors="ignore")
        sets[name] = pages(text[:MAX_CHARACTERS], border)
    for path in files:
        sets[path.stem] = json.loads(path.read_text())
    return {name: limited(texts) for name, texts in sets.items()}


def pages(text: str, border: str) -> list[str]:
    """Runs of paragraphs of about a page's length; a book's wrapped lines become one each."""
    found, page = [], ""
    for paragraph in text.replace("\r", "").split(border):
        page += paragraph.replace("\n", " ").strip() + "\n"
        if len(page) > PAGE_CHARACTERS:
            found.append(page)
            page = ""
    return found


def limited(texts: list[str]) -> list[str]:
    """The first of the texts, up to the most characters."""
    kept, total = [], 0
    for text in texts:
        total += len(text)
        if text.strip() and total <= MAX_CHARACTERS:
            kept.append(text)
    return kept


def ours(family: str, page: Page) -> str:
    """Our reason without the family's name."""
    if family == "c4":
        verdict = check_c4(page, terminal_punctuation=False)
        return verdict.reason.removeprefix("c4_")
    check: Callable[[Page], str | None] = {
        "repetition": check_repetition_fineweb,
        "quality": lambda page: check_gopher(page, FINEWEB),
        "fineweb": check_fineweb,
    }[family]
    reason = check(page) or ""
    for prefix in ("repetition_", "gopher_", "fineweb_"):
        reason = reason.removeprefix(prefix)
    return reason


def theirs(reason: str) -> str:
    """datatrove's reason by our name."""
    reason = reason.replace("duplicated_", "duplicate_").replace("_n_grams", "_grams")
    return NAMES.get(reason, reason)


def compare(peer: Peer, texts: list[str]) -> Counter[tuple[str, str]]:
    """(family, outcome) -> documents; an outcome is "same" or what the two say."""
    _, tokens = peer.ask("tokens", texts)
    counts: Counter[tuple[str, str]] = Counter()
    for family in ("repetition", "quality", "c4", "fineweb"):
        _, found = peer.ask(family, texts)
        for text, words, (reason, _) in zip(texts, tokens, found, strict=True):
            expected, got = theirs(reason), ours(family, Page(text, lambda _, words=words: words))
            same = "same" if expected == got else f"{got or 'keep'}, not {expected or 'keep'}"
            counts[family, same] += 1
    return counts


def of_lines(outcome: str) -> bool:
    """Whether two reasons that differ both rest on lines or characters alone."""
    return not any(part in outcome for part in OF_WORDS)


def best(timed: list[float]) -> float:
    """The shortest turn."""
    return min(timed)


def time_ours(work: Callable[[], object], n_bytes: int) -> float:
    """Seconds of CPU time of one pass, over enough passes to measure."""
    n_passes = max(1, 10_000_000 // n_bytes)
    start = time.process_time()
    for _ in range(n_passes):
        work()
    return (time.process_time() - start) / n_passes


def main() -> None:
    """Prints the two tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peers-python", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--texts", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    sets = read_texts(options.data, options.texts)
    peer = Peer(options.peers_python)
    print("| text | documents | same verdicts | fast = reference | differ |\n|---|--:|--:|--:|---|")
    for name, texts in sets.items():
        counts = compare(peer, texts)
        n_same = sum(n for (_, outcome), n in counts.items() if outcome == "same")
        equal = check_quality_batch(texts, "fineweb") == [
            check_quality(text, "fineweb", implementation="reference") for text in texts
        ]
        differ = [f"{family}: {o} ({n})" for (family, o), n in counts.items() if o != "same"]
        share = f"{n_same / counts.total():.2%}"
        print(f"| {name} | {len(texts)} | {share} | {equal} | {'; '.join(differ)} |")
        bad = [key for key in counts if key[1] != "same" and of_lines(key[1])]
        assert equal
        assert not bad, bad
    print("\n| text | MB | rules, rslm | datatrove | times | masks, rslm | datatrove | times |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name, texts in sets.items():
        n_bytes = sum(len(text.encode()) for text in texts)
        turns: dict[str, list[float]] = {"rules": [], "all": [], "masks": [], "pii": []}
        rules = functools.partial(check_quality_batch, texts, "fineweb")
        masks = functools.partial(mask_pii_batch, texts, "fineweb")
        for _ in range(N_TURNS):
            turns["rules"].append(time_ours(rules, n_bytes))
            turns["all"].append(peer.ask("all", texts)[0])
            turns["masks"].append(time_ours(masks, n_bytes))
            seconds, masked = peer.ask("pii", texts)
            turns["pii"].append(seconds)
        # datatrove's turn of examples goes on from page to page; ours begins anew.
        assert [m == text for m, text in zip(masked, texts, strict=True)] == [
            mask_pii(text, "fineweb").text == text for text in texts
        ]
        speed = {key: n_bytes / best(timed) / 1e6 for key, timed in turns.items()}
        print(
            f"| {name} | {n_bytes / 1e6:.2f} | {speed['rules']:.0f} | {speed['all']:.2f} | "
            f"{speed['rules'] / speed['all']:.0f} | {speed['masks']:.0f} | {speed['pii']:.1f} | "
            f"{speed['masks'] / speed['pii']:.0f} |"
        )


if __name__ == "__main__":
    main()
