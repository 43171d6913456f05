"""Masks of personal data: the published patterns' own finds, borders, and nothing left behind."""

import gzip
import ipaddress
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from timing import seconds

from rslm.data import pii
from rslm.data.pii import Preset, mask_emails, mask_ips, mask_phone_numbers, mask_pii

PRESETS: tuple[Preset, ...] = ("course", "dolma", "fineweb")
# The published patterns, as oracles; they are quadratic, or worse, where ours are linear.
BYTE = "(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?)"
DOLMA_EMAIL = re.compile(r"[.\s@,?!;:)(]*([^\s@]+@[^\s@,?!;:)(]+?)[.\s@,?!;:)(]?[\s\n\r]")
DOLMA_PHONE = re.compile(r"\s+\(?([0-9]{3})\)?[-\. ]*([0-9]{3})[-. ]?([0-9]{4})")
ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
FINEWEB_EMAIL = re.compile(
    rf"\b{ATOM}(?:\.{ATOM})*@(?:(?:{LABEL}\.)+{LABEL}"
    rf"|\[(?:{BYTE}\.){{3}}(?:{BYTE}|[A-Za-z0-9-]*[A-Za-z0-9]:)\])"
)
Span = tuple[int, int]


def dolma_emails(text: str) -> Iterator[Span]:
    for line in re.finditer(r"[^\n]*\n|[^\n]+", text):
        for match in DOLMA_EMAIL.finditer(line.group()):
            local, domain = match.group(1).split("@")
            if local != "(" and "." in domain:
                yield match.start() + line.start(), match.end() + line.start()


def dolma_phones(text: str) -> Iterator[Span]:
    for line in re.finditer(r"[^\n]*\n|[^\n]+", text):
        for match in DOLMA_PHONE.finditer(line.group()):
            yield match.start() + line.start(), match.end() + line.start()


mail_like = st.text("ab.@ \n(,é-1!", max_size=24)
piece = st.sampled_from(
    ["123", "4567", "(", ")", " ", "-", ".", "\n", "x", "+1", "255", "@", "a.bc"]
)
pieces = st.lists(piece, max_size=20).map("".join)


@given(mail_like)
def test_dolma_emails_are_those_of_the_published_pattern(text: str):
    # The published pattern takes ".@. " for an address or not by what stands before it.
    if not re.search(r"@\.+\s", text):
        assert list(pii.find_emails_dolma(text)) == list(dolma_emails(text))


@given(pieces)
def test_dolma_phones_are_those_of_the_published_pattern(text: str):
    assert list(pii.find_phones_dolma(text)) == list(dolma_phones(text))


@given(mail_like)
def test_fineweb_emails_are_those_of_the_published_pattern(text: str):
    found = list(pii.find_emails_fineweb(text))
    assert found == [match.span() for match in FINEWEB_EMAIL.finditer(text)]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to test@gmail.com, please", "write to |||EMAIL_ADDRESS|||, please"),
        ("j.doe+x@mail.example.co.uk", "|||EMAIL_ADDRESS|||"),
        ("The end is a@b.com.", "The end is |||EMAIL_ADDRESS|||."),
        ("<a_b%c-d@x-y.org>", "<|||EMAIL_ADDRESS|||>"),
        ("...a@b.com", "...|||EMAIL_ADDRESS|||"),
        ("a@b.com@c.de", "|||EMAIL_ADDRESS|||@c.de"),
        ("邮箱foo@bar.com", "邮箱|||EMAIL_ADDRESS|||"),
        ("|||EMAIL_ADDRESS||| a@b.com", "|||EMAIL_ADDRESS||| |||EMAIL_ADDRESS|||"),
    ],
)
def test_mask_emails_takes_the_address_only(text: str, masked: str):
    assert mask_emails(text) == (masked, 1)


