//! The main element: points, the best candidate, and what stands beside it.

use super::names::Name;
use super::page::{Count, share};
use super::tree::{Id, Kind, ROOT};
use super::{Draft, words};

const N_CANDIDATES: usize = 5;
/// Candidates whose common ancestor may be the main element.
const MIN_COMMON: usize = 3;
/// A shorter element gives no points.
const MIN_SCORED_CHARS: usize = 25;
/// So many ancestors of an element get its points.
const SCORED_DEPTH: usize = 5;
/// Fewer points than these stay as they are, whatever is in links.
const MIN_ADJUSTED_SCORE: f32 = 5.0;
/// Of the points of the best, for a candidate to count as its equal.
const MIN_EQUAL_SHARE: f32 = 0.75;
const MIN_SIBLING_SCORE: f32 = 10.0;
/// A shorter paragraph is taken only if it is a sentence without links.
const LONG_PARAGRAPH_CHARS: usize = 80;
const MAX_LINK_DENSITY: f32 = 0.25;

/// What is counted of each node of a tree, in one walk over it.
struct Counts {
    n_chars: Vec<u32>,
    n_commas: Vec<u32>,
    /// The links of an element among all of the page.
    links: Vec<(u32, u32)>,
    all_links: Vec<Id>,
}

impl Draft<'_> {
    /// Chooses the main element and puts it, with what belongs to it, into a `div`; returns that
    /// and where the article is, if anything of it is left. None if the page is of a shape that
    /// only the reference follows.
    pub fn article(&mut self, scored: &[Id], body: Id) -> Option<(Id, Option<Id>)> {
        let candidates = self.score(scored);
        let best = candidates
            .first()
            .copied()
            .filter(|&best| self.tree.name(best) != Name::Body);
        let main = match best {
            Some(best) => {
                let common = self.common_candidate(best, &candidates);
                self.lone_parent(common)
            }
            None => self.wrap_body(body),
        };
        if self.tree.node(main).score.is_nan() {
            self.set_own_score(main);
        }
        let parent = self.tree.parent(main)?;
        let article = self.tree.add_element(Name::Div);
        self.fill_article(main, parent, article);
        self.clean_article(article);
        // The whole body may have turned out to be a menu.
        let root = if best.is_some() { article } else { main };
        let is_left = root == article || self.tree.parent(main).is_some();
        Some((article, is_left.then_some(root)))
    }

    fn wrap_body(&mut self, body: Id) -> Id {
        let div = self.tree.add_element(Name::Div);
        self.tree.move_children(body, div);
        self.tree.append(body, div);
        self.set_own_score(div);
        div
    }

    fn own_score(&mut self, id: Id) -> f32 {
        if self.tree.node(id).kind == Kind::Element {
            self.tree.name(id).score() + self.class_weight(id)
        } else {
            0.0
        }
    }

    fn set_own_score(&mut self, id: Id) {
        let score = self.own_score(id);
        self.tree.node_mut(id).score = score;
    }

    /// Points for class and id, in attempts that go by them.
    pub fn class_weight(&mut self, id: Id) -> f32 {
        if !self.flags.weigh || self.page.attributes(&self.tree, id).is_empty() {
            return 0.0;
        }
        let weight = words::class_weight(self.page, &self.tree, id);
        self.used.weigh |= weight != 0.0;
        weight
    }

    fn score_of(&self, id: Id) -> f32 {
        let score = self.tree.node(id).score;
        if score.is_nan() { 0.0 } else { score }
    }

    /// Gives points to what is around the elements; returns those with most.
    fn score(&mut self, scored: &[Id]) -> Vec<Id> {
        let counts = self.count();
        let mut candidates = Vec::new();
        for &id in scored {
            let n_chars = counts.n_chars[id as usize] as usize;
            if n_chars < MIN_SCORED_CHARS {
                continue;
            }
            let points = 2 + counts.n_commas[id as usize] as usize + (n_chars / 100).min(3);
            self.give(id, points as f32, &mut candidates);
        }
        let mut found = Vec::new();
        for id in candidates {
            let base = self.tree.node(id).score;
            let score = if base > MIN_ADJUSTED_SCORE {
                base * (1.0 - self.counted_link_density(id, &counts))
            } else {
                base
            };
            self.tree.node_mut(id).score = if base > 0.0 { score } else { f32::NAN };
            if base > 0.0 {
                found.push((id, score));
            }
        }
        found.sort_by(|one, other| other.1.total_cmp(&one.1));
        found.truncate(N_CANDIDATES);
        found.into_iter().map(|one| one.0).collect()
    }

    fn give(&mut self, id: Id, points: f32, candidates: &mut Vec<Id>) {
        let mut at = id;
        for level in 0..SCORED_DEPTH {
            let Some(parent) = self.tree.parent(at) else {
                return;
            };
            at = parent;
            if !self.tree.is_element(at) || self.tree.parent(at).is_none() {
                continue;
            }
            let divider = match level {
                0 => 1.0,
                1 => 2.0,
                _ => (level * 3) as f32,
            };
            let extra = points / divider;
            let score = self.tree.node(at).score;
            let score = if score.is_nan() {
                candidates.push(at);
                extra + self.own_score(at)
            } else {
                score + extra
            };
            self.tree.node_mut(at).score = score;
            if self.tree.name(at) == Name::Body {
                return;
            }
        }
    }

    fn counted_link_density(&self, id: Id, counts: &Counts) -> f32 {
        let (start, end) = counts.links[id as usize];
        let mut in_links = 0.0;
        for &link in &counts.all_links[start as usize..end as usize] {
            in_links +=
                counts.n_chars[link as usize] as f32 * self.page.link_weight(&self.tree, link);
        }
        share(in_links, || counts.n_chars[id as usize] as usize)
    }

    fn count(&self) -> Counts {
        let n_nodes = self.tree.len();
        let mut counts = Counts {
            n_chars: vec![0; n_nodes],
            n_commas: vec![0; n_nodes],
            links: vec![(0, 0); n_nodes],
            all_links: Vec::new(),
        };
        self.count_into(&mut counts);
        counts
    }

    fn count_into(&self, counts: &mut Counts) {
        let (page, tree) = (self.page, &self.tree);
        let mut open = vec![(ROOT, Count::default(), 0)];
        let mut next = tree.first(ROOT);
        loop {
            while let Some(id) = next {
                if let Some(text) = page.text(tree, id) {
                    if let Some((_, count, n_commas)) = open.last_mut() {
                        count.add(text.count);
                        *n_commas += text.n_commas;
                    }
                    next = tree.next(id);
                    continue;
                }
                let is_link = tree.name(id) == Name::A;
                if is_link {
                    counts.all_links.push(id);
                }
                // An element is not among its own links.
                counts.links[id as usize].0 = counts.all_links.len() as u32;
                open.push((id, Count::default(), 0));
                next = tree.first(id);
            }
            let Some((id, count, n_commas)) = open.pop() else {
                return;
            };
            counts.n_chars[id as usize] = count.n_chars() as u32;
            counts.n_commas[id as usize] = n_commas;
            counts.links[id as usize].1 = counts.all_links.len() as u32;
            let Some((_, outer, n_outer)) = open.last_mut() else {
                return;
            };
            outer.add(count);
            *n_outer += n_commas;
            next = tree.next(id);
        }
    }

    /// A common ancestor of the best candidates, or an ancestor of the best with more points.
    fn common_candidate(&mut self, best: Id, candidates: &[Id]) -> Id {
        let tree = &self.tree;
        let is_equal = |&&id: &&Id| self.score_of(id) / self.score_of(best) >= MIN_EQUAL_SHARE;
        let others: Vec<Id> = candidates[1..].iter().filter(is_equal).copied().collect();
        let mut common = None;
        if others.len() > MIN_COMMON {
            let is_common = |&id: &Id| {
                let holds = |&&other: &&Id| tree.ancestors(other).any(|at| at == id);
                others.iter().filter(holds).count() >= MIN_COMMON
            };
            common = tree
                .ancestors(best)
                .take_while(|&id| tree.name(id) != Name::Body)
                .find(is_common);
        }
        self.better_ancestor(common.unwrap_or(best))
    }

    fn better_ancestor(&mut self, best: Id) -> Id {
        if self.tree.node(best).score.is_nan() {
            self.set_own_score(best);
        }
        let mut last = self.score_of(best);
        let threshold = last / 3.0;
        let mut parent = self.tree.parent(best);
        while let Some(id) = parent {
            if self.tree.name(id) == Name::Body {
                break;
            }
            let score = self.tree.node(id).score;
            if !score.is_nan() {
                if score < threshold {
                    break;
                }
                if score > last {
                    return id;
                }
                last = score;
            }
            parent = self.tree.parent(id);
        }
        best
    }

    /// The highest ancestor, below the body, that holds nothing else.
    fn lone_parent(&self, id: Id) -> Id {
        let mut main = id;
        while let Some(parent) = self.tree.parent(main) {
            let is_lone = self.tree.element_children(parent).nth(1).is_none();
            if self.tree.name(parent) == Name::Body || !is_lone {
                break;
            }
            main = parent;
        }
        main
    }

    fn fill_article(&mut self, main: Id, parent: Id, article: Id) {
        let siblings: Vec<Id> = self.tree.element_children(parent).collect();
        for sibling in siblings {
            if sibling != main && !self.belongs_to(sibling, main) {
                continue;
            }
            if !self.tree.name(sibling).stays_in_article() {
                self.tree.node_mut(sibling).name = Name::Div;
            }
            self.tree.append(article, sibling);
        }
        self.tree.append(parent, article);
    }

    fn belongs_to(&self, sibling: Id, main: Id) -> bool {
        let main_score = self.score_of(main);
        let threshold = (main_score * 0.2).max(MIN_SIBLING_SCORE);
        let score = self.score_of(sibling);
        if score > 0.0 {
            let class = self.page.class(&self.tree, main);
            let has_class = !class.is_empty() && self.page.class(&self.tree, sibling) == class;
            let bonus = if has_class { main_score * 0.2 } else { 0.0 };
            return score + bonus >= threshold;
        }
        self.tree.name(sibling) == Name::P && self.is_running_text(sibling)
    }

    fn is_running_text(&self, paragraph: Id) -> bool {
        let text = self.page.whole_text(&self.tree, paragraph);
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let n_chars = text.chars().count();
        let density = self.page.link_density(&self.tree, paragraph, Some(n_chars));
        let is_sentence = || text.ends_with('.') || text.contains(". ");
        n_chars > LONG_PARAGRAPH_CHARS && density < MAX_LINK_DENSITY
            || (1..LONG_PARAGRAPH_CHARS).contains(&n_chars) && density == 0.0 && is_sentence()
    }
}
