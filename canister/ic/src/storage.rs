//! Stable memory: a snapshot of the state, and two banks for files, so that one is uploaded while the other is in use.
//!
//! Virtual memory 0 holds `magic, version, length (u64, little-endian), Candid of the state`, written before an upgrade; 1
//! and 2 are the banks, a file from address 0 on.

use ic_stable_structures::memory_manager::{MemoryId, MemoryManager, VirtualMemory};
use ic_stable_structures::{DefaultMemoryImpl, Memory};

use crate::types::{Answer, Error};

const MAGIC: [u8; 8] = *b"walsh-ic";
const VERSION: u64 = 1;
const PAGE: u64 = 65536;
const HEADER: u64 = 24;

/// Stable memory.
pub struct Storage {
    snapshot: VirtualMemory<DefaultMemoryImpl>,
    banks: [VirtualMemory<DefaultMemoryImpl>; 2],
}

impl Default for Storage {
    fn default() -> Self {
        let manager = MemoryManager::init(DefaultMemoryImpl::default());
        let memory = |id| manager.get(MemoryId::new(id));
        Self { snapshot: memory(0), banks: [memory(1), memory(2)] }
    }
}

fn grow(memory: &impl Memory, bytes: u64) -> Answer<()> {
    let missing = bytes.div_ceil(PAGE).saturating_sub(memory.size());
    if missing > 0 && memory.grow(missing) < 0 {
        return Err(Error::OutOfMemory { bytes });
    }
    Ok(())
}

impl Storage {
    /// Make room for a file.
    pub fn reserve(&self, bank: usize, bytes: u64) -> Answer<()> {
        grow(&self.banks[bank], bytes)
    }

    /// Write part of a file, within what was reserved.
    pub fn write(&self, bank: usize, offset: u64, bytes: &[u8]) {
        self.banks[bank].write(offset, bytes);
    }

    /// Read part of a file, within what was reserved.
    pub fn read(&self, bank: usize, offset: u64, bytes: &mut [u8]) {
        self.banks[bank].read(offset, bytes);
    }

    /// Keep the state for the code that comes next.
    pub fn save(&self, state: &[u8]) -> Answer<()> {
        grow(&self.snapshot, HEADER + state.len() as u64)?;
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
