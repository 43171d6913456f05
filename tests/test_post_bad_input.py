"""Mistakes that people make with sft, dpo, rl and eval: one sentence, exit code 2, nothing left."""

import json
import os
import shutil
from pathlib import Path

import pytest
from rl_runs import byte_tokenizer, make_base, make_task

from rslm.cli import main
from rslm.tokenizer import Tokenizer

CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
MADE_BY = {"rl": 'task = "reverse"', "dpo": 'pairs = "p"', "sft": 'packing = "none"'}


def write_lines(file: Path, *rows: object) -> None:
    file.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, data that is good, and data that is not."""
    folder = tmp_path_factory.mktemp("bad")
    make_base(folder / "base", n_steps=0)
    make_task(folder / "task.jsonl")
    shutil.copytree(folder / "base", folder / "unsaved")
    (folder / "unsaved" / "model.safetensors").unlink()
    shutil.copytree(folder / "base", folder / "endless")
    ordinary = byte_tokenizer()
    bare = Tokenizer({i: ordinary.vocab[i] for i in range(256)}, [], [])
    bare.save(folder / "endless" / "tokenizer.json")
    (folder / "empty").mkdir()
    (folder / "file").write_text("a file")
    write_lines(folder / "chats.jsonl", CHAT, CHAT)
    write_lines(folder / "pairs.jsonl", *[PAIR] * 4)
    write_lines(folder / "none.jsonl")
    write_lines(folder / "cut.jsonl", CHAT, '{"messages": [')
    write_lines(folder / "other.jsonl", {"text": "no chat, no pair"})
    write_lines(folder / "bad_task.jsonl", {"prompt": "q", "gold": "a"}, {"prompt": 3})
    write_lines(folder / "long.jsonl", {"prompt": "q" * 60, "gold": "7"})
    for command, option in MADE_BY.items():
        (folder / f"by_{command}").mkdir()
        (folder / f"by_{command}" / "config.toml").write_text(f"{option}\n")
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, linked into a folder of the test's own, in which the command runs."""
    for path in prepared.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rslm.post.setup.peak_flops", lambda *_: 1e12)
    monkeypatch.setattr("rslm.post.update.write_curve", lambda *_: None)
    return tmp_path


SFT = "sft base --data chats.jsonl --out run"
DPO = "dpo base --pairs pairs.jsonl --out run"
RL = (
    "rl base --task task.jsonl --out run --n-steps 1 --prompts-per-step 2 --group-size 2"
    " --max-new-tokens 3 --n-evaluation-prompts 0"
)
EVAL = "eval base --tasks reverse --max-examples 2 --max-new-tokens 2"

# What all of them share: the base and the run folder.
SHARED = [
    ("base:", "missing BASE; see rslm {command} --help"),
    ("base:nowhere", "base must be a run or model folder, and nowhere does not exist"),
    ("base:empty", "base must be a run or model folder, and empty holds no config.toml"),
    ("base:file", "base must be a run or model folder, and file is a file"),
    ("base:unsaved", "unsaved must be a run or model folder, and holds neither checkpoints nor"),
    ("out:file", "file: Not a directory"),
    ("out:file/run", "file/run: Not a directory"),
    ("out:by_sft", "the run folder by_sft already exists; add --resume to go on with it"),
    ("+--micro-batch-size 0", "micro_batch_size must be at least 1, got 0"),
    ("+--log-every -1", "log_every must be at least 1, got -1"),
    ("+--seed -1", "seed must be in [0, 2^64), got -1"),
    ("+--seed x", "--seed must be a whole number, got 'x'"),
    ("+--optimizer.learning-rate -1", "learning_rate must be at least 0, got -1.0; see"),
    ("+--optimizer.learning-rte 1", "did you mean --optimizer.learning-rate?"),
    (
        "+--chat-format rsml",
        "--chat-format must be one of chatml, plain, rslm, got 'rsml'; did you",
    ),
    ("+--context-length 0", "context_length must be at least 1, got 0"),
    ("+--device abacus", "device must be one of this machine, got 'abacus'"),
    ("+--config nowhere.toml", "nowhere.toml: No such file or directory"),
]

