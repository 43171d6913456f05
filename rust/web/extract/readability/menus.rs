//! Forms, tables, lists and blocks that hold more links, fields or pictures than text.

use super::names::Name;
use super::page::{Count, share};
use super::tree::{Id, Kind};
use super::{Draft, words};

/// With so many commas an element is text.
const MIN_COMMAS: u32 = 10;
/// So many more items than paragraphs are a menu.
const MAX_MORE_ITEMS: f32 = 100.0;
const SHORT_CHARS: usize = 25;
/// What is shorter than this and holds one embedded thing is there for that.
const EMBED_CHARS: usize = 75;
const HIGH_SHARE: f32 = 0.9;
const GOOD_WEIGHT: f32 = 25.0;

/// What is counted of an element, from what it holds.
#[derive(Clone, Debug, Default)]
struct Summary {
    count: Count,
    n_ascii_commas: u32,
    n_images: u32,
    n_paragraphs: u32,
    n_items: u32,
    n_inputs: u32,
    n_embeds: u32,
    n_videos: u32,
    n_data_tables: u32,
    n_pres: u32,
    /// Elements for text that hold some.
    n_textish: u32,
    /// Characters of all lists and of all headings, each for itself.
    list_chars: usize,
    heading_chars: usize,
    /// How many links stood before it.
    links_start: usize,
}

impl Summary {
    fn add(&mut self, inner: &Self) {
        self.count.add(inner.count);
        self.n_ascii_commas += inner.n_ascii_commas;
        self.n_images += inner.n_images;
        self.n_paragraphs += inner.n_paragraphs;
        self.n_items += inner.n_items;
        self.n_inputs += inner.n_inputs;
        self.n_embeds += inner.n_embeds;
        self.n_videos += inner.n_videos;
        self.n_data_tables += inner.n_data_tables;
        self.n_pres += inner.n_pres;
        self.n_textish += inner.n_textish;
        self.list_chars += inner.list_chars;
        self.heading_chars += inner.heading_chars;
    }

    /// Whether the lists, or the headings, have this share of the text.
    fn share_of(&self, n_chars: usize) -> f32 {
        match self.count.n_chars() {
            0 => 0.0,
            all => n_chars as f32 / all as f32,
        }
    }
}

/// A walk over an article that counts what each element holds as it leaves it.
#[derive(Default)]
struct Walk {
    open: Vec<(Id, Summary)>,
    /// Of each link the characters and their weight, in the order of the page.
    links: Vec<(usize, f32)>,
    /// The places of open links among all.
    open_links: Vec<usize>,
    /// Open data tables and figures.
    n_data_tables: usize,
    n_figures: usize,
}

