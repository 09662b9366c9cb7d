//! The 128-bit operations that kernels use, under their WebAssembly names.
//!
//! On WebAssembly these are the instructions. Elsewhere each is written out for one lane at a time, so that native tests
//! run the very kernels that are shipped: index arithmetic, padding and order of operations included.

#[cfg(target_arch = "wasm32")]
pub use core::arch::wasm32::{
    f32x4_abs, f32x4_add, f32x4_convert_i32x4, f32x4_div, f32x4_eq, f32x4_lt, f32x4_max, f32x4_mul, f32x4_nearest,
    f32x4_pmax, f32x4_pmin, f32x4_splat, f32x4_sub, i8x16_narrow_i16x8, i16x8_add, i16x8_extend_low_i8x16,
    i16x8_load_extend_i8x8, i16x8_load_extend_u8x8, i16x8_shl, i16x8_shr, i16x8_shuffle, i16x8_splat, i16x8_sub,
    i32x4_add, i32x4_dot_i16x8, i32x4_extend_high_i16x8, i32x4_extend_low_i16x8, i32x4_max, i32x4_shl, i32x4_shr,
    i32x4_shuffle, i32x4_splat, i32x4_sub, i32x4_trunc_sat_f32x4, i64x2_shuffle, v128, v128_and, v128_andnot,
    v128_any_true, v128_load, v128_load32_splat, v128_load32_zero, v128_or, v128_store, v128_store16_lane,
    v128_store32_lane, v128_xor,
};

#[cfg(all(target_arch = "wasm32", not(target_feature = "simd128")))]
compile_error!("the engine needs 128-bit SIMD: build with -C target-feature=+simd128 (walsh/engine/build.py does)");

#[cfg(not(target_arch = "wasm32"))]
pub use emulated::*;

/// Repeat a block for `$i` = 0, 1, ... below the constant `$n` (a literal, or at most 64), each a constant of its own.
///
/// Loops that only a compiler's heuristic would unroll cost instructions; this leaves it no choice.
macro_rules! unroll {
    ($i:ident in 3, $body:block) => { $crate::simd::unroll!(@ $i 3; 0 1 2; $body) };
    ($i:ident in 4, $body:block) => { $crate::simd::unroll!(@ $i 4; 0 1 2 3; $body) };
    ($i:ident in 5, $body:block) => { $crate::simd::unroll!(@ $i 5; 0 1 2 3 4; $body) };
    ($i:ident in 8, $body:block) => { $crate::simd::unroll!(@ $i 8; 0 1 2 3 4 5 6 7; $body) };
    ($i:ident in 16, $body:block) => { $crate::simd::unroll!(@ $i 16; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; $body) };
    ($i:ident in 32, $body:block) => { $crate::simd::unroll!(@ $i 32; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31; $body) };
    ($i:ident upto 4 in $n:ident, $body:block) => { $crate::simd::unroll!(@ $i $n; 0 1 2 3; $body) };
    ($i:ident upto 32 in $n:ident, $body:block) => { $crate::simd::unroll!(@ $i $n; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31; $body) };
    ($i:ident in $n:ident, $body:block) => {{
        $crate::simd::unroll!(@ $i $n; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31; $body);
        if const { $n > 32 } {
            $crate::simd::unroll!(@ $i $n; 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63; $body);
        }
    }};
    (@ $i:ident $n:expr; $($k:literal)*; $body:block) => {{
        $(
            if const { $k < $n } {
                #[allow(unused_variables)]
                let $i: usize = $k;
                $body
            }
        )*
    }};
}
pub(crate) use unroll;

/// Sum of the dot products of P (at most 64) pairs of vectors, in order.
#[inline(always)]
pub fn dots<const P: usize>(a: &[v128; P], b: &[v128; P]) -> v128 {
    let mut sum = i32x4_dot_i16x8(a[0], b[0]);
    unroll!(p in P, {
        if p > 0 {
            sum = i32x4_add(sum, i32x4_dot_i16x8(a[p], b[p]));
        }
    });
    sum
}

/// V vectors in a row.
///
/// # Safety
/// 8 V numbers are at `x`.
#[inline(always)]
pub(crate) unsafe fn load_all<const V: usize>(x: *const i16) -> [v128; V] {
    let mut all = [i32x4_splat(0); V];
    // SAFETY: the caller's promise.
    unsafe { unroll!(i in V, { all[i] = v128_load(x.add(8 * i).cast()); }) };
    all
}

/// Sum of the four lanes of each of four vectors, as one vector.
#[inline(always)]
pub fn i32x4_sum_lanes(a: v128, b: v128, c: v128, d: v128) -> v128 {
    let ab = i32x4_add(i32x4_shuffle::<0, 4, 1, 5>(a, b), i32x4_shuffle::<2, 6, 3, 7>(a, b));
    let cd = i32x4_add(i32x4_shuffle::<0, 4, 1, 5>(c, d), i32x4_shuffle::<2, 6, 3, 7>(c, d));
    i32x4_add(i64x2_shuffle::<0, 2>(ab, cd), i64x2_shuffle::<1, 3>(ab, cd))
}

