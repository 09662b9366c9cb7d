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
use crate::products::{Into, Places, Plan, for_chunk};
use crate::simd::*;

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

    /// Products of x with the matrices; as `TernaryMatrices::multiply`, x any i16.
    pub fn multiply(&self, products: &Plan, x: &[i16], out: &mut [i32], places: &Places) {
        let (step, matrix, count) = (self.pairs * 8, self.groups * self.pairs * 8, self.groups);
        let matrices = self.data.len() / matrix.max(1);
        places.check(products, x.len(), self.pairs, out.len(), self.padded_rows(), matrices);
        let (x_column, out_column) = (places.x_column, places.out_column);
        let mut at = 0;
        while at < self.pairs {
            let length = (self.pairs - at).min(CHUNK);
            for product in products.iter() {
                let into = if product.into == Into::Store && at > 0 { Into::Add } else { product.into };
                let mut column = 0;
                while column < places.columns {
                    // SAFETY: the check; pairs are a multiple of 8, so `length` is 8, 16, 24 or 32.
                    unsafe {
                        let w = self.data.as_ptr().add(product.matrix * matrix + at * 8);
                        let x = x.as_ptr().add(column * x_column + product.component * places.x_stride + 2 * at);
                        let out = out.as_mut_ptr().add(column * out_column + product.row * places.out_stride);
                        match places.columns - column {
                            1 => {
                                for_chunk!(groups, 1, length, into, (w, step, count, x, x_column, out, out_column));
                                column += 1;
                            }
                            2 | 3 => {
                                for_chunk!(groups, 2, length, into, (w, step, count, x, x_column, out, out_column));
                                column += 2;
                            }
                            _ => {
                                for_chunk!(groups, 4, length, into, (w, step, count, x, x_column, out, out_column));
                                column += 4;
                            }
                        }
                    }
                }
            }
            at += length;
        }
    }
}

/// Groups of four rows times one chunk of N columns of x; MODE 0 stores, 1 adds, 2 subtracts.
///
/// # Safety
/// Group g has 8 P weights at `w + g * step`; a column of x has 2 P numbers, one of out 4 `groups` sums.
unsafe fn groups<const P: usize, const MODE: usize, const N: usize>(
    w: *const i8,
    step: usize,
    groups: usize,
    x: *const i16,
    x_column: usize,
    out: *mut i32,
    out_column: usize,
) {
    let mut splats = [[i32x4_splat(0); P]; N];
    // SAFETY: the caller's promise, for every access below.
    unsafe {
        unroll!(c upto 4 in N, {
            let x = x.add(c * x_column);
            unroll!(p upto 32 in P, { splats[c][p] = v128_load32_splat(x.add(2 * p).cast()); });
        });
        let (mut w, mut out) = (w, out);
        for _ in 0..groups {
            let mut weights = [i32x4_splat(0); P];
            let mut to = out;
            unroll!(c upto 4 in N, {
                if c == 0 {
                    unroll!(p upto 32 in P, { weights[p] = i16x8_load_extend_i8x8(w.add(8 * p)); });
                }
                let sum = dots(&weights, &splats[c]);
                if c > 0 {
                    to = to.add(out_column);
                }
                let place = to.cast::<v128>();
                match MODE {
                    0 => v128_store(place, sum),
                    1 => v128_store(place, i32x4_add(v128_load(place), sum)),
                    _ => v128_store(place, i32x4_sub(v128_load(place), sum)),
                }
            });
            w = w.add(step);
            out = out.add(4);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::products::Product;
    use crate::ternary::multiply_scalar;

    #[test]
    fn kernels_equal_scalar() {
        for (rows, columns) in [(1, 1), (4, 16), (16, 16), (43, 16), (64, 64), (9, 171), (3, 50)] {
            let codes: Vec<i8> = (0..2 * rows * columns).map(|i| ((i * 31 + i / 5) % 255) as i8).collect();
            let x: Vec<i16> = (0..columns).map(|i| ((i * 353) % 2033) as i16 - 1016).collect();
            let m = Int8Matrices::new(&codes, 2, rows, columns).unwrap();
            let (width, height) = (round_up(columns, 16), m.padded_rows());
            for count in [1, 2, 3, 4, 7] {
                let mut input = vec![0; count * width];
                for (c, column) in input.chunks_exact_mut(width).enumerate() {
                    column.iter_mut().zip(&x).for_each(|(to, v)| *to = v - 3 * c as i16);
                }
                let places = Places {
                    columns: count,
                    x_stride: width,
                    x_column: width,
                    out_stride: height,
                    out_column: 3 * height,
                };
                let product = |matrix, row, into| Product { matrix, component: 0, row, into };
                let list = Plan::new(vec![
                    product(1, 0, Into::Store),
                    product(0, 1, Into::Add),
                    product(1, 2, Into::Subtract),
                ]);
                let mut out = vec![3; count * 3 * height];
                m.multiply(&list, &input, &mut out, &places);
                for c in 0..count {
                    for (matrix, row, base, sign) in [(1, 0, 0, 1), (0, 1, 3, 1), (1, 2, 3, -1)] {
                        let mut expected = vec![0; rows];
                        let codes = &codes[matrix * rows * columns..][..rows * columns];
                        multiply_scalar(&input[c * width..][..columns], codes, &mut expected);
                        let expected: Vec<i32> = expected.iter().map(|v| base + sign * v).collect();
                        assert_eq!(&out[(3 * c + row) * height..][..rows], expected, "{rows} x {columns}");
                    }
                }
            }
        }
    }
}
