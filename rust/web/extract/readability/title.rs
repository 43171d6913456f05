//! The title of a page, and whether its head names an author.

use std::collections::HashSet;
use std::ops::RangeInclusive;

use html5ever::local_name;
use rustc_hash::FxHashMap;
use unicode_segmentation::UnicodeSegmentation;

use super::names::Name;
use super::page::Page;
use super::tree::{Id, ROOT};

const SEPARATORS: [char; 8] = ['|', '-', '–', '—', '\\', '/', '>', '»'];
const HIERARCHY_SEPARATORS: [char; 4] = ['\\', '/', '>', '»'];
const NAME_PREFIXES: [&str; 8] = [
    "article",
    "dc",
    "dcterms",
    "og",
    "twitter",
    "parsely",
    "weibo:article",
    "weibo:webpage",
];
const NAME_KEYS: [&str; 6] = [
    "author",
    "creator",
    "pub-date",
    "description",
    "title",
    "site_name",
];
const PROPERTY_PREFIXES: [&str; 5] = ["article", "dc", "dcterms", "og", "twitter"];
const PROPERTY_KEYS: [&str; 7] = [
    "author",
    "creator",
    "description",
    "published_time",
    "title",
    "site_name",
    "image",
];
const TITLE_KEYS: [&str; 8] = [
    "dc:title",
    "dcterms:title",
    "og:title",
    "weibo:article:title",
    "weibo:webpage:title",
    "title",
    "twitter:title",
    "parsely-title",
];
const AUTHOR_KEYS: [&str; 4] = ["dc:creator", "dcterms:creator", "author", "parsely-author"];
const TITLE_CHARS: RangeInclusive<usize> = 15..=150;
/// A heading that has more of the title in it says nothing new.
const MIN_SIMILARITY: f64 = 0.75;

/// What the head of a page says.
#[derive(Debug)]
pub struct Head {
    pub title: Title,
    pub has_author: bool,
}

/// Reads the head, and where that says nothing, the headings.
pub fn read_head(page: &Page) -> Head {
    let said = read_meta(page);
    let title = TITLE_KEYS.iter().find_map(|key| said.get(*key).cloned());
    let title = title.unwrap_or_else(|| title_of(page));
    let has_author = AUTHOR_KEYS.iter().any(|key| said.contains_key(*key))
        || said
            .get("article:author")
            .is_some_and(|author| !is_address(author));
    Head {
        title: Title::new(&html_escape::decode_html_entities(&title)),
        has_author,
    }
}

/// A title, ready to be compared.
#[derive(Debug)]
pub struct Title {
    lower: String,
    words: HashSet<String>,
}

impl Title {
    fn new(title: &str) -> Self {
        let lower = title.to_lowercase();
        let words = lower.unicode_words().map(str::to_owned).collect();
        Self { lower, words }
    }

    pub fn is_empty(&self) -> bool {
        self.lower.is_empty()
    }

    /// Whether a heading says what the title says.
    pub fn is_like(&self, heading: &str) -> bool {
        if heading.is_empty() {
            return false;
        }
        let heading = heading.to_lowercase();
        if self.lower.contains(&heading) {
            return true;
        }
        let (mut n_chars, mut n_new) = (0, 0);
        for word in heading.unicode_words() {
            let length = word.chars().count();
            n_chars += length;
            n_new += if self.words.contains(word) { 0 } else { length };
        }
        n_chars > 0 && 1.0 - n_new as f64 / n_chars as f64 > MIN_SIMILARITY
    }
}

/// What `meta` elements say of the keys that are known.
fn read_meta(page: &Page) -> FxHashMap<String, String> {
    let tree = &page.tree;
    let mut said = FxHashMap::default();
    for meta in tree.named(ROOT, |name| name == Name::Meta) {
        if page
            .plain_attribute(tree, meta, &local_name!("content"))
            .is_none()
        {
            continue;
        }
        let content = page.attribute(tree, meta, &local_name!("content"));
        let content = content.unwrap_or_default().trim();
        if content.is_empty() {
            continue;
        }
        if let Some(property) = page.attribute(tree, meta, &local_name!("property")) {
            if let Some(key) = property_key(&property.to_ascii_lowercase()) {
                said.insert(key.trim().to_owned(), content.to_owned());
            }
        } else if let Some(name) = page.attribute(tree, meta, &local_name!("name")) {
            let name = name.to_ascii_lowercase();
            if is_known_name(&name) {
                let key: String = name.split_whitespace().collect();
                said.insert(key.replace('.', ":"), content.to_owned());
            }
        }
    }
    said
}

fn is_known_name(name: &str) -> bool {
    match name.split_once(['-', '.', ':']) {
        Some((prefix, key)) => NAME_PREFIXES.contains(&prefix) && NAME_KEYS.contains(&key),
        None => NAME_KEYS.contains(&name),
    }
}

fn property_key(property: &str) -> Option<&str> {
    property.split_whitespace().find_map(|part| {
        let (before, key) = part.rsplit_once(':')?;
        let start = before.find(':').map_or(0, |at| at + 1);
        let is_known =
            PROPERTY_KEYS.contains(&key) && PROPERTY_PREFIXES.contains(&&before[start..]);
        is_known.then(|| &part[start..])
    })
}

