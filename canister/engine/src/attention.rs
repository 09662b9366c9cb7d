//! Causal attention over an int8 cache (SPEC.md, *attention*).
//!
//! ```text
//! score_s = ((f32(sum_d q k_s) * r_q) * r_k,s) * f32(1 / sqrt(d))
//! e_s     = exp(score_s - max over visible s)
//! o       = psum_s((e_s * r_v,s) * f32(v_s)) / psum_s(e_s)
//! ```
//!
//! q [H, d] of one token, o [H, d]; psum adds blocks of 32 positions in halves, block totals left to right.

use crate::activations::{quantize, quantize_scalar};
use crate::arithmetic::{exp, exp4, hsum_in_place, reciprocal_root, round_up};
use crate::error::{Result, require, try_vec};
use crate::kv_cache::{BLOCK, KvCache};
use crate::simd::*;

/// Scratch of attention; grows with the context.
#[derive(Default)]
pub struct Scratch {
    /// Codes of one query head.
    query: Vec<i16>,
    /// Scores, then e, per position.
    e: Vec<f32>,
    /// e * r_v per position.
    weight: Vec<f32>,
    /// One head of the result, padded.
    head: Vec<f32>,
}

/// Attend with q [H, d] to positions 0 ..= `position`, which must be cached.
pub fn attend(cache: &KvCache, q: &[f32], position: usize, o: &mut [f32], scratch: &mut Scratch) -> Result<()> {
    let (d, width, slots) = (cache.head_dim, cache.width, cache.slots);
    require!(
        position < cache.length(),
        Range,
        "position {position}: expected below the length {}; append first",
        cache.length()
    );
    require!(
        q.len() == cache.heads * d && o.len() == q.len(),
        Shape,
        "{} features: expected {} x {d}",
        q.len(),
        cache.heads
    );
    let visible = position + 1;
    let padded = round_up(visible, BLOCK);
    scratch.query.resize(width, 0);
    scratch.query[d..].fill(0);
    scratch.e.resize(slots, 0.0);
    scratch.weight.resize(slots, 0.0);
    scratch.head.resize(width, 0.0);
    let (c, step) = (reciprocal_root(d), cache.heads * BLOCK);
    for h in 0..cache.heads {
        let r_q = quantize(&q[h * d..][..d], &mut scratch.query[..d])?;
        let start = h * BLOCK;
        let e = &mut scratch.e[..padded];
        let keys = Keys { codes: &cache.keys[start * width..], worth: &cache.key_worth[start..], step };
        let max = scores(&keys, &scratch.query, r_q, c, visible, e);
        let weight = &mut scratch.weight[..padded];
        weigh(max, &cache.value_worth[start..], step, visible, e, weight);
        let total = sum_positions(e);
        let head = &mut scratch.head[..];
        mix_values(&cache.values[start * width..], step * width, width, weight, visible, d.div_ceil(4), total, head);
        o[h * d..][..d].copy_from_slice(&head[..d]);
    }
    Ok(())
}

/// Keys of one head: a block of positions every `step` positions of the arena.
struct Keys<'a> {
    codes: &'a [i8],
    worth: &'a [f32],
    step: usize,
}

/// Scores of `visible` positions into e; returns their maximum.
fn scores(keys: &Keys, query: &[i16], r_q: f32, c: f32, visible: usize, e: &mut [f32]) -> f32 {
    let tiles = visible.div_ceil(4);
    let pairs = query.len() / 2;
    let end = visible.div_ceil(BLOCK).saturating_sub(1) * keys.step + BLOCK;
    assert!(keys.codes.len() >= 2 * pairs * end && keys.worth.len() >= end && e.len() >= 4 * tiles);
    // SAFETY: the assertion; a query of `pairs` pairs is read in full by each.
    let max = unsafe {
        match pairs {
            4 => score_tiles::<4>(keys, query.as_ptr(), r_q, c, tiles, e.as_mut_ptr()),
            8 => score_tiles::<8>(keys, query.as_ptr(), r_q, c, tiles, e.as_mut_ptr()),
            16 => score_tiles::<16>(keys, query.as_ptr(), r_q, c, tiles, e.as_mut_ptr()),
            32 => score_tiles::<32>(keys, query.as_ptr(), r_q, c, tiles, e.as_mut_ptr()),
            _ => score_tiles_of_any_width(keys, query, r_q, c, tiles, e.as_mut_ptr()),
        }
    };
    // The last tile may hold stale positions: they must not set the maximum.
    let last = &mut e[4 * (tiles - 1)..4 * tiles];
    let seen = visible - 4 * (tiles - 1);
    last[seen..].fill(f32::NEG_INFINITY);
    // SAFETY: four floats.
    let lanes = f32x4_lanes(f32x4_max(max, unsafe { v128_load(last.as_ptr().cast()) }));
    lanes[1..].iter().fold(lanes[0], |a, &b| if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) })
}