impl Draft<'_> {
    /// Takes out the elements of these names that are no text, the inner before the outer.
    pub fn remove_menus(&mut self, article: Id, is_name: impl Fn(Name) -> bool) {
        let mut walk = Walk::default();
        let is_figure = |&id: &Id| self.tree.name(id) == Name::Figure;
        walk.n_figures = self.tree.ancestors(article).filter(is_figure).count();
        walk.open.push((article, Summary::default()));
        let mut next = self.tree.first(article);
        loop {
            while let Some(id) = next {
                next = self.enter(&mut walk, id);
            }
            let Some((id, mut summary)) = walk.open.pop().filter(|_| !walk.open.is_empty()) else {
                return;
            };
            next = self.tree.next(id);
            let is_menu = is_name(self.tree.name(id)) && self.is_menu(&walk, id, &summary);
            self.leave(&mut walk, id, &mut summary);
            if is_menu {
                self.used.clean = true;
                walk.links.truncate(summary.links_start);
                self.tree.remove(id);
            } else if let Some((_, outer)) = walk.open.last_mut() {
                outer.add(&summary);
            }
        }
    }

    /// Goes into an element, or past a text; returns what comes next on this level.
    fn enter(&self, walk: &mut Walk, id: Id) -> Option<Id> {
        let tree = &self.tree;
        if tree.node(id).kind != Kind::Element {
            if let (Some(text), Some((_, outer))) = (self.page.text(tree, id), walk.open.last_mut())
            {
                outer.count.add(text.count);
                outer.n_ascii_commas += text.n_ascii_commas;
            }
            return tree.next(id);
        }
        let name = tree.name(id);
        let summary = Summary {
            links_start: walk.links.len(),
            ..Summary::default()
        };
        if name == Name::A {
            walk.open_links.push(walk.links.len());
            walk.links.push((0, self.page.link_weight(tree, id)));
        }
        walk.n_data_tables += usize::from(tree.node(id).is_data_table);
        walk.n_figures += usize::from(name == Name::Figure);
        walk.open.push((id, summary));
        tree.first(id)
    }

    /// Counts the element itself, for what is around it.
    fn leave(&self, walk: &mut Walk, id: Id, summary: &mut Summary) {
        let name = self.tree.name(id);
        let n_chars = summary.count.n_chars();
        let link = (name == Name::A).then(|| walk.open_links.pop());
        if let Some(link) = link.flatten() {
            walk.links[link].0 = n_chars;
        }
        let is_data_table = self.tree.node(id).is_data_table;
        walk.n_data_tables -= usize::from(is_data_table);
        walk.n_figures -= usize::from(name == Name::Figure);
        summary.n_data_tables += u32::from(is_data_table);
        summary.n_images += u32::from(name == Name::Img);
        summary.n_paragraphs += u32::from(name == Name::P);
        summary.n_items += u32::from(name == Name::Li);
        summary.n_inputs += u32::from(name == Name::Input);
        summary.n_pres += u32::from(name == Name::Pre);
        summary.n_textish += u32::from(name.is_textish() && n_chars > 0);
        if name.is_embed() {
            summary.n_embeds += 1;
            let mut attributes = self.page.attributes(&self.tree, id).iter();
            summary.n_videos += u32::from(attributes.any(|one| words::is_video(&one.value)));
        }
        if matches!(name, Name::Ul | Name::Ol) {
            summary.list_chars += n_chars;
        }
        if name.is_heading() {
            summary.heading_chars += n_chars;
        }
    }

    fn is_menu(&mut self, walk: &Walk, id: Id, summary: &Summary) -> bool {
        // The element itself is among those that are open.
        if summary.n_data_tables > 0 || walk.n_data_tables > 0 {
            return false;
        }
        let weight = self.class_weight(id);
        if weight < 0.0 {
            return summary.n_pres == 0;
        }
        if summary.n_ascii_commas >= MIN_COMMAS || summary.n_videos > 0 {
            return false;
        }
        let n_chars = summary.count.n_chars();
        if words::may_be_notice(n_chars, || self.first_letter(id))
            && words::is_notice(&self.page.whole_text(&self.tree, id))
        {
            return true;
        }
        let is_list = matches!(self.tree.name(id), Name::Ul | Name::Ol)
            || summary.share_of(summary.list_chars) > HIGH_SHARE;
        let is_figure = walk.n_figures > usize::from(self.tree.name(id) == Name::Figure);
        let is_menu = looks_like_menu(walk, summary, weight, is_list, is_figure);
        if is_list && is_menu {
            return self.is_list_to_remove(id, summary);
        }
        is_menu
    }

    fn first_letter(&self, id: Id) -> Option<char> {
        let mut texts = self.tree.descendants(id);
        let full = |at| self.page.text(&self.tree, at).filter(|text| !text.is_blank);
        let text = texts.find_map(full)?;
        text.content.trim_start().chars().next()
    }

    /// Of a list that looks like a menu, whether it is more than one picture in each item.
    fn is_list_to_remove(&self, id: Id, summary: &Summary) -> bool {
        let tree = &self.tree;
        let mut children = tree.children(id);
        children.any(|child| tree.element_children(child).nth(1).is_some())
            || summary.n_images != summary.n_items
    }
}

impl Walk {
    fn link_density(&self, summary: &Summary) -> f32 {
        let mut in_links = 0.0;
        for &(n_chars, weight) in &self.links[summary.links_start..] {
            in_links += n_chars as f32 * weight;
        }
        share(in_links, || summary.count.n_chars())
    }
}

fn looks_like_menu(
    walk: &Walk,
    summary: &Summary,
    weight: f32,
    is_list: bool,
    is_in_figure: bool,
) -> bool {
    let n_images = summary.n_images;
    let n_paragraphs = summary.n_paragraphs as f32;
    let n_chars = summary.count.n_chars();
    if !is_in_figure && n_images > 1 && n_paragraphs / (n_images as f32) < 0.5
        || !is_list && summary.n_items as f32 - MAX_MORE_ITEMS > n_paragraphs
        || summary.n_inputs as f32 > (n_paragraphs / 3.0).floor()
    {
        return true;
    }
    let density = walk.link_density(summary);
    let is_short = n_chars < SHORT_CHARS && (n_images == 0 || n_images > 2);
    if !is_list
        && !is_in_figure
        && is_short
        && density > 0.0
        && summary.share_of(summary.heading_chars) < HIGH_SHARE
    {
        return true;
    }
    !is_list && weight < GOOD_WEIGHT && density > 0.2
        || weight >= GOOD_WEIGHT && density > 0.5
        || summary.n_embeds == 1 && n_chars < EMBED_CHARS
        || summary.n_embeds > 1
        || n_images == 0 && summary.n_textish == 0
}
