//! `walsh_op_*`: the single operations of SPEC.md, *Strict arithmetic*, and the integer packings.
//!
//! The contract is that of `exports`; arguments are those of SPEC.md, with sizes as numbers.

use super::{ENGINE, read, run, sampling, write};
use crate::activations::{quantize, quantize_scalar};
use crate::arithmetic::{exp, exp4};
use crate::attention::{attend, attend_scalar};
use crate::blocks::{gather, spread, stride};
use crate::cayley_dickson::{self, CayleyDicksonLinear, Layout};
use crate::config::MAX_WIDTH;
use crate::embedding::{HashTables, hash_indices};
use crate::error::{Result, checked_product, error, require, try_vec};
use crate::hadamard::{self, HadamardLinear, check_size};
use crate::head_mixer::{self, Algebra, HeadMixer};
use crate::kv_cache::KvCache;
use crate::rms_norm::{rms_norm, rms_norm_scalar};
use crate::rope::Rotation;
use crate::rows::{Bytes, Query, RowTable};
use crate::sampling::{sample, uniform};
use crate::simd::*;
use crate::swiglu::{swiglu, swiglu_scalar};
use crate::{bitmask, ternary};

/// Refuse a width whose integer sums might not fit 32 bits.
fn check_width(features: usize) -> Result<()> {
    require!((1..=MAX_WIDTH).contains(&features), Shape, "{features} features: expected 1 .. {MAX_WIDTH}");
    Ok(())
}

/// x [rows, C] -> a int8 [rows, C], r [rows].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_quantize_activations(
    x: *const f32,
    rows: usize,
    c: usize,
    a: *mut i8,
    r: *mut f32,
) -> i32 {
    run(|engine| {
        check_width(c)?;
        // SAFETY: the host's promise.
        let (x, a, r) = unsafe { (read(x, rows * c)?, write(a, rows * c)?, write(r, rows)?) };
        let mut codes = try_vec(c, 0i16)?;
        for ((x, a), r) in x.chunks_exact(c).zip(a.chunks_exact_mut(c)).zip(r) {
            *r = if engine.scalar { quantize_scalar(x, &mut codes)? } else { quantize(x, &mut codes)? };
            a.iter_mut().zip(&codes).for_each(|(a, &code)| *a = code as i8);
        }
        Ok(0)
    })
}

/// x [tokens, D K], codes [D, N, K], beta [N] -> y [tokens, D N]; `layout` 1 to 4.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_cayley_dickson_linear(
    x: *const f32,
    tokens: usize,
    codes: *const i8,
    d: usize,
    rows: usize,
    columns: usize,
    beta: *const f32,
    layout: i32,
    y: *mut f32,
) -> i32 {
    run(|engine| {
        check_width(checked_product(&[d, columns])?)?;
        // SAFETY: the host's promise.
        let (x, codes, beta, y) = unsafe {
            (
                read(x, tokens * d * columns)?,
                read(codes, checked_product(&[d, rows, columns])?)?,
                read(beta, rows)?,
                write(y, tokens * d * rows)?,
            )
        };
        let layout =
            [Layout::Fast, Layout::FastPacked, Layout::Pairs, Layout::Packed][(layout - 1).clamp(0, 3) as usize];
        let layer = CayleyDicksonLinear::new(codes, d, rows, columns, beta, layout)?;
        let mut scratch = cayley_dickson::Scratch::default();
        let (mut from, mut to) = (try_vec(d * stride(columns), 0.0)?, try_vec(d * stride(rows), 0.0)?);
        if rows == 0 {
            return Ok(0);
        }
        for (x, y) in x.chunks_exact(d * columns).zip(y.chunks_exact_mut(d * rows)) {
            if engine.scalar {
                cayley_dickson::linear_scalar(x, codes, d, rows, columns, beta, y)?;
            } else {
                spread(x, columns, &mut from);
                layer.apply(&from, &mut to, 1, &mut scratch)?;
                gather(&to, rows, y);
            }
        }
        Ok(0)
    })
}

