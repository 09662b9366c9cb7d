//! What work will cost, in Internet Computer instructions, before it is done: for hosts with a budget.
//!
//! ```text
//! cost of a linear = products * P + inputs * I + outputs * O + a constant,     P by layout, all measured (walsh.ic)
//! ```
//!
//! Upper estimates from shapes, for one column; `tests/engine/test_instructions.py` holds them to what is measured.
//! Columns that share a pass cost no more than alone. Pages and system calls are the host's.

use crate::cayley_dickson::Layout;
use crate::config::Config;
use crate::head_mixer::Algebra;
use crate::model::{Embedding, Model};
use crate::sampling::Sampling;

impl Model {
    /// Instructions to start on one token.
    pub fn begin_cost(&self) -> u64 {
        let (c, tables) = (self.config.width as u64, self.config.hash_embeddings as u64);
        2_000 + c * (11 + 20 * tables) + 250 * self.inv_freq.len() as u64
    }

    /// Instructions of one token in one block, `position` tokens being cached before it.
    pub fn layer_cost(&self, position: usize) -> u64 {
        self.layer_costs(position).iter().sum()
    }

    /// The same by part: linear layers, mixer, attention, and the rest (norms, gate, rotations, residuals).
    pub fn layer_costs(&self, position: usize) -> [u64; 4] {
        let (config, n) = (&self.config, self.config.algebra.size());
        let linears =
            config.linears().iter().map(|&(_, rows, columns)| self.linear_cost(n, rows, columns)).sum::<u64>();
        let mixer = if config.head_mixing { self.mixer_cost(config) } else { 0 };
        let features = 60 * config.width as u64 + 12 * config.hidden as u64;
        [linears, mixer, self.attention_cost(position), 5_000 + features]
    }

    /// Instructions to quantise the last token for the head, products with hash tables included.
    pub fn begin_head_cost(&self) -> u64 {
        let tables = match (&self.head, &self.embedding) {
            (None, Embedding::Hash(tables)) => self.rows_cost(tables.rows(), tables.four_bits()),
            _ => 0,
        };
        5_000 + 40 * self.config.width as u64 + tables
    }

    /// Instructions for the logits of `rows` ids.
    pub fn head_cost(&self, rows: usize) -> u64 {
        match (&self.head, &self.embedding) {
            (None, Embedding::Hash(_)) => 20_000 + (40 * self.config.hash_embeddings * rows) as u64,
            (Some(table), _) | (None, Embedding::Table(table)) => self.rows_cost(rows, table.four_bits()),
        }
    }

    /// Instructions to draw from all logits, at most: every id kept and sorted.
    pub fn sample_cost(&self) -> u64 {
        40_000 + 800 * self.config.vocabulary as u64
    }

    /// Instructions to draw as `sampling` says.
    pub fn sample_cost_of(&self, sampling: &Sampling) -> u64 {
        let ids = self.config.vocabulary as u64;
        match (sampling.temperature == 0.0, sampling.top_k) {
            (true, _) => 10_000 + 20 * ids,
            (false, 1..=256) => 250_000 + 40 * ids,
            _ => self.sample_cost(),
        }
    }

    fn rows_cost(&self, rows: usize, four_bits: bool) -> u64 {
        let width = self.config.width;
        // Instructions per ten multiply-adds: kernels for the usual widths, any multiple of 16, the definition.
        let per_ten = match (self.config.float_activations, four_bits) {
            (false, _) if matches!(width, 128 | 256 | 512) => 7 + 2 * u64::from(four_bits),
            (false, _) if width.is_multiple_of(16) => 30,
            (true, false) => 120,
            _ => 500,
        };
        20_000 + 10 * width as u64 + rows as u64 * (40 + width as u64 * per_ten / 10)
    }

    fn attention_cost(&self, position: usize) -> u64 {
        let (heads, d) = (self.config.heads as u64, self.config.head_dim().next_multiple_of(8) as u64);
        let seen = (position as u64 + 1).next_multiple_of(32);
        let each = if self.config.float_activations { 120 + 30 * d } else { 16 + 3 * d };
        heads * (1_500 + 40 * d + seen * each)
    }

    fn mixer_cost(&self, config: &Config) -> u64 {
        let (n, d) = (config.algebra.size() as u64, config.head_dim().next_multiple_of(16) as u64);
        let products = match config.algebra {
            Algebra::CayleyDickson(_) => n * n,
            Algebra::Hadamard(_) => n,
        };
        let each = if config.float_activations { 400 + d * (25 + 8 * d) } else { 250 + d * d };
        config.heads as u64 / n * (2_000 + products * each + self.transform_cost(n, 2 * d))
    }

    /// Both transforms of a layer, or what stands in their place.
    fn transform_cost(&self, n: u64, features: u64) -> u64 {
        let generic = matches!(self.config.algebra, Algebra::Hadamard(_)) && n != 32;
        n * features * if generic { 40 + 20 * u64::from(n.ilog2()) } else { 30 }
    }

    fn linear_cost(&self, n: usize, rows: usize, columns: usize) -> u64 {
        let (d, padded) = (n as u64, rows.next_multiple_of(8) as u64);
        let block = padded * columns.next_multiple_of(16) as u64;
        let packed = matches!(self.layout, Layout::Packed | Layout::FastPacked);
        let fast = matches!(self.layout, Layout::Fast | Layout::FastPacked);
        let product = 300 + block * 6 / 10;
        let products = match self.config.algebra {
            _ if self.config.float_activations => {
                let count = if matches!(self.config.algebra, Algebra::Hadamard(_)) { d } else { d * d };
                count * (400 + padded / 4 * (100 + 32 * columns as u64))
            }
            Algebra::Hadamard(_) => d * product,
            Algebra::CayleyDickson(8) if fast => 8 * (300 + block) + 22 * product,
            Algebra::CayleyDickson(_) => d * d * product,
        };
        let expanding = if packed { d * (200 + block * 14 / 10) } else { 0 };
        2_000 + products + expanding + self.transform_cost(d, block / padded.max(1) + padded)
    }
}
