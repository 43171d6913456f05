//! How deep a page nests and how many nodes it has, before it is parsed.
//!
//! A tree builder takes time in proportion to its stack of open elements for many tags, and
//! what walks a tree later to its depth, or a stack overflow. So its rules for that stack are
//! followed over the bytes of the page, without a tree. Where they are simplified, more is
//! counted than the tree will have.
//!
//! Source: WHATWG, HTML Standard, section 13.2.4.

use super::elements::{Kind, holds_html_in_math, holds_html_in_svg, kind_of, leaves_foreign};
use super::open_elements::{Open, OpenElements, Rules, hash};
use super::tags::{NAME_BYTES, Tag, Token, Tokens};
use super::{Limits, Problem};

/// Attributes of one tag: each is compared with all before it.
const MAX_ATTRIBUTES: usize = 256;
/// Steps of some 10 ns: one for each open element at each tag and text, what a tree builder
/// may look at.
const MAX_STEPS: usize = 25_000_000;
/// Of a byte of the title, which every heading is compared with.
const TITLE_STEPS: usize = 5;

/// Whether a page may be parsed within these limits.
pub fn check(page: &[u8], limits: &Limits) -> Result<(), Problem> {
    let mut nesting = Nesting {
        limits,
        open: OpenElements::default(),
        n_attributes: 0,
        title_bytes: 0,
    };
    let mut tokens = Tokens::new(page);
    while let Some(token) = tokens.next() {
        match token {
            Token::Comment => nesting.open.n_nodes += 1,
            Token::Text(text) => nesting.open.text(text),
            Token::Tag(tag) => nesting.tag(&tag, &mut tokens),
        }
        nesting.check()?;
    }
    nesting.open.end_text();
    nesting.n_attributes = tokens.n_cut_attributes();
    nesting.check()
}

struct Nesting<'a> {
    limits: &'a Limits,
    open: OpenElements,
    /// Of the last tag.
    n_attributes: usize,
    /// Of the title or a description.
    title_bytes: usize,
}

