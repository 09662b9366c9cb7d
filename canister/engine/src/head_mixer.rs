//! Head mixer (SPEC.md, *head_mixer*): heads are mixed in groups of n by int8 weights, applied as x @ W.
//!
//! ```text
//! Cayley-Dickson   y_i = ((f32(sum_j S[i, j] A_j W_{i xor j}) * r) * scale) * beta
//! Hadamard         y_g = (((f32(sum_h H[g, h] A_h W_h) * r) * c_n) * scale) * beta,    A from x after transform * c_n
//! ```
//!
//! x [H, d], W int8 [n, d, d], scale [d], beta [d], y like x; one r per token and group.

use crate::activations::quantize;
use crate::arithmetic::reciprocal_root;
use crate::blocks::{gather, spread, stride};
use crate::cayley_dickson::{plan, signs};
use crate::error::{Result, require, try_vec};
use crate::hadamard::{self, HadamardMixer, check_size};
use crate::int8::Int8Matrices;
use crate::products::{Places, Plan};

/// What the n components of a group are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algebra {
    /// Real numbers (D = 1) up to sedenions (D = 16).
    CayleyDickson(usize),
    /// The Hadamard transform of size n.
    Hadamard(usize),
}

impl Algebra {
    /// n.
    pub fn size(self) -> usize {
        match self {
            Algebra::CayleyDickson(n) | Algebra::Hadamard(n) => n,
        }
    }

    /// The algebra of this name; n is used for Hadamard only.
    pub fn by_name(name: &str, n: usize) -> Result<Self> {
        Ok(match name {
            "dense" => Algebra::CayleyDickson(1),
            "complex" => Algebra::CayleyDickson(2),
            "quaternion" => Algebra::CayleyDickson(4),
            "octonion" => Algebra::CayleyDickson(8),
            "sedenion" => Algebra::CayleyDickson(16),
            "hadamard" => {
                check_size(n)?;
                Algebra::Hadamard(n)
            }
            other => {
                return Err(crate::error::error!(
                    Parameter,
                    "algebra {other:?}: expected dense, complex, quaternion, octonion, sedenion or hadamard"
                ));
            }
        })
    }
}

/// A mixer in kernel layout.
pub struct HeadMixer {
    algebra: Algebra,
    d: usize,
    kind: Kind,
}

enum Kind {
    CayleyDickson { weights: Int8Matrices, scale: Vec<f32>, beta: Vec<f32>, products: Plan },
    Hadamard(HadamardMixer),
}

/// Scratch of a mixer.
#[derive(Default)]
pub struct Scratch {
    x: Vec<f32>,
    y: Vec<f32>,
    codes: Vec<i16>,
    sums: Vec<i32>,
    hadamard: hadamard::Scratch,
}

fn check(codes: usize, n: usize, d: usize, scale: usize, beta: usize) -> Result<()> {
    require!(codes == n * d * d, Shape, "{codes} codes: expected {n} x {d} x {d}");
    require!(scale == d && beta == d, Shape, "{scale} scales and {beta} betas: expected d = {d} of each");
    Ok(())
}

impl HeadMixer {
    /// Lay out codes [n, d, d], scale [d] and beta [d].
    pub fn new(codes: &[i8], algebra: Algebra, d: usize, scale: &[f32], beta: &[f32]) -> Result<Self> {
        let n = algebra.size();
        check(codes.len(), n, d, scale.len(), beta.len())?;
        let mut transposed = try_vec(codes.len(), 0i8)?;
        for (from, to) in codes.chunks_exact(d * d).zip(transposed.chunks_exact_mut(d * d)) {
            for k in 0..d {
                for e in 0..d {
                    to[e * d + k] = from[k * d + e];
                }
            }
        }
        let kind = match algebra {
            Algebra::Hadamard(_) => Kind::Hadamard(HadamardMixer::new(&transposed, n, d, scale, beta)?),
            Algebra::CayleyDickson(_) => Kind::CayleyDickson {
                weights: Int8Matrices::new(&transposed, n, d, d)?,
                scale: scale.to_vec(),
                beta: beta.to_vec(),
                products: plan(n, false),
            },
        };
        Ok(Self { algebra, d, kind })
    }

    /// Bytes that the mixer takes in memory.
    pub fn bytes(&self) -> usize {
        match &self.kind {
            Kind::Hadamard(mixer) => mixer.bytes(),
            Kind::CayleyDickson { weights, scale, beta, .. } => weights.bytes() + 4 * (scale.len() + beta.len()),
        }
    }

