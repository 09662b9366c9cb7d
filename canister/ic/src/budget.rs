//! How much a message may still do: every step is predicted before it is done, and measured when it is.
//!
//! ```text
//! predicted = rate of the step's kind * its work;    allowed if counter + predicted <= limit
//! rate      = max(measured / work * 1.05, 0.98 * rate)
//! ```
//!
//! The counter is the platform's own. The work of a tensor, a block, a head or a draw is what the engine estimates that it
//! costs; of anything else it is bytes. A rate starts too high and follows what is measured, up at once and down slowly: it learns
//! what pages add, which cost extra when a message first touches them. The first step of a message is always allowed: every
//! call makes progress, whatever its budget. A step is at most one block for each session of a batch, so a message
//! exceeds its budget by less than that even if a prediction is wrong.

use crate::system;

/// What a step does; work is bytes, or the engine's estimate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bytes of a file through SHA-256.
    Hash,
    /// Bytes from stable memory to the heap.
    Copy,
    /// A file's header.
    Parse,
    /// A tensor that is laid out.
    Load,
    /// Tokens through a block.
    Block,
    /// Logits.
    Head,
    /// A draw from all logits.
    Draw,
}

/// Names of the kinds, in order.
pub const KINDS: [&str; 7] = ["hash", "copy", "parse", "load", "block", "head", "draw"];

/// Instructions per unit of work, by kind, and all that were spent.
#[derive(Clone)]
pub struct Rates {
    rates: [f64; KINDS.len()],
    /// Instructions spent by kind since the code was installed.
    pub spent: [u64; KINDS.len()],
}

impl Default for Rates {
    fn default() -> Self {
        Self { rates: [100.0, 10.0, 50e6, 4.0, 4.0, 4.0, 4.0], spent: [0; KINDS.len()] }
    }
}

impl Rates {
    /// What a step is expected to cost.
    pub fn predict(&self, kind: Kind, work: f64) -> u64 {
        (self.rates[kind as usize] * work) as u64
    }

    fn learn(&mut self, kind: Kind, work: f64, spent: u64) {
        self.spent[kind as usize] += spent;
        if work > 0.0 {
            let rate = &mut self.rates[kind as usize];
            *rate = (spent as f64 / work * 1.05).max(0.98 * *rate);
        }
    }
}

/// What one message may do.
pub struct Budget<'a> {
    rates: &'a mut Rates,
    limit: u64,
    hard: u64,
    steps: u64,
    started: u64,
}

impl<'a> Budget<'a> {
    /// Up to `limit` instructions of this message in all; even a first step stays below `hard`.
    pub fn new(rates: &'a mut Rates, limit: u64, hard: u64) -> Self {
        Self { rates, limit: limit.min(hard), hard, steps: 0, started: 0 }
    }

    /// Whether a step fits; if so its measurement begins.
    pub fn allows(&mut self, kind: Kind, work: f64) -> bool {
        self.allows_cost(self.rates.predict(kind, work))
    }

    fn allows_cost(&mut self, cost: u64) -> bool {
        let now = system::instructions();
        let limit = if self.steps == 0 { self.hard } else { self.limit };
        self.started = now;
        now.saturating_add(cost) <= limit
    }

    /// How many units of a divisible step fit beside its fixed part; at least one if nothing was done yet.
    pub fn share(&mut self, kind: Kind, fixed: f64, unit: f64) -> usize {
        let now = system::instructions();
        self.started = now;
        let rate = self.rates.rates[kind as usize];
        let units = (self.limit.saturating_sub(now) as f64 / rate - fixed) / unit;
        if units < 1.0 && self.steps == 0 { 1 } else { units as usize }
    }

    /// A step was done: learn what it cost.
    pub fn done(&mut self, kind: Kind, work: f64) {
        let now = system::instructions();
        self.rates.learn(kind, work, now - self.started);
        self.started = now;
        self.steps += 1;
    }

    /// Whether nothing was done yet.
    pub fn is_fresh(&self) -> bool {
        self.steps == 0
    }

    /// Whether so many bytes may be hashed.
    pub fn allows_hashing(&mut self, bytes: u64) -> bool {
        self.allows(Kind::Hash, bytes as f64)
    }

    /// They were.
    pub fn hashed(&mut self, bytes: u64) {
        self.done(Kind::Hash, bytes as f64);
    }
}
