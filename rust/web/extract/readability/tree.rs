//! A tree of nodes in one vector: small, plain values, so that a copy of it is one of memory.

use super::names::Name;

/// A node, by its place in the tree.
pub type Id = u32;

/// No node.
const NONE: Id = Id::MAX;
/// The node that is above all others.
pub const ROOT: Id = 0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The page, or what a `template` holds.
    Root,
    Element,
    Text,
    Comment,
}

#[derive(Clone, Copy, Debug)]
pub struct Node {
    parent: Id,
    previous: Id,
    next: Id,
    first: Id,
    last: Id,
    /// Where the page keeps the attributes of the element, or the text.
    pub content: u32,
    /// Points; not a number for none.
    pub score: f32,
    pub kind: Kind,
    pub name: Name,
    pub is_data_table: bool,
}

/// An element of ours has no attributes.
pub const NO_CONTENT: u32 = u32::MAX;

#[derive(Clone, Debug)]
pub struct Tree {
    nodes: Vec<Node>,
}

impl Default for Tree {
    fn default() -> Self {
        let mut tree = Self { nodes: Vec::new() };
        tree.add(Kind::Root, Name::Other, NO_CONTENT);
        tree
    }
}

impl Tree {
    /// A node that stands nowhere.
    pub fn add(&mut self, kind: Kind, name: Name, content: u32) -> Id {
        let id = self.nodes.len() as Id;
        self.nodes.push(Node {
            parent: NONE,
            previous: NONE,
            next: NONE,
            first: NONE,
            last: NONE,
            content,
            score: f32::NAN,
            kind,
            name,
            is_data_table: false,
        });
        id
    }

