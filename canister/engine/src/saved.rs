//! Sequences as bytes: what a host keeps of a `Session` where its heap does not live on, such as over an upgrade.
//!
//! ```text
//! "walshS02"   layers H d C V   capacity   T tokens   W tokens in work   blocks passed   whether x is current     u32 each
//! T ids, W ids (u32)   x (f32, C per token in work, at least one)
//! per layer: keys, values (int8), worths of keys, of values (f32), of the cached positions rounded up to 32, as cached
//! ```
//!
//! Little-endian. Logits are not kept: `begin_head` and `head` compute them again, to the same bits. A sequence costs about
//! 2 (C + 4 H) bytes a layer and token; reading it back costs about a fortieth of reading its tokens again.

use crate::cache::Cache;
use crate::error::{Result, require};
use crate::forward::Session;
use crate::model::Model;
use crate::reader::{Reader, put_floats};

const MAGIC: &[u8; 8] = b"walshS02";

impl Session {
    /// The sequence as bytes, tokens in work included.
    #[inline(never)]
    pub fn save(&self) -> Vec<u8> {
        let (heads, d) = self.caches.first().map_or((0, 0), Cache::shape);
        let c = self.x.len() / self.work.len().max(1);
        let mut out = MAGIC.to_vec();
        let mut put = |value: usize| out.extend((value as u32).to_le_bytes());
        [self.caches.len(), heads, d, c, self.vocabulary, self.capacity].into_iter().for_each(&mut put);
        [self.tokens.len(), self.work.len(), self.layer, usize::from(self.current)].into_iter().for_each(&mut put);
        self.tokens.iter().chain(&self.work).for_each(|&id| put(id as usize));
        put_floats(&mut out, &self.x);
        self.caches.iter().for_each(|cache| cache.save(&mut out));
        out
    }
}

impl Model {
    /// A sequence from the bytes of `Session::save`, which must be of this very model: its next bits are then the same.
    ///
    /// Everything that could reach outside an array is checked; that the numbers are those of this model is not. Errors:
    /// `Format` for bytes that are no saved sequence, `Shape` for one of a model of other sizes, `Capacity` without memory.
    #[inline(never)]
    pub fn restore_session(&self, saved: &[u8]) -> Result<Session> {
        let mut reader = Reader(saved);
        require!(reader.take(8)? == MAGIC, Format, "the bytes are no saved sequence: expected {MAGIC:?} first");
        let config = &self.config;
        let sizes = [config.layers, config.heads, config.head_dim(), config.width, config.vocabulary];
        let expected = if config.layers == 0 { [0, 0, 0, sizes[3], sizes[4]] } else { sizes };
        for expected in expected {
            let found = reader.number()?;
            require!(found == expected, Shape, "a saved sequence of another model: {found} where it has {expected}");
        }
        let capacity = reader.number()?;
        require!(capacity <= config.block_size, Format, "a saved sequence of capacity {capacity}");
        let mut session = self.new_session(capacity)?;
        let [tokens, work, layer, current] = [reader.number()?, reader.number()?, reader.number()?, reader.number()?];
        require!(
            tokens <= capacity && work <= capacity - tokens && layer <= config.layers && current <= 1,
            Format,
            "a saved sequence of {tokens} + {work} tokens in {capacity}, before block {layer}"
        );
        require!(current == 0 || (work == 0 && tokens > 0), Format, "a saved sequence with a last token and none");
        require!(work == 0 || layer < config.layers.max(1), Format, "a saved sequence past its last block");
        session.tokens = reader.ids(tokens, config.vocabulary)?;
        session.work = reader.ids(work, config.vocabulary)?;
        (session.layer, session.current) = (layer, current == 1);
        session.x.resize(work.max(1) * config.width, 0.0);
        reader.floats(&mut session.x)?;
        for (l, cache) in session.caches.iter_mut().enumerate() {
            // The tokens in work are cached in the blocks that they have passed.
            cache.restore(&mut reader, tokens + if l < layer { work } else { 0 })?;
        }
        require!(reader.0.is_empty(), Format, "{} bytes too many after a saved sequence", reader.0.len());
        self.turn(&mut session, work)?;
        Ok(session)
    }
}