impl Nesting<'_> {
    fn check(&mut self) -> Result<(), Problem> {
        self.open.n_steps += self.open.stack.len();
        // `html` and `body` are open as well.
        if self.open.stack.len() + 2 > self.limits.max_depth || self.open.n_steps > MAX_STEPS {
            return Err(Problem::TooDeep);
        }
        if self.open.n_nodes > self.limits.max_nodes || self.n_attributes > MAX_ATTRIBUTES {
            return Err(Problem::TooLarge);
        }
        Ok(())
    }

    fn tag(&mut self, tag: &Tag, tokens: &mut Tokens) {
        let mut buffer = [0; NAME_BYTES];
        let name = tag.lower_name(&mut buffer);
        self.n_attributes = tag.n_attributes;
        match name {
            b"meta" => self.title_bytes = self.title_bytes.max(tag.source.len()),
            b"h1" | b"h2" => self.open.n_steps += TITLE_STEPS * self.title_bytes,
            _ => {}
        }
        if tag.is_end {
            self.end_tag(name);
        } else {
            self.start_tag(name, tag, tokens);
        }
    }

    fn start_tag(&mut self, name: &[u8], tag: &Tag, tokens: &mut Tokens) {
        self.open.n_nodes += 1;
        while self.open.rules().is_foreign() && leaves_foreign(name) {
            self.open.pop();
        }
        match self.open.rules() {
            Rules::Html => self.html_start_tag(name, tag, tokens),
            Rules::Svg | Rules::Math if tag.is_self_closing => {}
            rules @ (Rules::Svg | Rules::Math) => self.foreign_start_tag(name, rules),
            // Whatever it is, no more is open than if all of it is.
            Rules::Unsure => {
                self.open.open_again();
                self.open.push(name, Kind::Other, Rules::Unsure);
            }
        }
    }

    fn html_start_tag(&mut self, name: &[u8], tag: &Tag, tokens: &mut Tokens) {
        let kind = match kind_of(name) {
            Kind::Integration | Kind::Annotation => Kind::Other,
            kind => kind,
        };
        if kind == Kind::PlainText {
            tokens.skip_all();
        } else if kind == Kind::Raw {
            // With the text in it.
            self.open.n_nodes += 1;
            self.open.open_again();
            let n_bytes = tokens.skip_raw_text(name);
            // Its end tag, which could be taken for that of a drawing's title.
            if let Some(Token::Tag(end)) = tokens.next() {
                self.n_attributes = self.n_attributes.max(end.n_attributes);
            }
            if name == b"title" {
                self.title_bytes = self.title_bytes.max(n_bytes);
            }
        } else if kind == Kind::Foreign {
            self.open.open_again();
            let rules = if name == b"svg" {
                Rules::Svg
            } else {
                Rules::Math
            };
            if !tag.is_self_closing {
                self.open.push_foreign(name, kind, rules);
            }
        } else if self.makes_room(name, kind) {
            self.open.push(name, kind, Rules::Html);
            if kind.is_formatting() {
                self.open.activate(name, kind, tag.source);
            } else if kind.bounds_formatting() {
                self.open.mark(kind);
            }
        }
    }

    fn foreign_start_tag(&mut self, name: &[u8], rules: Rules) {
        let holds_html = match rules {
            Rules::Svg => holds_html_in_svg(name),
            _ => holds_html_in_math(name),
        };
        // Whether these do, or leave it, depends on their attributes.
        let is_unsure = matches!(name, b"font" | b"annotation-xml");
        if holds_html {
            self.open.push_foreign(name, Kind::Integration, Rules::Html);
        } else if is_unsure {
            self.open
                .push_foreign(name, Kind::Annotation, Rules::Unsure);
        } else {
            self.open.push_foreign(name, Kind::Other, rules);
        }
    }

    /// Closes what the start of an element closes; returns whether it is then opened.
    fn makes_room(&mut self, name: &[u8], kind: Kind) -> bool {
        if kind.ends_paragraph() || name == b"hr" {
            self.open.close_paragraph();
        }
        match kind {
            Kind::Once => return false,
            Kind::Void => {
                self.open.end_text();
                if name != b"hr" {
                    self.open.open_again();
                }
                return false;
            }
            Kind::Heading => self.open.pop_last(|kind| kind == Kind::Heading),
            Kind::Option => {
                if self
                    .open
                    .stack
                    .last()
                    .is_some_and(|open| open.name == hash(b"option"))
                {
                    self.open.pop();
                }
                self.open.open_again();
            }
            Kind::Ruby if self.open.holds(b"ruby") => self.open.close_implied(),
            Kind::ListItem | Kind::Definition => self.open.close_item(kind),
            Kind::Select => {
                if self.open.n_selects > 0 && self.open.close_in_scope(hash(name)) {
                    return false;
                }
                self.open.open_again();
            }
            Kind::Button => {
                self.open.close_in_scope(hash(name));
                self.open.open_again();
            }
            Kind::Table => {
                // Directly within a table it ends that one.
                let last = self.open.stack.last().map(|open| open.kind);
                if matches!(last, Some(Kind::Table | Kind::RowGroup | Kind::Row)) {
                    self.open.close_to(|kind| kind == Kind::Table, true);
                }
            }
            Kind::RowGroup | Kind::Caption | Kind::Row | Kind::Cell => return self.make_row(kind),
            Kind::Anchor => {
                if let Some(at) = self.open.find_active(hash(name)) {
                    self.open.close_formatting(at);
                }
                self.open.open_again();
            }
            Kind::Formatting | Kind::Other | Kind::Scope => self.open.open_again(),
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
        if self.open.n_tables == 0 {
            return self
                .open
                .stack
                .iter()
                .any(|open| open.kind == Kind::Template);
        }
        self.open.close_to(is_outer, false);
        let outer = self.open.stack.last().map(|open| open.kind);
        if outer == Some(Kind::Table) && matches!(kind, Kind::Row | Kind::Cell) {
            self.open.push(b"tbody", Kind::RowGroup, Rules::Html);
            self.open.n_nodes += 1;
        }
        if outer != Some(Kind::Row) && kind == Kind::Cell {
            self.open.push(b"tr", Kind::Row, Rules::Html);
            self.open.n_nodes += 1;
        }
        true
    }

    fn end_tag(&mut self, name: &[u8]) {
        let (kind, name_hash) = (kind_of(name), hash(name));
        while self.open.rules().is_foreign() && matches!(name, b"p" | b"br") {
            self.open.pop();
        }
        if self.open.close_foreign(name_hash) {
            return;
        }
        if self.open.rules() == Rules::Unsure {
            if self
                .open
                .stack
                .last()
                .is_some_and(|open| open.name == name_hash)
            {
                self.open.pop();
            }
            return;
        }
        match kind {
            Kind::Once | Kind::Void | Kind::Raw | Kind::PlainText => {
                self.open.n_nodes += usize::from(name == b"br");
            }
            Kind::Formatting | Kind::Anchor => match self.open.find_active(name_hash) {
                Some(at) => self.open.close_formatting(at),
                None => self.open.close_other(name_hash),
            },
            Kind::Paragraph => {
                // One that is not open is opened and closed.
                self.open.n_nodes += 1;
                self.open.close_paragraph();
            }
            Kind::ListItem => {
                let is_list = |open: &Open| open.name == hash(b"ul") || open.name == hash(b"ol");
                let list = self.open.stack.iter().rposition(is_list);
                let item = self
                    .open
                    .stack
                    .iter()
                    .rposition(|open| open.kind == Kind::ListItem);
                if item > list {
                    self.open.close_in_scope(name_hash);
                }
            }
            Kind::Heading => {
                self.open
                    .close_in_scope_if(|open| open.kind == Kind::Heading);
            }
            // What is open in it stays open, and in it.
            Kind::Form => self.open.pop_last(|kind| kind == Kind::Form),
            Kind::Table | Kind::RowGroup | Kind::Caption | Kind::Row | Kind::Cell => {
                self.open.close_in_table(name_hash);
            }
            Kind::Integration | Kind::Annotation | Kind::Apart => self.open.close_other(name_hash),
            _ if kind.is_special() => {
                self.open.close_in_scope(name_hash);
            }
            _ => self.open.close_other(name_hash),
        }
    }
}
