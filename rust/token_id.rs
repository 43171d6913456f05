//! The integer types that token ids have in memory and in files.

/// `u16` for vocabularies of at most 65,536 tokens, which halves what is written, or `u32`.
pub trait TokenId: Copy + Default + Ord + Send + Sync + 'static {
    /// The id in this type; it is known to fit.
    fn from_id(id: u32) -> Self;

    /// The id.
    fn id(self) -> u32;
}

impl TokenId for u16 {
    #[inline(always)]
    fn from_id(id: u32) -> Self {
        id as Self
    }

    #[inline(always)]
    fn id(self) -> u32 {
        self.into()
    }
}

impl TokenId for u32 {
    #[inline(always)]
    fn from_id(id: u32) -> Self {
        id
    }

    #[inline(always)]
    fn id(self) -> u32 {
        self
    }
}
