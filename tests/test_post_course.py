"""The course-named functions, with rslm's models and those of `transformers`."""

import copy
import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from torch import Tensor

from rslm.post import course, json_lines
from rslm.post.packed_sft import alpaca_prompt
from rslm.tokenizer import Tokenizer


class Pair:
    """A model and a tokenizer that go together."""

    def __init__(self, model: Any, tokenizer: Any, end_id: int, begin_ids: list[int]) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.end_id, self.begin_ids = end_id, begin_ids

    def encode(self, text: str) -> list[int]:
        if isinstance(self.tokenizer, Tokenizer):
            return self.tokenizer.encode_ordinary(text)
        return self.tokenizer.encode(text, add_special_tokens=False)

    def log_probs(self, ids: list[int]) -> Tensor:
        """Of each id but the first, without anything of the course's functions."""
        with torch.no_grad():
            output = self.model(torch.tensor([ids]))
        logits = output if isinstance(output, Tensor) else output.logits
        found = torch.log_softmax(logits.double(), -1)[0, :-1]
        return found.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]


def ours() -> Pair:
    tokenizer = tiny_tokenizer(has_chat=False)
    model = tiny_model(tokenizer, context_length=512)
    assert tokenizer.end_of_text is not None
    return Pair(model, tokenizer, tokenizer.end_of_text, [])


def theirs() -> Pair:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    names = ["<bos>", "<eos>", *alphabet]
    bytes_only = tokenizers.models.BPE({name: i for i, name in enumerate(names)}, [])
    core = tokenizers.Tokenizer(bytes_only)
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 0)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>"
    )
    config = transformers.LlamaConfig(
        vocab_size=len(names),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    return Pair(transformers.LlamaForCausalLM(config).eval(), tokenizer, 1, [0])


@pytest.fixture(scope="module", params=[ours, theirs], ids=["ours", "theirs"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return request.param()


PROMPTS = ["2+2=", "Say hi: "]
OUTPUTS = ["4", "hi <eos>"]


def test_tokenize_prompt_and_output(pair: Pair):
    found = course.tokenize_prompt_and_output(PROMPTS, OUTPUTS, pair.tokenizer)
    encoded = [
        (pair.encode(prompt), pair.encode(output))
        for prompt, output in zip(PROMPTS, OUTPUTS, strict=True)
    ]
    width = max(len(p) + len(o) for p, o in encoded) - 1
    assert {key: tuple(x.shape) for key, x in found.items()} == {
        "input_ids": (2, width),
        "labels": (2, width),
        "response_mask": (2, width),
    }
    for i, (prompt, output) in enumerate(encoded):
        mask = found["response_mask"][i].bool()
        assert found["labels"][i][mask].tolist() == output
        n = len(prompt) + len(output)
        # Only the last column is cut, so that a short row keeps its last id and its padding.
        assert found["input_ids"][i][:n].tolist() == (prompt + output)[:width]
        assert found["input_ids"][i][n:].tolist() == [pair.end_id] * (width - n)
        assert mask.nonzero()[0, 0] == len(prompt) - 1


def test_padding_is_the_tokenizers_own(pair: Pair):
    if isinstance(pair.tokenizer, Tokenizer):
        pytest.skip("rslm's tokenizer has no token for padding")
    pair.tokenizer.pad_token_id = 7
    try:
        found = course.tokenize_prompt_and_output(PROMPTS, OUTPUTS, pair.tokenizer)
    finally:
        pair.tokenizer.pad_token_id = None
    assert found["labels"][0, -1] == 7
    assert not found["response_mask"][0, -1]


@pytest.mark.parametrize("with_entropy", [False, True])
def test_get_response_log_probs(pair: Pair, with_entropy: bool):
    batch = course.tokenize_prompt_and_output(PROMPTS, OUTPUTS, pair.tokenizer)
    found = course.get_response_log_probs(
        pair.model, batch["input_ids"], batch["labels"], with_entropy
    )
    assert set(found) == ({"log_probs", "token_entropy"} if with_entropy else {"log_probs"})
    assert found["log_probs"].requires_grad
    for i, (prompt, output) in enumerate(zip(PROMPTS, OUTPUTS, strict=True)):
        exact = pair.log_probs(pair.encode(prompt) + pair.encode(output)).float()
        torch.testing.assert_close(found["log_probs"][i, : len(exact)].detach(), exact)
    if with_entropy:
        assert found["token_entropy"].shape == batch["labels"].shape
        assert (found["token_entropy"] <= math.log(260)).all()
        assert (found["token_entropy"] > 0).all()


def test_compute_entropy():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1e4, 0.0, 0.0, 0.0]])
    assert course.compute_entropy(logits).tolist() == pytest.approx([math.log(4), 0.0])
    banned = torch.tensor([[0.0, 0.0, -math.inf]], requires_grad=True)
    entropy = course.compute_entropy(banned)
    assert entropy.item() == pytest.approx(math.log(2))
    assert torch.autograd.grad(entropy.sum(), banned)[0].isfinite().all()


