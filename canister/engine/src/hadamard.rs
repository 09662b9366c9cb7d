//! Hadamard transform and linear layer (SPEC.md, *hadamard*), n a power of two.
//!
//! ```text
//! transform(x) = butterflies(x) * c_n,    strides 1, 2, 4, ..., (a + b, a - b),    c_n = f32(1 / sqrt(n))
//! u = alpha * x;   v = transform of u across the n blocks;   a, r = quantise(v)    one r per token
//! Y_g = ((f32(sum_h H[g, h] A_h W_h^T) * r) * c_n) * beta_g      x [n, K], W ternary [n, N, K], y [n, N]
//! ```
//!
//! Both transforms run in registers for n = 32, four columns at a time; the second runs on integers and is exact.

use crate::activations::{absmax_bits, round_codes, scales};
use crate::arithmetic::{reciprocal_root, round_up};
use crate::blocks::stride;
use crate::error::{Result, require, try_vec};
use crate::int8::Int8Matrices;
use crate::products::{Places, Plan};
use crate::simd::*;
use crate::ternary::{TernaryMatrices, check_codes, multiply_scalar};

/// Refuse a transform size that is no power of two.
pub fn check_size(n: usize) -> Result<()> {
    require!(n.is_power_of_two(), Shape, "transform size {n}: expected a power of two");
    Ok(())
}

/// Butterflies of 32 vectors, by add and subtract of the lanes' type.
macro_rules! butterflies32 {
    ($v:ident, $add:ident, $sub:ident) => {
        unroll!(stage in 5, {
            unroll!(pair in 16, {
                let low = (pair >> stage << (stage + 1)) | (pair & ((1 << stage) - 1));
                let high = low | 1 << stage;
                ($v[low], $v[high]) = ($add($v[low], $v[high]), $sub($v[low], $v[high]));
            });
        });
    };
}

/// Where column `at` of block g stands in a table of factors: for n = 32 columns come in tiles of four, so that the
/// kernel reads all blocks of a tile at constant distances.
fn factor_index(n: usize, stride: usize, g: usize, at: usize) -> usize {
    if n == 32 { (at / 4 * 32 + g) * 4 + at % 4 } else { g * stride + at }
}

/// Columns that the first transform computes of blocks of K: whole tiles, or whole blocks.
fn transformed(n: usize, columns: usize) -> usize {
    if n == 32 { round_up(columns, 4) } else { stride(columns) }
}

/// v = butterflies(alpha * x) * c across n padded blocks of K floats; returns the bits of the largest magnitude. alpha is
/// optional, its order that of `factor_index`.
pub fn transform_blocks(x: &[f32], alpha: Option<&[f32]>, n: usize, columns: usize, v: &mut [f32]) -> u32 {
    let (stride, columns) = (stride(columns), transformed(n, columns));
    assert!(x.len() >= n * stride && v.len() >= n * stride && alpha.is_none_or(|a| a.len() >= n * columns));
    let v = &mut v[..n * stride];
    if n == 32 {
        // SAFETY: x and v hold 32 blocks of `stride` floats, alpha the factors of the first `columns` of each.
        return unsafe {
            match alpha {
                Some(alpha) => transform32::<true>(x.as_ptr(), alpha.as_ptr(), columns, stride, v.as_mut_ptr()),
                None => transform32::<false>(x.as_ptr(), x.as_ptr(), columns, stride, v.as_mut_ptr()),
            }
        };
    }
    match alpha {
        Some(alpha) => v.iter_mut().zip(x).zip(alpha).for_each(|((v, x), a)| *v = a * x),
        None => v.copy_from_slice(&x[..n * stride]),
    }
    for_each_pair(v, n, stride, |a, b| (a + b, a - b));
    if n > 1 {
        v.iter_mut().for_each(|v| *v *= reciprocal_root(n));
    }
    absmax_bits(v)
}

