//! From the tree builder of `html5ever` to our tree.

use std::borrow::Cow;
use std::cell::{Ref, RefCell};

use html5ever::interface::{ElementFlags, NodeOrText, QuirksMode, TreeSink};
use html5ever::tendril::{StrTendril, TendrilSink};
use html5ever::tree_builder::TreeBuilderOpts;
use html5ever::{Attribute, ParseOpts, QualName, local_name, parse_document};

use super::names::Name;
use super::page::{Count, Element, Page, Text};
use super::tree::{Id, Kind, NO_CONTENT, ROOT};
use super::words;

/// The page as a browser without scripts sees it.
pub fn parse(html: &str) -> Page {
    let options = ParseOpts {
        tree_builder: TreeBuilderOpts {
            scripting_enabled: false,
            ..TreeBuilderOpts::default()
        },
        ..ParseOpts::default()
    };
    let mut page = parse_document(Sink::default(), options).one(html);
    for text in &mut page.texts {
        measure(text);
    }
    page
}

fn measure(text: &mut Text) {
    text.count = Count::of(&text.content);
    text.is_blank = text.content.chars().all(char::is_whitespace);
    text.n_ascii_commas = memchr::memchr_iter(b',', text.content.as_bytes()).count() as u32;
    let n_others = if text.content.is_ascii() {
        0
    } else {
        text.content
            .chars()
            .filter(|&letter| words::is_other_comma(letter))
            .count() as u32
    };
    text.n_commas = text.n_ascii_commas + n_others;
}

#[derive(Default)]
struct Sink(RefCell<Page>);

impl Page {
    fn add_text(&mut self, content: StrTendril) -> Id {
        self.texts.push(Text {
            content,
            count: Count::default(),
            is_blank: false,
            n_ascii_commas: 0,
            n_commas: 0,
        });
        let content = self.texts.len() as u32 - 1;
        self.tree.add(Kind::Text, Name::Other, content)
    }

    /// Whether the text was put to the end of that of a node.
    fn has_extended(&mut self, node: Option<Id>, text: &StrTendril) -> bool {
        let Some(node) = node.filter(|&node| self.tree.is_text(node)) else {
            return false;
        };
        let content = self.tree.node(node).content;
        self.texts[content as usize].content.push_tendril(text);
        true
    }

    /// Elements that only the reference follows: those with the marks that it writes into
    /// attributes, and `object`, whose source it looks into.
    fn note_unusual(&mut self, name: Name, attributes: &[Attribute]) {
        self.is_unusual |= name == Name::Object
            || attributes.iter().any(|one| {
                one.name.local.starts_with("data-readability-")
                    || one.name.local == local_name!("id") && &*one.value == "readability-page-1"
            });
    }
}

impl TreeSink for Sink {
    type Handle = Id;
    type Output = Page;
    type ElemName<'a> = Ref<'a, QualName>;

    fn finish(self) -> Page {
        self.0.into_inner()
    }

    fn parse_error(&self, _: Cow<'static, str>) {}

    fn get_document(&self) -> Id {
        ROOT
    }

    fn set_quirks_mode(&self, _: QuirksMode) {}

    fn same_node(&self, one: &Id, other: &Id) -> bool {
        one == other
    }

    fn elem_name<'a>(&'a self, target: &'a Id) -> Ref<'a, QualName> {
        Ref::map(self.0.borrow(), |page| {
            let content = page.tree.node(*target).content;
            &page.elements[content as usize].name
        })
    }

    fn create_element(
        &self,
        name: QualName,
        attributes: Vec<Attribute>,
        flags: ElementFlags,
    ) -> Id {
        let page = &mut *self.0.borrow_mut();
        let known = Name::of(&name.local);
        page.note_unusual(known, &attributes);
        page.elements.push(Element {
            name,
            attributes,
            is_annotation: flags.mathml_annotation_xml_integration_point,
        });
        let content = page.elements.len() as u32 - 1;
        let id = page.tree.add(Kind::Element, known, content);
        if flags.template {
            page.tree.add(Kind::Root, Name::Other, NO_CONTENT);
        }
        id
    }

    fn create_comment(&self, _: StrTendril) -> Id {
        let page = &mut *self.0.borrow_mut();
        page.tree.add(Kind::Comment, Name::Other, NO_CONTENT)
    }

    fn create_pi(&self, _: StrTendril, _: StrTendril) -> Id {
        self.create_comment(StrTendril::new())
    }

    fn append(&self, parent: &Id, child: NodeOrText<Id>) {
        let page = &mut *self.0.borrow_mut();
        let id = match child {
            NodeOrText::AppendNode(id) => id,
            NodeOrText::AppendText(text) => {
                if page.has_extended(page.tree.last(*parent), &text) {
                    return;
                }
                page.add_text(text)
            }
        };
        page.tree.append(*parent, id);
    }

    fn append_before_sibling(&self, sibling: &Id, new: NodeOrText<Id>) {
        let page = &mut *self.0.borrow_mut();
        let id = match new {
            NodeOrText::AppendNode(id) => id,
            NodeOrText::AppendText(text) => {
                if page.has_extended(page.tree.previous(*sibling), &text) {
                    return;
                }
                page.add_text(text)
            }
        };
        page.tree.insert_before(*sibling, id);
    }

    fn append_based_on_parent_node(&self, element: &Id, previous: &Id, child: NodeOrText<Id>) {
        let has_parent = self.0.borrow().tree.parent(*element).is_some();
        if has_parent {
            self.append_before_sibling(element, child);
        } else {
            self.append(previous, child);
        }
    }

    fn append_doctype_to_document(&self, _: StrTendril, _: StrTendril, _: StrTendril) {}

    /// What a template holds was made right behind it.
    fn get_template_contents(&self, target: &Id) -> Id {
        target + 1
    }

    fn add_attrs_if_missing(&self, target: &Id, new: Vec<Attribute>) {
        let page = &mut *self.0.borrow_mut();
        page.note_unusual(Name::Other, &new);
        let content = page.tree.node(*target).content;
        let attributes = &mut page.elements[content as usize].attributes;
        let n_old = attributes.len();
        for attribute in new {
            if attributes[..n_old]
                .iter()
                .all(|old| old.name != attribute.name)
            {
                attributes.push(attribute);
            }
        }
    }

    fn remove_from_parent(&self, target: &Id) {
        self.0.borrow_mut().tree.remove(*target);
    }

    fn reparent_children(&self, node: &Id, new_parent: &Id) {
        self.0.borrow_mut().tree.move_children(*node, *new_parent);
    }

    fn is_mathml_annotation_xml_integration_point(&self, target: &Id) -> bool {
        let page = self.0.borrow();
        let content = page.tree.node(*target).content;
        page.elements[content as usize].is_annotation
    }
}
