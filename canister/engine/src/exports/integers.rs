//! `walsh_op_*` on integers, which are exact: packings, and products and transforms of codes.
//!
//! The contract is that of `exports`; arguments are those of SPEC.md, with sizes as numbers.

use super::ordinary::optional;
use super::{read, run, write};
use crate::blocks::stride;
use crate::cayley_dickson::plan;
use crate::error::{checked_product, require, try_vec};
use crate::hadamard::{check_size, transform_integers};
use crate::int8::Int8Matrices;
use crate::products::Places;
use crate::{bitmask, ternary};

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

/// x int8 [tokens, D K], codes int8 [D, N, K] -> y [tokens, D N]: int32 sums, or float32 (sum / x_scale) * beta where x_scale
/// [tokens] or beta [N] is given.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_cayley_dickson_codes(
    x: *const i8,
    tokens: usize,
    codes: *const i8,
    d: usize,
    rows: usize,
    columns: usize,
    x_scale: *const f32,
    beta: *const f32,
    y: *mut u32,
) -> i32 {
    run(|_| {
        let features = checked_product(&[d, columns])?;
        require!(
            (1..1 << 24).contains(&features),
            Shape,
            "{features} features: expected 1 .. 2^24 - 1, whose sums fit"
        );
        require!(matches!(d, 1 | 2 | 4 | 8 | 16), Shape, "codes have {d} components: expected 1, 2, 4, 8 or 16");
        // SAFETY: the host's promise.
        let (x, codes, x_scale, beta, y) = unsafe {
            (
                read(x, tokens * d * columns)?,
                read(codes, checked_product(&[d, rows, columns])?)?,
                optional(x_scale, tokens)?,
                optional(beta, rows)?,
                write(y, tokens * d * rows)?,
            )
        };
        let (weights, products, width) = (Int8Matrices::new(codes, d, rows, columns)?, plan(d, false), stride(columns));
        let height = weights.padded_rows();
        let places = Places { columns: 1, x_stride: width, x_column: 0, out_stride: height, out_column: 0 };
        let (mut wide, mut sums) = (try_vec(d * width, 0i16)?, try_vec(d * height, 0i32)?);
        for (t, (x, y)) in x.chunks_exact(d * columns).zip(y.chunks_exact_mut((d * rows).max(1))).enumerate() {
            for (x, wide) in x.chunks_exact(columns).zip(wide.chunks_exact_mut(width)) {
                wide.iter_mut().zip(x).for_each(|(wide, &code)| *wide = i16::from(code));
            }
            weights.multiply(&products, &wide, &mut sums, &places);
            for (sums, y) in sums.chunks_exact(height).zip(y.chunks_exact_mut(rows)) {
                for (row, (y, &sum)) in y.iter_mut().zip(sums).enumerate() {
                    let value = sum as f32 / x_scale.get(t).unwrap_or(&1.0) * beta.get(row).unwrap_or(&1.0);
                    *y = if x_scale.is_empty() && beta.is_empty() { sum as u32 } else { value.to_bits() };
                }
            }
        }
        Ok(0)
    })
}

/// Butterflies of x int32 [rows, n] in place, modulo 2^32.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_transform_integers(x: *mut i32, rows: usize, n: usize) -> i32 {
    run(|_| {
        check_size(n)?;
        // SAFETY: the host's promise.
        unsafe { write(x, rows * n)? }.chunks_exact_mut(n).for_each(|x| transform_integers(x, n, 1));
        Ok(0)
    })
}
