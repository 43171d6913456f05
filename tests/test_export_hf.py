"""Models as folders of Hugging Face's: their logits, their tokens, and back again."""

import json
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import (
    END_OF_TEXT,
    EXACT,
    SWITCHES,
    chat_tokenizer,
    chatml_tokenizer,
    model_with,
    random_ids,
    same_weights,
    write_folder,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import TEXTS

from rslm import cli
from rslm.chat import ChatFormat
from rslm.infer.hf import export_hf
from rslm.infer.hf_import import import_hf
from rslm.infer.llama_family import halves_to_pairs, pairs_to_halves, plain_config, plain_tensors
from rslm.infer.load import load_chat_format, load_run
from rslm.infer.sampler import generate
from rslm.model import Transformer


@pytest.fixture(scope="module")
def tokenizer(rust_tokenizer) -> Any:
    return chat_tokenizer(rust_tokenizer())


def exported(model: Transformer, tokenizer: Any, out: Path, **options: Any) -> Path:
    export_hf(model, ChatFormat.of(tokenizer), out, **options)
    return out


def their_model(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def their_tokenizer(folder: Path) -> Any:
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", SWITCHES)
@torch.inference_mode()
def test_their_logits_are_ours(name: str, tokenizer, tmp_path: Path) -> None:
    model = model_with(tokenizer, **SWITCHES[name])
    theirs = their_model(exported(model, tokenizer, tmp_path / "hf"))
    assert type(theirs).__name__ == ("Qwen3" if "qk-norm" in name else "Llama") + "ForCausalLM"
    ids = random_ids(model)
    ours = model(ids)
    assert ours.std() > 0.1
    torch.testing.assert_close(theirs(ids).logits, ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "grouped", "qk-norm-gain", "completep-tied"])
def test_their_greedy_tokens_are_ours(name: str, tokenizer, tmp_path: Path) -> None:
    model = model_with(tokenizer, **SWITCHES[name])
    theirs = their_model(exported(model, tokenizer, tmp_path / "hf"))
    prompt = random_ids(model, 10, 1)
    made = theirs.generate(
        prompt, max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    ours = list(generate(model, prompt[0].tolist(), max_new_tokens=64, temperature=0))
    assert made[0, 10:].tolist() == ours


@pytest.mark.parametrize("name", SWITCHES)
@torch.inference_mode()
def test_what_is_folded_gives_the_same_model(name: str, tokenizer) -> None:
    model = model_with(tokenizer, **SWITCHES[name])
    plain = Transformer(plain_config(model.config))
    plain.load_state_dict(dict(plain_tensors(model)))
    ids = random_ids(model)
    torch.testing.assert_close(plain(ids), model(ids), rtol=0, atol=1e-5)
    if name in EXACT:
        same_weights(plain, model)


@pytest.mark.parametrize("name", EXACT)
def test_what_comes_back_is_the_same_bit_for_bit(name: str, tokenizer, tmp_path: Path) -> None:
    model = model_with(tokenizer, **SWITCHES[name])
    folder = exported(model, tokenizer, tmp_path / "hf")
    imported = import_hf(folder, tmp_path / "back")
    assert imported.notes == []
    back, own = load_run(tmp_path / "back", device="cpu")
    same_weights(back, model)
    assert back.config == plain_config(model.config)
    assert own.sha256 == tokenizer.sha256
    chat_format = load_chat_format(tmp_path / "back", own)
    assert (chat_format.name, chat_format.default_system) == ("rslm", None)
    ids = random_ids(model)
    assert torch.equal(back(ids), model(ids))


def test_a_model_of_theirs_comes_and_goes(tokenizer, tmp_path: Path) -> None:
    """Written by their library, in several files, with biases as Qwen2 has them."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    for kind in ("Llama", "Qwen2", "Qwen3", "Mistral"):
        extra = {"sliding_window": None} if kind == "Mistral" else {}
        config = getattr(transformers, f"{kind}Config")(**sizes, **extra)
        theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
        folder = tmp_path / kind
        theirs.save_pretrained(folder, max_shard_size="20KB")
        assert (folder / "model.safetensors.index.json").exists()
        tokenizer.save(folder / "tokenizer.json", "hf")
        import_hf(folder, tmp_path / f"{kind}-ours")
        ours, _ = load_run(tmp_path / f"{kind}-ours", device="cpu")
        ids = random_ids(ours, 40)
        with torch.inference_mode():
            torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=1e-5)


# Texts.


@pytest.fixture(scope="module")
def texts_folder(rust_tokenizer, tmp_path_factory) -> Any:
    """A folder for each pattern, with our tokenizer and theirs."""
    made = {}
    for pattern in ("gpt2", "qwen2", "llama3"):
        ours = chat_tokenizer(rust_tokenizer(), pattern=pattern)
        out = tmp_path_factory.mktemp("texts") / pattern
        export_hf(model_with(ours, n_layers=1), ChatFormat.of(ours), out)
        made[pattern] = (ours, their_tokenizer(out), out)
    return made


@pytest.mark.parametrize("pattern", ["gpt2", "qwen2", "llama3"])
def test_their_ids_are_ours(pattern: str, texts_folder, stdlib_text: str, bpe_corpus: str) -> None:
    ours, theirs, _ = texts_folder[pattern]
    for text in (bpe_corpus, stdlib_text[:100_000]):
        assert theirs(text)["input_ids"] == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["gpt2", "qwen2", "llama3"])
def test_their_ids_of_many_languages_are_ours(pattern, texts_folder, read_test_text) -> None:
    ours, theirs, _ = texts_folder[pattern]
    text = read_test_text("multilingual", 3_000_000)
    assert theirs(text)["input_ids"] == ours.encode(text)


@settings(deadline=None)
@given(text=TEXTS, pattern=st.sampled_from(["gpt2", "qwen2", "llama3"]))
def test_their_ids_of_odd_texts_are_ours(texts_folder, text: str, pattern: str) -> None:
    ours, theirs, _ = texts_folder[pattern]
    assert theirs(text)["input_ids"] == ours.encode(text)
    assert theirs.decode(ours.encode(text)) == text


def test_their_chats_are_ours(texts_folder) -> None:
    ours, theirs, _ = texts_folder["gpt2"]
    chat_format = ChatFormat.of(ours)
    messages: Any = [
        {"role": "system", "content": "Be good."},
        {"role": "user", "content": "Hi\n"},
        {"role": "assistant", "content": " Yes , it 's"},
    ]
    out = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    rendered = chat_format.render(messages)
    assert out["input_ids"] == rendered.token_ids
    assert out["assistant_masks"] == [int(m) for m in rendered.train_mask]
    prompt = theirs.apply_chat_template(messages[:2], add_generation_prompt=True)
    assert prompt["input_ids"] == chat_format.prompt(messages[:2])


# What the files say.


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_config_says_what_their_software_asks_for(tokenizer, tmp_path: Path) -> None:
    model = model_with(tokenizer, n_kv_heads=2, tied_head=True, norm_epsilon=1e-6)
    out = exported(model, tokenizer, tmp_path / "hf", dtype=torch.bfloat16)
    config, specials = read(out / "config.json"), tokenizer.special_tokens
    expected = {
        "model_type": "llama",
        "head_dim": 8,
        "num_key_value_heads": 2,
        "rope_theta": 5000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "vocab_size": tokenizer.vocab_size + 3,
        "dtype": "bfloat16",
        "bos_token_id": specials[END_OF_TEXT],
        "eos_token_id": [specials["<|end|>"], specials[END_OF_TEXT]],
        "pad_token_id": specials[END_OF_TEXT],
    }
    assert expected.items() <= config.items()
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    assert read(out / "generation_config.json") == ids
    texts = read(out / "tokenizer_config.json")
    assert texts["clean_up_tokenization_spaces"] is False
    assert (texts["bos_token"], texts["eos_token"]) == (END_OF_TEXT, "<|end|>")
    assert (out / "chat_template.jinja").read_text() == ChatFormat.of(tokenizer).template
    from safetensors import safe_open

    with safe_open(out / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_a_base_model_has_no_chat_template(rust_tokenizer, tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(rust_tokenizer(), chat=False)
    out = exported(model_with(tokenizer), tokenizer, tmp_path / "hf")
    assert not (out / "chat_template.jinja").exists()
    config = read(out / "config.json")
    assert config["eos_token_id"] == [tokenizer.end_of_text]
    import_hf(out, tmp_path / "back")
    assert load_chat_format(tmp_path / "back", tokenizer).name == "plain"


@pytest.mark.parametrize(
    ("switches", "part"),
    [
        ({"softcap": 15.0}, "softcap"),
        ({"value_embeddings": True}, "value_embeddings"),
        ({"window_pattern": "SL", "window_size": 8}, "windows"),
        ({"norm_position": "peri"}, "norm_position peri"),
        ({"norm_position": "post"}, "norm_position post"),
        ({"norm": "none"}, "no norms"),
        ({"ffn": "relu2"}, "ffn relu2"),
        ({"position_encoding": "half-rope"}, "position_encoding half-rope"),
        ({"position_encoding": "none"}, "position_encoding none"),
        ({"residual_scalars": True, "x0_scalars": True}, "residual_scalars, x0_scalars"),
        ({"biases": True, "qk_norm": "rms"}, "biases together with qk_norm"),
    ],
)
def test_parts_that_they_have_not_are_named(switches, part, tokenizer, tmp_path: Path) -> None:
    model = model_with(tokenizer, **switches)
    with pytest.raises(ValueError, match=f"Llama or Qwen3 can be, and has {part}$"):
        exported(model, tokenizer, tmp_path / "hf")
    assert list(tmp_path.iterdir()) == []


def test_numbers_too_large_for_half_precision_are_refused(tokenizer, tmp_path: Path) -> None:
    model = model_with(tokenizer)
    with torch.no_grad():
        model.layers[1].ffn.w2.weight[3, 3] = 1e5
    with pytest.raises(ValueError, match=r"down_proj.weight must hold numbers below 65520"):
        exported(model, tokenizer, tmp_path / "hf", dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []
    exported(model, tokenizer, tmp_path / "hf", dtype=torch.bfloat16)


@given(data=st.data())
def test_layouts_are_each_others_inverse(data: st.DataObject) -> None:
    heads, half = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    columns = data.draw(st.sampled_from([(), (3,)]))
    rows = torch.arange(heads * 2 * half * (columns or (1,))[0]).view(-1, *columns)
    halves = pairs_to_halves(rows, 2 * half)
    assert torch.equal(halves_to_pairs(halves, 2 * half), rows)
    order = [*range(0, 2 * half, 2), *range(1, 2 * half, 2)]
    expected = [head * 2 * half + i for head in range(heads) for i in order]
    assert torch.equal(halves, rows[expected])


def test_commands_there_and_back(rust_tokenizer, tmp_path: Path, capsys) -> None:
    tokenizer = chatml_tokenizer(rust_tokenizer())
    model = model_with(tokenizer)
    run = write_folder(tmp_path / "run", model, tokenizer, default_system='Be "good".\nÉ')
    out, back = tmp_path / "hf", tmp_path / "back"
    assert cli.main(["export", "hf", str(run), str(out)]) == 0
    assert "weights in float32" in capsys.readouterr().err
    assert cli.main(["import", "hf", str(out), str(back), "--context-length", "32"]) == 0
    assert "parameters, chat format chatml" in capsys.readouterr().err
    loaded, own = load_run(back, device="cpu")
    assert loaded.config.context_length == 32
    same_weights(loaded, model)
    assert load_chat_format(back, own).default_system == 'Be "good".\nÉ'
    assert cli.main(["export", "hf", str(run), str(out)]) == 2
    assert "out must not exist yet" in capsys.readouterr().err
    assert cli.main(["import", "hf", str(out), str(tmp_path / "x"), "--context-length", "97"]) == 2
    assert "context_length must be from 1 to the model's 96, got 97" in capsys.readouterr().err


# What strangers write.


@pytest.fixture
def strangers(rust_tokenizer, tmp_path: Path) -> Path:
    tokenizer = chat_tokenizer(rust_tokenizer())
    return exported(model_with(tokenizer), tokenizer, tmp_path / "theirs")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma2"}, "model_type must be one of llama, mistral, qwen2, qwen3, got"),
        ({"model_type": ["llama"]}, "model_type must be one of"),
        ({"hidden_act": "gelu"}, "has hidden_act 'gelu'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "must not be scaled, got rope_type 'llama3"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "rope_type 'linear'"),
        ({"rope_parameters": 3}, "rope_parameters must be an object, got 3"),
        ({"use_sliding_window": True, "sliding_window": 16}, "a sliding window"),
        ({"layer_types": ["sliding_attention"]}, "layers of other types"),
        ({"partial_rotary_factor": 0.5}, "a partial rotary embedding"),
        ({"num_hidden_layers": 2**62}, "must hold 4611686018427387904 layers"),
        ({"num_hidden_layers": 3}, "layers.2.input_layernorm.weight must have .*it is missing"),
        ({"num_hidden_layers": 1}, "belongs to no part that a model here has"),
        ({"hidden_size": 2**40}, "must have the shape"),
        ({"vocab_size": 10**12}, "must have the shape"),
        ({"intermediate_size": 65}, r"must have the shape \(65, 32\), got \(64, 32\)"),
        ({"max_position_embeddings": 2**50}, "give a context_length"),
        ({"hidden_size": "32"}, "hidden_size must be a whole number, got '32'"),
        ({"hidden_size": None}, "hidden_size must be a whole number, got None"),
        ({"num_attention_heads": 0}, "n_heads must be at least 1, got 0"),
        ({"num_attention_heads": -4}, "must be at least 1"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps must be a number"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps must be a number, got 1000"),
        ({"rope_parameters": {"rope_theta": True}}, "rope_theta must be a number, got True"),
        ({"rope_parameters": {"rope_theta": float("nan")}}, "rope_theta must be positive"),
        ({"head_dim": 7}, "d_head must be a multiple of 2"),
        ({"tie_word_embeddings": True, "vocab_size": 5}, "must have the shape"),
    ],
)
def test_configs_that_lie_are_refused(changes, message, strangers: Path, tmp_path: Path) -> None:
    path = strangers / "config.json"
    path.write_text(json.dumps(read(path) | changes))
    with pytest.raises(ValueError, match=message):
        import_hf(strangers, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
    assert cli.main(["import", "hf", str(strangers), str(tmp_path / "ours")]) == 2


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "model.bin", 3, None]
    + ["..\\m.safetensors", "x\0.safetensors", ["model.safetensors"]],
)
def test_an_index_names_files_beside_it_alone(name, strangers: Path, tmp_path: Path) -> None:
    index = strangers / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    with pytest.raises(ValueError, match="must name safetensors files beside it"):
        import_hf(strangers, tmp_path / "ours")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"[]", "config.json must be an object"),
        ("config.json", b"{", "config.json is not JSON"),
        ("config.json", b"[" * 100_000, "config.json is not JSON"),
        ("config.json", b" " * ((1 << 24) + 1), "must have at most 16777216 bytes"),
        ("config.json", b"\xff{}", "is not JSON"),
        ("tokenizer.json", b"{}", "tokenizer.json"),
        ("tokenizer.json", b"[" * 100_000, "tokenizer.json"),
        ("tokenizer.json", b'{"model": {"vocab": {}, "type": "BPE", "merges": []}}', "tokenizer"),
        ("model.safetensors", b"\xff" * 64, "not a safetensors file"),
        ("model.safetensors", b"", "not a safetensors file"),
        ("model.safetensors.index.json", b'{"weight_map": {}}', "weight_map must be an object"),
    ],
)
def test_damaged_files_are_refused(name, content, message, strangers, tmp_path: Path) -> None:
    (strangers / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        import_hf(strangers, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_weights_that_are_cut_off_are_refused(strangers: Path, tmp_path: Path) -> None:
    path = strangers / "model.safetensors"
    data = path.read_bytes()
    draw = random.Random(0)
    for length in [0, 7, 8, 100, len(data) - 1, *(draw.randrange(len(data)) for _ in range(20))]:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="not a safetensors file"):
            import_hf(strangers, tmp_path / "ours")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_flipped_bytes_are_refused_or_read(name: str, strangers: Path, tmp_path: Path) -> None:
    """In the head, where everything that decides about memory stands."""
    path = strangers / name
    data, draw = path.read_bytes(), random.Random(name)
    for i in range(40):
        changed = bytearray(data)
        for _ in range(draw.randint(1, 3)):
            changed[draw.randrange(min(len(data), 1000))] = draw.randrange(256)
        path.write_bytes(changed)
        try:
            import_hf(strangers, tmp_path / f"back{i}")
        except (ValueError, OSError):
            assert not (tmp_path / f"back{i}").exists()


def test_pickles_are_never_read(strangers: Path, tmp_path: Path) -> None:
    (strangers / "model.safetensors").rename(strangers / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"got pytorch_model.bin, a pickle, which runs code"):
        import_hf(strangers, tmp_path / "ours")
    (strangers / "pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"must hold model.safetensors"):
        import_hf(strangers, tmp_path / "ours")
    with pytest.raises(FileNotFoundError, match=r"config.json"):
        import_hf(tmp_path / "nothing", tmp_path / "ours")


def test_numbers_that_are_none_leave_nothing_behind(strangers: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(strangers / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, strangers / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.norm.weight must hold finite numbers only"):
        import_hf(strangers, tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize(
    ("template", "name", "system", "note"),
    [
        ("{{ x }}", "rslm", None, "none that is known and templates are not executed"),
        ("{{ ''.__class__.__mro__ }}" * 1000, "rslm", None, "none that is known"),
        ("'<|im_start|>' '<|im_end|>'", "rslm", None, "none that is known"),
    ],
)
def test_templates_are_looked_at(template, name, system, note, strangers, tmp_path: Path) -> None:
    (strangers / "chat_template.jinja").write_text(template)
    imported = import_hf(strangers, tmp_path / "ours")
    assert (imported.config.chat_format, imported.config.default_system) == (name, system)
    assert note in imported.notes[0]


def test_chatml_is_recognised_by_its_tokens(rust_tokenizer, tmp_path: Path) -> None:
    tokenizer = chatml_tokenizer(rust_tokenizer())
    out = exported(model_with(tokenizer, n_layers=1), tokenizer, tmp_path / "theirs")
    (out / "chat_template.jinja").unlink()
    template = "{{ '<|im_start|>system\\nBe good.<|im_end|>\\n' }}{{ '<|im_start|>' + x }}"
    texts = read(out / "tokenizer_config.json")
    for written in (template, [{"name": "default", "template": template}]):
        (out / "tokenizer_config.json").write_text(json.dumps(texts | {"chat_template": written}))
        name = f"ours{type(written).__name__}"
        imported = import_hf(out, tmp_path / name)
        assert imported.config.chat_format == "chatml"
        assert imported.config.default_system == "Be good."
        assert "taken for plain chatml" in imported.notes[0]


def test_a_normal_form_is_left_out_with_a_note(strangers: Path, tmp_path: Path) -> None:
    path = strangers / "tokenizer.json"
    path.write_text(json.dumps(read(path) | {"normalizer": {"type": "NFC"}}))
    assert "normal form NFC" in import_hf(strangers, tmp_path / "ours").notes[0]


def test_digits_are_split_as_theirs_are(strangers: Path, tmp_path: Path) -> None:
    """SmolLM's tokenizer: each digit alone, GPT-2's expression between; some bytes lack tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    path = strangers / "tokenizer.json"
    record = read(path)
    steps = [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ]
    record["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    path.write_text(json.dumps(record))
    theirs = tokenizers.Tokenizer.from_file(str(path))
    with warnings.catch_warnings(action="ignore"):  # The pattern is a slow one.
        import_hf(strangers, tmp_path / "ours")
        _, ours = load_run(tmp_path / "ours", device="cpu")
    draw = random.Random(0)
    alphabet = "aA's dD \n\r\t\u00a0\u3000123٣½Ⅷ²世é\u0301-=._"
    for _ in range(3000):
        text = "".join(draw.choices(alphabet, k=draw.randint(1, 30)))
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, repr(text)
