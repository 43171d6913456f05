//! The words in attributes and texts that the algorithm goes by.

use std::sync::LazyLock;

use aho_corasick::AhoCorasick;
use html5ever::local_name;
use memchr::memmem;

use super::page::Page;
use super::tree::{Id, Tree};

static UNLIKELY: LazyLock<AhoCorasick> = LazyLock::new(|| {
    any_of(&[
        "-ad-",
        "ai2html",
        "banner",
        "breadcrumbs",
        "combx",
        "comment",
        "community",
        "cover-wrap",
        "disqus",
        "extra",
        "footer",
        "gdpr",
        "header",
        "legends",
        "menu",
        "related",
        "remark",
        "replies",
        "rss",
        "shoutbox",
        "sidebar",
        "skyscraper",
        "social",
        "sponsor",
        "supplemental",
        "ad-break",
        "agegate",
        "pagination",
        "pager",
        "popup",
        "yom-remote",
    ])
});
static LIKELY: LazyLock<AhoCorasick> = LazyLock::new(|| {
    any_of(&[
        "and", "article", "body", "column", "content", "layout", "main", "mathjax", "shadow",
    ])
});
static NEGATIVE: LazyLock<AhoCorasick> = LazyLock::new(|| {
    any_of(&[
        "-ad-",
        "hidden",
        "banner",
        "combx",
        "comment",
        "com-",
        "contact",
        "footer",
        "gdpr",
        "masthead",
        "media",
        "meta",
        "outbrain",
        "promo",
        "related",
        "scroll",
        "share",
        "shoutbox",
        "sidebar",
        "skyscraper",
        "sponsor",
        "shopping",
        "tags",
        "widget",
    ])
});
static POSITIVE: LazyLock<AhoCorasick> = LazyLock::new(|| {
    any_of(&[
        "article", "body", "content", "entry", "hentry", "h-entry", "main", "page", "post", "text",
        "blog", "story",
    ])
});
static BYLINE: LazyLock<AhoCorasick> =
    LazyLock::new(|| any_of(&["byline", "author", "dateline", "writtenby", "p-author"]));

const UNLIKELY_ROLES: [&str; 7] = [
    "menu",
    "menubar",
    "complementary",
    "navigation",
    "alert",
    "alertdialog",
    "dialog",
];
const IMAGE_ENDINGS: [&str; 6] = [".jpg", ".jpeg", ".png", ".webp", ".avif", ".gif"];
const VIDEO_SITES: [&str; 10] = [
    "dailymotion.com",
    "youtube.com",
    "youtube-nocookie.com",
    "player.vimeo.com",
    "v.qq.com",
    "archive.org",
    "upload.wikimedia.org",
    "player.twitch.tv",
    "bilibili.com",
    "live.bilibili.com",
];
const AD_WORDS: [&str; 10] = [
    "ad",
    "advertising",
    "advertisement",
    "pub",
    "publicité",
    "werb",
    "werbung",
    "广告",
    "реклама",
    "anuncio",
];
const LOADING_WORDS: [&str; 5] = ["loading", "正在加载", "загрузка", "chargement", "cargando"];
/// More characters than the longest of the words above with an ellipsis.
const NOTICE_CHARS: usize = 32;

fn any_of(words: &[&str]) -> AhoCorasick {
    AhoCorasick::builder()
        .ascii_case_insensitive(true)
        .build(words)
        .expect("short lists of words make small automata")
}

/// Classes and ids of an element.
fn signs<'a>(page: &'a Page, tree: &Tree, id: Id) -> impl Iterator<Item = &'a str> {
    page.attributes(tree, id)
        .iter()
        .filter(|one| one.name.local == local_name!("class") || one.name.local == local_name!("id"))
        .map(|one| &*one.value)
}

/// Whether class or id say that an element is no part of an article.
pub fn is_unlikely(page: &Page, tree: &Tree, id: Id) -> bool {
    signs(page, tree, id).any(|sign| UNLIKELY.is_match(sign))
        && !signs(page, tree, id).any(|sign| LIKELY.is_match(sign))
}

pub fn has_unlikely_role(page: &Page, tree: &Tree, id: Id) -> bool {
    page.attribute(tree, id, &local_name!("role"))
        .is_some_and(|role| UNLIKELY_ROLES.contains(&role))
}

/// Whether an element says that it names an author.
pub fn is_byline(page: &Page, tree: &Tree, id: Id) -> bool {
    let is_html = page.is_html(tree, id);
    page.attributes(tree, id).iter().any(|one| {
        let value = &*one.value;
        match one.name.local {
            local_name!("rel") => {
                one.name.ns.is_empty()
                    && if is_html {
                        value.eq_ignore_ascii_case("author")
                    } else {
                        value == "author"
                    }
            }
            local_name!("itemprop") => one.name.ns.is_empty() && value.contains("author"),
            local_name!("class") | local_name!("id") => BYLINE.is_match(value),
            _ => false,
        }
    })
}

/// Points for class and id.
pub fn class_weight(page: &Page, tree: &Tree, id: Id) -> f32 {
    let mut weight = 0.0;
    for name in [local_name!("class"), local_name!("id")] {
        let Some(sign) = page.attribute(tree, id, &name) else {
            continue;
        };
        if NEGATIVE.is_match(sign)
            || sign
                .split_whitespace()
                .any(|word| word.eq_ignore_ascii_case("hid"))
        {
            weight -= 25.0;
        }
        if POSITIVE.is_match(sign) {
            weight += 25.0;
        }
    }
    weight
}

