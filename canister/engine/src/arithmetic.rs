//! The float32 arithmetic that every backend repeats to the bit (SPEC.md, *Strict arithmetic*).
//!
//! ```text
//! exp(x)     n = rint(x / log 2), a polynomial in x - n log 2 by Horner's rule, times 2^n      (Cephes expf)
//! hsum(x)    pad with +0 to a power of two, add halves until one is left, then + 0
//! sincos(a)  Cody-Waite reduction by pi / 2 and the fdlibm kernels in float64, rounded once
//! ```
//!
//! Only add, subtract, multiply, divide and square root; Rust never fuses them, WebAssembly cannot.

#![allow(clippy::excessive_precision, clippy::approx_constant)] // the published digits, which define every later bit

use crate::error::{Result, require};
use crate::simd::*;

const LOG2_E: f32 = 1.442_695_04;
const LN2_HIGH: f32 = 0.693_359_375; // few bits, so that n * LN2_HIGH is exact
const LN2_LOW: f32 = -2.121_944_40e-4;
const EXP: [f32; 6] = [
    1.987_569_150_0e-4,
    1.398_199_950_7e-3,
    8.333_451_907_3e-3,
    4.166_579_589_4e-2,
    1.666_666_545_9e-1,
    5.000_000_120_1e-1,
];

/// e^x; below -87 it is +0, above 88 it is e^88, NaN stays NaN.
pub fn exp(x: f32) -> f32 {
    if x < -87.0 {
        return 0.0;
    }
    let x = if x > 88.0 { 88.0 } else { x };
    let n = (x * LOG2_E).round_ties_even();
    let t = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = EXP[0];
    for coefficient in &EXP[1..] {
        p = p * t + coefficient;
    }
    let y = (p * (t * t) + t) + 1.0;
    y * f32::from_bits(((n as i32 + 127) as u32) << 23)
}

/// `exp` of four lanes.
#[inline(always)]
pub fn exp4(x: v128) -> v128 {
    let low = f32x4_splat(-87.0);
    // The operand order of pmin and pmax lets NaN through.
    let clipped = f32x4_pmin(f32x4_pmax(x, low), f32x4_splat(88.0));
    let n = f32x4_nearest(f32x4_mul(clipped, f32x4_splat(LOG2_E)));
    let t = f32x4_sub(f32x4_sub(clipped, f32x4_mul(n, f32x4_splat(LN2_HIGH))), f32x4_mul(n, f32x4_splat(LN2_LOW)));
    let mut p = f32x4_splat(EXP[0]);
    p = f32x4_add(f32x4_mul(p, t), f32x4_splat(EXP[1]));
    p = f32x4_add(f32x4_mul(p, t), f32x4_splat(EXP[2]));
    p = f32x4_add(f32x4_mul(p, t), f32x4_splat(EXP[3]));
    p = f32x4_add(f32x4_mul(p, t), f32x4_splat(EXP[4]));
    p = f32x4_add(f32x4_mul(p, t), f32x4_splat(EXP[5]));
    let y = f32x4_add(f32x4_add(f32x4_mul(p, f32x4_mul(t, t)), t), f32x4_splat(1.0));
    // On -87 .. 88 y * 2^n is a normal number, so adding n to the exponent is the product, exactly.
    let scaled = i32x4_add(y, i32x4_shl(i32x4_trunc_sat_f32x4(n), 23));
    v128_andnot(scaled, f32x4_lt(x, low))
}

/// Sum in halves; the slice is used up as scratch.
pub fn hsum_in_place(x: &mut [f32]) -> f32 {
    let mut length = x.len();
    if length == 0 {
        return 0.0;
    }
    let mut half = length.next_power_of_two() / 2;
    while half > 0 {
        // Past the end stands +0. Adding it changes nothing but the sign of a zero, which the final + 0 settles.
        let (first, second) = x[..length].split_at_mut(half.min(length));
        for (a, b) in first.iter_mut().zip(second.iter()) {
            *a += *b;
        }
        length = length.min(half);
        half /= 2;
    }
    x[0] + 0.0
}

/// Sum of x_i^2 in halves, C = `x.len()`; `scratch` holds at least C numbers.
pub fn hsum_squares(x: &[f32], scratch: &mut [f32]) -> f32 {
    let length = x.len();
    if !length.is_power_of_two() || length < 16 {
        for (s, v) in scratch.iter_mut().zip(x) {
            *s = v * v;
        }
        return hsum_in_place(&mut scratch[..length]);
    }
    let mut half = length / 2;
    // SAFETY: x and scratch hold `length` numbers, a power of two of at least 16; every index stays below it.
    unsafe {
        let (from, to) = (x.as_ptr(), scratch.as_mut_ptr());
        for i in (0..half).step_by(4) {
            let (a, b) = (v128_load(from.add(i).cast()), v128_load(from.add(half + i).cast()));
            v128_store(to.add(i).cast(), f32x4_add(f32x4_mul(a, a), f32x4_mul(b, b)));
        }
        while half > 4 {
            half /= 2;
            for i in (0..half).step_by(4) {
                let sum = f32x4_add(v128_load(to.add(i).cast()), v128_load(to.add(half + i).cast()));
                v128_store(to.add(i).cast(), sum);
            }
        }
    }
    hsum_in_place(&mut scratch[..4])
}

