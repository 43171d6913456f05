//! How deep a page nests and how many nodes it has, before it is parsed.
//!
//! A tree builder takes time in proportion to its stack of open elements for many tags, and
//! what walks a tree later to its depth, or a stack overflow. So its rules for that stack are
//! followed over the bytes of the page, without a tree. Where they are simplified, more is
//! counted than the tree will have.
//!
//! Source: WHATWG, HTML Standard, section 13.2.4.

use memchr::{memchr_iter, memchr2_iter};

use super::elements::{Kind, kind_of, leaves_foreign};
use super::tags::{NAME_BYTES, Tag, Token, Tokens};
use super::{Limits, Problem};

/// Attributes of one tag: each is compared with all before it.
const MAX_ATTRIBUTES: usize = 256;
/// Equal formatting elements that are opened again.
const MAX_EQUAL: usize = 3;
/// How often the tree builder moves a formatting element through the blocks in it.
const MAX_MOVES: usize = 8;
/// Steps of some 10 ns: one for each open element at each tag and text, what a tree builder
/// may look at.
const MAX_STEPS: usize = 25_000_000;
/// Of a `<` or `&` in text, which is a token and an error of its own.
const SPECIAL_STEPS: usize = 50;
/// Of a byte of the title, which every heading is compared with.
const TITLE_STEPS: usize = 5;
/// Bytes that are looked through in a step.
const SEARCH_BYTES: usize = 256;
/// The first byte of a no-break space, and of others that are taken for one.
const NO_BREAK_BYTE: u8 = 0xc2;

/// Whether a page may be parsed within these limits.
pub fn check(page: &[u8], limits: &Limits) -> Result<(), Problem> {
    let mut nesting = Nesting::new(limits);
    let mut tokens = Tokens::new(page);
    while let Some(token) = tokens.next() {
        match token {
            Token::Comment => nesting.n_nodes += 1,
            Token::Text(text) => nesting.text(text),
            Token::Tag(tag) => nesting.tag(&tag, &mut tokens),
        }
        nesting.check()?;
    }
    nesting.end_text();
    nesting.check()
}

/// By which rules the content of an element is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rules {
    Html,
    /// SVG or `MathML`.
    Foreign,
    /// Either: nothing is taken for self-closing or for raw text.
    Unsure,
}

#[derive(Clone, Copy)]
struct Open {
    name: u64,
    kind: Kind,
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

struct Nesting<'a> {
    limits: &'a Limits,
    stack: Vec<Open>,
    active: Vec<Active>,
    n_paragraphs: usize,
    n_selects: usize,
    n_tables: usize,
    n_nodes: usize,
    n_attributes: usize,
    n_steps: usize,
    /// Of the title or a description.
    title_bytes: usize,
    /// Since the last node that is no text: bytes of text, and characters in it that are
    /// written as references.
    text_bytes: usize,
    n_references: usize,
}

impl<'a> Nesting<'a> {
    fn new(limits: &'a Limits) -> Self {
        Self {
            limits,
            stack: Vec::new(),
            active: Vec::new(),
            n_paragraphs: 0,
            n_selects: 0,
            n_tables: 0,
            n_nodes: 0,
            n_attributes: 0,
            n_steps: 0,
            title_bytes: 0,
            text_bytes: 0,
            n_references: 0,
        }
    }

    fn check(&mut self) -> Result<(), Problem> {
        self.n_steps += self.stack.len();
        // `html` and `body` are open as well.
        if self.stack.len() + 2 > self.limits.max_depth || self.n_steps > MAX_STEPS {
            return Err(Problem::TooDeep);
        }
        if self.n_nodes > self.limits.max_nodes || self.n_attributes > MAX_ATTRIBUTES {
            return Err(Problem::TooLarge);
        }
        Ok(())
    }

    fn rules(&self) -> Rules {
        self.stack.last().map_or(Rules::Html, |open| open.rules)
    }

    fn text(&mut self, text: &[u8]) {
        self.n_nodes += 1;
        let n_special = memchr2_iter(b'<', b'&', text).count();
        self.n_steps += SPECIAL_STEPS * n_special;
        self.n_references += n_special + memchr_iter(NO_BREAK_BYTE, text).count();
        self.text_bytes += text.len();
        if self.rules() != Rules::Foreign {
            self.open_again();
        }
    }

