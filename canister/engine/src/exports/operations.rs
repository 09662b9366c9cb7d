//! `walsh_op_*`: what blocks are made of, in strict arithmetic (SPEC.md, *Strict arithmetic*), an operation at a time.
//!
//! The contract is that of `exports`; arguments are those of SPEC.md, with sizes as numbers.

use super::{read, run, write};
use crate::activations::{quantize, quantize_scalar};
use crate::arithmetic::{exp, exp4};
use crate::attention::{attend, attend_scalar};
use crate::blocks::{gather, spread, stride};
use crate::cayley_dickson::{self, CayleyDicksonLinear, Layout};
use crate::config::MAX_WIDTH;
use crate::error::{Result, checked_product, require, try_vec};
use crate::hadamard::{self, HadamardLinear, check_size};
use crate::head_mixer::{self, Algebra, HeadMixer};
use crate::kv_cache::KvCache;
use crate::rms_norm::{rms_norm, rms_norm_scalar};
use crate::rope::Rotation;
use crate::simd::*;
use crate::swiglu::{swiglu, swiglu_scalar};

/// Refuse a width whose integer sums might not fit 32 bits.
pub(super) fn check_width(features: usize) -> Result<()> {
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
                hadamard::transform_blocks(&from, None, n, 1, &mut to);
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
