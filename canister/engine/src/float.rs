//! Ordinary arithmetic in float32: models whose activations are not rounded (`activation_bits` null), as published ones.
//!
//! ```text
//! Cayley-Dickson   Y_i = beta * sum_j S[i, j] X_j W_{i xor j}^T                x [D, K], W [D, N, K], y [D, N]
//! Hadamard         v = transform(alpha * x);   Y_g = beta_g * transform(v_g W_g^T)
//! attention        o = sum_s softmax_s(q . k_s / sqrt(d)) v_s                 q, o [H, d]
//! ```
//!
//! Weights stay int8 codes and are widened as they are read; factors such as a row's scale come after the sum. Sums of
//! features run along k, four rows a vector, so that they depend on nothing but the row. Not strict: results agree with
//! other backends within the bounds of float32, not to the bit.

use crate::arithmetic::{exp, reciprocal_root};
use crate::cayley_dickson::signs;
use crate::error::{Result, checked_product, require, try_vec};
use crate::head_mixer::Algebra;
use crate::reader::{Reader, put_floats};
use crate::simd::*;

/// A stored weight.
pub trait Weight: Copy + Default {
    /// Four of them as float32.
    ///
    /// # Safety
    /// Four are at `p`.
    unsafe fn load4(p: *const Self) -> v128;
}

impl Weight for i8 {
    #[inline(always)]
    unsafe fn load4(p: *const Self) -> v128 {
        // SAFETY: the caller's promise.
        let codes = unsafe { v128_load32_zero(p.cast()) };
        f32x4_convert_i32x4(i32x4_extend_low_i16x8(i16x8_extend_low_i8x16(codes)))
    }
}

impl Weight for f32 {
    #[inline(always)]
    unsafe fn load4(p: *const Self) -> v128 {
        // SAFETY: the caller's promise.
        unsafe { v128_load(p.cast()) }
    }
}

/// A linear layer or a head mixer of one group.
pub struct FloatLinear<W> {
    algebra: Algebra,
    rows: usize,
    columns: usize,
    /// Per matrix, group of four rows and k: four weights.
    weights: Vec<W>,
    /// [n, K], Hadamard only; empty where it is 1.
    alpha: Vec<f32>,
    /// [N], Hadamard [n, N]; empty where it is 1.
    beta: Vec<f32>,
    signs: [[i8; 16]; 16],
}

impl<W: Weight> FloatLinear<W> {
    /// Lay out weights [n, N, K]; alpha and beta of their shapes, or empty for ones.
    pub fn new(
        weights: &[W],
        algebra: Algebra,
        rows: usize,
        columns: usize,
        alpha: &[f32],
        beta: &[f32],
    ) -> Result<Self> {
        let n = algebra.size();
        let size = checked_product(&[n, rows, columns])?;
        require!(weights.len() == size, Shape, "{} weights: expected {n} x {rows} x {columns}", weights.len());
        let (hadamard, groups) = (matches!(algebra, Algebra::Hadamard(_)), rows.div_ceil(4));
        let betas = if hadamard { n * rows } else { rows };
        require!(alpha.is_empty() || hadamard && alpha.len() == n * columns, Shape, "{} alphas", alpha.len());
        require!(beta.is_empty() || beta.len() == betas, Shape, "{} betas: expected {betas}", beta.len());
        let mut laid_out = try_vec(n * groups * columns * 4, W::default())?;
        for (at, row) in weights.chunks_exact(columns.max(1)).enumerate() {
            let (matrix, row_at) = (at / rows, at % rows);
            let start = (matrix * groups + row_at / 4) * columns * 4 + row_at % 4;
            row.iter().enumerate().for_each(|(k, &w)| laid_out[start + 4 * k] = w);
        }
        let (alpha, beta) = (alpha.to_vec(), beta.to_vec());
        Ok(Self { algebra, rows, columns, weights: laid_out, alpha, beta, signs: signs(16) })
    }

    /// n.
    pub fn size(&self) -> usize {
        self.algebra.size()
    }

    /// Bytes that the layer takes in memory.
    pub fn bytes(&self) -> usize {
        size_of::<W>() * self.weights.len() + 4 * (self.alpha.len() + self.beta.len())
    }

    /// One token: blocks of x start `from` apart, those of y `to`; what lies past N in a block of y becomes zero.
    pub fn apply(&self, x: &[f32], from: usize, y: &mut [f32], to: usize) -> Result<()> {
        self.apply_with(x, from, y, to, |_| {})
    }

