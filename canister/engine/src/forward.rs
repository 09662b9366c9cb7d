//! The whole model, one token at a time (SPEC.md, *forward*).
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

use crate::attention;
use crate::blocks::{gather, spread, stride};
use crate::config::Config;
use crate::error::{Result, error, require, try_vec};
use crate::head_mixer;
use crate::kv_cache::KvCache;
use crate::model::{Embedding, LinearScratch, Model};
use crate::rms_norm::rms_norm;
use crate::rope::Rotation;
use crate::rows::Query;
use crate::sampling::{self, Sampling};
use crate::simd::*;
use crate::swiglu::swiglu;

/// Scratch of a forward pass, allocated once.
#[derive(Default)]
pub(crate) struct Workspace {
    /// Plain features [C].
    plain: Vec<f32>,
    more: Vec<f32>,
    /// Padded blocks of C features.
    h: Vec<f32>,
    y: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// Padded blocks of hidden features.
    gate: Vec<f32>,
    up: Vec<f32>,
    row_logits: Vec<f32>,
    query: Query,
    rotation: Rotation,
    linear: LinearScratch,
    mixer: head_mixer::Scratch,
    attention: attention::Scratch,
    sampling: sampling::Scratch,
}

/// One sequence.
pub struct Session {
    caches: Vec<KvCache>,
    tokens: Vec<i64>,
    /// The residual stream of the token in work, [C].
    x: Vec<f32>,
    logits: Vec<f32>,
    /// The token in work and how many blocks it has passed.
    in_work: Option<(i64, usize)>,
}

impl Model {
    /// A new sequence of at most `capacity` tokens.
    pub fn new_session(&self, capacity: usize) -> Result<Session> {
        let capacity = capacity.min(self.config.block_size);
        let mut caches = Vec::new();
        for _ in 0..self.config.layers {
            caches.push(KvCache::new(capacity, self.config.heads, self.config.head_dim())?);
        }
        Ok(Session {
            caches,
            tokens: Vec::new(),
            x: try_vec(self.config.width, 0.0)?,
            logits: Vec::new(),
            in_work: None,
        })
    }

    /// Start on a token: its embedding becomes x.
    pub fn begin(&mut self, session: &mut Session, id: i64) -> Result<()> {
        session.abandon();
        let (position, block_size) = (session.tokens.len(), self.config.block_size);
        require!(
            position < block_size,
            Capacity,
            "{} tokens, cached ones counted in, where {block_size} fit: shorten the sequence",
            position + 1
        );
        let row = usize::try_from(id).unwrap_or(usize::MAX);
        let vocabulary = self.config.vocabulary;
        require!(row < vocabulary, Range, "id {id}: expected 0 .. {}; use ids of this vocabulary", vocabulary - 1);
        match &self.embedding {
            Embedding::Table(table) => table.embed(row, &mut session.x)?,
            Embedding::Hash(tables) => tables.embed(row, self.hash_scale, &mut session.x, &mut self.work.plain)?,
        }
        self.work.rotation.turn(position as i64, &self.inv_freq)?;
        session.in_work = Some((id, 0));
        Ok(())
    }

    /// One block of the token in work; true once all are done and the token is part of the sequence.
    pub fn advance(&mut self, session: &mut Session) -> Result<bool> {
        let Some((id, layer)) = session.in_work else { return Ok(true) };
        if layer < self.blocks.len() {
            // Another session may have used the arena since `begin`.
            self.work.rotation.turn(session.tokens.len() as i64, &self.inv_freq)?;
            if let Err(error) = self.block(session, layer) {
                session.abandon();
                return Err(error);
            }
            session.in_work = Some((id, layer + 1));
        }
        if layer + 1 >= self.blocks.len() {
            session.tokens.push(id);
            session.in_work = None;
            return Ok(true);
        }
        Ok(false)
    }

    /// Read one token: `begin` and every block.
    pub fn feed(&mut self, session: &mut Session, id: i64) -> Result<()> {
        self.begin(session, id)?;
        while !self.advance(session)? {}
        Ok(())
    }

    fn block(&mut self, session: &mut Session, layer: usize) -> Result<()> {
        let (block, work, config) = (&self.blocks[layer], &mut self.work, &self.config);
        let (n, c) = (config.algebra.size(), config.width);
        let k = c / n;
        let aligned = k == stride(k);
        let [wq, wk, wv, wo, gate, up, down] = block.linears.as_slice() else {
            return Err(error!(Format, "block {layer} has {} linears", block.linears.len()));
        };
        let x = &mut session.x;

        normalise(x, &block.attention_norm, k, aligned, &mut work.h, &mut work.plain, &mut work.more);
        for (linear, out) in [(wq, &mut work.q), (wk, &mut work.k), (wv, &mut work.v)] {
            if aligned {
                linear.apply(&work.h, out, &mut work.linear)?;
            } else {
                linear.apply(&work.h, &mut work.y, &mut work.linear)?;
                gather(&work.y, k, out);
            }
        }
        work.rotation.apply(&mut work.q);
        work.rotation.apply(&mut work.k);
        let cache = &mut session.caches[layer];
        cache.append(&work.k, &work.v)?;
        attention::attend(cache, &work.q, cache.length() - 1, &mut work.plain, &mut work.attention)?;
        let mixed = match &block.mixer {
            Some(mixer) => {
                mixer.apply(&work.plain, &mut work.more, &mut work.mixer)?;
                &work.more
            }
            None => &work.plain,
        };
        let from = if aligned {
            mixed
        } else {
            spread(mixed, k, &mut work.h);
            &work.h
        };
        wo.apply(from, &mut work.y, &mut work.linear)?;
        add_residual(x, &work.y, k, aligned);

        normalise(x, &block.ffn_norm, k, aligned, &mut work.h, &mut work.plain, &mut work.more);
        gate.apply(&work.h, &mut work.gate, &mut work.linear)?;
        up.apply(&work.h, &mut work.up, &mut work.linear)?;
        swiglu(&mut work.gate, &work.up);
        down.apply(&work.gate, &mut work.y, &mut work.linear)?;
        add_residual(x, &work.y, k, aligned);
        Ok(())
    }

