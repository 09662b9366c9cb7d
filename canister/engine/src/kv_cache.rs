//! Keys and values of one layer and one sequence as int8 codes with one r per token and head (SPEC.md, *kv_cache*).
//!
//! A fixed arena in blocks of 32 positions, all heads of a block together: a sequence that is shorter than its arena
//! touches only the front of it, and a host that pays for pages pays for no more. Head h of block b begins at position
//! `32 (b H + h)` of the arena. There, keys are in tiles of four positions: pair p of features of position t stands at
//! `tile * 4 d + 8 p + 2 (t mod 4)`, so that one load widens to the operand of a dot product whose lanes are positions; of
//! values, features 4 g .. 4 g + 3 of position t stand at `128 g + 4 (t mod 32)`, so that the tree of `psum` reads with
//! constant offsets. d is padded to 8 with zeros, the capacity to 32.

use crate::activations::quantize;
use crate::arithmetic::round_up;
use crate::error::{Result, checked_product, require, try_vec};
use crate::reader::{Reader, put_floats};
use crate::simd::*;

/// Positions in one block of psum, and of an arena.
pub(crate) const BLOCK: usize = 32;

/// Cache of one layer for one sequence.
#[derive(Clone)]
pub struct KvCache {
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    /// d rounded up to 8.
    pub(crate) width: usize,
    capacity: usize,
    /// Capacity rounded up to 32.
    pub(crate) slots: usize,
    length: usize,
    pub(crate) keys: Vec<i8>,
    pub(crate) values: Vec<i8>,
    /// [slots / 32, H, 32]
    pub(crate) key_worth: Vec<f32>,
    pub(crate) value_worth: Vec<f32>,
    codes: Vec<i16>,
}

impl KvCache {
    /// An empty cache for `capacity` tokens of H heads of d features.
    pub fn new(capacity: usize, heads: usize, head_dim: usize) -> Result<Self> {
        require!(heads > 0 && head_dim > 0, Parameter, "{heads} heads of {head_dim}: expected at least 1 of each");
        require!(
            capacity < 1 << 30 && head_dim < 1 << 20,
            Capacity,
            "capacity {capacity}, head dim {head_dim}: too large"
        );
        let (width, slots) = (round_up(head_dim, 8), round_up(capacity.max(1), BLOCK));
        let size = checked_product(&[heads, slots, width])?;
        Ok(Self {
            heads,
            head_dim,
            width,
            capacity,
            slots,
            length: 0,
            keys: try_vec(size, 0)?,
            values: try_vec(size, 0)?,
            key_worth: try_vec(heads * slots, 0.0)?,
            value_worth: try_vec(heads * slots, 0.0)?,
            codes: try_vec(width, 0)?,
        })
    }

    /// Tokens held.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Bytes that the arena takes.
    pub fn bytes(&self) -> usize {
        2 * self.keys.len() + 8 * self.key_worth.len()
    }

    /// Bytes of an arena before it is made.
    pub(crate) fn bytes_of(capacity: u64, heads: u64, head_dim: u64) -> u64 {
        capacity.max(1).next_multiple_of(32) * heads * (2 * head_dim.next_multiple_of(8) + 8)
    }

    /// Add one token: k and v [H, d]. On an error the cache is as it was.
    #[inline(never)]
    pub fn append(&mut self, k: &[f32], v: &[f32]) -> Result<()> {
        let t = self.length;
        require!(
            t < self.capacity,
            Capacity,
            "{} tokens in a cache of capacity {}: truncate, reset or enlarge it",
            t + 1,
            self.capacity
        );
        let (d, width) = (self.head_dim, self.width);
        require!(
            k.len() == self.heads * d && v.len() == k.len(),
            Shape,
            "{} features: expected {} x {d}",
            k.len(),
            self.heads
        );
        for h in 0..self.heads {
            let (start, place) = (BLOCK * (t / BLOCK * self.heads + h), t % BLOCK);
            self.key_worth[start + place] = quantize(&k[h * d..][..d], &mut self.codes[..d])?;
            store_keys(&self.codes, &mut self.keys[(start + place / 4 * 4) * width + 2 * (place % 4)..]);
            self.value_worth[start + place] = quantize(&v[h * d..][..d], &mut self.codes[..d])?;
            store_values(&self.codes, &mut self.values[start * width + 4 * place..]);
        }
        self.length = t + 1;
        Ok(())
    }

    /// (H, d).
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.heads, self.head_dim)
    }

    /// Append what is cached to `out`; see `saved`.
    pub(crate) fn save(&self, out: &mut Vec<u8>) {
        let used = round_up(self.length, BLOCK) * self.heads;
        for arena in [&self.keys, &self.values] {
            out.extend(arena[..used * self.width].iter().map(|&code| code as u8));
        }
        for worth in [&self.key_worth, &self.value_worth] {
            put_floats(out, &worth[..used]);
        }
    }

    /// Take back `length` tokens, which must fit.
    pub(crate) fn restore(&mut self, saved: &mut Reader<'_>, length: usize) -> Result<()> {
        require!(length <= self.capacity, Capacity, "{length} tokens in a cache of capacity {}", self.capacity);
        let used = round_up(length, BLOCK) * self.heads;
        for arena in [&mut self.keys, &mut self.values] {
            let codes = arena[..used * self.width].iter_mut();
            codes.zip(saved.take(used * self.width)?).for_each(|(code, &byte)| *code = byte as i8);
        }
        for worth in [&mut self.key_worth, &mut self.value_worth] {
            saved.floats(&mut worth[..used])?;
        }
        self.length = length;
        Ok(())
    }

    /// Forget all but the first `length` tokens.
    pub fn truncate(&mut self, length: usize) -> Result<()> {
        require!(length <= self.length, Range, "length {length}: expected 0 .. {}", self.length);
        self.length = length;
        Ok(())
    }
}

/// Eight i16 codes as int8, twice.
///
/// # Safety
/// `codes` points to eight codes.
#[inline(always)]
unsafe fn narrow8(codes: *const i16) -> v128 {
    // SAFETY: the caller's promise.
    let wide = unsafe { v128_load(codes.cast()) };
    i8x16_narrow_i16x8(wide, wide)
}

/// Pairs of codes, 8 bytes apart.
fn store_keys(codes: &[i16], place: &mut [i8]) {
    assert!(codes.len().is_multiple_of(8) && place.len() + 6 >= 4 * codes.len());
    for (i, eight) in codes.chunks_exact(8).enumerate() {
        // SAFETY: pair p of all ends at 8 p + 2, and the last at 4 codes.len() - 6.
        unsafe {
            let (v, to) = (narrow8(eight.as_ptr()), place.as_mut_ptr().add(32 * i));
            v128_store16_lane::<0>(v, to.cast());
            v128_store16_lane::<1>(v, to.add(8).cast());
            v128_store16_lane::<2>(v, to.add(16).cast());
            v128_store16_lane::<3>(v, to.add(24).cast());
        }
    }
}

/// Fours of codes, 128 bytes apart.
fn store_values(codes: &[i16], place: &mut [i8]) {
    assert!(codes.len().is_multiple_of(8) && place.len() + 124 >= 32 * codes.len());
    for (i, eight) in codes.chunks_exact(8).enumerate() {
        // SAFETY: four q of all ends at 128 q + 4, and the last at 32 codes.len() - 124.
        unsafe {
            let (v, to) = (narrow8(eight.as_ptr()), place.as_mut_ptr().add(256 * i));
            v128_store32_lane::<0>(v, to.cast());
            v128_store32_lane::<1>(v, to.add(128).cast());
        }
    }
}