    /// `apply`, `round` changing what the weights meet: x, or for Hadamard what alpha and the first transform made of it.
    pub fn apply_with(
        &self,
        x: &[f32],
        from: usize,
        y: &mut [f32],
        to: usize,
        mut round: impl FnMut(&mut [f32]),
    ) -> Result<()> {
        let n = self.algebra.size();
        let fits = from >= self.columns && to >= self.rows && x.len() >= n * from && y.len() >= n * to;
        require!(fits, Shape, "{} features for {n} blocks of {}", x.len(), self.columns);
        let mut sums = try_vec(n * self.padded(), 0.0)?;
        let k = self.columns;
        let mut v = try_vec(n * k, 0.0)?;
        for (g, v) in v.chunks_exact_mut(k.max(1)).enumerate() {
            v.copy_from_slice(&x[g * from..][..k]);
        }
        match self.algebra {
            Algebra::CayleyDickson(_) => {
                round(&mut v);
                for i in 0..n {
                    for j in 0..n {
                        let sum = &mut sums[i * self.padded()..][..self.padded()];
                        self.multiply(i ^ j, &v[j * k..][..k], f32::from(self.signs[i][j]), sum);
                    }
                }
            }
            Algebra::Hadamard(_) => {
                v.iter_mut().zip(&self.alpha).for_each(|(v, alpha)| *v *= alpha);
                transform_across(&mut v, n);
                round(&mut v);
                for g in 0..n {
                    let sum = &mut sums[g * self.padded()..][..self.padded()];
                    self.multiply(g, &v[g * k..][..k], 1.0, sum);
                }
                transform_across(&mut sums, n);
            }
        }
        for (g, y) in y.chunks_exact_mut(to.max(1)).enumerate().take(n) {
            y.fill(0.0);
            let start = if matches!(self.algebra, Algebra::Hadamard(_)) { g * self.rows } else { 0 };
            for (row, y) in y[..self.rows].iter_mut().enumerate() {
                *y = sums[g * self.padded() + row] * self.beta.get(start + row).copied().unwrap_or(1.0);
            }
        }
        Ok(())
    }

    fn padded(&self) -> usize {
        self.rows.next_multiple_of(4)
    }

    /// out += sign * W x for one matrix.
    fn multiply(&self, matrix: usize, x: &[f32], sign: f32, out: &mut [f32]) {
        let length = 4 * self.columns;
        let start = matrix * self.rows.div_ceil(4) * length;
        for (group, out) in out.chunks_exact_mut(4).enumerate() {
            let weights = &self.weights[start + group * length..][..length];
            let mut sum = f32x4_splat(0.0);
            for (x, w) in x.iter().zip(weights.chunks_exact(4)) {
                // SAFETY: four weights.
                sum = f32x4_add(sum, f32x4_mul(f32x4_splat(*x), unsafe { W::load4(w.as_ptr()) }));
            }
            for (out, sum) in out.iter_mut().zip(f32x4_lanes(sum)) {
                *out += sign * sum;
            }
        }
    }
}

/// Orthonormal transform across n blocks, n a power of two.
fn transform_across(v: &mut [f32], n: usize) {
    butterflies(v, n);
    if n > 1 {
        v.iter_mut().for_each(|v| *v *= reciprocal_root(n));
    }
}

