//! Ternary matrices: packings, and exact products with int8 activations, two rows per multiplication.
//!
//! ```text
//! out_n = sum_k x_k w[n, k],      x int8 (held as i16), w in {-1, 0, 1}, out i32
//! ```
//!
//! **Two rows in one 16-bit number.** `pair = w[n, k] + 2^14 w[n + 4, k]` is at most 16,385 in magnitude. Summed over 64
//! values of k, the lower part stays within 64 * 127 = 8,128 < 2^13, so both sums can be read off one 32-bit lane: an
//! `i32x4.dot_i16x8_s` does sixteen multiplications instead of eight. Longer rows are summed in chunks of 64.
//!
//! **Layout.** Lane l of group g holds rows 8 g + l (lower part) and 8 g + 4 + l; a vector holds two values of k for the
//! four lanes, so that x enters as a splat of two codes and no sum crosses lanes. Rows are padded to 8, K to 16.
//!
//! **Packed.** The same order in two bits a weight, expanded one chunk at a time just before it is used.

use crate::arithmetic::round_up;
use crate::error::{Result, require, try_vec};
use crate::simd::*;

/// Pairs of k in one chunk: the lower part of a lane must not reach the upper one.
const CHUNK: usize = 32;

/// What becomes of the sums.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Into {
    /// out = sum
    Store,
    /// out += sum
    Add,
    /// out -= sum
    Subtract,
}

/// `count` ternary matrices [N, K] of one size in kernel layout.
pub struct TernaryMatrices {
    rows: usize,
    groups: usize,
    pairs: usize,
    storage: Storage,
}

enum Storage {
    /// Per matrix, group and pair of k: eight i16.
    Pairs(Vec<i16>),
    /// Per matrix, group and four pairs of k: sixteen bytes. Lane l of vector v of the four has its lower weight in bits
    /// 2 v of byte 2 l, its upper in bits 2 v of byte 2 l + 1, both two's complement.
    TwoBits(Vec<u8>),
}

impl TernaryMatrices {
    /// Lay out `codes` [count, N, K], each -1, 0 or 1.
    pub fn new(codes: &[i8], count: usize, rows: usize, columns: usize, packed: bool) -> Result<Self> {
        require!(
            codes.len() == count * rows * columns,
            Shape,
            "{} codes for {count} x {rows} x {columns}",
            codes.len()
        );
        check_codes(codes)?;
        let (groups, pairs) = (rows.div_ceil(8), round_up(columns, 16) / 2);
        let mut laid_out = try_vec(count * groups * pairs * 8, 0i16)?;
        for m in 0..count {
            for n in 0..rows {
                let row = &codes[(m * rows + n) * columns..][..columns];
                let (group, lane, upper) = (n / 8, n % 4, n % 8 >= 4);
                let start = (m * groups + group) * pairs * 8 + 2 * lane;
                for (k, &code) in row.iter().enumerate() {
                    laid_out[start + k / 2 * 8 + k % 2] += if upper { i16::from(code) << 14 } else { i16::from(code) };
                }
            }
        }
        let storage = if packed { Storage::TwoBits(pack_pairs(&laid_out)?) } else { Storage::Pairs(laid_out) };
        Ok(Self { rows, groups, pairs, storage })
    }

    /// Bytes that the weights take in memory.
    pub fn bytes(&self) -> usize {
        match &self.storage {
            Storage::Pairs(pairs) => 2 * pairs.len(),
            Storage::TwoBits(bytes) => bytes.len(),
        }
    }

    /// Length of an `out` row: N rounded up to 8.
    pub fn padded_rows(&self) -> usize {
        8 * self.groups
    }