/// `transform_blocks` for n = 32, four columns at a time.
///
/// # Safety
/// x and v hold 32 blocks of `stride` floats; alpha 32 `columns` factors in tiles, if `SCALED`, `columns` a multiple of 4.
unsafe fn transform32<const SCALED: bool>(
    x: *const f32,
    alpha: *const f32,
    columns: usize,
    stride: usize,
    v: *mut f32,
) -> u32 {
    let (c, magnitude) = (f32x4_splat(reciprocal_root(32)), i32x4_splat(0x7fff_ffff));
    let mut most = i32x4_splat(0);
    let (mut x, mut alpha, mut v) = (x, alpha, v);
    for _ in 0..columns / 4 {
        let mut b = [i32x4_splat(0); 32];
        // SAFETY: the caller's promise.
        unsafe {
            let (mut from, mut to) = (x, v);
            unroll!(j in 32, {
                if j > 0 {
                    from = from.add(stride);
                }
                b[j] = v128_load(from.cast());
                if SCALED {
                    b[j] = f32x4_mul(b[j], v128_load(alpha.add(4 * j).cast()));
                }
            });
            butterflies32!(b, f32x4_add, f32x4_sub);
            unroll!(j in 32, {
                let value = f32x4_mul(b[j], c);
                most = i32x4_max(most, v128_and(value, magnitude));
                if j > 0 {
                    to = to.add(stride);
                }
                v128_store(to.cast(), value);
            });
            (x, alpha, v) = (x.add(4), alpha.wrapping_add(128), v.add(4));
        }
    }
    // The padding, tile by tile: a bulk fill of so few bytes costs more than what it fills.
    for _ in columns / 4..stride / 4 {
        // SAFETY: the caller's promise.
        unsafe {
            let mut to = v;
            unroll!(j in 32, {
                if j > 0 {
                    to = to.add(stride);
                }
                v128_store(to.cast(), f32x4_splat(0.0));
            });
            v = v.add(4);
        }
    }
    f32x4_lanes(most).map(f32::to_bits).into_iter().max().unwrap_or(0)
}

/// Butterflies across n blocks of `stride` integers, in place and exact.
pub fn transform_integers(z: &mut [i32], n: usize, stride: usize) {
    assert!(z.len() >= n * stride);
    for_each_pair(&mut z[..n * stride], n, stride, |a, b| (a.wrapping_add(b), a.wrapping_sub(b)));
}

/// What becomes of the sums after the second transform: ((f32(sum) * r) * c) * factor [* more].
struct Worth<'a> {
    r: f32,
    /// [n, rows] in the order of `factor_index`.
    factor: &'a [f32],
    /// A second factor in the same order.
    more: Option<&'a [f32]>,
}

/// Second transform of z [n, rows] and its worth into y [n, to]; what lies past the rows becomes zero.
fn finish(z: &mut [i32], n: usize, rows: usize, worth: &Worth<'_>, y: &mut [f32], to: usize) {
    assert!(
        z.len() >= n * rows
            && y.len() >= n * to
            && worth.factor.len() >= n * rows
            && rows <= to
            && rows.is_multiple_of(4)
    );
    assert!(worth.more.is_none_or(|more| more.len() >= n * rows));
    let c = reciprocal_root(n);
    if n == 32 {
        // SAFETY: the assertions.
        unsafe {
            match worth.more {
                Some(more) => finish32::<true>(z.as_ptr(), rows, worth, more.as_ptr(), y.as_mut_ptr(), to),
                None => finish32::<false>(z.as_ptr(), rows, worth, worth.factor.as_ptr(), y.as_mut_ptr(), to),
            }
        }
    } else {
        transform_integers(z, n, rows);
        for g in 0..n {
            for at in 0..rows {
                let index = factor_index(n, rows, g, at);
                let value = ((z[g * rows + at] as f32 * worth.r) * c) * worth.factor[index];
                y[g * to + at] = worth.more.map_or(value, |more| value * more[index]);
            }
        }
    }
    if rows < to {
        y.chunks_exact_mut(to).take(n).for_each(|y| y[rows..].fill(0.0));
    }
}

