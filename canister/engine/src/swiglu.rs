//! Gated linear unit (SPEC.md, *swiglu*).
//!
//! ```text
//! h = (gate / (1 + exp(-gate))) * up
//! ```

use crate::arithmetic::{exp, exp4};
use crate::simd::*;

/// h into `gate`; both of one length.
pub fn swiglu(gate: &mut [f32], up: &[f32]) {
    let body = gate.len() & !3;
    let (one, zero) = (f32x4_splat(1.0), i32x4_splat(i32::MIN));
    for (g, u) in gate.chunks_exact_mut(4).zip(up.chunks_exact(4)) {
        // SAFETY: each is four numbers.
        unsafe {
            let x = v128_load(g.as_ptr().cast());
            let silu = f32x4_div(x, f32x4_add(one, exp4(v128_xor(x, zero))));
            v128_store(g.as_mut_ptr().cast(), f32x4_mul(silu, v128_load(u.as_ptr().cast())));
        }
    }
    swiglu_scalar(&mut gate[body..], &up[body..]);
}

/// The same, one number at a time.
pub fn swiglu_scalar(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = (*g / (1.0 + exp(-*g))) * u;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_equal_scalar() {
        let gate: Vec<f32> = (0..1001).map(|i| (i as f32 - 500.0) * 0.4).collect();
        let up: Vec<f32> = (0..1001).map(|i| (i as f32 - 300.0) * 0.01).collect();
        let (mut a, mut b) = (gate.clone(), gate);
        swiglu(&mut a, &up);
        swiglu_scalar(&mut b, &up);
        assert_eq!(
            a.iter().map(|v| v.to_bits()).collect::<Vec<_>>(),
            b.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        );
    }
}
