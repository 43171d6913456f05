import csv
import gzip
import io
import json
import lzma
import random
import tarfile
import zlib
from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest

from rslm.errors import FormatError
from rslm.evaluate import archive
from rslm.evaluate.archive import read_files
from rslm.evaluate.arithmetic import evaluate, parse
from rslm.evaluate.grade import make_check, make_grader
from rslm.evaluate.task_files import (
    load_gsm8k,
    load_humaneval,
    load_jsonl,
    load_mmlu,
    load_svamp,
    mmlu_text,
)
from rslm.evaluate.tasks import open_task

GSM8K = {"question": "How many?", "answer": "2*3=<<2*3=6>>6 and 1.\n#### 1,006"}
MMLU = '"What is ""it""?\nSay",a,"b, c",d,"e\nf",C\r\nAnd?,1,2,3,4,A\r\n'


def jsonl(rows: Iterable[object]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def tar_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def one_member(info: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(info)
    return out.getvalue()


PACK = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("pack", PACK)
@pytest.mark.parametrize("shape", ["folder", "folder below", "archive", "file"])
def test_a_data_set_may_be_a_folder_an_archive_or_a_file(tmp_path: Path, shape: str, pack: str):
    content, compress = jsonl([GSM8K, GSM8K]), PACK[pack]
    if shape == "archive":
        files = {"a/train.jsonl": b"no", "a/test.jsonl": content, "a/._test.jsonl": b"no"}
        source = tmp_path / f"x.tar{pack}"
        source.write_bytes(compress(tar_of(files)))
    else:
        source = tmp_path / ("a/b" if shape == "folder below" else "a") / f"test.jsonl{pack}"
        source.parent.mkdir(parents=True)
        source.write_bytes(compress(content))
        source = source if shape == "file" else tmp_path / "a"
    (example, second) = load_gsm8k(source, "test")
    assert (example.prompt, example.gold, second.example_id) == ("How many?", "1,006", 1)
    assert example.answer == "2*3=6 and 1.\n#### 1,006"


def test_one_file_is_never_taken_for_the_other_split(tmp_path: Path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(jsonl([GSM8K]))
    with pytest.raises(FormatError, match=r"train.jsonl must hold a file test.jsonl"):
        load_gsm8k(path, "test")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "must be a JSON object"),
        (b"[1]", "must be a JSON object, got a list"),
        (b"5", "must be a JSON object, got a int"),
        (b"\xff", "must be UTF-8"),
        (b"[" * 100_000, "must be a JSON object"),
        (b'{"question": ' + b"9" * 5000 + b"}", "must be a JSON object"),
        (b"{}", "question must be a text, got none"),
        (b'{"question": null, "answer": "#### 1"}', "question must be a text, got none"),
        (b'{"question": ["q"], "answer": "#### 1"}', r"question must be a text, got \['q'\]"),
        (b'{"question": true, "answer": "#### 1"}', "question must be a text, got True"),
        (b'{"question": " ", "answer": "#### 1"}', "question must be a text, got ' '"),
        (b'{"question": "\\ud800", "answer": "#### 1"}', "got half a surrogate pair"),
        (b'{"question": "q", "answer": "1"}', "answer must end with #### and a number"),
        (b'{"question": "q", "answer": "####"}', "answer must end with #### and a number"),
    ],
)
def test_a_wrong_line_is_told_with_its_number(tmp_path: Path, line: bytes, reason: str):
    path = tmp_path / "test.jsonl"
    path.write_bytes(jsonl([GSM8K]) + b"\n" + line + b"\n")
    with pytest.raises(FormatError, match=rf"test.jsonl: line 3: .*{reason}") as raised:
        load_gsm8k(path, "test")
    assert len(str(raised.value)) < 500
    with pytest.raises(FormatError, match=r"/test.jsonl: line 3: "):
        load_gsm8k(tmp_path, "test")


def test_an_empty_file_and_a_missing_one_are_refused(tmp_path: Path):
    (tmp_path / "test.jsonl").write_bytes(b"\n\n")
    with pytest.raises(FormatError, match=r"test.jsonl must hold at least one line"):
        load_gsm8k(tmp_path, "test")
    with pytest.raises(FormatError, match=r"must hold a file train.jsonl"):
        load_gsm8k(tmp_path, "train")
    with pytest.raises(FormatError, match=r"must hold files whose names end in _dev.csv"):
        load_mmlu(tmp_path, "dev")
    for name in ("nothing", "nothing.tar.xz"):
        with pytest.raises(FileNotFoundError):
            load_gsm8k(tmp_path / name, "train")