/// x [rows, n] -> y [rows, n].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_hadamard_transform(x: *const f32, rows: usize, n: usize, y: *mut f32) -> i32 {
    run(|engine| {
        check_width(n)?;
        check_size(n)?;
        // SAFETY: the host's promise.
        let (x, y) = unsafe { (read(x, rows * n)?, write(y, rows * n)?) };
        // The kernel transforms across blocks: give it one column, padded.
        let (mut from, mut to) = (try_vec(n * stride(1), 0.0)?, try_vec(n * stride(1), 0.0)?);
        for (x, y) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)) {
            if engine.scalar {
                hadamard::transform_scalar(x, y);
            } else {
                spread(x, 1, &mut from);
                hadamard::transform_blocks(&from, None, n, stride(1), &mut to);
                gather(&to, 1, y);
            }
        }
        Ok(0)
    })
}

/// x [tokens, n K], codes [n, N, K], alpha [n, K], beta [n, N] -> y [tokens, n N].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_hadamard_linear(
    x: *const f32,
    tokens: usize,
    codes: *const i8,
    n: usize,
    rows: usize,
    columns: usize,
    alpha: *const f32,
    beta: *const f32,
    packed: i32,
    y: *mut f32,
) -> i32 {
    run(|engine| {
        check_width(checked_product(&[n, columns])?)?;
        // SAFETY: the host's promise.
        let (x, codes, alpha, beta, y) = unsafe {
            (
                read(x, tokens * n * columns)?,
                read(codes, checked_product(&[n, rows, columns])?)?,
                read(alpha, n * columns)?,
                read(beta, n * rows)?,
                write(y, tokens * n * rows)?,
            )
        };
        let layer = HadamardLinear::new(codes, n, rows, columns, alpha, beta, packed != 0)?;
        let mut scratch = hadamard::Scratch::default();
        let (mut from, mut to) = (try_vec(n * stride(columns), 0.0)?, try_vec(n * stride(rows), 0.0)?);
        if rows == 0 {
            return Ok(0);
        }
        for (x, y) in x.chunks_exact(n * columns).zip(y.chunks_exact_mut(n * rows)) {
            if engine.scalar {
                hadamard::linear_scalar(x, codes, n, rows, columns, alpha, beta, y)?;
            } else {
                spread(x, columns, &mut from);
                layer.apply(&from, &mut to, 1, &mut scratch)?;
                gather(&to, rows, y);
            }
        }
        Ok(0)
    })
}

/// x [tokens, H, d], codes [n, d, d], scale [d], beta [d] -> y; `algebra` 0 Cayley-Dickson, 1 Hadamard.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_head_mixer(
    x: *const f32,
    tokens: usize,
    heads: usize,
    d: usize,
    codes: *const i8,
    n: usize,
    scale: *const f32,
    beta: *const f32,
    algebra: i32,
    y: *mut f32,
) -> i32 {
    run(|engine| {
        check_width(checked_product(&[heads.max(1), d])?)?;
        check_width(checked_product(&[n, d])?)?;
        let algebra = if algebra == 0 {
            require!(matches!(n, 1 | 2 | 4 | 8 | 16), Shape, "codes have {n} components: expected 1, 2, 4, 8 or 16");
            Algebra::CayleyDickson(n)
        } else {
            check_size(n)?;
            Algebra::Hadamard(n)
        };
        require!(heads.is_multiple_of(n), Shape, "{heads} heads: expected a multiple of the group size {n}");
        // SAFETY: the host's promise.
        let (x, codes, scale, beta, y) = unsafe {
            (
                read(x, tokens * heads * d)?,
                read(codes, checked_product(&[n, d, d])?)?,
                read(scale, d)?,
                read(beta, d)?,
                write(y, tokens * heads * d)?,
            )
        };
        let mixer = HeadMixer::new(codes, algebra, d, scale, beta)?;
        if engine.scalar {
            head_mixer::mix_scalar(x, codes, algebra, d, scale, beta, y)?;
        } else {
            mixer.apply(x, y, &mut head_mixer::Scratch::default())?;
        }
        Ok(0)
    })
}