/// `finish` for n = 32.
///
/// # Safety
/// z has 32 rows of `rows` sums (a multiple of 4), y 32 of `to` floats; the factors are in tiles.
unsafe fn finish32<const MORE: bool>(
    z: *const i32,
    rows: usize,
    worth: &Worth<'_>,
    more: *const f32,
    y: *mut f32,
    to: usize,
) {
    let (r, c) = (f32x4_splat(worth.r), f32x4_splat(reciprocal_root(32)));
    let (mut z, mut y, mut factor, mut more) = (z, y, worth.factor.as_ptr(), more);
    for _ in 0..rows / 4 {
        let mut b = [i32x4_splat(0); 32];
        // SAFETY: the caller's promise.
        unsafe {
            let (mut from, mut out) = (z, y);
            unroll!(j in 32, {
                if j > 0 {
                    from = from.add(rows);
                }
                b[j] = v128_load(from.cast());
            });
            butterflies32!(b, i32x4_add, i32x4_sub);
            unroll!(j in 32, {
                let value = f32x4_mul(f32x4_mul(f32x4_convert_i32x4(b[j]), r), c);
                let mut value = f32x4_mul(value, v128_load(factor.add(4 * j).cast()));
                if MORE {
                    value = f32x4_mul(value, v128_load(more.add(4 * j).cast()));
                }
                if j > 0 {
                    out = out.add(to);
                }
                v128_store(out.cast(), value);
            });
            (z, y, factor, more) = (z.add(4), y.add(4), factor.add(128), more.wrapping_add(128));
        }
    }
}

/// Butterflies across n blocks, stage by stage in memory.
fn for_each_pair<T: Copy>(v: &mut [T], n: usize, stride: usize, butterfly: impl Fn(T, T) -> (T, T)) {
    let mut distance = 1;
    while distance < n {
        for pair in v.chunks_exact_mut(2 * distance * stride) {
            let (low, high) = pair.split_at_mut(distance * stride);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = butterfly(*a, *b);
            }
        }
        distance *= 2;
    }
}

/// A layer in kernel layout.
pub struct HadamardLinear {
    n: usize,
    columns: usize,
    weights: TernaryMatrices,
    products: Plan,
    /// [n, `transformed` K] in the order of `factor_index`, zeros in the padding.
    alpha: Vec<f32>,
    /// [n, N rounded up to 8], likewise.
    beta: Vec<f32>,
}

/// Scratch of a layer; grows to what the largest layer needs.
#[derive(Default)]
pub struct Scratch {
    v: Vec<f32>,
    /// Per column.
    codes: Vec<i16>,
    sums: Vec<i32>,
    worth: Vec<f32>,
    expanded: Vec<i16>,
}

/// Factors [n, K] padded with zeros to [n, `padded`] and in the order of `factor_index`.
fn arrange(values: &[f32], n: usize, columns: usize, padded: usize) -> Result<Vec<f32>> {
    require!(values.len() == n * columns, Shape, "{} factors: expected {n} x {columns}", values.len());
    let mut arranged = try_vec(n * padded, 0.0)?;
    for g in 0..n {
        for at in 0..columns {
            arranged[factor_index(n, padded, g, at)] = values[g * columns + at];
        }
    }
    Ok(arranged)
}

impl HadamardLinear {
    /// Lay out codes [n, N, K], alpha [n, K] and beta [n, N].
    pub fn new(
        codes: &[i8],
        n: usize,
        rows: usize,
        columns: usize,
        alpha: &[f32],
        beta: &[f32],
        packed: bool,
    ) -> Result<Self> {
        check_size(n)?;
        let weights = TernaryMatrices::new(codes, n, rows, columns, packed)?;
        let products = Plan::one_each(n);
        let alpha = arrange(alpha, n, columns, transformed(n, columns))?;
        let beta = arrange(beta, n, rows, weights.padded_rows())?;
        Ok(Self { n, columns, weights, products, alpha, beta })
    }

    /// Bytes that the layer takes in memory.
    pub fn bytes(&self) -> usize {
        self.weights.bytes() + 4 * (self.alpha.len() + self.beta.len())
    }

    /// Bytes that a layer of this size takes besides its weights.
    pub fn bytes_of_factors(n: usize, rows: usize, columns: usize) -> usize {
        4 * n * (transformed(n, columns) + round_up(rows, 8))
    }

