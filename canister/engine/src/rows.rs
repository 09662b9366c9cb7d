//! Tables of int8 or int4 rows with one scale per row: embedding rows, and products with a token.
//!
//! ```text
//! embed(t) = f32(codes[t]) * scale[t],        logit(t) = (f32(a . codes[t]) * r) * scale[t],   a, r = quantise(x)
//! ```
//!
//! Rows are read where the file has them. An int8 row of K features is K bytes. An int4 row is K / 2 bytes, feature 2 i in
//! the low half l of byte i, feature 2 i + 1 in the high half h, as code + 8; see `paired` for how it is multiplied.

use std::sync::Arc;

use crate::error::{Result, require};
use crate::float::dot_codes;
use crate::paired;
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
    /// Of int4 rows whose width is a multiple of 32: per row and block what its bytes give with tokens of zero.
    own: Vec<i32>,
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
        let own = if four_bits { paired::terms_of_rows(&codes, rows, width)? } else { Vec::new() };
        Ok(Self { rows, width, four_bits, codes, scale, own })
    }

    /// Bytes in memory of one row, scale and all.
    pub fn row_bytes(width: usize, four_bits: bool) -> usize {
        4 * (1 + if four_bits { paired::blocks(width) } else { 0 }) + if four_bits { width.div_ceil(2) } else { width }
    }

    /// Bytes in memory besides the codes.
    pub fn bytes_beside_codes(&self) -> usize {
        4 * (self.scale.len() + self.own.len())
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// K.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Whether rows are int4.
    pub fn four_bits(&self) -> bool {
        self.four_bits
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

    /// Logits of rows `from .. from + out.len()` for several tokens, whose outputs have one length.
    pub fn logits(&self, columns: &mut [(&Query, &mut [f32])], from: usize) {
        let length = columns.first().map_or(0, |(_, out)| out.len());
        assert!(from + length <= self.rows);
        let width = |query: &Query| query.codes.len().max(query.floats.len());
        assert!(columns.iter().all(|(query, out)| width(query) == self.width && out.len() == length));
        let strict = columns.iter().all(|(query, _)| query.floats.is_empty());
        let fast = strict
            && if self.four_bits { matches!(self.width, 128 | 256 | 512) } else { self.width.is_multiple_of(16) };
        let body = if fast { length & !3 } else { 0 };
        // Kernels of several columns are long: only the usual widths have them.
        let together = self.width == 512 || (self.width == 256 && !self.four_bits);
        let mut rest = &mut *columns;
        while body > 0 && !rest.is_empty() {
            // SAFETY: `body` rows from `from` exist, a multiple of 4, the width fits the kernel, and so many columns are left.
            let taken = unsafe {
                match if together { rest.len() } else { 1 } {
                    1 => self.fast_logits::<1>(rest, from, body),
                    2 | 3 => self.fast_logits::<2>(rest, from, body),
                    _ => self.fast_logits::<4>(rest, from, body),
                }
            };
            rest = &mut rest[taken..];
        }
        for (query, out) in columns {
            for (i, out) in out.iter_mut().enumerate().skip(body) {
                *out = match (strict, self.own.is_empty()) {
                    (true, true) => self.logit_scalar(query, from + i),
                    (true, false) => self.logit_paired(query, from + i),
                    (false, _) => self.logit_float(query, from + i),
                };
            }
        }
    }

    /// One logit of a token that is not rounded: (x . codes) * scale.
    fn logit_float(&self, query: &Query, row: usize) -> f32 {
        let sum = if self.four_bits {
            query.floats.iter().enumerate().map(|(k, x)| x * f32::from(self.code(row, k))).sum()
        } else {
            let codes = &self.codes[row * self.width..][..self.width];
            // SAFETY: bytes are int8 codes.
            dot_codes(&query.floats, unsafe { std::slice::from_raw_parts(codes.as_ptr().cast(), codes.len()) })
        };
        sum * self.scale[row]
    }

    /// One logit, by the definition.
    pub fn logit_scalar(&self, query: &Query, row: usize) -> f32 {
        let sum: i32 = (0..self.width).map(|k| i32::from(self.code(row, k)) * i32::from(query.codes[k])).sum();
        (sum as f32 * query.r) * self.scale[row]
    }

    /// One logit of an int4 row whose width is a multiple of 32.
    fn logit_paired(&self, query: &Query, row: usize) -> f32 {
        let (bytes, blocks) = (self.width / 2, paired::blocks(self.width));
        let (codes, own) = (&self.codes[row * bytes..][..bytes], &self.own[row * blocks..][..blocks]);
        let sum = paired::sum(codes, own, &query.spread, &query.of_token);
        (sum as f32 * query.r) * self.scale[row]
    }

    /// The first N columns; returns N.
    ///
    /// # Safety
    /// Rows `from .. from + rows` exist; a multiple of 4 of them; N columns with room for them; the width fits the kernel.
    unsafe fn fast_logits<const N: usize>(
        &self,
        columns: &mut [(&Query, &mut [f32])],
        from: usize,
        rows: usize,
    ) -> usize {
        let bytes = if self.four_bits { self.width / 2 } else { self.width };
        let body = Body::<N> {
            x: std::array::from_fn(|c| {
                if self.four_bits { &columns[c].0.spread } else { &columns[c].0.codes }.as_ptr()
            }),
            of_token: std::array::from_fn(|c| columns[c].0.of_token.first().copied().unwrap_or(0)),
            own: self.own.as_ptr().wrapping_add(from),
            r: std::array::from_fn(|c| columns[c].0.r),
            // SAFETY: the caller's promise.
            scale: unsafe { self.scale.as_ptr().add(from) },
            out: std::array::from_fn(|c| columns[c].1.as_mut_ptr()),
            rows,
        };
        // SAFETY: the caller's promise.
        unsafe {
            let w = self.codes.as_ptr().add(from * bytes);
            match (self.width / 8, self.four_bits) {
                (16, false) if N == 1 => rows_of_width::<16, N, false>(w, &body),
                (32, false) => rows_of_width::<32, N, false>(w, &body),
                (64, false) => rows_of_width::<64, N, false>(w, &body),
                (16, true) if N == 1 => rows_of_width::<16, N, true>(w, &body),
                (32, true) if N == 1 => rows_of_width::<32, N, true>(w, &body),
                (64, true) => rows_of_width::<64, N, true>(w, &body),
                (vectors, false) if N == 1 => rows_of_any_width(w, vectors, &body),
                _ => {}
            }
        }
        N
    }
}

/// N columns of a kernel.
struct Body<const N: usize> {
    /// Codes, as the kernel reads them.
    x: [*const i16; N],
    /// Of int4 rows: what is the token's, and what is the first row's own.
    of_token: [i32; N],
    own: *const i32,
    r: [f32; N],
    /// Of the first row.
    scale: *const f32,
    out: [*mut f32; N],
    /// A multiple of 4.
    rows: usize,
}

/// A quantised token, as heads read it.
#[derive(Default, Clone)]
pub struct Query {
    /// int8 codes, held as i16.
    codes: Vec<i16>,
    /// What the bytes of an int4 row are joined with; see `paired`.
    spread: Vec<i16>,
    /// Per block of an int4 row: the terms that are the token's.
    of_token: Vec<i32>,
    r: f32,
    /// The features themselves, of a token that is not rounded.
    floats: Vec<f32>,
}

impl Query {
    /// Take x [K] as it is.
    pub fn take_floats(&mut self, x: &[f32]) -> Result<()> {
        let bad = x.iter().find(|v| !v.is_finite());
        require!(bad.is_none(), NonFinite, "a row holds {bad:?}: logits need finite numbers");
        self.codes.clear();
        self.floats.clear();
        self.floats.extend_from_slice(x);
        Ok(())
    }

    /// Quantise x [K]; `four_bits` says whether int4 rows are to be multiplied.
    pub fn quantize(&mut self, x: &[f32], four_bits: bool) -> Result<()> {
        self.codes.resize(x.len(), 0);
        self.r = crate::activations::quantize(x, &mut self.codes)?;
        if four_bits {
            paired::prepare(&self.codes, &mut self.spread, &mut self.of_token);
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

/// 8 V int8 codes, widened.
///
/// # Safety
/// The codes are at `w`.
#[inline(always)]
unsafe fn widen<const V: usize>(w: *const u8) -> [v128; V] {
    let mut all = [i32x4_splat(0); V];
    // SAFETY: the caller's promise.
    unsafe { unroll!(i in V, { all[i] = i16x8_load_extend_i8x8(w.add(8 * i).cast()); }) };
    all
}

/// Rows of 8 V features for N tokens, which stay in V N locals.
///
/// # Safety
/// `w` holds the rows of `body`, each x 8 V numbers, `scale` and each `out` one number per row.
unsafe fn rows_of_width<const V: usize, const N: usize, const FOUR: bool>(w: *const u8, body: &Body<N>) {
    let bytes = if FOUR { 4 * V } else { 8 * V };
    let mut token = [[i32x4_splat(0); V]; N];
    // SAFETY: the caller's promise, for every access below.
    unsafe {
        unroll!(c upto 4 in N, { token[c] = load_all(body.x[c]); });
        let r: [v128; N] = std::array::from_fn(|c| f32x4_splat(body.r[c]));
        let of_token: [v128; N] = std::array::from_fn(|c| i32x4_splat(body.of_token[c]));
        let (mut w, mut scale, mut own, mut out) = (w, body.scale, body.own, body.out);
        for _ in 0..body.rows / 4 {
            let mut sums = [[i32x4_splat(0); 4]; N];
            unroll!(row in 4, {
                let at = w.add(bytes * row);
                if FOUR {
                    unroll!(c upto 4 in N, { sums[c][row] = paired::row(at, &token[c]); });
                } else {
                    let codes = widen::<V>(at);
                    unroll!(c upto 4 in N, { sums[c][row] = dots(&codes, &token[c]); });
                }
            });
            unroll!(c upto 4 in N, {
                let mut total = i32x4_sum_lanes(sums[c][0], sums[c][1], sums[c][2], sums[c][3]);
                if FOUR {
                    total = i32x4_shr(i32x4_sub(i32x4_sub(total, v128_load(own.cast())), of_token[c]), 12);
                }
                finish4(total, r[c], scale, out[c]);
                out[c] = out[c].add(4);
            });
            w = w.add(4 * bytes);
            scale = scale.add(4);
            own = own.wrapping_add(4);
        }
    }
}

/// `rows_of_width` of int8 rows of any number of vectors, for one token.
///
/// # Safety
/// As `rows_of_width`.
unsafe fn rows_of_any_width<const N: usize>(w: *const u8, vectors: usize, body: &Body<N>) {
    // SAFETY: the caller's promise.
    unsafe {
        for n in 0..body.rows / 4 {
            for c in 0..N {
                let mut sums = [i32x4_splat(0); 4];
                for (row, sum) in sums.iter_mut().enumerate() {
                    let w = w.add(8 * vectors * (4 * n + row));
                    for i in (0..vectors).step_by(2) {
                        *sum = i32x4_add(*sum, dots(&widen::<2>(w.add(8 * i)), &load_all(body.x[c].add(8 * i))));
                    }
                }
                let total = i32x4_sum_lanes(sums[0], sums[1], sums[2], sums[3]);
                finish4(total, f32x4_splat(body.r[c]), body.scale.add(4 * n), body.out[c].add(4 * n));
            }
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
        for width in [2, 8, 20, 48, 64, 128, 256, 384, 512, 1056] {
            for four_bits in [false, true] {
                let table = table(13, width, four_bits);
                for extreme in [false, true] {
                    for count in [1, 2, 3, 4, 7] {
                        let queries: Vec<Query> = (0..count)
                            .map(|c| {
                                let value = |i: usize| if extreme { 1.0 } else { ((i + c) * 67 % 97) as f32 - 48.0 };
                                let mut query = Query::default();
                                query.quantize(&(0..width).map(value).collect::<Vec<_>>(), true).unwrap();
                                query
                            })
                            .collect();
                        let mut outs = vec![vec![0.0; 11]; count];
                        let mut columns: Vec<_> = queries.iter().zip(outs.iter_mut().map(Vec::as_mut_slice)).collect();
                        table.logits(&mut columns, 2);
                        for (query, out) in queries.iter().zip(outs) {
                            let expected: Vec<f32> = (2..13).map(|row| table.logit_scalar(query, row)).collect();
                            assert_eq!(out, expected, "width {width}, int4 {four_bits}, {count} columns");
                        }
                    }
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
