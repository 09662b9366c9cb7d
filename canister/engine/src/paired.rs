//! Products of int4 rows with a token, two features at a time.
//!
//! Half bytes p and q of two bytes are multiplied with their tokens as Winograd's inner product has it (S. Winograd, *A New
//! Algorithm for Inner Product*, 1968):
//!
//! ```text
//! (p + c + 256 a_q) (q + c + 256 a_p) = 256 (a_p p + a_q q) + [256 c (a_p + a_q) + 65536 a_p a_q] + (p + c) (q + c)
//! ```
//!
//! One product serves two features; what is in brackets is the token's, the last term the row's own, known before. One `or`
//! with c + 256 a makes each factor of a widened byte: low halves stand at 1 with c = 240, which hides the high half, high
//! halves at 16 with c = 15. All of it is modulo 2^32 and adds up to 4096 times the sum of at most `BLOCK` features.

use crate::error::{Result, try_vec};
use crate::simd::*;

/// Features of which one sum is taken in the int4 kernel: 4096 * 7 * 127 times as many stay below 2^31.
const BLOCK: usize = 512;

/// What an int4 kernel adds to a widened byte of low halves, and of high halves, so that only they are left.
const HIDE: [i16; 2] = [240, 15];

/// Groups of 32 features after which an unrolled int4 kernel turns from low halves to high ones.
const TURN: usize = 4;

/// Blocks of a row of K features: none where the kernel does not fit it.
pub(crate) fn blocks(width: usize) -> usize {
    if width.is_multiple_of(32) { width.div_ceil(BLOCK) } else { 0 }
}

/// The terms that are a row's own, per row and block: what codes [rows, K / 2] give with tokens of zero.
pub(crate) fn terms_of_rows(codes: &[u8], rows: usize, width: usize) -> Result<Vec<i32>> {
    let mut own = try_vec(rows * blocks(width), 0)?;
    let zeros = [[HIDE[0]; 16], [HIDE[1]; 16]].concat().repeat(BLOCK / 32);
    let blocks = codes.chunks_exact((width / 2).max(1)).flat_map(|row| row.chunks(BLOCK / 2));
    own.iter_mut().zip(blocks).for_each(|(own, block)| *own = raw_sum(block, &zeros));
    Ok(own)
}

/// What the bytes of rows are joined with for a token of codes [K], and per block the terms that are the token's: those that
/// a row of zeros, half bytes of 8, has.
///
/// `spread` holds per 32 features the low halves of the first eight bytes, of the others; the high ones likewise.
pub(crate) fn prepare(codes: &[i16], spread: &mut Vec<i16>, terms: &mut Vec<i32>) {
    terms.clear();
    if blocks(codes.len()) == 0 {
        return;
    }
    spread.resize(codes.len(), 0);
    for (spread, codes) in spread.chunks_mut(BLOCK).zip(codes.chunks(BLOCK)) {
        let mut sum = 0i32;
        for (spread, codes) in spread.chunks_exact_mut(32).zip(codes.chunks_exact(32)) {
            for (half, eight) in [8, 128].into_iter().enumerate() {
                let (first, second) = spread[16 * half..][..16].split_at_mut(8);
                let zero = i32::from(HIDE[half] + eight);
                for i in 0..8 {
                    first[i] = HIDE[half] + 256 * codes[16 + 2 * i + half];
                    second[i] = HIDE[half] + 256 * codes[2 * i + half];
                    let product = i32::from(first[i] + eight) * i32::from(second[i] + eight) - zero * zero;
                    sum = sum.wrapping_add(product << (4 - 4 * half));
                }
            }
        }
        terms.push(sum);
    }
}

/// The sum of products of one row [K / 2] with a token, both prepared.
pub(crate) fn sum(codes: &[u8], own: &[i32], spread: &[i16], terms: &[i32]) -> i32 {
    let blocks = codes.chunks(BLOCK / 2).zip(spread.chunks(BLOCK)).zip(own.iter().zip(terms));
    blocks.map(|((codes, token), (own, term))| raw_sum(codes, token).wrapping_sub(*own).wrapping_sub(*term) >> 12).sum()
}

/// 16 times the low halves' products and the high halves' of one block: codes [K / 2], token [K].
fn raw_sum(codes: &[u8], token: &[i16]) -> i32 {
    let (mut low, mut high) = (i32x4_splat(0), i32x4_splat(0));
    for (codes, token) in codes.chunks_exact(16).zip(token.chunks_exact(32)) {
        // SAFETY: 16 bytes and 32 numbers.
        unsafe {
            let token: [v128; 4] = load_all(token.as_ptr());
            low = i32x4_add(low, pairs(codes.as_ptr(), token[0], token[1]));
            high = i32x4_add(high, pairs(codes.as_ptr(), token[2], token[3]));
        }
    }
    let lanes = f32x4_lanes(i32x4_add(i32x4_shl(low, 4), high));
    lanes.into_iter().fold(0, |sum, lane| sum.wrapping_add(lane.to_bits() as i32))
}

/// Products of 8 bytes with the 8 after them, each joined with its token.
///
/// # Safety
/// 16 bytes are at `w`.
#[inline(always)]
unsafe fn pairs(w: *const u8, first: v128, second: v128) -> v128 {
    // SAFETY: the caller's promise.
    let (p, q) = unsafe { (i16x8_load_extend_u8x8(w), i16x8_load_extend_u8x8(w.add(8))) };
    i32x4_dot_i16x8(v128_or(p, first), v128_or(q, second))
}

/// `raw_sum` of 8 V features, lane by lane. Halves take turns every `TURN` groups of 32 features, so that a byte that
/// was loaded for its low half is still at hand for its high half.
///
/// # Safety
/// 4 V bytes are at `w`.
#[inline(always)]
pub(crate) unsafe fn row<const V: usize>(w: *const u8, token: &[v128; V]) -> v128 {
    let mut sum = i32x4_splat(0);
    // SAFETY: the caller's promise.
    unsafe {
        unroll!(turn in 4, {
            if TURN * turn < V / 4 {
                let (w, at) = (w.add(16 * TURN * turn), 4 * TURN * turn);
                let mut low = pairs(w, token[at], token[at + 1]);
                unroll!(g in 3, {
                    let (w, at) = (w.add(16 * (g + 1)), at + 4 * (g + 1));
                    low = i32x4_add(low, pairs(w, token[at], token[at + 1]));
                });
                sum = i32x4_add(sum, i32x4_shl(low, 4));
                unroll!(g in 4, {
                    let (w, at) = (w.add(16 * g), at + 4 * g);
                    sum = i32x4_add(sum, pairs(w, token[at + 2], token[at + 3]));
                });
            }
        });
    }
    sum
}