/// Whether a text is an address with a scheme.
fn is_address(text: &str) -> bool {
    let text = text.trim();
    let Some((scheme, _)) = text.split_once("://") else {
        return false;
    };
    let mut letters = scheme.chars();
    letters
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic())
        && letters.all(|letter| letter.is_ascii_alphanumeric() || "+-.".contains(letter))
        && !text.ends_with("://")
}

/// The title without the name of the site, as far as that can be told.
fn title_of(page: &Page) -> String {
    let tree = &page.tree;
    let title = tree.descendants(ROOT).find(|&id| {
        tree.name(id) == Name::Title && tree.ancestors(id).any(|at| tree.name(at) == Name::Head)
    });
    let original = title.map_or_else(String::new, |id| page.whole_text(tree, id));
    let original = original.trim();
    let mut title = original.to_owned();
    let has_separator = original.contains(SEPARATORS);
    let has_hierarchy = has_separator && original.contains(HIERARCHY_SEPARATORS);
    if has_separator {
        if let Some(part) = before_last_separator(original) {
            part.clone_into(&mut title);
        }
        let behind_first = behind_first_separator(original);
        if let Some(part) = behind_first.filter(|_| n_words(&title) < 3) {
            part.clone_into(&mut title);
        }
    } else if original.contains(": ") {
        let is_title = |&id: &Id| page.whole_text(tree, id).trim() == original;
        let headings = tree.named(ROOT, |name| matches!(name, Name::H1 | Name::H2));
        if !headings.iter().any(is_title) {
            without_section(original).clone_into(&mut title);
        }
    } else if let Some(heading) = heading_instead(page, original) {
        title = heading;
    }
    let title = title.split_whitespace().collect::<Vec<_>>().join(" ");
    let n_original: usize = original.split(SEPARATORS).map(n_words).sum();
    let n_left = n_words(&title);
    if n_left <= 4 && (!has_hierarchy || n_left + 1 != n_original) {
        return original.to_owned();
    }
    title
}

/// The first heading, where the title is too short or too long to be one.
fn heading_instead(page: &Page, title: &str) -> Option<String> {
    if TITLE_CHARS.contains(&title.chars().count()) {
        return None;
    }
    let headings = page.tree.named(ROOT, |name| name == Name::H1);
    let first = headings.first()?;
    Some(page.whole_text(&page.tree, *first))
}

fn without_section(title: &str) -> &str {
    let Some(last) = title.rfind(':') else {
        return title;
    };
    let behind_last = title[last + 1..].trim();
    let first = title.find(':').unwrap_or_default();
    if n_words(behind_last) < 3 {
        title[first + 1..].trim()
    } else if n_words(&title[..=first]) > 5 {
        title
    } else {
        behind_last
    }
}

fn n_words(text: &str) -> usize {
    text.split_whitespace().count()
}

fn before_last_separator(title: &str) -> Option<&str> {
    let (at, separator) = title
        .char_indices()
        .rev()
        .find(|(_, letter)| SEPARATORS.contains(letter))?;
    let behind = &title[at + separator.len_utf8()..];
    behind.starts_with(' ').then(|| title[..at].trim())
}

fn behind_first_separator(title: &str) -> Option<&str> {
    let (at, separator) = title
        .char_indices()
        .find(|(_, letter)| SEPARATORS.contains(letter))?;
    let behind = &title[at + separator.len_utf8()..];
    behind.starts_with(' ').then(|| behind.trim())
}

#[cfg(test)]
mod tests {
    use super::super::parse::parse;
    use super::*;

    fn title(html: &str) -> String {
        title_of(&parse(html))
    }

    #[test]
    fn the_name_of_the_site_goes() {
        for (html, expected) in [
            (
                "<title>Of rivers and of their hills - Site</title>",
                "Of rivers and of their hills",
            ),
            ("<title>Of rivers | Site</title>", "Of rivers | Site"),
            (
                "<title>Site: of rivers and of their hills</title>",
                "of rivers and of their hills",
            ),
            ("<title>A: b</title><h1>A: b</h1>", "A: b"),
            (
                "<title>Short</title><h1>A heading of five words</h1>",
                "A heading of five words",
            ),
            ("<p>none</p>", ""),
        ] {
            assert_eq!(title(html), expected, "{html}");
        }
    }

    #[test]
    fn headings_are_compared_by_words() {
        let title = Title::new("Of rivers and of hills");
        assert!(title.is_like("of RIVERS"));
        assert!(title.is_like("Hills of rivers, and"));
        assert!(!title.is_like("Of lakes and of seas"));
        assert!(!title.is_like("..."));
        assert!(!title.is_like(""));
    }

    #[test]
    fn what_the_head_says_comes_first() {
        let head = |meta: &str| read_head(&parse(&format!("{meta}<title>Title</title>")));
        let said = head("<meta property='x og:title' content=' A &amp;amp; b '>");
        assert_eq!((&*said.title.lower, said.has_author), ("a & b", false));
        assert!(head("<meta name='DC.creator' content=x>").has_author);
        assert!(head("<meta property=article:author content=x>").has_author);
        assert!(!head("<meta property=article:author content='https://x'>").has_author);
        assert!(!head("<meta name=author content=' '>").has_author);
    }
}
