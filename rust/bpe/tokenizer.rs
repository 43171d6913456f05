//! The tokenizer: text -> ids -> text.

mod token_ids;

use std::sync::{Mutex, OnceLock};

use rustc_hash::{FxBuildHasher, FxHashMap, FxHashSet};
use sha2::{Digest, Sha256};

use token_ids::TokenIds;

use super::encode::{Words, encode_batch};
use super::formats;
use super::merge::Merger;
use super::pair_ranks::PairRanks;
use super::vocab::{ID_LIMIT, Merge, Vocab};
use crate::TokenId;
use crate::error::{Error, Result};
use crate::pretokenize::{Pattern, Segment, SpecialTokens};

/// Which pairs of tokens may merge, and in which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeBy {
    /// The pairs of the merge list, in its order.
    Merges,
    /// As tiktoken does: a pretoken that is a token is that token; else any two tokens
    /// whose joined bytes are a token may merge, the smallest id first.
    Ids,
    /// A pretoken that is a token is that token; else as [`MergeBy::Merges`]. Hugging Face
    /// calls this `ignore_merges`.
    TokensThenMerges,
}

/// Byte-level BPE with its special tokens and its pattern.
///
/// Shared between threads freely; each call borrows scratch memory of its own.
///
/// Source: Sennrich et al. 2016 (arXiv:1508.07909); byte level: Radford et al. 2019.
pub struct Tokenizer {
    vocab: Vocab,
    merges: Vec<Merge>,
    merge_by: MergeBy,
    pattern: Pattern,
    special_ids: Vec<u32>,
    specials: SpecialTokens,
    ids: TokenIds,
    ordinary_ids: FxHashMap<Box<[u8]>, u32>,
    ranks: PairRanks,
    sha256: OnceLock<[u8; 32]>,
    scratch: Mutex<Vec<Box<Scratch>>>,
}

/// Working memory of one thread.
struct Scratch {
    /// Where the pretokens of a batch end.
    ends: Vec<u32>,
    words: Words,
}

impl Scratch {
    fn new() -> Self {
        Self {
            ends: Vec::with_capacity(1024),
            words: Words::new(),
        }
    }
}

/// What a tokenizer is made of besides its merges, checked and numbered.
pub(super) struct Base {
    /// With the special tokens.
    pub vocab: Vocab,
    pub pattern: Pattern,
    pub special_ids: Vec<u32>,
    pub specials: SpecialTokens,
    pub merge_by: MergeBy,
}

/// What a tokenizer is made of.
pub struct Parts {
    /// Ids and bytes; special tokens may be among them.
    pub vocab: Vec<(u32, Vec<u8>)>,
    /// Pairs of token bytes in order of rank; ignored for [`MergeBy::Ids`].
    pub merges: Vec<(Vec<u8>, Vec<u8>)>,
    /// Reserved strings. One with an id has that id; of the others, those not in the
    /// vocabulary get the next ids.
    pub special_tokens: Vec<(String, Option<u32>)>,
    /// Name or regular expression.
    pub pattern: String,
    /// Which pairs merge.
    pub merge_by: MergeBy,
}

impl Tokenizer {
    /// # Errors
    /// `Argument` where a byte is missing from the vocabulary, a merge names a token that
    /// does not exist, or a part is invalid by itself.
    pub fn new(parts: Parts) -> Result<Self> {
        let pattern = Pattern::new(&parts.pattern)?;
        let texts: Vec<String> = parts
            .special_tokens
            .iter()
            .map(|(text, _)| text.clone())
            .collect();
        let specials = SpecialTokens::new(&texts)?;
        let mut vocab = Vocab::new(with_given_ids(parts.vocab, &parts.special_tokens)?)?;
        let special_ids = add_specials(&mut vocab, &parts.special_tokens)?;
        let base = Base {
            vocab,
            pattern,
            special_ids,
            specials,
            merge_by: parts.merge_by,
        };
        let merges = parts.merges.iter();
        Self::of_base(base, merges.map(|(left, right)| (&left[..], &right[..])))
    }

