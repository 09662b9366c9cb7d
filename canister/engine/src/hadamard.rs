//! Hadamard transform and linear layer (SPEC.md, *hadamard*), n a power of two.
//!
//! ```text
//! transform(x) = butterflies(x) * c_n,    strides 1, 2, 4, ..., (a + b, a - b),    c_n = f32(1 / sqrt(n))
//! u = alpha * x;   v = transform of u across the n blocks;   a, r = quantise(v)    one r per token
//! Y_g = ((f32(sum_h H[g, h] A_h W_h^T) * r) * c_n) * beta_g      x [n, K], W ternary [n, N, K], y [n, N]
//! ```
//!
//! Both transforms run in registers for n = 32, four columns at a time; the second runs on integers and is exact.

use crate::activations::quantize;
use crate::arithmetic::reciprocal_root;
use crate::blocks::stride;
use crate::error::{Result, require, try_vec};
use crate::simd::*;
use crate::ternary::{Into, TernaryMatrices, check_codes, multiply_scalar};

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

/// v = butterflies(alpha * x) * c across n blocks of `stride` floats, a multiple of 4; alpha is optional.
pub fn transform_blocks(x: &[f32], alpha: Option<&[f32]>, n: usize, stride: usize, v: &mut [f32]) {
    assert!(x.len() >= n * stride && v.len() >= n * stride && alpha.is_none_or(|a| a.len() >= n * stride));
    let c = f32x4_splat(reciprocal_root(n));
    if n == 32 {
        for at in (0..stride).step_by(4) {
            let mut b = [i32x4_splat(0); 32];
            // SAFETY: j * stride + at + 4 <= n * stride, which all three have.
            unsafe {
                let (x, v) = (x.as_ptr().add(at), v.as_mut_ptr().add(at));
                unroll!(j in 32, { b[j] = v128_load(x.add(j * stride).cast()); });
                if let Some(alpha) = alpha {
                    let alpha = alpha.as_ptr().add(at);
                    unroll!(j in 32, { b[j] = f32x4_mul(b[j], v128_load(alpha.add(j * stride).cast())); });
                }
                butterflies32!(b, f32x4_add, f32x4_sub);
                unroll!(j in 32, { v128_store(v.add(j * stride).cast(), f32x4_mul(b[j], c)); });
            }
        }
        return;
    }
    let v = &mut v[..n * stride];
    match alpha {
        Some(alpha) => v.iter_mut().zip(x).zip(alpha).for_each(|((v, x), a)| *v = a * x),
        None => v.copy_from_slice(&x[..n * stride]),
    }
    for_each_pair(v, n, stride, |a, b| (a + b, a - b));
    if n > 1 {
        v.iter_mut().for_each(|v| *v *= reciprocal_root(n));
    }
}

/// Butterflies across n blocks of `stride` integers, in place and exact.
pub fn transform_integers(z: &mut [i32], n: usize, stride: usize) {
    assert!(z.len() >= n * stride && stride % 4 == 0);
    if n == 32 {
        for at in (0..stride).step_by(4) {
            let mut b = [i32x4_splat(0); 32];
            // SAFETY: j * stride + at + 4 <= n * stride.
            unsafe {
                let z = z.as_mut_ptr().add(at);
                unroll!(j in 32, { b[j] = v128_load(z.add(j * stride).cast()); });
                butterflies32!(b, i32x4_add, i32x4_sub);
                unroll!(j in 32, { v128_store(z.add(j * stride).cast(), b[j]); });
            }
        }
        return;
    }
    for_each_pair(&mut z[..n * stride], n, stride, |a, b| (a.wrapping_add(b), a.wrapping_sub(b)));
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
    /// [n, stride(K)], zeros in the padding.
    alpha: Vec<f32>,
    /// [n, stride(N)], zeros in the padding.
    beta: Vec<f32>,
}

/// Scratch of a layer; grows to what the largest layer needs.
#[derive(Default)]
pub struct Scratch {
    v: Vec<f32>,
    codes: Vec<i16>,
    sums: Vec<i32>,
}

fn pad(values: &[f32], n: usize, columns: usize) -> Result<Vec<f32>> {
    require!(values.len() == n * columns, Shape, "{} factors: expected {n} x {columns}", values.len());
    let mut padded = try_vec(n * stride(columns), 0.0)?;
    crate::blocks::spread(values, columns, &mut padded);
    Ok(padded)
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
        Ok(Self { n, columns, weights, alpha: pad(alpha, n, columns)?, beta: pad(beta, n, rows)? })
    }

    /// Bytes that the layer takes in memory.
    pub fn bytes(&self) -> usize {
        self.weights.bytes() + 4 * (self.alpha.len() + self.beta.len())
    }

    /// x: padded blocks [n, stride(K)]; y: padded blocks [n, stride(N)].
    pub fn apply(&self, x: &[f32], y: &mut [f32], scratch: &mut Scratch) -> Result<()> {
        let (n, from, rows) = (self.n, stride(self.columns), self.weights.padded_rows());
        let to = stride(self.weights.rows());
        require!(x.len() == n * from && y.len() == n * to, Shape, "{} features for {n} blocks of {from}", x.len());
        scratch.v.resize(n * from, 0.0);
        scratch.codes.resize(n * from, 0);
        scratch.sums.resize(n * rows, 0);
        transform_blocks(x, Some(&self.alpha), n, from, &mut scratch.v);
        let r = quantize(&scratch.v, &mut scratch.codes)?;
        for g in 0..n {
            let a = &scratch.codes[g * from..][..from];
            self.weights.multiply(a, &[(g, g, Into::Store)], &mut scratch.sums, rows);
        }
        transform_integers(&mut scratch.sums, n, rows);
        let c = reciprocal_root(n);
        for g in 0..n {
            let (sums, beta) = (&scratch.sums[g * rows..][..rows], &self.beta[g * to..][..to]);
            finish(sums, r, c, beta, &mut y[g * to..][..to]);
        }
        Ok(())
    }
}

/// ((f32(sum) * r) * c) * beta; what lies past the sums becomes zero.
fn finish(sums: &[i32], r: f32, c: f32, beta: &[f32], y: &mut [f32]) {
    let (body, tail) = y.split_at_mut(sums.len());
    let (r, c) = (f32x4_splat(r), f32x4_splat(c));
    for ((sum, beta), y) in sums.chunks_exact(4).zip(beta.chunks_exact(4)).zip(body.chunks_exact_mut(4)) {
        // SAFETY: each is four numbers.
        unsafe {
            let value = f32x4_mul(f32x4_mul(f32x4_convert_i32x4(v128_load(sum.as_ptr().cast())), r), c);
            v128_store(y.as_mut_ptr().cast(), f32x4_mul(value, v128_load(beta.as_ptr().cast())));
        }
    }
    tail.fill(0.0);
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
                    layer.apply(&blocks, &mut out, &mut Scratch::default()).unwrap();
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
