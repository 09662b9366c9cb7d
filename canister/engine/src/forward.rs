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
use crate::cayley_dickson::{self, CayleyDicksonLinear, Layout};
use crate::config::Config;
use crate::container::Container;
use crate::embedding::{HashTables, Query, RowTable};
use crate::error::{Result, error, require, try_vec};
use crate::hadamard::{self, HadamardLinear};
use crate::head_mixer::{self, Algebra, HeadMixer};
use crate::kv_cache::KvCache;
use crate::rms_norm::rms_norm;
use crate::rope::Rotation;
use crate::sampling::{self, Sampling};
use crate::swiglu::swiglu;
use crate::tokenizer::Tokenizer;

enum Linear {
    CayleyDickson(CayleyDicksonLinear),
    Hadamard(HadamardLinear),
}

#[derive(Default)]
struct LinearScratch {
    cayley_dickson: cayley_dickson::Scratch,
    hadamard: hadamard::Scratch,
}

impl Linear {
    fn apply(&self, x: &[f32], y: &mut [f32], scratch: &mut LinearScratch) -> Result<()> {
        match self {
            Linear::CayleyDickson(layer) => layer.apply(x, y, &mut scratch.cayley_dickson),
            Linear::Hadamard(layer) => layer.apply(x, y, &mut scratch.hadamard),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Linear::CayleyDickson(layer) => layer.bytes(),
            Linear::Hadamard(layer) => layer.bytes(),
        }
    }
}

struct Block {
    attention_norm: Vec<f32>,
    ffn_norm: Vec<f32>,
    /// wq, wk, wv, wo, gate, up, down.
    linears: Vec<Linear>,
    mixer: Option<HeadMixer>,
}

enum Embedding {
    Table(RowTable),
    Hash(HashTables),
}