def graded(response: str, truth: str) -> dict[str, float]:
    is_right = float(response == truth)
    return {"reward": is_right, "format_reward": 1.0, "answer_reward": is_right}


def test_rewards_and_advantages():
    rewards, metadata = course.compute_rollout_rewards(
        graded, ["4", "5", "5", "4"], ["4", "4", "4", "4"]
    )
    assert rewards.tolist() == [1, 0, 0, 1]
    assert metadata == {
        "mean_reward": 0.5,
        "mean_format_reward": 1.0,
        "mean_answer_reward": 0.5,
    }
    advantages, metadata = course.compute_group_normalized_rewards(rewards, 2)
    assert advantages.tolist() == pytest.approx([0.7071, -0.7071, -0.7071, 0.7071], abs=1e-4)
    assert metadata["zero_advantage_fraction"] == 0
    advantages, metadata = course.compute_group_normalized_rewards(
        raw_rewards=torch.tensor([1, 1, 0, 1]),
        group_size=2,
        baseline="mean",
        advantage_eps=0.0,
        advantage_normalizer="mean",
    )
    assert advantages.tolist() == [0, 0, -1, 1]
    assert metadata["zero_advantage_fraction"] == 0.5
    with pytest.raises(ValueError, match="finite"):
        course.compute_group_normalized_rewards(torch.tensor([math.nan, 0.0]), 2)
    with pytest.raises(ValueError, match="shorter"):
        course.compute_rollout_rewards(graded, ["4", "5"], ["4"])


LOG_PROBS = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -1.5, -2.5]])
OLD = LOG_PROBS - torch.tensor([[0.3, -0.3, 0.0], [0.5, -0.5, 0.1]])
MASK = torch.tensor([[0, 1, 1], [1, 1, 0]])
ADVANTAGES = torch.tensor([[1.0], [-2.0]])


def test_policy_gradient_losses_of_the_course():
    naive = course.compute_naive_policy_gradient_loss(ADVANTAGES, LOG_PROBS)
    torch.testing.assert_close(naive, -ADVANTAGES * LOG_PROBS)
    clipped, metadata = course.compute_grpo_clip_loss(ADVANTAGES, LOG_PROBS, OLD, 0.2)
    r = (LOG_PROBS - OLD).exp()
    torch.testing.assert_close(
        clipped, -torch.minimum(r * ADVANTAGES, r.clamp(0.8, 1.2) * ADVANTAGES)
    )
    assert metadata["clip_fraction_high"].item() == pytest.approx(1 / 6)
    assert metadata["clip_fraction_low"].item() == pytest.approx(1 / 6)
    plain = course.compute_policy_gradient_loss(ADVANTAGES[:, 0], LOG_PROBS)[0]
    torch.testing.assert_close(plain, naive)
    masked = course.compute_policy_gradient_loss(
        advantages=ADVANTAGES,
        policy_log_probs=LOG_PROBS,
        importance_reweighting_method="noclip",
        old_log_probs=OLD,
        cliprange=None,
        response_mask=MASK,
    )[0]
    torch.testing.assert_close(masked, -ADVANTAGES * r * MASK)
    two_sided = course.compute_grpo_clip_loss(ADVANTAGES, LOG_PROBS, OLD, (0.2, 0.4))[0]
    assert two_sided[0, 0].item() == pytest.approx(-math.exp(0.3))
    with pytest.raises(ValueError, match="by clip needs old_log_probs"):
        course.compute_policy_gradient_loss(ADVANTAGES, LOG_PROBS, "clip")


def test_masked_mean_and_normalize_take_masks_of_numbers():
    x = torch.tensor([[1.0, 2.0], [3.0, math.nan]])
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    assert course.masked_mean(x, mask).item() == 2.0
    assert course.masked_mean(x, mask, dim=1).tolist() == [1.5, 3.0]
    assert course.masked_normalize(x, mask, 2.0).item() == 3.0
    assert course.masked_normalize(x, mask, normalize_constant=4.0, dim=0).tolist() == [1.0, 0.5]