/// x [rows, C], weight [C] -> y [rows, C].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_rms_norm(
    x: *const f32,
    rows: usize,
    c: usize,
    weight: *const f32,
    y: *mut f32,
) -> i32 {
    run(|engine| {
        require!(c > 0, Shape, "rows without features");
        // SAFETY: the host's promise.
        let (x, weight, y) = unsafe { (read(x, rows * c)?, read(weight, c)?, write(y, rows * c)?) };
        let mut scratch = try_vec(c, 0.0)?;
        for (x, y) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
            if engine.scalar {
                rms_norm_scalar(x, weight, y);
            } else {
                rms_norm(x, weight, y, &mut scratch);
            }
        }
        Ok(0)
    })
}

/// x [tokens, H, d], inv_freq [d / 2], positions [tokens]; rotated in place.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_rope(
    x: *mut f32,
    tokens: usize,
    heads: usize,
    d: usize,
    inv_freq: *const f64,
    positions: *const i64,
) -> i32 {
    run(|engine| {
        require!(d.is_multiple_of(2), Shape, "{d} features per head: expected an even number");
        let size = heads * d;
        // SAFETY: the host's promise.
        let (x, inv_freq, positions) =
            unsafe { (write(x, tokens * size)?, read(inv_freq, d / 2)?, read(positions, tokens)?) };
        let mut rotations = Vec::new();
        for &position in positions {
            let mut rotation = Rotation::default();
            rotation.turn(position, inv_freq)?;
            rotations.push(rotation);
        }
        for (x, rotation) in x.chunks_exact_mut(size.max(1)).zip(&rotations) {
            if engine.scalar { rotation.apply_scalar(x) } else { rotation.apply(x) }
        }
        Ok(0)
    })
}

/// One sequence: q [T, H, d], k and v [S, H, d], positions [T] in -1 .. S - 1 -> o [T, H, d].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_attention(
    q: *const f32,
    k: *const f32,
    v: *const f32,
    positions: *const i64,
    t: usize,
    s: usize,
    heads: usize,
    d: usize,
    o: *mut f32,
) -> i32 {
    run(|engine| {
        let size = checked_product(&[heads, d])?;
        check_width(size)?;
        // SAFETY: the host's promise.
        let (q, k, v, positions, o) = unsafe {
            (read(q, t * size)?, read(k, s * size)?, read(v, s * size)?, read(positions, t)?, write(o, t * size)?)
        };
        let bad = positions.iter().find(|&&position| !(-1..s as i64).contains(&position));
        require!(bad.is_none(), Range, "position {bad:?}: expected -1 .. {}", s as i64 - 1);
        // A key that no query sees is never looked at.
        let seen = positions.iter().max().map_or(0, |&last| (last + 1) as usize);
        let mut cache = KvCache::new(seen, heads, d)?;
        for (k, v) in k.chunks_exact(size).zip(v.chunks_exact(size)).take(seen) {
            cache.append(k, v)?;
        }
        for ((q, &position), o) in q.chunks_exact(size).zip(positions).zip(o.chunks_exact_mut(size)) {
            match usize::try_from(position) {
                Err(_) => o.fill(0.0),
                Ok(position) if engine.scalar => attend_scalar(q, k, v, heads, position, o)?,
                Ok(position) => attend(&cache, q, position, o, &mut engine.attention)?,
            }
        }
        Ok(0)
    })
}

/// An empty cache for one sequence.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_op_cache_new(capacity: usize, heads: usize, d: usize) -> i32 {
    run(|engine| {
        check_width(checked_product(&[heads, d])?)?;
        let cache = KvCache::new(capacity, heads, d)?;
        let handle = engine.handle();
        engine.caches.insert(handle, cache);
        Ok(handle)
    })
}

