//! Sentences of UAX #29, section 5.1, rules SB1 to SB998.

use super::unicode::{SentenceClass, properties_of};

use SentenceClass as S;

/// How many segments between sentence borders hold more than blanks, counted up to a limit.
///
/// A full stop ends a sentence unless a digit or a lower-case word follows. The look for the
/// letter that decides (SB8) goes on from where the last one ended, so time is linear.
pub fn count_sentences(text: &str, limit: usize) -> usize {
    let mut walk = Walk::default();
    let mut n_sentences = 0;
    let mut filled = false; // whether the segment holds more than blanks
    let mut decisive = Decisive::default();
    for (offset, character) in text.char_indices() {
        let properties = properties_of(character);
        let right = properties.sentence_class();
        let attaches =
            walk.begun && matches!(right, S::Extend | S::Format) && !is_paragraph_end(walk.left);
        if !attaches {
            if walk.ends_sentence(right, || decisive.from(text, offset)) {
                n_sentences += usize::from(filled);
                filled = false;
                if n_sentences >= limit {
                    return n_sentences;
                }
            }
            walk.step(right);
        }
        filled |= !properties.is_space();
    }
    n_sentences + usize::from(filled)
}

fn is_paragraph_end(class: SentenceClass) -> bool {
    matches!(class, S::Separator | S::CarriageReturn | S::LineFeed)
}

fn is_term(class: SentenceClass) -> bool {
    matches!(class, S::Term | S::AmbiguousTerm)
}

/// What came last after a terminal.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    #[default]
    None,
    Term,
    Close,
    Space,
    Paragraph,
}

impl Stage {
    fn after(self, class: SentenceClass) -> Self {
        match (class, self) {
            (S::Close, Self::Term | Self::Close) => Self::Close,
            (S::Space, Self::Term | Self::Close | Self::Space) => Self::Space,
            (class, stage) if is_paragraph_end(class) && stage != Self::Paragraph => {
                Self::Paragraph
            }
            _ => Self::None,
        }
    }
}

/// The units so far; `stage` says what stands after the terminal, if one is open.
struct Walk {
    begun: bool,
    left: SentenceClass,
    is_ambiguous: bool,
    stage: Stage,
    before_term: SentenceClass,
}

impl Default for Walk {
    fn default() -> Self {
        Self {
            begun: false,
            left: S::Other,
            is_ambiguous: false,
            stage: Stage::None,
            before_term: S::Other,
        }
    }
}

impl Walk {
    /// A border before this unit (SB3 to SB11).
    fn ends_sentence(
        &self,
        right: SentenceClass,
        decisive: impl FnOnce() -> SentenceClass,
    ) -> bool {
        if !self.begun {
            return false;
        }
        if is_paragraph_end(self.left) {
            return (self.left, right) != (S::CarriageReturn, S::LineFeed);
        }
        if self.stage == Stage::None {
            return false;
        }
        if matches!(right, S::Continue | S::Space) || is_term(right) || is_paragraph_end(right) {
            return false;
        }
        if matches!(self.stage, Stage::Term | Stage::Close) && right == S::Close {
            return false;
        }
        if self.is_ambiguous {
            let touches = self.stage == Stage::Term;
            if touches && right == S::Numeric {
                return false;
            }
            if touches && right == S::Upper && matches!(self.before_term, S::Upper | S::Lower) {
                return false;
            }
            if decisive() == S::Lower {
                return false;
            }
        }
        true
    }

    fn step(&mut self, right: SentenceClass) {
        if is_term(right) {
            self.is_ambiguous = right == S::AmbiguousTerm;
            self.stage = Stage::Term;
            self.before_term = if self.begun { self.left } else { S::Other };
        } else if self.stage != Stage::None {
            self.stage = self.stage.after(right);
        }
        self.begun = true;
        self.left = right;
    }
}

/// The class of the first unit from a place on that settles SB8, remembered until it is passed.
#[derive(Default)]
struct Decisive {
    found: Option<(usize, SentenceClass)>,
}

impl Decisive {
    fn from(&mut self, text: &str, offset: usize) -> SentenceClass {
        match self.found {
            Some((place, class)) if place >= offset => return class,
            _ => {}
        }
        let decides = |class| {
            matches!(class, S::OtherLetter | S::Upper | S::Lower)
                || is_paragraph_end(class)
                || is_term(class)
        };
        let found = text[offset..]
            .char_indices()
            .map(|(i, character)| (offset + i, properties_of(character).sentence_class()))
            .find(|&(_, class)| decides(class))
            .unwrap_or((text.len(), S::Other));
        self.found = Some(found);
        found.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_by_the_rules() {
        let count = |text| count_sentences(text, usize::MAX);
        assert_eq!(count("One. Two! Three? Four"), 4);
        assert_eq!(count("Pi is 3.14 or so. And e.g. this goes on. End"), 3);
        assert_eq!(count("U.S.A. is one word. So."), 2);
        assert_eq!(count("\u{9019}\u{662f}\u{3002}\u{90a3}\u{662f}"), 2);
        assert_eq!(count("a\r\n \n b"), 2);
        assert_eq!(count(""), 0);
    }

    #[test]
    fn counting_stops_at_the_limit() {
        assert_eq!(count_sentences("One. Two. Three. Four. Five.", 2), 2);
    }
}
