//! Personal data masked: e-mail addresses, phone numbers and IPv4 addresses, in three published
//! ways.
//!
//! The twin of `python/rslm/data/pii.py`, which says what each way takes. Candidates are found by
//! `memchr` and by blocks without a digit, and looked at by hand: the patterns ask what stands
//! beside a match, which `regex` cannot.

mod emails;
mod numbers;

use std::borrow::Cow;

use crate::error::{Error, Result};

/// From and to, in bytes.
type Span = (usize, usize);
type Find = fn(&str) -> Vec<Span>;

/// One kind of data: its name, how it is found, and the masks that take turns.
struct Kind {
    name: &'static str,
    find: Find,
    masks: &'static [&'static str],
}

/// A way of masking: its kinds, in order.
pub struct Preset {
    name: &'static str,
    kinds: &'static [Kind],
    /// More masks than this drop the page.
    max_masks: usize,
}

const PRESETS: &[Preset] = &[
    Preset {
        name: "course",
        kinds: &[
            Kind {
                name: "emails",
                find: emails::course,
                masks: &["|||EMAIL_ADDRESS|||"],
            },
            Kind {
                name: "ips",
                find: numbers::ips_course,
                masks: &["|||IP_ADDRESS|||"],
            },
            Kind {
                name: "phones",
                find: numbers::phones_course,
                masks: &["|||PHONE_NUMBER|||"],
            },
        ],
        max_masks: usize::MAX,
    },
    Preset {
        name: "dolma",
        kinds: &[
            Kind {
                name: "emails",
                find: emails::dolma,
                masks: &[" |||EMAIL_ADDRESS||| "],
            },
            Kind {
                name: "ips",
                find: numbers::ips,
                masks: &[" |||IP_ADDRESS||| "],
            },
            Kind {
                name: "phones",
                find: numbers::phones_dolma,
                masks: &[" |||PHONE_NUMBER||| "],
            },
        ],
        max_masks: 5,
    },
    Preset {
        name: "fineweb",
        kinds: &[
            Kind {
                name: "emails",
                find: emails::fineweb,
                masks: &["email@example.com", "firstname.lastname@example.org"],
            },
            Kind {
                name: "ips",
                find: numbers::global_ips,
                masks: &[
                    "22.214.171.124",
                    "126.96.36.199",
                    "188.8.131.52",
                    "184.108.40.206",
                    "220.127.116.11",
                    "18.104.22.168",
                ],
            },
        ],
        max_masks: usize::MAX,
    },
];

impl Preset {
    /// The way of a name.
    ///
    /// # Errors
    /// [`Error::Argument`] if none has it.
    pub fn named(name: &str) -> Result<&'static Self> {
        PRESETS
            .iter()
            .find(|preset| preset.name == name)
            .ok_or_else(|| {
                let names: Vec<_> = PRESETS.iter().map(|preset| preset.name).collect();
                let names = names.join(", ");
                Error::Argument(format!("preset must be one of {names}, got '{name}'"))
            })
    }

    /// The names of its kinds, in order.
    pub fn kinds(&self) -> impl Iterator<Item = &'static str> {
        self.kinds.iter().map(|kind| kind.name)
    }
}

/// A text without personal data, and how much there was.
#[derive(Debug, PartialEq, Eq)]
pub struct Masked<'t> {
    /// Borrowed where nothing was masked.
    pub text: Cow<'t, str>,
    /// Kind -> masks put.
    pub counts: Vec<(&'static str, u64)>,
    /// Why the page is dropped; "" if it is not.
    pub drop_reason: &'static str,
}

/// Masks a text, in time linear in its length.
pub fn mask<'t>(text: &'t str, preset: &Preset) -> Masked<'t> {
    let mut text = Cow::Borrowed(text);
    let mut counts = Vec::with_capacity(preset.kinds.len());
    for kind in preset.kinds {
        let spans = (kind.find)(&text);
        counts.push((kind.name, spans.len() as u64));
        if !spans.is_empty() {
            text = Cow::Owned(replace(&text, &spans, kind.masks));
        }
    }
    let n_masks: u64 = counts.iter().map(|(_, n)| n).sum();
    let too_many = n_masks > preset.max_masks as u64;
    Masked {
        text,
        counts,
        drop_reason: if too_many { "pii_too_many" } else { "" },
    }
}

/// Masks one kind alone: "emails", "ips" or "phones".
///
/// # Errors
/// [`Error::Argument`] if the preset has no such kind.
pub fn mask_kind<'t>(text: &'t str, preset: &Preset, kind: &str) -> Result<(Cow<'t, str>, u64)> {
    let Some(kind) = preset.kinds.iter().find(|known| known.name == kind) else {
        let message = format!("kind must be one of the preset's, got '{kind}'");
        return Err(Error::Argument(message));
    };
    let spans = (kind.find)(text);
    let masked = if spans.is_empty() {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(replace(text, &spans, kind.masks))
    };
    Ok((masked, spans.len() as u64))
}

fn replace(text: &str, spans: &[Span], masks: &[&str]) -> String {
    let mut out = String::with_capacity(text.len() + 8 * spans.len());
    let mut end = 0;
    for (&(start, stop), mask) in spans.iter().zip(masks.iter().cycle()) {
        out.push_str(&text[end..start]);
        out.push_str(mask);
        end = stop;
    }
    out.push_str(&text[end..]);
    out
}

/// Where the run of characters that belong, which ends before `position`, begins.
fn run_before(text: &str, position: usize, lowest: usize, belongs: impl Fn(char) -> bool) -> usize {
    let run = text[lowest..position].trim_end_matches(belongs);
    lowest + run.len()
}

/// How many bytes from a position on belong.
fn run_length(bytes: &[u8], position: usize, belongs: impl Fn(u8) -> bool) -> usize {
    let rest = bytes.get(position..).unwrap_or_default();
    rest.iter().take_while(|&&byte| belongs(byte)).count()
}

/// A word character to Python's `\w`.
fn is_word_character(character: char) -> bool {
    use crate::web::segment::unicode::properties_of;
    character == '_' || properties_of(character).is_alphanumeric()
}

/// Whether a word character stands before this byte, and whether one begins at it.
fn is_word_before(text: &str, position: usize) -> bool {
    text[..position]
        .chars()
        .next_back()
        .is_some_and(is_word_character)
}

fn is_word_at(text: &str, position: usize) -> bool {
    text[position..]
        .chars()
        .next()
        .is_some_and(is_word_character)
}