    /// Logits of the last token, all of them.
    pub fn head(&mut self, session: &mut Session) -> Result<()> {
        self.begin_head(session)?;
        self.head_range(session, 0, self.config.vocabulary)
    }

    /// Quantise the last token for the head.
    pub fn begin_head(&mut self, session: &mut Session) -> Result<()> {
        let done = session.in_work.is_none() && !session.tokens.is_empty();
        require!(done, Shape, "no token has been read: feed at least one before asking for logits");
        let work = &mut self.work;
        rms_norm(&session.x, &self.norm, &mut work.plain, &mut work.more);
        work.query.quantize(&work.plain)?;
        session.logits.resize(self.config.vocabulary, 0.0);
        if let (Embedding::Hash(tables), None) = (&self.embedding, &self.head) {
            tables.row_logits(&work.query, &mut work.row_logits);
        }
        Ok(())
    }

    /// Logits of ids `from .. to`, after `begin_head`.
    pub fn head_range(&mut self, session: &mut Session, from: usize, to: usize) -> Result<()> {
        let vocabulary = session.logits.len();
        let out = session.logits.get_mut(from..to);
        let out = out.ok_or_else(|| error!(Range, "ids {from} .. {to}: expected within 0 .. {vocabulary}"))?;
        match (&self.head, &self.embedding) {
            (Some(table), _) | (None, Embedding::Table(table)) => table.logits(&self.work.query, from, out),
            (None, Embedding::Hash(tables)) => tables.combine(&self.work.row_logits, from, out),
        }
        Ok(())
    }

    /// Read a prompt; the logits are those of its last token. On an error the sequence is as it was.
    pub fn prefill(&mut self, session: &mut Session, ids: &[i64]) -> Result<()> {
        let start = session.tokens.len();
        for &id in ids {
            if let Err(error) = self.feed(session, id) {
                session.truncate(start)?;
                return Err(error);
            }
        }
        if ids.is_empty() { Ok(()) } else { self.head(session) }
    }

    /// Draw the next token from the last logits; the history is every token of the sequence.
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
        let n = config.algebra.size();
        let blocks = n * stride(config.width / n);
        let hidden = n * stride(config.hidden / n);
        let aligned = blocks == config.width;
        let heads = if aligned { blocks } else { config.width };
        Ok(Self {
            plain: try_vec(config.width, 0.0)?,
            more: try_vec(config.width, 0.0)?,
            h: try_vec(blocks, 0.0)?,
            y: try_vec(blocks, 0.0)?,
            q: try_vec(heads, 0.0)?,
            k: try_vec(heads, 0.0)?,
            v: try_vec(heads, 0.0)?,
            gate: try_vec(hidden, 0.0)?,
            up: try_vec(hidden, 0.0)?,
            ..Self::default()
        })
    }
}

impl Session {
    /// Tokens so far.
    pub fn tokens(&self) -> &[i64] {
        &self.tokens
    }

    /// Logits of the last token, once `head` has run.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// The residual stream of the token in work, or of the last one.
    pub fn hidden(&self) -> &[f32] {
        &self.x
    }

    /// Bytes that the sequence takes.
    pub fn bytes(&self) -> usize {
        let floats = self.x.len() + self.logits.len();
        self.caches.iter().map(KvCache::bytes).sum::<usize>() + 8 * self.tokens.len() + 4 * floats
    }

    /// Forget the token in work, if there is one.
    fn abandon(&mut self) {
        self.in_work = None;
        for cache in &mut self.caches {
            // A block that failed may or may not have appended; shortening to what was there cannot fail.
            let _ = cache.truncate(self.tokens.len());
        }
    }

    /// Forget all but the first `length` tokens. Logits are those of a token that is gone, and go with it.
    pub fn truncate(&mut self, length: usize) -> Result<()> {
        require!(length <= self.tokens.len(), Range, "length {length}: expected 0 .. {}", self.tokens.len());
        self.tokens.truncate(length);
        self.abandon();
        self.logits.clear();
        Ok(())
    }

    /// An independent copy.
    pub fn fork(&self) -> Self {
        Self {
            caches: self.caches.clone(),
            tokens: self.tokens.clone(),
            x: self.x.clone(),
            logits: self.logits.clone(),
            in_work: self.in_work,
        }
    }
}
