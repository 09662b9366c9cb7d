//! The key-value cache of one layer and one sequence, in whichever arithmetic its model computes.

use crate::attention;
use crate::error::Result;
use crate::float::FloatCache;
use crate::kv_cache::KvCache;
use crate::reader::Reader;

/// Cache of one layer for one sequence, in the arithmetic of its model.
#[derive(Clone)]
pub(crate) enum Cache {
    Strict(KvCache),
    Float(FloatCache),
}

impl Cache {
    pub(crate) fn append(&mut self, k: &[f32], v: &[f32]) -> Result<()> {
        match self {
            Cache::Strict(cache) => cache.append(k, v),
            Cache::Float(cache) => cache.append(k, v),
        }
    }

    /// Attend with q [H, d] to positions 0 ..= `position`, which must be cached.
    pub(crate) fn attend(
        &mut self,
        q: &[f32],
        position: usize,
        o: &mut [f32],
        scratch: &mut attention::Scratch,
    ) -> Result<()> {
        match self {
            Cache::Strict(cache) => attention::attend(cache, q, position, o, scratch),
            Cache::Float(cache) => cache.attend(q, position, o),
        }
    }

    /// Tokens held.
    pub(crate) fn length(&self) -> usize {
        match self {
            Cache::Strict(cache) => cache.length(),
            Cache::Float(cache) => cache.length(),
        }
    }

    pub(crate) fn truncate(&mut self, length: usize) -> Result<()> {
        match self {
            Cache::Strict(cache) => cache.truncate(length),
            Cache::Float(cache) => cache.truncate(length),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Cache::Strict(cache) => cache.bytes(),
            Cache::Float(cache) => cache.bytes(),
        }
    }

    pub(crate) fn shape(&self) -> (usize, usize) {
        match self {
            Cache::Strict(cache) => cache.shape(),
            Cache::Float(cache) => cache.shape(),
        }
    }

    pub(crate) fn save(&self, out: &mut Vec<u8>) {
        match self {
            Cache::Strict(cache) => cache.save(out),
            Cache::Float(cache) => cache.save(out),
        }
    }

    pub(crate) fn restore(&mut self, saved: &mut Reader<'_>, length: usize) -> Result<()> {
        match self {
            Cache::Strict(cache) => cache.restore(saved, length),
            Cache::Float(cache) => cache.restore(saved, length),
        }
    }
}
