//! The int8 quantiser (SPEC.md, *Strict arithmetic*), one scale per row.
//!
//! ```text
//! m = max(absmax(x), 1e-5),   s = 127 / m,   a = clip(rint(x s), -128, 127),   r = 1 / s          x [C]
//! ```
//!
//! Codes are kept as i16, which is how dot products read them.

use crate::error::{Result, error};
use crate::simd::*;

/// Adding this to |v| <= 2^22 rounds v to an integer, half to even, and leaves it in the low mantissa bits.
const ROUNDING: f32 = 12_582_912.0;
const INFINITY_BITS: u32 = 0x7f80_0000;

/// (s, r) of a row from the bits of its largest magnitude.
pub fn scales(absmax_bits: u32) -> Result<(f32, f32)> {
    if absmax_bits >= INFINITY_BITS {
        let value = f32::from_bits(absmax_bits);
        return Err(error!(NonFinite, "a row holds {value}: an int8 quantiser needs finite numbers"));
    }
    let s = 127.0 / f32::from_bits(absmax_bits).max(1e-5);
    Ok((s, 1.0 / s))
}

/// Bits of the largest magnitude: magnitudes of floats are ordered as integers, NaN above infinity.
pub fn absmax_bits(x: &[f32]) -> u32 {
    let magnitude = i32x4_splat(0x7fff_ffff);
    let (body, tail) = x.split_at(x.len() & !15);
    let mut most = i32x4_splat(0);
    for sixteen in body.chunks_exact(16) {
        // SAFETY: sixteen floats are four vectors.
        let at = |i: usize| v128_and(unsafe { v128_load(sixteen.as_ptr().add(4 * i).cast()) }, magnitude);
        most = i32x4_max(most, i32x4_max(i32x4_max(at(0), at(1)), i32x4_max(at(2), at(3))));
    }
    let lanes = f32x4_lanes(most).map(f32::to_bits);
    tail.iter().map(|v| v.to_bits() & 0x7fff_ffff).chain(lanes).max().unwrap_or(0)
}

/// rint(x s) of eight numbers as i16.
///
/// # Safety
/// `x` points to eight floats.
#[inline(always)]
unsafe fn round8(x: *const f32, s: v128) -> v128 {
    let magic = f32x4_splat(ROUNDING);
    // SAFETY: the caller's promise.
    let (low, high) = unsafe { (v128_load(x.cast()), v128_load(x.add(4).cast())) };
    let low = f32x4_add(f32x4_mul(low, s), magic);
    let high = f32x4_add(f32x4_mul(high, s), magic);
    i16x8_shuffle::<0, 2, 4, 6, 8, 10, 12, 14>(low, high)
}

/// Round x [C] by a known s; |x s| is at most 127 (and a rounding), so nothing is left to clip.
pub fn round_codes(x: &[f32], s: f32, codes: &mut [i16]) {
    let length = x.len().min(codes.len());
    let splat = f32x4_splat(s);
    let mut at = 0;
    // SAFETY: every access stays below `length`, of both slices.
    unsafe {
        let (mut from, mut to) = (x.as_ptr(), codes.as_mut_ptr());
        while at + 16 <= length {
            v128_store(to.cast(), round8(from, splat));
            v128_store(to.add(8).cast(), round8(from.add(8), splat));
            (from, to, at) = (from.add(16), to.add(16), at + 16);
        }
        if at + 8 <= length {
            v128_store(to.cast(), round8(from, splat));
            at += 8;
        }
    }
    for i in at..length {
        codes[i] = (x[i] * s).round_ties_even() as i16;
    }
}

/// Quantise one row x [C] into codes [C]; returns r.
pub fn quantize(x: &[f32], codes: &mut [i16]) -> Result<f32> {
    let (s, r) = scales(absmax_bits(x))?;
    round_codes(x, s, codes);
    Ok(r)
}

/// The same, one number at a time.
pub fn quantize_scalar(x: &[f32], codes: &mut [i16]) -> Result<f32> {
    let (s, r) = scales(x.iter().map(|v| v.abs().to_bits()).max().unwrap_or(0))?;
    for (code, v) in codes.iter_mut().zip(x) {
        *code = (v * s).round_ties_even().clamp(-128.0, 127.0) as i16;
    }
    Ok(r)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_equal_scalar() {
        for length in [1, 3, 4, 7, 8, 9, 31, 64, 171] {
            for scale in [1e-9f32, 1e-5, 0.3, 7.0, 1e30] {
                let x: Vec<f32> = (0..length).map(|i| ((i * 29 % 53) as f32 - 26.0) * scale * 0.37).collect();
                let (mut a, mut b) = (vec![0; length], vec![0; length]);
                let (ra, rb) = (quantize(&x, &mut a).unwrap(), quantize_scalar(&x, &mut b).unwrap());
                assert_eq!((a, ra.to_bits()), (b, rb.to_bits()));
            }
        }
    }

    #[test]
    fn ties_round_to_even() {
        let mut codes = [0; 4];
        assert_eq!(quantize(&[127.0, -3.5, 2.5, 0.0], &mut codes).unwrap(), 1.0);
        assert_eq!(codes, [127, -4, 2, 0]);
    }

    #[test]
    fn nan_and_infinity_are_refused() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in 0..9 {
                let mut x = [1.0f32; 9];
                x[at] = bad;
                assert!(quantize(&x, &mut [0; 9]).is_err() && quantize_scalar(&x, &mut [0; 9]).is_err());
            }
        }
    }
}
