import json
import re
from datetime import date
from fractions import Fraction
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rslm.evaluate.arithmetic import evaluate, parse
from rslm.evaluate.drawn import is_for_test, keyed_numbers
from rslm.evaluate.procedural import Arithmetic, Countdown, Problem
from rslm.evaluate.task_chats import write_chats, wrong_answer
from rslm.evaluate.tasks import PROCEDURAL, Example, Task, open_task

SPECS = [
    *PROCEDURAL,
    "arithmetic:max=9999,scratchpad=true",
    "arithmetic:operations=-,scratchpad=true",
    "countdown:numbers=5,use_all=false",
    "sort:items=2,max=4",
    "count_letters:letters=3,alphabet=2",
    "reverse:letters=2",
]


def key_of(task: Task, example: Example) -> str:
    """What two prompts have in common that are the same problem."""
    words = example.prompt.split()
    match task.name:
        case "arithmetic":
            a, sign, b = words[:3]
            low, high = sorted((a, b), key=int)
            return f"{a}-{b}" if sign == "-" else f"{low}{sign}{high}"
        case "countdown":
            return f"{sorted(example.numbers)} {example.gold}"
        case "reverse":
            return min(words[-1], words[-1][::-1])
        case "sort":
            return str(example.gold)
        case "units":
            known = sorted([words[1], words[3]])
            return f"{known} {min(int(words[0]), int(str(example.gold)))}"
    return example.prompt


@pytest.mark.parametrize("spec", SPECS)
def test_no_problem_is_in_train_and_test_whatever_the_seeds(spec: str):
    tasks = [open_task(f"{spec}{',' if ':' in spec else ':'}test=60", seed=s) for s in (0, 1)]
    train = {key_of(task, example) for task in tasks for example in task.train[:400]}
    test = {key_of(task, example) for task in tasks for example in task.test}
    assert train
    assert test
    assert not train & test


@pytest.mark.parametrize("spec", SPECS)
def test_worked_answers_are_right_and_prompts_are_not(spec: str):
    task = open_task(f"{spec}{',' if ':' in spec else ':'}test=60")
    for example in [*task.test, *task.train[:200]]:
        assert task.grade(example.answer, example).reward == 1, example
        if example.prompt.split()[-1] != example.gold:
            assert task.grade(example.prompt, example).reward == 0, example


@pytest.mark.parametrize("spec", SPECS)
def test_an_example_is_a_function_of_seed_and_index(spec: str):
    short = f"{spec}{',' if ':' in spec else ':'}test=20"
    task, again, other = open_task(short), open_task(short), open_task(short, seed=1)
    assert again.train[1234] == task.train[1234]  # Asked for alone, and out of order.
    assert again.train[7] == task.train[7]
    assert task.train[5:8] == tuple(task.train[i] for i in (5, 6, 7))
    assert task.train[-1] == task.train[len(task.train) - 1]
    assert task.test == again.test
    assert task.train[:50] != other.train[:50]
    assert [example.example_id for example in task.train[:3]] == [0, 1, 2]
    prompts = [example.prompt for example in task.test]
    assert len(prompts) == len(set(prompts))


def test_what_is_drawn_stays_the_same_for_ever():
    # A seeded run trains on these: another draw is another experiment.
    prompts = [open_task(f"{name}:test=1", seed=3).train[41].prompt for name in PROCEDURAL]
    assert prompts == [
        "7 - 26 =",
        "Use each of 8, 3, 7 once to make 4.",
        "Reverse pyhai",
        "Sort 27 56 10 51 80",
        "Count a in dcbbdddc",
        "36 weeks in days =",
        "28 days after 2087-06-07 =",
    ]


def test_train_is_lazy_and_as_long_as_asked():
    task = open_task("arithmetic:train=2000000000")
    assert len(task.train) == 2_000_000_000
    assert task.train[1_999_999_999].example_id == 1_999_999_999
    with pytest.raises(IndexError):
        task.train[2_000_000_000]


def test_the_test_ends_where_there_is_nothing_new():
    task = open_task("arithmetic:max=5,operations=+")
    pairs = {frozenset(example.prompt.split()[:3:2]) for example in task.test}
    assert 1 <= len(pairs) <= 20
    assert 36 * 0.05 <= len(task.test) <= 36 * 0.5


@pytest.mark.parametrize("name", PROCEDURAL)
def test_problems_are_what_they_say(name: str):
    for example in open_task(name).train[:100]:
        words, gold = example.prompt.split(), str(example.gold)
        if name == "arithmetic":
            assert str(evaluate(parse(example.prompt.removesuffix("=")))) == gold
        elif name == "reverse":
            assert words[1] == gold[::-1]
        elif name == "sort":
            assert list(map(str, sorted(map(int, words[1:])))) == gold.split()
        elif name == "count_letters":
            assert sum(letter == words[1] for letter in words[3]) == int(gold)
        elif name == "dates":
            days = date.fromisoformat(gold) - date.fromisoformat(words[3])
            assert days.days == int(words[0])
        elif name == "countdown":
            assert example.numbers == tuple(map(int, re.findall(r"\d+", example.prompt)[:-1]))