    /// N.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Multiply x by several of the matrices, each into its own row of `out`.
    ///
    /// x: codes of one block, K rounded up to 16, zeros past K. `targets`: (matrix, row of `out`, what to do there).
    /// out: [_, out_stride], `padded_rows` of each row are written.
    pub fn multiply(&self, x: &[i16], targets: &[(usize, usize, Into)], out: &mut [i32], out_stride: usize) {
        assert!(x.len() >= 2 * self.pairs && out_stride >= self.padded_rows());
        let matrix_length = self.groups * self.pairs * 8;
        for &(matrix, row, _) in targets {
            assert!(out.len() >= row * out_stride + self.padded_rows());
            match &self.storage {
                Storage::Pairs(pairs) => assert!(pairs.len() >= (matrix + 1) * matrix_length),
                Storage::TwoBits(bytes) => assert!(2 * bytes.len() >= (matrix + 1) * matrix_length),
            }
        }
        let mut at = 0;
        while at < self.pairs {
            let length = (self.pairs - at).min(CHUNK);
            for &(matrix, row, into) in targets {
                let into = if into == Into::Store && at > 0 { Into::Add } else { into };
                let first = matrix * matrix_length + at * 8;
                // SAFETY: the assertions above; pairs are a multiple of 8, so `length` is 8, 16, 24 or 32.
                unsafe {
                    let x = x.as_ptr().add(2 * at);
                    let out = out.as_mut_ptr().add(row * out_stride);
                    match length {
                        8 => self.chunk::<8>(first, x, out, into),
                        16 => self.chunk::<16>(first, x, out, into),
                        24 => self.chunk::<24>(first, x, out, into),
                        _ => self.chunk::<32>(first, x, out, into),
                    }
                }
            }
            at += length;
        }
    }

    /// out_g = W_g x_g for every matrix g: x [count, x_stride], out [count, out_stride].
    pub fn multiply_each(&self, count: usize, x: &[i16], x_stride: usize, out: &mut [i32], out_stride: usize) {
        let matrix_length = self.groups * self.pairs * 8;
        let single = self.pairs <= CHUNK && matches!(self.storage, Storage::Pairs(_));
        if !single {
            for g in 0..count {
                self.multiply(&x[g * x_stride..], &[(g, g, Into::Store)], out, out_stride);
            }
            return;
        }
        let Storage::Pairs(pairs) = &self.storage else { return };
        assert!(x_stride >= 2 * self.pairs && x.len() >= count * x_stride && pairs.len() >= count * matrix_length);
        assert!(out_stride >= self.padded_rows() && out.len() >= count * out_stride);
        // SAFETY: the assertions; pairs are a multiple of 8 and at most 32.
        unsafe {
            let (w, x, out) = (pairs.as_ptr(), x.as_ptr(), out.as_mut_ptr());
            match self.pairs {
                8 => self.each::<8>(count, w, x, x_stride, out, out_stride),
                16 => self.each::<16>(count, w, x, x_stride, out, out_stride),
                24 => self.each::<24>(count, w, x, x_stride, out, out_stride),
                _ => self.each::<32>(count, w, x, x_stride, out, out_stride),
            }
        }
    }

    /// # Safety
    /// Every matrix is one chunk of P pairs; strides as `multiply_each` has checked them.
    unsafe fn each<const P: usize>(
        &self,
        count: usize,
        w: *const i16,
        x: *const i16,
        x_stride: usize,
        out: *mut i32,
        out_stride: usize,
    ) {
        let (mut w, mut x, mut out) = (w, x, out);
        for _ in 0..count {
            // SAFETY: the caller's promise.
            unsafe {
                groups::<P, 0>(w, 8 * P, x, out, self.groups);
                w = w.add(8 * P * self.groups);
                x = x.add(x_stride);
                out = out.add(out_stride);
            }
        }
    }

