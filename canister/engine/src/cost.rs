//! What work will cost, in Internet Computer instructions, before it is done: for hosts with a budget.
//!
//! ```text
//! cost of a linear = products * P + inputs * I + outputs * O + a constant,     P by layout, all measured (walsh.ic)
//! ```
//!
//! Estimates from shapes, for one column; `tests/test_engine.py` holds them between the measured cost and 1.5 times it,
//! for every algebra and layout. Columns that share a pass cost no more than alone. Pages and system calls are the host's.

use crate::cayley_dickson::Layout;
use crate::config::Config;
use crate::head_mixer::Algebra;
use crate::model::{Embedding, Model};

/// Instructions per hundred of everything below.
const PERCENT: u64 = 100;

impl Model {
    /// Instructions to start on one token.
    pub fn begin_cost(&self) -> u64 {
        let (c, tables) = (self.config.width as u64, self.config.hash_embeddings.max(1) as u64);
        1_000 + c * 10 * tables + 200 * self.inv_freq.len() as u64
    }

    /// Instructions of one token in one block, `position` tokens being cached before it.
    pub fn layer_cost(&self, position: usize) -> u64 {
        let (config, n) = (&self.config, self.config.algebra.size());
        let linears =
            config.linears().iter().map(|&(_, rows, columns)| self.linear_cost(n, rows, columns)).sum::<u64>();
        let mixer = if config.head_mixing { self.mixer_cost(config) } else { 0 };
        let features = 60 * config.width as u64 + 12 * config.hidden as u64;
        5_000 + linears + mixer + features + self.attention_cost(position)
    }

    /// Instructions to quantise the last token for the head, products with hash tables included.
    pub fn begin_head_cost(&self) -> u64 {
        let tables = match (&self.head, &self.embedding) {
            (None, Embedding::Hash(tables)) => self.rows_cost(tables.rows()),
            _ => 0,
        };
        5_000 + 40 * self.config.width as u64 + 2 * self.config.vocabulary as u64 + tables
    }

    /// Instructions for the logits of `rows` ids.
    pub fn head_cost(&self, rows: usize) -> u64 {
        match (&self.head, &self.embedding) {
            (None, Embedding::Hash(_)) => 2_000 + (30 * self.config.hash_embeddings * rows) as u64,
            _ => self.rows_cost(rows),
        }
    }

    /// Instructions to draw from all logits.
    pub fn sample_cost(&self) -> u64 {
        10_000 + 60 * self.config.vocabulary as u64
    }

    fn rows_cost(&self, rows: usize) -> u64 {
        let rows = rows as u64;
        3_000 + 10 * self.config.width as u64 + rows * (20 + self.config.width as u64 * 100 / PERCENT)
    }

    fn attention_cost(&self, position: usize) -> u64 {
        let (heads, d) = (self.config.heads as u64, self.config.head_dim().next_multiple_of(8) as u64);
        let seen = (position as u64 + 1).next_multiple_of(32);
        heads * (1_500 + 40 * d + seen * (16 + 3 * d))
    }

    fn mixer_cost(&self, config: &Config) -> u64 {
        let (n, d) = (config.algebra.size() as u64, config.head_dim().next_multiple_of(16) as u64);
        let products = match config.algebra {
            Algebra::CayleyDickson(_) => n * n,
            Algebra::Hadamard(_) => n,
        };
        let groups = config.heads as u64 / n;
        groups * (2_000 + products * (200 + d * d) + 60 * n * d)
    }

    fn linear_cost(&self, n: usize, rows: usize, columns: usize) -> u64 {
        let (rows, columns) = (rows.next_multiple_of(8) as u64, columns.next_multiple_of(16) as u64);
        let (d, block) = (n as u64, rows * columns);
        let packed = matches!(self.layout, Layout::Packed | Layout::FastPacked);
        let ternary = if packed { 200 } else { 60 };
        let products = match self.config.algebra {
            Algebra::Hadamard(_) => d * (200 + block * ternary / PERCENT),
            Algebra::CayleyDickson(8) if matches!(self.layout, Layout::Fast | Layout::FastPacked) => {
                8 * (300 + block) + 22 * (300 + block * ternary / PERCENT)
            }
            Algebra::CayleyDickson(_) => d * d * (300 + block * ternary / PERCENT),
        };
        2_000 + products + 30 * d * (rows + columns)
    }
}
