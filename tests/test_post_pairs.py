"""Pairs of answers: rendered, made of rollouts, cut, held out; and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_tokenizer

from rslm.chat import CHATML_TOKENS, ChatFormat
from rslm.errors import FormatError
from rslm.post import json_lines
from rslm.post.pairs import (
    Answer,
    Pair,
    Pairs,
    pair_rollouts,
    pairs_hash,
    read_pairs,
    split_pairs,
)
from rslm.post.rollout import Rollout, write_rollouts
from rslm.tokenizer import Tokenizer

TOKENIZER = tiny_tokenizer(has_chat=True)
RSLM = ChatFormat.of(TOKENIZER, "rslm")
BYTES = {i: bytes([i]) for i in range(256)}
CHATML = ChatFormat.of(Tokenizer(BYTES, [], ["<|endoftext|>", *CHATML_TOKENS]), "chatml")
PLAIN = ChatFormat.of(tiny_tokenizer(has_chat=False), "plain")
ROW = {"prompt": "2+2=", "chosen": "4", "rejected": "five"}


def write(path: Path, *rows: Any) -> Path:
    path.write_text(
        "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    )
    return path


def read(path: Path, chat_format: ChatFormat = RSLM, **options: Any) -> Pairs:
    defaults: dict[str, Any] = {"context_length": 64, "vocab_size": 300}
    return read_pairs(path, chat_format, **(defaults | options))


@pytest.mark.parametrize("chat_format", [RSLM, CHATML, PLAIN], ids=["rslm", "chatml", "plain"])
def test_pair_is_the_prompt_with_either_answer_to_its_trained_end(
    tmp_path: Path, chat_format: ChatFormat
):
    messages = [{"role": "user", "content": "2+2="}]
    path = write(tmp_path / "pairs.jsonl", ROW, ROW | {"prompt": messages}, "\n")
    first, second = read(path, chat_format).pairs
    assert first == second
    assert list(first.prompt_ids) == chat_format.prompt(messages)
    for answer, text in ((first.chosen, "4"), (first.rejected, "five")):
        said = [*messages, {"role": "assistant", "content": text}]
        token_ids, train_mask = chat_format.render(said)
        mine = [*first.prompt_ids, *answer.token_ids]
        assert token_ids[: len(mine)] == mine
        assert train_mask[len(first.prompt_ids) : len(mine)] == list(answer.train_mask)
        assert not any(train_mask[len(mine) :])
        ending = chat_format.stop_token_ids[0] if chat_format.is_injection_proof else ord("\n")
        assert answer.token_ids[-1] == ending
    longest = len(first.prompt_ids) + len(first.rejected.token_ids) - 1
    assert first.width == longest
    shorter = len(first.prompt_ids) + len(first.chosen.token_ids) - 1
    assert first.n_tokens == longest + shorter


def test_text_of_a_pair_makes_no_special_token(tmp_path: Path):
    path = write(tmp_path / "pairs.jsonl", ROW | {"chosen": "<|end|>", "prompt": "<|user|>"})
    (pair,) = read(path).pairs
    assert bytes(list(pair.chosen.token_ids[:-1])) == b"<|end|>"
    assert sum(i >= 256 for i in [*pair.prompt_ids, *pair.chosen.token_ids]) == 5


def test_conversations_and_system_messages_are_prompts(tmp_path: Path):
    turns = [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c")]
    messages = [{"role": role, "content": content} for role, content in turns]
    (pair,) = read(write(tmp_path / "pairs.jsonl", ROW | {"prompt": messages})).pairs
    assert list(pair.prompt_ids) == RSLM.prompt(messages)
    system = ChatFormat.of(TOKENIZER, "rslm", default_system="Be brief.")
    (pair,) = read(write(tmp_path / "pairs.jsonl", ROW), system).pairs
    assert list(pair.prompt_ids) == system.prompt([{"role": "user", "content": "2+2="}])


def test_equal_answers_are_left_out_and_counted(tmp_path: Path):
    found = read(write(tmp_path / "pairs.jsonl", ROW, ROW | {"rejected": "4"}))
    assert (len(found.pairs), found.n_left_out) == (1, 1)


def test_long_prompts_lose_their_begin_alike_for_both_answers(tmp_path: Path):
    path = write(tmp_path / "pairs.jsonl", ROW, ROW | {"prompt": "x" * 30 + "2+2="})
    whole, long = read(path).pairs
    with pytest.raises(ValueError, match=r"pairs.jsonl, line 2: .* context_length 20, got 42"):
        read(path, context_length=20)
    found = read(path, context_length=20, truncate_prompts=True)
    assert found.n_truncated == 1
    first, cut = found.pairs
    assert first == whole
    assert cut[1:] == long[1:]
    assert cut.width == 20
    kept = len(cut.prompt_ids) - 1
    assert list(cut.prompt_ids) == [long.prompt_ids[0], *long.prompt_ids[-kept:]]


def test_prompt_that_has_no_room_is_refused_with_its_line(tmp_path: Path):
    path = write(tmp_path / "pairs.jsonl", ROW, ROW | {"chosen": "x" * 30})
    # The answer has 31 ids, of which the last is not read: one begins texts, one is left.
    assert read(path, context_length=32, truncate_prompts=True).pairs[1].width == 32
    for length, room in ((31, 1), (20, 0)):
        with pytest.raises(ValueError, match=rf"line 2: .*leave room .* leaves {room} tokens"):
            read(path, context_length=length, truncate_prompts=True)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("[]\n", "must be an object with prompt, chosen, rejected, got "),
        ('{"prompt": "a", "chosen": "b"}\n', "must be an object with prompt, chosen, rejected"),
        ('{"prompt": "a", "chosen": "b", "rejected": 1}\n', "rejected must be a text, got 1"),
        ('{"prompt": "a", "chosen": null, "rejected": ""}\n', "chosen must be a text, got None"),
        ('{"prompt": 3, "chosen": "a", "rejected": ""}\n', "messages must be a list"),
        ('{"prompt": [], "chosen": "a", "rejected": ""}\n', "at least one message"),
        (
            '{"prompt": [{"role": "x"}], "chosen": "a", "rejected": ""}\n',
            r"messages\[0\] must have",
        ),
        ('{"prompt": "a"\n', "Expecting"),
        ("[" * 100_000 + "\n", ""),
    ],
)
def test_refuses_a_bad_line_by_its_number(tmp_path: Path, line: str, sentence: str):
    path = write(tmp_path / "pairs.jsonl", ROW, "\n", line)
    with pytest.raises(ValueError, match=rf"pairs.jsonl, line 3: .*{sentence}") as refusal:
        read(path)
    assert "\n" not in str(refusal.value)


def test_refuses_bytes_that_are_no_text_and_lines_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b'{"prompt": "\xff", "chosen": "a", "rejected": "b"}\n')
    with pytest.raises(ValueError, match="line 1"):
        read(path)
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 100)
    write(path, ROW | {"chosen": "x" * 100})
    with pytest.raises(ValueError, match="line 1: a line must have at most 100 bytes"):
        read(path)
    with pytest.raises(FileNotFoundError, match=r"holds no .jsonl file"):
        read(write_folder(tmp_path / "empty"))


def write_folder(folder: Path) -> Path:
    folder.mkdir()
    return folder


def rollout(prompt_id: int, sample_index: int, reward: float | None, text: str = "a") -> Rollout:
    token_ids = (*text.encode(), 261)
    return Rollout(
        prompt_id=prompt_id,
        sample_index=sample_index,
        step=1,
        prompt_ids=(256, 257, 50 + prompt_id),
        token_ids=token_ids,
        log_probs=(-1.0,) * len(token_ids),
        train_mask=(False, *(True,) * len(text)),
        finish_reason="stop",
        text=text,
        weights_hash="",
        seed=0,
        reward=reward,
    )


def test_best_answers_are_paired_with_worst_while_rewards_differ():
    rewards = [0.0, 1.0, 0.5, 1.0, 0.0, 0.5]
    group = [rollout(0, i, reward, f"answer {i}") for i, reward in enumerate(rewards)]
    others = [rollout(1, i, 1.0) for i in range(3)]
    found, n_without = pair_rollouts([*others, *reversed(group)])
    matched = [
        (pair.chosen.token_ids[7] - 48, pair.rejected.token_ids[7] - 48) for _, pair in found
    ]
    assert matched == [(1, 4), (3, 0)]
    assert n_without == 1
    assert [name for name, _ in found] == ["prompt 0 of step 1"] * 2
    (_, first), *_ = found
    assert first.prompt_ids == group[0].prompt_ids
    assert tuple(first.chosen.token_ids) == group[1].token_ids
    assert first.chosen.train_mask == group[1].train_mask
    assert len(pair_rollouts(group, pairs_per_prompt=1)[0]) == 1


def test_rollouts_must_be_graded_and_have_something_to_train(tmp_path: Path):
    with pytest.raises(ValueError, match="prompt 0, sample 1 has no reward"):
        pair_rollouts([rollout(0, 0, 1.0), rollout(0, 1, None)])
    write_rollouts(tmp_path / "rollouts.jsonl", [rollout(0, 0, None)])
    with pytest.raises(ValueError, match=r"rollouts.jsonl: .* has no reward"):
        read(tmp_path / "rollouts.jsonl")
    empty = rollout(0, 0, 1.0, "")
    assert pair_rollouts([empty, rollout(0, 1, 0.0)]) == ([], 1)


def test_rollouts_are_read_from_files_and_folders(tmp_path: Path):
    group = [rollout(0, 0, 1.0, "right"), rollout(0, 1, 0.0, "wrong")]
    folder = write_folder(tmp_path / "rollouts")
    write_rollouts(folder / "step_1.jsonl", group)
    write_rollouts(folder / "step_2.jsonl", [*group, rollout(1, 0, 0.0), rollout(1, 1, 0.0)])
    write(folder / "written.jsonl", ROW)
    found = read(folder)
    assert (len(found.pairs), found.n_left_out) == (3, 1)
    assert found.pairs[0] == found.pairs[1]
    assert read(folder / "step_1.jsonl").pairs == found.pairs[:1]
    with pytest.raises(ValueError, match=r"step_1.jsonl, prompt 0 of step 1: ids .* 261, got 261"):
        read(folder, vocab_size=261)
    with open(folder / "step_2.jsonl", "a") as file:
        file.write('{"token_ids": 1}\n')
    with pytest.raises(FormatError, match=r"step_2.jsonl, line 5"):
        read(folder)


def pair(prompt: int, chosen: int, rejected: int) -> Pair:
    return Pair((prompt,), Answer((chosen,), (True,)), Answer((rejected,), (True,)))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(0, 12), st.integers(0, 9))
def test_pairs_of_a_prompt_are_held_out_together(prompts: list[int], n_valid: int, seed: int):
    found = [pair(prompt, i, i + 1) for i, prompt in enumerate(prompts)]
    train, valid = split_pairs(found, n_valid, seed=seed)
    assert sorted([*train, *valid]) == sorted(found)
    sides = [{each.prompt_ids for each in side} for side in (train, valid)]
    assert not sides[0] & sides[1]
    assert len(valid) >= min(n_valid, len(found))
    assert n_valid or not valid
    assert split_pairs(found, n_valid, seed=seed) == (train, valid)


def test_hash_knows_order_ids_and_masks():
    a, b = pair(1, 2, 3), pair(1, 3, 2)
    hashes = {pairs_hash(found) for found in ([a], [b], [a, b], [b, a], [])}
    masked = a._replace(chosen=Answer((2,), (False,)))
    assert len(hashes | {pairs_hash([masked])}) == 6
    assert pairs_hash([a]) == pairs_hash([pair(1, 2, 3)])