OWN = [
    ("sft base --out run", "missing --data; see rslm sft --help"),
    ("sft base --data nowhere.jsonl --out run", "no such file: nowhere.jsonl"),
    ("sft base --data empty --out run", "files must be text files, but empty is a folder"),
    ("sft base --data none.jsonl --out run", "there must be a conversation to train on"),
    ("sft base --data cut.jsonl --out run", "cut.jsonl, line 2: must be JSON"),
    (
        "sft base --data other.jsonl --out run",
        "other.jsonl, line 1 must be an object with messages",
    ),
    (f"{SFT} --valid nowhere.jsonl", "no such file: nowhere.jsonl"),
    (f"{SFT} --n-steps 2 --n-epochs 2", "give --n-steps or --n-epochs, not both"),
    (f"{SFT} --n-epochs nan", "n_epochs must be above 0"),
    (f"{SFT} --batch-size 0", "batch_size must be at least 1, got 0"),
    (
        f"{SFT} --packing best_fit",
        "--packing must be one of best-fit, none, got 'best_fit'; did you",
    ),
    (f"{SFT} --context-length 3", "there must be a conversation to train on within 4 tokens"),
    (
        f"{SFT} --context-length 3 --too-long refuse",
        "chats.jsonl, line 1: a conversation must have",
    ),
    ("dpo base --pairs nowhere --out run", "nowhere must be a file of pairs or a folder, and is"),
    ("dpo base --pairs empty --out run", "empty holds no .jsonl file"),
    ("dpo base --pairs none.jsonl --out run", "none.jsonl must hold pairs to train on"),
    ("dpo base --pairs cut.jsonl --out run", "cut.jsonl, line 1: it must be an object with prompt"),
    ("dpo base --pairs other.jsonl --out run", "other.jsonl, line 1: it must be an object with"),
    (f"{DPO} --loss sigmoidd", "did you mean sigmoid?"),
    (f"{DPO} --beta 0", "beta must be above 0, got 0.0"),
    (f"{DPO} --margin 1", "margin must be left out but with the loss simpo"),
    (f"{DPO} --context-length 3", "must fit into context_length 3"),
    ("rl base --out run", "missing --task; see rslm rl --help"),
    ("rl base --task revers --out run", "task must be one of arithmetic, countdown, reverse,"),
    ("rl base --task revers --out run", "got 'revers'; did you mean reverse?"),
    ("rl base --task arithmetic:maxx=3 --out run", "got 'maxx'; did you mean max?"),
    ("rl base --task arithmetic:max=x --out run", "max must be a whole number, got 'x'"),
    ("rl base --task gsm8k --out run", "task gsm8k needs data, a folder or archive"),
    ("rl base --task nowhere.jsonl --out run", "nowhere.jsonl: No such file or directory"),
    ("rl base --task none.jsonl --out run", "none.jsonl must hold at least one line"),
    ("rl base --task bad_task.jsonl --out run", "bad_task.jsonl: line 2: answer must be a text"),
    (RL.replace("task.jsonl", "long.jsonl"), "long.jsonl"),
    (f"{RL} --context-length 4", "a prompt must have fewer tokens than context_length 4"),
    (f"{RL} --prompt chatt", "got 'chatt'; did you mean chat?"),
    (f"{RL} --algorithm grp", "got 'grp'; did you mean grpo?"),
    (f"{RL} --rewards tsk", "rewards must be different ones of task, answer, format, random"),
    (f"{RL} --group-size 1", "group_size must be above 1 where completions are compared, got 1"),
    (f"{RL} --temperature 0", "temperature must be positive and finite, got 0.0"),
    (f"{RL} --server http://127.0.0.1:1", "server_folder must be given with server"),
    ("rl --replay nowhere/rollouts/step_1.jsonl --out run", "no such file: nowhere/rollouts"),
    ("eval", "runs must name at least one run or model folder, got none"),
    ("eval base", "one of suite and tasks must be given"),
    ("eval base nowhere --tasks reverse", "nowhere must be a run or model folder, and does not"),
    ("eval empty --tasks reverse", "empty must be a run or model folder, and holds no config.toml"),
    ("eval file --tasks reverse", "file must be a run or model folder, and is a file"),
    ("eval unsaved --tasks reverse", "unsaved must be a run or model folder, and holds neither"),
    ("eval base base --tasks reverse", "runs must name each folder once"),
    ("eval base --tasks revers", "got 'revers'; did you mean reverse?"),
    ("eval base --tasks arc_eazy", "got 'arc_eazy'; did you mean arc_easy?"),
    ("eval base --tasks gsm8k", "task gsm8k needs data"),
    ("eval base --tasks loss:nowhere", "nowhere: No such file or directory"),
    ("eval base --tasks text:nowhere", "nowhere: No such file or directory"),
    ("eval base --suite offlin", "--suite must be one of offline, procedural, got 'offlin'; did"),
    (f"{EVAL} --max-examples 0", "max_examples must be at least 1, got 0"),
    (f"{EVAL} --temperature -1", "temperature must be at least 0 and finite, got -1.0"),
    (f"{EVAL} --json nowhere/r.json", "nowhere/r.json: the folder to write it into does not exist"),
    (f"{EVAL} --name a/b", "name must be that of a file without folders, got 'a/b'"),
]


