//! Ids -> bytes.

use super::tokenizer::Tokenizer;
use crate::TokenId;
use crate::error::{Error, Result};

impl Tokenizer {
    /// Appends the bytes of each id.
    ///
    /// # Errors
    /// As [`Tokenizer::decoded_bytes`]; `out` is then as it was.
    pub fn decode_into<I: TokenId>(&self, token_ids: &[I], out: &mut Vec<u8>) -> Result<()> {
        let first = out.len();
        out.resize(first + self.decoded_bytes(token_ids)?, 0);
        self.decode_to(token_ids, &mut out[first..]);
        Ok(())
    }

    /// How many bytes ids stand for.
    ///
    /// # Errors
    /// `UnknownToken` for an id outside the vocabulary.
    pub fn decoded_bytes<I: TokenId>(&self, token_ids: &[I]) -> Result<usize> {
        self.vocab().total_bytes(token_ids).map_err(|place| {
            Error::UnknownToken(format!(
                "token ids must be in the vocabulary of {} tokens, got {} at position {place}",
                self.vocab().len(),
                token_ids[place].id(),
            ))
        })
    }

    /// The characters of the ids' text that each id has a part in, as start and end.
    ///
    /// # Errors
    /// As [`Tokenizer::decoded_bytes`].
    pub fn offsets<I: TokenId>(&self, token_ids: &[I]) -> Result<Vec<[i64; 2]>> {
        self.decoded_bytes(token_ids)?;
        let mut n_characters = 0;
        let offsets = token_ids.iter().map(|id| {
            let token_bytes = self.vocab().bytes(id.id());
            let begins = |&&byte: &&u8| byte & 0xC0 != 0x80;
            // Bytes that go on with a character belong to the one that is begun, if one is.
            let goes_on = i64::from(!begins(&&token_bytes[0])).min(n_characters);
            let start = n_characters - goes_on;
            n_characters += token_bytes.iter().filter(begins).count().cast_signed() as i64;
            [start, n_characters]
        });
        Ok(offsets.collect())
    }

    /// Writes the bytes of ids for which [`Tokenizer::decoded_bytes`] gave the length of `out`.
    pub fn decode_to<I: TokenId>(&self, token_ids: &[I], out: &mut [u8]) {
        self.vocab().copy_all(token_ids, out);
    }
}