/// Butterflies across n blocks.
pub fn butterflies(v: &mut [f32], n: usize) {
    let block = v.len() / n;
    let mut distance = 1;
    while distance < n && block > 0 {
        for pair in v.chunks_exact_mut(2 * distance * block) {
            let (low, high) = pair.split_at_mut(distance * block);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        distance *= 2;
    }
}

/// Head mixer of float weights [n, d, d], applied as x @ W: scale and beta [d] or empty.
pub fn mixer<W: Weight>(
    weights: &[W],
    algebra: Algebra,
    d: usize,
    scale: &[f32],
    beta: &[f32],
) -> Result<FloatLinear<W>> {
    let mut transposed = weights.to_vec();
    for (from, to) in weights.chunks_exact((d * d).max(1)).zip(transposed.chunks_exact_mut((d * d).max(1))) {
        for k in 0..d {
            for e in 0..d {
                to[e * d + k] = from[k * d + e];
            }
        }
    }
    let factor = |e: usize| scale.get(e).unwrap_or(&1.0) * beta.get(e).unwrap_or(&1.0);
    let factors: Vec<f32> = (0..d).map(factor).collect();
    let copies = if matches!(algebra, Algebra::Hadamard(_)) { algebra.size() } else { 1 };
    FloatLinear::new(&transposed, algebra, d, d, &[], &factors.repeat(copies))
}

/// Keys and values of one layer and one sequence in float32.
#[derive(Clone)]
pub struct FloatCache {
    heads: usize,
    head_dim: usize,
    capacity: usize,
    length: usize,
    /// [capacity, H, d]
    keys: Vec<f32>,
    values: Vec<f32>,
    e: Vec<f32>,
}

impl FloatCache {
    /// An empty cache for `capacity` tokens of H heads of d features.
    pub fn new(capacity: usize, heads: usize, head_dim: usize) -> Result<Self> {
        let size = checked_product(&[capacity, heads, head_dim])?;
        let (keys, values, e) = (try_vec(size, 0.0)?, try_vec(size, 0.0)?, try_vec(capacity, 0.0)?);
        Ok(Self { heads, head_dim, capacity, length: 0, keys, values, e })
    }

    /// (H, d).
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.heads, self.head_dim)
    }

    /// Tokens held.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Bytes that the arena takes.
    pub fn bytes(&self) -> usize {
        8 * self.keys.len()
    }

    /// Bytes of an arena before it is made.
    pub(crate) fn bytes_of(capacity: u64, heads: u64, head_dim: u64) -> u64 {
        8 * capacity * heads * head_dim
    }

    /// Add one token: k and v [H, d].
    pub fn append(&mut self, k: &[f32], v: &[f32]) -> Result<()> {
        let (t, size) = (self.length, self.heads * self.head_dim);
        require!(t < self.capacity, Capacity, "{} tokens in a cache of capacity {}", t + 1, self.capacity);
        require!(k.len() == size && v.len() == size, Shape, "{} features: expected {size}", k.len());
        self.keys[t * size..][..size].copy_from_slice(k);
        self.values[t * size..][..size].copy_from_slice(v);
        self.length = t + 1;
        Ok(())
    }

    /// Forget all but the first `length` tokens.
    pub fn truncate(&mut self, length: usize) -> Result<()> {
        require!(length <= self.length, Range, "length {length}: expected 0 .. {}", self.length);
        self.length = length;
        Ok(())
    }

    /// Attend with q [H, d] to positions 0 ..= `position`, which must be cached.
    pub fn attend(&mut self, q: &[f32], position: usize, o: &mut [f32]) -> Result<()> {
        let (d, size) = (self.head_dim, self.heads * self.head_dim);
        require!(position < self.length, Range, "position {position}: expected below the length {}", self.length);
        require!(q.len() == size && o.len() == size, Shape, "{} features: expected {size}", q.len());
        let c = 1.0 / (d as f32).sqrt();
        for (h, (q, o)) in q.chunks_exact(d).zip(o.chunks_exact_mut(d)).enumerate() {
            let e = &mut self.e[..=position];
            let mut most = f32::NEG_INFINITY;
            for (e, keys) in e.iter_mut().zip(self.keys.chunks_exact(size)) {
                *e = dot(q, &keys[h * d..][..d]) * c;
                most = if e.is_nan() || *e > most { *e } else { most };
            }
            let mut total = 0.0;
            o.fill(0.0);
            for (e, values) in e.iter_mut().zip(self.values.chunks_exact(size)) {
                let weight = exp(*e - most);
                total += weight;
                o.iter_mut().zip(&values[h * d..][..d]).for_each(|(o, v)| *o += weight * v);
            }
            o.iter_mut().for_each(|o| *o /= total);
        }
        Ok(())
    }

    /// Keys and values [length, H, d].
    pub(crate) fn held(&self) -> (&[f32], &[f32]) {
        let used = self.length * self.heads * self.head_dim;
        (&self.keys[..used], &self.values[..used])
    }

    /// Append what is cached to `out`; see `saved`.
    pub(crate) fn save(&self, out: &mut Vec<u8>) {
        let (keys, values) = self.held();
        put_floats(out, keys);
        put_floats(out, values);
    }

    /// Take back `length` tokens, which must fit.
    pub(crate) fn restore(&mut self, saved: &mut Reader<'_>, length: usize) -> Result<()> {
        require!(length <= self.capacity, Capacity, "{length} tokens in a cache of capacity {}", self.capacity);
        let used = length * self.heads * self.head_dim;
        saved.floats(&mut self.keys[..used])?;
        saved.floats(&mut self.values[..used])?;
        self.length = length;
        Ok(())
    }
}

