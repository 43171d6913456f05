//! The named recipes of rules: whether a page is kept, edited or dropped, and why.
//!
//! The twin of `python/rslm/data/quality`, whose files say what each rule is and where it comes
//! from; here they say what makes it fast. A preset is data, a step is a `match`, and what several
//! rules need of a page is made once (`Page`). Every verdict is exact: hashes only find what is
//! then compared.

mod c4;
mod dclm;
mod duplicates;
mod fineweb;
mod gopher;
mod ngrams;
mod page;
mod phrases;
mod repetition;
mod run_together;
mod table;

use std::borrow::Cow;

pub use page::Page;

use super::segment::MAX_TEXT_BYTES;
use crate::error::{Error, Result};

/// Reason -> lines that an edit removed.
pub type LinesRemoved = Vec<(&'static str, u64)>;

/// What becomes of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict<'t> {
    /// Why the page is dropped: the first rule that hit; "" if it stays.
    pub reason: &'static str,
    /// The text to go on with, borrowed where nothing changed; empty where the page is dropped.
    pub text: Cow<'t, str>,
    /// Lines that edits removed, also where the page is then dropped.
    pub lines_removed: LinesRemoved,
}

/// One family of rules, as a recipe sets it.
enum Step {
    Gopher(&'static gopher::Rules),
    Repetition(repetition::Reading),
    C4 { terminal_punctuation: bool },
    C4NoPunctuation,
    Fineweb(fineweb::Version),
    DclmNewlines,
    DclmLines,
}

use Step::{C4, C4NoPunctuation, DclmLines, DclmNewlines, Fineweb, Gopher, Repetition};

/// A recipe: its steps, in order.
pub struct Preset {
    name: &'static str,
    steps: &'static [Step],
}

const PRESETS: &[Preset] = &[
    Preset {
        name: "course",
        steps: &[Gopher(&gopher::COURSE)],
    },
    Preset {
        name: "gopher",
        steps: &[
            Gopher(&gopher::PAPER),
            Repetition(repetition::Reading::Paper),
        ],
    },
    Preset {
        name: "c4",
        steps: &[C4 {
            terminal_punctuation: true,
        }],
    },
    Preset {
        name: "fineweb",
        steps: &[
            Repetition(repetition::Reading::Fineweb),
            Gopher(&gopher::FINEWEB),
            C4 {
                terminal_punctuation: false,
            },
            Fineweb(fineweb::Version::Present),
        ],
    },
    Preset {
        name: "fineweb_2024",
        steps: &[
            Repetition(repetition::Reading::Fineweb),
            Gopher(&gopher::FINEWEB),
            C4 {
                terminal_punctuation: false,
            },
            Fineweb(fineweb::Version::Released),
        ],
    },
    Preset {
        name: "dolma",
        steps: &[
            C4NoPunctuation,
            Gopher(&gopher::DOLMA),
            Repetition(repetition::Reading::Dolma),
        ],
    },
    Preset {
        name: "dclm",
        steps: &[
            DclmNewlines,
            Gopher(&gopher::DCLM),
            Repetition(repetition::Reading::Dclm),
            DclmLines,
        ],
    },
];

impl Preset {
    /// The recipe of a name.
    ///
    /// # Errors
    /// [`Error::Argument`] if no recipe has it.
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
}

/// What a step does with a page.
enum Outcome {
    Keep,
    Drop(&'static str),
    Edit(String),
}

impl From<Option<&'static str>> for Outcome {
    fn from(reason: Option<&'static str>) -> Self {
        reason.map_or(Self::Keep, Self::Drop)
    }
}

/// The verdict of a recipe on a page, in time and memory linear in its length.
///
/// # Errors
/// [`Error::Argument`] if the text has 512 MiB or more.
pub fn check<'t>(text: &'t str, preset: &Preset) -> Result<Verdict<'t>> {
    take_steps(text, preset.steps)
}

/// The verdict of one step of a recipe, counted from 0: to measure it by itself.
///
/// # Errors
/// [`Error::Argument`] if the text has 512 MiB or more, or the recipe no such step.
pub fn check_step<'t>(text: &'t str, preset: &Preset, step: usize) -> Result<Verdict<'t>> {
    let Some(one) = preset.steps.get(step..=step) else {
        let (name, n_steps) = (preset.name, preset.steps.len());
        let message = format!("step must be below {n_steps}, those of {name}, got {step}");
        return Err(Error::Argument(message));
    };
    take_steps(text, one)
}

fn take_steps<'t>(text: &'t str, steps: &[Step]) -> Result<Verdict<'t>> {
    if text.len() >= MAX_TEXT_BYTES {
        let length = text.len();
        let message = format!("text must be shorter than {MAX_TEXT_BYTES} bytes, got {length}");
        return Err(Error::Argument(message));
    }
    let mut lines_removed = Vec::new();
    let mut page = Page::new(Cow::Borrowed(text));
    for step in steps {
        match take(step, &page, &mut lines_removed) {
            Outcome::Keep => {}
            Outcome::Edit(edited) => page = Page::new(Cow::Owned(edited)),
            Outcome::Drop(reason) => {
                return Ok(Verdict {
                    reason,
                    text: Cow::Borrowed(""),
                    lines_removed,
                });
            }
        }
    }
    Ok(Verdict {
        reason: "",
        text: page.into_text(),
        lines_removed,
    })
}

fn take(step: &Step, page: &Page, removed: &mut LinesRemoved) -> Outcome {
    match step {
        Gopher(rules) => gopher::check(page, rules).into(),
        Repetition(reading) => repetition::check(page, *reading).into(),
        C4 {
            terminal_punctuation,
        } => c4::check(page, *terminal_punctuation, removed),
        C4NoPunctuation => c4::remove_unpunctuated_lines(page, removed),
        Fineweb(version) => fineweb::check(page, *version).into(),
        DclmNewlines => dclm::limit_newlines(page),
        DclmLines => dclm::edit_lines(page, removed),
    }
}

/// One more line, or several, that a reason removed.
fn count_removed(removed: &mut LinesRemoved, reason: &'static str, n: u64) {
    if n == 0 {
        return;
    }
    match removed.iter_mut().find(|(known, _)| *known == reason) {
        Some((_, count)) => *count += n,
        None => removed.push((reason, n)),
    }
}

/// The edit that gives this text, or none where it is the page's own.
fn edited(page: &Page, text: String) -> Outcome {
    if text == page.text() {
        Outcome::Keep
    } else {
        Outcome::Edit(text)
    }
}

/// `part / whole`, and 0 where there is nothing to take a part of; rounded as Python rounds it.
fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}
