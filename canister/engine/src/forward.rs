//! The whole model (SPEC.md, *forward*): one token, a piece of a prompt, or the tokens of many sequences at a time.
//!
//! ```text
//! x   = embedding(id)
//! x   = x + wo(mix(attention(rope(wq h), rope(wk h), wv h))),  h = rms_norm(x)          per block
//! x   = x + down(swiglu(gate h, up h)),                        h = rms_norm(x)
//! logits = head(rms_norm(x))
//! ```
//!
//! A `Model` owns the weights and the scratch arena, a `Session` the cache and the tokens of one sequence. Work comes in
//! pieces, `begin`, `advance` (one block) and `head` (any range of ids), so that a host with a budget can stop between them.
//!
//! **Columns.** What passes a block together, tokens of one sequence or of several, are its columns: every linear layer
//! reads its weights once for all of them. A column's arithmetic is its own, so that its bits do not depend on the company.

use crate::attention;
use crate::blocks::{gather, spread, stride};
use crate::cache::Cache;
use crate::config::Config;
use crate::error::{Result, error, require, try_vec};
use crate::float::FloatCache;
use crate::head_mixer;
use crate::kv_cache::KvCache;
use crate::model::{Embedding, LinearScratch, Model};
use crate::rms_norm::rms_norm;
use crate::rope::Rotation;
use crate::rows::Query;
use crate::sampling::{self, Sampling};
use crate::simd::*;
use crate::swiglu::swiglu;

/// Most columns that pass a block at once; more are taken in turns. Bounds the arena, not the caller: a host may start on
/// as many tokens as it likes, but more than these together save nothing.
pub const COLUMNS: usize = 8;

/// Scratch of a forward pass, allocated once and grown to the widest batch.
#[derive(Default)]
pub(crate) struct Workspace {
    /// Plain features [C] of one column.
    pub(crate) plain: Vec<f32>,
    more: Vec<f32>,
    /// Padded blocks of C features per column.
    h: Vec<f32>,
    y: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// Padded blocks of hidden features per column.
    gate: Vec<f32>,
    up: Vec<f32>,
    /// What a failed batch puts back: x of every column.
    backup: Vec<f32>,
    linear: LinearScratch,
    mixer: head_mixer::Scratch,
    attention: attention::Scratch,
    sampling: sampling::Scratch,
}

/// One sequence.
#[derive(Clone)]
pub struct Session {
    pub(crate) caches: Vec<Cache>,
    pub(crate) tokens: Vec<i64>,
    pub(crate) capacity: usize,
    pub(crate) vocabulary: usize,
    /// The residual stream of the tokens in work [tokens, C], or of the last one [C].
    pub(crate) x: Vec<f32>,
    /// The tokens in work; none between tokens.
    pub(crate) work: Vec<i64>,
    /// How many blocks they have passed.
    pub(crate) layer: usize,
    /// Their rotations.
    rotations: Vec<Rotation>,
    /// Whether x is the last token's, so that a head can read it.
    pub(crate) current: bool,
    /// The last token as the head reads it, once `begin_head` has run.
    query: Option<Query>,
    /// Its products with the rows of hash tables.
    row_logits: Vec<f32>,
    logits: Vec<f32>,
}

impl Model {
    /// A new sequence of at most `capacity` tokens.
    pub fn new_session(&self, capacity: usize) -> Result<Session> {
        let capacity = capacity.min(self.config.block_size);
        let mut caches = Vec::new();
        for _ in 0..self.config.layers {
            let (heads, d) = (self.config.heads, self.config.head_dim());
            caches.push(match self.config.float_activations {
                false => Cache::Strict(KvCache::new(capacity, heads, d)?),
                true => Cache::Float(FloatCache::new(capacity, heads, d)?),
            });
        }
        Ok(Session {
            caches,
            tokens: Vec::new(),
            capacity,
            vocabulary: self.config.vocabulary,
            x: try_vec(self.config.width, 0.0)?,
            work: Vec::new(),
            layer: 0,
            rotations: Vec::new(),
            current: false,
            query: None,
            row_logits: Vec::new(),
            logits: Vec::new(),
        })
    }

