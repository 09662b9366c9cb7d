//! Tables of int8 or int4 rows with one scale per row: embedding rows, and products with a token.
//!
//! ```text
//! embed(t) = f32(codes[t]) * scale[t],        logit(t) = (f32(a . codes[t]) * r) * scale[t],   a, r = quantise(x)
//! ```
//!
//! Rows are read where the file has them. An int8 row of K features is K bytes. An int4 row is K / 2 bytes, feature 2 i in
//! the low half of byte i, as code + 8; the kernel masks the four halves of every 16-bit lane in place, where they stand 1,
//! 16, 256 and 1 (after a shift) times too large, and multiplies them with activations that are 256, 16, 1 and 256 times
//! too large, so that one sum holds all four. The + 8 costs one subtraction of 8 sum(a) per row.

use std::sync::Arc;

use crate::error::{Result, require};
use crate::simd::*;

/// Bytes inside a shared buffer: a file that was loaded once.
#[derive(Clone)]
pub struct Bytes {
    buffer: Arc<Vec<u8>>,
    start: usize,
    length: usize,
}

impl Bytes {
    /// `length` bytes at `start`, which must lie inside the buffer.
    pub fn new(buffer: Arc<Vec<u8>>, start: usize, length: usize) -> Result<Self> {
        let inside = start.checked_add(length).is_some_and(|end| end <= buffer.len());
        require!(inside, Format, "{length} bytes at {start} of {}", buffer.len());
        Ok(Self { buffer, start, length })
    }

    /// A buffer of its own.
    pub fn owned(bytes: Vec<u8>) -> Self {
        let length = bytes.len();
        Self { buffer: Arc::new(bytes), start: 0, length }
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buffer[self.start..self.start + self.length]
    }
}

/// A table [rows, K] of int8 or int4 codes with a scale per row.
#[derive(Clone)]
pub struct RowTable {
    rows: usize,
    width: usize,
    four_bits: bool,
    codes: Bytes,
    scale: Vec<f32>,
}