@pytest.mark.parametrize("text", ["", "@", "a@b", "a@b.c", "@b.com", "a@.com", "[email protected]"])
def test_mask_emails_leaves_what_is_no_address(text: str):
    assert mask_emails(text) == (text, 0)


@pytest.mark.parametrize(
    "number",
    [
        *("2831823829", "(283)-182-3829", "(283) 182 3829", "283-182-3829", "283.182.3829"),
        *("+1 283-182-3829", "+1-283-182-3829", "+12831823829", "(283)1823829", "283 1823829"),
    ],
)
def test_mask_phone_numbers_takes_us_numbers_between_borders(number: str):
    masked = "call |||PHONE_NUMBER|||, now"
    assert mask_phone_numbers(f"call {number}, now") == (masked, 1)
    assert mask_phone_numbers(f"call {number}5")[1] == 0
    assert mask_phone_numbers(f"call {number}é")[1] == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "283182382",
        "28318238290",
        "283--182-3829",
        "283-1823-829",
        "x283-182-3829",
        "_2831823829",
    ],
)
def test_mask_phone_numbers_leaves_other_numbers(text: str):
    assert mask_phone_numbers(text) == (text, 0)


@pytest.mark.parametrize("ip", ["0.0.0.0", "255.255.255.255", "192.0.2.1", "8.8.8.8", "010.1.2.3"])
def test_mask_ips_takes_four_numbers_up_to_255(ip: str):
    assert mask_ips(f"at {ip}.") == ("at |||IP_ADDRESS|||.", 1)
    assert mask_ips(f"v{ip}x") == ("v|||IP_ADDRESS|||x", 1)


@pytest.mark.parametrize("text", ["256.1.1.1", "1.1.1.256", "1.2.3", "1.2.3.", "1234.1.1.1234", ""])
def test_mask_ips_leaves_other_numbers(text: str):
    assert mask_ips(text) == (text, 0)


def test_dolma_swallows_blanks_and_marks_and_wants_a_blank_behind():
    for not_followed in ("Ask me@x.org", "Ask me@x. ", "(me@x.org)! ", "(@x.org "):
        assert mask_pii(not_followed, "dolma").counts["emails"] == 0
    masked = mask_pii("Ask, me@x.org, or call (283) 182-38299 or 1.2.3.45.", "dolma")
    text = "Ask |||EMAIL_ADDRESS||| or call |||PHONE_NUMBER||| 9 or  |||IP_ADDRESS||| ."
    assert masked.text == text
    assert masked.counts == {"emails": 1, "ips": 1, "phones": 1}


@pytest.mark.parametrize(("n_masks", "reason"), [(5, ""), (6, "pii_too_many")])
def test_dolma_drops_a_page_above_five_masks(n_masks: int, reason: str):
    assert mask_pii("1.2.3.4 " * n_masks, "dolma").drop_reason == reason
    assert mask_pii("1.2.3.4 " * n_masks, "course").drop_reason == ""


def test_fineweb_puts_examples_in_turn_and_spares_local_addresses():
    masked = mask_pii("a@b.c A@b.c a@b.c 8.8.8.8 10.0.0.1 9.9.9.9 283-182-3829", "fineweb")
    emails = "email@example.com firstname.lastname@example.org email@example.com"
    assert masked.text == f"{emails} 22.214.171.124 10.0.0.1 126.96.36.199 283-182-3829"
    assert masked.counts == {"emails": 3, "ips": 2}
    assert mask_pii("8.8.8.8", "fineweb").text == "22.214.171.124", "the turn begins anew"


@given(st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address))
def test_global_addresses_are_pythons(ip: ipaddress.IPv4Address):
    if ip not in ipaddress.IPv4Network("192.0.0.0/24"):  # Pythons differ there.
        assert pii.is_global_ip(str(ip)) == ip.is_global