def test_aggregate_loss():
    per_token = torch.tensor([[6.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    mask = torch.tensor([[1, 0, 0], [1, 1, 1]])
    assert course.aggregate_loss(per_token, mask).item() == pytest.approx(4.0)
    assert course.aggregate_loss(per_token, mask, "token").item() == pytest.approx(3.0)
    assert course.aggregate_loss(per_token, mask, "constant", 4.0).item() == pytest.approx(1.5)
    for arguments in [("constant",), ("token", 4.0), ("constant", 0.0)]:
        with pytest.raises(ValueError, match="normalize_constant"):
            course.aggregate_loss(per_token, mask, *arguments)


def test_sft_microbatch_train_step():
    log_probs = LOG_PROBS.clone().requires_grad_()
    loss, _ = course.sft_microbatch_train_step(log_probs, MASK, 4, normalize_constant=2.0)
    # Sums 5 and 2, over the constant 2, mean over rows, over 4 steps.
    assert loss.item() == pytest.approx((5 / 2 + 2 / 2) / 2 / 4)
    assert not loss.requires_grad
    torch.testing.assert_close(log_probs.grad, -MASK / (2.0 * 2 * 4))


@pytest.mark.parametrize("loss_type", ["no_baseline", "reinforce_with_baseline", "grpo_clip"])
def test_grpo_microbatch_train_step(loss_type: str):
    log_probs = LOG_PROBS.clone().requires_grad_()
    loss, metadata = course.grpo_microbatch_train_step(
        policy_log_probs=log_probs,
        response_mask=MASK,
        gradient_accumulation_steps=2,
        loss_type=loss_type,
        raw_rewards=ADVANTAGES,
        advantages=ADVANTAGES,
        old_log_probs=OLD,
        cliprange=0.2,
    )
    per_token = -ADVANTAGES * LOG_PROBS
    if loss_type == "grpo_clip":
        per_token = course.compute_grpo_clip_loss(ADVANTAGES, LOG_PROBS, OLD, 0.2)[0]
    assert loss.item() == pytest.approx((per_token * MASK).sum().item() / 2 / 2 / 2)
    assert log_probs.grad is not None
    assert (log_probs.grad[MASK == 0] == 0).all()
    assert "clip_fraction" in metadata


def test_grpo_microbatch_train_step_refuses():
    with pytest.raises(ValueError, match="loss_type no_baseline needs raw_rewards"):
        course.grpo_microbatch_train_step(LOG_PROBS, MASK, 1, "no_baseline", advantages=ADVANTAGES)
    with pytest.raises(ValueError, match="loss_type must be one of"):
        course.grpo_microbatch_train_step(LOG_PROBS, MASK, 1, "ppo", advantages=ADVANTAGES)


def step(pair: Pair, responses: list[str], **options: Any) -> tuple[Tensor, dict, Tensor, Pair]:
    """Loss and metadata of a step, by what the weights moved, and the model after it."""
    model = copy.deepcopy(pair.model)
    loss, metadata = course.grpo_train_step(
        model,
        pair.tokenizer,
        torch.optim.SGD(model.parameters(), lr=1.0),
        graded,
        repeated_prompts=["2+2="] * 2 + ["Say four: "] * 2,
        rollout_responses=responses,
        repeated_ground_truths=["4", "4", "four", "four"],
        group_size=2,
        **options,
    )
    before, after = (
        torch.nn.utils.parameters_to_vector(m.parameters()).detach() for m in (pair.model, model)
    )
    return loss, metadata, after - before, Pair(model, pair.tokenizer, pair.end_id, pair.begin_ids)


RESPONSES = ["4", "five", "no four", "four"]


@pytest.mark.parametrize("aggregation", ["sequence", "token", "constant"])
def test_grpo_train_step_does_not_depend_on_accumulation(pair: Pair, aggregation: str):
    options: dict[str, Any] = {"aggregation": aggregation, "max_grad_norm": 1e9}
    options["normalize_constant"] = 12.0 if aggregation == "constant" else None
    loss, metadata, moved, _ = step(pair, RESPONSES, **options)
    assert moved.abs().max() > 1e-4
    assert metadata["grad_norm"] == pytest.approx(moved.norm().item(), rel=1e-3)
    assert metadata["mean_reward"] == 0.5
    assert metadata["entropy"] > 0
    for n_steps in (2, 4, 9):
        other = step(pair, RESPONSES, gradient_accumulation_steps=n_steps, **options)
        assert other[0].item() == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)
        torch.testing.assert_close(other[2], moved, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("aggregation", ["sequence", "token", "constant"])
def test_grpo_train_step_has_the_loss_of_the_definition(pair: Pair, aggregation: str):
    constant = 12.0 if aggregation == "constant" else None
    options = {"aggregation": aggregation, "normalize_constant": constant}
    loss, *_ = step(pair, RESPONSES, gradient_accumulation_steps=3, **options)
    advantages = course.compute_group_normalized_rewards([1.0, 0.0, 0.0, 1.0], 2)[0].tolist()
    prompts = ["2+2="] * 2 + ["Say four: "] * 2
    lengths = [len(pair.encode(response)) for response in RESPONSES]
    total = 0.0
    for prompt, response, scale, n in zip(prompts, RESPONSES, advantages, lengths, strict=True):
        log_probs = pair.log_probs(pair.encode(prompt) + pair.encode(response))[-n:]
        weight = {"sequence": 4 * n, "token": sum(lengths), "constant": 4 * 12}[aggregation]
        total -= scale * log_probs.sum().item() / weight
    assert loss.item() == pytest.approx(total, rel=1e-4, abs=1e-6)


def test_grpo_train_step_raises_the_probability_of_what_is_rewarded(pair: Pair):
    old = pair.log_probs(pair.encode("2+2=") + pair.encode("4"))[-1]
    batch = course.tokenize_prompt_and_output(
        ["2+2="] * 2 + ["Say four: "] * 2, RESPONSES, pair.tokenizer
    )
    with torch.no_grad():
        before = course.get_response_log_probs(pair.model, batch["input_ids"], batch["labels"])
    options = {"importance_reweighting_method": "clip", "old_log_probs": before["log_probs"]}
    _, metadata, moved, new = step(pair, RESPONSES, max_grad_norm=0.05, **options)
    assert metadata["clip_fraction"] == 0
    assert moved.norm().item() == pytest.approx(0.05, rel=1e-2)
    assert new.log_probs(pair.encode("2+2=") + pair.encode("4"))[-1] > old
    _, _, plain, _ = step(pair, RESPONSES, max_grad_norm=0.05)
    torch.testing.assert_close(moved, plain, rtol=1e-3, atol=1e-6)


def test_grpo_train_step_without_an_advantage_is_none(pair: Pair):
    loss, metadata, moved, _ = step(pair, ["4", "4", "no", "no"])
    assert (loss.item(), metadata["is_skipped"], moved.abs().max().item()) == (0, 1, 0)


def test_pruned_rows_count_in_the_weights(pair: Pair):
    options: dict[str, Any] = {"max_grad_norm": 1e9}
    _, _, both, _ = step(pair, RESPONSES, **options)
    _, metadata, first, _ = step(pair, ["4", "five", "four", "four"], **options)
    _, _, second, _ = step(pair, ["4", "4", "no four", "four"], **options)
    assert metadata["zero_advantage_fraction"] == 0.5
    torch.testing.assert_close(first + second, both, rtol=1e-3, atol=1e-6)


def write_rows(path: Path, rows: list[Any]) -> Path:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


ROWS = [{"prompt": "Add 1 and 2.", "response": "3"}, {"prompt": "Say hi.", "response": "hi!"}]


@pytest.mark.parametrize("name", ["sft.jsonl", "sft.jsonl.gz"])
def test_packed_sft_dataset(pair: Pair, tmp_path: Path, name: str):
    path = write_rows(tmp_path / name, ROWS)
    dataset = course.PackedSFTDataset(pair.tokenizer, path, 32, False)
    stream: list[int] = []
    for row in ROWS:
        document = pair.encode(alpaca_prompt(row["prompt"]) + row["response"])
        stream += [*pair.begin_ids, *document, pair.end_id]
    assert len(dataset) == (len(stream) - 1) // 32
    for i in range(len(dataset)):
        assert dataset[i]["input_ids"].tolist() == stream[i * 32 : (i + 1) * 32]
        assert dataset[i]["labels"].tolist() == stream[i * 32 + 1 : (i + 1) * 32 + 1]
    with pytest.raises(IndexError):
        dataset[len(dataset)]
    batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=2)))
    assert batch["input_ids"].shape == (2, 32)


