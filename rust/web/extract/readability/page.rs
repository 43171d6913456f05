//! A parsed page: the tree, and what its nodes hold, which no later step changes.

use html5ever::tendril::StrTendril;
use html5ever::{Attribute, LocalName, QualName, local_name, ns};

use super::tree::{Id, Kind, NO_CONTENT, Tree};

#[derive(Debug)]
pub struct Element {
    pub name: QualName,
    pub attributes: Vec<Attribute>,
    /// `annotation-xml` that holds HTML.
    pub is_annotation: bool,
}

/// A text, and what is counted of it, once for all.
#[derive(Debug)]
pub struct Text {
    pub content: StrTendril,
    pub count: Count,
    pub is_blank: bool,
    pub n_ascii_commas: u32,
    /// Of all scripts.
    pub n_commas: u32,
}

/// Characters of a run of texts where those of white space that follow one another are one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    has_text: bool,
    starts_with_space: bool,
    ends_with_space: bool,
    /// With white space at both ends.
    n_chars: u32,
}

impl Count {
    pub fn of(text: &str) -> Self {
        let mut n_chars = 0;
        let mut is_space = false;
        for letter in text.chars() {
            let was_space = is_space;
            is_space = letter.is_whitespace();
            n_chars += u32::from(!(was_space && is_space));
        }
        Self {
            has_text: true,
            starts_with_space: text.starts_with(char::is_whitespace),
            ends_with_space: is_space,
            n_chars,
        }
    }

    /// With what follows.
    pub fn add(&mut self, next: Self) {
        if !next.has_text {
            return;
        }
        if !self.has_text {
            *self = next;
            return;
        }
        let is_one_space = self.ends_with_space && next.starts_with_space;
        self.n_chars += next.n_chars - u32::from(is_one_space);
        self.ends_with_space = next.ends_with_space;
    }

    /// Without white space at either end.
    pub fn n_chars(self) -> usize {
        let n_chars = self.n_chars - u32::from(self.starts_with_space);
        (n_chars - u32::from(self.ends_with_space && n_chars > 0)) as usize
    }
}

#[derive(Debug, Default)]
pub struct Page {
    pub tree: Tree,
    pub elements: Vec<Element>,
    pub texts: Vec<Text>,
    /// It holds what only the reference follows.
    pub is_unusual: bool,
}

impl Page {
    pub fn attributes(&self, tree: &Tree, id: Id) -> &[Attribute] {
        let node = tree.node(id);
        if node.kind != Kind::Element || node.content == NO_CONTENT {
            return &[];
        }
        &self.elements[node.content as usize].attributes
    }

    /// The value of an attribute, in any namespace.
    pub fn attribute(&self, tree: &Tree, id: Id, name: &LocalName) -> Option<&str> {
        self.attributes(tree, id)
            .iter()
            .find(|one| one.name.local == *name)
            .map(|one| &*one.value)
    }

    pub fn has_attribute(&self, tree: &Tree, id: Id, name: &LocalName) -> bool {
        self.attribute(tree, id, name).is_some()
    }

    /// The value of an attribute that is of no namespace.
    pub fn plain_attribute(&self, tree: &Tree, id: Id, name: &LocalName) -> Option<&str> {
        self.attributes(tree, id)
            .iter()
            .find(|one| one.name.local == *name && one.name.ns == ns!())
            .map(|one| &*one.value)
    }

    pub fn is_html(&self, tree: &Tree, id: Id) -> bool {
        let content = tree.node(id).content;
        content == NO_CONTENT || self.elements[content as usize].name.ns == ns!(html)
    }

    pub fn class<'a>(&'a self, tree: &Tree, id: Id) -> &'a str {
        self.attribute(tree, id, &local_name!("class"))
            .unwrap_or_default()
    }

    pub fn text(&self, tree: &Tree, id: Id) -> Option<&Text> {
        let node = tree.node(id);
        (node.kind == Kind::Text).then(|| &self.texts[node.content as usize])
    }

    pub fn is_full_text(&self, tree: &Tree, id: Id) -> bool {
        self.text(tree, id).is_some_and(|text| !text.is_blank)
    }

    /// The text of a node and all that it holds, as it stands.
    pub fn whole_text(&self, tree: &Tree, id: Id) -> String {
        let mut whole = String::new();
        for node in std::iter::once(id).chain(tree.descendants(id)) {
            if let Some(text) = self.text(tree, node) {
                whole.push_str(&text.content);
            }
        }
        whole
    }

    /// The characters of its text, with one for each run of white space.
    pub fn n_chars(&self, tree: &Tree, id: Id) -> usize {
        let mut count = Count::default();
        for node in tree.descendants(id) {
            if let Some(text) = self.text(tree, node) {
                count.add(text.count);
            }
        }
        count.n_chars()
    }

    /// The share of its text that is in links; those within the page count less.
    pub fn link_density(&self, tree: &Tree, id: Id, n_chars: Option<usize>) -> f32 {
        let mut in_links = 0.0;
        for link in tree.named(id, |name| name == super::names::Name::A) {
            in_links += self.n_chars(tree, link) as f32 * self.link_weight(tree, link);
        }
        share(in_links, || {
            n_chars.unwrap_or_else(|| self.n_chars(tree, id))
        })
    }

    pub fn link_weight(&self, tree: &Tree, link: Id) -> f32 {
        let href = self.attribute(tree, link, &local_name!("href"));
        let is_within = href.is_some_and(|href| href.len() > 1 && href.starts_with('#'));
        if is_within { 0.3 } else { 1.0 }
    }
}

/// The share of characters in links.
pub fn share(in_links: f32, n_chars: impl FnOnce() -> usize) -> f32 {
    if in_links == 0.0 {
        return 0.0;
    }
    match n_chars() {
        0 => 0.0,
        n_chars => in_links / n_chars as f32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_counts_once_wherever_a_text_is_cut() {
        for text in ["", " ", "a", "  a  b ", "a\u{3000} \n b", "é  "] {
            let expected = text.split_whitespace().collect::<Vec<_>>().join(" ");
            let n_chars = expected.chars().count();
            assert_eq!(Count::of(text).n_chars(), n_chars, "{text:?}");
            for (first, _) in text.char_indices().skip(1) {
                for (second, _) in text.char_indices().filter(|cut| cut.0 > first) {
                    let parts = [&text[..first], &text[first..second], &text[second..]];
                    let mut count = Count::default();
                    for part in parts {
                        count.add(Count::of(part));
                    }
                    assert_eq!(count.n_chars(), n_chars, "{parts:?}");
                }
            }
        }
    }
}