/// Append k and v [count, H, d]; on an error the cache is as it was.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_cache_append(cache: i32, k: *const f32, v: *const f32, count: usize) -> i32 {
    run(|engine| {
        let cache = engine.cache(cache)?;
        let (size, before) = (cache.heads * cache.head_dim, cache.length());
        // SAFETY: the host's promise.
        let (k, v) = unsafe { (read(k, count * size)?, read(v, count * size)?) };
        for (k, v) in k.chunks_exact(size).zip(v.chunks_exact(size)) {
            if let Err(error) = cache.append(k, v) {
                cache.truncate(before)?;
                return Err(error);
            }
        }
        Ok(0)
    })
}

/// Attend with q [H, d] to positions 0 ..= `position`; -1 gives zeros.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_cache_attend(cache: i32, q: *const f32, position: i64, o: *mut f32) -> i32 {
    run(|engine| {
        let mut scratch = std::mem::take(&mut engine.attention);
        let cache = engine.cache(cache)?;
        let size = cache.heads * cache.head_dim;
        // SAFETY: the host's promise.
        let (q, o) = unsafe { (read(q, size)?, write(o, size)?) };
        let done = match usize::try_from(position) {
            Err(_) => {
                o.fill(0.0);
                Ok(())
            }
            Ok(position) => attend(cache, q, position, o, &mut scratch),
        };
        engine.attention = scratch;
        done.map(|()| 0)
    })
}

/// Forget all but the first `length` tokens.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_op_cache_truncate(cache: i32, length: usize) -> i32 {
    run(|engine| engine.cache(cache)?.truncate(length).map(|()| 0))
}

/// Tokens held.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_op_cache_length(cache: i32) -> i32 {
    run(|engine| Ok(engine.cache(cache)?.length() as i32))
}

/// An independent copy.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_op_cache_fork(cache: i32) -> i32 {
    run(|engine| {
        let copy = engine.cache(cache)?.clone();
        let handle = engine.handle();
        engine.caches.insert(handle, copy);
        Ok(handle)
    })
}

/// Drop a cache.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_op_cache_drop(cache: i32) {
    ENGINE.with_borrow_mut(|engine| engine.caches.remove(&cache));
}

/// h into gate; gate and up of `length` numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_swiglu(gate: *mut f32, up: *const f32, length: usize) -> i32 {
    run(|engine| {
        // SAFETY: the host's promise.
        let (gate, up) = unsafe { (write(gate, length)?, read(up, length)?) };
        if engine.scalar {
            swiglu_scalar(gate, up)
        } else {
            swiglu(gate, up)
        }
        Ok(0)
    })
}

/// e^x in place.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_exp(x: *mut f32, length: usize) -> i32 {
    run(|engine| {
        // SAFETY: the host's promise.
        let x = unsafe { write(x, length)? };
        if engine.scalar {
            x.iter_mut().for_each(|v| *v = exp(*v));
        } else {
            x.iter_mut().for_each(|v| *v = f32x4_lanes(exp4(f32x4_splat(*v)))[0]);
        }
        Ok(0)
    })
}

/// A row table over memory of the host's, copied; `bits` 8 or 4.
unsafe fn row_table(codes: *const u8, rows: usize, c: usize, bits: i32, scale: *const f32) -> Result<RowTable> {
    require!(bits == 8 || bits == 4, Parameter, "{bits} bits: expected 8 or 4");
    let row = if bits == 4 { c.div_ceil(2) } else { c };
    // SAFETY: the host's promise.
    let (codes, scale) = unsafe { (read(codes, checked_product(&[rows, row])?)?, read(scale, rows)?) };
    RowTable::new(Bytes::owned(codes.to_vec()), rows, c, bits == 4, scale.to_vec())
}

