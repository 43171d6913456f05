//! From what a text is to the model to the scores of labels, one way for each training loss.
//!
//! All roundings are fastText's: f32, with logarithms and quotients in f64 where C++ widens.
//! Source: Joulin et al. 2016 (arXiv:1607.01759); `loss.cc` of fastText 0.9.2.

use super::LossKind;
use super::matrix::Matrix;

const MAX_SIGMOID: f32 = 8.0;
const SIGMOID_STEPS: u16 = 512;

/// How scores come from products.
pub enum Loss {
    /// A binary decision at each node on the way to a label.
    Tree(Tree),
    /// A decision for each label alone, out of a table of sigmoids.
    Logistic(Vec<f32>),
    /// Shares of all labels.
    Softmax,
}

impl Loss {
    pub fn new(kind: LossKind, counts: &[i64]) -> Self {
        match kind {
            LossKind::Tree => Self::Tree(Tree::new(counts)),
            LossKind::Logistic => Self::Logistic(sigmoids()),
            LossKind::Softmax => Self::Softmax,
        }
    }

    /// The likeliest label and its score; of equal ones the last. None where the tree finds all
    /// of them as good as impossible.
    pub fn best(&self, output: &Matrix, hidden: &[f32]) -> Option<(usize, f32)> {
        let mut best: Option<(usize, f32)> = None;
        let take = |label: usize, score: f32| {
            if best.is_none_or(|(_, highest)| score >= highest) {
                best = Some((label, score));
            }
            best.map_or(f32::MIN, |(_, highest)| highest)
        };
        self.for_each(output, hidden, take);
        best.map(|(label, score)| (label, score.exp()))
    }

    /// The score of each label; 0 where the tree finds one as good as impossible.
    pub fn all(&self, output: &Matrix, hidden: &[f32]) -> Vec<f32> {
        let mut scores = vec![0.0; output.n_rows()];
        self.for_each(output, hidden, |label, score| {
            scores[label] = score.exp();
            f32::MIN
        });
        scores
    }

    /// Tells each label and the logarithm of its score; what is returned is the least that can
    /// still matter.
    fn for_each(&self, output: &Matrix, hidden: &[f32], mut take: impl FnMut(usize, f32) -> f32) {
        let products = || (0..output.n_rows()).map(|label| output.dot(label, hidden));
        match self {
            Self::Tree(tree) => tree.for_each(output, hidden, take),
            Self::Logistic(table) => {
                for (label, product) in products().enumerate() {
                    take(label, log(sigmoid(table, product)));
                }
            }
            Self::Softmax => {
                let mut scores: Vec<f32> = products().collect();
                let highest = scores.iter().copied().fold(f32::MIN, f32::max);
                let mut sum = 0.0;
                for score in &mut scores {
                    // In f64, unlike the tree's and the logistic's: C's `exp`, not C++'s.
                    *score = f64::from(*score - highest).exp() as f32;
                    sum += *score;
                }
                for (label, score) in scores.into_iter().enumerate() {
                    take(label, log(score / sum));
                }
            }
        }
    }
}

/// A Huffman tree over the labels, by how often they were seen.
pub struct Tree {
    n_labels: usize,
    /// Left and right of each node behind the labels; the last is the root.
    children: Vec<[usize; 2]>,
}

impl Tree {
    /// Of counts in descending order, their sum below 10^15.
    fn new(counts: &[i64]) -> Self {
        let n_labels = counts.len();
        let mut weights = counts.to_vec();
        let mut children = Vec::with_capacity(n_labels.saturating_sub(1));
        // Labels not yet taken are those below `n_left`; nodes those from `node` on.
        let (mut n_left, mut node) = (n_labels, n_labels);
        for _ in 1..n_labels {
            let pair: [usize; 2] = std::array::from_fn(|_| {
                let taken = weights.get(node).copied().unwrap_or(i64::MAX);
                if n_left > 0 && weights[n_left - 1] < taken {
                    n_left -= 1;
                    n_left
                } else {
                    node += 1;
                    node - 1
                }
            });
            weights.push(weights[pair[0]] + weights[pair[1]]);
            children.push(pair);
        }
        Self { n_labels, children }
    }

    /// Left before right, as the first of equal labels would otherwise be another. A stack of
    /// its own: a tree is as deep as its labels are many where most were never seen.
    fn for_each(&self, output: &Matrix, hidden: &[f32], mut take: impl FnMut(usize, f32) -> f32) {
        let impossible = log(0.0);
        let mut least = f32::MIN;
        let mut waiting = vec![(self.n_labels + self.children.len() - 1, 0.0_f32)];
        while let Some((node, score)) = waiting.pop() {
            if score < impossible || score < least {
                continue;
            }
            let Some(inner) = node.checked_sub(self.n_labels) else {
                least = take(node, score);
                continue;
            };
            let product = output.dot(inner, hidden);
            let right = (1.0 / f64::from(1.0 + (-product).exp())) as f32;
            let left = (1.0 - f64::from(right)) as f32;
            let [on_left, on_right] = self.children[inner];
            waiting.push((on_right, score + log(right)));
            waiting.push((on_left, score + log(left)));
        }
    }
}

fn log(x: f32) -> f32 {
    (f64::from(x) + 1e-5).ln() as f32
}

fn sigmoids() -> Vec<f32> {
    let at = |step: u16| {
        let x = f32::from(step) * 2.0 * MAX_SIGMOID / f32::from(SIGMOID_STEPS) - MAX_SIGMOID;
        (1.0 / (1.0 + f64::from((-x).exp()))) as f32
    };
    (0..=SIGMOID_STEPS).map(at).collect()
}

#[allow(clippy::cast_sign_loss)] // Not below 0 where it is cast.
fn sigmoid(table: &[f32], x: f32) -> f32 {
    if x < -MAX_SIGMOID {
        0.0
    } else if x > MAX_SIGMOID {
        1.0
    } else {
        let at = (x + MAX_SIGMOID) * f32::from(SIGMOID_STEPS) / MAX_SIGMOID / 2.0;
        table[at as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rare_labels_lie_deepest() {
        let tree = Tree::new(&[50, 30, 15, 5]);
        assert_eq!(tree.children, [[3, 2], [4, 1], [5, 0]]);
        assert!(Tree::new(&[9]).children.is_empty());
    }

    #[test]
    fn labels_that_were_never_seen_make_a_deep_tree() {
        let tree = Tree::new(&vec![0; 100_000]);
        assert_eq!(tree.children.len(), 99_999);
        let output = Matrix::dense(vec![0.0; 100_000], 1);
        assert!(Loss::Tree(tree).best(&output, &[1.0]).is_some());
    }

    #[test]
    fn of_equal_labels_the_last_is_taken() {
        let output = Matrix::dense(vec![1.0; 3], 1);
        for kind in [LossKind::Logistic, LossKind::Softmax] {
            let loss = Loss::new(kind, &[1, 1, 1]);
            assert_eq!(loss.best(&output, &[1.0]).map(|(label, _)| label), Some(2));
        }
    }
}
