//! The elements that are open at a place in a page, and what closes them.
//!
//! Source: WHATWG, HTML Standard, section 13.2.4; 13.2.6.4.7 for formatting that blocks end in.

use memchr::{memchr_iter, memchr2_iter};

use super::elements::Kind;

/// Equal formatting elements that are opened again.
const MAX_EQUAL: usize = 3;
/// How often the tree builder moves a formatting element through the blocks in it.
const MAX_MOVES: usize = 8;
/// Of a `<` or `&` in text, which is a token and an error of its own.
const SPECIAL_STEPS: usize = 50;
/// Bytes that are looked through in a step.
const SEARCH_BYTES: usize = 256;
/// Tells names of SVG and `MathML` from those of HTML.
const FOREIGN: u64 = 1 << 63;
/// The first byte of a no-break space, and of others that are taken for one.
const NO_BREAK_BYTE: u8 = 0xc2;

/// By which rules the content of an element is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    Html,
    Svg,
    /// `MathML`.
    Math,
    /// Any of them: nothing is taken for self-closing or for raw text.
    Unsure,
}

impl Open {
    /// Whether it is an element of SVG or `MathML` itself.
    fn is_foreign(&self) -> bool {
        self.rules.is_foreign() || matches!(self.kind, Kind::Integration | Kind::Annotation)
    }
}

impl Rules {
    pub fn is_foreign(self) -> bool {
        matches!(self, Self::Svg | Self::Math)
    }
}

/// An open element.
#[derive(Clone, Copy)]
pub struct Open {
    /// Its hash.
    pub name: u64,
    pub kind: Kind,
    /// Of its content.
    rules: Rules,
}

/// A formatting element that is opened again where its block ends before it does.
struct Active {
    name: u64,
    /// Of the whole tag.
    source: u64,
    kind: Kind,
    is_open: bool,
}

/// The stack of open elements, the list of active formatting elements, and what both have cost.
#[derive(Default)]
pub struct OpenElements {
    pub stack: Vec<Open>,
    active: Vec<Active>,
    n_paragraphs: usize,
    pub n_selects: usize,
    pub n_tables: usize,
    pub n_nodes: usize,
    pub n_steps: usize,
    /// Since the last node that is no text: bytes of text, and characters in it that are
    /// written as references.
    text_bytes: usize,
    n_references: usize,
}

impl OpenElements {
    /// Text at this place.
    pub fn text(&mut self, text: &[u8]) {
        self.n_nodes += 1;
        let n_special = memchr2_iter(b'<', b'&', text).count();
        self.n_steps += SPECIAL_STEPS * n_special;
        self.n_references += n_special + memchr_iter(NO_BREAK_BYTE, text).count();
        self.text_bytes += text.len();
        if !self.rules().is_foreign() {
            self.open_again();
        }
    }

    /// Keeps formatting of outside from being opened again inside the element just opened.
    pub fn mark(&mut self, kind: Kind) {
        self.active.push(Active {
            name: 0,
            source: 0,
            kind,
            is_open: true,
        });
    }

    pub fn rules(&self) -> Rules {
        self.stack.last().map_or(Rules::Html, |open| open.rules)
    }

    pub fn push(&mut self, name: &[u8], kind: Kind, rules: Rules) {
        self.push_open(Open {
            name: hash(name),
            kind,
            rules,
        });
    }

    /// Opens an element of SVG or `MathML`, which no end tag of HTML closes.
    pub fn push_foreign(&mut self, name: &[u8], kind: Kind, rules: Rules) {
        self.push_open(Open {
            name: hash(name) ^ FOREIGN,
            kind,
            rules,
        });
    }

    /// Closes an element of SVG or `MathML`, if nothing of HTML is open in it.
    pub fn close_foreign(&mut self, name: u64) -> bool {
        for (at, open) in self.stack.iter().enumerate().rev() {
            if !open.is_foreign() {
                return false;
            }
            if open.name == name ^ FOREIGN {
                self.pop_to(at);
                return true;
            }
        }
        false
    }

    /// Counts what writing the text so far costs: each reference looks through what follows.
    pub fn end_text(&mut self) {
        self.n_steps += self.n_references.saturating_mul(self.text_bytes) / SEARCH_BYTES;
        (self.n_references, self.text_bytes) = (0, 0);
    }

    fn push_open(&mut self, open: Open) {
        self.end_text();
        self.n_paragraphs += usize::from(open.kind == Kind::Paragraph);
        self.n_selects += usize::from(open.kind == Kind::Select);
        self.n_tables += usize::from(open.kind == Kind::Table);
        self.stack.push(open);
    }

    pub fn pop(&mut self) {
        let Some(open) = self.stack.pop() else {
            return;
        };
        self.end_text();
        self.n_paragraphs -= usize::from(open.kind == Kind::Paragraph);
        self.n_selects -= usize::from(open.kind == Kind::Select);
        self.n_tables -= usize::from(open.kind == Kind::Table);
        if open.kind.is_formatting() {
            let mut of_name = self.active.iter_mut().rev();
            if let Some(active) = of_name.find(|one| one.is_open && one.name == open.name) {
                active.is_open = false;
            }
        } else if open.kind.bounds_formatting() {
            let mark = self
                .active
                .iter()
                .rposition(|one| !one.kind.is_formatting());
            self.active.truncate(mark.unwrap_or_default());
        }
    }

    /// Pops until so many are left.
    fn pop_to(&mut self, length: usize) {
        self.n_steps += self.stack.len() - length;
        while self.stack.len() > length {
            self.pop();
        }
    }