impl RowTable {
    /// A table over stored codes; for int4, K even and a half byte of 0 (code -8) is refused.
    pub fn new(codes: Bytes, rows: usize, width: usize, four_bits: bool, scale: Vec<f32>) -> Result<Self> {
        let row = if four_bits { width.div_ceil(2) } else { width };
        require!(rows.checked_mul(row) == Some(codes.len()), Shape, "{} bytes for {rows} rows of {width}", codes.len());
        require!(scale.len() == rows, Shape, "{} scales for {rows} rows", scale.len());
        if four_bits {
            require!(width.is_multiple_of(2), Format, "int4 rows of {width}: expected an even width");
            let bad = codes.iter().any(|byte| byte & 15 == 0 || byte >> 4 == 0);
            require!(!bad, Format, "an int4 row holds code -8: expected -7 .. 7");
        }
        Ok(Self { rows, width, four_bits, codes, scale })
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// K.
    pub fn width(&self) -> usize {
        self.width
    }

    fn code(&self, row: usize, k: usize) -> i8 {
        if self.four_bits {
            let byte = self.codes[row * self.width / 2 + k / 2];
            (byte >> (4 * (k & 1)) & 15) as i8 - 8
        } else {
            self.codes[row * self.width + k] as i8
        }
    }

    /// f32(codes[row]) * scale[row] into e [K].
    pub fn embed(&self, row: usize, e: &mut [f32]) -> Result<()> {
        require!(
            row < self.rows,
            Range,
            "id {row}: expected 0 .. {}; use ids of this vocabulary",
            self.rows as i64 - 1
        );
        let scale = self.scale[row];
        if self.four_bits {
            let codes = &self.codes[row * self.width / 2..][..self.width / 2];
            for (pair, &byte) in e.chunks_exact_mut(2).zip(codes) {
                pair[0] = f32::from((byte & 15) as i8 - 8) * scale;
                pair[1] = f32::from((byte >> 4) as i8 - 8) * scale;
            }
        } else {
            let codes = &self.codes[row * self.width..][..self.width];
            e.iter_mut().zip(codes).for_each(|(e, &code)| *e = f32::from(code as i8) * scale);
        }
        Ok(())
    }

    /// Logits of rows `from .. from + out.len()` for several tokens, their outputs of one length.
    pub fn logits(&self, columns: &mut [(&Query, &mut [f32])], from: usize) {
        for (query, out) in columns {
            self.logits_of_one(query, from, out);
        }
    }

    fn logits_of_one(&self, query: &Query, from: usize, out: &mut [f32]) {
        assert!(from + out.len() <= self.rows && query.codes.len() >= self.width);
        let body = out.len() & !3;
        let fast = if self.four_bits {
            self.width.is_multiple_of(32) && self.width <= 4096
        } else {
            self.width.is_multiple_of(8)
        };
        let done = if fast && body > 0 {
            // SAFETY: `body` rows from `from` exist, each of the full width; the scales as well.
            unsafe { self.fast_logits(query, from, &mut out[..body]) };
            body
        } else {
            0
        };
        for (i, out) in out.iter_mut().enumerate().skip(done) {
            *out = self.logit_scalar(query, from + i);
        }
    }

    /// One logit, by the definition.
    pub fn logit_scalar(&self, query: &Query, row: usize) -> f32 {
        let sum: i32 = (0..self.width).map(|k| i32::from(self.code(row, k)) * i32::from(query.codes[k])).sum();
        (sum as f32 * query.r) * self.scale[row]
    }

    /// # Safety
    /// Rows `from .. from + out.len()` exist; a multiple of 4 of them; the width fits the kernel.
    unsafe fn fast_logits(&self, query: &Query, from: usize, out: &mut [f32]) {
        let row = if self.four_bits { self.width / 2 } else { self.width };
        // SAFETY: the caller's promise.
        unsafe {
            let (w, scale) = (self.codes.as_ptr().add(from * row), self.scale.as_ptr().add(from));
            let r = query.r;
            if self.four_bits {
                let (x, eight) = (query.spread.as_ptr(), query.eight_sums);
                match self.width / 32 {
                    4 => rows4::<4>(w, x, eight, r, scale, out),
                    8 => rows4::<8>(w, x, eight, r, scale, out),
                    12 => rows4::<12>(w, x, eight, r, scale, out),
                    16 => rows4::<16>(w, x, eight, r, scale, out),
                    _ => rows4_of_any_width(w, x, self.width / 32, eight, r, scale, out),
                }
            } else {
                let (w, x) = (w.cast::<i8>(), query.codes.as_ptr());
                match self.width / 8 {
                    16 => rows8::<16>(w, x, r, scale, out),
                    32 => rows8::<32>(w, x, r, scale, out),
                    48 => rows8::<48>(w, x, r, scale, out),
                    64 => rows8::<64>(w, x, r, scale, out),
                    _ => rows8_of_any_width(w, x, self.width / 8, r, scale, out),
                }
            }
        }
    }
}

/// A quantised token, as heads read it.
#[derive(Default, Clone)]
pub struct Query {
    /// int8 codes, held as i16.
    codes: Vec<i16>,
    /// Codes regrouped and scaled for int4 rows: per 32 features, those at 4 l, 4 l + 1, 4 l + 2, 4 l + 3 for lanes l.
    spread: Vec<i16>,
    /// 8 times the sum of the codes.
    eight_sums: i32,
    r: f32,
}

impl Query {
    /// Quantise x [K].
    pub fn quantize(&mut self, x: &[f32]) -> Result<()> {
        self.codes.resize(x.len(), 0);
        self.r = crate::activations::quantize(x, &mut self.codes)?;
        self.eight_sums = 8 * self.codes.iter().map(|&a| i32::from(a)).sum::<i32>();
        self.spread.clear();
        for group in self.codes.chunks_exact(32) {
            for (part, factor) in [256, 16, 1, 256].into_iter().enumerate() {
                self.spread.extend((0..8).map(|lane| group[4 * lane + part] * factor));
            }
        }
        Ok(())
    }
}

/// (f32(sum) * r) * scale of four rows.
///
/// # Safety
/// `scale` and `out` point to four floats.
#[inline(always)]
unsafe fn finish4(sums: v128, r: v128, scale: *const f32, out: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let logits = f32x4_mul(f32x4_mul(f32x4_convert_i32x4(sums), r), v128_load(scale.cast()));
        v128_store(out.cast(), logits);
    }
}