/// Sum of products, four lanes.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sum = f32x4_splat(0.0);
    let (fours, others) = (a.chunks_exact(4).zip(b.chunks_exact(4)), a.len() & !3);
    for (a, b) in fours {
        // SAFETY: four floats each.
        sum = f32x4_add(sum, unsafe { f32x4_mul(v128_load(a.as_ptr().cast()), v128_load(b.as_ptr().cast())) });
    }
    let lanes = f32x4_lanes(sum);
    let tail: f32 = a[others..].iter().zip(&b[others..]).map(|(a, b)| a * b).sum();
    ((lanes[0] + lanes[2]) + (lanes[1] + lanes[3])) + tail
}

/// Sum of products with int8 codes.
pub fn dot_codes(a: &[f32], codes: &[i8]) -> f32 {
    let mut sum = f32x4_splat(0.0);
    let others = a.len() & !3;
    for (a, codes) in a.chunks_exact(4).zip(codes.chunks_exact(4)) {
        // SAFETY: four of each.
        sum = f32x4_add(sum, unsafe { f32x4_mul(v128_load(a.as_ptr().cast()), i8::load4(codes.as_ptr())) });
    }
    let lanes = f32x4_lanes(sum);
    let tail: f32 = a[others..].iter().zip(&codes[others..]).map(|(a, &code)| a * f32::from(code)).sum();
    ((lanes[0] + lanes[2]) + (lanes[1] + lanes[3])) + tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_equal_the_definition() {
        let algebras = [1, 2, 8, 16].map(Algebra::CayleyDickson).into_iter().chain([1, 4, 32].map(Algebra::Hadamard));
        for algebra in algebras {
            let (n, rows, columns) = (algebra.size(), 5, 3);
            let w: Vec<i8> = (0..n * rows * columns).map(|i| ((i * 7 + i / 11) % 3) as i8 - 1).collect();
            let x: Vec<f32> = (0..n * columns).map(|i| ((i * 37 % 17) as f32 - 8.0) * 0.25).collect();
            let layer = FloatLinear::new(&w, algebra, rows, columns, &[], &[]).unwrap();
            let wide: Vec<f32> = w.iter().map(|&w| f32::from(w)).collect();
            let same = FloatLinear::new(&wide, algebra, rows, columns, &[], &[]).unwrap();
            let (mut y, mut other) = (vec![9.0; n * 8], vec![9.0; n * 5]);
            layer.apply(&x, columns, &mut y, 8).unwrap();
            same.apply(&x, columns, &mut other, 5).unwrap();
            let table = signs(16);
            for i in 0..n {
                for row in 0..rows {
                    let product = |m: usize, j: usize| -> f64 {
                        (0..columns)
                            .map(|k| f64::from(w[(m * rows + row) * columns + k]) * f64::from(x[j * columns + k]))
                            .sum()
                    };
                    let sign = |a: usize, b: usize| if (a & b).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                    let expected: f64 = match algebra {
                        Algebra::CayleyDickson(_) => (0..n).map(|j| f64::from(table[i][j]) * product(i ^ j, j)).sum(),
                        Algebra::Hadamard(_) => (0..n)
                            .flat_map(|g| (0..n).map(move |h| (g, h)))
                            .map(|(g, h)| sign(i, g) * sign(g, h) * product(g, h) / n as f64)
                            .sum(),
                    };
                    let (found, twin) = (f64::from(y[i * 8 + row]), other[i * 5 + row]);
                    assert!((found - expected).abs() < 1e-4, "{algebra:?}: {found}, expected {expected}");
                    assert_eq!(y[i * 8 + row], twin);
                }
            }
            assert!(y.chunks_exact(8).all(|y| y[5..] == [0.0; 3]));
        }
    }

    #[test]
    fn attention_is_a_mean_where_scores_are_equal() {
        let mut cache = FloatCache::new(3, 1, 2).unwrap();
        for v in [[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]] {
            cache.append(&[0.0, 0.0], &v).unwrap();
        }
        let mut o = [9.0; 2];
        cache.attend(&[1.0, 2.0], 1, &mut o).unwrap();
        assert_eq!(o, [0.5, 0.5]);
        assert!(cache.append(&[0.0, 0.0], &[0.0, 0.0]).is_err() && cache.attend(&[1.0, 2.0], 3, &mut o).is_err());
    }
}