    /// x: `columns` times padded blocks [n, stride(K)]; y: as many [n, stride(N)].
    pub fn apply(&self, x: &[f32], y: &mut [f32], columns: usize, scratch: &mut Scratch) -> Result<()> {
        let (n, from, rows) = (self.n, stride(self.columns), self.weights.padded_rows());
        let to = stride(self.weights.rows());
        let fits = x.len() == columns * n * from && y.len() == columns * n * to;
        require!(fits, Shape, "{} features for {columns} x {n} blocks of {from}", x.len());
        if columns == 0 || rows == 0 {
            return Ok(());
        }
        scratch.v.resize(n * from, 0.0);
        scratch.codes.resize(columns * n * from, 0);
        scratch.sums.resize(columns * n * rows, 0);
        scratch.worth.clear();
        for (x, codes) in x.chunks_exact(n * from).zip(scratch.codes.chunks_exact_mut(n * from)) {
            let (s, r) = scales(transform_blocks(x, Some(&self.alpha), n, self.columns, &mut scratch.v))?;
            round_codes(&scratch.v, s, codes);
            scratch.worth.push(r);
        }
        let places = Places { columns, x_stride: from, x_column: n * from, out_stride: rows, out_column: n * rows };
        let (codes, sums) = (&scratch.codes, &mut scratch.sums);
        self.weights.multiply_each(&self.products, codes, sums, &places, &mut scratch.expanded);
        let sums = sums.chunks_exact_mut(n * rows);
        for ((sums, &r), y) in sums.zip(&scratch.worth).zip(y.chunks_exact_mut(n * to)) {
            finish(sums, n, rows, &Worth { r, factor: &self.beta, more: None }, y, to);
        }
        Ok(())
    }
}

/// A head mixer's Hadamard form, which is the same layer with int8 weights and no alpha.
pub struct HadamardMixer {
    n: usize,
    d: usize,
    weights: Int8Matrices,
    products: Plan,
    scale: Vec<f32>,
    beta: Vec<f32>,
}

impl HadamardMixer {
    /// Lay out transposed codes [n, d (output), d], scale [d] and beta [d].
    pub fn new(codes: &[i8], n: usize, d: usize, scale: &[f32], beta: &[f32]) -> Result<Self> {
        check_size(n)?;
        let weights = Int8Matrices::new(codes, n, d, d)?;
        let all = |values: &[f32]| arrange(&values.repeat(n), n, d, weights.padded_rows());
        let (scale, beta) = (all(scale)?, all(beta)?);
        Ok(Self { n, d, weights, products: Plan::one_each(n), scale, beta })
    }

    /// Bytes that the mixer takes in memory.
    pub fn bytes(&self) -> usize {
        self.weights.bytes() + 4 * (self.scale.len() + self.beta.len())
    }

    /// x and y: padded blocks [n, stride(d)].
    pub fn apply(&self, x: &[f32], y: &mut [f32], scratch: &mut Scratch) -> Result<()> {
        let (n, width, rows) = (self.n, stride(self.d), self.weights.padded_rows());
        require!(x.len() == n * width && y.len() == x.len(), Shape, "{} features for {n} blocks of {width}", x.len());
        scratch.v.resize(n * width, 0.0);
        scratch.codes.resize(n * width, 0);
        scratch.sums.resize(n * rows, 0);
        let (s, r) = scales(transform_blocks(x, None, n, self.d, &mut scratch.v))?;
        round_codes(&scratch.v, s, &mut scratch.codes);
        let places = Places { columns: 1, x_stride: width, x_column: 0, out_stride: rows, out_column: 0 };
        self.weights.multiply(&self.products, &scratch.codes, &mut scratch.sums, &places);
        finish(&mut scratch.sums, n, rows, &Worth { r, factor: &self.scale, more: Some(&self.beta) }, y, width);
        Ok(())
    }
}

/// The transform of one row x [n], one number at a time.
pub fn transform_scalar(x: &[f32], y: &mut [f32]) {
    y.copy_from_slice(x);
    for_each_pair(y, x.len(), 1, |a, b| (a + b, a - b));
    let c = reciprocal_root(x.len());
    y.iter_mut().for_each(|v| *v *= c);
}

