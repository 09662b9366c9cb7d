//! RMS normalisation (SPEC.md, *rms_norm*).
//!
//! ```text
//! y = (x * (1 / sqrt(hsum(x * x) / f32(C) + 1e-6))) * weight          x [C], weight [C]
//! ```

use crate::arithmetic::{hsum_in_place, hsum_squares};
use crate::simd::*;

/// Normalise one token; x, weight, y and scratch have C numbers.
pub fn rms_norm(x: &[f32], weight: &[f32], y: &mut [f32], scratch: &mut [f32]) {
    let inverse = inverse_root(hsum_squares(x, scratch), x.len());
    let splat = f32x4_splat(inverse);
    let body = x.len() & !15;
    for ((x, w), y) in x.chunks_exact(16).zip(weight.chunks_exact(16)).zip(y.chunks_exact_mut(16)) {
        // SAFETY: each is sixteen numbers.
        unsafe {
            unroll!(i in 4, {
                let scaled = f32x4_mul(v128_load(x.as_ptr().add(4 * i).cast()), splat);
                let value = f32x4_mul(scaled, v128_load(w.as_ptr().add(4 * i).cast()));
                v128_store(y.as_mut_ptr().add(4 * i).cast(), value);
            });
        }
    }
    for i in body..x.len() {
        y[i] = (x[i] * inverse) * weight[i];
    }
}

fn inverse_root(sum_of_squares: f32, features: usize) -> f32 {
    1.0 / (sum_of_squares / features as f32 + 1e-6).sqrt()
}

/// The same, one number at a time.
pub fn rms_norm_scalar(x: &[f32], weight: &[f32], y: &mut [f32]) {
    let mut squares: Vec<f32> = x.iter().map(|v| v * v).collect();
    let inverse = inverse_root(hsum_in_place(&mut squares), x.len());
    for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
        *y = (x * inverse) * w;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_equal_scalar() {
        for c in [1, 3, 4, 16, 24, 512] {
            let x: Vec<f32> = (0..c).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.013).collect();
            let weight: Vec<f32> = (0..c).map(|i| 0.8 + (i % 5) as f32 * 0.1).collect();
            let (mut a, mut b) = (vec![0.0; c], vec![0.0; c]);
            rms_norm(&x, &weight, &mut a, &mut vec![0.0; c]);
            rms_norm_scalar(&x, &weight, &mut b);
            assert_eq!(a, b);
        }
    }
}
