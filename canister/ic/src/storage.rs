//! Stable memory: a snapshot of the state, two banks for files, so that one is uploaded while the other is in use, and the
//! sequences that an upgrade keeps.
//!
//! Virtual memory 0 holds `magic, version, length (u64, little-endian), Candid of the state`, written before an upgrade; 1
//! and 2 are the banks, a file from address 0 on; 3 holds sequences, one after the other, as the snapshot lists them.

use ic_stable_structures::memory_manager::{MemoryId, MemoryManager, VirtualMemory};
use ic_stable_structures::{DefaultMemoryImpl, Memory};

use walsh_engine::error::try_vec;

use crate::session::Saved;
use crate::types::{Answer, Error};

const MAGIC: [u8; 8] = *b"walsh-ic";
const VERSION: u64 = 1;
const PAGE: u64 = 65536;
const HEADER: u64 = 24;
/// Pages by which the memory manager hands out stable memory, after a page of its own.
const BUCKET: u64 = 128;

/// Stable memory.
pub struct Storage {
    snapshot: VirtualMemory<DefaultMemoryImpl>,
    banks: [VirtualMemory<DefaultMemoryImpl>; 2],
    sequences: VirtualMemory<DefaultMemoryImpl>,
    whole: DefaultMemoryImpl,
}

impl Default for Storage {
    fn default() -> Self {
        let manager = MemoryManager::init(DefaultMemoryImpl::default());
        let memory = |id| manager.get(MemoryId::new(id));
        let whole = DefaultMemoryImpl::default();
        Self { snapshot: memory(0), banks: [memory(1), memory(2)], sequences: memory(3), whole }
    }
}

impl Storage {
    /// Grow one of the memories. The manager would trap where the platform has no more, so it is asked first.
    fn grow(&self, memory: &VirtualMemory<DefaultMemoryImpl>, bytes: u64) -> Answer<()> {
        let (now, wanted) = (memory.size(), bytes.div_ceil(PAGE));
        if wanted <= now {
            return Ok(());
        }
        let all = [&self.snapshot, &self.banks[0], &self.banks[1], &self.sequences];
        let held = all.into_iter().map(|memory| memory.size().div_ceil(BUCKET)).sum::<u64>();
        let more = wanted.div_ceil(BUCKET) - now.div_ceil(BUCKET);
        let missing = (1 + BUCKET * (held + more)).saturating_sub(self.whole.size());
        let refused = missing > 0 && self.whole.grow(missing) < 0;
        if refused || memory.grow(wanted - now) < 0 { Err(Error::OutOfMemory { bytes }) } else { Ok(()) }
    }

    /// Make room for a file.
    pub fn reserve(&self, bank: usize, bytes: u64) -> Answer<()> {
        self.grow(&self.banks[bank], bytes)
    }

    /// Write part of a file, within what was reserved.
    pub fn write(&self, bank: usize, offset: u64, bytes: &[u8]) {
        self.banks[bank].write(offset, bytes);
    }

    /// Read part of a file, within what was reserved.
    pub fn read(&self, bank: usize, offset: u64, bytes: &mut [u8]) {
        self.banks[bank].read(offset, bytes);
    }

    /// Keep a sequence over an upgrade.
    pub fn keep(&self, offset: u64, bytes: &[u8]) -> Answer<()> {
        self.grow(&self.sequences, offset + bytes.len() as u64)?;
        self.sequences.write(offset, bytes);
        Ok(())
    }

    /// A sequence that was kept.
    pub fn kept(&self, saved: &Saved) -> Answer<Vec<u8>> {
        let end = saved.offset.checked_add(saved.bytes);
        if end.is_none_or(|end| end > self.sequences.size() * PAGE) {
            return Err(Error::OutOfMemory { bytes: saved.bytes });
        }
        let mut bytes = try_vec(saved.bytes as usize, 0)?;
        self.sequences.read(saved.offset, &mut bytes);
        Ok(bytes)
    }

    /// Keep the state for the code that comes next.
    pub fn save(&self, state: &[u8]) -> Answer<()> {
        self.grow(&self.snapshot, HEADER + state.len() as u64)?;
        let mut header = [0; HEADER as usize];
        header[..8].copy_from_slice(&MAGIC);
        header[8..16].copy_from_slice(&VERSION.to_le_bytes());
        header[16..].copy_from_slice(&(state.len() as u64).to_le_bytes());
        self.snapshot.write(0, &header);
        self.snapshot.write(HEADER, state);
        Ok(())
    }

    /// What the code before kept; nothing if it kept nothing that this code understands.
    pub fn restore(&self) -> Option<Vec<u8>> {
        if self.snapshot.size() == 0 {
            return None;
        }
        let mut header = [0; HEADER as usize];
        self.snapshot.read(0, &mut header);
        let number = |at: usize| header[at..at + 8].iter().rev().fold(0u64, |n, &byte| n << 8 | u64::from(byte));
        let length = number(16);
        if header[..8] != MAGIC || number(8) != VERSION || length > self.snapshot.size() * PAGE - HEADER {
            return None;
        }
        let mut state = vec![0; length as usize];
        self.snapshot.read(HEADER, &mut state);
        Some(state)
    }
}
