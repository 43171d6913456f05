import re

import pytest

from rslm.group_rules import GroupRule, assign_groups, parse_group_rule


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lm_head:", GroupRule(pattern="lm_head")),
        ("^a$ : weight_decay=0", GroupRule(pattern="^a$", weight_decay=0.0)),
        (
            "(?:q|k)_proj: algorithm=muon  learning_rate_scale=2.5",
            GroupRule(pattern="(?:q|k)_proj", algorithm="muon", learning_rate_scale=2.5),
        ),
        (
            "  a b: beta1=.8 beta2=.95 epsilon=1e-10 ",
            GroupRule(pattern="a b", beta1=0.8, beta2=0.95, epsilon=1e-10),
        ),
    ],
)
def test_parse_group_rule_reads_pattern_and_options(text: str, expected: GroupRule):
    assert parse_group_rule(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lm_head", "a group must be written as PATTERN: OPTION=VALUE ..., got 'lm_head'"),
        ("lm_head: 0.5", "a group must be written as PATTERN"),
        (": weight_decay=0", "a group must be written as PATTERN"),
        ("a: wd=0", "unknown option wd; there are algorithm, beta1, beta2, epsilon, learning"),
        ("a: pattern=b", "unknown option pattern"),
        ("a: weight_decay=x", "weight_decay must be a number in the group 'a: weight_decay=x'"),
        ("a: beta1=.1 beta1=.2", "gives beta1 twice"),
        ("a: beta1=1", "beta1 must be in [0, 1), got 1.0"),
        ("a: weight_decay=-1", "weight_decay must be at least 0 and finite, got -1.0"),
        ("a: learning_rate_scale=nan", "learning_rate_scale must be at least 0 and finite"),
        ("a: algorithm=sgd", "algorithm must be adamw or muon, got 'sgd'"),
        ("a: algorithm=muon epsilon=1", "epsilon is AdamW's; the rule 'a' says muon"),
        ("(a: beta1=.1", "pattern must be a regular expression, got '(a'"),
    ],
)
def test_parse_group_rule_refuses_what_it_cannot_mean(text: str, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_group_rule(text)


def test_assign_groups_puts_every_name_in_one_group():
    names = ["embed", "layers.0.q", "layers.0.ln", "layers.1.q", "head"]
    rules = [GroupRule(pattern=p) for p in (r"\.q$", "embed|head", "ln")]
    assert assign_groups(names, rules) == [
        ["layers.0.q", "layers.1.q"],
        ["embed", "head"],
        ["layers.0.ln"],
    ]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["a"], "every parameter must be in exactly one group: b is matched by none"),
        (["a", "a|b"], "in exactly one group: a is matched by 'a' and 'a|b'"),
        (["a|b", "c"], "the group 'c' matches no parameter"),
        ([], "a is matched by none"),
    ],
)
def test_assign_groups_refuses_gaps_and_overlaps(patterns: list[str], message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        assign_groups(["a", "b"], [GroupRule(pattern=pattern) for pattern in patterns])
