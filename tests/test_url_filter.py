"""Addresses on lists, and addresses that say what a page is."""

import random
import string
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rslm.data.url_filter import Implementation, UrlFilter, host_of

SUFFIXES = """
// ===BEGIN ICANN DOMAINS===
com
uk
co.uk
*.ck
!www.ck
公司.cn
cn
// ===END ICANN DOMAINS===
// ===BEGIN PRIVATE DOMAINS===
blogspot.com
// ===END PRIVATE DOMAINS===
""".splitlines(keepends=True)


def make_lists(implementation: Implementation) -> UrlFilter:
    return UrlFilter(
        domains=["# a comment", "", "bad.com\n", "sub.good.com", "bad.co.uk", "10.0.0.1"],
        urls=["http://fine.com/worst.html"],
        banned_words=["Banned-Word", "casino"],
        soft_banned_words=["soft", "softer", "softest"],
        banned_subwords=["hid den"],
        suffixes=SUFFIXES,
        implementation=implementation,
    )


@pytest.fixture(scope="module", params=["rust", "reference"])
def lists(request: pytest.FixtureRequest) -> UrlFilter:
    return make_lists(request.param)


RUST, REFERENCE = make_lists("rust"), make_lists("reference")
PIECES = st.sampled_from(
    [
        *("http://", "https:", "//", "/", "?", "#", "\\", ".", ":", "@", "%", "%2e", "[", "]", "*"),
        *("bad", "com", "co", "uk", "ck", "www", "good", "sub", "fine.com/worst.html", "10.0.0.1"),
        *("casino", "BannedWord", "soft", "softer", "hid", "DEN", "公司", "cn", "xn--55qx5d", "。"),
        *(" ", "\n", "\x1c", "\x85", "É", "İ", "\ud800", "+", "-", "8"),
    ]
)


@given(st.one_of(st.lists(PIECES, max_size=12).map("".join), st.text()))
def test_reasons_are_the_references(url: str):
    assert RUST.reason(url) == REFERENCE.reason(url)
    assert RUST.registered_domain(url) == REFERENCE.registered_domain(url)


@given(st.lists(st.text()), st.lists(st.text()))
def test_lists_of_anything_are_the_references(entries: list[str], urls: list[str]):
    lists: dict[str, list[str]] = dict.fromkeys(
        ("domains", "urls", "banned_words", "soft_banned_words", "banned_subwords"), entries
    )
    fast = UrlFilter(**lists, suffixes=SUFFIXES)
    slow = UrlFilter(**lists, suffixes=SUFFIXES, implementation="reference")
    urls += entries + [f"http://{entry}/" for entry in entries]
    assert fast.reason_batch(urls) == slow.reason_batch(urls)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://bad.com/", "domain"),
        ("https://user:word@deep.BAD.com:443/x?y#z", "domain"),
        ("//www.bad.co.uk", "domain"),
        ("bad.com", "domain"),
        ("\x1c \thttp://bad.com\x0b\x1f", "domain"),
        ("h\x1cttp://bad.com", ""),
        ("http://notbad.com/", ""),
        ("http://bad.com.fine.com/", ""),
        ("http://sub.good.com/", "host"),
        ("http://deep.sub.good.com/", ""),
        ("http://good.com/", ""),
        ("http://10.0.0.1:80/", "host"),
        ("http://fine.com/worst.html", "url"),
        ("http://fine.com/worst.html?", ""),
        ("http://fine.com/my-casino/", "banned_word"),
        ("http://fine.com/mycasino/", ""),
        # As in datatrove: the piece keeps its case, the list has none.
        ("http://fine.com/Casino/", ""),
        ("http://fine.com/bannedword", "banned_word"),
        ("http://fine.com/soft/soft", ""),
        ("http://fine.com/soft/softer", "soft_words"),
        ("http://fine.com/xHid-Den_y", "banned_subword"),
        ("", ""),
        ("http://", ""),
        ("\ud800", ""),
    ],
)
def test_first_rule_that_hits_is_the_reason(lists: UrlFilter, url: str, reason: str):
    assert lists.reason(url) == reason


