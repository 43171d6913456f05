import math

import pytest
import torch

from rslm.schedules import cosine_schedule, linear_schedule, wsd_s_schedule, wsd_schedule


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.0),
        (50, 3e-4),
        (100, 6e-4),
        (325, 5.20919e-4),
        (550, 3.3e-4),
        (1000, 6e-5),
        (2000, 6e-5),
    ],
)
def test_cosine_schedule_equals_vector(step: int, expected: float):
    rate = cosine_schedule(
        step, learning_rate=6e-4, min_learning_rate=6e-5, warmup_steps=100, decay_steps=1000
    )
    assert rate == pytest.approx(expected, rel=1e-6)


def test_cosine_schedule_without_warmup_or_decay():
    options = {"learning_rate": 1.0, "min_learning_rate": 0.1}
    assert cosine_schedule(0, warmup_steps=0, decay_steps=10, **options) == 1.0
    assert cosine_schedule(0, warmup_steps=0, decay_steps=0, **options) == 0.1
    assert cosine_schedule(4, warmup_steps=5, decay_steps=5, **options) == 0.8
    with pytest.raises(ValueError, match="got decay_steps 4 and warmup_steps 5"):
        cosine_schedule(0, warmup_steps=5, decay_steps=4, **options)


def test_cosine_schedule_equals_torch():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=3e-3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40, eta_min=1e-4)
    for step in range(41):
        rate = cosine_schedule(
            step, learning_rate=3e-3, min_learning_rate=1e-4, warmup_steps=0, decay_steps=40
        )
        assert rate == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.0), (5, 0.5), (10, 1.0), (20, 0.9), (60, 0.5), (109, 0.01), (110, 0.0), (500, 0.0)],
)
def test_linear_schedule_falls_to_zero(step: int, expected: float):
    rate = linear_schedule(step, learning_rate=1.0, warmup_steps=10, decay_steps=110)
    assert rate == pytest.approx(expected, abs=1e-12)


def test_linear_schedule_stops_at_a_minimum_and_equals_torch():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=2.0)
    theirs = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.25, total_iters=16)
    for step in range(20):
        options = {"learning_rate": 2.0, "min_learning_rate": 0.5}
        rate = linear_schedule(step, **options, warmup_steps=0, decay_steps=16)
        assert rate == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        theirs.step()
    with pytest.raises(ValueError, match="got decay_steps 4 and warmup_steps 5"):
        linear_schedule(0, learning_rate=1.0, warmup_steps=5, decay_steps=4)


@pytest.mark.parametrize(
    ("step", "expected"),
    # modded-nanogpt's track 3: no warm-up, the last 70 % of 3250 steps in a line to 0.
    [(0, 0.025), (974, 0.025), (975, 0.025), (976, 0.025 * 2274 / 2275), (3249, 0.025 / 2275)],
)
def test_wsd_schedule_equals_the_trapezoid_of_track_3(step: int, expected: float):
    options = {"learning_rate": 0.025, "min_learning_rate": 0.0, "warmup_steps": 0}
    rate = wsd_schedule(step, **options, decay_steps=3250, cooldown_fraction=0.7)
    assert rate == pytest.approx(expected, rel=1e-9)


def test_wsd_schedule_rises_stays_and_falls():
    options = {"learning_rate": 1.0, "min_learning_rate": 0.2, "warmup_steps": 4}
    rates = [
        wsd_schedule(step, **options, decay_steps=20, cooldown_fraction=0.25) for step in range(23)
    ]
    assert rates[:5] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert rates[4:16] == [1.0] * 12
    assert rates[15:] == pytest.approx([1.0, 0.84, 0.68, 0.52, 0.36, 0.2, 0.2, 0.2])
    assert wsd_schedule(20, **options, decay_steps=20, cooldown_fraction=0.0) == 0.2
    assert wsd_schedule(19, **options, decay_steps=20, cooldown_fraction=0.0) == 1.0


def test_wsd_s_schedule_falls_several_times_and_returns_to_the_peak():
    options = {"learning_rate": 1.0, "min_learning_rate": 0.0, "warmup_steps": 2}
    rates = [
        wsd_s_schedule(step, **options, decay_ends=(8, 16, 32), cooldown_fraction=0.5)
        for step in range(35)
    ]
    assert rates[:9] == [0.0, 0.5, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    assert rates[9:17] == [1.0] * 4 + [0.75, 0.5, 0.25, 0.0]
    assert rates[17:25] == [1.0] * 8
    assert rates[24:33] == [1 - i / 8 for i in range(9)]
    assert rates[33:] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decay_ends": (8, 8)}, r"decay_ends must rise from above 0, got \(8, 8\)"),
        ({"decay_ends": ()}, r"decay_ends must rise from above 0, got \(\)"),
        ({"decay_ends": (0, 8)}, r"decay_ends must rise from above 0, got \(0, 8\)"),
        ({"cooldown_fraction": 1.5}, r"cooldown_fraction must lie in \[0, 1\], got 1\.5"),
        ({"cooldown_fraction": math.nan}, r"cooldown_fraction must lie in \[0, 1\], got nan"),
        ({"warmup_steps": 7}, "between 0 and the beginning of the cooldown, 6, got 7"),
        ({"warmup_steps": -1}, "between 0 and the beginning of the cooldown, 6, got -1"),
    ],
)
def test_wsd_s_schedule_refuses_what_cannot_be(changes: dict[str, object], message: str):
    options = {"warmup_steps": 0, "decay_ends": (8,), "cooldown_fraction": 0.25} | changes
    with pytest.raises(ValueError, match=message):
        wsd_s_schedule(0, learning_rate=1.0, min_learning_rate=0.0, **options)