    /// One chunk of P pairs for all row groups.
    ///
    /// # Safety
    /// `first` (in i16) starts a chunk of P pairs in the first group of a matrix; x has 2 P codes, out `padded_rows`.
    #[inline(always)]
    unsafe fn chunk<const P: usize>(&self, first: usize, x: *const i16, out: *mut i32, into: Into) {
        let step = self.pairs * 8;
        // SAFETY: the caller's promise.
        unsafe {
            match &self.storage {
                Storage::Pairs(pairs) => {
                    let w = pairs.as_ptr().add(first);
                    match into {
                        Into::Store => groups::<P, 0>(w, step, x, out, self.groups),
                        Into::Add => groups::<P, 1>(w, step, x, out, self.groups),
                        Into::Subtract => groups::<P, 2>(w, step, x, out, self.groups),
                    }
                }
                Storage::TwoBits(bytes) => {
                    let mut expanded = [0i16; CHUNK * 8];
                    for g in 0..self.groups {
                        expand::<P>(bytes.as_ptr().add((first + g * step) / 2), expanded.as_mut_ptr());
                        let (w, out) = (expanded.as_ptr(), out.add(8 * g));
                        match into {
                            Into::Store => groups::<P, 0>(w, step, x, out, 1),
                            Into::Add => groups::<P, 1>(w, step, x, out, 1),
                            Into::Subtract => groups::<P, 2>(w, step, x, out, 1),
                        }
                    }
                }
            }
        }
    }
}

/// Groups of eight rows times one chunk of x; MODE 0 stores, 1 adds, 2 subtracts.
///
/// # Safety
/// Group g has P pairs (eight i16 each) at `w + g * step`; x has 2 P codes; out has 8 `groups` sums.
unsafe fn groups<const P: usize, const MODE: usize>(
    w: *const i16,
    step: usize,
    x: *const i16,
    out: *mut i32,
    groups: usize,
) {
    let mut splats = [i32x4_splat(0); P];
    // SAFETY: the caller's promise, for every access below.
    unsafe {
        unroll!(p in P, { splats[p] = v128_load32_splat(x.add(2 * p).cast()); });
        let (mut w, mut out) = (w, out);
        for _ in 0..groups {
            let mut sum = i32x4_dot_i16x8(v128_load(w.cast()), splats[0]);
            unroll!(p in P, {
                if p > 0 {
                    sum = i32x4_add(sum, i32x4_dot_i16x8(v128_load(w.add(8 * p).cast()), splats[p]));
                }
            });
            let lower = i32x4_shr(i32x4_shl(sum, 18), 18);
            let upper = i32x4_shr(i32x4_sub(sum, lower), 14);
            let (to_lower, to_upper) = (out.cast::<v128>(), out.add(4).cast::<v128>());
            match MODE {
                0 => {
                    v128_store(to_lower, lower);
                    v128_store(to_upper, upper);
                }
                1 => {
                    v128_store(to_lower, i32x4_add(v128_load(to_lower), lower));
                    v128_store(to_upper, i32x4_add(v128_load(to_upper), upper));
                }
                _ => {
                    v128_store(to_lower, i32x4_sub(v128_load(to_lower), lower));
                    v128_store(to_upper, i32x4_sub(v128_load(to_upper), upper));
                }
            }
            w = w.add(step);
            out = out.add(8);
        }
    }
}

/// Two bits a weight into pairs: P vectors from P / 4.
///
/// # Safety
/// `packed` has 4 P bytes, `pairs` room for 8 P numbers.
#[inline(always)]
unsafe fn expand<const P: usize>(packed: *const u8, pairs: *mut i16) {
    let top = i16x8_splat(0xc000_u16 as i16);
    // SAFETY: the caller's promise.
    unsafe {
        for quad in 0..P / 4 {
            let v = v128_load(packed.add(16 * quad).cast());
            let to = pairs.add(32 * quad);
            unroll!(t in 4, {
                let t32 = t as u32;
                let upper = v128_and(i16x8_shl(v, 6 - 2 * t32), top);
                let lower = i16x8_shr(i16x8_shl(v, 14 - 2 * t32), 14);
                v128_store(to.add(8 * t).cast(), i16x8_add(lower, upper));
            });
        }
    }
}

