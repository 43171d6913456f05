//! What is done to a page once, before its main element is looked for.

use html5ever::local_name;

use super::names::Name;
use super::page::Page;
use super::title::{Head, read_head};
use super::tree::{Id, Kind, NO_CONTENT, ROOT, Tree};
use super::words;

/// A longer text names no author.
const MAX_BYLINE_CHARS: usize = 100;

/// Takes out of a page what is no content whatever stands around it; returns what its head says.
pub fn prepare(page: &mut Page) -> Head {
    let head = read_head(page);
    if !head.has_author {
        remove_byline(page);
    }
    remove_empty_images(page);
    show_images_without_scripts(page);
    let is_code = |name| matches!(name, Name::Script | Name::Noscript | Name::Style);
    remove_named(&mut page.tree, is_code);
    join_line_breaks(page);
    for font in page.tree.named(ROOT, |name| name == Name::Font) {
        let node = page.tree.node_mut(font);
        (node.name, node.content) = (Name::Span, NO_CONTENT);
    }
    let tree = &mut page.tree;
    let is_comment = |&id: &Id| tree.node(id).kind == Kind::Comment;
    let comments: Vec<Id> = tree.descendants(ROOT).filter(is_comment).collect();
    for comment in comments {
        tree.remove(comment);
    }
    head
}

fn remove_named(tree: &mut Tree, is_name: impl Fn(Name) -> bool) {
    for id in tree.named(ROOT, is_name) {
        tree.remove(id);
    }
}

/// Removes the first element that names an author.
fn remove_byline(page: &mut Page) {
    let tree = &page.tree;
    let child = |id, name| tree.element_children(id).find(|&id| tree.name(id) == name);
    let body = child(ROOT, Name::Html).and_then(|html| child(html, Name::Body));
    let mut next = body.and_then(|body| tree.element_after(body));
    while let Some(id) = next {
        if words::is_byline(page, tree, id) {
            let n_chars = page.whole_text(tree, id).trim().chars().count();
            if (1..MAX_BYLINE_CHARS).contains(&n_chars) {
                page.tree.remove(id);
                return;
            }
        }
        next = tree.element_after(id);
    }
}

fn remove_empty_images(page: &mut Page) {
    for image in page.tree.named(ROOT, |name| name == Name::Img) {
        let has_address = page.attributes(&page.tree, image).iter().any(|one| {
            matches!(
                &*one.name.local,
                "src" | "data-src" | "data-srcset" | "srcset"
            ) || words::names_image(&one.value)
        });
        if !has_address {
            page.tree.remove(image);
        }
    }
}

/// Puts the image of a `noscript` in the place of the one before it that a script would change.
fn show_images_without_scripts(page: &mut Page) {
    let tree = &page.tree;
    let is_image = |id| tree.is_element(id) && tree.name(id) == Name::Img;
    let mut blocks = tree.named(ROOT, |name| name == Name::Noscript);
    blocks.retain(|&block| {
        tree.descendants(block)
            .any(|id| is_image(id) && is_only_element(tree, id))
    });
    for block in blocks {
        show_image(page, block);
    }
}

fn show_image(page: &mut Page, block: Id) {
    let tree = &page.tree;
    let is_image = |id: &Id| tree.is_element(*id) && tree.name(*id) == Name::Img;
    let is_only_image = |id: &Id| is_image(id) && is_only_element(tree, *id);
    let Some(before) = tree.previous_element(block) else {
        return;
    };
    let old = if is_image(&before) {
        Some(before)
    } else if tree.children(before).any(|id| is_only_image(&id)) {
        tree.descendants(before).find(is_only_image)
    } else {
        None
    };
    let new = tree.descendants(block).find(is_image);
    if let (Some(old), Some(new)) = (old, new) {
        copy_addresses(page, old, new);
        page.tree.replace(old, new);
    }
}

fn is_only_element(tree: &Tree, id: Id) -> bool {
    tree.next_element(id).is_none() && tree.previous_element(id).is_none()
}

/// An image keeps its own attributes; what it lacks it takes from the other.
fn copy_addresses(page: &mut Page, from: Id, to: Id) {
    let content = page.tree.node(to).content;
    for attribute in page.attributes(&page.tree, from).to_vec() {
        let name = &attribute.name.local;
        let is_address = *name == local_name!("src") || *name == local_name!("srcset");
        let is_wanted = is_address || words::names_image(&attribute.value);
        if is_wanted && !attribute.value.is_empty() && !page.has_attribute(&page.tree, to, name) {
            let attributes = &mut page.elements[content as usize].attributes;
            attributes.push(attribute);
        }
    }
}

/// Makes two or more line breaks, and the line behind them, a paragraph.
fn join_line_breaks(page: &mut Page) {
    for line_break in page.tree.named(ROOT, |name| name == Name::Br) {
        if remove_breaks_behind(page, line_break) {
            let paragraph = page.tree.add_element(Name::P);
            page.tree.replace(line_break, paragraph);
            fill_paragraph(page, paragraph);
        }
    }
}

fn remove_breaks_behind(page: &mut Page, line_break: Id) -> bool {
    let mut has_removed = false;
    let mut next = page.tree.next(line_break);
    while let Some(id) = next_with_content(page, next) {
        if page.tree.name(id) != Name::Br {
            break;
        }
        has_removed = true;
        next = page.tree.next(id);
        page.tree.remove(id);
    }
    has_removed
}

fn fill_paragraph(page: &mut Page, paragraph: Id) {
    let mut next = page.tree.next(paragraph);
    while let Some(id) = next {
        let follows = page.tree.next(id);
        if page.tree.name(id) == Name::Br {
            let behind = next_with_content(page, follows);
            if behind.is_some_and(|id| page.tree.name(id) == Name::Br) {
                break;
            }
        }
        if !is_phrasing(&page.tree, id) {
            break;
        }
        next = follows;
        page.tree.append(paragraph, id);
    }
    let tree = &mut page.tree;
    while let Some(last) = tree.last(paragraph) {
        if !is_space(&page.texts, tree, last) {
            break;
        }
        tree.remove(last);
    }
    let parent = tree.parent(paragraph);
    if let Some(parent) = parent.filter(|&parent| tree.name(parent) == Name::P) {
        tree.node_mut(parent).name = Name::Div;
    }
}

/// This node or the next that is an element or a text that is not blank.
fn next_with_content(page: &Page, from: Option<Id>) -> Option<Id> {
    let tree = &page.tree;
    std::iter::successors(from, |&id| tree.next(id))
        .find(|&id| tree.is_element(id) || page.is_full_text(tree, id))
}

/// White space, as text or as a line break.
pub fn is_space(texts: &[super::page::Text], tree: &Tree, id: Id) -> bool {
    let node = tree.node(id);
    node.name == Name::Br || node.kind == Kind::Text && texts[node.content as usize].is_blank
}

/// Text, and what stands within a line.
pub fn is_phrasing(tree: &Tree, id: Id) -> bool {
    let name = tree.name(id);
    tree.is_text(id)
        || name.is_phrasing()
        || name.is_phrasing_wrapper()
            && tree.first(id).is_some()
            && tree.children(id).all(|child| is_phrasing(tree, child))
}
