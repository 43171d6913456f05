import pytest
import torch

from rslm.architecture import TransformerConfig
from rslm.infer.sampler import generate
from rslm.kv_cache import KeyValueCache, LayerCache
from rslm.model import Transformer

CONFIG = TransformerConfig(
    vocab_size=40, context_length=16, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=16
)


def test_layer_cache_returns_what_was_appended():
    cache = LayerCache(7)
    k, v = torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 5)
    for first, last in ((0, 3), (3, 4), (4, 7)):
        keys, values = cache.append(k[:, :, first:last], v[:, :, first:last])
        assert torch.equal(keys, k[:, :, :last])
        assert torch.equal(values, v[:, :, :last])
    with pytest.raises(ValueError, match="at most 7 positions, got 8"):
        cache.append(k[:, :, :1], v[:, :, :1])


@pytest.mark.parametrize("window", [1, 2, 3, 9])
def test_layer_cache_with_a_window_leaves_out_what_no_new_query_sees(window: int):
    cache = LayerCache(9)
    k = torch.arange(9.0)[:, None]
    for first, last in ((0, 4), (4, 5), (5, 9)):
        keys, values = cache.append(k[first:last], k[first:last], window=window)
        assert keys[:, 0].tolist() == list(range(max(0, first - window + 1), last))
        assert torch.equal(keys, values)


def test_cache_counts_positions_and_holds_heads_once():
    model = Transformer(CONFIG, generator=torch.Generator().manual_seed(0))
    cache = KeyValueCache(CONFIG)
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]), cache=cache)
        model(torch.tensor([[4]]), cache=cache)
    assert cache.length == 4
    assert cache.next_positions(2, torch.device("cpu")).tolist() == [4, 5]
    keys, _ = cache.layers[0].append(torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 4))
    assert keys.shape == (1, 2, 5, 4)


def test_a_sequence_that_outgrows_the_context_with_its_cache_is_refused():
    model = Transformer(CONFIG)
    cache = KeyValueCache(CONFIG)
    with torch.no_grad():
        model(torch.zeros(1, 10, dtype=torch.long), cache=cache)
        with pytest.raises(ValueError, match=r"at most 16 tokens \(context_length\), got 17"):
            model(torch.zeros(1, 7, dtype=torch.long), cache=cache)
    assert cache.length == 10


def test_generation_reads_each_token_once_until_the_context_is_full(
    monkeypatch: pytest.MonkeyPatch,
):
    model = Transformer(CONFIG, generator=torch.Generator().manual_seed(0))
    n_read: list[int] = []
    hidden_states = model.hidden_states

    def counting(token_ids: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
        n_read.append(token_ids.shape[-1])
        return hidden_states(token_ids, *args, **options)

    monkeypatch.setattr(model, "hidden_states", counting)
    ids = list(generate(model, [1, 2, 3], max_new_tokens=18, temperature=0))
    assert n_read == [3] + [1] * 13 + [16] * 4
    expected = [1, 2, 3]
    for _ in range(18):
        with torch.no_grad():
            expected.append(model(torch.tensor([expected[-16:]]))[0, -1].argmax().item())
    assert ids == expected[3:]


def test_a_prompt_longer_than_the_context_is_seen_from_its_end():
    model = Transformer(CONFIG, generator=torch.Generator().manual_seed(0))
    prompt = [i % 40 for i in range(23)]
    long = list(generate(model, prompt, max_new_tokens=5, temperature=0))
    assert long == list(generate(model, prompt[-16:], max_new_tokens=5, temperature=0))