/// ((f32(sum) * r_q) * r_k) * c of four positions.
///
/// # Safety
/// `worth` points to four floats.
#[inline(always)]
unsafe fn score4(sum: v128, r_q: v128, worth: *const f32, c: v128) -> v128 {
    // SAFETY: the caller's promise.
    let r_k = unsafe { v128_load(worth.cast()) };
    f32x4_mul(f32x4_mul(f32x4_mul(f32x4_convert_i32x4(sum), r_q), r_k), c)
}

/// All tiles, P pairs of features; returns the lane-wise maximum over all tiles but the last.
///
/// # Safety
/// `keys` holds 8 P bytes and four floats per tile, in whole blocks, `query` 2 P codes, `e` four floats per tile; at least
/// one tile.
unsafe fn score_tiles<const P: usize>(
    keys: &Keys,
    query: *const i16,
    r_q: f32,
    c: f32,
    tiles: usize,
    e: *mut f32,
) -> v128 {
    let (r_q, c) = (f32x4_splat(r_q), f32x4_splat(c));
    let mut max = f32x4_splat(f32::NEG_INFINITY);
    let mut last = max;
    let mut splats = [i32x4_splat(0); P];
    // SAFETY: the caller's promise, for every access below.
    unsafe {
        unroll!(p in P, { splats[p] = v128_load32_splat(query.add(2 * p).cast()); });
        let (mut block, mut worths, mut e, mut left) = (keys.codes.as_ptr(), keys.worth.as_ptr(), e, tiles);
        while left > 0 {
            let (mut codes, mut worth) = (block, worths);
            let count = left.min(BLOCK / 4);
            left -= count;
            for _ in 0..count {
                let mut sum = i32x4_dot_i16x8(i16x8_load_extend_i8x8(codes), splats[0]);
                unroll!(p in P, {
                    if p > 0 {
                        sum = i32x4_add(sum, i32x4_dot_i16x8(i16x8_load_extend_i8x8(codes.add(8 * p)), splats[p]));
                    }
                });
                let score = score4(sum, r_q, worth, c);
                v128_store(e.cast(), score);
                // The last tile may be stale: its part of the maximum is taken by the caller.
                max = f32x4_max(last, max);
                last = score;
                codes = codes.add(8 * P);
                worth = worth.add(4);
                e = e.add(4);
            }
            block = block.add(2 * P * keys.step);
            worths = worths.add(keys.step);
        }
    }
    max
}

/// `score_tiles` for a head of any width.
///
/// # Safety
/// As `score_tiles`, P = `query.len()` / 2.
unsafe fn score_tiles_of_any_width(keys: &Keys, query: &[i16], r_q: f32, c: f32, tiles: usize, e: *mut f32) -> v128 {
    let pairs = query.len() / 2;
    let mut max = f32x4_splat(f32::NEG_INFINITY);
    for tile in 0..tiles {
        let mut sum = i32x4_splat(0);
        let at = tile * 4 / BLOCK * keys.step + tile * 4 % BLOCK;
        // SAFETY: the caller's promise.
        unsafe {
            for p in 0..pairs {
                let k = i16x8_load_extend_i8x8(keys.codes.as_ptr().add(2 * pairs * at + 8 * p));
                sum = i32x4_add(sum, i32x4_dot_i16x8(k, v128_load32_splat(query.as_ptr().add(2 * p).cast())));
            }
            let score = score4(sum, f32x4_splat(r_q), keys.worth.as_ptr().add(at), f32x4_splat(c));
            v128_store(e.add(4 * tile).cast(), score);
            if tile + 1 < tiles {
                max = f32x4_max(max, score);
            }
        }
    }
    max
}