def test_packed_sft_dataset_cuts_and_drops_as_the_course_says(tmp_path: Path):
    class Digits:
        """Ids 0 to 9 for the document, 10 for its end."""

        bos_token_id, eos_token_id = None, 10

        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            return list(range(10))

    dataset = course.PackedSFTDataset(Digits(), write_rows(tmp_path / "x.jsonl", ROWS[:1]), 4)
    pieces = [(x["input_ids"].tolist(), x["labels"].tolist()) for x in list(dataset)]
    assert pieces == [([0, 1, 2, 3], [1, 2, 3, 4]), ([4, 5, 6, 7], [5, 6, 7, 8])]
    # Of the last id nothing is predicted: 11 ids make a piece of 10, and none of 11.
    lengths = [len(course.PackedSFTDataset(Digits(), tmp_path / "x.jsonl", n)) for n in (10, 11)]
    assert lengths == [1, 0]


def test_packed_sft_dataset_shuffles_documents(pair: Pair, tmp_path: Path):
    rows = [{"prompt": str(i), "response": str(i)} for i in range(9)]
    path = write_rows(tmp_path / "sft.jsonl", rows)

    def texts(**options: Any) -> list[list[int]]:
        dataset = course.PackedSFTDataset(pair.tokenizer, path, 16, **options)
        return [dataset[i]["input_ids"].tolist() for i in range(len(dataset))]

    assert texts(shuffle=True) == texts(shuffle=True)
    assert texts(shuffle=True) != texts(shuffle=False)
    assert texts(shuffle=True) != texts(shuffle=True, seed=1)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", r"line 2: must be JSON"),
        ("[" * 100_000, r"line 2: must be JSON"),
        ("[]", 'line 2: must be an object with the texts "prompt", "response"'),
        ('{"prompt": "a"}', "line 2: must be an object with the texts"),
        ('{"prompt": "a", "response": 1}', "line 2: must be an object with the texts"),
    ],
)
def test_packed_sft_dataset_refuses(tmp_path: Path, line: str, sentence: str):
    path = tmp_path / "sft.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=sentence):
        course.PackedSFTDataset(tiny_tokenizer(has_chat=False), path, 4)