def test_svamp_and_humaneval_have_their_fields(tmp_path: Path):
    row = {"context": "Q?", "chain_of_thought": "( 8.0 - 7.0 )", "answer": "1"}
    (tmp_path / "svamp.jsonl").write_bytes(jsonl([row]))
    (example,) = load_svamp(tmp_path)
    assert (example.prompt, example.gold, example.answer) == ("Q?", "1", None)
    names = ("task_id", "prompt", "entry_point", "test", "canonical_solution")
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(gzip.compress(jsonl([{n: n for n in names}])))
    (problem,) = load_humaneval(tmp_path / "HumanEval.jsonl.gz")
    assert (problem.task_id, problem.solution) == ("task_id", "canonical_solution")


def test_mmlu_has_quoted_lines_and_no_head(tmp_path: Path):
    (tmp_path / "virology_dev.csv").write_text(MMLU, newline="")
    (tmp_path / "anatomy_dev.csv").write_text(MMLU, newline="")
    (tmp_path / "virology_test.csv").write_text("no")
    subjects = load_mmlu(tmp_path, "dev")
    assert list(subjects) == ["anatomy", "virology"]
    first, second = subjects["virology"]
    assert first.question == 'What is "it"?\nSay'
    assert first.options == ("a", "b, c", "d", "e\nf")
    assert (first.gold, second.gold) == (2, 0)
    assert mmlu_text(second) == "And?\nA. 1\nB. 2\nC. 3\nD. 4"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (MMLU + "a,b\n", "line 5: must hold a question, four options .*, got 2 fields"),
        (MMLU + "q,1,2,3,4,E\n", "line 5: must hold"),
        (MMLU + "q,1,2,3,4,a\n", "line 5: must hold"),
        (MMLU + 'q,1,2,3,4,"A\n', "line 5: must be a row of a CSV table"),
        (MMLU + 'q,1,2,3,4,"A"x\n', "line 5: must be a row of a CSV table"),
        (f"{'q' * 200_000},1,2,3,4,A\n", "line 1: must be a row of a CSV table"),
    ],
)
def test_a_wrong_row_is_told_with_its_line(tmp_path: Path, content: str, reason: str):
    (tmp_path / "virology_dev.csv").write_text(content, newline="")
    assert csv.field_size_limit() == 131_072
    with pytest.raises(FormatError, match=f"virology_dev.csv: {reason}"):
        load_mmlu(tmp_path, "dev")


def test_json_lines_have_a_prompt_and_gold_or_answer(tmp_path: Path):
    path = tmp_path / "mine.jsonl"
    rows = [
        {"prompt": "a", "gold": "1"},
        {"prompt": "b", "answer": "2"},
        {"prompt": "c", "gold": 3, "answer": "so 3"},
        {"prompt": "d", "gold": ["4", 4.5]},
    ]
    path.write_bytes(jsonl(rows))
    found = [(e.prompt, e.gold, e.answer) for e in load_jsonl(path)]
    assert found == [
        ("a", "1", "1"),
        ("b", "2", "2"),
        ("c", "3", "so 3"),
        ("d", ("4", "4.5"), "4"),
    ]
    for row in (
        {"prompt": "a"},
        {"gold": "1"},
        {"prompt": "a", "gold": []},
        {"prompt": "a", "gold": [[]]},
    ):
        path.write_bytes(jsonl([row]))
        with pytest.raises(FormatError, match=r"mine.jsonl: line 1: (prompt|answer|gold) must"):
            load_jsonl(path)