/// ids [count], codes [V, C], scale [V] -> e [count, C].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_embedding(
    ids: *const i64,
    count: usize,
    codes: *const u8,
    v: usize,
    c: usize,
    bits: i32,
    scale: *const f32,
    e: *mut f32,
) -> i32 {
    run(|_| {
        // SAFETY: the host's promise.
        let (ids, table, e) =
            unsafe { (read(ids, count)?, row_table(codes, v, c, bits, scale)?, write(e, count * c)?) };
        for (i, &id) in ids.iter().enumerate() {
            table.embed(usize::try_from(id).unwrap_or(usize::MAX), &mut e[i * c..][..c])?;
        }
        Ok(0)
    })
}

/// x [tokens, C], codes [V, C], scale [V] -> logits [tokens, V].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_lm_head(
    x: *const f32,
    tokens: usize,
    codes: *const u8,
    v: usize,
    c: usize,
    bits: i32,
    scale: *const f32,
    logits: *mut f32,
) -> i32 {
    run(|engine| {
        check_width(c)?;
        // SAFETY: the host's promise.
        let (x, table, logits) =
            unsafe { (read(x, tokens * c)?, row_table(codes, v, c, bits, scale)?, write(logits, tokens * v)?) };
        let mut query = Query::default();
        for (i, x) in x.chunks_exact(c).enumerate() {
            query.quantize(x, true)?;
            let logits = &mut logits[i * v..][..v];
            if engine.scalar {
                logits.iter_mut().enumerate().for_each(|(row, logit)| *logit = table.logit_scalar(&query, row));
            } else {
                table.logits(&mut [(&query, logits)], 0);
            }
        }
        Ok(0)
    })
}

/// Hash tables from arrays of pointers: codes and scales per table, importance [V, tables], indices or null.
unsafe fn hash_tables(
    codes: *const *const u8,
    scales: *const *const f32,
    rows: *const u32,
    tables: usize,
    c: usize,
    importance: *const f32,
    indices: *const i64,
    v: usize,
) -> Result<HashTables> {
    // SAFETY: the host's promise.
    unsafe {
        let (codes, scales, rows) = (read(codes, tables)?, read(scales, tables)?, read(rows, tables)?);
        let mut list = Vec::new();
        for i in 0..tables {
            list.push(row_table(codes[i], rows[i] as usize, c, 8, scales[i])?);
        }
        let indices = if indices.is_null() { None } else { Some(read(indices, v * tables)?.to_vec()) };
        HashTables::new(list, read(importance, v * tables)?.to_vec(), indices)
    }
}

/// ids [count] -> e [count, C].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_hash_embedding(
    ids: *const i64,
    count: usize,
    codes: *const *const u8,
    scales: *const *const f32,
    rows: *const u32,
    tables: usize,
    c: usize,
    importance: *const f32,
    indices: *const i64,
    v: usize,
    scale: f32,
    e: *mut f32,
) -> i32 {
    run(|_| {
        require!(scale.is_finite(), Parameter, "scale {scale}: expected a finite float32");
        // SAFETY: the host's promise.
        let (ids, hash, e) = unsafe {
            (
                read(ids, count)?,
                hash_tables(codes, scales, rows, tables, c, importance, indices, v)?,
                write(e, count * c)?,
            )
        };
        let mut row = try_vec(c, 0.0)?;
        for (i, &id) in ids.iter().enumerate() {
            hash.embed(usize::try_from(id).unwrap_or(usize::MAX), scale, &mut e[i * c..][..c], &mut row)?;
        }
        Ok(0)
    })
}