const TWO_OVER_PI: f64 = 6.366_197_723_675_813_824_33e-01;
const HALF_PI: [f64; 3] =
    [1.570_796_326_734_125_614_17e+00, 6.077_100_506_303_965_976_60e-11, 2.022_266_248_795_950_631_54e-21];
const SIN: [f64; 6] = [
    1.589_690_995_211_550_102_21e-10,
    -2.505_076_025_340_686_341_95e-08,
    2.755_731_370_707_006_767_89e-06,
    -1.984_126_982_985_794_931_34e-04,
    8.333_333_333_322_489_461_24e-03,
    -1.666_666_666_666_663_243_48e-01,
];
const COS: [f64; 6] = [
    -1.135_964_755_778_819_482_65e-11,
    2.087_572_321_298_174_827_90e-09,
    -2.755_731_435_139_066_330_35e-07,
    2.480_158_728_947_672_941_78e-05,
    -1.388_888_888_887_410_957_49e-03,
    4.166_666_666_666_660_190_37e-02,
];

/// Above this the three-part pi / 2 no longer leaves a correctly rounded remainder.
pub const LARGEST_ANGLE: f64 = 1e5;

fn horner(z: f64, coefficients: &[f64; 6]) -> f64 {
    coefficients[1..].iter().fold(coefficients[0], |p, c| p * z + c)
}

/// (sin, cos) of an angle in 0 .. 1e5.
pub fn sincos(angle: f64) -> Result<(f32, f32)> {
    require!(
        (0.0..=LARGEST_ANGLE).contains(&angle),
        Range,
        "angle {angle}: expected 0 .. {LARGEST_ANGLE}; use a smaller position"
    );
    let m = (angle * TWO_OVER_PI).round_ties_even();
    let r = HALF_PI.iter().fold(angle, |r, part| r - m * part);
    let z = r * r;
    let s = r + r * (z * horner(z, &SIN));
    let c = (1.0 - 0.5 * z) + (z * z) * horner(z, &COS);
    let (sine, cosine) = match m as i64 & 3 {
        0 => (s, c),
        1 => (c, -s),
        2 => (-s, -c),
        _ => (-c, s),
    };
    Ok((sine as f32, cosine as f32))
}

/// f32(1 / sqrt(n)), computed in float64 and rounded once.
pub fn reciprocal_root(n: usize) -> f32 {
    (1.0 / (n as f64).sqrt()) as f32
}

/// `value` rounded up to a multiple of a power of two.
pub const fn round_up(value: usize, multiple: usize) -> usize {
    (value + multiple - 1) & !(multiple - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_lanes_equal_exp() {
        let mut x = -200.0f32;
        while x < 120.0 {
            let lanes = f32x4_lanes(exp4(f32x4_splat(x)));
            assert_eq!(lanes.map(f32::to_bits), [exp(x).to_bits(); 4], "exp({x})");
            x += 0.037;
        }
        for x in [f32::NEG_INFINITY, f32::INFINITY, -87.0, 88.0, -87.000_01, 88.000_01, 0.0, -0.0] {
            assert_eq!(f32x4_lanes(exp4(f32x4_splat(x)))[0].to_bits(), exp(x).to_bits(), "exp({x})");
        }
        assert!(f32x4_lanes(exp4(f32x4_splat(f32::NAN)))[0].is_nan() && exp(f32::NAN).is_nan());
    }

    #[test]
    fn exp_is_within_one_ulp() {
        for i in -8600..8700 {
            let x = i as f32 * 0.01;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs();
            assert!(
                error
                    <= 1.01 * (exact as f32).to_bits().abs_diff((exact as f32).to_bits() + 1) as f64 * {
                        let e = exact as f32;
                        f64::from(f32::from_bits(e.to_bits() + 1) - e)
                    }
            );
        }
    }

    #[test]
    fn sums_by_halves_equal_the_definition() {
        fn definition(x: &[f32]) -> f32 {
            let mut padded = x.to_vec();
            padded.resize(x.len().next_power_of_two(), 0.0);
            while padded.len() > 1 {
                let half = padded.len() / 2;
                padded = (0..half).map(|i| padded[i] + padded[i + half]).collect();
            }
            padded[0] + 0.0
        }
        for length in [1, 2, 3, 5, 8, 15, 16, 17, 64, 100, 512, 1000] {
            let x: Vec<f32> =
                (0..length).map(|i| ((i * 37 % 101) as f32 - 50.0) * 1.7e-3 * (1 + i % 7) as f32).collect();
            assert_eq!(hsum_in_place(&mut x.clone()).to_bits(), definition(&x).to_bits());
            let squares: Vec<f32> = x.iter().map(|v| v * v).collect();
            assert_eq!(hsum_squares(&x, &mut vec![0.0; length]).to_bits(), definition(&squares).to_bits());
        }
    }

    #[test]
    fn sincos_is_close_and_bounded() {
        for i in 0..10_000 {
            let angle = f64::from(i) * 9.99;
            let (s, c) = sincos(angle).unwrap();
            assert!((f64::from(s) - angle.sin()).abs() < 1e-7 && (f64::from(c) - angle.cos()).abs() < 1e-7);
        }
        assert!(sincos(1.000_001e5).is_err() && sincos(-1.0).is_err() && sincos(f64::NAN).is_err());
    }
}