    /// # Errors
    /// As [`Tokenizer::new`].
    pub(super) fn of_base<'m>(
        base: Base,
        merges: impl ExactSizeIterator<Item = (&'m [u8], &'m [u8])>,
    ) -> Result<Self> {
        let vocab = base.vocab;
        let ids = TokenIds::new(&vocab, &base.special_ids);
        let byte_ids = ids_of_bytes(&vocab, &ids)?;
        let ordinary_ids = match base.merge_by {
            MergeBy::Merges => FxHashMap::default(),
            MergeBy::Ids | MergeBy::TokensThenMerges => {
                ordinary_ids(&vocab, &ids, &base.special_ids)
            }
        };
        let (merges, ranks) = match base.merge_by {
            MergeBy::Merges | MergeBy::TokensThenMerges => {
                let merges = resolve_merges(merges, &vocab, &ids)?;
                let ranks = PairRanks::from_merges(&merges, &byte_ids);
                (merges, ranks)
            }
            MergeBy::Ids => {
                check_token_lengths(&ordinary_ids)?;
                let (ranks, merges) = PairRanks::from_ids(&vocab, &ordinary_ids, &byte_ids);
                (merges, ranks)
            }
        };
        Ok(Self {
            vocab,
            merges,
            merge_by: base.merge_by,
            pattern: base.pattern,
            special_ids: base.special_ids,
            specials: base.specials,
            ids,
            ordinary_ids,
            ranks,
            sha256: OnceLock::new(),
            scratch: Mutex::new(Vec::new()),
        })
    }

    /// The vocabulary.
    pub fn vocab(&self) -> &Vocab {
        &self.vocab
    }

    /// The merges in order of rank; for [`MergeBy::Ids`] those that build each token.
    pub fn merges(&self) -> &[Merge] {
        &self.merges
    }

    /// Whether merging by [`Tokenizer::merges`] alone turns the bytes of every ordinary token
    /// into that token, as the list of a trained tokenizer does. Then taking pretokens whole
    /// changes nothing. For [`MergeBy::Ids`] the list must build each token from smaller ids:
    /// then, when the turn of a token comes, its bytes can stand in a text as the two parts
    /// of its own merge only, and the list gives what the ids give.
    pub fn merges_reach_every_token(&self) -> bool {
        if self.merge_by == MergeBy::Ids {
            let longer = self.ordinary_ids.keys().filter(|token| token.len() > 1);
            return longer.count() == self.merges.len();
        }
        let special: FxHashSet<u32> = self.special_ids.iter().copied().collect();
        let mut merger = Merger::default();
        self.vocab.iter().all(|(id, token_bytes)| {
            special.contains(&id) || merger.merge(&self.ranks, token_bytes) == [id]
        })
    }

    /// Every pair of tokens that may merge and its product, by id of the product.
    pub(super) fn mergeable_pairs(&self) -> Vec<Merge> {
        self.ranks.pairs()
    }

    /// Which pairs merge.
    pub fn merge_by(&self) -> MergeBy {
        self.merge_by
    }

    /// The pattern.
    pub fn pattern(&self) -> &Pattern {
        &self.pattern
    }

    pub(super) fn ranks(&self) -> &PairRanks {
        &self.ranks
    }

    /// The special tokens as they are found in text.
    pub fn specials(&self) -> &SpecialTokens {
        &self.specials
    }

    /// Special tokens with their ids, in the order given.
    pub fn special_tokens(&self) -> impl Iterator<Item = (&str, u32)> {
        self.specials
            .texts()
            .iter()
            .map(String::as_str)
            .zip(self.special_ids.iter().copied())
    }

    /// The id of a token's bytes, special tokens included.
    pub fn id_of(&self, token_bytes: &[u8]) -> Option<u32> {
        self.ids.get(&self.vocab, token_bytes)
    }

    /// The id of a token's bytes where that id is no special token's.
    pub(super) fn ordinary_id_of(&self, token_bytes: &[u8]) -> Option<u32> {
        let id = self.id_of(token_bytes)?;
        (!self.special_ids.contains(&id)).then_some(id)
    }

    /// SHA-256 of the canonical JSON: the tokenizer's identity in token files.
    pub fn sha256(&self) -> [u8; 32] {
        match self.sha256.get() {
            Some(sha256) => *sha256,
            None => self.identity().1,
        }
    }

    /// The canonical JSON, and its SHA-256.
    pub fn identity(&self) -> (Vec<u8>, [u8; 32]) {
        let json = formats::to_canonical_json(self);
        let sha256 = self.sha256.get().copied();
        let sha256 = sha256.unwrap_or_else(|| Sha256::digest(&json).into());
        // Made before it is kept: a fork while it is made must leave nobody to be waited for.
        (json, *self.sha256.get_or_init(|| sha256))
    }

    /// Bytes of each id's text; special tokens and holes count 0.
    pub fn token_byte_lengths(&self) -> Vec<u32> {
        let mut lengths = vec![0; self.vocab.len()];
        for (id, token_bytes) in self.vocab.iter() {
            lengths[id as usize] = token_bytes.len() as u32;
        }
        for &id in &self.special_ids {
            lengths[id as usize] = 0;
        }
        lengths
    }

    /// Appends the ids of a text in which special tokens are recognised. With `u16` the
    /// vocabulary must be one that fits ([`Tokenizer::is_narrow`]).
    pub fn encode_into<I: TokenId>(&self, text: &[u8], out: &mut Vec<I>) -> Result<()> {
        self.encode_with(text, &self.specials, &self.special_ids, out, |_, _| ())
    }

    /// As [`Tokenizer::encode_into`]; `found` is told the place in `out` of each special
    /// token, and its id.
    pub fn encode_finding<I: TokenId>(
        &self,
        text: &[u8],
        out: &mut Vec<I>,
        found: impl FnMut(usize, u32),
    ) -> Result<()> {
        self.encode_with(text, &self.specials, &self.special_ids, out, found)
    }

    /// As [`Tokenizer::encode_into`] with special tokens as ordinary text.
    pub fn encode_ordinary_into<I: TokenId>(&self, text: &[u8], out: &mut Vec<I>) -> Result<()> {
        self.with_scratch(|scratch| self.encode_segment(text, scratch, out))
    }

    /// As [`Tokenizer::encode_into`] with only those special tokens that `allowed` accepts.
    pub fn encode_allowing<I: TokenId>(
        &self,
        text: &[u8],
        allowed: impl Fn(&str) -> bool,
        out: &mut Vec<I>,
    ) -> Result<()> {
        let (texts, ids): (Vec<String>, Vec<u32>) = self
            .special_tokens()
            .filter(|(special, _)| allowed(special))
            .map(|(special, id)| (special.to_owned(), id))
            .unzip();
        self.encode_with(text, &SpecialTokens::new(&texts)?, &ids, out, |_, _| ())
    }

    /// The number of ids of a text in which special tokens are recognised.
    pub fn count(&self, text: &[u8]) -> Result<usize> {
        let mut n_ids = 0;
        let mut out: Vec<u32> = Vec::new();
        self.with_scratch(|Scratch { ends, words }| {
            self.specials.split(text, |segment| match segment {
                Segment::Special(_) => {
                    n_ids += 1;
                    Ok(())
                }
                Segment::Text(segment) => self.pattern.split_batches(segment, ends, |batch| {
                    out.clear();
                    encode_batch(self, batch, words, &mut out);
                    n_ids += out.len();
                }),
            })
        })?;
        Ok(n_ids)
    }

    /// Whether every id is a `u16`.
    pub fn is_narrow(&self) -> bool {
        self.vocab.len() <= 1 << 16
    }

    fn encode_with<I: TokenId>(
        &self,
        text: &[u8],
        specials: &SpecialTokens,
        special_ids: &[u32],
        out: &mut Vec<I>,
        mut found: impl FnMut(usize, u32),
    ) -> Result<()> {
        self.with_scratch(|scratch| {
            specials.split(text, |segment| match segment {
                Segment::Special(index) => {
                    found(out.len(), special_ids[index]);
                    out.push(I::from_id(special_ids[index]));
                    Ok(())
                }
                Segment::Text(segment) => self.encode_segment(segment, scratch, out),
            })
        })
    }

    /// Lends working memory; it stays warm for the next call.
    ///
    /// Never waits for the lock: after a fork, the thread that held it may not exist.
    fn with_scratch<T>(&self, work: impl FnOnce(&mut Scratch) -> T) -> T {
        let warm = self.scratch.try_lock().ok().and_then(|mut pool| pool.pop());
        let mut scratch = warm.unwrap_or_else(|| Box::new(Scratch::new()));
        let result = work(&mut scratch);
        if let Ok(mut pool) = self.scratch.try_lock() {
            pool.push(scratch);
        }
        result
    }

    fn encode_segment<I: TokenId>(
        &self,
        segment: &[u8],
        scratch: &mut Scratch,
        out: &mut Vec<I>,
    ) -> Result<()> {
        assert!(
            self.is_narrow() || size_of::<I>() > size_of::<u16>(),
            "u16 holds the ids of vocabularies of at most 65,536 tokens"
        );
        let Scratch { ends, words } = scratch;
        self.pattern.split_batches(segment, ends, |batch| {
            encode_batch(self, batch, words, out);
        })
    }

    /// The ids of a pretoken, by merging.
    pub(super) fn merge_pretoken<'m>(&self, pretoken: &[u8], merger: &'m mut Merger) -> &'m [u32] {
        match self.ordinary_ids.get(pretoken) {
            Some(&id) => merger.single(id),
            None => merger.merge(&self.ranks, pretoken),
        }
    }
}