    pub fn pop_last(&mut self, is_it: impl Fn(Kind) -> bool) {
        if self.stack.last().is_some_and(|open| is_it(open.kind)) {
            self.pop();
        }
    }

    /// Whether an element of this name is open.
    pub fn holds(&self, name: &[u8]) -> bool {
        let name = hash(name);
        self.stack.iter().any(|open| open.name == name)
    }

    /// Closes what needs no end tag.
    pub fn close_implied(&mut self) {
        while let Some(Open {
            kind: Kind::Paragraph | Kind::ListItem | Kind::Definition | Kind::Option | Kind::Ruby,
            ..
        }) = self.stack.last()
        {
            self.pop();
        }
    }

    pub fn close_paragraph(&mut self) {
        if self.n_paragraphs == 0 {
            return;
        }
        for (at, open) in self.stack.iter().enumerate().rev() {
            if open.kind == Kind::Paragraph {
                self.pop_to(at);
                return;
            }
            if open.kind.bounds_scope() || open.kind == Kind::Button {
                return;
            }
        }
    }

    /// Closes an item of the same list.
    pub fn close_item(&mut self, kind: Kind) {
        for (at, open) in self.stack.iter().enumerate().rev() {
            if open.kind == kind {
                self.pop_to(at);
                return;
            }
            let passes = open.name == hash(b"div") || open.name == hash(b"address");
            if open.kind.is_special() && open.kind != Kind::Paragraph && !passes {
                return;
            }
        }
    }

    pub fn close_in_scope(&mut self, name: u64) -> bool {
        self.close_in_scope_if(|open| open.name == name)
    }

    pub fn close_in_scope_if(&mut self, is_it: impl Fn(&Open) -> bool) -> bool {
        for (at, open) in self.stack.iter().enumerate().rev() {
            if is_it(open) {
                self.pop_to(at);
                return true;
            }
            if open.kind.bounds_scope() {
                return false;
            }
        }
        false
    }

    pub fn close_in_table(&mut self, name: u64) {
        for (at, open) in self.stack.iter().enumerate().rev() {
            if open.name == name {
                self.pop_to(at);
                return;
            }
            if matches!(open.kind, Kind::Table | Kind::Template) {
                return;
            }
        }
    }

    /// Pops down to an element, with it or without.
    pub fn close_to(&mut self, is_it: impl Fn(Kind) -> bool, inclusive: bool) {
        for (at, open) in self.stack.iter().enumerate().rev() {
            if is_it(open.kind) {
                self.pop_to(if inclusive { at } else { at + 1 });
                return;
            }
            if open.kind == Kind::Template {
                return;
            }
        }
    }

    /// Closes an element that is no block, unless a block is open in it.
    pub fn close_other(&mut self, name: u64) {
        for (at, open) in self.stack.iter().enumerate().rev() {
            if open.name == name {
                self.pop_to(at);
                return;
            }
            if open.kind.is_special() {
                return;
            }
        }
    }

    /// The last formatting element of a name, since the last mark.
    pub fn find_active(&self, name: u64) -> Option<usize> {
        let since = self
            .active
            .iter()
            .rposition(|one| !one.kind.is_formatting());
        let start = since.map_or(0, |mark| mark + 1);
        let found = self.active[start..]
            .iter()
            .rposition(|one| one.name == name);
        found.map(|at| start + at)
    }

    /// Ends a formatting element, also one that blocks are still open in.
    pub fn close_formatting(&mut self, at: usize) {
        let Active { name, is_open, .. } = self.active[at];
        if !is_open {
            self.active.remove(at);
            return;
        }
        let is_it = |open: &Open| open.kind.is_formatting() && open.name == name;
        let Some(place) = self.stack.iter().rposition(is_it) else {
            self.active.remove(at);
            return;
        };
        let inner = &self.stack[place + 1..];
        if inner.iter().any(|open| open.kind.bounds_scope()) {
            return;
        }
        let n_blocks = inner.iter().filter(|open| open.kind.is_special()).count();
        self.n_nodes += n_blocks.min(MAX_MOVES);
        self.n_steps += inner.len();
        if n_blocks == 0 {
            self.pop_to(place + 1);
            self.stack.pop();
            self.active.remove(at);
        } else if n_blocks < MAX_MOVES {
            self.stack.remove(place);
            self.active.remove(at);
        }
    }

    pub fn activate(&mut self, name: &[u8], kind: Kind, source: &[u8]) {
        let (name, source) = (hash(name), hash(source));
        let is_equal = |one: &&Active| one.source == source;
        let since = self
            .active
            .iter()
            .rposition(|one| !one.kind.is_formatting());
        let start = since.map_or(0, |mark| mark + 1);
        if self.active[start..].iter().filter(is_equal).count() >= MAX_EQUAL {
            let first = self.active[start..]
                .iter()
                .position(|one| one.source == source);
            self.active.remove(start + first.unwrap_or_default());
        }
        self.n_steps += self.active.len() - start;
        self.active.push(Active {
            name,
            source,
            kind,
            is_open: true,
        });
    }

    /// Opens the formatting elements again that the end of a block has closed.
    pub fn open_again(&mut self) {
        let is_kept = |one: &Active| one.is_open || !one.kind.is_formatting();
        let start = self.active.iter().rposition(is_kept).map_or(0, |at| at + 1);
        for at in start..self.active.len() {
            let Active { name, kind, .. } = self.active[at];
            self.active[at].is_open = true;
            let rules = self.rules();
            self.push_open(Open { name, kind, rules });
            self.n_nodes += 1;
        }
    }
}

/// The hash of a name or tag.
pub fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf29ce484222325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100000001b3)
    })
}