def shared_cases() -> list[tuple[str, str]]:
    """Each of `SHARED` for each of the three commands that train."""
    cases = []
    for line in (SFT, DPO, RL):
        command = line.split()[0]
        for change, message in SHARED:
            if change.startswith("base:"):
                changed = line.replace(" base ", f" {change.removeprefix('base:')} ", 1)
            elif change.startswith("out:"):
                changed = line.replace("--out run", f"--out {change.removeprefix('out:')}")
            else:
                changed = f"{line} {change.removeprefix('+')}"
            cases.append((changed, message.format(command=command)))
    return cases


def refused(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says that ends with 2; nothing else happens."""
    before = sorted(os.listdir())
    assert main(line.split()) == 2
    printed, said = capsys.readouterr()
    assert sorted(os.listdir()) == before
    assert printed == ""
    *notes, last = said.splitlines()
    assert last.startswith("error: ")
    assert not any(note.startswith(("error", "Traceback")) for note in notes)
    return last.removeprefix("error: ")


@pytest.mark.parametrize(("line", "message"), [*shared_cases(), *OWN])
def test_mistake_is_one_sentence_and_leaves_nothing(
    folder: Path, line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(line, capsys)


@pytest.mark.parametrize("line", [SFT, DPO, RL])
def test_tokenizer_without_end_of_text_is_no_mistake(folder: Path, line: str) -> None:
    assert main(line.replace(" base ", " endless ").split()) == 0


@pytest.mark.parametrize("command", ["sft", "dpo", "rl", "train"])
@pytest.mark.parametrize("made_by", MADE_BY)
def test_run_of_another_command_is_not_resumed(
    folder: Path, command: str, made_by: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if command == made_by:
        pytest.skip("its own")
    said = refused(f"{command} --resume --out by_{made_by}", capsys)
    wanted = f"by_{made_by} must be a run of rslm {command}, and is one of rslm {made_by}"
    assert said == wanted


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        (f"{SFT} --n-steps 1", "--batch-size 8", "batch_size must stay 16 when a run is resumed"),
        (f"{DPO} --n-steps 1", "--beta 0.2", "beta must stay 0.1 when a run is resumed, got 0.2"),
        (RL, "--group-size 4", "group_size must stay 2 when a run is resumed, got 4; may change:"),
    ],
)
def test_resumption_with_other_options_leaves_the_run_as_it_is(
    folder: Path, line: str, change: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*line.split(), "--device", "cpu"]) == 0
    capsys.readouterr()
    run = folder / "run"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert message in refused(f"{line.split()[0]} --resume --out run {change}", capsys)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("line", [SFT, DPO, RL])
def test_folder_that_must_not_be_written_is_named(
    folder: Path, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "locked").mkdir(mode=0o555)
    said = refused(line.replace("--out run", "--out locked/run"), capsys)
    assert said == "locked/run: Permission denied"
