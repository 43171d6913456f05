//! What is taken out of the article: links to share by, forms, menus, what is empty.

use html5ever::{LocalName, local_name};

use super::names::Name;
use super::prepare::is_phrasing;
use super::tree::Id;
use super::{Draft, words};

/// A longer element is content, whatever its class says of sharing.
pub const MIN_ARTICLE_CHARS: usize = 500;
/// A column more than this spans is not believed.
const MAX_COLUMN_SPAN: usize = 1000;
/// A table with more cells, rows or columns holds data.
const MAX_LAYOUT_CELLS: usize = 10;
const MAX_LAYOUT_ROWS: usize = 9;
const MAX_LAYOUT_COLUMNS: usize = 4;

impl Draft<'_> {
    pub fn clean_article(&mut self, article: Id) {
        self.remove_sharing(article);
        self.mark_data_tables(article);
        self.add_lazy_images(article);
        if self.flags.clean {
            self.remove_menus(article, |name| matches!(name, Name::Form | Name::Fieldset));
        }
        self.remove_junk(article);
        for heading in self
            .tree
            .named(article, |name| matches!(name, Name::H1 | Name::H2))
        {
            if self.class_weight(heading) < 0.0 {
                self.tree.remove(heading);
            }
        }
        if self.flags.clean {
            self.remove_menus(article, |name| {
                matches!(name, Name::Table | Name::Ul | Name::Div)
            });
        }
        self.remove_empty_paragraphs(article);
        for line_break in self.tree.named(article, |name| name == Name::Br) {
            let next = self.tree.next_element(line_break);
            if next.is_some_and(|next| self.tree.name(next) == Name::P) {
                self.tree.remove(line_break);
            }
        }
        self.unwrap_single_cells(article);
    }

    fn remove_sharing(&mut self, article: Id) {
        let (page, tree) = (self.page, &self.tree);
        let has_sign = |&id: &Id| words::is_for_sharing(page, tree, id);
        let signed: Vec<Id> = tree.descendants(article).filter(has_sign).collect();
        for id in signed {
            if self.page.n_chars(&self.tree, id) < MIN_ARTICLE_CHARS {
                self.tree.remove(id);
            }
        }
    }

    fn mark_data_tables(&mut self, article: Id) {
        for table in self.tree.named(article, |name| name == Name::Table) {
            self.tree.node_mut(table).is_data_table = self.holds_data(table);
        }
    }

    /// Whether a table holds data, and is no means of layout.
    fn holds_data(&self, table: Id) -> bool {
        let (page, tree) = (self.page, &self.tree);
        let is = |name, value| page.attribute(tree, table, &name) == Some(value);
        if is(local_name!("role"), "presentation") || is(LocalName::from("datatable"), "0") {
            return false;
        }
        let is_part = |name| {
            matches!(
                name,
                Name::Caption | Name::Col | Name::Colgroup | Name::Tfoot | Name::Thead | Name::Th
            )
        };
        if page.has_attribute(tree, table, &local_name!("summary"))
            || tree.has_named(table, is_part)
        {
            return true;
        }
        if tree.has_named(table, |name| name == Name::Table) {
            return false;
        }
        let (n_rows, n_columns) = self.size_of(table);
        if n_rows == 1 || n_columns == 1 {
            return false;
        }
        n_rows > MAX_LAYOUT_ROWS
            || n_columns > MAX_LAYOUT_COLUMNS
            || n_rows * n_columns > MAX_LAYOUT_CELLS
    }

    fn size_of(&self, table: Id) -> (usize, usize) {
        let rows = self.tree.named(table, |name| name == Name::Tr);
        let n_columns = rows.iter().map(|&row| {
            let cells = self.tree.named(row, |name| name == Name::Td);
            cells.into_iter().map(|cell| self.column_span(cell)).sum()
        });
        (rows.len(), n_columns.max().unwrap_or_default())
    }

    fn column_span(&self, cell: Id) -> usize {
        let colspan = local_name!("colspan");
        let given = self.page.attribute(&self.tree, cell, &colspan);
        let given = given.unwrap_or("1");
        match given.parse::<usize>() {
            Ok(span) => span.clamp(1, MAX_COLUMN_SPAN),
            Err(_) if !given.is_empty() && given.bytes().all(|byte| byte.is_ascii_digit()) => {
                MAX_COLUMN_SPAN
            }
            Err(_) => 1,
        }
    }

    /// Gives a `figure` the image that a script would: images count where menus are found.
    fn add_lazy_images(&mut self, article: Id) {
        for figure in self.tree.named(article, |name| name == Name::Figure) {
            let is_image = |name| matches!(name, Name::Img | Name::Picture);
            if self.names_lazy_image(figure) && !self.tree.has_named(figure, is_image) {
                let image = self.tree.add_element(Name::Img);
                self.tree.append(figure, image);
            }
        }
    }

    fn names_lazy_image(&self, figure: Id) -> bool {
        let attributes = self.page.attributes(&self.tree, figure);
        let (src, srcset) = (local_name!("src"), local_name!("srcset"));
        let mut has_address = attributes.iter().any(|one| one.name.local == srcset);
        if let Some(address) = self.page.attribute(&self.tree, figure, &src) {
            let data = address.strip_prefix("data:");
            let data = data.and_then(|data| data.split_once(";base64,"));
            has_address |= match data.filter(|data| !data.1.is_empty()) {
                Some(("image/svg+xml", _)) => return false,
                Some((_, image)) => {
                    let mut others = attributes.iter().filter(|one| one.name.local != src);
                    image.len() >= 133 || !others.any(|one| words::names_image(&one.value))
                }
                None => true,
            };
        }
        let class = self
            .page
            .plain_attribute(&self.tree, figure, &local_name!("class"));
        if has_address && !class.is_some_and(|class| class.contains("lazy")) {
            return false;
        }
        attributes
            .iter()
            .filter(|one| !matches!(&*one.name.local, "src" | "srcset" | "alt"))
            .any(|one| words::is_image_address(&one.value))
    }

    fn remove_junk(&mut self, article: Id) {
        for id in self.tree.named(article, Name::is_junk) {
            let attributes = self.page.attributes(&self.tree, id);
            let is_video = self.tree.name(id).is_embed()
                && attributes.iter().any(|one| words::is_video(&one.value));
            if !is_video {
                self.tree.remove(id);
            }
        }
    }

    fn remove_empty_paragraphs(&mut self, article: Id) {
        for paragraph in self.tree.named(article, |name| name == Name::P) {
            let is_shown = |name: Name| name == Name::Img || name.is_embed();
            let is_empty = !self.tree.has_named(paragraph, is_shown)
                && self.page.n_chars(&self.tree, paragraph) == 0;
            if is_empty {
                self.tree.remove(paragraph);
            }
        }
    }

    fn unwrap_single_cells(&mut self, article: Id) {
        for table in self.tree.named(article, |name| name == Name::Table) {
            let body = self.only_child(table, Name::Tbody).unwrap_or(table);
            let row = self.only_child(body, Name::Tr);
            let Some(cell) = row.and_then(|row| self.only_child(row, Name::Td)) else {
                continue;
            };
            let is_line = self
                .tree
                .children(cell)
                .all(|at| is_phrasing(&self.tree, at));
            self.tree.node_mut(cell).name = if is_line { Name::P } else { Name::Div };
            self.tree.replace(table, cell);
        }
    }
}