def test_packed_sft_dataset_reads_no_line_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 100)
    with gzip.open(tmp_path / "sft.jsonl.gz", "wb") as file:
        file.write(b"x" * 101)
    with pytest.raises(ValueError, match="line 1: a line must have at most 100 bytes"):
        course.PackedSFTDataset(tiny_tokenizer(has_chat=False), tmp_path / "sft.jsonl.gz", 4)


def test_per_instance_dpo_loss(pair: Pair):
    arguments = (pair.tokenizer, 0.5, "The quick brown fox jumps over", "the dog.", "a frog.")
    same = course.per_instance_dpo_loss(pair.model, pair.model, *arguments)
    assert same.item() == pytest.approx(math.log(2))
    reference = Pair(shifted(pair.model), pair.tokenizer, pair.end_id, pair.begin_ids)
    loss = course.per_instance_dpo_loss(pair.model, reference.model, *arguments)
    assert loss.requires_grad
    loss.backward()
    assert all(p.grad is None for p in reference.model.parameters())
    pair.model.zero_grad()
    prompt = [*pair.begin_ids, *pair.encode(alpaca_prompt(arguments[2]))]

    def summed(of: Pair, response: str) -> float:
        ids = [*prompt, *pair.encode(response), pair.end_id]
        return of.log_probs(ids)[len(prompt) - 1 :].sum().item()

    chosen, rejected = (
        summed(pair, response) - summed(reference, response) for response in arguments[3:]
    )
    exact = math.log1p(math.exp(-0.5 * (chosen - rejected)))
    assert abs(chosen - rejected) > 1e-3
    assert loss.item() == pytest.approx(exact, abs=1e-5)


def shifted(model: Any) -> Any:
    """A copy of the model with other weights."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return other


EXAMPLE = {"subject": "x", "question": "?", "options": ["1", "2", "3", "4"], "answer": "B"}


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        ("The correct answer is B.", "B"),
        ("B", "B"),
        ("(C)", "C"),
        ("The answer is **D**", "D"),
        ("A long time ago there was a king.", None),
        ("The correct answer is 10000 polynomials.", None),
        ("The answer is E.", None),
        ("", None),
    ],
)
def test_parse_mmlu_response(output: str, letter: str | None):
    assert course.parse_mmlu_response(EXAMPLE, output) == letter


@pytest.mark.parametrize(
    ("output", "number"),
    [
        ("She sold 48/2 = 24 clips in May. 48+24 = 72 clips altogether in April and May.", "72"),
        ("The total is $1,234.50.", "1234.50"),
        ("It is -3 degrees", "-3"),
        ("#### 18", "18"),
        ("No number at all ... or so", None),
        ("", None),
    ],
)
def test_parse_gsm8k_response(output: str, number: str | None):
    assert course.parse_gsm8k_response(output) == number