/// e = exp(score - max) and weight = e * r_v; +0 past the visible positions.
fn weigh(max: f32, worth: &[f32], step: usize, visible: usize, e: &mut [f32], weight: &mut [f32]) {
    let max = f32x4_splat(max);
    let seen = 4 * visible.div_ceil(4);
    let blocks = e[..seen].chunks_mut(BLOCK).zip(weight.chunks_mut(BLOCK)).zip(worth.chunks(step));
    for ((e, weight), worth) in blocks {
        for ((e, r), w) in e.chunks_exact_mut(4).zip(worth.chunks_exact(4)).zip(weight.chunks_exact_mut(4)) {
            // SAFETY: each is four numbers.
            unsafe {
                let value = exp4(f32x4_sub(v128_load(e.as_ptr().cast()), max));
                v128_store(e.as_mut_ptr().cast(), value);
                v128_store(w.as_mut_ptr().cast(), f32x4_mul(value, v128_load(r.as_ptr().cast())));
            }
        }
    }
    e[visible..].fill(0.0);
    weight[visible..].fill(0.0);
}

/// Halve N vectors (a power of two, at most 32) until the first holds their sum.
#[inline(always)]
fn halve<const N: usize>(v: &mut [v128; N]) {
    if N > 16 {
        unroll!(i in 16, { v[i] = f32x4_add(v[i], v[i + 16]) });
    }
    if N > 8 {
        unroll!(i in 8, { v[i] = f32x4_add(v[i], v[i + 8]) });
    }
    unroll!(i in 4, { v[i] = f32x4_add(v[i], v[i + 4]) });
    (v[0], v[1]) = (f32x4_add(v[0], v[2]), f32x4_add(v[1], v[3]));
    v[0] = f32x4_add(v[0], v[1]);
}

/// psum of e, whose length is a multiple of 32.
fn sum_positions(e: &[f32]) -> f32 {
    let mut total = 0.0;
    for block in e.chunks_exact(BLOCK) {
        let mut v = [f32x4_splat(0.0); 8];
        // SAFETY: eight vectors are 32 floats.
        unsafe { unroll!(i in 8, { v[i] = v128_load(block.as_ptr().add(4 * i).cast()); }) };
        halve(&mut v);
        let l = f32x4_lanes(v[0]);
        total += ((l[0] + l[2]) + (l[1] + l[3])) + 0.0;
    }
    total
}

/// head = psum(weight * values) / total for `groups` groups of four features; values have a block every `step` bytes.
#[allow(clippy::too_many_arguments)] // one contract: what a head's values are and where they go
fn mix_values(
    values: &[i8],
    step: usize,
    width: usize,
    weight: &[f32],
    visible: usize,
    groups: usize,
    total: f32,
    head: &mut [f32],
) {
    let blocks = visible.div_ceil(BLOCK);
    assert!(
        values.len() >= blocks.saturating_sub(1) * step + BLOCK * width
            && weight.len() >= blocks * BLOCK
            && head.len() >= 4 * groups
    );
    assert!(4 * groups <= width);
    for block in 0..blocks {
        let seen = (visible - block * BLOCK).min(BLOCK);
        // SAFETY: the assertions; a block of values has 32 bytes per feature, 128 per group.
        unsafe {
            let v = values.as_ptr().add(block * step);
            let w = weight.as_ptr().add(block * BLOCK);
            match seen {
                0..=8 => mix_block::<8>(v, w, groups, block > 0, head.as_mut_ptr()),
                9..=16 => mix_block::<16>(v, w, groups, block > 0, head.as_mut_ptr()),
                _ => mix_block::<32>(v, w, groups, block > 0, head.as_mut_ptr()),
            }
        }
    }
    let total = f32x4_splat(total);
    for four in head[..4 * groups].chunks_exact_mut(4) {
        // SAFETY: four floats.
        unsafe { v128_store(four.as_mut_ptr().cast(), f32x4_div(v128_load(four.as_ptr().cast()), total)) };
    }
}

/// One block of at most N visible positions: positions past them weigh +0, and so may be left out of the tree.
///
/// # Safety
/// `values` has 128 bytes per group, `weight` N floats, `head` four floats per group.
unsafe fn mix_block<const N: usize>(values: *const i8, weight: *const f32, groups: usize, add: bool, head: *mut f32) {
    let mut splats = [f32x4_splat(0.0); N];
    // SAFETY: the caller's promise, for every access below.
    unsafe {
        unroll!(t in N, { splats[t] = v128_load32_splat(weight.add(t).cast()); });
        let (mut values, mut head) = (values, head);
        for _ in 0..groups {
            let mut v = [f32x4_splat(0.0); N];
            unroll!(t in N, {
                let codes = i32x4_extend_low_i16x8(i16x8_extend_low_i8x16(v128_load32_zero(values.add(4 * t).cast())));
                v[t] = f32x4_mul(splats[t], f32x4_convert_i32x4(codes));
            });
            halve(&mut v);
            let sum = f32x4_add(v[0], f32x4_splat(0.0));
            let to = head.cast::<v128>();
            v128_store(to, if add { f32x4_add(v128_load(to), sum) } else { sum });
            values = values.add(4 * BLOCK);
            head = head.add(4);
        }
    }
}