    fn tag(&mut self, tag: &Tag, tokens: &mut Tokens) {
        let mut buffer = [0; NAME_BYTES];
        let name = tag.lower_name(&mut buffer);
        self.n_attributes = tag.n_attributes;
        match name {
            b"meta" => self.title_bytes = self.title_bytes.max(tag.source.len()),
            b"h1" | b"h2" => self.n_steps += TITLE_STEPS * self.title_bytes,
            _ => {}
        }
        if tag.is_end {
            self.end_tag(name);
        } else {
            self.start_tag(name, tag, tokens);
        }
    }

    fn start_tag(&mut self, name: &[u8], tag: &Tag, tokens: &mut Tokens) {
        self.n_nodes += 1;
        let leaves = leaves_foreign(name);
        while leaves && self.rules() == Rules::Foreign {
            self.pop();
        }
        let rules = self.rules();
        if rules == Rules::Foreign {
            self.foreign_start_tag(name, tag);
            return;
        }
        let kind = match kind_of(name) {
            Kind::Integration | Kind::Annotation => Kind::Other,
            kind => kind,
        };
        if kind == Kind::PlainText || kind == Kind::Raw {
            // The text in it.
            self.n_nodes += 1;
            self.open_again();
            if rules == Rules::Unsure {
                self.push(name, Kind::Other, rules);
            } else if kind == Kind::PlainText {
                tokens.skip_all();
            } else {
                let n_bytes = tokens.skip_raw_text(name);
                if name == b"title" {
                    self.title_bytes = self.title_bytes.max(n_bytes);
                }
            }
            return;
        }
        let inner = match kind {
            Kind::Foreign if tag.is_self_closing && rules == Rules::Html => return,
            Kind::Foreign => Rules::Foreign,
            _ => rules,
        };
        if self.makes_room(name, kind) {
            self.push(name, kind, inner);
            if kind.is_formatting() {
                self.activate(name, kind, tag.source);
            } else if kind.bounds_formatting() {
                self.active.push(Active {
                    name: 0,
                    source: 0,
                    kind,
                    is_open: true,
                });
            }
        }
    }

    fn foreign_start_tag(&mut self, name: &[u8], tag: &Tag) {
        if tag.is_self_closing {
            return;
        }
        match kind_of(name) {
            // Whether it ends the drawing depends on its attributes.
            _ if name == b"font" => self.push(name, Kind::Other, Rules::Unsure),
            kind @ Kind::Annotation => self.push(name, kind, Rules::Unsure),
            kind @ Kind::Integration => self.push(name, kind, Rules::Html),
            _ if name == b"title" => self.push(name, Kind::Integration, Rules::Html),
            _ => self.push(name, Kind::Other, Rules::Foreign),
        }
    }

    /// Closes what the start of an element closes; returns whether it is then opened.
    fn makes_room(&mut self, name: &[u8], kind: Kind) -> bool {
        if kind.ends_paragraph() || name == b"hr" {
            self.close_paragraph();
        }
        match kind {
            Kind::Once => return false,
            Kind::Void => {
                self.end_text();
                if name != b"hr" {
                    self.open_again();
                }
                return false;
            }
            Kind::Heading => self.pop_last(|kind| kind == Kind::Heading),
            Kind::Option => {
                if self
                    .stack
                    .last()
                    .is_some_and(|open| open.name == hash(b"option"))
                {
                    self.pop();
                }
                self.open_again();
            }
            Kind::Ruby => {
                if self.stack.iter().any(|open| open.name == hash(b"ruby")) {
                    self.pop_last(|kind| kind == Kind::Ruby);
                }
            }
            Kind::ListItem | Kind::Definition => self.close_item(kind),
            Kind::Select => {
                if self.n_selects > 0 && self.close_in_scope(hash(name)) {
                    return false;
                }
                self.open_again();
            }
            Kind::Button => {
                self.close_in_scope(hash(name));
                self.open_again();
            }
            Kind::Table => {
                // Directly within a table it ends that one.
                let last = self.stack.last().map(|open| open.kind);
                if matches!(last, Some(Kind::Table | Kind::RowGroup | Kind::Row)) {
                    self.close_to(|kind| kind == Kind::Table, true);
                }
            }
            Kind::RowGroup | Kind::Caption | Kind::Row | Kind::Cell => return self.make_row(kind),
            Kind::Anchor => {
                if let Some(at) = self.find_active(hash(name)) {
                    self.close_formatting(at);
                }
                self.open_again();
            }
            Kind::Formatting | Kind::Other | Kind::Scope | Kind::Foreign => self.open_again(),
            _ => {}
        }
        true
    }