/// The four float lanes in order.
#[inline(always)]
pub fn f32x4_lanes(a: v128) -> [f32; 4] {
    let mut lanes = [0.0f32; 4];
    // SAFETY: 16 bytes, any alignment.
    unsafe { v128_store(lanes.as_mut_ptr().cast(), a) };
    lanes
}

#[cfg(not(target_arch = "wasm32"))]
#[allow(missing_docs, non_camel_case_types, clippy::missing_safety_doc)] // documented by the instruction set
mod emulated {
    //! What each instruction means.

    /// Sixteen bytes.
    #[derive(Clone, Copy, Debug)]
    pub struct v128([u8; 16]);

    impl v128 {
        fn i8s(self) -> [i8; 16] {
            self.0.map(|b| b as i8)
        }
        fn i16s(self) -> [i16; 8] {
            std::array::from_fn(|i| i16::from_le_bytes([self.0[2 * i], self.0[2 * i + 1]]))
        }
        fn i32s(self) -> [i32; 4] {
            std::array::from_fn(|i| i32::from_le_bytes(std::array::from_fn(|b| self.0[4 * i + b])))
        }
        fn f32s(self) -> [f32; 4] {
            self.i32s().map(|bits| f32::from_bits(bits as u32))
        }
        fn of16(lanes: [i16; 8]) -> v128 {
            v128(std::array::from_fn(|i| lanes[i / 2].to_le_bytes()[i % 2]))
        }
        fn of32(lanes: [i32; 4]) -> v128 {
            v128(std::array::from_fn(|i| lanes[i / 4].to_le_bytes()[i % 4]))
        }
        fn of_f32(lanes: [f32; 4]) -> v128 {
            v128::of32(lanes.map(|lane| lane.to_bits() as i32))
        }
    }

    pub unsafe fn v128_load(p: *const v128) -> v128 {
        // SAFETY: the caller's, as for the instruction: 16 readable bytes.
        v128(unsafe { p.cast::<[u8; 16]>().read_unaligned() })
    }
    pub unsafe fn v128_store(p: *mut v128, a: v128) {
        // SAFETY: the caller's: 16 writable bytes.
        unsafe { p.cast::<[u8; 16]>().write_unaligned(a.0) }
    }
    pub unsafe fn v128_load32_splat(p: *const u32) -> v128 {
        // SAFETY: the caller's: 4 readable bytes.
        v128::of32([unsafe { p.read_unaligned() } as i32; 4])
    }
    pub unsafe fn v128_load32_zero(p: *const u32) -> v128 {
        // SAFETY: the caller's: 4 readable bytes.
        v128::of32([unsafe { p.read_unaligned() } as i32, 0, 0, 0])
    }
    pub unsafe fn i16x8_load_extend_i8x8(p: *const i8) -> v128 {
        // SAFETY: the caller's: 8 readable bytes.
        v128::of16(unsafe { p.cast::<[i8; 8]>().read_unaligned() }.map(i16::from))
    }
    pub unsafe fn i16x8_load_extend_u8x8(p: *const u8) -> v128 {
        // SAFETY: the caller's: 8 readable bytes.
        v128::of16(unsafe { p.cast::<[u8; 8]>().read_unaligned() }.map(i16::from))
    }

    pub unsafe fn v128_store16_lane<const L: usize>(a: v128, p: *mut u16) {
        // SAFETY: the caller's: 2 writable bytes.
        unsafe { p.write_unaligned(a.i16s()[L] as u16) };
    }
    pub unsafe fn v128_store32_lane<const L: usize>(a: v128, p: *mut u32) {
        // SAFETY: the caller's: 4 writable bytes.
        unsafe { p.write_unaligned(a.i32s()[L] as u32) };
    }
    pub fn i8x16_narrow_i16x8(a: v128, b: v128) -> v128 {
        let lanes = [a.i16s(), b.i16s()].concat();
        v128(std::array::from_fn(|i| lanes[i].clamp(-128, 127) as i8 as u8))
    }

