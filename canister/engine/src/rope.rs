//! Rotary position embedding (SPEC.md, *rope*), interleaved pairs.
//!
//! ```text
//! angle_i = f64(position) * inv_freq_i;    (x_2i, x_2i+1) -> (x_2i c - x_2i+1 s,  x_2i s + x_2i+1 c)
//! ```
//!
//! x [H, d], inv_freq [d/2]; every product is rounded. The angles of a position serve all heads and layers.

use crate::arithmetic::sincos;
use crate::error::{Result, require};
use crate::simd::*;

/// Cosines and signed sines of one position, one per feature.
#[derive(Clone, Default)]
pub struct Rotation {
    /// (c_0, c_0, c_1, c_1, ...)
    cosines: Vec<f32>,
    /// (-s_0, s_0, -s_1, s_1, ...): a - b and a + (-b) are the same operation.
    sines: Vec<f32>,
}

impl Rotation {
    /// Set the position.
    pub fn turn(&mut self, position: i64, inv_freq: &[f64]) -> Result<()> {
        require!(position >= 0, Range, "position {position}: expected 0 or more; use max(position, 0) for padding");
        self.cosines.clear();
        self.sines.clear();
        for frequency in inv_freq {
            let (s, c) = sincos(position as f64 * frequency)?;
            self.cosines.extend([c, c]);
            self.sines.extend([-s, s]);
        }
        Ok(())
    }

    /// Rotate every head of x [H, d] in place.
    pub fn apply(&self, x: &mut [f32]) {
        let d = self.cosines.len();
        if d == 0 || !d.is_multiple_of(4) {
            return self.apply_scalar(x);
        }
        for head in x.chunks_exact_mut(d) {
            for ((x, c), s) in
                head.chunks_exact_mut(4).zip(self.cosines.chunks_exact(4)).zip(self.sines.chunks_exact(4))
            {
                // SAFETY: each is four numbers.
                unsafe {
                    let v = v128_load(x.as_ptr().cast());
                    let turned = f32x4_mul(i32x4_shuffle::<1, 0, 3, 2>(v, v), v128_load(s.as_ptr().cast()));
                    let kept = f32x4_mul(v, v128_load(c.as_ptr().cast()));
                    v128_store(x.as_mut_ptr().cast(), f32x4_add(kept, turned));
                }
            }
        }
    }

    /// The same, one pair at a time.
    pub fn apply_scalar(&self, x: &mut [f32]) {
        for head in x.chunks_exact_mut(self.cosines.len().max(1)) {
            for (i, pair) in head.chunks_exact_mut(2).enumerate() {
                let (c, s) = (self.cosines[2 * i], self.sines[2 * i + 1]);
                (pair[0], pair[1]) = (pair[0] * c - pair[1] * s, pair[0] * s + pair[1] * c);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_equal_scalar() {
        for d in [2, 4, 6, 16, 64] {
            let inv_freq: Vec<f64> = (0..d / 2).map(|i| 10_000f64.powf(-2.0 * i as f64 / d as f64)).collect();
            let mut rotation = Rotation::default();
            for position in [0, 1, 77, 4095] {
                rotation.turn(position, &inv_freq).unwrap();
                let mut a: Vec<f32> = (0..3 * d).map(|i| (i as f32 - 7.0) * 0.31).collect();
                let mut b = a.clone();
                rotation.apply(&mut a);
                rotation.apply_scalar(&mut b);
                assert_eq!(a, b);
            }
            assert!(rotation.turn(-1, &inv_freq).is_err() && rotation.turn(200_000, &inv_freq).is_err());
        }
    }
}