def test_units_agree_with_each_other():
    # Metres and seconds as the oracle, by way of which any two units of a kind are compared.
    sizes: dict[str, int | Fraction] = {"km": 1000, "m": 1, "kg": 1, "l": 1, "t": 1000}
    sizes |= {"weeks": 604800, "days": 86400, "h": 3600, "min": 60, "s": 1}
    sizes |= {"cm": Fraction(1, 100)} | dict.fromkeys(("mm", "g", "ml"), Fraction(1, 1000))
    for example in open_task("units").train[:300]:
        n, unit, _, other, _ = example.prompt.split()
        assert int(n) * sizes[unit] == int(str(example.gold)) * sizes[other]


@given(st.integers(0, 99_999), st.integers(0, 99_999), st.sampled_from("+-*"))
def test_every_step_of_a_scratchpad_is_true(a: int, b: int, operation: str):
    numbers = iter([0, a, b])
    problem = Arithmetic(max=99_999, operations=operation, scratchpad=True).draw(
        lambda _: next(numbers)
    )
    *steps, last = problem.answer.split("\n")
    assert steps
    for step in steps:
        left, right = step.split("=")
        assert evaluate(parse(left)) == evaluate(parse(right)), step
    assert last == f"#### {problem.gold}"
    assert evaluate(parse(f"{a}{operation}{b}")) == int(problem.gold)


@given(st.integers(0, 9999), st.integers(0, 9999))
def test_columns_of_a_sum_and_a_difference_give_the_digits(a: int, b: int):
    for operation, high, low in (("+", a, b), ("-", max(a, b), min(a, b))):
        numbers = iter([0, high, low])
        task = Arithmetic(max=9999, operations=operation, scratchpad=True)
        problem = task.draw(lambda _, numbers=numbers: next(numbers))
        columns = [int(step.split("=")[1]) for step in problem.answer.split("\n")[:-1]]
        assert sum(column % 10 * 10**i for i, column in enumerate(columns)) == (
            int(problem.gold) % 10 ** len(columns)
        )


@given(st.integers(0, 10**9))
def test_countdown_has_a_solution_and_its_reference_is_one(key: int):
    problem = Countdown(numbers=4).draw(keyed_numbers(f"{key}"))
    if problem is not None:
        assert evaluate(parse(problem.answer, implicit=False)) == int(problem.gold)
        used = sorted(map(int, re.findall(r"\d+", problem.answer)))
        assert used == sorted(problem.numbers)


def test_countdown_is_not_given_away_by_its_shape():
    """Every order of the numbers and every operation comes up."""
    examples = open_task("countdown:test=1").train[:1000]
    answers = [example.answer or "" for example in examples]
    assert {sign for answer in answers for sign in answer if sign in "+-*/"} == set("+-*/")
    orders = set()
    for example in examples:
        order = list(map(int, re.findall(r"\d+", example.answer or "")))
        if len(set(order)) == 3:
            orders.add(tuple(example.numbers.index(n) for n in order))
    assert orders == set(permutations(range(3)))


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("algebra", "task must be one of arithmetic, .* or a path of .jsonl, got 'algebra'"),
        ("", "task must be one of"),
        ("arithmetic:min=3", "options of arithmetic are max, .*, answer, got 'min'"),
        ("arithmetic:max", "must be written once each as name=value, got 'max'"),
        ("arithmetic:max=3,max=4", "must be written once each as name=value, got 'max=4'"),
        ("arithmetic:max=-1", "max must be a whole number, got '-1'"),
        ("arithmetic:max=٣", "max must be a whole number"),
        ("arithmetic:max=" + "9" * 5000, "max must be a whole number"),
        ("arithmetic:max=0", "max must be between 1 and 1000000000, got 0"),
        ("arithmetic:operations=/", r"operations must be some of \+ - \*, got '/'"),
        ("arithmetic:operations=", r"operations must be some of \+ - \*, got ''"),
        ("arithmetic:scratchpad=yes", "scratchpad must be true or false, got 'yes'"),
        ("arithmetic:train=0", "train must be between 1 and"),
        ("arithmetic:answer=loud", "answer format must be one of whole, .*, got 'loud'"),
        ("countdown:numbers=7", "numbers must be between 2 and 6, got 7"),
        ("reverse:letters=1", "letters must be between 2 and 60, got 1"),
        ("gsm8k", "gsm8k needs data, a folder or archive that holds it, got none"),
        ("gsm8k:max=3", "options of gsm8k are answer, got 'max'"),
        ("arithmetic:max=1,operations=*", "leaves too few problems to train and to test on"),
    ],
)
def test_wrong_options_are_told_in_a_sentence(spec: str, sentence: str):
    with pytest.raises(ValueError, match=sentence) as raised:
        open_task(spec)
    assert "\n" not in str(raised.value)


