//! Addresses on lists, and words in them: the twin of `python/rslm/data/url_filter.py`.
//!
//! All is bytes: what parts words is whatever is no ASCII letter or digit, and lists are compared
//! as they stand. The host is cut out here of plain addresses alone; Python, which knows how other
//! characters are lower-cased and decoded, does it for the rest.

use aho_corasick::AhoCorasick;
use rustc_hash::FxHashSet;
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Error, Result};

type Words = FxHashSet<Box<[u8]>>;

/// Lists of hosts, addresses, words and public suffixes.
pub struct UrlLists {
    domains: Hashes,
    urls: Hashes,
    banned_words: Words,
    soft_words: Words,
    n_soft: usize,
    banned_subwords: Option<AhoCorasick>,
    suffixes: Suffixes,
}

impl UrlLists {
    /// The lists of their entries; `n_soft` different soft words drop a page.
    ///
    /// # Errors
    /// [`Error::Argument`] if the subwords are too many to seek at once.
    pub fn new(
        domains: Hashes,
        urls: Hashes,
        [banned_words, soft_words, banned_subwords, suffixes]: [Vec<Vec<u8>>; 4],
        n_soft: usize,
    ) -> Result<Self> {
        let banned_subwords = match AhoCorasick::new(&banned_subwords) {
            _ if banned_subwords.is_empty() => None,
            Ok(found) => Some(found),
            Err(error) => return Err(Error::Argument(format!("banned_subwords: {error}"))),
        };
        Ok(Self {
            domains,
            urls,
            banned_words: words(banned_words),
            soft_words: words(soft_words),
            n_soft,
            banned_subwords,
            suffixes: Suffixes::new(suffixes),
        })
    }

    /// Why the page of an address is dropped, "" to keep it; None where Python must cut out the
    /// host.
    pub fn reason(&self, url: &[u8]) -> Option<&'static str> {
        let mut buffer = Vec::new();
        plain_host(url, &mut buffer)?;
        Some(self.reason_with_host(url, &buffer))
    }

    /// The same, given the host.
    pub fn reason_with_host(&self, url: &[u8], host: &[u8]) -> &'static str {
        let domain = self.suffixes.registered_domain(host);
        if !domain.is_empty() && self.domains.contains(domain) {
            return "domain";
        }
        if !host.is_empty() && self.domains.contains(host) {
            return "host";
        }
        if self.urls.contains(url) {
            return "url";
        }
        self.reason_of_words(url)
    }

    fn reason_of_words(&self, url: &[u8]) -> &'static str {
        let mut soft: Vec<&[u8]> = Vec::new();
        for piece in url.split(|byte| !byte.is_ascii_alphanumeric()) {
            if self.banned_words.contains(piece) {
                return "banned_word";
            }
            if self.soft_words.contains(piece) && !soft.contains(&piece) {
                soft.push(piece);
            }
        }
        if soft.len() >= self.n_soft {
            return "soft_words";
        }
        let Some(subwords) = &self.banned_subwords else {
            return "";
        };
        let letters = url.iter().filter(|byte| byte.is_ascii_alphanumeric());
        let joined: Vec<u8> = letters.map(u8::to_ascii_lowercase).collect();
        if subwords.is_match(&joined) {
            "banned_subword"
        } else {
            ""
        }
    }

    /// The public suffix of a host and the label before it; empty where there is none.
    pub fn registered_domain<'h>(&self, host: &'h [u8]) -> &'h [u8] {
        self.suffixes.registered_domain(host)
    }
}

/// A set of byte strings as sorted 64-bit hashes; another seems to be in it with a chance of its
/// size / 2^64.
pub struct Hashes {
    sorted: Vec<u64>,
    /// Where the hashes begin whose upper 16 bits are at least a number: a set of millions is
    /// looked up in a few lines of cache.
    starts: Vec<u32>,
}

impl Hashes {
    /// The set of what was hashed by [`Hashes::hash`].
    pub fn new(mut hashes: Vec<u64>) -> Self {
        hashes.sort_unstable();
        hashes.dedup();
        let starts = (0..=1 << 16).map(|top: u128| {
            let first = top << 48;
            hashes.partition_point(|&hash| u128::from(hash) < first) as u32
        });
        Self {
            starts: starts.collect(),
            sorted: hashes,
        }
    }

    /// What an entry is known by.
    pub fn hash(entry: &[u8]) -> u64 {
        xxh3_64(entry)
    }

    fn contains(&self, entry: &[u8]) -> bool {
        let hash = Self::hash(entry);
        let top = (hash >> 48) as usize;
        let range = self.starts[top] as usize..self.starts[top + 1] as usize;
        self.sorted[range].binary_search(&hash).is_ok()
    }
}

/// Rules of the public suffix list, by what they begin with.
struct Suffixes {
    all: Words,
    exceptions: Words,
    wildcards: Words,
    max_labels: usize,
}