/// Pairs, eight per vector, into two bits a weight.
fn pack_pairs(pairs: &[i16]) -> Result<Vec<u8>> {
    let mut packed = try_vec(pairs.len() / 2, 0u8)?;
    for (quad, to) in pairs.chunks_exact(32).zip(packed.chunks_exact_mut(16)) {
        for (t, vector) in quad.chunks_exact(8).enumerate() {
            for (lane, &pair) in vector.iter().enumerate() {
                let lower = (pair << 2) >> 2;
                let upper = (pair - lower) >> 14;
                to[2 * lane] |= ((lower & 3) as u8) << (2 * t);
                to[2 * lane + 1] |= ((upper & 3) as u8) << (2 * t);
            }
        }
    }
    Ok(packed)
}

/// Refuse codes other than -1, 0 and 1.
pub fn check_codes(codes: &[i8]) -> Result<()> {
    let bad = codes.iter().find(|&&code| !(-1..=1).contains(&code));
    require!(bad.is_none(), Parameter, "codes hold {}: expected -1, 0 or 1", bad.copied().unwrap_or(0));
    Ok(())
}

/// The definition of `multiply`: out [N] = codes [N, K] x.
pub fn multiply_scalar(x: &[i16], codes: &[i8], out: &mut [i32]) {
    for (sum, row) in out.iter_mut().zip(codes.chunks_exact(x.len().max(1))) {
        *sum = row.iter().zip(x).map(|(&w, &a)| i32::from(w) * i32::from(a)).sum();
    }
}

/// `pack_ternary` of rows [rows, K]: two bits a code, the code is q + 1, least significant first; padding is code 1.
pub fn pack(q: &[i8], columns: usize, packed: &mut [u8]) -> Result<()> {
    check_codes(q)?;
    let width = columns.div_ceil(4);
    for (row, to) in q.chunks_exact(columns.max(1)).zip(packed.chunks_exact_mut(width.max(1))) {
        to.fill(0b0101_0101);
        for (k, &code) in row.iter().enumerate() {
            let shift = 2 * (k & 3);
            to[k >> 2] = to[k >> 2] & !(3 << shift) | ((code + 1) as u8) << shift;
        }
    }
    Ok(())
}

/// The inverse of `pack`.
pub fn unpack(packed: &[u8], columns: usize, q: &mut [i8]) -> Result<()> {
    let width = columns.div_ceil(4);
    for (from, row) in packed.chunks_exact(width.max(1)).zip(q.chunks_exact_mut(columns.max(1))) {
        for k in 0..4 * width {
            let code = from[k >> 2] >> (2 * (k & 3)) & 3;
            require!(code != 3, Format, "packed weights hold code 3 at position {k}: expected 0, 1 or 2");
            if k < columns {
                row[k] = code as i8 - 1;
            } else {
                require!(code == 1, Format, "padding holds code {code} at position {k}: expected 1, a zero weight");
            }
        }
    }
    Ok(())
}