/// The definition for one token: q [H, d], k and v [S, H, d], keys 0 ..= `position` seen.
pub fn attend_scalar(q: &[f32], k: &[f32], v: &[f32], heads: usize, position: usize, o: &mut [f32]) -> Result<()> {
    let d = q.len() / heads.max(1);
    let codes = |x: &[f32]| -> Result<(Vec<i16>, f32)> {
        let mut a = try_vec(d, 0i16)?;
        let r = quantize_scalar(x, &mut a)?;
        Ok((a, r))
    };
    for h in 0..heads {
        let (a, r_q) = codes(&q[h * d..][..d])?;
        let mut scores = Vec::new();
        let mut values = Vec::new();
        for s in 0..=position {
            let (b, r_k) = codes(&k[(s * heads + h) * d..][..d])?;
            let sum: i32 = a.iter().zip(&b).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum();
            scores.push(((sum as f32 * r_q) * r_k) * reciprocal_root(d));
            values.push(codes(&v[(s * heads + h) * d..][..d])?);
        }
        let max =
            scores.iter().fold(f32::NEG_INFINITY, |m, &s| if m.is_nan() || s.is_nan() { f32::NAN } else { m.max(s) });
        let e: Vec<f32> = scores.iter().map(|s| exp(s - max)).collect();
        let total = psum_scalar(&e);
        for i in 0..d {
            let terms: Vec<f32> = e.iter().zip(&values).map(|(e, (c, r_v))| (e * r_v) * f32::from(c[i])).collect();
            o[h * d + i] = psum_scalar(&terms) / total;
        }
    }
    Ok(())
}

/// psum of numbers by position.
pub fn psum_scalar(x: &[f32]) -> f32 {
    let mut total = 0.0;
    for block in x.chunks(BLOCK) {
        let mut padded = [0.0; BLOCK];
        padded[..block.len()].copy_from_slice(block);
        total += hsum_in_place(&mut padded);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_equal_scalar() {
        for (heads, d) in [(1, 2), (3, 6), (2, 16), (1, 30), (1, 64), (1, 80)] {
            let mut cache = KvCache::new(101, heads, d).unwrap();
            let wave = |i: usize, m: usize| ((i * m % 211) as f32 - 105.0) * 0.02;
            let k: Vec<f32> = (0..100 * heads * d).map(|i| wave(i, 37)).collect();
            let v: Vec<f32> = (0..100 * heads * d).map(|i| wave(i, 53)).collect();
            let (mut o, mut expected) = (vec![0.0; heads * d], vec![0.0; heads * d]);
            let mut scratch = Scratch::default();
            for t in 0..100 {
                cache.append(&k[t * heads * d..][..heads * d], &v[t * heads * d..][..heads * d]).unwrap();
                let q: Vec<f32> = (0..heads * d).map(|i| wave(i + t, 91)).collect();
                for position in [t, t / 2] {
                    attend(&cache, &q, position, &mut o, &mut scratch).unwrap();
                    attend_scalar(&q, &k, &v, heads, position, &mut expected).unwrap();
                    let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(&o), bits(&expected), "{heads} x {d}, t {t}, position {position}");
                }
            }
            // A shorter sequence in the same arena must not see what it forgot.
            cache.truncate(5).unwrap();
            attend(&cache, &k[..heads * d], 4, &mut o, &mut scratch).unwrap();
            attend_scalar(&k[..heads * d], &k, &v, heads, 4, &mut expected).unwrap();
            assert_eq!(o, expected);
            assert!(attend(&cache, &k[..heads * d], 5, &mut o, &mut scratch).is_err());
            assert!(cache.truncate(6).is_err());
        }
    }

    #[test]
    fn a_full_cache_refuses() {
        let mut cache = KvCache::new(1, 1, 2).unwrap();
        cache.append(&[1.0, 2.0], &[1.0, 2.0]).unwrap();
        assert!(cache.append(&[1.0, 2.0], &[1.0, 2.0]).is_err());
        assert_eq!(cache.length(), 1);
    }
}
