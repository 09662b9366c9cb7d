//! Cayley-Dickson linear layer (SPEC.md, *cayley_dickson*), D in {1, 2, 4, 8, 16}.
//!
//! ```text
//! a, r = quantise(x)                                        one r per token over all D*K features
//! Y_i  = (f32(sum_j S[i, j] A_j W_{i xor j}^T) * r) * beta       x [D, K], W ternary [D, N, K], beta [N], y [D, N]
//! ```
//!
//! The octonion needs 30 block products instead of 64 (`walsh/algebra.py`): with Ah = H8 A and Wh = H8 W across blocks,
//! U = H8 (Ah_r Wh_r^T) / 8 holds every product with the sign of its row's majority, and 22 corrections remain:
//!
//! ```text
//! Y_0 = 2 A_0 W_0 - U_0,          Y_i = U_i - 2 sum over the minority of row i of A_j W_{i xor j}
//! ```
//!
//! |Ah| <= 1016 and |Wh| <= 8, so the products stay in 16 x 8 bits and the result is the same integer.

use crate::activations::quantize;
use crate::blocks::stride;
use crate::error::{Result, require, try_vec};
use crate::int8::Int8Matrices;
use crate::products::{Into, Places, Plan, Product};
use crate::simd::*;
use crate::ternary::{TernaryMatrices, check_codes};

/// S of the algebra of dimension D <= 16: basis products e_j e_k = S[j xor k, j] e_{j xor k}.
pub fn signs(dimension: usize) -> [[i8; 16]; 16] {
    let mut table = [[0i8; 16]; 16];
    table[0][0] = 1;
    let mut half = 1;
    while half < dimension {
        let inner = table;
        let conjugate = |k: usize| if k == 0 { 1 } else { -1 };
        for i in 0..half {
            for j in 0..half {
                let k = i ^ j;
                // (a, b)(c, d) = (a c - d* b, d a + b c*), as `walsh.algebra` derives it.
                table[i][j] = inner[i][j];
                table[i][half + j] = -inner[i][k] * conjugate(k);
                table[half + i][j] = inner[i][k];
                table[half + i][half + j] = inner[i][j] * conjugate(k);
            }
        }
        half *= 2;
    }
    table
}

/// How the weights of a layer are kept: what it costs in memory against what it saves in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Octonion in 30 products, two bytes a weight: transformed, and pairs for the corrections.
    Fast,
    /// Octonion in 30 products, 1.25 bytes a weight: the corrections' weights in two bits.
    FastPacked,
    /// All products, one byte a weight.
    Pairs,
    /// All products, two bits a weight, expanded as they are used.
    Packed,
}

/// A layer in kernel layout.
pub struct CayleyDicksonLinear {
    dimension: usize,
    columns: usize,
    weights: TernaryMatrices,
    transformed: Option<Int8Matrices>,
    /// Products with untransformed weights.
    products: Plan,
    /// Products with transformed ones.
    transforms: Plan,
    /// [N] padded with zeros to a block's stride.
    beta: Vec<f32>,
}

/// Scratch of a layer; grows to what the largest layer needs.
#[derive(Default)]
pub struct Scratch {
    /// int8 codes of the input per column, blocks [D, stride(K)].
    codes: Vec<i16>,
    /// Their transform.
    transformed: Vec<i16>,
    /// Sums per column [2 D, N padded].
    sums: Vec<i32>,
    /// 1 / scale of every column.
    worth: Vec<f32>,
    expanded: Vec<i16>,
}