/// Scratch of a forward pass, allocated once.
#[derive(Default)]
struct Workspace {
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

/// A loaded model.
pub struct Model {
    config: Config,
    embedding: Embedding,
    head: Option<RowTable>,
    blocks: Vec<Block>,
    norm: Vec<f32>,
    inv_freq: Vec<f64>,
    hash_scale: f32,
    tokenizer: Option<Tokenizer>,
    layout: Layout,
    file_bytes: usize,
    kept_bytes: usize,
    work: Workspace,
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

/// What a model holds in memory, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// The file as it was loaded.
    pub file: usize,
    /// Everything that is kept of it, in whatever layout, the tokenizer aside.
    pub weights: usize,
    /// The tokenizer.
    pub tokenizer: usize,
}

/// Bytes per weight of a layout.
fn cost(layout: Layout) -> f64 {
    match layout {
        Layout::Fast => 2.0,
        Layout::FastPacked => 1.25,
        Layout::Pairs => 1.0,
        Layout::Packed => 0.25,
    }
}

/// The fastest layout whose weights stay within 1.30 (with transformed weights) or 1.15 times the file.
fn choose_layout(config: &Config, file: usize, others: usize) -> Layout {
    let n = config.algebra.size();
    let padded: usize = config.linears().iter().map(|(_, rows, columns)| n * rows.next_multiple_of(8) * stride(*columns)).sum();
    let fits = |layout: Layout, limit: f64| {
        others as f64 + cost(layout) * (padded * config.layers) as f64 <= limit * file as f64
    };
    let octonion = config.algebra == Algebra::CayleyDickson(8);
    [(Layout::Fast, 1.30), (Layout::FastPacked, 1.30), (Layout::Pairs, 1.15)]
        .into_iter()
        .find(|&(layout, limit)| (octonion || layout == Layout::Pairs) && fits(layout, limit))
        .map_or(Layout::Packed, |(layout, _)| layout)
}

impl Model {
    /// Load a `.walsh` file; `verify` compares digests, `layout` None chooses by memory.
    pub fn load(file: Vec<u8>, verify: bool, layout: Option<Layout>) -> Result<Self> {
        let container = Container::parse(file, verify)?;
        let config = Config::read(&container.config)?;
        config.check_names(&container)?;
        let file_bytes = container.len();
        let tokenizer = Tokenizer::read(&container, config.vocabulary)?;
        let tables = tables_of(&config, &container);
        let others = tables.iter().map(|(stem, rows, _)| {
            container.stored_bytes(&format!("{stem}.codes")) + 8 * rows
        });
        let others = others.sum::<usize>() + tokenizer.as_ref().map_or(0, Tokenizer::memory);
        let layout = layout.unwrap_or_else(|| choose_layout(&config, file_bytes, others));
        let mut blocks = Vec::new();
        for layer in 0..config.layers {
            blocks.push(Block::read(&container, &config, layer, layout)?);
        }
        let norm = container.floats("norm.weight", &[config.width])?;
        let inv_freq = container.doubles("rope.inv_freq", &[config.head_dim() / 2])?;
        let (v, hashes) = (config.vocabulary, config.hash_embeddings);
        let hash_parts = if hashes > 0 {
            let importance = container.floats("embedding.importance", &[v, hashes])?;
            let stored = container.shape("embedding.indices").is_some();
            let indices = if stored { Some(container.integers("embedding.indices", &[v, hashes])?) } else { None };
            Some((importance, indices))
        } else {
            None
        };
        let (mut tables, kept_bytes) = container.into_tables(&tables)?;
        let head = if config.tied_head { None } else { tables.pop() };
        let embedding = match hash_parts {
            Some((importance, indices)) => Embedding::Hash(HashTables::new(tables, importance, indices)?),
            None => Embedding::Table(tables.pop().ok_or_else(|| error!(Format, "no embedding"))?),
        };
        let hash_scale = if config.hash_scale { (config.width as f64).sqrt() as f32 } else { 1.0 };
        let work = Workspace::new(&config)?;
        Ok(Self {
            config,
            embedding,
            head,
            blocks,
            norm,
            inv_freq,
            hash_scale,
            tokenizer,
            layout,
            file_bytes,
            kept_bytes,
            work,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The tokenizer, if the file has one.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| error!(Parameter, "the file has no tokenizer; give token ids"))
    }

    /// How the linear layers are kept.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// What the model holds in memory.
    pub fn memory(&self) -> Memory {
        let scales = |table: &RowTable| 4 * table.rows();
        let embedding = match &self.embedding {
            Embedding::Table(table) => scales(table),
            Embedding::Hash(tables) => tables.bytes_beside_codes(),
        };
        let blocks = self.blocks.iter().map(|block| {
            4 * (block.attention_norm.len() + block.ffn_norm.len())
                + block.linears.iter().map(Linear::bytes).sum::<usize>()
                + block.mixer.as_ref().map_or(0, HeadMixer::bytes)
        });
        Memory {
            file: self.file_bytes,
            weights: self.kept_bytes + embedding + self.head.as_ref().map_or(0, scales) + blocks.sum::<usize>(),
            tokenizer: self.tokenizer.as_ref().map_or(0, Tokenizer::memory),
        }
    }

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
        x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    } else {
        for (x, y) in x.chunks_exact_mut(k).zip(y.chunks_exact(stride(k))) {
            x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        }
    }
}

/// Tables of a model, head last: (stem, rows, width). Hash tables are as tall as the file has them.
fn tables_of(config: &Config, container: &Container) -> Vec<(String, usize, usize)> {
    let (v, c) = (config.vocabulary, config.width);
    let mut tables = Vec::new();
    if config.hash_embeddings == 0 {
        tables.push(("embedding".to_owned(), v, c));
    }
    for i in 0..config.hash_embeddings {
        let stem = format!("embedding.tables.{i}");
        let rows = container.shape(&format!("{stem}.codes")).and_then(|shape| shape.first().copied()).unwrap_or(0);
        tables.push((stem, rows, c));
    }
    if !config.tied_head {
        tables.push(("head".to_owned(), v, c));
    }
    tables
}

impl Block {
    fn read(container: &Container, config: &Config, layer: usize, layout: Layout) -> Result<Self> {
        let (n, c, d) = (config.algebra.size(), config.width, config.head_dim());
        let prefix = format!("blocks.{layer}");
        let mut linears = Vec::new();
        for (name, rows, columns) in config.linears() {
            let name = format!("{prefix}.{name}");
            let codes = container.codes(&format!("{name}.codes"), &[n, rows, columns])?;
            linears.push(match config.algebra {
                Algebra::CayleyDickson(_) => {
                    let beta = container.floats(&format!("{name}.beta"), &[rows])?;
                    Linear::CayleyDickson(CayleyDicksonLinear::new(&codes, n, rows, columns, &beta, layout)?)
                }
                Algebra::Hadamard(_) => {
                    let alpha = container.floats(&format!("{name}.alpha"), &[n, columns])?;
                    let beta = container.floats(&format!("{name}.beta"), &[n, rows])?;
                    let packed = layout == Layout::Packed;
                    Linear::Hadamard(HadamardLinear::new(&codes, n, rows, columns, &alpha, &beta, packed)?)
                }
            });
        }
        let mixer = if config.head_mixing {
            let codes = container.codes(&format!("{prefix}.mixer.codes"), &[n, d, d])?;
            let scale = container.floats(&format!("{prefix}.mixer.scale"), &[d])?;
            let beta = container.floats(&format!("{prefix}.mixer.beta"), &[d])?;
            Some(HeadMixer::new(&codes, config.algebra, d, &scale, &beta)?)
        } else {
            None
        };
        Ok(Self {
            attention_norm: container.floats(&format!("{prefix}.attention_norm.weight"), &[c])?,
            ffn_norm: container.floats(&format!("{prefix}.ffn_norm.weight"), &[c])?,
            linears,
            mixer,
        })
    }
}

impl Workspace {
    fn new(config: &Config) -> Result<Self> {
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
