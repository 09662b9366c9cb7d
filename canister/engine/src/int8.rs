//! Small int8 matrices and exact products with i16 vectors: head mixers, and the transformed weights of the octonion.
//!
//! ```text
//! out_n = sum_k x_k w[n, k],      x i16, w int8, out i32
//! ```
//!
//! Layout as in `ternary`, one row per lane: group g of four rows, lane l is row 4 g + l, a vector (eight bytes, widened
//! as they are loaded) holds two values of k. Rows are padded to 8, K to 16.

use crate::arithmetic::round_up;
use crate::error::{Result, require, try_vec};
use crate::simd::*;
use crate::ternary::Into;

/// Pairs of k whose splats stay in locals.
const CHUNK: usize = 32;

/// `count` int8 matrices [N, K] of one size in kernel layout.
pub struct Int8Matrices {
    groups: usize,
    pairs: usize,
    data: Vec<i8>,
}

impl Int8Matrices {
    /// Lay out `codes` [count, N, K].
    pub fn new(codes: &[i8], count: usize, rows: usize, columns: usize) -> Result<Self> {
        require!(
            codes.len() == count * rows * columns,
            Shape,
            "{} codes for {count} x {rows} x {columns}",
            codes.len()
        );
        let (groups, pairs) = (2 * rows.div_ceil(8), round_up(columns, 16) / 2);
        let mut data = try_vec(count * groups * pairs * 8, 0i8)?;
        for m in 0..count {
            for n in 0..rows {
                let row = &codes[(m * rows + n) * columns..][..columns];
                let start = (m * groups + n / 4) * pairs * 8 + 2 * (n % 4);
                for (k, &code) in row.iter().enumerate() {
                    data[start + k / 2 * 8 + k % 2] = code;
                }
            }
        }
        Ok(Self { groups, pairs, data })
    }

    /// Bytes that the weights take in memory.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Length of an `out` row: N rounded up to 8.
    pub fn padded_rows(&self) -> usize {
        4 * self.groups
    }

    /// Multiply x by several of the matrices; as `TernaryMatrices::multiply`, x any i16.
    pub fn multiply(&self, x: &[i16], targets: &[(usize, usize, Into)], out: &mut [i32], out_stride: usize) {
        assert!(x.len() >= 2 * self.pairs && out_stride >= self.padded_rows());
        let (step, matrix_length) = (self.pairs * 8, self.groups * self.pairs * 8);
        for &(matrix, row, _) in targets {
            assert!(out.len() >= row * out_stride + self.padded_rows());
            assert!(self.data.len() >= (matrix + 1) * matrix_length);
        }
        let mut at = 0;
        while at < self.pairs {
            let length = (self.pairs - at).min(CHUNK);
            for &(matrix, row, into) in targets {
                // SAFETY: the assertions above; pairs are a multiple of 8, so `length` is 8, 16, 24 or 32.
                unsafe {
                    let w = self.data.as_ptr().add(matrix * matrix_length + at * 8);
                    let x = x.as_ptr().add(2 * at);
                    let out = out.as_mut_ptr().add(row * out_stride);
                    let call = match (length, if into == Into::Store && at > 0 { Into::Add } else { into }) {
                        (8, Into::Store) => groups::<8, 0>,
                        (8, Into::Add) => groups::<8, 1>,
                        (8, Into::Subtract) => groups::<8, 2>,
                        (16, Into::Store) => groups::<16, 0>,
                        (16, Into::Add) => groups::<16, 1>,
                        (16, Into::Subtract) => groups::<16, 2>,
                        (24, Into::Store) => groups::<24, 0>,
                        (24, Into::Add) => groups::<24, 1>,
                        (24, Into::Subtract) => groups::<24, 2>,
                        (_, Into::Store) => groups::<32, 0>,
                        (_, Into::Add) => groups::<32, 1>,
                        (_, Into::Subtract) => groups::<32, 2>,
                    };
                    call(w, step, x, out, self.groups);
                }
            }
            at += length;
        }
    }
}

impl Int8Matrices {
    /// out_g = W_g x_g for every matrix g: x [count, x_stride], out [count, out_stride].
    pub fn multiply_each(&self, count: usize, x: &[i16], x_stride: usize, out: &mut [i32], out_stride: usize) {
        let matrix_length = self.groups * self.pairs * 8;
        if self.pairs != 8 {
            for g in 0..count {
                self.multiply(&x[g * x_stride..], &[(g, g, Into::Store)], out, out_stride);
            }
            return;
        }
        assert!(x_stride >= 2 * self.pairs && x.len() >= count * x_stride && self.data.len() >= count * matrix_length);
        assert!(out_stride >= self.padded_rows() && out.len() >= count * out_stride);
        let (mut w, mut x, mut out) = (self.data.as_ptr(), x.as_ptr(), out.as_mut_ptr());
        for _ in 0..count {
            // SAFETY: the assertions.
            unsafe {
                groups::<8, 0>(w, 64, x, out, self.groups);
                w = w.add(matrix_length);
                x = x.add(x_stride);
                out = out.add(out_stride);
            }
        }
    }
}

/// Groups of four rows times one chunk of x; MODE 0 stores, 1 adds, 2 subtracts.
///
/// # Safety
/// Group g has 8 P weights at `w + g * step`; x has 2 P numbers; out has 4 `groups` sums.
unsafe fn groups<const P: usize, const MODE: usize>(
    w: *const i8,
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
            let mut sum = i32x4_dot_i16x8(i16x8_load_extend_i8x8(w), splats[0]);
            unroll!(p in P, {
                if p > 0 {
                    sum = i32x4_add(sum, i32x4_dot_i16x8(i16x8_load_extend_i8x8(w.add(8 * p)), splats[p]));
                }
            });
            let to = out.cast::<v128>();
            match MODE {
                0 => v128_store(to, sum),
                1 => v128_store(to, i32x4_add(v128_load(to), sum)),
                _ => v128_store(to, i32x4_sub(v128_load(to), sum)),
            }
            w = w.add(step);
            out = out.add(4);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ternary::multiply_scalar;

    #[test]
    fn kernels_equal_scalar() {
        for (rows, columns) in [(1, 1), (4, 16), (16, 16), (43, 16), (64, 64), (9, 171), (3, 50)] {
            let codes: Vec<i8> = (0..2 * rows * columns).map(|i| ((i * 31 + i / 5) % 255) as i8).collect();
            let x: Vec<i16> = (0..columns).map(|i| ((i * 353) % 2033) as i16 - 1016).collect();
            let padded: Vec<i16> = x.iter().copied().chain(vec![0; 16]).collect();
            let m = Int8Matrices::new(&codes, 2, rows, columns).unwrap();
            let stride = m.padded_rows();
            let mut out = vec![3; 3 * stride];
            m.multiply(&padded, &[(1, 0, Into::Store), (0, 1, Into::Add), (1, 2, Into::Subtract)], &mut out, stride);
            for (matrix, row, base, sign) in [(1, 0, 0, 1), (0, 1, 3, 1), (1, 2, 3, -1)] {
                let mut expected = vec![0; rows];
                multiply_scalar(&x, &codes[matrix * rows * columns..][..rows * columns], &mut expected);
                let expected: Vec<i32> = expected.iter().map(|v| base + sign * v).collect();
                assert_eq!(&out[row * stride..][..rows], expected, "{rows} x {columns}");
            }
        }
    }
}
