//! From a file to a model, a tensor at a time: for hosts that must bound what they do at once.
//!
//! ```text
//! steps = 1 (tokenizer) + layers * 7 (linear layers, the last with the rest of its block) + 1 (tables)
//! ```
//!
//! Nothing of the model can be used before the last step. A step that is refused ends the loading.

use crate::cayley_dickson::Layout;
use crate::config::Config;
use crate::container::Container;
use crate::embedding::HashTables;
use crate::error::{Result, error};
use crate::forward::Workspace;
use crate::model::{Block, Embedding, Linear, Model, layout_of, tables_of};
use crate::tokenizer::Tokenizer;

/// A model on its way.
pub struct Loader {
    container: Option<Container>,
    config: Config,
    file_bytes: usize,
    layout: Option<Layout>,
    tokenizer: Option<Tokenizer>,
    linears: Vec<Linear>,
    blocks: Vec<Block>,
    done: usize,
}

impl Loader {
    /// Parse a `.walsh` file; `verify` compares digests, `layout` None chooses by memory.
    pub fn new(file: Vec<u8>, verify: bool, layout: Option<Layout>) -> Result<Self> {
        let container = Container::parse(file, verify)?;
        let config = Config::read(&container.config)?;
        config.check_names(&container)?;
        let file_bytes = container.len();
        let (tokenizer, linears, blocks) = (None, Vec::new(), Vec::new());
        Ok(Self { container: Some(container), config, file_bytes, layout, tokenizer, linears, blocks, done: 0 })
    }

    /// Steps that were done, and all there are.
    pub fn progress(&self) -> (usize, usize) {
        (self.done, 2 + self.config.layers * self.config.linears().len())
    }

    /// What the next step costs at most, about, in Internet Computer instructions.
    pub fn next_cost(&self) -> u64 {
        let (Some(container), config) = (&self.container, &self.config) else { return 0 };
        let (linears, n) = (config.linears(), config.algebra.size());
        if self.done == 0 {
            let bytes = container.shape("tokenizer.tokens").map_or(0, |shape| shape.iter().product::<usize>());
            return 50_000 + 500 * bytes as u64;
        }
        if self.done > config.layers * linears.len() {
            let rows = |(_, rows, width): (String, usize, usize)| rows * (60 + 8 * width);
            let tables = tables_of(config, container).into_iter().map(rows).sum::<usize>();
            return 200_000 + (tables + 60 * config.vocabulary * config.hash_embeddings) as u64;
        }
        let (_, rows, columns) = linears[(self.done - 1) % linears.len()];
        let transformed = matches!(self.layout, Some(Layout::Fast | Layout::FastPacked));
        let mixer = if config.head_mixing { n * config.head_dim() * config.head_dim() } else { 0 };
        100_000 + ((n * rows * columns) * if transformed { 500 } else { 150 } + 300 * mixer) as u64
    }

    /// The next step; the model, once all are done.
    pub fn step(&mut self) -> Result<Option<Model>> {
        let Some(container) = &self.container else { return Err(error!(Parameter, "the model was loaded already")) };
        let (linears, at) = (self.config.linears(), self.done);
        if at == 0 {
            self.tokenizer = Tokenizer::read(container, self.config.vocabulary)?;
            self.layout = Some(layout_of(&self.config, container, self.tokenizer.as_ref(), self.layout));
        } else if at > self.config.layers * linears.len() {
            return self.finish().map(Some);
        } else {
            let (layer, place) = ((at - 1) / linears.len(), (at - 1) % linears.len());
            let (name, rows, columns) = linears[place];
            let name = format!("blocks.{layer}.{name}");
            let layout = self.layout.unwrap_or(Layout::Packed);
            self.linears.push(Linear::read(container, &self.config, &name, (rows, columns), layout)?);
            if place + 1 == linears.len() {
                let linears = std::mem::take(&mut self.linears);
                self.blocks.push(Block::read(container, &self.config, layer, linears)?);
            }
        }
        self.done += 1;
        Ok(None)
    }

    fn finish(&mut self) -> Result<Model> {
        let container = self.container.take().ok_or_else(|| error!(Parameter, "the model was loaded already"))?;
        let config = self.config.clone();
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
        let names = tables_of(&config, &container);
        let (mut tables, kept_bytes) = container.into_tables(&names)?;
        let head = if config.tied_head { None } else { tables.pop() };
        let embedding = match hash_parts {
            Some((importance, indices)) => Embedding::Hash(HashTables::new(tables, importance, indices)?),
            None => Embedding::Table(tables.pop().ok_or_else(|| error!(Format, "no embedding"))?),
        };
        let hash_scale = if config.hash_scale { (config.width as f64).sqrt() as f32 } else { 1.0 };
        let work = Workspace::new(&config)?;
        Ok(Model {
            config,
            embedding,
            head,
            blocks: std::mem::take(&mut self.blocks),
            norm,
            inv_freq,
            hash_scale,
            tokenizer: self.tokenizer.take(),
            layout: self.layout.unwrap_or(Layout::Packed),
            file_bytes: self.file_bytes,
            kept_bytes,
            work,
        })
    }
}
