//! Which elements of a page give points; what is no content goes on the way.

use html5ever::local_name;

use super::names::Name;
use super::prepare::{is_phrasing, is_space};
use super::title::Title;
use super::tree::Id;
use super::{Draft, words};

/// Elements as near as this to a table or code are no menus, whatever their class says.
const PROTECTED_DEPTH: usize = 3;
/// A paragraph with more of its text in links is a menu.
const MAX_LINK_DENSITY: f32 = 0.25;

impl Draft<'_> {
    /// Takes out what is hidden, unlikely or empty; returns the elements that give points.
    pub fn collect(&mut self, body: Id, title: &Title) -> Vec<Id> {
        let mut scored = Vec::new();
        let mut wants_title = !title.is_empty();
        let mut next = self.tree.element_after(body);
        while let Some(id) = next {
            let name = self.tree.name(id);
            if name == Name::Svg && words::is_visible(self.page, &self.tree, id) {
                next = self.tree.element_behind(id);
                continue;
            }
            if self.is_no_content(id, name, title, &mut wants_title) {
                next = self.tree.element_behind(id);
                self.tree.remove(id);
                continue;
            }
            if name.is_scored() {
                scored.push(id);
            }
            let id = if name == Name::Div {
                self.make_paragraphs(id, &mut scored)
            } else {
                id
            };
            next = self.tree.element_after(id);
        }
        scored
    }

    fn is_no_content(&mut self, id: Id, name: Name, title: &Title, wants_title: &mut bool) -> bool {
        let (page, tree) = (self.page, &self.tree);
        if !words::is_visible(page, tree, id) || self.is_dialog(id, name) {
            return true;
        }
        let is_heading = matches!(name, Name::H1 | Name::H2);
        if *wants_title && is_heading && title.is_like(&page.whole_text(tree, id)) {
            *wants_title = false;
            return true;
        }
        if self.flags.strip && self.is_unlikely(id, name) {
            self.used.strip = true;
            return true;
        }
        name.needs_content() && self.is_empty(id)
    }

    fn is_dialog(&self, id: Id, name: Name) -> bool {
        let is = |name, value| self.page.plain_attribute(&self.tree, id, &name) == Some(value);
        name == Name::Dialog
            || is(local_name!("aria-modal"), "true") && is(local_name!("role"), "dialog")
    }

    fn is_unlikely(&self, id: Id, name: Name) -> bool {
        let (page, tree) = (self.page, &self.tree);
        if page.attributes(tree, id).is_empty() {
            return false;
        }
        words::has_unlikely_role(page, tree, id)
            || name != Name::A
                && words::is_unlikely(page, tree, id)
                && !tree
                    .ancestors(id)
                    .take(PROTECTED_DEPTH)
                    .any(|at| matches!(tree.name(at), Name::Table | Name::Code))
    }

    /// Whether an element has no text, and nothing but line breaks.
    fn is_empty(&self, id: Id) -> bool {
        let (page, tree) = (self.page, &self.tree);
        if tree.descendants(id).any(|at| page.is_full_text(tree, at)) {
            return false;
        }
        let n_children = tree.element_children(id).count();
        let is_break = |name| matches!(name, Name::Br | Name::Hr);
        n_children == 0 || n_children == tree.named(id, is_break).len()
    }

    /// Puts what stands in lines right within a `div` into paragraphs. A `div` of one paragraph,
    /// or without blocks, becomes a paragraph itself; returns what stands in its place.
    fn make_paragraphs(&mut self, div: Id, scored: &mut Vec<Id>) -> Id {
        let mut child = self.tree.first(div);
        while let Some(id) = child {
            child = self.wrap_line(id);
        }
        let paragraph = self.only_child(div, Name::P);
        let paragraph =
            paragraph.filter(|_| self.page.link_density(&self.tree, div, None) < MAX_LINK_DENSITY);
        if let Some(paragraph) = paragraph {
            self.tree.replace(div, paragraph);
            scored.push(paragraph);
            return paragraph;
        }
        if !self.tree.has_named(div, Name::is_block) {
            self.tree.node_mut(div).name = Name::P;
            scored.push(div);
        }
        div
    }

    /// Puts the line that begins with a node into a paragraph; returns what follows.
    fn wrap_line(&mut self, id: Id) -> Option<Id> {
        let mut next = self.tree.next(id);
        if self.is_space(id) || !is_phrasing(&self.tree, id) {
            return next;
        }
        let paragraph = self.tree.add_element(Name::P);
        self.tree.insert_before(id, paragraph);
        self.tree.append(paragraph, id);
        while let Some(at) = next {
            next = self.tree.next(at);
            if !is_phrasing(&self.tree, at) {
                break;
            }
            self.tree.append(paragraph, at);
        }
        while let Some(last) = self.tree.last(paragraph) {
            if !self.is_space(last) {
                break;
            }
            self.tree.remove(last);
        }
        next
    }

    fn is_space(&self, id: Id) -> bool {
        is_space(&self.page.texts, &self.tree, id)
    }

    /// The element of this name that is all that another holds.
    pub fn only_child(&self, id: Id, name: Name) -> Option<Id> {
        let mut elements = self.tree.element_children(id);
        let child = elements.next().filter(|&at| self.tree.name(at) == name)?;
        let is_alone = elements.next().is_none()
            && !self
                .tree
                .children(id)
                .any(|at| self.page.is_full_text(&self.tree, at));
        is_alone.then_some(child)
    }
}