/// The layer one number at a time: x [n*K] and y [n*N] plain.
#[allow(clippy::too_many_arguments)] // the arguments of the definition
pub fn linear_scalar(
    x: &[f32],
    codes: &[i8],
    n: usize,
    rows: usize,
    columns: usize,
    alpha: &[f32],
    beta: &[f32],
    y: &mut [f32],
) -> Result<()> {
    check_codes(codes)?;
    let c = reciprocal_root(n);
    let mut v = try_vec(x.len(), 0.0f32)?;
    v.iter_mut().zip(x.iter().zip(alpha)).for_each(|(v, (x, a))| *v = a * x);
    for_each_pair(&mut v, n, columns, |a, b| (a + b, a - b));
    v.iter_mut().for_each(|v| *v *= c);
    let mut a = try_vec(x.len(), 0i16)?;
    let r = crate::activations::quantize_scalar(&v, &mut a)?;
    let mut z = try_vec(n * rows, 0i32)?;
    for g in 0..n {
        let (w, a) = (&codes[g * rows * columns..][..rows * columns], &a[g * columns..][..columns]);
        multiply_scalar(a, w, &mut z[g * rows..][..rows]);
    }
    for_each_pair(&mut z, n, rows, |a, b| (a + b, a - b));
    for (y, (z, beta)) in y.iter_mut().zip(z.iter().zip(beta)) {
        *y = ((*z as f32 * r) * c) * beta;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::{gather, spread};

    #[test]
    fn kernels_equal_scalar() {
        for n in [1, 2, 4, 8, 16, 32, 64] {
            for (rows, columns) in [(1, 1), (2, 3), (16, 16), (43, 16), (16, 43)] {
                let codes: Vec<i8> = (0..n * rows * columns).map(|i| ((i * 7 + i / 11) % 3) as i8 - 1).collect();
                let alpha: Vec<f32> = (0..n * columns).map(|i| 0.9 + (i % 13) as f32 * 0.021).collect();
                let beta: Vec<f32> = (0..n * rows).map(|i| 0.11 + (i % 17) as f32 * 0.013).collect();
                let x: Vec<f32> = (0..n * columns).map(|i| ((i * 89 % 211) as f32 - 105.0) * 0.017).collect();
                let mut expected = vec![0.0; n * rows];
                linear_scalar(&x, &codes, n, rows, columns, &alpha, &beta, &mut expected).unwrap();
                for packed in [false, true] {
                    let layer = HadamardLinear::new(&codes, n, rows, columns, &alpha, &beta, packed).unwrap();
                    let mut blocks = vec![0.0; n * stride(columns)];
                    spread(&x, columns, &mut blocks);
                    let mut out = vec![9.0; n * stride(rows)];
                    layer.apply(&blocks, &mut out, 1, &mut Scratch::default()).unwrap();
                    let mut y = vec![0.0; n * rows];
                    gather(&out, rows, &mut y);
                    let (y, expected): (Vec<u32>, Vec<u32>) =
                        (y.iter().map(|v| v.to_bits()).collect(), expected.iter().map(|v| v.to_bits()).collect());
                    assert_eq!(y, expected, "n {n}, {rows} x {columns}, packed {packed}");
                }
            }
        }
    }

    #[test]
    fn transform_is_its_own_inverse_in_integers() {
        for n in [2, 8, 32, 64] {
            let z: Vec<i32> = (0..n * 8).map(|i| (i * 37 % 255) as i32 - 127).collect();
            let mut twice = z.clone();
            transform_integers(&mut twice, n, 8);
            transform_integers(&mut twice, n, 8);
            assert_eq!(twice, z.iter().map(|v| v * n as i32).collect::<Vec<_>>());
        }
    }

    #[test]
    fn transform_of_the_example() {
        let mut y = [0.0; 4];
        transform_scalar(&[1.0, 2.0, 3.0, 4.0], &mut y);
        assert_eq!(y, [5.0, -1.0, -2.0, 0.0]);
    }
}
