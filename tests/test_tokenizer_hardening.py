"""Corrupted tokenizer files of every format: refused in a sentence, or a tokenizer that works.

The files are loaded in a process of their own with little memory and little time, so that a
crash, a hang or an allocation of what a file merely claims ends that process, and the test.
"""

import json
import random
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_gguf import gguf

import rslm

N_MUTANTS = 250
SECONDS = 100
MEMORY_BYTES = 3 << 29

CHILD = """
import resource, signal, sys
from pathlib import Path

import rslm

resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
TEXT = "It's 12345 o'clock<|endoftext|>\\n\\n  naïve 世界 \\U0001f469\\u200d\\U0001f33e  \\r\\n"

def check(path):
    try:
        pattern = "gpt2" if path.suffix == ".tiktoken" else None
        tokenizer = rslm.Tokenizer.load(path, pattern=pattern)
    except (ValueError, OSError) as error:
        assert str(error), "an error without a sentence"
        assert len(str(error)) < 4000, "a sentence as long as the file"
        return "refused"
    try:
        token_ids = tokenizer.encode(TEXT)
    except ValueError as error:  # an expression that backtracks for ever gives up
        assert "pattern" in str(error), error
        return "refused"
    assert tokenizer.decode(token_ids) == TEXT
    assert rslm.Tokenizer.from_json(tokenizer.to_json()).sha256 == tokenizer.sha256
    for format in ("hf", "tiktoken", "gpt2"):
        try:
            tokenizer._core.to_files(format)
        except ValueError:
            pass
    return "loaded"

outcomes = {{"loaded": 0, "refused": 0}}
for path in sorted(Path(sys.argv[1]).iterdir()):
    signal.alarm(20)  # kills the process where one file takes that long
    try:
        outcomes[check(path / sys.argv[2] if path.is_dir() else path)] += 1
    except BaseException as error:
        print(f"{{path}}: {{type(error).__name__}}: {{str(error)[:500]}}", file=sys.stderr)
        sys.exit(1)
print(outcomes["loaded"], outcomes["refused"])
"""