def test_rules_are_asked_in_their_order():
    everything = {"banned_words": ["a"], "soft_banned_words": ["b", "c"], "banned_subwords": ["d"]}
    url = "http://x.y.com/a.b.c.d"
    order = [
        ("domains", ["y.com"], "domain"),
        ("domains", ["x.y.com"], "host"),
        ("urls", [url], "url"),
        ("banned_words", everything["banned_words"], "banned_word"),
        ("soft_banned_words", everything["soft_banned_words"], "soft_words"),
        ("banned_subwords", everything["banned_subwords"], "banned_subword"),
    ]
    for start in range(len(order)):
        lists: dict[str, list[str]] = {}
        for name, lines, _ in order[start:]:
            lists.setdefault(name, []).extend(lines)
        assert UrlFilter(**lists, suffixes=SUFFIXES).reason(url) == order[start][2]


@pytest.mark.parametrize(
    ("host", "domain"),
    [
        ("a.b.example.com", "example.com"),
        ("example.co.uk", "example.co.uk"),
        ("co.uk", ""),
        ("com", ""),
        ("www.ck", "www.ck"),
        ("a.www.ck", "www.ck"),
        ("a.b.c.ck", "b.c.ck"),
        ("c.ck", ""),
        ("ck", ""),
        ("x.食狮.公司.cn", "食狮.公司.cn"),
        ("x.食狮.xn--55qx5d.cn", "食狮.xn--55qx5d.cn"),
        # Private suffixes are none, as tldextract has it by default.
        ("me.blogspot.com", "blogspot.com"),
        ("localhost", ""),
        ("10.0.0.1", ""),
        ("", ""),
    ],
)
def test_registered_domains_follow_the_suffix_list(lists: UrlFilter, host: str, domain: str):
    assert lists.registered_domain(host) == domain


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://[2001:DB8::1]:80/x", "[2001:db8::1]"),
        ("http://a.com\\@b.com/", "a.com"),
        ("http://a%2ecom./", "a.com"),
        ("http://a。com", "a.com"),
        ("ftp://u@v@w.com?x", "w.com"),
        ("a.com:80", "a.com"),
        ("mailto:x", "mailto"),
    ],
)
def test_hosts_are_cut_out(url: str, host: str):
    assert host_of(url) == host


@given(st.text())
def test_any_address_is_answered(lists: UrlFilter, url: str):
    assert lists.reason(url) in ("", "host", "domain")
    assert lists.reason(f"http://{url}") in ("", "host", "domain")


def test_a_folder_of_lists_is_read(tmp_path: Path):
    (tmp_path / "domains").write_bytes(b"# adult\nbad.com\r\n\n\xff\xfe.com\n")
    (tmp_path / "banned_words.txt").write_text("casino\n")
    (tmp_path / "usage").write_text("not a list")
    with pytest.raises(ValueError, match="domains need the public suffix list"):
        UrlFilter.read(tmp_path)
    (tmp_path / "public_suffix_list.dat").write_text("".join(SUFFIXES))
    url_filter = UrlFilter.read(tmp_path)
    urls = ["http://www.bad.com", "http://x.com/casino", "http://x.com"]
    assert list(map(url_filter.reason, urls)) == ["domain", "banned_word", ""]
    before = url_filter.sha256
    assert UrlFilter.read(tmp_path).sha256 == before
    (tmp_path / "banned_words.txt").write_text("poker\n")
    assert UrlFilter.read(tmp_path).sha256 != before


def test_a_folder_without_lists_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"must hold one of domains, urls, banned_words\.txt"):
        UrlFilter.read(tmp_path)
    with pytest.raises(FileNotFoundError):
        UrlFilter.read(tmp_path / "none")


@pytest.mark.parametrize("piece", [".", "/", "a", "a.", "@", "%41", "http://", "["])
def test_hostile_addresses_are_linear(lists: UrlFilter, piece: str):
    # A million bytes as one address: a crawl's longest have thousands.
    start = time.process_time()
    lists.reason("http://" + piece * (1_000_000 // len(piece)))
    assert time.process_time() - start < 2


def test_many_domains_are_held_apart():
    rng = random.Random(3)
    names = {"".join(rng.choices(string.ascii_lowercase, k=9)) for _ in range(20_000)}
    domains = [f"{name}.com" for name in names]
    url_filter = UrlFilter(domains=domains[:10_000], suffixes=SUFFIXES)
    assert [url_filter.reason(f"http://{domain}/") for domain in domains] == (
        ["domain"] * 10_000 + [""] * (len(domains) - 10_000)
    )
