import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rslm.post.rows import make_rows

ids = st.lists(st.integers(0, 6), max_size=5)


@given(
    st.lists(st.tuples(ids.filter(bool), ids), min_size=1, max_size=5).filter(
        lambda pairs: any(len(p) + len(c) > 1 for p, c in pairs)
    ),
    st.integers(0, 6),
)
def test_rows_are_shifted_pairs_whose_mask_goes_by_position(pairs, pad_id: int):
    prompts, completions = zip(*pairs, strict=True)
    rows = make_rows(prompts, completions, pad_id=pad_id)
    width = max(len(p) + len(c) for p, c in pairs) - 1
    assert rows.input_ids.shape == rows.labels.shape == rows.mask.shape == (len(pairs), width)
    assert rows.n_trained == list(map(len, completions))
    for i, (prompt, completion) in enumerate(pairs):
        whole = [*prompt, *completion] + [pad_id] * (width + 1 - len(prompt) - len(completion))
        assert rows.input_ids[i].tolist() == whole[:-1]
        assert rows.labels[i].tolist() == whole[1:]
        trained = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
        assert rows.mask[i].nonzero()[:, 0].tolist() == list(trained)


def test_only_the_last_column_is_cut():
    rows = make_rows([[1, 2], [3]], [[4, 5], [6]], pad_id=9)
    assert rows.input_ids.tolist() == [[1, 2, 4], [3, 6, 9]]
    assert rows.labels.tolist() == [[2, 4, 5], [6, 9, 9]]
    assert rows.mask.tolist() == [[False, True, True], [True, False, False]]


def test_train_masks_leave_out_what_was_not_sampled():
    rows = make_rows([[1], [1]], [[4, 5, 6], [7]], train_masks=[[True, False, True], [False]])
    assert rows.mask.tolist() == [[True, False, True], [False, False, False]]
    assert rows.n_trained == [2, 0]


@pytest.mark.parametrize(
    ("prompts", "completions", "masks", "said"),
    [
        ([], [], None, "at least one, got 0 and 0"),
        ([[1]], [[1], [2]], None, "equally many and at least one, got 1 and 2"),
        ([[1], []], [[1], [2]], None, "a prompt must hold at least one id"),
        ([[1], [2]], [[], []], None, "must hold an id at least, got none in any row"),
        ([[1]], [[1, 2]], [[True]], "a mark for each id"),
        ([[1]], [[1, 2]], [[True, True], [True]], "a mark for each id"),
    ],
)
def test_what_makes_no_rows_is_refused(prompts, completions, masks, said: str):
    with pytest.raises(ValueError, match=said):
        make_rows(prompts, completions, train_masks=masks)


def test_tensors_are_of_ids_and_truths():
    rows = make_rows([[1, 2]], [[]])
    assert rows.input_ids.shape == (1, 1)
    assert (rows.input_ids.dtype, rows.mask.dtype) == (torch.long, torch.bool)