    /// Bytes that a sequence of `capacity` tokens takes at most, before it is made; see `Session::bytes`.
    pub fn session_bytes(&self, capacity: usize) -> u64 {
        let config = &self.config;
        let (tokens, heads, d) =
            (capacity.min(config.block_size) as u64, config.heads as u64, config.head_dim() as u64);
        let layer = match config.float_activations {
            false => KvCache::bytes_of(tokens, heads, d),
            true => FloatCache::bytes_of(tokens, heads, d),
        };
        let rows = match (&self.head, &self.embedding) {
            (None, Embedding::Hash(tables)) => tables.rows(),
            _ => 0,
        };
        let floats = COLUMNS * config.width + config.vocabulary + rows;
        layer * config.layers as u64 + 8 * tokens + 4 * floats as u64
    }

    /// Start on a token: its embedding becomes x.
    pub fn begin(&mut self, session: &mut Session, id: i64) -> Result<()> {
        self.begin_tokens(session, &[id])
    }

    /// Start on tokens that follow each other, to be read together; on an error the sequence is as it was.
    // Never inlined, like the other parts of a token: profiles tell them apart by their names.
    #[inline(never)]
    pub fn begin_tokens(&mut self, session: &mut Session, ids: &[i64]) -> Result<()> {
        session.abandon();
        let (start, c) = (session.tokens.len(), self.config.width);
        let (end, room) = (start + ids.len(), session.capacity);
        require!(!ids.is_empty(), Shape, "no tokens to start on: expected at least one");
        require!(end <= room, Capacity, "{end} tokens, cached ones counted in, where {room} fit: shorten the sequence");
        let vocabulary = self.config.vocabulary;
        if let Some(id) = ids.iter().find(|id| usize::try_from(**id).map_or(true, |id| id >= vocabulary)) {
            return Err(error!(Range, "id {id}: expected 0 .. {}; use ids of this vocabulary", vocabulary - 1));
        }
        self.turn(session, ids.len())?;
        session.current = false;
        session.x.resize(ids.len() * c, 0.0);
        for (&id, x) in ids.iter().zip(session.x.chunks_exact_mut(c)) {
            match &self.embedding {
                Embedding::Table(table) => table.embed(id as usize, x)?,
                Embedding::Hash(tables) => tables.embed(id as usize, self.hash_scale, x, &mut self.work.plain)?,
            }
        }
        session.work.extend_from_slice(ids);
        session.layer = 0;
        Ok(())
    }

    /// Rotations of the `count` positions after the tokens of a sequence.
    pub(crate) fn turn(&self, session: &mut Session, count: usize) -> Result<()> {
        session.rotations.resize_with(session.rotations.len().max(count), Rotation::default);
        let start = session.tokens.len();
        for (t, rotation) in session.rotations.iter_mut().enumerate().take(count) {
            rotation.turn((start + t) as i64, &self.inv_freq)?;
        }
        Ok(())
    }

    /// One block of the tokens in work; true once all are done and the tokens are part of the sequence.
    pub fn advance(&mut self, session: &mut Session) -> Result<bool> {
        self.advance_batch(&mut [session]).pop().unwrap_or(Ok(true))
    }

    /// `advance` of many sequences, in any phase; each has its own result, true as well where nothing is in work.
    ///
    /// Sequences before the same block pass it together, weights being read once for all. A sequence that fails forgets
    /// its tokens in work; the others are not affected, and no bit of anyone depends on who is in the batch.
    #[inline(never)]
    pub fn advance_batch(&mut self, sessions: &mut [&mut Session]) -> Vec<Result<bool>> {
        let mut results: Vec<Result<bool>> = sessions.iter().map(|_| Ok(true)).collect();
        let mut waiting: Vec<usize> = (0..sessions.len()).filter(|&i| !sessions[i].work.is_empty()).collect();
        while let Some(&first) = waiting.first() {
            let layer = sessions[first].layer;
            let (members, others) = waiting.into_iter().partition(|&i| sessions[i].layer == layer);
            waiting = others;
            self.advance_together(sessions, &members, layer, &mut results);
        }
        results
    }

    /// One block of `members`, all before block `layer`.
    fn advance_together(
        &mut self,
        sessions: &mut [&mut Session],
        members: &[usize],
        layer: usize,
        results: &mut [Result<bool>],
    ) {
        if layer < self.blocks.len()
            && let Err(error) = self.pass(sessions, members, layer)
        {
            if let [only] = members {
                sessions[*only].abandon();
                results[*only] = Err(error);
            } else {
                // Alone, only those that are at fault fail.
                members.iter().for_each(|&i| self.advance_together(sessions, &[i], layer, results));
            }
            return;
        }
        for &i in members {
            let session = &mut *sessions[i];
            session.layer += 1;
            let done = session.layer >= self.blocks.len();
            if done {
                session.finish_tokens(self.config.width);
            }
            results[i] = Ok(done);
        }
    }

