//! `walsh_op_*`: embeddings, heads and the choice of a token, in strict arithmetic.
//!
//! The contract is that of `exports`; arguments are those of SPEC.md, with sizes as numbers.

use super::operations::check_width;
use super::{read, run, sampling, write};
use crate::embedding::{HashTables, hash_indices};
use crate::error::{Result, checked_product, error, require, try_vec};
use crate::rows::{Bytes, Query, RowTable};
use crate::sampling::{sample, uniform};

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
