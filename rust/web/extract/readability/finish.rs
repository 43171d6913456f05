//! The text of an article, with its line breaks.

use html5ever::local_name;

use super::Draft;
use super::names::Name;
use super::tree::{Id, Kind};

impl Draft<'_> {
    /// The text of an article, after the last of what has no text in it is gone.
    pub fn finish(&mut self, article: Id) -> String {
        self.remove_dead_links(article);
        self.unwrap_lost_cells(article);
        self.join_nested(article);
        self.text_of(article)
    }

    /// Links that lead nowhere: scripts are not there any more.
    fn remove_dead_links(&mut self, article: Id) {
        for link in self.tree.named(article, |name| name == Name::A) {
            let is_script = |href: &str| href.starts_with("javascript:");
            if self.plain_href(link).is_some_and(is_script) {
                self.replace_script_link(link);
            }
        }
        for link in self.tree.named(article, |name| name == Name::A) {
            if self.tree.first(link).is_none() && self.plain_href(link).is_none() {
                self.tree.remove(link);
            }
        }
    }

    fn plain_href(&self, link: Id) -> Option<&str> {
        let href = local_name!("href");
        self.page.plain_attribute(&self.tree, link, &href)
    }

    /// A link to a script stays as its text, if it holds nothing else.
    fn replace_script_link(&mut self, link: Id) {
        match (self.tree.first(link), self.tree.last(link)) {
            (Some(text), Some(last)) if text == last && self.tree.is_text(text) => {
                self.tree.replace(link, text);
            }
            (Some(_), _) => self.tree.node_mut(link).name = Name::Span,
            _ => self.tree.remove(link),
        }
    }

    /// Cells outside of rows give what they hold to what is around them.
    fn unwrap_lost_cells(&mut self, article: Id) {
        let tree = &self.tree;
        let mut cells = tree.named(article, |name| name == Name::Td);
        cells.retain(|&cell| {
            let parent = tree.parent(cell);
            parent.is_some_and(|parent| tree.name(parent) != Name::Tr)
        });
        for cell in cells {
            if let Some(parent) = self.tree.parent(cell) {
                self.tree.move_children(cell, parent);
            }
            self.tree.remove(cell);
        }
    }

    /// Of blocks that hold one block alone the inner one stays; empty ones go.
    fn join_nested(&mut self, article: Id) {
        let is_nested = |name| matches!(name, Name::Div | Name::Section);
        for outer in self.tree.named(article, is_nested).into_iter().rev() {
            let inner = self.tree.element_children(outer).next();
            let inner = inner.filter(|&inner| {
                is_nested(self.tree.name(inner)) && self.tree.next_element(inner).is_none()
            });
            if let Some(inner) = inner {
                self.tree.replace(outer, inner);
            }
        }
        let tree = &self.tree;
        let mut empty = tree.named(article, is_nested);
        empty.retain(|&id| {
            !tree
                .children(id)
                .any(|at| tree.is_element(at) || self.page.is_full_text(tree, at))
        });
        for id in empty {
            self.tree.remove(id);
        }
    }

    fn text_of(&self, article: Id) -> String {
        let tree = &self.tree;
        let mut text = String::new();
        let mut at = article;
        let mut next = tree.first(article);
        loop {
            while let Some(id) = next {
                at = id;
                next = self.open(&mut text, id);
            }
            loop {
                if at == article {
                    text.truncate(text.trim_end().len());
                    return text;
                }
                if tree.node(at).kind == Kind::Element {
                    end_element(&mut text, tree.name(at));
                }
                next = tree.next(at);
                if next.is_some() {
                    break;
                }
                let Some(parent) = tree.parent(at) else {
                    return text;
                };
                at = parent;
            }
        }
    }

    /// Writes what a node begins with; returns the first of what it holds.
    fn open(&self, text: &mut String, id: Id) -> Option<Id> {
        let tree = &self.tree;
        if let Some(new) = self.page.text(tree, id) {
            push_words(text, &new.content);
            return None;
        }
        let name = tree.name(id);
        if name.breaks_lines() && !text.is_empty() && !text.ends_with("\n\n") {
            text.push('\n');
        }
        if name == Name::Pre {
            text.push_str(&self.page.whole_text(tree, id));
            return None;
        }
        tree.first(id)
    }
}

/// Adds the words of a text, with one space for each run of white space.
fn push_words(text: &mut String, new: &str) {
    let starts_line = text.is_empty() || text.ends_with(['\n', ' ']);
    let mut words = new.split_whitespace();
    let Some(first) = words.next() else {
        let is_new = !starts_line && !text.ends_with(char::is_whitespace);
        if is_new && !new.is_empty() {
            text.push(' ');
        }
        return;
    };
    if !starts_line && new.starts_with(char::is_whitespace) {
        text.push(' ');
    }
    text.push_str(first);
    for word in words {
        text.push(' ');
        text.push_str(word);
    }
    if new.ends_with(char::is_whitespace) {
        text.push(' ');
    }
}

fn end_element(text: &mut String, name: Name) {
    if text.is_empty() || text.ends_with("\n\n") {
        return;
    }
    if name.breaks_lines() {
        text.truncate(text.trim_end_matches(' ').len());
        text.push_str("\n\n");
    } else if matches!(name, Name::Br | Name::Hr | Name::Li | Name::Tr) {
        text.truncate(text.trim_end_matches(' ').len());
        text.push('\n');
    } else if matches!(name, Name::Td | Name::Th) && !text.ends_with(['\n', ' ']) {
        text.push(' ');
    }
}
