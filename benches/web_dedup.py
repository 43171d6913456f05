"""Deduplication beside its peers: MB of text per CPU second of one core, answers checked first.

    python benches/web_dedup.py --peers-python PATH --text FILE.xz [--megabytes N]

Peers (datatrove, datasketch, rensa) run in an environment of their own, each measurement in a
process of its own, in turns with ours; what is timed is CPU time around the work alone. `ours`
and `given words` cut words at blanks; `as shipped` is datatrove with its own words (spaCy).
"""

import argparse
import hashlib
import json
import lzma
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

N_ROUNDS = 3
SEED = 1


def read_documents(path: Path, megabytes: float) -> list[str]:
    """Pieces of some 4 kB of a text, and edited copies of every fifth."""
    with lzma.open(path) as file:
        text = file.read(int(megabytes * 1e6)).decode("utf-8", errors="ignore")
    documents: list[str] = []
    piece: list[str] = []
    n_characters = 0
    for line in text.split("\n"):
        piece.append(line)
        n_characters += len(line)
        if n_characters > 4000:
            documents.append("\n".join(piece))
            piece, n_characters = [], 0
    draw = random.Random(SEED)
    for document in documents[::5]:
        words = document.split(" ")
        for _ in range(len(words) // 200):
            words[draw.randrange(len(words))] = "edited"
        documents.append(" ".join(words))
    draw.shuffle(documents)
    return documents


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    answer = work()
    return time.process_time() - start, answer


def digest(signatures: list[list[int]]) -> str:
    return hashlib.sha256(json.dumps(signatures).encode()).hexdigest()


# Ours.


def ours_sign(documents: list[str], folder: Path) -> Any:
    from rslm.data.dedup import stages
    from rslm.data.dedup.near_duplicates import PRESETS

    options = PRESETS["fineweb"]
    seconds, _ = timed(
        lambda: stages.sign_minhash(documents, 0, folder / "s", options=options, n_ranges=1)
    )
    return {"sign": seconds}


def ours_join(documents: list[str], folder: Path) -> Any:
    from rslm.data.dedup import stages
    from rslm.data.dedup.near_duplicates import PRESETS

    options = PRESETS["fineweb"]
    stages.sign_minhash(documents, 0, folder / "s", options=options, n_ranges=1)
    edges = [folder / f"e{part}" for part in range(stages.n_parts(options, 1))]

    def join() -> None:
        for part, target in enumerate(edges):
            stages.join([folder / "s"], part, target)

    joined, _ = timed(join)
    n_rows = [len(documents)]
    clustered, _ = timed(lambda: stages.cluster(edges, n_rows, folder / "c", keep="first", seed=0))
    return {
        "buckets": joined,
        "cluster": clustered,
        "dropped": stages.dropped_rows(folder / "c", 0).tolist(),
    }


def ours_in_memory(documents: list[str], folder: Path) -> Any:
    from rslm.data.dedup.near_duplicates import PRESETS, find_near_duplicates

    named = [(f"{number:08}", text) for number, text in enumerate(documents)]
    seconds, found = timed(lambda: find_near_duplicates(named, PRESETS["fineweb"]))
    return {"all": seconds, "kept": len(found.kept)}


def ours_other(documents: list[str], folder: Path) -> Any:
    from rslm import _rslm
    from rslm.data.dedup import stages

    normalized, _ = timed(lambda: _rslm.normalize_texts(documents, "fineweb"))
    counted, _ = timed(lambda: stages.count_lines(documents, 0, folder / "l", n_ranges=1))
    stages.merge_lines([folder / "l"], 0, folder / "m", n_ranges=1)
    repeated = stages.RepeatedLines([folder / "m"])
    rewritten, _ = timed(lambda: repeated.rewrite(documents, 0, 0, "none"))
    exact, _ = timed(lambda: stages.sign_exact(documents, 0, folder / "x", n_ranges=1))
    return {
        "normalise": normalized,
        "count lines": counted,
        "rewrite lines": rewritten,
        "sign exact": exact,
    }


def ours_signatures(documents: list[str], folder: Path) -> Any:
    from rslm import _rslm
    from rslm.data.dedup.minhash import draw_hash_functions
    from rslm.data.dedup.near_duplicates import PRESETS, minhash_arguments

    options = PRESETS["fineweb"]
    arguments = minhash_arguments(options, draw_hash_functions(options.n_hashes, options.seed))
    found = (_rslm.minhash_signature(text, arguments) for text in documents)
    return {"digest": digest([[] if s is None else s.tolist() for s in found])}


# Peers: run by the interpreter that has them.


class _Blanks:
    @staticmethod
    def word_tokenize(text: str) -> list[str]:
        return text.split()


def _datatrove(folder: Path, hash_function: str, *, given_words: bool) -> Any:
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.utils.hashing import HashConfig

    config = MinhashConfig(
        hash_config=HashConfig(precision=64, hash_fc=hash_function),
        num_buckets=14,
        hashes_per_bucket=8,
        n_grams=5,
        seed=SEED,
    )
    step = MinhashDedupSignature(output_folder=str(folder / "signatures"), config=config)
    if given_words:
        step.word_tokenizer = _Blanks()
    return step, config


def _peer_documents(documents: list[str]) -> Any:
    from datatrove.data import Document

    return [Document(text=text, id=str(number)) for number, text in enumerate(documents)]


def datatrove_signatures(documents: list[str], folder: Path) -> Any:
    step, _ = _datatrove(folder, "sha1", given_words=True)
    signatures = []
    for text in documents:
        shingles = step.get_shingles(text)
        signed = step.get_signature(shingles) if shingles.size else []
        signatures.append([value for band in signed for value in band])
    return {"digest": digest(signatures)}


def datatrove_sign(documents: list[str], folder: Path, name: str, given_words: bool) -> Any:
    step, _ = _datatrove(folder, name, given_words=given_words)
    step.word_tokenizer.word_tokenize("Loads what it needs.")
    data = _peer_documents(documents)
    seconds, _ = timed(lambda: step.run(data))
    return {"sign": seconds}


def datatrove_join(documents: list[str], folder: Path) -> Any:
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster

    step, config = _datatrove(folder, "sha1", given_words=True)
    step.run(_peer_documents(documents))
    bucket = MinhashDedupBuckets(
        input_folder=str(folder / "signatures"),
        output_folder=str(folder / "buckets"),
        config=config,
    )
    seconds = [timed(lambda r=rank: bucket.run(None, r, 14))[0] for rank in range(14)]
    cluster = MinhashDedupCluster(
        input_folder=str(folder / "buckets"), output_folder=str(folder / "remove"), config=config
    )
    clustered, _ = timed(lambda: cluster.run())
    removed = b"".join(path.read_bytes() for path in sorted((folder / "remove").glob("*.remove")))
    rows = [int.from_bytes(removed[at : at + 4], "little") for at in range(0, len(removed), 4)]
    return {"buckets": sum(seconds), "cluster": clustered, "dropped": rows}


def _token_lists(documents: list[str]) -> list[list[str]]:
    """Shingles made beforehand: what is timed is the peers' own work."""
    lists = []
    for text in documents:
        words = text.lower().split()
        lists.append([" ".join(words[at : at + 5]) for at in range(max(1, len(words) - 4))])
    return lists


def datasketch_all(documents: list[str], folder: Path) -> Any:
    from datasketch import MinHash, MinHashLSH

    lists = [[shingle.encode() for shingle in shingles] for shingles in _token_lists(documents)]
    made: list[Any] = []

    def sign() -> None:
        for shingles in lists:
            signature = MinHash(num_perm=112, seed=SEED)
            signature.update_batch(shingles)
            made.append(signature)

    def join() -> int:
        index = MinHashLSH(num_perm=112, params=(14, 8))
        n_found = 0
        for number, signature in enumerate(made):
            n_found += len(index.query(signature))
            index.insert(str(number), signature)
        return n_found

    signed, _ = timed(sign)
    joined, n_found = timed(join)
    return {"sign": signed, "buckets": joined, "links": n_found}


def rensa_all(documents: list[str], folder: Path) -> Any:
    import rensa

    lists = _token_lists(documents)
    made: list[Any] = []

    def sign() -> None:
        for shingles in lists:
            signature = rensa.RMinHash(112, SEED)
            signature.update(shingles)
            made.append(signature)

    def join() -> int:
        index = rensa.RMinHashLSH(0.72, 112, 14)
        n_found = 0
        for number, signature in enumerate(made):
            n_found += len(index.query(signature))
            index.insert(number, signature)
        return n_found

    signed, _ = timed(sign)
    joined, n_found = timed(join)
    return {"sign": signed, "buckets": joined, "links": n_found}


# What runs, by whom, on which share of the documents: the slow ones would take minutes.
JOBS: dict[str, tuple[bool, float, Callable[[list[str], Path], Any]]] = {
    "ours": (False, 1, ours_sign),
    "ours in memory": (False, 1, ours_in_memory),
    "ours, other stages": (False, 1, ours_other),
    "datatrove sha1, given words": (True, 0.1, lambda d, f: datatrove_sign(d, f, "sha1", True)),
    "datatrove xxhash, given words": (True, 0.1, lambda d, f: datatrove_sign(d, f, "xxhash", True)),
    "datatrove sha1, as shipped": (True, 0.1, lambda d, f: datatrove_sign(d, f, "sha1", False)),
    "datasketch, shingles given": (True, 0.2, datasketch_all),
    "rensa, shingles given": (True, 1, rensa_all),
    "ours, joined": (False, 1, ours_join),
    "datatrove, joined": (True, 1, datatrove_join),
    "signatures of ours": (False, 0.05, ours_signatures),
    "signatures of datatrove": (True, 0.05, datatrove_signatures),
}
CHECKS = ["signatures of ours", "signatures of datatrove", "ours, joined", "datatrove, joined"]


def run_job(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One job in a process of its own."""
    by_peer, share, _ = JOBS[name]
    python = options.peers_python if by_peer else sys.executable
    command = [python, __file__, "--job", name, "--text", options.text]
    command += ["--megabytes", str(options.megabytes * share)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    """Checks, then times in turns, then prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers-python")
    parser.add_argument("--text", required=True)
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--job", choices=JOBS)
    options = parser.parse_args()
    if options.job:
        documents = read_documents(Path(options.text), options.megabytes)
        with tempfile.TemporaryDirectory() as folder:
            answer = JOBS[options.job][2](documents, Path(folder))
        answer["megabytes"] = sum(len(text.encode()) for text in documents) / 1e6
        print(json.dumps(answer))
        return
    from rslm import _rslm

    if _rslm.BUILD_PROFILE == "debug":
        raise SystemExit("a debug build must not be timed")
    checked = {name: run_job(name, options) for name in CHECKS}
    assert checked[CHECKS[0]]["digest"] == checked[CHECKS[1]]["digest"], "signatures differ"
    ours, peer = checked[CHECKS[2]], checked[CHECKS[3]]
    assert ours["dropped"] == peer["dropped"], "clusters differ"
    print(f"signatures equal bit for bit; {len(ours['dropped'])} documents dropped by both")
    best: dict[str, dict[str, float]] = {}
    timed_jobs = [name for name in JOBS if not name.startswith("signatures")]
    for _ in range(N_ROUNDS):
        for name in timed_jobs:
            answer = run_job(name, options)
            rates = best.setdefault(name, {})
            for step, seconds in answer.items():
                if step not in ("megabytes", "dropped", "kept", "links"):
                    rate = answer["megabytes"] / max(seconds, 1e-9)
                    rates[step] = max(rates.get(step, 0), rate)
    print(f"{'MB per CPU second':32} (best of {N_ROUNDS}, in turns)")
    for name, rates in best.items():
        steps = "  ".join(f"{step} {rate:,.1f}" for step, rate in rates.items())
        print(f"{name:32} {steps}")


if __name__ == "__main__":
    main()