def load_all(folder: Path, name: str = "") -> tuple[int, int]:
    """How many of the files were loaded and how many refused; fails where one did neither."""
    program = CHILD.format(memory=MEMORY_BYTES)
    child = subprocess.run(
        [sys.executable, "-c", program, folder, name],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert child.returncode == 0, f"code {child.returncode}: {child.stderr[-3000:]}"
    loaded, refused = map(int, child.stdout.split())
    return loaded, refused


INSERTIONS = [
    *[
        b"\x00",
        b"\xff\xfe",
        b"\xc3",
        b'"',
        b"\\",
        b"\\ud800",
        b"{",
        b"}",
        b"[" * 200,
        b'{"a":' * 200,
    ],
    *[b"NaN", b"1e999", b"-1", b"1.5", b"18446744073709551616", b"4294967295", b"2097151"],
    *[b"null", b'"a":0,', b"[],", b"{},", b"\n", b" ", b"YQ== 7\n", b"a" * 3000, b"a b\n"],
    *[struct.pack("<Q", 2**power) for power in (8, 20, 31, 32, 40, 62, 63)],
    *[struct.pack("<I", kind) for kind in range(14)],
]
NUMBER = re.compile(rb"-?\d+")
NUMBERS = [b"-1", b"0", b"255", b"70000", b"16777216", b"4294967296", b"1e5", b"9" * 40]


def mutate(content: bytes, draw: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        at = draw.randrange(len(data) + 1)
        length = draw.choice([1, 2, 8, 100, 5000])
        match draw.randrange(7):
            case 0 if data:
                data[at % len(data)] ^= 1 << draw.randrange(8)
            case 1:
                del data[at:]
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = draw.choice(INSERTIONS)
            case 4:
                inserted = draw.choice(INSERTIONS)
                data[at : at + len(inserted)] = inserted
            case 5:
                other = draw.randrange(len(data) + 1)
                data[at:at] = data[other : other + length]
            case 6 if numbers := list(NUMBER.finditer(bytes(data[at : at + 4000]))):
                found = draw.choice(numbers)
                data[at + found.start() : at + found.end()] = draw.choice(NUMBERS)
    return bytes(data)


def valid_files(tokenizer: rslm.Tokenizer, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    tokenizer.save(folder / "tokenizer.json")
    tokenizer.save(folder / "hf.json", "hf")
    tokenizer.save(folder / "ranks.tiktoken", "tiktoken")
    tokenizer.save(folder, "gpt2")
    (folder / "model.gguf").write_bytes(gguf(tokenizer.gguf_metadata()))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "name",
    ["tokenizer.json", "hf.json", "ranks.tiktoken", "model.gguf", "vocab.json", "merges.txt"],
)
def test_mutated_files_are_refused_or_work(name: str, rust_tokenizer, tmp_path: Path) -> None:
    files = valid_files(rust_tokenizer(), tmp_path / "valid")
    draw = random.Random(name)
    mutants = tmp_path / "mutants"
    mutants.mkdir()
    for number in range(N_MUTANTS):
        content = mutate(files[name], draw) if number else files[name]
        if name in ("vocab.json", "merges.txt"):
            pair = mutants / f"{number:04}"
            pair.mkdir()
            for other in ("vocab.json", "merges.txt"):
                (pair / other).write_bytes(content if other == name else files[other])
        else:
            (mutants / f"{number:04}-{name}").write_bytes(content)
    loaded, refused = load_all(mutants, "vocab.json")
    assert loaded >= 1, "the file itself must load"
    assert refused > N_MUTANTS // 10, "mutations that change nothing test nothing"
    assert loaded + refused == N_MUTANTS


def hostile_files(record: dict[str, Any]) -> dict[str, bytes]:
    """Small files that ask for much; `record` is a tokenizer.json that is fine."""

    def split(expression: str) -> bytes:
        step = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated"}
        steps = [step, record["pre_tokenizer"] | {"use_regex": False}]
        sequence = {"type": "Sequence", "pretokenizers": steps}
        return json.dumps(record | {"pre_tokenizer": sequence}).encode()

    special = {"id": 457, "content": "<" * 3_000_000}
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    tokens_key = struct.pack("<Q", 21) + b"tokenizer.ggml.tokens"
    array = struct.pack("<I", 9)
    return {
        "deep.json": b"[" * 5_000_000,
        "deep_object.json": b'{"model":' * 500_000,
        "many.json": b'{"a":[' + b"0," * 20_000_000 + b"0]}",
        "objects.json": b'{"a":[' + b'{"a":0},' * 5_000_000 + b"0]}",
        "arrays.json": b'{"a":[' + b"[0]," * 10_000_000 + b"0]}",
        "strings.json": b'{"a":[' + b'"a",' * 10_000_000 + b"0]}",
        "long_token.json": json.dumps({"a" * 3_000_000: -1}).encode(),
        "far_id.json": json.dumps({"a": 2_097_151}).encode(),
        "regex_repeat.json": split(r"(?:\p{L}{1,1000}){1,1000}"),
        "regex_nested.json": split("(" * 10_000 + ")" * 10_000),
        "regex_backtrack.json": split(r"(?:(?=((?:\w|.)*)*!!)|(.*)*\1@)x"),
        "long_special.json": json.dumps(
            record | {"added_tokens": [*record["added_tokens"], special]}
        ).encode(),
        "tokens.gguf": head + tokens_key + array + struct.pack("<IQ", 8, 2**64 - 1) + bytes(1000),
        "zeros.gguf": head + tokens_key + array + struct.pack("<IQ", 8, 2**40) + bytes(4_000_000),
        "string.gguf": head + struct.pack("<Q", 2**62) + bytes(1000),
        "far.tiktoken": b"YQ== 2097151\n",
        "long.tiktoken": b"YWFh" * 2_000_000 + b" 7\n",
        "lines.tiktoken": b"YQ== 1\n" * 2_000_000,
        "empty.tiktoken": b"",
    }


def test_small_files_that_ask_for_much_are_refused(rust_tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "hostile"
    folder.mkdir()
    rust_tokenizer().save(tmp_path / "hf.json", "hf")
    files = hostile_files(json.loads((tmp_path / "hf.json").read_text(encoding="utf-8")))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    assert load_all(folder) == (0, len(files))


def test_a_far_id_costs_memory_by_the_id_and_no_more(rust_tokenizer, tmp_path: Path) -> None:
    twin = rust_tokenizer()
    far = rslm.Tokenizer(twin.vocab, twin.merges, {"<|far|>": (1 << 21) - 1})
    folder = tmp_path / "far"
    folder.mkdir()
    far.save(folder / "far.json", "hf")
    assert load_all(folder) == (1, 0)


def test_the_child_would_notice() -> None:
    """The limit of memory holds, or the tests above would pass whatever is allocated."""
    program = f"import resource\nresource.setrlimit(resource.RLIMIT_AS, ({MEMORY_BYTES},) * 2)\n"
    child = subprocess.run(
        [sys.executable, "-c", program + f"bytearray({MEMORY_BYTES})"],
        capture_output=True,
        check=False,
        timeout=SECONDS,
    )
    assert b"MemoryError" in child.stderr
