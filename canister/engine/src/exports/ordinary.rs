//! `walsh_float_*`: the operations of SPEC.md in ordinary arithmetic, on float32.
//!
//! The contract is that of `exports`; optional arrays may be null. What models with float activations are made of, and what
//! the lanes of conformance that are not strict look at.

use super::{read, run, write};
use crate::activations::absmax_bits;
use crate::error::{Result, checked_product, require, try_vec};
use crate::float::{FloatCache, FloatLinear, mixer};
use crate::head_mixer::Algebra;

/// `length` elements, or none where the pointer is null.
///
/// # Safety
/// See `exports`.
pub(super) unsafe fn optional<'a, T>(pointer: *const T, length: usize) -> Result<&'a [T]> {
    // SAFETY: the host's promise.
    if pointer.is_null() { Ok(&[]) } else { unsafe { read(pointer, length) } }
}

fn algebra(n: usize, hadamard: i32) -> Result<Algebra> {
    require!(n.is_power_of_two() && (hadamard != 0 || n <= 16), Shape, "{n} components: expected a power of two");
    Ok(if hadamard == 0 { Algebra::CayleyDickson(n) } else { Algebra::Hadamard(n) })
}

/// (codes rounded to even as floats, scale) of a row; a row that is not finite has scale NaN and codes 0.
fn quantize(x: &[f32], codes: &mut [f32]) -> f32 {
    let most = f32::from_bits(absmax_bits(x));
    if !most.is_finite() {
        codes.fill(0.0);
        return f32::NAN;
    }
    let scale = 127.0 / most.max(1e-5);
    for (code, x) in codes.iter_mut().zip(x) {
        *code = (x * scale).round_ties_even().clamp(-128.0, 127.0);
    }
    scale
}

/// x [rows, C] -> a [rows, C] (whole numbers), scale [rows].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_float_quantize(
    x: *const f32,
    rows: usize,
    c: usize,
    a: *mut f32,
    scale: *mut f32,
) -> i32 {
    run(|_| {
        require!(c > 0, Shape, "rows without features");
        // SAFETY: the host's promise.
        let (x, a, scale) = unsafe { (read(x, rows * c)?, write(a, rows * c)?, write(scale, rows)?) };
        for ((x, a), scale) in x.chunks_exact(c).zip(a.chunks_exact_mut(c)).zip(scale) {
            *scale = quantize(x, a);
        }
        Ok(0)
    })
}

/// w [length] -> q [length] (whole numbers) and gamma; `absmean` 0 rounds with gamma 1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_float_ternary(
    w: *const f32,
    length: usize,
    absmean: i32,
    q: *mut i8,
    gamma: *mut f32,
) -> i32 {
    run(|_| {
        // SAFETY: the host's promise.
        let (w, q, gamma) = unsafe { (read(w, length)?, write(q, length)?, write(gamma, 1)?) };
        let bad = w.iter().find(|v| !v.is_finite());
        require!(bad.is_none(), NonFinite, "w holds {bad:?}: expected finite weights");
        let mean = w.iter().map(|v| f64::from(v.abs())).sum::<f64>() / length as f64 + 1e-8;
        gamma[0] = if absmean == 0 { 1.0 } else { mean as f32 };
        let divisor = if absmean == 0 { 1.0 } else { mean };
        for (q, w) in q.iter_mut().zip(w) {
            *q = (f64::from(*w) / divisor).round_ties_even().clamp(-1.0, 1.0) as i8;
        }
        Ok(0)
    })
}

/// x [tokens, n K], w [n, N, K], alpha [n, K], beta [N] or [n, N] -> y [tokens, n N].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_float_linear(
    x: *const f32,
    tokens: usize,
    w: *const f32,
    n: usize,
    rows: usize,
    columns: usize,
    alpha: *const f32,
    beta: *const f32,
    hadamard: i32,
    round: i32,
    y: *mut f32,
) -> i32 {
    run(|_| {
        let betas = if hadamard == 0 { rows } else { n * rows };
        // SAFETY: the host's promise.
        let (x, w, alpha, beta, y) = unsafe {
            (
                read(x, checked_product(&[tokens, n, columns])?)?,
                read(w, checked_product(&[n, rows, columns])?)?,
                optional(alpha, n * columns)?,
                optional(beta, betas)?,
                write(y, checked_product(&[tokens, n, rows])?)?,
            )
        };
        let layer = FloatLinear::new(w, algebra(n, hadamard)?, rows, columns, alpha, beta)?;
        let mut fake = |v: &mut [f32]| {
            let mut codes = vec![0.0; v.len()];
            let scale = quantize(v, &mut codes);
            v.iter_mut().zip(codes).for_each(|(v, code)| *v = code / scale);
        };
        let keep = |_: &mut [f32]| {};
        if rows == 0 || columns == 0 {
            y.fill(0.0);
            return Ok(0);
        }
        for (x, y) in x.chunks_exact(n * columns).zip(y.chunks_exact_mut(n * rows)) {
            if round == 0 {
                layer.apply_with(x, columns, y, rows, keep)?;
            } else {
                layer.apply_with(x, columns, y, rows, &mut fake)?;
            }
        }
        Ok(0)
    })
}