    /// x and y: [H, d], H a multiple of n.
    #[inline(never)]
    pub fn apply(&self, x: &[f32], y: &mut [f32], scratch: &mut Scratch) -> Result<()> {
        let (n, d) = (self.algebra.size(), self.d);
        require!(
            x.len() == y.len() && x.len().is_multiple_of(n * d),
            Shape,
            "{} features: expected groups of {n} x {d}",
            x.len()
        );
        for (x, y) in x.chunks_exact(n * d).zip(y.chunks_exact_mut(n * d)) {
            match &self.kind {
                Kind::Hadamard(mixer) if d == stride(d) => mixer.apply(x, y, &mut scratch.hadamard)?,
                Kind::Hadamard(mixer) => {
                    scratch.x.resize(n * stride(d), 0.0);
                    scratch.y.resize(n * stride(d), 0.0);
                    spread(x, d, &mut scratch.x);
                    mixer.apply(&scratch.x, &mut scratch.y, &mut scratch.hadamard)?;
                    gather(&scratch.y, d, y);
                }
                Kind::CayleyDickson { .. } => self.mix_group(x, y, scratch)?,
            }
        }
        Ok(())
    }

    /// One group by all n^2 products.
    fn mix_group(&self, x: &[f32], y: &mut [f32], scratch: &mut Scratch) -> Result<()> {
        let Kind::CayleyDickson { weights, scale, beta, products } = &self.kind else { return Ok(()) };
        let (n, d, from, rows) = (self.algebra.size(), self.d, stride(self.d), weights.padded_rows());
        scratch.x.resize(n * from, 0.0);
        scratch.codes.resize(n * from, 0);
        scratch.sums.resize(n * rows, 0);
        spread(x, d, &mut scratch.x);
        let r = quantize(&scratch.x, &mut scratch.codes)?;
        let places = Places { columns: 1, x_stride: from, x_column: 0, out_stride: rows, out_column: 0 };
        weights.multiply(products, &scratch.codes, &mut scratch.sums, &places);
        for (sums, y) in scratch.sums.chunks_exact(rows).zip(y.chunks_exact_mut(d)) {
            for (y, (sum, (scale, beta))) in y.iter_mut().zip(sums.iter().zip(scale.iter().zip(beta))) {
                *y = ((*sum as f32 * r) * scale) * beta;
            }
        }
        Ok(())
    }
}

/// The mixer one number at a time: x and y [H, d].
pub fn mix_scalar(
    x: &[f32],
    codes: &[i8],
    algebra: Algebra,
    d: usize,
    scale: &[f32],
    beta: &[f32],
    y: &mut [f32],
) -> Result<()> {
    let n = algebra.size();
    check(codes.len(), n, d, scale.len(), beta.len())?;
    require!(x.len().is_multiple_of(n * d), Shape, "{} features: expected groups of {n} x {d}", x.len());
    let c = reciprocal_root(n);
    let table = signs(16);
    for (x, y) in x.chunks_exact(n * d).zip(y.chunks_exact_mut(n * d)) {
        let mut v = x.to_vec();
        if matches!(algebra, Algebra::Hadamard(_)) {
            for e in 0..d {
                let column: Vec<f32> = (0..n).map(|g| x[g * d + e]).collect();
                let mut transformed = try_vec(n, 0.0)?;
                crate::hadamard::transform_scalar(&column, &mut transformed);
                (0..n).for_each(|g| v[g * d + e] = transformed[g]);
            }
        }
        let mut a = try_vec(n * d, 0i16)?;
        let r = crate::activations::quantize_scalar(&v, &mut a)?;
        for i in 0..n {
            for e in 0..d {
                let product = |j: usize, m: usize| -> i32 {
                    (0..d).map(|k| i32::from(a[j * d + k]) * i32::from(codes[(m * d + k) * d + e])).sum()
                };
                let worth = match algebra {
                    Algebra::CayleyDickson(_) => {
                        (0..n).map(|j| i32::from(table[i][j]) * product(j, i ^ j)).sum::<i32>() as f32 * r
                    }
                    Algebra::Hadamard(_) => {
                        let sign = |h: usize| if (i & h).count_ones().is_multiple_of(2) { 1 } else { -1 };
                        ((0..n).map(|h| sign(h) * product(h, h)).sum::<i32>() as f32 * r) * c
                    }
                };
                y[i * d + e] = (worth * scale[e]) * beta[e];
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_equal_scalar() {
        let algebras = [2, 4, 8, 16].map(Algebra::CayleyDickson).into_iter().chain([2, 8, 32].map(Algebra::Hadamard));
        for algebra in algebras {
            for d in [2, 6, 16, 20] {
                let n = algebra.size();
                let codes: Vec<i8> = (0..n * d * d).map(|i| ((i * 37 + i / 9) % 255) as i8).collect();
                let scale: Vec<f32> = (0..d).map(|i| 0.003 + i as f32 * 1e-4).collect();
                let beta: Vec<f32> = (0..d).map(|i| 0.9 + i as f32 * 0.01).collect();
                let x: Vec<f32> = (0..2 * n * d).map(|i| ((i * 53 % 97) as f32 - 48.0) * 0.031).collect();
                let (mut y, mut expected) = (vec![0.0; x.len()], vec![0.0; x.len()]);
                let mixer = HeadMixer::new(&codes, algebra, d, &scale, &beta).unwrap();
                mixer.apply(&x, &mut y, &mut Scratch::default()).unwrap();
                mix_scalar(&x, &codes, algebra, d, &scale, &beta, &mut expected).unwrap();
                assert_eq!(y, expected, "{algebra:?}, d = {d}");
            }
        }
    }
}