impl CayleyDicksonLinear {
    /// Lay out codes [D, N, K] and beta [N].
    pub fn new(
        codes: &[i8],
        dimension: usize,
        rows: usize,
        columns: usize,
        beta: &[f32],
        layout: Layout,
    ) -> Result<Self> {
        require!(
            matches!(dimension, 1 | 2 | 4 | 8 | 16),
            Shape,
            "codes have {dimension} components: expected one of 1, 2, 4, 8, 16"
        );
        require!(beta.len() == rows, Shape, "beta has {} numbers: expected N = {rows}", beta.len());
        check_codes(codes)?;
        let fast = dimension == 8 && matches!(layout, Layout::Fast | Layout::FastPacked);
        let packed = matches!(layout, Layout::Packed | Layout::FastPacked);
        let weights = TernaryMatrices::new(codes, dimension, rows, columns, packed)?;
        let transformed = if fast {
            let mut wh = try_vec(codes.len(), 0i8)?;
            let block = rows * columns;
            for at in 0..block {
                let mut column: [i8; 8] = std::array::from_fn(|r| codes[r * block + at]);
                for stage in [1, 2, 4] {
                    for low in (0..8).filter(|i| i & stage == 0) {
                        let (a, b) = (column[low], column[low | stage]);
                        (column[low], column[low | stage]) = (a + b, a - b);
                    }
                }
                for (r, value) in column.into_iter().enumerate() {
                    wh[r * block + at] = value;
                }
            }
            Some(Int8Matrices::new(&wh, 8, rows, columns)?)
        } else {
            None
        };
        let mut padded = try_vec(stride(rows), 0.0f32)?;
        padded[..rows].copy_from_slice(beta);
        let products = plan(dimension, fast);
        Ok(Self { dimension, columns, weights, transformed, products, transforms: Plan::one_each(8), beta: padded })
    }

    /// Bytes that the layer takes in memory.
    pub fn bytes(&self) -> usize {
        self.weights.bytes() + self.transformed.as_ref().map_or(0, Int8Matrices::bytes) + 4 * self.beta.len()
    }

    /// x: `columns` times padded blocks [D, stride(K)]; y: as many [D, stride(N)].
    pub fn apply(&self, x: &[f32], y: &mut [f32], columns: usize, scratch: &mut Scratch) -> Result<()> {
        let (d, from, to) = (self.dimension, stride(self.columns), self.beta.len());
        let rows = self.weights.padded_rows();
        let fits = x.len() == columns * d * from && y.len() == columns * d * to;
        require!(fits, Shape, "{} features for {columns} x {d} blocks of {from}", x.len());
        if columns == 0 || rows == 0 {
            return Ok(());
        }
        scratch.codes.resize(columns * d * from, 0);
        scratch.sums.resize(columns * 2 * d * rows, 0);
        scratch.worth.clear();
        for (x, codes) in x.chunks_exact(d * from).zip(scratch.codes.chunks_exact_mut(d * from)) {
            scratch.worth.push(quantize(x, codes)?);
        }
        let places = Places { columns, x_stride: from, x_column: d * from, out_stride: rows, out_column: 2 * d * rows };
        if let Some(transformed) = &self.transformed {
            self.multiply_transformed(transformed, scratch, &places);
        }
        self.weights.multiply(&self.products, &scratch.codes, &mut scratch.sums, &places, &mut scratch.expanded);
        let sums = scratch.sums.chunks_exact(2 * d * rows);
        for ((sums, &r), y) in sums.zip(&scratch.worth).zip(y.chunks_exact_mut(d * to)) {
            let splat = f32x4_splat(r);
            if self.transformed.is_some() {
                // SAFETY: sixteen rows of `rows` sums, y eight of `to` floats, beta `to`; `rows` is a multiple of 8.
                unsafe { combine(sums.as_ptr(), rows, splat, self.beta.as_ptr(), y.as_mut_ptr(), to) };
            } else {
                for (sums, y) in sums.chunks_exact(rows).zip(y.chunks_exact_mut(to)) {
                    finish(sums, splat, &self.beta, &mut y[..rows]);
                }
            }
            if rows < to {
                y.chunks_exact_mut(to).for_each(|y| y[rows..].fill(0.0));
            }
        }
        Ok(())
    }

    /// P into rows 0 to 7 of the sums; the corrections go to rows 8 to 15.
    fn multiply_transformed(&self, transformed: &Int8Matrices, scratch: &mut Scratch, places: &Places) {
        let from = places.x_stride;
        scratch.transformed.resize(places.columns * 8 * from, 0);
        for (codes, to) in scratch.codes.chunks_exact(8 * from).zip(scratch.transformed.chunks_exact_mut(8 * from)) {
            // SAFETY: both hold eight blocks of `from` codes, a multiple of 16.
            unsafe { transform8(codes.as_ptr(), to.as_mut_ptr(), from) };
        }
        transformed.multiply(&self.transforms, &scratch.transformed, &mut scratch.sums, places);
    }
}

