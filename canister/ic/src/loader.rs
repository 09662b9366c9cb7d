//! From a file in stable memory to a model on the heap: bytes are copied a piece per step, then parsed and laid out.

use candid::{CandidType, Deserialize};
use serde_bytes::ByteBuf;
use walsh_engine::cayley_dickson::Layout;
use walsh_engine::error::try_vec;
use walsh_engine::head_mixer::Algebra;
use walsh_engine::model::Model as Weights;

use crate::budget::{Budget, Kind};
use crate::storage::Storage;
use crate::types::{Answer, EngineKind, Error, Model};

/// Bytes that one step copies.
const PIECE: usize = 1 << 20;

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
    pub done: usize,
}

impl Loading {
    /// Begin; nothing is allocated yet.
    pub fn new(file: File) -> Self {
        Self { file, bytes: Vec::new(), done: 0 }
    }

    /// Go on within a budget; the model once it is there.
    pub fn step(&mut self, storage: &Storage, budget: &mut Budget) -> Answer<Option<Weights>> {
        let size = self.file.size as usize;
        if self.bytes.len() != size {
            self.bytes = try_vec(size, 0)?;
        }
        while self.done < size {
            let count = PIECE.min(size - self.done);
            if !budget.allows(Kind::Copy, count as f64) {
                return Ok(None);
            }
            storage.read(self.file.bank.into(), self.done as u64, &mut self.bytes[self.done..self.done + count]);
            self.done += count;
            budget.done(Kind::Copy, count as f64);
        }
        if !budget.allows(Kind::Load, size as f64) {
            return if budget.is_fresh() { Err(too_large(size)) } else { Ok(None) };
        }
        // The whole file's digest was right when it was committed, and stable memory does not forget.
        let weights = Weights::load(std::mem::take(&mut self.bytes), false, None)?;
        budget.done(Kind::Load, size as f64);
        Ok(Some(weights))
    }
}

fn too_large(size: usize) -> Error {
    let message = format!("a file of {size} bytes cannot be laid out within one message: use a smaller model");
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