@pytest.mark.parametrize("network", pii._LOCAL_NETWORKS)
def test_local_networks_end_where_pythons_do(network: ipaddress.IPv4Network):
    edges = (network[0] - 1 if int(network[0]) else network[0], network[0], network[-1])
    beyond = () if int(network[-1]) == 2**32 - 1 else (network[-1] + 1,)
    for ip in (*edges, *beyond):
        if ip not in ipaddress.IPv4Network("192.0.0.0/24"):
            assert pii.is_global_ip(str(ip)) == ip.is_global, ip


def test_an_address_with_leading_zeros_is_not_global():
    assert not pii.is_global_ip("08.8.8.8")
    assert pii.is_global_ip("192.0.0.9")


@pytest.mark.parametrize("preset", ["course", "dolma"])
@given(text=st.one_of(pieces, mail_like, st.text(max_size=30)))
def test_masks_leave_no_match(preset: Preset, text: str):
    masked = mask_pii(text, preset)
    again = mask_pii(masked.text, preset)
    assert not any(again.counts.values())
    assert again.text == masked.text


@pytest.mark.parametrize("preset", ["course", "dolma"])
@given(text=st.one_of(pieces, mail_like))
def test_counts_are_the_masks_put(preset: Preset, text: str):
    masked = mask_pii(text, preset)
    names = {"emails": "EMAIL_ADDRESS", "ips": "IP_ADDRESS", "phones": "PHONE_NUMBER"}
    assert masked.counts == {kind: masked.text.count(name) for kind, name in names.items()}


@pytest.mark.parametrize("preset", PRESETS)
@given(text=st.text(max_size=40))
def test_text_without_finds_stays_as_it_is(preset: Preset, text: str):
    masked = mask_pii(text, preset)
    assert any(masked.counts.values()) or masked.text == text


def test_masks_on_articles(test_data: Path):
    with tarfile.open(test_data / "web" / "articles.tar") as archive:
        file = archive.extractfile("articles/ground-truth.json")
        assert file is not None
        texts = [article["articleBody"] for article in json.load(file).values()]
    totals = {
        preset: sum((Counter(mask_pii(text, preset).counts) for text in texts), Counter())
        for preset in PRESETS
    }
    assert totals == {
        "course": {"emails": 4, "phones": 1},
        "dolma": {"emails": 4, "phones": 1},
        "fineweb": {"emails": 4},
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_crawl_documents_are_masked_already(test_data: Path, preset: Preset):
    packed = (test_data / "web" / "cc_en_head-0091.jsonl.gz").read_bytes()
    lines = gzip.decompress(packed).splitlines()
    for line in lines:
        text = json.loads(line)["text"]
        masked = mask_pii(text, preset)
        assert masked.text == text
        assert not any(masked.counts.values())


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match="preset must be one of course, dolma, fineweb, got 'pii'"):
        mask_pii("", "pii")  # type: ignore[arg-type]


HOSTILE = {
    "at signs": "@",
    "a word": "a",
    "words and at signs": "a@",
    "dots and at signs": "..@",
    "full stops": ".",
    "address parts": "a@b.",
    "IP parts": "1.1.1.1.",
    "digits": "1",
    "blanks": " ",
    "blanks and digits": " 123 ",
    "hyphens": "a-",
    "brackets": "(",
    "marks": "|||",
    "newlines": "a@b.co\n",
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE.keys())
def test_time_grows_as_the_text(preset: Preset, unit: str):
    small, large = ((unit * n)[:n] for n in (5_000, 40_000))
    grown = seconds(lambda: mask_pii(large, preset))
    # Eight times the text: linear takes 8 times as long, quadratic 64 times.
    assert grown < max(24 * seconds(lambda: mask_pii(small, preset)), 0.1)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_long_domain_does_not_multiply(preset: Preset):
    for text in ("a@" + "b." * 50_000, "a@" + "b-" * 50_000, "a." * 50_000 + "@b.com "):
        assert seconds(lambda text=text: mask_pii(text, preset)) < 1
