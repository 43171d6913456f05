//! A page cut into tags, text and comments, as a browser's tokenizer cuts it.
//!
//! Source: WHATWG, HTML Standard, section 13.2.5. Only where tokens begin and end is followed;
//! a page is looked at once, whatever it holds.

use memchr::{memchr, memmem};

/// More than the longest name of an element with rules of its own.
pub const NAME_BYTES: usize = 16;

/// A piece of a page.
#[derive(Debug, PartialEq, Eq)]
pub enum Token<'a> {
    /// Characters, up to the next tag or comment.
    Text(&'a [u8]),
    /// A comment, or what browsers take for one.
    Comment,
    /// A start tag or an end tag.
    Tag(Tag<'a>),
}

/// A start or end tag.
#[derive(Debug, PartialEq, Eq)]
pub struct Tag<'a> {
    /// As it stands, in any case of letters.
    pub name: &'a [u8],
    /// The whole tag.
    pub source: &'a [u8],
    pub is_end: bool,
    pub is_self_closing: bool,
    pub n_attributes: usize,
}

/// The tokens of a page, in order.
pub struct Tokens<'a> {
    page: &'a [u8],
    at: usize,
    n_cut_attributes: usize,
}

impl<'a> Tokens<'a> {
    pub fn new(page: &'a [u8]) -> Self {
        Self {
            page,
            at: 0,
            n_cut_attributes: 0,
        }
    }

    /// Of a tag that the page ended in, which a browser reads before it finds that it is none.
    pub fn n_cut_attributes(&self) -> usize {
        self.n_cut_attributes
    }

    /// Goes to the end tag of an element that holds only text, or to the end of the page;
    /// returns how many bytes were passed.
    pub fn skip_raw_text(&mut self, name: &[u8]) -> usize {
        let text = self.at;
        while let Some(found) = memmem::find(&self.page[self.at..], b"</") {
            let start = self.at + found;
            let rest = &self.page[start + 2..];
            let ends = rest.get(name.len()).is_none_or(|&byte| ends_name(byte));
            if rest.len() >= name.len() && rest[..name.len()].eq_ignore_ascii_case(name) && ends {
                self.at = start;
                return start - text;
            }
            self.at = start + 2;
        }
        self.at = self.page.len();
        self.at - text
    }

    /// Goes to the end of the page.
    pub fn skip_all(&mut self) {
        self.at = self.page.len();
    }

    /// How many bytes were passed.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Where the next tag or comment begins, from `at` on.
    fn markup_from(&self, mut at: usize) -> usize {
        while let Some(found) = memchr(b'<', &self.page[at..]) {
            at += found;
            let next = self.page.get(at + 1).copied().unwrap_or_default();
            if next.is_ascii_alphabetic() || matches!(next, b'/' | b'!' | b'?') {
                return at;
            }
            at += 1;
        }
        self.page.len()
    }

    fn comment(&mut self) -> Token<'a> {
        let rest = &self.page[self.at..];
        let length = if rest.starts_with(b"<!-->") {
            Some(5)
        } else if rest.starts_with(b"<!--->") {
            Some(6)
        } else if rest.starts_with(b"<!--") {
            comment_end(rest)
        } else {
            memchr(b'>', rest).map(|found| found + 1)
        };
        self.at = length.map_or(self.page.len(), |length| self.at + length);
        Token::Comment
    }

    /// A tag; one that the page ends in is none.
    fn tag(&mut self, is_end: bool) -> Option<Token<'a>> {
        let (page, start) = (self.page, self.at);
        let name_start = start + 1 + usize::from(is_end);
        let mut at = name_start;
        while page.get(at).is_some_and(|&byte| !ends_name(byte)) {
            at += 1;
        }
        let name = &page[name_start..at];
        let (mut n_attributes, mut is_self_closing) = (0, false);
        self.at = page.len();
        let end = loop {
            self.n_cut_attributes = n_attributes;
            match *page.get(at)? {
                b'>' => break at,
                byte if byte == b'/' || is_space(byte) => {
                    is_self_closing = byte == b'/';
                    at += 1;
                }
                _ => {
                    is_self_closing = false;
                    n_attributes += 1;
                    at = attribute(page, at)?.1;
                }
            }
        };
        self.n_cut_attributes = 0;
        self.at = end + 1;
        Some(Token::Tag(Tag {
            name,
            source: &page[start..=end],
            is_end,
            is_self_closing,
            n_attributes,
        }))
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        let start = self.markup_from(self.at);
        if start > self.at {
            let text = &self.page[self.at..start];
            self.at = start;
            return Some(Token::Text(text));
        }
        let next = *self.page.get(start + 1)?;
        let after = self.page.get(start + 2).copied().unwrap_or_default();
        match next {
            b'/' if after.is_ascii_alphabetic() => self.tag(true),
            b'/' | b'!' | b'?' => Some(self.comment()),
            _ => self.tag(false),
        }
    }
}

fn comment_end(comment: &[u8]) -> Option<usize> {
    let mut at = 4;
    while let Some(found) = memmem::find(&comment[at..], b"--") {
        let rest = &comment[at + found + 2..];
        if rest.starts_with(b">") {
            return Some(at + found + 3);
        }
        if rest.starts_with(b"!>") {
            return Some(at + found + 4);
        }
        at += found + 1;
    }
    None
}