    pub fn add_element(&mut self, name: Name) -> Id {
        self.add(Kind::Element, name, NO_CONTENT)
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    pub fn node_mut(&mut self, id: Id) -> &mut Node {
        &mut self.nodes[id as usize]
    }

    pub fn name(&self, id: Id) -> Name {
        self.node(id).name
    }

    pub fn is_element(&self, id: Id) -> bool {
        self.node(id).kind == Kind::Element
    }

    pub fn is_text(&self, id: Id) -> bool {
        self.node(id).kind == Kind::Text
    }

    pub fn parent(&self, id: Id) -> Option<Id> {
        some(self.node(id).parent)
    }

    pub fn next(&self, id: Id) -> Option<Id> {
        some(self.node(id).next)
    }

    pub fn previous(&self, id: Id) -> Option<Id> {
        some(self.node(id).previous)
    }

    pub fn first(&self, id: Id) -> Option<Id> {
        some(self.node(id).first)
    }

    pub fn last(&self, id: Id) -> Option<Id> {
        some(self.node(id).last)
    }

    pub fn children(&self, id: Id) -> impl Iterator<Item = Id> {
        std::iter::successors(self.first(id), |&child| self.next(child))
    }

    pub fn element_children(&self, id: Id) -> impl Iterator<Item = Id> {
        self.children(id).filter(|&child| self.is_element(child))
    }

    /// Its parent, the parent of that, and so on.
    pub fn ancestors(&self, id: Id) -> impl Iterator<Item = Id> {
        std::iter::successors(self.parent(id), |&parent| self.parent(parent))
    }

    /// All that it holds, in the order of the page.
    pub fn descendants(&self, root: Id) -> impl Iterator<Item = Id> {
        std::iter::successors(self.first(root), move |&id| self.following(id, root))
    }

    /// The elements of these names that it holds, in the order of the page.
    pub fn named(&self, root: Id, is_name: impl Fn(Name) -> bool) -> Vec<Id> {
        self.descendants(root)
            .filter(|&id| self.is_element(id) && is_name(self.name(id)))
            .collect()
    }

    pub fn has_named(&self, root: Id, is_name: impl Fn(Name) -> bool) -> bool {
        self.descendants(root)
            .any(|id| self.is_element(id) && is_name(self.name(id)))
    }

    fn following(&self, id: Id, root: Id) -> Option<Id> {
        self.first(id).or_else(|| self.following_outside(id, root))
    }

    fn following_outside(&self, id: Id, root: Id) -> Option<Id> {
        let mut at = id;
        loop {
            if let Some(next) = self.next(at) {
                return Some(next);
            }
            at = self.parent(at)?;
            if at == root {
                return None;
            }
        }
    }

    pub fn next_element(&self, id: Id) -> Option<Id> {
        std::iter::successors(self.next(id), |&at| self.next(at)).find(|&at| self.is_element(at))
    }

    pub fn previous_element(&self, id: Id) -> Option<Id> {
        std::iter::successors(self.previous(id), |&at| self.previous(at))
            .find(|&at| self.is_element(at))
    }

    /// The element that follows, to the end of the page.
    pub fn element_after(&self, id: Id) -> Option<Id> {
        self.element_children(id)
            .next()
            .or_else(|| self.element_behind(id))
    }

    /// The element that follows what it holds, to the end of the page.
    pub fn element_behind(&self, id: Id) -> Option<Id> {
        let mut at = id;
        loop {
            if let Some(next) = self.next_element(at) {
                return Some(next);
            }
            at = self.parent(at)?;
        }
    }

    /// Takes a node, with what it holds, out of the page.
    pub fn remove(&mut self, id: Id) {
        let Node {
            parent,
            previous,
            next,
            ..
        } = *self.node(id);
        if previous != NONE {
            self.node_mut(previous).next = next;
        } else if parent != NONE {
            self.node_mut(parent).first = next;
        }
        if next != NONE {
            self.node_mut(next).previous = previous;
        } else if parent != NONE {
            self.node_mut(parent).last = previous;
        }
        let node = self.node_mut(id);
        (node.parent, node.previous, node.next) = (NONE, NONE, NONE);
    }

    /// Moves a node to the end of what another holds.
    pub fn append(&mut self, parent: Id, id: Id) {
        self.remove(id);
        let last = self.node(parent).last;
        if last == NONE {
            self.node_mut(parent).first = id;
        } else {
            self.node_mut(last).next = id;
        }
        self.node_mut(parent).last = id;
        let node = self.node_mut(id);
        (node.parent, node.previous) = (parent, last);
    }

    /// Moves a node to before another.
    pub fn insert_before(&mut self, id: Id, new: Id) {
        self.remove(new);
        let Node {
            parent, previous, ..
        } = *self.node(id);
        self.node_mut(id).previous = new;
        let node = self.node_mut(new);
        (node.parent, node.previous, node.next) = (parent, previous, id);
        if previous != NONE {
            self.node_mut(previous).next = new;
        } else if parent != NONE {
            self.node_mut(parent).first = new;
        }
    }

    /// Puts a node where another was.
    pub fn replace(&mut self, id: Id, new: Id) {
        if id != new {
            self.insert_before(id, new);
            self.remove(id);
        }
    }

    /// Moves all that a node holds to the end of what another holds.
    pub fn move_children(&mut self, from: Id, to: Id) {
        while let Some(child) = self.first(from) {
            self.append(to, child);
        }
    }
}

fn some(id: Id) -> Option<Id> {
    (id != NONE).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `div` with three paragraphs, the second of which holds a link.
    fn small() -> (Tree, [Id; 5]) {
        let mut tree = Tree::default();
        let names = [Name::Div, Name::P, Name::P, Name::A, Name::P];
        let ids = names.map(|name| tree.add_element(name));
        tree.append(ROOT, ids[0]);
        for at in [1, 2, 4] {
            tree.append(ids[0], ids[at]);
        }
        tree.append(ids[2], ids[3]);
        (tree, ids)
    }

    fn all(tree: &Tree) -> Vec<Id> {
        tree.descendants(ROOT).collect()
    }

    #[test]
    fn walks_are_in_the_order_of_the_page() {
        let (tree, [div, first, second, link, third]) = small();
        assert_eq!(all(&tree), [div, first, second, link, third]);
        assert_eq!(tree.descendants(second).collect::<Vec<_>>(), [link]);
        assert_eq!(tree.descendants(first).count(), 0);
        assert_eq!(
            tree.ancestors(link).collect::<Vec<_>>(),
            [second, div, ROOT]
        );
        assert_eq!(tree.element_behind(link), Some(third));
        assert_eq!(tree.element_after(second), Some(link));
        assert_eq!(tree.element_after(third), None);
    }

    #[test]
    fn moves_keep_both_directions() {
        let (mut tree, [div, first, second, link, third]) = small();
        tree.insert_before(first, third);
        assert_eq!(all(&tree), [div, third, first, second, link]);
        tree.replace(first, link);
        assert_eq!(all(&tree), [div, third, link, second]);
        tree.replace(link, link);
        tree.move_children(div, second);
        assert_eq!(tree.first(div), None);
        tree.append(div, second);
        tree.remove(third);
        tree.remove(third);
        assert_eq!(all(&tree), [div, second, link]);
        let back: Vec<Id> =
            std::iter::successors(tree.last(second), |&id| tree.previous(id)).collect();
        assert_eq!(back, [link]);
    }
}