/// x [tokens, C] -> logits [tokens, V].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_hash_lm_head(
    x: *const f32,
    tokens: usize,
    codes: *const *const u8,
    scales: *const *const f32,
    rows: *const u32,
    tables: usize,
    c: usize,
    importance: *const f32,
    indices: *const i64,
    v: usize,
    logits: *mut f32,
) -> i32 {
    run(|_| {
        check_width(c)?;
        // SAFETY: the host's promise.
        let (x, hash, logits) = unsafe {
            (
                read(x, tokens * c)?,
                hash_tables(codes, scales, rows, tables, c, importance, indices, v)?,
                write(logits, tokens * v)?,
            )
        };
        let (mut query, mut row_logits) = (Query::default(), Vec::new());
        for (i, x) in x.chunks_exact(c).enumerate() {
            query.quantize(x, true)?;
            hash.row_logits(&query, &mut row_logits);
            hash.combine(&row_logits, 0, &mut logits[i * v..][..v]);
        }
        Ok(0)
    })
}

/// logits [V], history [P] -> an id.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_sample(
    logits: *const f32,
    v: usize,
    history: *const i64,
    p: usize,
    temperature: f32,
    top_k: i64,
    top_p: f32,
    penalty: f32,
    seed: u64,
    position: u64,
) -> i32 {
    run(|engine| {
        let sampling = sampling(temperature, top_k, top_p, penalty, seed)?;
        // SAFETY: the host's promise.
        let (logits, history) = unsafe { (read(logits, v)?, read(history, p)?) };
        sample(logits, history, &sampling, position, &mut engine.sampling).map(|id| id as i32)
    })
}

/// ids [count] -> indices [count, tables].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_hash_indices(ids: *const i64, count: usize, tables: usize, indices: *mut i64) -> i32 {
    run(|_| {
        hash_indices(0, tables)?;
        // SAFETY: the host's promise.
        let (ids, indices) = unsafe { (read(ids, count)?, write(indices, count * tables)?) };
        for (&id, indices) in ids.iter().zip(indices.chunks_exact_mut(tables)) {
            let id = usize::try_from(id).map_err(|_| error!(Range, "id {id}: expected 0 or more"))?;
            indices.iter_mut().zip(hash_indices(id, tables)?).for_each(|(to, index)| *to = index as i64);
        }
        Ok(0)
    })
}

/// The uniform number of a seed and a position.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_op_uniform(seed: u64, position: u64) -> f32 {
    uniform(seed, position)
}

/// q [length] -> mask (ceil(length / 8) bytes) and signs in the result; returns their bytes together.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_bitmask_encode(q: *const i8, length: usize) -> i32 {
    run(|engine| {
        // SAFETY: the host's promise.
        let (mask, signs) = bitmask::encode(unsafe { read(q, length)? })?;
        engine.result = [mask, signs].concat();
        Ok(engine.result.len() as i32)
    })
}

/// mask and signs -> q [length].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_bitmask_decode(
    mask: *const u8,
    mask_length: usize,
    signs: *const u8,
    signs_length: usize,
    q: *mut i8,
    length: usize,
) -> i32 {
    run(|_| {
        // SAFETY: the host's promise.
        let (mask, signs, q) = unsafe { (read(mask, mask_length)?, read(signs, signs_length)?, write(q, length)?) };
        bitmask::decode(mask, signs, q).map(|()| 0)
    })
}

/// q [rows, K] -> packed [rows, ceil(K / 4)].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_pack_ternary(q: *const i8, rows: usize, k: usize, packed: *mut u8) -> i32 {
    run(|_| {
        // SAFETY: the host's promise.
        let (q, packed) = unsafe { (read(q, rows * k)?, write(packed, rows * k.div_ceil(4))?) };
        ternary::pack(q, k, packed).map(|()| 0)
    })
}

/// packed [rows, ceil(K / 4)] -> q [rows, K].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_unpack_ternary(packed: *const u8, rows: usize, k: usize, q: *mut i8) -> i32 {
    run(|_| {
        // SAFETY: the host's promise.
        let (packed, q) = unsafe { (read(packed, rows * k.div_ceil(4))?, write(q, rows * k)?) };
        ternary::unpack(packed, k, q).map(|()| 0)
    })
}