/// int8 rows of 8 V features; the token stays in V locals.
///
/// # Safety
/// `w` holds `out.len()` rows (a multiple of 4), `x` 8 V codes, `scale` one number per row.
unsafe fn rows8<const V: usize>(w: *const i8, x: *const i16, r: f32, scale: *const f32, out: &mut [f32]) {
    let mut token = [i32x4_splat(0); V];
    let r = f32x4_splat(r);
    // SAFETY: the caller's promise, for every access below.
    unsafe {
        unroll!(i in V, { token[i] = v128_load(x.add(8 * i).cast()); });
        let (mut w, mut scale) = (w, scale);
        for out in out.chunks_exact_mut(4) {
            let mut sums = [i32x4_splat(0); 4];
            unroll!(row in 4, {
                let mut sum = i32x4_dot_i16x8(i16x8_load_extend_i8x8(w.add(8 * V * row)), token[0]);
                unroll!(i in V, {
                    if i > 0 {
                        let codes = i16x8_load_extend_i8x8(w.add(8 * V * row + 8 * i));
                        sum = i32x4_add(sum, i32x4_dot_i16x8(codes, token[i]));
                    }
                });
                sums[row] = sum;
            });
            finish4(i32x4_sum_lanes(sums[0], sums[1], sums[2], sums[3]), r, scale, out.as_mut_ptr());
            w = w.add(4 * 8 * V);
            scale = scale.add(4);
        }
    }
}

/// `rows8` for any number of vectors.
///
/// # Safety
/// As `rows8`.
unsafe fn rows8_of_any_width(w: *const i8, x: *const i16, vectors: usize, r: f32, scale: *const f32, out: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        for (n, out) in out.chunks_exact_mut(4).enumerate() {
            let mut sums = [i32x4_splat(0); 4];
            for (row, sum) in sums.iter_mut().enumerate() {
                let w = w.add(8 * vectors * (4 * n + row));
                for i in 0..vectors {
                    let codes = i16x8_load_extend_i8x8(w.add(8 * i));
                    *sum = i32x4_add(*sum, i32x4_dot_i16x8(codes, v128_load(x.add(8 * i).cast())));
                }
            }
            let total = i32x4_sum_lanes(sums[0], sums[1], sums[2], sums[3]);
            finish4(total, f32x4_splat(r), scale.add(4 * n), out.as_mut_ptr());
        }
    }
}

/// 256 times the product of 32 int4 codes with four vectors of scaled activations.
#[inline(always)]
fn dot32(codes: v128, x: [v128; 4]) -> v128 {
    let part = |mask: i16, x: v128| i32x4_dot_i16x8(v128_and(codes, i16x8_splat(mask)), x);
    let low = i32x4_add(part(0x000f, x[0]), part(0x00f0, x[1]));
    let high = i32x4_add(part(0x0f00, x[2]), i32x4_dot_i16x8(u16x8_shr(codes, 12), x[3]));
    i32x4_add(low, high)
}