impl Suffixes {
    fn new(rules: Vec<Vec<u8>>) -> Self {
        let behind = |prefix: &[u8]| {
            let found = rules.iter().filter_map(|rule| rule.strip_prefix(prefix));
            found.map(Box::from).collect()
        };
        let labels = rules.iter().map(|rule| dots(rule) + 1);
        Self {
            exceptions: behind(b"!"),
            wildcards: behind(b"*."),
            max_labels: labels.max().unwrap_or(1),
            all: words(rules),
        }
    }

    fn registered_domain<'h>(&self, host: &'h [u8]) -> &'h [u8] {
        let mut starts: Vec<usize> = vec![0];
        starts.extend(memchr::memchr_iter(b'.', host).map(|at| at + 1));
        // No rule has more labels, whatever a host is made of.
        let starts = &starts[starts.len().saturating_sub(self.max_labels + 1)..];
        for (number, &start) in starts.iter().enumerate() {
            let rest = &host[start..];
            let above = starts.get(number + 1).map_or(&[][..], |&at| &host[at..]);
            if self.exceptions.contains(rest) {
                return rest;
            }
            if self.all.contains(rest) || (!above.is_empty() && self.wildcards.contains(above)) {
                return if number == 0 {
                    b""
                } else {
                    &host[starts[number - 1]..]
                };
            }
        }
        b""
    }
}

fn words(entries: Vec<Vec<u8>>) -> Words {
    entries.into_iter().map(Vec::into_boxed_slice).collect()
}

fn dots(text: &[u8]) -> usize {
    memchr::memchr_iter(b'.', text).count()
}

/// The host of an address that is ASCII and encodes nothing in it, in lower case; None of others.
fn plain_host(url: &[u8], host: &mut Vec<u8>) -> Option<()> {
    if !url.is_ascii() {
        return None;
    }
    let rest = without_scheme(trim(url));
    let end = rest.iter().position(|byte| b"/?#\\".contains(byte));
    let authority = &rest[..end.unwrap_or(rest.len())];
    if authority.contains(&b'%') {
        return None;
    }
    let at = memchr::memrchr(b'@', authority).map_or(0, |at| at + 1);
    let named = &authority[at..];
    if named.first() == Some(&b'[') {
        let end = memchr::memchr(b']', named).unwrap_or(named.len());
        host.extend(&named[..end]);
        host.push(b']');
    } else {
        let end = memchr::memchr(b':', named).unwrap_or(named.len());
        let mut named = &named[..end];
        while let Some(inner) = named.strip_prefix(b".") {
            named = inner;
        }
        while let Some(inner) = named.strip_suffix(b".") {
            named = inner;
        }
        host.extend(named);
    }
    host.make_ascii_lowercase();
    Some(())
}

/// Without what Python's `str.strip` takes for white space in ASCII.
fn trim(url: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| matches!(byte, b'\t'..=b'\r' | 0x1c..=b' ');
    let start = url.iter().position(|byte| !is_space(byte));
    let end = url.iter().rposition(|byte| !is_space(byte));
    match (start, end) {
        (Some(start), Some(end)) => &url[start..=end],
        _ => b"",
    }
}

/// Without `scheme://` or `//` at its beginning.
fn without_scheme(url: &[u8]) -> &[u8] {
    let is_scheme = |byte: &u8| byte.is_ascii_alphanumeric() || b"+.-".contains(byte);
    let end = match url.first() {
        Some(first) if first.is_ascii_alphabetic() => {
            let end = url.iter().position(|byte| !is_scheme(byte));
            end.filter(|&end| url[end] == b':').map(|end| end + 1)
        }
        _ => Some(0),
    };
    let behind = end.and_then(|end| url[end..].strip_prefix(b"//"));
    behind.unwrap_or(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host_of(url: &str) -> Option<String> {
        let mut host = Vec::new();
        plain_host(url.as_bytes(), &mut host)?;
        Some(String::from_utf8(host).expect("a plain host is ASCII"))
    }

    #[test]
    fn plain_hosts_are_cut_out() {
        for (url, host) in [
            (
                "https://me:secret@www.Example.co.uk.:8080/path?query",
                "www.example.co.uk",
            ),
            (" //a.b?c", "a.b"),
            ("http://[2001:DB8::1]:80/x", "[2001:db8::1]"),
            ("http://a.com\\@b.com/", "a.com"),
            ("1http://x", "1http"),
            ("", ""),
        ] {
            assert_eq!(host_of(url).as_deref(), Some(host), "{url}");
        }
        assert_eq!(host_of("http://a%2ecom"), None);
        assert_eq!(host_of("http://\u{e9}.com"), None);
    }

    #[test]
    fn hashes_hold_what_they_were_given() {
        let entries: Vec<Vec<u8>> = (0..100_000u32).map(|n| n.to_le_bytes().to_vec()).collect();
        let hashes = Hashes::new(entries.iter().map(|entry| Hashes::hash(entry)).collect());
        assert!(entries.iter().all(|entry| hashes.contains(entry)));
        assert!(!hashes.contains(b"another"));
        assert!(!Hashes::new(Vec::new()).contains(b""));
    }
}