def test_a_task_of_json_lines_keeps_equal_prompts_on_one_side(tmp_path: Path):
    path = tmp_path / "mine:2.jsonl.gz"
    rows = [{"prompt": f"p{i % 50}", "gold": f"{i % 50}/2"} for i in range(150)]
    path.write_bytes(gzip.compress(jsonl(rows)))
    task = open_task(f"{path}:answer=boxed")
    sides = [{example.prompt for example in side} for side in (task.train, task.test)]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 50
    assert len(task.train) + len(task.test) == 150
    assert [example.example_id for example in task.test] == list(range(len(task.test)))
    example = task.train[0]
    assert task.grade(rf"\boxed{{\frac{{{str(example.gold)[:-2]}}}{{2}}}}", example).reward == 1
    for options, sentence in [
        ("equality=about", "equality must be one of text, rational, course, got 'about'"),
        ("size=3", "options of mine:2.jsonl.gz are answer, equality, got 'size'"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            open_task(f"{path}:{options}")


def test_tasks_of_data_sets_open_by_name(tmp_path: Path):
    (tmp_path / "eval").mkdir()
    gsm8k = tar_of({"gsm8k/train.jsonl": jsonl([GSM8K]), "gsm8k/test.jsonl": jsonl([GSM8K] * 2)})
    (tmp_path / "eval" / "gsm8k.tar.xz").write_bytes(lzma.compress(gsm8k))
    mmlu = {"mmlu/a_dev.csv": MMLU.encode(), "mmlu/a_test.csv": MMLU.encode()}
    (tmp_path / "mmlu.tar.gz").write_bytes(gzip.compress(tar_of(mmlu)))
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "svamp.jsonl").write_bytes(jsonl([{"context": "Q", "answer": "1"}]))
    for name, n_train, n_test, response in [
        ("gsm8k", 1, 2, "so\n#### 1006"),
        ("mmlu", 2, 2, "The answer is C."),
        ("svamp", 0, 1, "It is 1."),
    ]:
        task = open_task(name, data=tmp_path)
        assert (len(task.train), len(task.test)) == (n_train, n_test)
        assert task.grade(response, task.test[0]).reward == 1
    task = open_task("gsm8k:answer=r1", data=tmp_path / "eval" / "gsm8k.tar.xz")
    assert task.grade("</think> <answer>$1,006.00</answer>", task.test[0]).reward == 1


def value_of(gold: str | tuple[str, ...]) -> Fraction:
    assert isinstance(gold, str)
    return Fraction(gold.replace(",", ""))


def linked(kind: bytes, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo("a/test.jsonl")
    info.type, info.linkname = kind, target
    return info


def named(name: str) -> tarfile.TarInfo:
    return tarfile.TarInfo(name)


def sized(n_bytes: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo("a/test.jsonl")
    info.size = n_bytes
    return info


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        (linked(tarfile.SYMTYPE, "/etc/passwd"), "plain files and folders only"),
        (linked(tarfile.LNKTYPE, "../../secret"), "plain files and folders only"),
        (linked(tarfile.CHRTYPE, ""), "plain files and folders only"),
        (linked(tarfile.FIFOTYPE, ""), "plain files and folders only"),
        (named("../test.jsonl"), "files below itself only"),
        (named("/test.jsonl"), "files below itself only"),
        (named("a/../../test.jsonl"), "files below itself only"),
        (sized(1 << 40), "at most 512 MiB"),
        (sized(100), "must be a whole tar archive"),
        (sized(-512), "at most 512 MiB"),
    ],
)
def test_a_hostile_archive_is_refused(tmp_path: Path, info: tarfile.TarInfo, reason: str):
    path = tmp_path / "x.tar"
    content = bytearray(one_member(info) if info.size == 0 else info.tobuf(tarfile.GNU_FORMAT))
    path.write_bytes(content)
    with pytest.raises(FormatError, match=reason):
        list(read_files(path, lambda _: True))
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_file_that_is_mostly_holes_is_refused(tmp_path: Path):
    info = tarfile.TarInfo("test.jsonl")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    # A stretch of no bytes at the end of 256 MiB, which the last field is.
    header[386:410] = b"%011o\0%011o\0" % (1 << 28, 0)
    header[482:495] = b"\0%011o\0" % (1 << 28)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "x.tar").write_bytes(header + bytes(1024))
    with pytest.raises(FormatError, match="plain files and folders only"):
        list(read_files(tmp_path / "x.tar", lambda _: True))


def test_two_files_of_one_name_are_refused(tmp_path: Path):
    path = tmp_path / "x.tar"
    path.write_bytes(tar_of({"a/test.jsonl": jsonl([GSM8K]), "b/test.jsonl": jsonl([GSM8K])}))
    with pytest.raises(FormatError, match=r"must hold only one file test\.jsonl"):
        load_gsm8k(path, "test")


def test_a_bomb_is_stopped_at_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(archive, "MAX_BYTES", 1 << 20)
    bombs = {
        "x.jsonl.gz": gzip.compress(bytes(3 << 20)),
        "x.jsonl.xz": lzma.compress(bytes(3 << 20)),
        "x.tar.xz": lzma.compress(tar_of({f"{i}": bytes(1 << 19) for i in range(4)})),
        # A header that tarfile takes whole, and one for each of many files.
        "y.tar.xz": lzma.compress(tar_of({"a" * (3 << 20): b""})),
    }
    for name, content in bombs.items():
        (tmp_path / name).write_bytes(content)
        assert len(content) < 1 << 14
        with pytest.raises(FormatError, match="must hold at most 1 MiB, and has more"):
            list(read_files(tmp_path / name, lambda _: True))