/// Longest token of a vocabulary that merges by ids: its cuts and merges are all tried,
/// which is quadratic. Published ones end at 128 bytes.
pub(super) const MAX_TOKEN_BYTES: usize = 1024;

fn check_token_lengths(ids: &FxHashMap<Box<[u8]>, u32>) -> Result<()> {
    match ids.iter().find(|(token, _)| token.len() > MAX_TOKEN_BYTES) {
        None => Ok(()),
        Some((token, id)) => Err(Error::Argument(format!(
            "tokens must hold at most {MAX_TOKEN_BYTES} bytes where they merge by id, \
             got {} in token {id}",
            token.len()
        ))),
    }
}

/// The entries with those special tokens that bring their id.
fn with_given_ids(
    mut entries: Vec<(u32, Vec<u8>)>,
    specials: &[(String, Option<u32>)],
) -> Result<Vec<(u32, Vec<u8>)>> {
    let given: FxHashSet<u32> = specials.iter().filter_map(|(_, id)| *id).collect();
    let known: FxHashMap<u32, usize> = entries
        .iter()
        .enumerate()
        .filter(|(_, (id, _))| given.contains(id))
        .map(|(place, (id, _))| (*id, place))
        .collect();
    for (text, id) in specials {
        let Some(id) = id else { continue };
        match known.get(id) {
            None => entries.push((*id, text.as_bytes().to_vec())),
            Some(&place) if entries[place].1 == text.as_bytes() => {}
            Some(&place) => {
                return Err(Error::Argument(format!(
                    "the special token {text:?} must not have the id {id} of the token \"{}\"",
                    entries[place].1.escape_ascii()
                )));
            }
        }
    }
    Ok(entries)
}

