//! A file that arrives in chunks, in any order, and counts only once its SHA-256 is right.
//!
//! Chunk i is bytes `i * CHUNK ..` of the file and goes straight to its place in a bank of stable memory. The digest is
//! computed at the end, a piece per step, because chunks need not come in order; an upgrade starts it anew.

use candid::{CandidType, Deserialize};
use serde_bytes::ByteBuf;
use sha2::{Digest, Sha256};

use crate::budget::Budget;
use crate::storage::Storage;
use crate::types::{Answer, Error, Upload, UploadPhase};

/// Bytes of a chunk: 28 pages, the most below 1.9 MB, so that chunks share no page of stable memory.
pub const CHUNK: u64 = 28 * 65536;
/// Bytes that one step hashes.
const PIECE: u64 = 1 << 18;
/// How many missing chunks are listed.
const LISTED: usize = 1000;

/// An upload that is under way.
#[derive(CandidType, Deserialize, Clone)]
pub struct Upstream {
    /// Where it goes.
    pub bank: u8,
    /// Bytes of the file.
    pub size: u64,
    /// What its digest must be.
    pub sha256: ByteBuf,
    /// One bit for each chunk that came.
    received: Vec<u64>,
    /// Whether all came and the digest is being computed.
    verifying: bool,
}

/// The digest so far; not kept over an upgrade.
#[derive(Default)]
pub struct Hashing {
    digest: Sha256,
    done: u64,
}

impl Upstream {
    /// Begin; the size has been checked.
    pub fn new(bank: u8, size: u64, sha256: ByteBuf) -> Self {
        let words = size.div_ceil(CHUNK).div_ceil(64) as usize;
        Self { bank, size, sha256, received: vec![0; words], verifying: false }
    }

    fn chunks(&self) -> u32 {
        self.size.div_ceil(CHUNK) as u32
    }

    fn has(&self, index: u32) -> bool {
        self.received.get(index as usize / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    fn missing(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.chunks()).filter(|&index| !self.has(index))
    }

    /// Put a chunk in its place.
    pub fn put(&mut self, storage: &Storage, index: u32, bytes: &[u8]) -> Answer<()> {
        if self.verifying {
            return Err(Error::state("an upload that receives chunks", "verifying"));
        }
        let chunks = self.chunks();
        if index >= chunks {
            return Err(Error::argument("index", format!("{index}: expected 0 .. {}", chunks - 1)));
        }
        let offset = u64::from(index) * CHUNK;
        let expected = CHUNK.min(self.size - offset);
        if bytes.len() as u64 != expected {
            let reason = format!("chunk {index} has {} bytes: expected {expected}", bytes.len());
            return Err(Error::argument("bytes", reason));
        }
        storage.write(self.bank.into(), offset, bytes);
        if let Some(word) = self.received.get_mut(index as usize / 64) {
            *word |= 1 << (index % 64);
        }
        Ok(())
    }

    /// Whether the digest is being computed.
    pub fn is_verifying(&self) -> bool {
        self.verifying
    }

    /// All chunks must have come.
    pub fn begin_verifying(&mut self) -> Answer<()> {
        match self.missing().count() {
            0 => self.verifying = true,
            missing => return Err(Error::Incomplete { missing: missing as u32 }),
        }
        Ok(())
    }

    /// Hash on within a budget; the digest once it is known.
    pub fn hash(&self, storage: &Storage, hashing: &mut Hashing, budget: &mut Budget) -> Option<Vec<u8>> {
        let mut piece = vec![0; PIECE.min(self.size) as usize];
        while hashing.done < self.size {
            let bytes = PIECE.min(self.size - hashing.done);
            if !budget.allows_hashing(bytes) {
                return None;
            }
            let piece = &mut piece[..bytes as usize];
            storage.read(self.bank.into(), hashing.done, piece);
            hashing.digest.update(&*piece);
            hashing.done += bytes;
            budget.hashed(bytes);
        }
        Some(std::mem::take(hashing).digest.finalize().to_vec())
    }
}

/// What `upload_status` says.
pub fn report(upload: Option<&Upstream>, hashing: &Hashing, instructions: u64) -> Upload {
    let phase = match upload {
        None => UploadPhase::Idle,
        Some(upload) if upload.verifying => UploadPhase::Verifying { hashed: hashing.done },
        Some(_) => UploadPhase::Receiving,
    };
    let Some(upload) = upload else {
        let (sha256, missing) = (ByteBuf::new(), Vec::new());
        return Upload {
            phase,
            size: 0,
            sha256,
            chunk_bytes: CHUNK as u32,
            chunks: 0,
            received: 0,
            missing,
            instructions,
        };
    };
    let chunks = upload.chunks();
    Upload {
        phase,
        size: upload.size,
        sha256: upload.sha256.clone(),
        chunk_bytes: CHUNK as u32,
        chunks,
        received: chunks - upload.missing().count() as u32,
        missing: upload.missing().take(LISTED).collect(),
        instructions,
    }
}