def test_an_archive_of_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    (tmp_path / "x.tar").write_bytes(tar_of({f"{i}": b"" for i in range(5)}))
    with pytest.raises(FormatError, match="must hold at most 3 files"):
        list(read_files(tmp_path / "x.tar", lambda _: True))


def test_a_packed_file_that_wants_gigabytes_to_unpack_is_refused(tmp_path: Path):
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 256 << 20, "preset": 0}]
    filters[0] |= {"mode": lzma.MODE_FAST, "mf": lzma.MF_HC3, "nice_len": 273, "depth": 1}
    small = [{"id": lzma.FILTER_LZMA2, "preset": 0}]
    content = bytearray(lzma.compress(b"x" * 100, filters=small))
    # The size of the dictionary is a byte of the block's header, which has a checksum.
    header = bytearray(content[12 : 12 + (content[12] + 1) * 4])
    header[header.index(0x21) + 2] = 40  # 4 GiB - 1
    header[-4:] = zlib.crc32(header[:-4]).to_bytes(4, "little")
    content[12 : 12 + len(header)] = header
    path = tmp_path / "test.jsonl.xz"
    path.write_bytes(content)
    with pytest.raises(FormatError, match="must be a whole file: Memory usage limit"):
        load_gsm8k(path, "test")


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tar.xz", "x.tar", "x.jsonl.gz", "x.jsonl.xz"])
def test_damage_of_any_kind_ends_in_one_error(tmp_path: Path, name: str):
    content = jsonl([GSM8K] * 20)
    whole = PACK[Path(name).suffix if Path(name).suffix in PACK else ""](
        tar_of({"test.jsonl": content, "b" * 200: content}) if ".tar" in name else content
    )
    draw, path = random.Random(name), tmp_path / name
    for _ in range(60):
        broken = bytearray(whole[: draw.randrange(len(whole))] if draw.random() < 0.3 else whole)
        for _ in range(draw.randrange(4)):
            broken[draw.randrange(len(broken) or 1) : 0] = bytes([draw.randrange(256)])
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        path.write_bytes(broken)
        try:
            files = dict(read_files(path, lambda _: True))
        except FormatError as error:
            message = str(error)
        else:
            message = f"{path}"
            assert sum(map(len, files.values())) <= 2 * len(content) + 8
        assert message.startswith(f"{path}")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_chain_of_headers_does_not_exhaust_the_stack(tmp_path: Path, kind: bytes):
    info = tarfile.TarInfo("x")
    info.type = kind
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) * 5000)
    with pytest.raises(FormatError, match="must be a whole tar archive"):
        list(read_files(tmp_path / "x.tar", lambda _: True))


@pytest.mark.parametrize(("split", "n"), [("train", 7473), ("test", 1319)])
def test_every_gold_answer_of_gsm8k_is_right_for_its_solution(test_data: Path, split, n: int):
    examples = load_gsm8k(test_data / "eval" / "gsm8k.tar.xz", split)
    assert len(examples) == n
    for form in ("strict", "flexible"):
        grade = make_grader(form, make_check("rational"))
        assert all(grade(e.answer, e).reward == 1 for e in examples)
        # The solution of the next question is right where its answer happens to be the same.
        for example, other in pairwise(examples):
            same = value_of(example.gold) == value_of(other.gold)
            assert grade(other.answer, example).reward == float(same)


def test_no_question_of_gsm8k_is_in_train_and_test(test_data: Path):
    task = open_task("gsm8k", data=test_data)
    train = {example.prompt for example in task.train}
    assert not train & {example.prompt for example in task.test}


def test_every_gold_answer_of_svamp_is_the_value_of_its_formula(test_data: Path):
    source = test_data / "eval" / "core.tar.xz"
    ((_, content),) = read_files(source, lambda name: name == "svamp.jsonl")
    formulas = [json.loads(line)["chain_of_thought"] for line in content.splitlines()]
    examples = load_svamp(source)
    assert len(examples) == 300
    for form, response in [("flexible", "It is {}."), ("boxed", "\\boxed{{{}}}"), ("whole", "{}")]:
        grade = make_grader(form, make_check("rational"))
        for example, formula in zip(examples, formulas, strict=True):
            assert grade(response.format(evaluate(parse(formula))), example).reward == 1


def test_every_letter_of_mmlu_is_read_from_an_answer(test_data: Path):
    task = open_task("mmlu", data=test_data)
    assert (len(task.train), len(task.test)) == (285, 14042)
    assert all(task.grade(example.answer, example).reward == 1 for example in task.test)