    /// Makes the stack ready for a part of a table; one without a table is none.
    fn make_row(&mut self, kind: Kind) -> bool {
        let is_outer = |outer: Kind| match kind {
            Kind::Cell => matches!(outer, Kind::Row | Kind::RowGroup | Kind::Table),
            Kind::Row => matches!(outer, Kind::RowGroup | Kind::Table),
            _ => outer == Kind::Table,
        };
        if self.n_tables == 0 {
            return self.stack.iter().any(|open| open.kind == Kind::Template);
        }
        self.close_to(is_outer, false);
        let outer = self.stack.last().map(|open| open.kind);
        if outer == Some(Kind::Table) && matches!(kind, Kind::Row | Kind::Cell) {
            self.push(b"tbody", Kind::RowGroup, Rules::Html);
            self.n_nodes += 1;
        }
        if outer != Some(Kind::Row) && kind == Kind::Cell {
            self.push(b"tr", Kind::Row, Rules::Html);
            self.n_nodes += 1;
        }
        true
    }

    fn end_tag(&mut self, name: &[u8]) {
        let (kind, name_hash) = (kind_of(name), hash(name));
        while self.rules() == Rules::Foreign && matches!(name, b"p" | b"br") {
            self.pop();
        }
        match kind {
            Kind::Once | Kind::Void | Kind::Raw | Kind::PlainText
                if self.rules() == Rules::Html =>
            {
                self.n_nodes += usize::from(name == b"br");
            }
            Kind::Formatting | Kind::Anchor if self.rules() != Rules::Foreign => {
                match self.find_active(name_hash) {
                    Some(at) => self.close_formatting(at),
                    None => self.close_other(name_hash),
                }
            }
            Kind::Paragraph => {
                // One that is not open is opened and closed.
                self.n_nodes += 1;
                self.close_paragraph();
            }
            Kind::ListItem => {
                let is_list = |open: &Open| open.name == hash(b"ul") || open.name == hash(b"ol");
                let list = self.stack.iter().rposition(is_list);
                let item = self
                    .stack
                    .iter()
                    .rposition(|open| open.kind == Kind::ListItem);
                if item > list {
                    self.close_in_scope(name_hash);
                }
            }
            Kind::Heading => {
                self.close_in_scope_if(|open| open.kind == Kind::Heading);
            }
            Kind::Form => {
                // What is open in it stays open.
                if let Some(at) = self.stack.iter().rposition(|open| open.kind == Kind::Form) {
                    self.stack.remove(at);
                }
            }
            Kind::Table | Kind::RowGroup | Kind::Caption | Kind::Row | Kind::Cell => {
                self.close_in_table(name_hash);
            }
            Kind::Integration | Kind::Annotation => self.close_other(name_hash),
            _ if kind.is_special() => {
                self.close_in_scope(name_hash);
            }
            _ => self.close_other(name_hash),
        }
    }

    fn push(&mut self, name: &[u8], kind: Kind, rules: Rules) {
        self.push_open(Open {
            name: hash(name),
            kind,
            rules,
        });
    }

    /// Counts what writing the text so far costs: each reference looks through what follows.
    fn end_text(&mut self) {
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

    fn pop(&mut self) {
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

    fn pop_last(&mut self, is_it: impl Fn(Kind) -> bool) {
        if self.stack.last().is_some_and(|open| is_it(open.kind)) {
            self.pop();
        }
    }

    fn close_paragraph(&mut self) {
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
    fn close_item(&mut self, kind: Kind) {
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

    fn close_in_scope(&mut self, name: u64) -> bool {
        self.close_in_scope_if(|open| open.name == name)
    }

    fn close_in_scope_if(&mut self, is_it: impl Fn(&Open) -> bool) -> bool {
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

    fn close_in_table(&mut self, name: u64) {
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
    fn close_to(&mut self, is_it: impl Fn(Kind) -> bool, inclusive: bool) {
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
    fn close_other(&mut self, name: u64) {
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
    fn find_active(&self, name: u64) -> Option<usize> {
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
    fn close_formatting(&mut self, at: usize) {
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

    fn activate(&mut self, name: &[u8], kind: Kind, source: &[u8]) {
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
    fn open_again(&mut self) {
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

fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf29ce484222325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100000001b3)
    })
}