/// Ids of the special tokens; those that the vocabulary does not hold are appended.
fn add_specials(vocab: &mut Vocab, specials: &[(String, Option<u32>)]) -> Result<Vec<u32>> {
    check_special_lengths(specials)?;
    let wanted = specials.iter().filter(|(_, id)| id.is_none());
    let wanted: FxHashSet<&[u8]> = wanted.map(|(text, _)| text.as_bytes()).collect();
    let known: FxHashMap<Box<[u8]>, u32> = vocab
        .iter()
        .filter(|(_, token_bytes)| wanted.contains(token_bytes))
        .map(|(id, token_bytes)| (token_bytes.into(), id))
        .collect();
    specials
        .iter()
        .map(
            |(text, id)| match id.or_else(|| known.get(text.as_bytes()).copied()) {
                Some(id) => Ok(id),
                None => vocab.push(text.as_bytes()),
            },
        )
        .collect()
}

/// Every byte is a token already: whether a special token of one byte is that token or
/// another one, only its id can say.
fn check_special_lengths(specials: &[(String, Option<u32>)]) -> Result<()> {
    match specials
        .iter()
        .find(|(text, id)| text.len() == 1 && id.is_none())
    {
        None => Ok(()),
        Some((text, _)) => Err(Error::Argument(format!(
            "a special token of one byte must come with its id, as each byte is a token by \
             itself; got {text:?}"
        ))),
    }
}

/// Bytes to id of the tokens that are not special; single bytes always are among them.
fn ordinary_ids(vocab: &Vocab, ids: &TokenIds, special_ids: &[u32]) -> FxHashMap<Box<[u8]>, u32> {
    let special_ids: FxHashSet<u32> = special_ids.iter().copied().collect();
    let is_ordinary = |(id, token_bytes): &(u32, &[u8])| {
        (token_bytes.len() == 1 || !special_ids.contains(id))
            && ids.get(vocab, token_bytes) == Some(*id)
    };
    let ordinary = vocab.iter().filter(is_ordinary);
    let ordinary = ordinary.map(|(id, token_bytes)| (token_bytes.into(), id));
    let mut map = FxHashMap::with_capacity_and_hasher(vocab.len(), FxBuildHasher);
    map.extend(ordinary);
    map
}