def test_an_answer_format_that_is_given_outranks_the_option():
    example = open_task("units").test[0]
    for task in (
        open_task("units:answer=boxed"),
        open_task("units:answer=letter", answer_format="boxed"),
    ):
        assert task.grade(f"\\boxed{{{example.gold}}}", example).reward == 1
        assert task.grade(str(example.gold), example).reason == "no answer"


def test_keyed_numbers_are_uniform_and_never_run_out():
    below = keyed_numbers("key")
    drawn = [below(7) for _ in range(7000)]
    counts = [drawn.count(i) for i in range(7)]
    assert sum(counts) == 7000
    assert max(abs(count - 1000) for count in counts) < 150  # Five standard deviations.
    assert keyed_numbers("key")(2**80) != keyed_numbers("yek")(2**80)
    assert max(keyed_numbers(f"{i}")(2**80) for i in range(50)) > 2**79


def test_one_problem_in_five_is_for_the_test():
    share = sum(is_for_test(f"{i}") for i in range(5000)) / 5000
    assert abs(share - 0.2) < 0.03


def read_chats(path: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert all([m["role"] for m in row["messages"]] == ["user", "assistant"] for row in rows)
    return [tuple(m["content"] for m in row["messages"]) for row in rows]


@pytest.mark.parametrize("spec", SPECS[:-3])
def test_chats_have_the_share_of_wrong_answers_asked_for(spec: str, tmp_path: Path):
    task = open_task(spec)
    examples = {example.prompt: example for example in task.train[:100]}
    task = Task(task.name, task.train[:100], task.test, task.grade)
    n_right, n_wrong = write_chats(task, tmp_path / "a.jsonl", 100, share_wrong=0.4)
    chats = read_chats(tmp_path / "a.jsonl")
    assert n_right + n_wrong == len(chats) == 100
    assert 20 <= n_wrong <= 60
    graded = [task.grade(answer, examples[prompt]) for prompt, answer in chats]
    assert [grade.reason for grade in graded].count("right") == n_right
    assert [grade.reason for grade in graded].count("wrong") == n_wrong


def test_chats_are_right_by_default_and_depend_on_the_seed_alone(tmp_path: Path):
    task = open_task("countdown")
    a, b, c = (tmp_path / name for name in "abc")
    assert write_chats(task, a, 30) == (30, 0)
    assert write_chats(task, b, 30, share_wrong=1.0) == (0, 30)
    assert [prompt for prompt, _ in read_chats(a)] == [prompt for prompt, _ in read_chats(b)]
    write_chats(task, c, 30, seed=1)
    assert read_chats(a) != read_chats(c)
    write_chats(open_task("countdown"), c, 20)
    assert a.read_text().startswith(c.read_text())


def test_chats_that_cannot_be_are_refused(tmp_path: Path):
    task, path = open_task("arithmetic:train=10"), tmp_path / "a.jsonl"
    for n, share, sentence in [
        (11, 0.0, "n must be between 1 and 10, got 11"),
        (0, 0.0, "n must be between 1 and 10, got 0"),
        (5, 1.5, "share_wrong must lie between 0 and 1, got 1.5"),
        (5, float("nan"), "share_wrong must lie between 0 and 1, got nan"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            write_chats(task, path, n, share_wrong=share)
    bare = Task("bare", (Example(0, "p", "g"),), (), task.grade)
    with pytest.raises(ValueError, match="examples of bare must have worked answers"):
        write_chats(bare, path, 1)
    with pytest.raises(ValueError, match="must have a wrong variant, and '!' none"):
        wrong_answer(task, Example(0, "p", "!", "!"), keyed_numbers("key"))
    assert not path.exists()


def test_a_problem_that_is_drawn_wrongly_is_seen(monkeypatch: pytest.MonkeyPatch):
    """The disjointness is that of `key`: a key that forgets the order of operands is caught."""
    original = Arithmetic.draw

    def draw(self: Arithmetic, below: object) -> Problem:
        problem = original(self, below)
        return Problem(problem.prompt, problem.gold, problem.answer, problem.prompt)

    monkeypatch.setattr(Arithmetic, "draw", draw)
    with pytest.raises(AssertionError):
        test_no_problem_is_in_train_and_test_whatever_the_seeds("arithmetic")