/// int4 rows of 32 V features; the token stays in 4 V locals.
///
/// # Safety
/// `w` holds `out.len()` rows (a multiple of 4) of 16 V bytes, `x` 32 V numbers, `scale` one number per row.
unsafe fn rows4<const V: usize>(w: *const u8, x: *const i16, eight: i32, r: f32, scale: *const f32, out: &mut [f32]) {
    let mut token = [[i32x4_splat(0); 4]; V];
    let (r, eight) = (f32x4_splat(r), i32x4_splat(eight));
    // SAFETY: the caller's promise, for every access below.
    unsafe {
        unroll!(i in V, {
            unroll!(part in 4, { token[i][part] = v128_load(x.add(32 * i + 8 * part).cast()); });
        });
        let (mut w, mut scale) = (w, scale);
        for out in out.chunks_exact_mut(4) {
            let mut sums = [i32x4_splat(0); 4];
            unroll!(row in 4, {
                let mut sum = dot32(v128_load(w.add(16 * V * row).cast()), token[0]);
                unroll!(i in V, {
                    if i > 0 {
                        sum = i32x4_add(sum, dot32(v128_load(w.add(16 * V * row + 16 * i).cast()), token[i]));
                    }
                });
                sums[row] = sum;
            });
            let total = i32x4_shr(i32x4_sum_lanes(sums[0], sums[1], sums[2], sums[3]), 8);
            finish4(i32x4_sub(total, eight), r, scale, out.as_mut_ptr());
            w = w.add(4 * 16 * V);
            scale = scale.add(4);
        }
    }
}

/// `rows4` for any number of vectors.
///
/// # Safety
/// As `rows4`.
unsafe fn rows4_of_any_width(
    w: *const u8,
    x: *const i16,
    vectors: usize,
    eight: i32,
    r: f32,
    scale: *const f32,
    out: &mut [f32],
) {
    // SAFETY: the caller's promise.
    unsafe {
        for (n, out) in out.chunks_exact_mut(4).enumerate() {
            let mut sums = [i32x4_splat(0); 4];
            for (row, sum) in sums.iter_mut().enumerate() {
                let w = w.add(16 * vectors * (4 * n + row));
                for i in 0..vectors {
                    let token = [0, 8, 16, 24].map(|part| v128_load(x.add(32 * i + part).cast()));
                    *sum = i32x4_add(*sum, dot32(v128_load(w.add(16 * i).cast()), token));
                }
            }
            let total = i32x4_shr(i32x4_sum_lanes(sums[0], sums[1], sums[2], sums[3]), 8);
            finish4(i32x4_sub(total, i32x4_splat(eight)), f32x4_splat(r), scale.add(4 * n), out.as_mut_ptr());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: usize, width: usize, four_bits: bool) -> RowTable {
        let codes: Vec<u8> = if four_bits {
            (0..rows * width / 2).map(|i| ((1 + i % 15) | ((1 + i / 15 % 15) << 4)) as u8).collect()
        } else {
            (0..rows * width).map(|i| (i * 41 % 256) as u8).collect()
        };
        let scale = (0..rows).map(|i| 0.01 + i as f32 * 1e-4).collect();
        RowTable::new(Bytes::owned(codes), rows, width, four_bits, scale).unwrap()
    }

    #[test]
    fn kernels_equal_scalar() {
        for width in [2, 8, 20, 32, 64, 128, 256, 384, 512, 544] {
            for four_bits in [false, true] {
                let table = table(13, width, four_bits);
                for extreme in [false, true] {
                    let x: Vec<f32> =
                        (0..width).map(|i| if extreme { 1.0 } else { (i * 67 % 97) as f32 - 48.0 }).collect();
                    let mut query = Query::default();
                    query.quantize(&x).unwrap();
                    let mut out = vec![0.0; 11];
                    table.logits(&mut [(&query, &mut out)], 2);
                    let expected: Vec<f32> = (2..13).map(|row| table.logit_scalar(&query, row)).collect();
                    assert_eq!(out, expected, "width {width}, int4 {four_bits}");
                }
            }
        }
    }

    #[test]
    fn an_int4_row_without_a_negative_twin_is_refused() {
        assert!(RowTable::new(Bytes::owned(vec![0x10]), 1, 2, true, vec![1.0]).is_err());
        assert!(RowTable::new(Bytes::owned(vec![0x11]), 1, 3, true, vec![1.0]).is_err());
    }
}