/// Products with untransformed weights, matrix by matrix: all of them, or the octonion's 22 corrections, whose sums stand
/// behind the first eight rows. The first product of a row is stored, the others are added to it.
pub(crate) fn plan(dimension: usize, fast: bool) -> Plan {
    let table = signs(dimension);
    let plus = |i: usize, j: usize| table[i][j] > 0;
    let mut products: Vec<Product> = Vec::new();
    for matrix in 0..dimension {
        for component in 0..dimension {
            let i = matrix ^ component;
            let plus = plus(i, component);
            // Row 0 has its one plus in the minority, the others their three minuses.
            if fast && plus != (i == 0) {
                continue;
            }
            let (row, plus) = if fast { (8 + i, true) } else { (i, plus) };
            let stored = products.iter().any(|product| product.row == row);
            let into = match (stored, plus) {
                // W_0 comes first, with plus: it multiplies by a real number.
                (false, _) => Into::Store,
                (true, true) => Into::Add,
                (true, false) => Into::Subtract,
            };
            products.push(Product { matrix, component, row, into });
        }
    }
    Plan::new(products)
}

/// Butterflies of eight vectors.
macro_rules! butterflies8 {
    ($v:ident, $add:ident, $sub:ident) => {
        unroll!(stage in 3, {
            unroll!(pair in 4, {
                let low = (pair >> stage << (stage + 1)) | (pair & ((1 << stage) - 1));
                let high = low | 1 << stage;
                ($v[low], $v[high]) = ($add($v[low], $v[high]), $sub($v[low], $v[high]));
            });
        });
    };
}

/// H8 across eight blocks of i16.
///
/// # Safety
/// `x` and `y` hold eight blocks of `stride` numbers, a multiple of 8.
unsafe fn transform8(x: *const i16, y: *mut i16, stride: usize) {
    for at in (0..stride).step_by(8) {
        let mut v = [i32x4_splat(0); 8];
        // SAFETY: the caller's promise.
        unsafe {
            unroll!(j in 8, { v[j] = v128_load(x.add(j * stride + at).cast()); });
            butterflies8!(v, i16x8_add, i16x8_sub);
            unroll!(j in 8, { v128_store(y.add(j * stride + at).cast(), v[j]); });
        }
    }
}

/// From P (rows 0 to 7) and the corrections (rows 8 to 15) to y = (f32(product) * r) * beta.
///
/// # Safety
/// `sums` holds sixteen rows of `rows` numbers, a multiple of 4; y eight rows of `to` floats, beta `rows`.
unsafe fn combine(sums: *const i32, rows: usize, r: v128, beta: *const f32, y: *mut f32, to: usize) {
    let (mut sums, mut beta, mut y) = (sums, beta, y);
    for _ in 0..rows / 4 {
        let mut v = [i32x4_splat(0); 8];
        // SAFETY: the caller's promise.
        unsafe {
            let (mut from, mut out) = (sums, y);
            unroll!(j in 8, {
                v[j] = v128_load(from.cast());
                from = from.add(rows);
            });
            butterflies8!(v, i32x4_add, i32x4_sub);
            let factor = v128_load(beta.cast());
            unroll!(j in 8, {
                let u = i32x4_shr(v[j], 3);
                if j > 0 {
                    (from, out) = (from.add(rows), out.add(to));
                }
                let minority = v128_load(from.cast());
                let twice = i32x4_add(minority, minority);
                let product = if j == 0 { i32x4_sub(twice, u) } else { i32x4_sub(u, twice) };
                v128_store(out.cast(), f32x4_mul(f32x4_mul(f32x4_convert_i32x4(product), r), factor));
            });
            (sums, beta, y) = (sums.add(4), beta.add(4), y.add(4));
        }
    }
}

