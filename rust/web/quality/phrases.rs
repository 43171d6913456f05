//! The phrases for which C4 removes a line or a page, found in any case.

/// What stands in a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phrase {
    LoremIpsum,
    Javascript,
    Policy,
}

const LOREM_IPSUM: &str = "lorem ipsum";
const JAVASCRIPT: &str = "javascript";
const POLICIES: [&str; 6] = [
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
];
/// The sign for kelvin, U+212A, whose lower case is `k`: the one character beyond ASCII that
/// makes a letter of a phrase.
const KELVIN: &str = "\u{212a}";

/// The first of the phrases that the line holds, in the order of the rules.
pub fn phrase_in(line: &str) -> Option<Phrase> {
    if !may_hold_phrase(line.as_bytes()) {
        return None;
    }
    let lower = line.to_ascii_lowercase().replace(KELVIN, "k");
    if lower.contains(LOREM_IPSUM) {
        Some(Phrase::LoremIpsum)
    } else if lower.contains(JAVASCRIPT) {
        Some(Phrase::Javascript)
    } else {
        let found = POLICIES.iter().any(|policy| lower.contains(policy));
        found.then_some(Phrase::Policy)
    }
}

/// Whether any phrase can be there: true for each that holds one, and for few others.
///
/// Four letters in a row of each phrase are looked for in any case, at all places without a
/// branch, so that the compiler takes 16 or 32 at once. An automaton over the phrases takes a byte
/// at a time, three times as long [m].
pub fn may_hold_phrase(bytes: &[u8]) -> bool {
    const AT_A_TIME: usize = 1024;
    let mut start = 0;
    while start + 4 <= bytes.len() {
        let end = bytes.len().min(start + AT_A_TIME + 3);
        if hit(&bytes[start..end]) {
            return true;
        }
        start += AT_A_TIME;
    }
    // The kelvin sign for the k of cookies.
    memchr::memmem::find(bytes, KELVIN.as_bytes()).is_some()
}

fn hit(bytes: &[u8]) -> bool {
    let n = bytes.len() - 3;
    let (first, second) = (&bytes[..n], &bytes[1..][..n]);
    let (third, fourth) = (&bytes[2..][..n], &bytes[3..][..n]);
    let places = first.iter().zip(second).zip(third.iter().zip(fourth));
    let any = places.fold(0, |any: u8, ((&one, &two), (&three, &four))| {
        // Lower case by one bit; it makes letters of no other bytes than some marks.
        let (one, two, three, four) = (one | 0x20, two | 0x20, three | 0x20, four | 0x20);
        let differs = |letters: [u8; 4]| {
            (one ^ letters[0]) | (two ^ letters[1]) | (three ^ letters[2]) | (four ^ letters[3])
        };
        any | u8::from(differs(*b"m ip") == 0)
            | u8::from(differs(*b"java") == 0)
            | u8::from(differs(*b"ms o") == 0)
            | u8::from(differs(*b"vacy") == 0)
            | u8::from(differs(*b"ooki") == 0)
    });
    any != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phrases_in_any_case_and_place() {
        for phrase in POLICIES {
            for n in [0, 1, 1020, 1021, 1022, 1023, 1024, 1030] {
                let line = "x".repeat(n) + &phrase.to_uppercase() + "y";
                assert_eq!(phrase_in(&line), Some(Phrase::Policy), "{phrase} {n}");
            }
        }
        assert_eq!(
            phrase_in("Lorem IPSUM javascript"),
            Some(Phrase::LoremIpsum)
        );
        assert_eq!(
            phrase_in("JAVAscript terms of use"),
            Some(Phrase::Javascript)
        );
        assert_eq!(phrase_in("use coo\u{212a}ies"), Some(Phrase::Policy));
        assert_eq!(phrase_in("looking at java, items of use"), None);
        assert_eq!(phrase_in(""), None);
    }
}