/// An attribute of a tag.
#[derive(Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// As it stands, in any case of letters.
    pub name: &'a [u8],
    /// Without quotes, and with its character references as they stand.
    pub value: &'a [u8],
}

impl<'a> Tag<'a> {
    /// Its name in lower case if it is short enough to be that of an element.
    pub fn lower_name<'b>(&self, buffer: &'b mut [u8; NAME_BYTES]) -> &'b [u8]
    where
        'a: 'b,
    {
        match buffer.get_mut(..self.name.len()) {
            Some(name) => {
                name.copy_from_slice(self.name);
                name.make_ascii_lowercase();
                name
            }
            None => self.name,
        }
    }

    /// Its attributes, in order.
    pub fn attributes(&self) -> impl Iterator<Item = Attribute<'a>> {
        let source = self.source;
        let mut at = 1 + self.name.len();
        std::iter::from_fn(move || {
            while source
                .get(at)
                .is_some_and(|&byte| byte == b'/' || is_space(byte))
            {
                at += 1;
            }
            if at + 1 >= source.len() {
                return None;
            }
            let (attribute, end) = attribute(source, at)?;
            at = end;
            Some(attribute)
        })
    }
}

/// The attribute that begins at `at`, and where it ends; none if the page does before.
fn attribute(page: &[u8], start: usize) -> Option<(Attribute<'_>, usize)> {
    // An equals sign in the first place belongs to the name.
    let mut at = start + 1;
    while page
        .get(at)
        .is_some_and(|&byte| byte != b'=' && !ends_name(byte))
    {
        at += 1;
    }
    let (name, name_end) = (&page[start..at], at);
    at = skip_spaces(page, at);
    if *page.get(at)? != b'=' {
        return Some((Attribute { name, value: b"" }, name_end));
    }
    at = skip_spaces(page, at + 1);
    let first = *page.get(at)?;
    let (value, end) = if matches!(first, b'"' | b'\'') {
        let length = memchr(first, &page[at + 1..])?;
        (&page[at + 1..][..length], at + length + 2)
    } else {
        let value = at;
        while page
            .get(at)
            .is_some_and(|&byte| byte != b'>' && !is_space(byte))
        {
            at += 1;
        }
        (&page[value..at], at)
    };
    Some((Attribute { name, value }, end))
}

fn skip_spaces(page: &[u8], mut at: usize) -> usize {
    while page.get(at).is_some_and(|&byte| is_space(byte)) {
        at += 1;
    }
    at
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t' | b'\n' | b'\x0c' | b'\r' | b' ')
}

fn ends_name(byte: u8) -> bool {
    is_space(byte) || matches!(byte, b'/' | b'>')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(page: &str) -> Vec<String> {
        Tokens::new(page.as_bytes())
            .map(|token| match token {
                Token::Text(_) => "text".to_owned(),
                Token::Comment => "comment".to_owned(),
                Token::Tag(tag) => format!(
                    "{}{} {}{}",
                    if tag.is_end { "/" } else { "" },
                    String::from_utf8_lossy(tag.name),
                    tag.n_attributes,
                    if tag.is_self_closing { "/" } else { "" }
                ),
            })
            .collect()
    }

    #[test]
    fn cuts_tags_text_and_comments() {
        assert_eq!(shown("a < b<p>c</P >"), ["text", "p 0", "text", "/P 0"]);
        let comments = ["comment", "b-- 0", "comment", "comment", "comment"];
        assert_eq!(shown("<!--><b--><!-- <i> -- > --!><?x><!x>"), comments);
        assert_eq!(
            shown("<br/><a b/>c</>"),
            ["br 0/", "a 1/", "text", "comment"]
        );
    }

    #[test]
    fn attributes_hide_what_they_hold() {
        assert_eq!(shown("<a b='>' c=\"<p>\" d=/e =f>"), ["a 4"]);
        assert_eq!(shown("<a b = '>' c>"), ["a 2"]);
        assert_eq!(shown("<a b=>x"), ["a 1", "text"]);
        assert_eq!(shown("<a b='x"), [""; 0]);
    }

    #[test]
    fn attributes_have_names_and_values() {
        let mut tokens = Tokens::new(b"<p CLASS='a b' c d=e/f =g h = \"i>\"/>");
        let Some(Token::Tag(tag)) = tokens.next() else {
            panic!("a tag is one");
        };
        let found: Vec<_> = tag.attributes().map(|one| (one.name, one.value)).collect();
        let expected: [(&[u8], &[u8]); 5] = [
            (b"CLASS", b"a b"),
            (b"c", b""),
            (b"d", b"e/f"),
            (b"=g", b""),
            (b"h", b"i>"),
        ];
        assert_eq!(found, expected);
        assert!(tag.is_self_closing);
    }

    #[test]
    fn raw_text_ends_at_its_own_end_tag() {
        let mut tokens = Tokens::new(b"<script>a</scripts></b></SCRIPT ><p>");
        tokens.next();
        tokens.skip_raw_text(b"script");
        let left: Vec<_> = tokens.collect();
        assert_eq!(left.len(), 2);
    }
}