fn ids_of_bytes(vocab: &Vocab, ids: &TokenIds) -> Result<[u32; 256]> {
    let mut byte_ids = [0; 256];
    for byte in 0..=255u8 {
        byte_ids[byte as usize] = ids.get(vocab, &[byte]).ok_or_else(|| {
            Error::Argument(format!(
                "the vocabulary must hold all 256 single bytes, byte 0x{byte:02X} is missing"
            ))
        })?;
    }
    Ok(byte_ids)
}

fn resolve_merges<'m>(
    merges: impl ExactSizeIterator<Item = (&'m [u8], &'m [u8])>,
    vocab: &Vocab,
    ids: &TokenIds,
) -> Result<Vec<Merge>> {
    if merges.len() > ID_LIMIT as usize {
        return Err(Error::Argument(format!(
            "merges must be at most {ID_LIMIT}, got {}",
            merges.len()
        )));
    }
    let find = |rank: usize, token_bytes: &[u8]| {
        ids.get(vocab, token_bytes).ok_or_else(|| {
            Error::Argument(format!(
                "merge {rank} needs the token \"{}\", which the vocabulary does not hold",
                token_bytes.escape_ascii()
            ))
        })
    };
    let mut joined = Vec::new();
    let resolve = |(rank, (left, right)): (usize, (&[u8], &[u8]))| {
        joined.clear();
        joined.extend_from_slice(left);
        joined.extend_from_slice(right);
        Ok(Merge {
            left: find(rank, left)?,
            right: find(rank, right)?,
            new: find(rank, &joined)?,
        })
    };
    merges.enumerate().map(resolve).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer(merges: &[(&str, &str)], specials: &[&str], merge_by: MergeBy) -> Tokenizer {
        let mut vocab: Vec<_> = (0..=255u8)
            .map(|byte| (u32::from(byte), vec![byte]))
            .collect();
        for (left, right) in merges {
            vocab.push((vocab.len() as u32, format!("{left}{right}").into_bytes()));
        }
        let merges = merges
            .iter()
            .map(|(l, r)| (l.as_bytes().to_vec(), r.as_bytes().to_vec()));
        Tokenizer::new(Parts {
            vocab,
            merges: merges.collect(),
            special_tokens: specials
                .iter()
                .map(|text| (text.to_string(), None))
                .collect(),
            pattern: "gpt2".into(),
            merge_by,
        })
        .expect("valid parts")
    }

    #[test]
    fn special_tokens_get_the_next_ids_and_split_the_text() {
        let tokenizer = tokenizer(
            &[("t", "h"), ("th", "e")],
            &["<|endoftext|>"],
            MergeBy::Merges,
        );
        let mut out: Vec<u32> = Vec::new();
        tokenizer
            .encode_into(b"the<|endoftext|>th", &mut out)
            .expect("encodes");
        assert_eq!(out, [257, 258, 256]);
        let mut text = Vec::new();
        tokenizer.decode_into(&out, &mut text).expect("known ids");
        assert_eq!(text, b"the<|endoftext|>th");
        assert!(matches!(
            tokenizer.decode_into(&[999u32], &mut text),
            Err(Error::UnknownToken(_))
        ));
    }

    #[test]
    fn merging_by_ids_takes_whole_pretokens_that_no_merge_reaches() {
        let by_ids = tokenizer(&[("ab", "c")], &[], MergeBy::Ids);
        let mut out: Vec<u32> = Vec::new();
        by_ids.encode_into(b"abc", &mut out).expect("encodes");
        assert_eq!(out, [256]);
        assert!(by_ids.merges().is_empty(), "no chain of merges builds abc");
    }

    #[test]
    fn missing_bytes_and_unknown_merges_are_refused() {
        let parts = |vocab, merges| Parts {
            vocab,
            merges,
            special_tokens: Vec::new(),
            pattern: "gpt2".into(),
            merge_by: MergeBy::Merges,
        };
        let error = Tokenizer::new(parts(vec![(0, vec![0])], Vec::new()))
            .err()
            .expect("bytes missing");
        assert!(error.to_string().contains("byte 0x01 is missing"));
        let bytes = (0..=255u8).map(|b| (u32::from(b), vec![b])).collect();
        let merges = vec![(b"a".to_vec(), b"b".to_vec())];
        let error = Tokenizer::new(parts(bytes, merges))
            .err()
            .expect("no token ab");
        assert!(error.to_string().contains("merge 0 needs the token \"ab\""));
    }
}
