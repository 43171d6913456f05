//! A text that comes in pieces -> ids.

use super::Splitter;
use crate::bpe::Tokenizer;
use crate::error::Result;

/// Feeds a tokenizer a text in pieces; what is decided already comes out at once.
pub struct StreamEncoder {
    splitter: Splitter,
    pending: Vec<u8>,
    /// From where the pending text has not been searched for a cut.
    from: usize,
}

impl StreamEncoder {
    /// A stream for a tokenizer.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        Self {
            splitter: Splitter::of(tokenizer),
            pending: Vec::new(),
            from: 0,
        }
    }

    /// Takes the next piece; appends the ids that no later piece can change.
    pub fn push(&mut self, tokenizer: &Tokenizer, text: &str, out: &mut Vec<u32>) -> Result<()> {
        self.pending.extend_from_slice(text.as_bytes());
        match self.splitter.last_cut(&self.pending, self.from) {
            Ok(cut) => {
                tokenizer.encode_into(&self.pending[..cut], out)?;
                self.pending.drain(..cut);
                self.from = 0;
            }
            Err(from) => self.from = from,
        }
        Ok(())
    }

    /// Appends the ids of what is left; the text has ended.
    pub fn finish(&mut self, tokenizer: &Tokenizer, out: &mut Vec<u32>) -> Result<()> {
        self.from = 0;
        tokenizer.encode_into(&std::mem::take(&mut self.pending), out)
    }
}