/// x [tokens, H, d], w [n, d, d], beta [d] -> y [tokens, H, d].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_float_mixer(
    x: *const f32,
    tokens: usize,
    heads: usize,
    d: usize,
    w: *const f32,
    n: usize,
    beta: *const f32,
    hadamard: i32,
    y: *mut f32,
) -> i32 {
    run(|_| {
        let (size, group) = (checked_product(&[tokens, heads, d])?, checked_product(&[n, d])?);
        require!(group > 0 && heads.is_multiple_of(n), Shape, "{heads} heads: expected a multiple of {n}");
        // SAFETY: the host's promise.
        let (x, w, beta, y) =
            unsafe { (read(x, size)?, read(w, checked_product(&[group, d])?)?, optional(beta, d)?, write(y, size)?) };
        let mixer = mixer(w, algebra(n, hadamard)?, d, &[], beta)?;
        x.chunks_exact(group).zip(y.chunks_exact_mut(group)).try_for_each(|(x, y)| mixer.apply(x, d, y, d))?;
        Ok(0)
    })
}

/// x [rows, C], weight [C] -> y [rows, C].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_float_rms_norm(
    x: *const f32,
    rows: usize,
    c: usize,
    weight: *const f32,
    eps: f64,
    y: *mut f32,
) -> i32 {
    run(|_| {
        require!(c > 0, Shape, "rows without features");
        // SAFETY: the host's promise.
        let (x, weight, y) = unsafe { (read(x, rows * c)?, read(weight, c)?, write(y, rows * c)?) };
        for (x, y) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
            let squares: f64 = x.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
            let inverse = 1.0 / (squares / c as f64 + eps).sqrt();
            for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                *y = (f64::from(*x) * inverse * f64::from(*w)) as f32;
            }
        }
        Ok(0)
    })
}

/// x [tokens, H, d], inv_freq [d / 2], positions [tokens]; rotated in place, at any position.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_float_rope(
    x: *mut f32,
    tokens: usize,
    heads: usize,
    d: usize,
    inv_freq: *const f64,
    positions: *const i64,
) -> i32 {
    run(|_| {
        // SAFETY: the host's promise.
        let (x, inv_freq, positions) = unsafe {
            (write(x, checked_product(&[tokens, heads, d])?)?, read(inv_freq, d / 2)?, read(positions, tokens)?)
        };
        for (x, &position) in x.chunks_exact_mut((heads * d).max(1)).zip(positions) {
            for (i, frequency) in inv_freq.iter().enumerate() {
                let (s, c) = (position as f64 * frequency).sin_cos();
                for pair in x.chunks_exact_mut(d).map(|head| &mut head[2 * i..2 * i + 2]) {
                    let (a, b) = (f64::from(pair[0]), f64::from(pair[1]));
                    (pair[0], pair[1]) = ((a * c - b * s) as f32, (a * s + b * c) as f32);
                }
            }
        }
        Ok(0)
    })
}

/// One sequence: q [T, H, d], k and v [S, H, d], positions [T] in -1 .. S - 1 -> o [T, H, d].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_float_attention(
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
    run(|_| {
        let size = checked_product(&[heads, d])?;
        // SAFETY: the host's promise.
        let (q, k, v, positions, o) = unsafe {
            (read(q, t * size)?, read(k, s * size)?, read(v, s * size)?, read(positions, t)?, write(o, t * size)?)
        };
        let mut cache = FloatCache::new(s, heads, d)?;
        if size == 0 {
            return Ok(0);
        }
        for (k, v) in k.chunks_exact(size).zip(v.chunks_exact(size)) {
            cache.append(k, v)?;
        }
        for ((q, &position), o) in q.chunks_exact(size).zip(positions).zip(o.chunks_exact_mut(size)) {
            match usize::try_from(position) {
                Err(_) => o.fill(0.0),
                Ok(position) => cache.attend(q, position, o)?,
            }
        }
        Ok(0)
    })
}

/// h into gate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_float_swiglu(gate: *mut f32, up: *const f32, length: usize) -> i32 {
    run(|_| {
        // SAFETY: the host's promise.
        let (gate, up) = unsafe { (write(gate, length)?, read(up, length)?) };
        for (g, u) in gate.iter_mut().zip(up) {
            let x = f64::from(*g);
            // The limit at minus infinity, where the quotient has none.
            let silu = if x == f64::NEG_INFINITY { -0.0 } else { x / (1.0 + (-x).exp()) };
            *g = (silu * f64::from(*u)) as f32;
        }
        Ok(0)
    })
}

/// x [rows, n] -> y [rows, n], orthonormal if `normalize`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_float_transform(
    x: *const f32,
    rows: usize,
    n: usize,
    normalize: i32,
    y: *mut f32,
) -> i32 {
    run(|_| {
        require!(n.is_power_of_two(), Shape, "transform size {n}: expected a power of two");
        // SAFETY: the host's promise.
        let (x, y) = unsafe { (read(x, rows * n)?, write(y, rows * n)?) };
        let mut row = try_vec(n, 0.0)?;
        for (x, y) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)) {
            row.copy_from_slice(x);
            crate::float::butterflies(&mut row, n);
            let c = if normalize == 0 || n == 1 { 1.0 } else { crate::arithmetic::reciprocal_root(n) };
            y.iter_mut().zip(&row).for_each(|(y, v)| *y = v * c);
        }
        Ok(0)
    })
}

/// x += y, as residuals are added.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_float_add(x: *mut f32, y: *const f32, length: usize) -> i32 {
    run(|_| {
        // SAFETY: the host's promise.
        let (x, y) = unsafe { (write(x, length)?, read(y, length)?) };
        x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        Ok(0)
    })
}
