from pathlib import Path

import pytest
import torch

from rslm.architecture import Parametrisation, TransformerConfig
from rslm.commands.coord_check import CoordCheckOptions, coord_check
from rslm.coord_check import (
    ACTIVATIONS,
    Coordinates,
    coordinate_sizes,
    draw,
    growth,
    sized,
)

CONFIG = TransformerConfig(
    vocab_size=64, context_length=16, d_model=32, n_layers=2, n_heads=4, d_head=8
)


def sizes_of(parametrisation: Parametrisation, **options: object) -> list[Coordinates]:
    defaults = {"axis": "width", "sizes": (32, 64), "n_steps": 4, "n_seeds": 1}
    return coordinate_sizes(CONFIG, parametrisation=parametrisation, **(defaults | options))


def test_sized_keeps_heads_and_names_the_base():
    wide = sized(CONFIG, "width", 64, 32, "completep")
    assert (wide.d_model, wide.n_heads, wide.resolved_d_head, wide.base_d_model) == (64, 8, 8, 32)
    deep = sized(CONFIG, "depth", 6, 2, "completep")
    assert (deep.d_model, deep.n_layers, deep.base_n_layers) == (32, 6, 2)
    assert sized(CONFIG, "depth", 6, 2, "standard").base_n_layers is None
    with pytest.raises(ValueError, match="widths must be multiples of d_head 8, got 20"):
        sized(CONFIG, "width", 20, 32, "mup")


def test_growth_is_the_power_of_a_power_law():
    results = [
        Coordinates(parametrisation="mup", size=n, sizes={"logits": [1.0, 3 * n**0.7]})
        for n in (2, 8, 32)
    ]
    assert growth(results, "logits") == pytest.approx(0.7)
    assert growth(results, "logits", 0) == pytest.approx(0)
    zero = Coordinates(parametrisation="mup", size=64, sizes={"logits": [0.0]})
    assert growth([*results, zero], "logits") != growth([*results, zero], "logits")  # NaN


def test_first_sizes_are_those_of_an_untrained_model():
    from rslm.model import Transformer

    first = sizes_of("standard", sizes=(32, 64))[0]
    model = Transformer(
        sized(CONFIG, "width", 32, 32, "standard"), generator=torch.Generator().manual_seed(0)
    )
    ids = torch.randint(64, (4, 17), generator=torch.Generator().manual_seed(2**32))[:, :-1]
    assert first.sizes["logits"][0] == pytest.approx(model(ids).abs().mean().item())
    embedded = model.token_embeddings(ids).abs().mean().item()
    assert first.sizes["embedding"][0] == pytest.approx(embedded)
    assert all(len(first.sizes[name]) == 5 for name in ACTIVATIONS)


def test_mup_keeps_activations_where_standard_lets_them_grow():
    # From 64 on: narrower models feel the randomness of single heads.
    options = {"sizes": (64, 128, 256, 512)}
    standard, mup = sizes_of("standard", **options), sizes_of("mup", **options)
    assert growth(standard, "residual") > 0.3
    # At the start muP's logits fall with the root of the width, which updates make up for.
    assert growth(mup, "logits", 0) < -0.3
    assert -0.3 < growth(mup, "logits") < 0.1 < growth(standard, "logits")
    for name in ("embedding", "attention", "feed_forward", "residual"):
        assert abs(growth(mup, name)) < 0.1, name


def test_completep_keeps_the_residual_stream_over_depth():
    options = {"axis": "depth", "sizes": (2, 4, 8, 16)}
    standard, completep = sizes_of("standard", **options), sizes_of("completep", **options)
    assert abs(growth(completep, "residual")) < 0.25
    # A sum of independent branches grows with the root of their number, but for its start.
    assert growth(standard, "residual") > 0.4


def test_measurements_repeat():
    assert sizes_of("mup", sizes=(32, 64)) == sizes_of("mup", sizes=(32, 64))


def test_command_prints_a_table_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "check.png"
    options = CoordCheckOptions(
        widths=(16, 32),
        d_head=8,
        parametrisations=("standard", "mup"),
        context_length=8,
        n_steps=1,
        n_seeds=1,
        out=path,
    )
    coord_check(options)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["activation", "width", "16", "width", "32", "power"]
    assert len(lines) == 1 + 2 * len(ACTIVATIONS)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_picture_has_a_title_for_each_activation(tmp_path: Path):
    results = sizes_of("mup", sizes=(32, 64), n_steps=1)
    draw(results, "width", tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (64,)}, "at least 2 different sizes"),
        ({"depths": (2, 2)}, "at least 2 different sizes"),
        ({"parametrisations": ()}, "parametrisations must name at least one"),
        ({"n_steps": 0}, "n_steps must be at least 1, got 0"),
    ],
)
def test_options_that_compare_nothing_are_refused(options: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        CoordCheckOptions(**options)