/// Five trits a byte, the first weight the least significant digit, q + 1 each; padding digits are 1.
pub fn unpack_base3(packed: &[u8], q: &mut [i8]) -> Result<()> {
    require!(packed.len() == q.len().div_ceil(5), Format, "{} bytes for {} trits", packed.len(), q.len());
    for (i, &byte) in packed.iter().enumerate() {
        require!(byte < 243, Format, "byte {i} is {byte}: five trits end at 242");
        let mut rest = byte;
        for k in 5 * i..5 * i + 5 {
            let digit = rest % 3;
            rest /= 3;
            match q.get_mut(k) {
                Some(code) => *code = digit as i8 - 1,
                None => require!(digit == 1, Format, "padding trit {k} is {digit}: expected 1, a zero weight"),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn painted(length: usize, mul: usize, modulus: usize, sub: i32) -> Vec<i32> {
        (0..length).map(|i| ((i * mul + i / 7) % modulus) as i32 - sub).collect()
    }

    #[test]
    fn kernels_equal_scalar() {
        for (rows, columns) in
            [(1, 1), (4, 16), (8, 16), (16, 16), (43, 16), (16, 43), (5, 64), (64, 64), (9, 171), (8, 80)]
        {
            let codes: Vec<i8> = painted(3 * rows * columns, 5, 3, 1).iter().map(|&v| v as i8).collect();
            let mut x: Vec<i16> = painted(columns, 97, 255, 127).iter().map(|&v| v as i16).collect();
            for extreme in [false, true] {
                if extreme {
                    x.fill(127);
                }
                let padded: Vec<i16> = x.iter().copied().chain(vec![0; 16]).collect();
                for packed in [false, true] {
                    let m = TernaryMatrices::new(&codes, 3, rows, columns, packed).unwrap();
                    let stride = m.padded_rows() + 8;
                    let mut out = vec![7; 4 * stride];
                    let padded = &padded[..round_up(columns, 16).min(padded.len())];
                    let padded: Vec<i16> = padded.iter().copied().chain(vec![0; 16]).collect();
                    let each: Vec<i16> = (0..3).flat_map(|_| padded.iter().copied()).collect();
                    let mut all = vec![5; 3 * stride];
                    m.multiply_each(3, &each, padded.len(), &mut all, stride);
                    for matrix in 0..3 {
                        let mut expected = vec![0; rows];
                        multiply_scalar(&x, &codes[matrix * rows * columns..][..rows * columns], &mut expected);
                        assert_eq!(&all[matrix * stride..][..rows], expected);
                    }
                    m.multiply(
                        &padded,
                        &[(2, 0, Into::Store), (1, 1, Into::Add), (0, 2, Into::Subtract)],
                        &mut out,
                        stride,
                    );
                    for (matrix, row, base, sign) in [(2, 0, 0, 1), (1, 1, 7, 1), (0, 2, 7, -1)] {
                        let mut expected = vec![0; rows];
                        multiply_scalar(&x, &codes[matrix * rows * columns..][..rows * columns], &mut expected);
                        let expected: Vec<i32> = expected.iter().map(|v| base + sign * v).collect();
                        assert_eq!(&out[row * stride..][..rows], expected, "{rows} x {columns}, packed {packed}");
                    }
                    assert!(out[3 * stride..].iter().all(|&v| v == 7));
                }
            }
        }
    }

    #[test]
    fn extreme_sums_fit_their_lanes() {
        for sign in [-1i8, 1] {
            for other in [-1i8, 1] {
                let codes: Vec<i8> = (0..8 * 64).map(|i| if i / 64 < 4 { sign } else { other }).collect();
                let m = TernaryMatrices::new(&codes, 1, 8, 64, false).unwrap();
                let mut out = vec![0; 8];
                m.multiply(&[127; 64], &[(0, 0, Into::Store)], &mut out, 8);
                assert_eq!(out[..4], [8128 * i32::from(sign); 4]);
                assert_eq!(out[4..], [8128 * i32::from(other); 4]);
            }
        }
    }

    #[test]
    fn packings_round_trip_and_refuse() {
        for columns in 1..20 {
            let q: Vec<i8> = painted(3 * columns, 2, 3, 1).iter().map(|&v| v as i8).collect();
            let mut packed = vec![0; 3 * columns.div_ceil(4)];
            pack(&q, columns, &mut packed).unwrap();
            let mut back = vec![9; q.len()];
            unpack(&packed, columns, &mut back).unwrap();
            assert_eq!(q, back);
        }
        let mut packed = [0; 2];
        pack(&[1, 0, -1, -1, 1], 5, &mut packed).unwrap();
        assert_eq!(packed, [6, 86]);
        assert!(unpack(&[6, 87], 5, &mut [0; 5]).is_err(), "code 3");
        assert!(unpack(&[6, 82], 5, &mut [0; 5]).is_err(), "padding");
        assert!(pack(&[2], 1, &mut [0]).is_err());
        let mut q = [9; 7];
        unpack_base3(&[242, 121], &mut q).unwrap();
        assert_eq!(q, [1, 1, 1, 1, 1, 0, 0]);
        assert!(unpack_base3(&[243, 121], &mut q).is_err() && unpack_base3(&[242, 120 + 9], &mut q).is_err());
        assert!(unpack_base3(&[242], &mut q).is_err());
    }
}
