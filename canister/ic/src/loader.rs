//! From a file in stable memory to a model on the heap: bytes are copied a piece per step, then a tensor is laid out per step.
//!
//! However large the model, a message does what its budget allows and the next one goes on. An upgrade begins anew: the file
//! is where it was.

use candid::{CandidType, Deserialize};
use serde_bytes::ByteBuf;
use walsh_engine::cayley_dickson::Layout;
use walsh_engine::error::try_vec;
use walsh_engine::head_mixer::Algebra;
use walsh_engine::loading::Loader;
use walsh_engine::model::Model as Weights;

use crate::budget::{Budget, Kind};
use crate::storage::Storage;
use crate::types::{Answer, EngineKind, Error, Model};

/// Bytes that one step copies.
const PIECE: usize = 1 << 20;
/// Work of parsing a header: one unit, whatever it says.
const HEADER: f64 = 1.0;

/// A file whose digest was right.
#[derive(CandidType, Deserialize, Clone, PartialEq)]
pub struct File {
    /// Where it is.
    pub bank: u8,
    /// Its bytes.
    pub size: u64,
    /// Its digest.
    pub sha256: ByteBuf,
}

/// A file on its way.
pub struct Loading {
    /// Which.
    pub file: File,
    bytes: Vec<u8>,
    /// How many of them were copied.
    copied: usize,
    loader: Option<Loader>,
}

impl Loading {
    /// Begin; nothing is allocated yet.
    pub fn new(file: File) -> Self {
        Self { file, bytes: Vec::new(), copied: 0, loader: None }
    }

    /// Go on within a budget; the model once it is there.
    pub fn step(&mut self, storage: &Storage, budget: &mut Budget) -> Answer<Option<Weights>> {
        if !self.copy(storage, budget)? {
            return Ok(None);
        }
        let loader = match &mut self.loader {
            Some(loader) => loader,
            None => {
                if !budget.allows(Kind::Parse, HEADER) {
                    return Ok(None);
                }
                // The whole file's digest was right when it was committed, and stable memory does not forget.
                let loader = Loader::new(std::mem::take(&mut self.bytes), false, None)?;
                budget.done(Kind::Parse, HEADER);
                self.loader.insert(loader)
            }
        };
        loop {
            let cost = loader.next_cost() as f64;
            if !budget.allows(Kind::Load, cost) {
                return if budget.is_fresh() { Err(too_large(cost)) } else { Ok(None) };
            }
            let weights = loader.step()?;
            budget.done(Kind::Load, cost);
            if weights.is_some() {
                return Ok(weights);
            }
        }
    }

    /// Copy pieces while the budget lasts; whether all are there.
    fn copy(&mut self, storage: &Storage, budget: &mut Budget) -> Answer<bool> {
        let size = self.file.size as usize;
        if self.copied < size && self.bytes.len() != size {
            self.bytes = try_vec(size, 0)?;
        }
        while self.copied < size {
            let count = PIECE.min(size - self.copied);
            if !budget.allows(Kind::Copy, count as f64) {
                return Ok(false);
            }
            storage.read(self.file.bank.into(), self.copied as u64, &mut self.bytes[self.copied..self.copied + count]);
            self.copied += count;
            budget.done(Kind::Copy, count as f64);
        }
        Ok(true)
    }

    /// Bytes that are done of all there are, each of which is copied and laid out.
    pub fn progress(&self) -> (u64, u64) {
        let (done, all) = self.loader.as_ref().map_or((0, 1), Loader::progress);
        (self.copied as u64 + self.file.size * done as u64 / all as u64, 2 * self.file.size)
    }
}

fn too_large(cost: f64) -> Error {
    let message = format!("a tensor that takes about {cost} instructions to lay out does not fit a message");
    Error::Engine { kind: EngineKind::Capacity, message }
}

/// What health says about a model.
pub fn describe(weights: &Weights, file: &File) -> Model {
    let config = weights.config();
    let algebra = match config.algebra {
        Algebra::Hadamard(n) => format!("hadamard {n}"),
        Algebra::CayleyDickson(1) => "dense".into(),
        Algebra::CayleyDickson(2) => "complex".into(),
        Algebra::CayleyDickson(4) => "quaternion".into(),
        Algebra::CayleyDickson(8) => "octonion".into(),
        Algebra::CayleyDickson(_) => "sedenion".into(),
    };
    let layout = match weights.layout() {
        Layout::Fast => "fast",
        Layout::FastPacked => "fast_packed",
        Layout::Pairs => "pairs",
        Layout::Packed => "packed",
    };
    Model {
        sha256: file.sha256.clone(),
        bytes: file.size,
        algebra,
        n_layer: config.layers as u32,
        n_embd: config.width as u32,
        vocab_size: config.vocabulary as u32,
        block_size: config.block_size as u32,
        layout: layout.into(),
        weight_bytes: weights.memory().weights as u64,
        end_token: weights.tokenizer().ok().map(|tokenizer| tokenizer.end_token() as u32),
    }
}