/// Whether class or id say that an element has links to share the page by.
pub fn is_for_sharing(page: &Page, tree: &Tree, id: Id) -> bool {
    [local_name!("class"), local_name!("id")]
        .iter()
        .filter_map(|name| page.attribute(tree, id, name))
        .flat_map(|sign| sign.split([' ', '_']))
        .any(|part| part.eq_ignore_ascii_case("share") || part.eq_ignore_ascii_case("sharedaddy"))
}

/// Whether a reader sees an element.
pub fn is_visible(page: &Page, tree: &Tree, id: Id) -> bool {
    let mut is_hidden_from_readers = false;
    for one in page.attributes(tree, id) {
        let value = &*one.value;
        match one.name.local {
            local_name!("hidden") => return false,
            local_name!("style") if is_hiding(value) => return false,
            local_name!("aria-hidden") => is_hidden_from_readers |= value == "true",
            _ => {}
        }
    }
    !is_hidden_from_readers || page.class(tree, id).contains("fallback-image")
}

fn is_hiding(style: &str) -> bool {
    let style = style.to_ascii_lowercase();
    says(&style, "display", "none") || says(&style, "visibility", "hidden")
}

/// Whether the first declaration with this name has this word first.
fn says(style: &str, name: &str, word: &str) -> bool {
    let Some((_, rest)) = style.split_once(name) else {
        return false;
    };
    let Some((_, rest)) = rest.split_once(':') else {
        return false;
    };
    let value = rest.split(';').next().unwrap_or_default().trim_start();
    value.split(char::is_whitespace).next() == Some(word)
}

/// Whether an address is one of a site with videos.
pub fn is_video(address: &str) -> bool {
    VIDEO_SITES.iter().any(|site| {
        address.find(site).is_some_and(|at| {
            address[..at].ends_with("//") && at > 1 || address[..at].ends_with("//www.")
        })
    })
}

/// Whether a value of an attribute names an image.
pub fn names_image(value: &str) -> bool {
    memmem::find(value.as_bytes(), b".").is_some()
        && IMAGE_ENDINGS.iter().any(|ending| value.contains(ending))
}

/// Whether a value of an attribute is one image's address, or several with their sizes.
pub fn is_image_address(value: &str) -> bool {
    let value = value.to_ascii_lowercase();
    let starts_image = |part: &str| {
        let mut endings = IMAGE_ENDINGS.iter();
        endings.any(|ending| part.starts_with(&ending[1..]))
    };
    has_image_sizes(&value) || value.trim().split('.').skip(1).any(starts_image)
}

fn has_image_sizes(value: &str) -> bool {
    IMAGE_ENDINGS.iter().any(|ending| {
        value.match_indices(ending).any(|(at, _)| {
            let rest = &value.as_bytes()[at + ending.len()..];
            rest.len() > 1 && rest[0].is_ascii_whitespace() && rest[1].is_ascii_digit()
        })
    })
}

/// Whether a text is only a word that stands where something else will, or an advertisement.
pub fn is_notice(text: &str) -> bool {
    let text = text.trim().to_lowercase();
    AD_WORDS.contains(&&*text) || LOADING_WORDS.contains(&text.trim_end_matches(['…', '.']))
}

/// Whether a text of so many characters with this first letter can be a notice.
pub fn may_be_notice(n_chars: usize, first: impl FnOnce() -> Option<char>) -> bool {
    n_chars < NOTICE_CHARS
        || first().is_some_and(|first| {
            let mut words = LOADING_WORDS.iter();
            words.any(|word| first.to_lowercase().next() == word.chars().next())
        })
}

/// Commas of other scripts than Latin.
pub fn is_other_comma(letter: char) -> bool {
    matches!(
        letter,
        '\u{060C}'
            | '\u{FE50}'
            | '\u{FE10}'
            | '\u{FE11}'
            | '\u{2E41}'
            | '\u{2E34}'
            | '\u{2E32}'
            | '\u{FF0C}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn styles_that_hide_are_seen() {
        for style in [
            "display:none",
            "DISPLAY : NONE ; x",
            "a:b;visibility:hidden !important",
        ] {
            assert!(is_hiding(style), "{style}");
        }
        for style in [
            "display: none!important",
            "display:",
            "display",
            "visibility: visible",
        ] {
            assert!(!is_hiding(style), "{style}");
        }
    }

    #[test]
    fn videos_are_known_by_site_and_scheme() {
        for address in [
            "https://youtube.com/x",
            "//www.youtube.com",
            "//player.vimeo.com/1",
        ] {
            assert!(is_video(address), "{address}");
        }
        for address in ["youtube.com", "https://m.youtube.com/", "ä/youtube.com"] {
            assert!(!is_video(address), "{address}");
        }
    }

    #[test]
    fn image_addresses_are_known_by_their_endings() {
        assert!(is_image_address("a/b.JPG?x"));
        assert!(is_image_address("a.png 2x"));
        assert!(!is_image_address("a.svg"));
        assert!(!is_image_address("jpg"));
    }

    #[test]
    fn notices_may_have_dots() {
        assert!(is_notice(" Loading... "));
        assert!(is_notice("广告"));
        assert!(!is_notice("Loading data"));
        assert!(may_be_notice(1000, || Some('L')));
        assert!(!may_be_notice(1000, || Some('A')));
    }
}
