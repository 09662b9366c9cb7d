//! A model in memory: what a `.walsh` file becomes when it is loaded.
//!
//! Linear layers are laid out for their kernels, tables stay where the file has them, and the rest of the file is let go.

use crate::blocks::stride;
use crate::cayley_dickson::{self, CayleyDicksonLinear, Layout};
use crate::config::Config;
use crate::container::Container;
use crate::embedding::HashTables;
use crate::error::{Result, error};
use crate::float::{self, FloatLinear};
use crate::forward::Workspace;
use crate::hadamard::{self, HadamardLinear};
use crate::head_mixer::{self, Algebra, HeadMixer};
use crate::loading::Loader;
use crate::rows::RowTable;
use crate::tokenizer::Tokenizer;

pub(crate) enum Linear {
    CayleyDickson(CayleyDicksonLinear),
    Hadamard(HadamardLinear),
    Float(FloatLinear<i8>, usize, usize),
}

pub(crate) enum Mixer {
    Strict(HeadMixer),
    Float(FloatLinear<i8>, usize),
}

impl Mixer {
    /// x and y [H, d].
    pub(crate) fn apply(&self, x: &[f32], y: &mut [f32], scratch: &mut head_mixer::Scratch) -> Result<()> {
        match self {
            Mixer::Strict(mixer) => mixer.apply(x, y, scratch),
            Mixer::Float(mixer, group) => {
                let d = group / mixer.size();
                x.chunks_exact(*group).zip(y.chunks_exact_mut(*group)).try_for_each(|(x, y)| mixer.apply(x, d, y, d))
            }
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Mixer::Strict(mixer) => mixer.bytes(),
            Mixer::Float(mixer, _) => mixer.bytes(),
        }
    }
}

#[derive(Default)]
pub(crate) struct LinearScratch {
    cayley_dickson: cayley_dickson::Scratch,
    hadamard: hadamard::Scratch,
}

impl Linear {
    /// x and y: `columns` times padded blocks.
    pub(crate) fn apply(&self, x: &[f32], y: &mut [f32], columns: usize, scratch: &mut LinearScratch) -> Result<()> {
        match self {
            Linear::CayleyDickson(layer) => layer.apply(x, y, columns, &mut scratch.cayley_dickson),
            Linear::Hadamard(layer) => layer.apply(x, y, columns, &mut scratch.hadamard),
            Linear::Float(layer, rows, inputs) => {
                let (from, to) = (stride(*inputs), stride(*rows));
                let (input, output) = (layer.size() * from, layer.size() * to);
                let columns = x.chunks_exact(input).zip(y.chunks_exact_mut(output)).take(columns);
                columns.into_iter().try_for_each(|(x, y)| layer.apply(x, from, y, to))
            }
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Linear::CayleyDickson(layer) => layer.bytes(),
            Linear::Hadamard(layer) => layer.bytes(),
            Linear::Float(layer, ..) => layer.bytes(),
        }
    }
}

pub(crate) struct Block {
    pub(crate) attention_norm: Vec<f32>,
    pub(crate) ffn_norm: Vec<f32>,
    /// wq, wk, wv, wo, gate, up, down.
    pub(crate) linears: Vec<Linear>,
    pub(crate) mixer: Option<Mixer>,
}

pub(crate) enum Embedding {
    Table(RowTable),
    Hash(HashTables),
}