/// (f32(sum) * r) * beta.
fn finish(sums: &[i32], r: v128, beta: &[f32], y: &mut [f32]) {
    for ((sum, beta), y) in sums.chunks_exact(4).zip(beta.chunks_exact(4)).zip(y.chunks_exact_mut(4)) {
        // SAFETY: each is four numbers.
        unsafe {
            let value = f32x4_mul(f32x4_convert_i32x4(v128_load(sum.as_ptr().cast())), r);
            v128_store(y.as_mut_ptr().cast(), f32x4_mul(value, v128_load(beta.as_ptr().cast())));
        }
    }
}

/// The definition: x codes [D, K], w int8 [D, N, K], sums [D, N].
pub fn product_scalar(x: &[i16], codes: &[i8], d: usize, rows: usize, columns: usize, sums: &mut [i32]) {
    let table = signs(d);
    for i in 0..d {
        for n in 0..rows {
            let mut total = 0i32;
            for j in 0..d {
                let w = &codes[((i ^ j) * rows + n) * columns..][..columns];
                let dot: i32 = w.iter().zip(&x[j * columns..]).map(|(&w, &a)| i32::from(w) * i32::from(a)).sum();
                total += i32::from(table[i][j]) * dot;
            }
            sums[i * rows + n] = total;
        }
    }
}

/// The layer one number at a time: x [D*K] and y [D*N] plain.
pub fn linear_scalar(
    x: &[f32],
    codes: &[i8],
    d: usize,
    rows: usize,
    columns: usize,
    beta: &[f32],
    y: &mut [f32],
) -> Result<()> {
    check_codes(codes)?;
    let mut a = try_vec(x.len(), 0i16)?;
    let r = crate::activations::quantize_scalar(x, &mut a)?;
    let mut sums = try_vec(d * rows, 0i32)?;
    product_scalar(&a, codes, d, rows, columns, &mut sums);
    for (n, (value, sum)) in y.iter_mut().zip(&sums).enumerate() {
        *value = (*sum as f32 * r) * beta[n % rows];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::{gather, spread};

    #[test]
    fn octonion_table_is_the_pinned_one() {
        let rows = ["+-------", "+++-+--+", "+-++++--", "++-++-+-", "+---++++", "++-+-+-+", "+++--++-", "+-++--++"];
        let table = signs(8);
        for (i, row) in rows.iter().enumerate() {
            for (j, sign) in row.bytes().enumerate() {
                assert_eq!(table[i][j], if sign == b'+' { 1 } else { -1 }, "S[{i}, {j}]");
            }
        }
    }

    #[test]
    fn kernels_equal_scalar() {
        for d in [1, 2, 4, 8, 16] {
            for (rows, columns) in [(1, 1), (2, 3), (16, 16), (21, 8), (5, 43), (64, 64), (11, 171)] {
                let codes: Vec<i8> = (0..d * rows * columns).map(|i| ((i * 7 + i / 11) % 3) as i8 - 1).collect();
                let beta: Vec<f32> = (0..rows).map(|i| 0.11 + i as f32 * 0.013).collect();
                let x: Vec<f32> = (0..d * columns).map(|i| ((i * 89 % 211) as f32 - 105.0) * 0.017).collect();
                let mut expected = vec![0.0; d * rows];
                linear_scalar(&x, &codes, d, rows, columns, &beta, &mut expected).unwrap();
                for layout in [Layout::Fast, Layout::FastPacked, Layout::Pairs, Layout::Packed] {
                    let layer = CayleyDicksonLinear::new(&codes, d, rows, columns, &beta, layout).unwrap();
                    let mut blocks = vec![0.0; d * stride(columns)];
                    spread(&x, columns, &mut blocks);
                    let mut out = vec![9.0; d * stride(rows)];
                    layer.apply(&blocks, &mut out, 1, &mut Scratch::default()).unwrap();
                    let mut y = vec![0.0; d * rows];
                    gather(&out, rows, &mut y);
                    let (y, expected): (Vec<u32>, Vec<u32>) =
                        (y.iter().map(|v| v.to_bits()).collect(), expected.iter().map(|v| v.to_bits()).collect());
                    assert_eq!(y, expected, "D {d}, {rows} x {columns}, {layout:?}");
                }
            }
        }
    }
}