    macro_rules! lanewise {
        ($($name:ident $read:ident $make:ident |$a:ident, $b:ident| $value:expr;)*) => {$(
            pub fn $name(a: v128, b: v128) -> v128 {
                let (left, right) = (a.$read(), b.$read());
                v128::$make(std::array::from_fn(|i| { let ($a, $b) = (left[i], right[i]); $value }))
            }
        )*};
    }
    lanewise! {
        i16x8_add i16s of16 |a, b| a.wrapping_add(b);
        i16x8_sub i16s of16 |a, b| a.wrapping_sub(b);
        i32x4_add i32s of32 |a, b| a.wrapping_add(b);
        i32x4_sub i32s of32 |a, b| a.wrapping_sub(b);
        i32x4_max i32s of32 |a, b| a.max(b);
        v128_and i32s of32 |a, b| a & b;
        v128_andnot i32s of32 |a, b| a & !b;
        v128_or i32s of32 |a, b| a | b;
        v128_xor i32s of32 |a, b| a ^ b;
        f32x4_add f32s of_f32 |a, b| a + b;
        f32x4_sub f32s of_f32 |a, b| a - b;
        f32x4_mul f32s of_f32 |a, b| a * b;
        f32x4_div f32s of_f32 |a, b| a / b;
        f32x4_pmax f32s of_f32 |a, b| if a < b { b } else { a };
        f32x4_pmin f32s of_f32 |a, b| if b < a { b } else { a };
        f32x4_max f32s of_f32 |a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) };
    }
    macro_rules! unary {
        ($($name:ident $read:ident $make:ident |$a:ident| $value:expr;)*) => {$(
            pub fn $name(a: v128) -> v128 { v128::$make(a.$read().map(|$a| $value)) }
        )*};
    }
    unary! {
        f32x4_abs f32s of_f32 |a| a.abs();
        f32x4_nearest f32s of_f32 |a| a.round_ties_even();
        f32x4_convert_i32x4 i32s of_f32 |a| a as f32;
        i32x4_trunc_sat_f32x4 f32s of32 |a| a as i32;
    }
    pub fn f32x4_lt(a: v128, b: v128) -> v128 {
        let (a, b) = (a.f32s(), b.f32s());
        v128::of32(std::array::from_fn(|i| if a[i] < b[i] { -1 } else { 0 }))
    }
    pub fn f32x4_eq(a: v128, b: v128) -> v128 {
        let (a, b) = (a.f32s(), b.f32s());
        v128::of32(std::array::from_fn(|i| if a[i] == b[i] { -1 } else { 0 }))
    }
    pub fn v128_any_true(a: v128) -> bool {
        a.0.iter().any(|&byte| byte != 0)
    }
    pub fn i32x4_splat(a: i32) -> v128 {
        v128::of32([a; 4])
    }
    pub fn i16x8_splat(a: i16) -> v128 {
        v128::of16([a; 8])
    }
    pub fn f32x4_splat(a: f32) -> v128 {
        v128::of_f32([a; 4])
    }
    pub fn i32x4_shl(a: v128, n: u32) -> v128 {
        v128::of32(a.i32s().map(|lane| lane << (n & 31)))
    }
    pub fn i32x4_shr(a: v128, n: u32) -> v128 {
        v128::of32(a.i32s().map(|lane| lane >> (n & 31)))
    }
    pub fn i16x8_shl(a: v128, n: u32) -> v128 {
        v128::of16(a.i16s().map(|lane| lane << (n & 15)))
    }
    pub fn i16x8_shr(a: v128, n: u32) -> v128 {
        v128::of16(a.i16s().map(|lane| lane >> (n & 15)))
    }
    pub fn i32x4_dot_i16x8(a: v128, b: v128) -> v128 {
        let (a, b) = (a.i16s().map(i32::from), b.i16s().map(i32::from));
        v128::of32(std::array::from_fn(|i| (a[2 * i] * b[2 * i]).wrapping_add(a[2 * i + 1] * b[2 * i + 1])))
    }
    pub fn i16x8_extend_low_i8x16(a: v128) -> v128 {
        v128::of16(std::array::from_fn(|i| i16::from(a.i8s()[i])))
    }
    pub fn i32x4_extend_low_i16x8(a: v128) -> v128 {
        v128::of32(std::array::from_fn(|i| i32::from(a.i16s()[i])))
    }
    pub fn i32x4_extend_high_i16x8(a: v128) -> v128 {
        v128::of32(std::array::from_fn(|i| i32::from(a.i16s()[i + 4])))
    }
    pub fn i32x4_shuffle<const I0: usize, const I1: usize, const I2: usize, const I3: usize>(a: v128, b: v128) -> v128 {
        let lanes = [a.i32s(), b.i32s()].concat();
        v128::of32([I0, I1, I2, I3].map(|i| lanes[i]))
    }
    pub fn i64x2_shuffle<const I0: usize, const I1: usize>(a: v128, b: v128) -> v128 {
        let bytes = [a.0, b.0].concat();
        v128(std::array::from_fn(|i| bytes[8 * [I0, I1][i / 8] + i % 8]))
    }
    #[rustfmt::skip]
    pub fn i16x8_shuffle<
        const I0: usize, const I1: usize, const I2: usize, const I3: usize,
        const I4: usize, const I5: usize, const I6: usize, const I7: usize,
    >(a: v128, b: v128) -> v128 {
        let lanes = [a.i16s(), b.i16s()].concat();
        v128::of16([I0, I1, I2, I3, I4, I5, I6, I7].map(|i| lanes[i]))
    }
}