/// A loaded model.
pub struct Model {
    pub(crate) config: Config,
    pub(crate) embedding: Embedding,
    pub(crate) head: Option<RowTable>,
    pub(crate) blocks: Vec<Block>,
    pub(crate) norm: Vec<f32>,
    pub(crate) inv_freq: Vec<f64>,
    pub(crate) hash_scale: f32,
    pub(crate) tokenizer: Option<Tokenizer>,
    pub(crate) layout: Layout,
    pub(crate) file_bytes: usize,
    pub(crate) kept_bytes: usize,
    pub(crate) work: Workspace,
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

/// The fastest layout whose weights stay within 1.30 (with transformed weights) or 1.15 times the file; `others` is what
/// is kept besides blocks.
fn choose_layout(config: &Config, file: usize, others: usize) -> Layout {
    let n = config.algebra.size();
    let padded: usize =
        config.linears().iter().map(|(_, rows, columns)| n * rows.next_multiple_of(8) * stride(*columns)).sum();
    let others = others + config.layers * bytes_beside_linears(config);
    let fits = |layout: Layout, limit: f64| {
        others as f64 + cost(layout) * (padded * config.layers) as f64 <= limit * file as f64
    };
    let octonion = config.algebra == Algebra::CayleyDickson(8);
    [(Layout::Fast, 1.30), (Layout::FastPacked, 1.30), (Layout::Pairs, 1.15)]
        .into_iter()
        .find(|&(layout, limit)| (octonion || layout == Layout::Pairs) && fits(layout, limit))
        .map_or(Layout::Packed, |(layout, _)| layout)
}

/// Bytes of one block, the weights of its linear layers aside.
fn bytes_beside_linears(config: &Config) -> usize {
    let (n, d, hadamard) = (config.algebra.size(), config.head_dim(), matches!(config.algebra, Algebra::Hadamard(_)));
    let factors = config.linears().into_iter().map(|(_, rows, columns)| match hadamard {
        true => HadamardLinear::bytes_of_factors(n, rows, columns),
        false => 4 * stride(rows),
    });
    let mixer = match (config.head_mixing, hadamard) {
        (false, _) => 0,
        (true, true) => n * d.next_multiple_of(8) * (stride(d) + 8),
        (true, false) => n * d.next_multiple_of(8) * stride(d) + 8 * d,
    };
    8 * config.width + factors.sum::<usize>() + mixer
}

/// How linear layers are kept: as asked for, or as fits memory.
pub(crate) fn layout_of(
    config: &Config,
    container: &Container,
    tokenizer: Option<&Tokenizer>,
    asked: Option<Layout>,
) -> Layout {
    if config.float_activations {
        // They have one layout of their own.
        return Layout::Pairs;
    }
    let tables = tables_of(config, container);
    let stored = container.shape("embedding.indices").is_some();
    let others = tables.iter().map(|(stem, rows, width)| container.table_bytes(stem, *rows, *width)).sum::<usize>()
        + tokenizer.map_or(0, Tokenizer::memory)
        + config.vocabulary * config.hash_embeddings * if stored { 8 } else { 4 };
    asked.unwrap_or_else(|| choose_layout(config, container.len(), others))
}

impl Model {
    /// Load a `.walsh` file in one go; `verify` compares digests, `layout` None chooses by memory.
    pub fn load(file: Vec<u8>, verify: bool, layout: Option<Layout>) -> Result<Self> {
        let mut loader = Loader::new(file, verify, layout)?;
        loop {
            if let Some(model) = loader.step()? {
                return Ok(model);
            }
        }
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
        let embedding = match &self.embedding {
            Embedding::Table(table) => table.bytes_beside_codes(),
            Embedding::Hash(tables) => tables.bytes_beside_codes(),
        };
        let blocks = self.blocks.iter().map(|block| {
            4 * (block.attention_norm.len() + block.ffn_norm.len())
                + block.linears.iter().map(Linear::bytes).sum::<usize>()
                + block.mixer.as_ref().map_or(0, Mixer::bytes)
        });
        Memory {
            file: self.file_bytes,
            weights: self.kept_bytes
                + embedding
                + self.head.as_ref().map_or(0, RowTable::bytes_beside_codes)
                + blocks.sum::<usize>(),
            tokenizer: self.tokenizer.as_ref().map_or(0, Tokenizer::memory),
        }
    }
}

/// Tables of a model, head last: (stem, rows, width). Hash tables are as tall as the file has them.
pub(crate) fn tables_of(config: &Config, container: &Container) -> Vec<(String, usize, usize)> {
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

impl Linear {
    /// The linear layer of this name.
    pub(crate) fn read(
        container: &Container,
        config: &Config,
        name: &str,
        (rows, columns): (usize, usize),
        layout: Layout,
    ) -> Result<Self> {
        let n = config.algebra.size();
        let codes = container.codes(&format!("{name}.codes"), &[n, rows, columns])?;
        Ok(match config.algebra {
            Algebra::CayleyDickson(_) if config.float_activations => {
                let beta = container.floats(&format!("{name}.beta"), &[rows])?;
                Linear::Float(FloatLinear::new(&codes, config.algebra, rows, columns, &[], &beta)?, rows, columns)
            }
            Algebra::Hadamard(_) if config.float_activations => {
                let alpha = container.floats(&format!("{name}.alpha"), &[n, columns])?;
                let beta = container.floats(&format!("{name}.beta"), &[n, rows])?;
                Linear::Float(FloatLinear::new(&codes, config.algebra, rows, columns, &alpha, &beta)?, rows, columns)
            }
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
        })
    }
}

impl Block {
    /// Block `layer` with linear layers that were read before.
    pub(crate) fn read(container: &Container, config: &Config, layer: usize, linears: Vec<Linear>) -> Result<Self> {
        let (n, c, d) = (config.algebra.size(), config.width, config.head_dim());
        let prefix = format!("blocks.{layer}");
        let mixer = if config.head_mixing {
            let codes = container.codes(&format!("{prefix}.mixer.codes"), &[n, d, d])?;
            let scale = container.floats(&format!("{prefix}.mixer.scale"), &[d])?;
            let beta = container.floats(&format!("{prefix}.mixer.beta"), &[d])?;
            Some(match config.float_activations {
                false => Mixer::Strict(HeadMixer::new(&codes, config.algebra, d, &scale, &beta)?),
                true => Mixer::Float(float::mixer(&codes, config.algebra, d, &scale, &beta)?, n * d),
            })
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