    /// Columns of `members` through a block; where several fail, all are as before.
    fn pass(&mut self, sessions: &mut [&mut Session], members: &[usize], layer: usize) -> Result<()> {
        let shared = members.len() > 1;
        let mut columns = Vec::new();
        self.work.backup.clear();
        for &i in members {
            columns.extend((0..sessions[i].work.len()).map(|t| (i, t)));
            if shared {
                self.work.backup.extend_from_slice(&sessions[i].x);
            }
        }
        for part in columns.chunks(COLUMNS) {
            if let Err(error) = self.block(sessions, part, layer) {
                let mut saved = self.work.backup.as_slice();
                for &i in members.iter().filter(|_| shared) {
                    let (mine, rest) = saved.split_at(sessions[i].x.len());
                    sessions[i].x.copy_from_slice(mine);
                    saved = rest;
                    let length = sessions[i].tokens.len();
                    sessions[i].caches[layer].truncate(length)?;
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Read one token: `begin` and every block.
    pub fn feed(&mut self, session: &mut Session, id: i64) -> Result<()> {
        self.begin(session, id)?;
        while !self.advance(session)? {}
        Ok(())
    }

    /// Block `layer` of at most `COLUMNS` columns (sequence, token in work), those of a sequence in order.
    fn block(&mut self, sessions: &mut [&mut Session], columns: &[(usize, usize)], layer: usize) -> Result<()> {
        self.work.grow(&self.config, columns.len())?;
        let (block, work, config) = (&self.blocks[layer], &mut self.work, &self.config);
        let (n, c) = (config.algebra.size(), config.width);
        let (k, count) = (c / n, columns.len());
        let (blocks, hidden) = (n * stride(k), n * stride(config.hidden / n));
        let aligned = k == stride(k);
        let [wq, wk, wv, wo, gate, up, down] = block.linears.as_slice() else {
            return Err(error!(Format, "block {layer} has {} linears", block.linears.len()));
        };
        let (h, y) = (&mut work.h[..count * blocks], &mut work.y[..count * blocks]);

        for (&(s, t), h) in columns.iter().zip(h.chunks_exact_mut(blocks)) {
            let x = &sessions[s].x[t * c..][..c];
            normalise(x, &block.attention_norm, k, aligned, h, &mut work.plain, &mut work.more);
        }
        for (linear, out) in [(wq, &mut work.q), (wk, &mut work.k), (wv, &mut work.v)] {
            if aligned {
                linear.apply(h, &mut out[..count * blocks], count, &mut work.linear)?;
            } else {
                linear.apply(h, y, count, &mut work.linear)?;
                y.chunks_exact(blocks).zip(out.chunks_exact_mut(c)).for_each(|(y, out)| gather(y, k, out));
            }
        }
        for (at, (&(s, t), h)) in columns.iter().zip(h.chunks_exact_mut(blocks)).enumerate() {
            let session = &mut *sessions[s];
            let [q, k_new, v] = [&mut work.q, &mut work.k, &mut work.v].map(|all| &mut all[at * c..][..c]);
            session.rotations[t].apply(q);
            session.rotations[t].apply(k_new);
            let cache = &mut session.caches[layer];
            cache.append(k_new, v)?;
            match &block.mixer {
                None if aligned => cache.attend(q, cache.length() - 1, h, &mut work.attention)?,
                None => cache.attend(q, cache.length() - 1, &mut work.more, &mut work.attention)?,
                Some(mixer) => {
                    cache.attend(q, cache.length() - 1, &mut work.plain, &mut work.attention)?;
                    let mixed = if aligned { &mut *h } else { &mut work.more };
                    mixer.apply(&work.plain, mixed, &mut work.mixer)?;
                }
            }
            if !aligned {
                spread(&work.more, k, h);
            }
        }
        wo.apply(h, y, count, &mut work.linear)?;
        for (&(s, t), y) in columns.iter().zip(y.chunks_exact(blocks)) {
            add_residual(&mut sessions[s].x[t * c..][..c], y, k, aligned);
        }

        for (&(s, t), h) in columns.iter().zip(h.chunks_exact_mut(blocks)) {
            let x = &sessions[s].x[t * c..][..c];
            normalise(x, &block.ffn_norm, k, aligned, h, &mut work.plain, &mut work.more);
        }
        let (gated, upper) = (&mut work.gate[..count * hidden], &mut work.up[..count * hidden]);
        gate.apply(h, gated, count, &mut work.linear)?;
        up.apply(h, upper, count, &mut work.linear)?;
        swiglu(gated, upper);
        down.apply(gated, y, count, &mut work.linear)?;
        for (&(s, t), y) in columns.iter().zip(y.chunks_exact(blocks)) {
            add_residual(&mut sessions[s].x[t * c..][..c], y, k, aligned);
        }
        Ok(())
    }

    /// Logits of the last token, all of them.
    pub fn head(&mut self, session: &mut Session) -> Result<()> {
        self.head_batch(&mut [session])
    }

    /// `head` of many sequences; rows are read once for all. Fails where any of them would.
    pub fn head_batch(&mut self, sessions: &mut [&mut Session]) -> Result<()> {
        for session in sessions.iter_mut() {
            self.begin_head(session)?;
        }
        self.head_range_batch(sessions, 0, self.config.vocabulary)
    }

    /// Quantise the last token for the head.
    #[inline(never)]
    pub fn begin_head(&mut self, session: &mut Session) -> Result<()> {
        let (work, c) = (&mut self.work, self.config.width);
        require!(session.current, Shape, "no token has been read: feed at least one before asking for logits");
        rms_norm(&session.x[..c], &self.norm, &mut work.plain, &mut work.more);
        let mut query = session.query.take().unwrap_or_default();
        let four_bits = match (&self.head, &self.embedding) {
            (Some(table), _) | (None, Embedding::Table(table)) => table.four_bits(),
            (None, Embedding::Hash(tables)) => tables.four_bits(),
        };
        if self.config.float_activations {
            query.take_floats(&work.plain)?;
        } else {
            query.quantize(&work.plain, four_bits)?;
        }
        session.logits.resize(self.config.vocabulary, 0.0);
        if let (Embedding::Hash(tables), None) = (&self.embedding, &self.head) {
            tables.row_logits(&query, &mut session.row_logits);
        }
        session.query = Some(query);
        Ok(())
    }

    /// Logits of ids `from .. to`, after `begin_head`.
    pub fn head_range(&mut self, session: &mut Session, from: usize, to: usize) -> Result<()> {
        self.head_range_batch(&mut [session], from, to)
    }

    /// `head_range` of many sequences, each after its `begin_head`; rows are read once for all.
    #[inline(never)]
    pub fn head_range_batch(&mut self, sessions: &mut [&mut Session], from: usize, to: usize) -> Result<()> {
        let vocabulary = self.config.vocabulary;
        require!(from <= to && to <= vocabulary, Range, "ids {from} .. {to}: expected within 0 .. {vocabulary}");
        let ready = sessions.iter().all(|session| session.query.is_some() && session.logits.len() == vocabulary);
        require!(ready, Shape, "a sequence is not at its head: call begin_head first");
        let mut outs = Vec::new();
        for session in sessions.iter_mut() {
            let Session { query: Some(query), logits, row_logits, .. } = &mut **session else { continue };
            match (&self.head, &self.embedding) {
                (None, Embedding::Hash(tables)) => tables.combine(row_logits, from, &mut logits[from..to]),
                _ => outs.push((&*query, &mut logits[from..to])),
            }
        }
        if let (Some(table), _) | (None, Embedding::Table(table)) = (&self.head, &self.embedding) {
            table.logits(&mut outs, from);
        }
        Ok(())
    }

    /// Read a prompt; the logits are those of its last token. On an error the sequence is as it was.
    pub fn prefill(&mut self, session: &mut Session, ids: &[i64]) -> Result<()> {
        let start = session.tokens.len();
        for part in ids.chunks(COLUMNS) {
            if let Err(error) = self.feed_tokens(session, part) {
                session.truncate(start)?;
                return Err(error);
            }
        }
        if ids.is_empty() { Ok(()) } else { self.head(session) }
    }

    /// Read tokens: `begin_tokens` and every block.
    pub fn feed_tokens(&mut self, session: &mut Session, ids: &[i64]) -> Result<()> {
        self.begin_tokens(session, ids)?;
        while !self.advance(session)? {}
        Ok(())
    }

    /// Draw the next token from the last logits; the history is every token of the sequence.
    #[inline(never)]
    pub fn sample(&mut self, session: &Session, sampling: &Sampling) -> Result<usize> {
        require!(!session.logits.is_empty(), Shape, "no logits: read a prompt first");
        let position = session.tokens.len() as u64;
        sampling::sample(&session.logits, &session.tokens, sampling, position, &mut self.work.sampling)
    }
}

/// h = rms_norm(x) in padded blocks.
fn normalise(
    x: &[f32],
    weight: &[f32],
    k: usize,
    aligned: bool,
    h: &mut [f32],
    plain: &mut [f32],
    scratch: &mut [f32],
) {
    if aligned {
        rms_norm(x, weight, h, scratch);
    } else {
        rms_norm(x, weight, plain, scratch);
        spread(plain, k, h);
    }
}

/// x += y, y in padded blocks.
fn add_residual(x: &mut [f32], y: &[f32], k: usize, aligned: bool) {
    if aligned {
        for (x, y) in x.chunks_exact_mut(16).zip(y.chunks_exact(16)) {
            // SAFETY: each is sixteen numbers; aligned blocks are multiples of sixteen.
            unsafe {
                unroll!(i in 4, {
                    let (to, from) = (x.as_mut_ptr().add(4 * i).cast::<v128>(), y.as_ptr().add(4 * i).cast());
                    v128_store(to, f32x4_add(v128_load(to), v128_load(from)));
                });
            }
        }
    } else {
        for (x, y) in x.chunks_exact_mut(k).zip(y.chunks_exact(stride(k))) {
            x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        }
    }
}

impl Workspace {
    pub(crate) fn new(config: &Config) -> Result<Self> {
        let mut work =
            Self { plain: try_vec(config.width, 0.0)?, more: try_vec(config.width, 0.0)?, ..Self::default() };
        work.grow(config, 1)?;
        Ok(work)
    }

    /// Room for so many columns.
    fn grow(&mut self, config: &Config, columns: usize) -> Result<()> {
        let n = config.algebra.size();
        let (blocks, hidden) = (n * stride(config.width / n), n * stride(config.hidden / n));
        if self.h.len() >= columns * blocks && self.gate.len() >= columns * hidden {
            return Ok(());
        }
        for all in [&mut self.h, &mut self.y, &mut self.q, &mut self.k, &mut self.v] {
            *all = try_vec(columns * blocks, 0.0)?;
        }
        for all in [&mut self.gate, &mut self.up] {
            *all = try_vec(columns * hidden, 0.0)?;
        }
        Ok(())
    }
}

impl Session {
    /// Tokens so far.
    pub fn tokens(&self) -> &[i64] {
        &self.tokens
    }

    /// Most tokens that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The tokens in work and how many blocks they have passed.
    pub fn in_work(&self) -> Option<(&[i64], usize)> {
        (!self.work.is_empty()).then_some((self.work.as_slice(), self.layer))
    }

    /// Logits of the last token, once `head` has run.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// The residual stream of the last token in work, or of the last one.
    pub fn hidden(&self) -> &[f32] {
        let c = self.x.len() / self.work.len().max(1);
        &self.x[self.x.len() - c..]
    }

    /// Bytes that the sequence takes.
    pub fn bytes(&self) -> usize {
        let floats = self.x.len() + self.logits.len() + self.row_logits.len();
        self.caches.iter().map(Cache::bytes).sum::<usize>() + 8 * self.tokens.len() + 4 * floats
    }

    /// The tokens in work become part of the sequence.
    fn finish_tokens(&mut self, c: usize) {
        let last = (self.work.len() - 1) * c;
        self.x.copy_within(last.., 0);
        self.x.truncate(c);
        self.tokens.append(&mut self.work);
        self.layer = 0;
        self.current = true;
    }

    /// Forget the tokens in work, if there are any.
    fn abandon(&mut self) {
        if self.work.is_empty() {
            return;
        }
        self.x.truncate(self.x.len() / self.work.len());
        self.work.clear();
        self.current = false;
        for cache in &mut self.caches {
            // A block that failed may or may not have appended; shortening to what was there cannot fail.
            let _ = cache.truncate(self.tokens.len());
        }
    }

    /// Forget all but the first `length` tokens. Logits are those of a token that is gone, and go with it.
    pub fn truncate(&mut self, length: usize) -> Result<()> {
        require!(length <= self.tokens.len(), Range, "length {length}: expected 0 .. {}", self.tokens.len());
        self.abandon();
        self.tokens.truncate(length);
        for cache in &mut self.caches {
            cache.truncate(length)?;
        }
        self.current = false;
        self.query = None;
        self.logits.clear();
        Ok(())
    }

    /// An independent copy.
    pub fn fork(&self) -> Self {
        self.clone()
    }
}
