//! Ternary matrices: packings, and exact products with int8 activations, two rows per multiplication.
//!
//! ```text
//! out_n = sum_k x_k w[n, k],      x int8 (held as i16), w in {-1, 0, 1}, out i32
//! ```
//!
//! **Two rows in one 16-bit number.** `pair = w[n, k] + 2^14 w[n + 4, k]` is at most 16,385 in magnitude. Summed over 64
//! values of k, the lower part stays within 64 * 127 = 8,128 < 2^13, so both sums can be read off one 32-bit lane: an
//! `i32x4.dot_i16x8_s` does sixteen multiplications instead of eight. Longer rows are summed in chunks of 64.
//!
//! **Layout.** Lane l of group g holds rows 8 g + l (lower part) and 8 g + 4 + l; a vector holds two values of k for the
//! four lanes, so that x enters as a splat of two codes and no sum crosses lanes. Rows are padded to 8, K to 16.
//!
//! **Packed.** The same order in two bits a weight, expanded one chunk at a time just before it is used.

use crate::arithmetic::round_up;
use crate::error::{Result, require, try_vec};
use crate::products::{Into, Places, Plan, Product, for_chunk};
use crate::simd::*;

/// Pairs of k in one chunk: the lower part of a lane must not reach the upper one.
const CHUNK: usize = 32;
/// Groups of rows that are expanded together.
const EXPANDED: usize = 32;

/// `count` ternary matrices [N, K] of one size in kernel layout.
pub struct TernaryMatrices {
    rows: usize,
    groups: usize,
    pairs: usize,
    storage: Storage,
}

enum Storage {
    /// Per matrix, group and pair of k: eight i16.
    Pairs(Vec<i16>),
    /// Per matrix, group and four pairs of k: sixteen bytes. Lane l of vector v of the four has its lower weight in bits
    /// 2 v of byte 2 l, its upper in bits 2 v of byte 2 l + 1, both two's complement.
    TwoBits(Vec<u8>),
}

impl TernaryMatrices {
    /// Lay out `codes` [count, N, K], each -1, 0 or 1.
    pub fn new(codes: &[i8], count: usize, rows: usize, columns: usize, packed: bool) -> Result<Self> {
        require!(
            codes.len() == count * rows * columns,
            Shape,
            "{} codes for {count} x {rows} x {columns}",
            codes.len()
        );
        check_codes(codes)?;
        let (groups, pairs) = (rows.div_ceil(8), round_up(columns, 16) / 2);
        let mut laid_out = try_vec(count * groups * pairs * 8, 0i16)?;
        for m in 0..count {
            for n in 0..rows {
                let row = &codes[(m * rows + n) * columns..][..columns];
                let (group, lane, upper) = (n / 8, n % 4, n % 8 >= 4);
                let start = (m * groups + group) * pairs * 8 + 2 * lane;
                for (k, &code) in row.iter().enumerate() {
                    laid_out[start + k / 2 * 8 + k % 2] += if upper { i16::from(code) << 14 } else { i16::from(code) };
                }
            }
        }
        let storage = if packed { Storage::TwoBits(pack_pairs(&laid_out)?) } else { Storage::Pairs(laid_out) };
        Ok(Self { rows, groups, pairs, storage })
    }

    /// Bytes that the weights take in memory.
    pub fn bytes(&self) -> usize {
        match &self.storage {
            Storage::Pairs(pairs) => 2 * pairs.len(),
            Storage::TwoBits(bytes) => bytes.len(),
        }
    }

    /// Length of an `out` row: N rounded up to 8.
    pub fn padded_rows(&self) -> usize {
        8 * self.groups
    }

    /// N.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Products of x with the matrices, those of one matrix next to each other.
    ///
    /// x: codes of components, K rounded up to 16, zeros past K. out: `padded_rows` of each row are written. `room` is
    /// scratch for expanded weights.
    pub fn multiply(&self, products: &Plan, x: &[i16], out: &mut [i32], places: &Places, room: &mut Vec<i16>) {
        let (step, matrix) = (self.pairs * 8, self.groups * self.pairs * 8);
        let matrices = match &self.storage {
            Storage::Pairs(pairs) => pairs.len() / matrix.max(1),
            Storage::TwoBits(bytes) => 2 * bytes.len() / matrix.max(1),
        };
        places.check(products, x.len(), self.pairs, out.len(), self.padded_rows(), matrices);
        if matches!(self.storage, Storage::TwoBits(_)) {
            room.resize(EXPANDED * CHUNK * 8, 0);
        }
        let mut at = 0;
        while at < self.pairs {
            let length = (self.pairs - at).min(CHUNK);
            for of_matrix in products.chunk_by(|a, b| a.matrix == b.matrix) {
                let first = of_matrix[0].matrix * matrix + at * 8;
                // SAFETY: the check; pairs are a multiple of 8, so `length` is 8, 16, 24 or 32, and `room` holds EXPANDED
                // groups of it.
                unsafe {
                    match &self.storage {
                        Storage::Pairs(pairs) => {
                            let weights = Weights { w: pairs.as_ptr().add(first), step, groups: self.groups };
                            weights.multiply(length, of_matrix, at, x, out, places);
                        }
                        Storage::TwoBits(bytes) => {
                            for start in (0..self.groups).step_by(EXPANDED) {
                                let groups = (self.groups - start).min(EXPANDED);
                                for g in 0..groups {
                                    let packed = bytes.as_ptr().add((first + (start + g) * step) / 2);
                                    expand(packed, length, room.as_mut_ptr().add(g * length * 8));
                                }
                                let weights = Weights { w: room.as_ptr(), step: length * 8, groups };
                                weights.multiply(length, of_matrix, at, x, &mut out[8 * start..], places);
                            }
                        }
                    }
                }
            }
            at += length;
        }
    }

    /// `multiply` of every matrix by the component of its own number, whose list of products is `one_each`.
    pub fn multiply_each(&self, each: &Plan, x: &[i16], out: &mut [i32], places: &Places, room: &mut Vec<i16>) {
        let pairs = match &self.storage {
            Storage::Pairs(pairs) if self.pairs <= CHUNK => pairs,
            _ => return self.multiply(each, x, out, places, room),
        };
        let matrices = pairs.len() / (self.groups * self.pairs * 8).max(1);
        places.check(each, x.len(), self.pairs, out.len(), self.padded_rows(), matrices);
        let mut column = 0;
        while column < places.columns {
            // SAFETY: the check; pairs are a multiple of 8 and at most 32.
            unsafe {
                let (x, out) =
                    (x.as_ptr().add(column * places.x_column), out.as_mut_ptr().add(column * places.out_column));
                column += match places.columns - column {
                    1 => self.each_of_columns::<1>(each.len(), pairs.as_ptr(), x, out, places),
                    2 | 3 => self.each_of_columns::<2>(each.len(), pairs.as_ptr(), x, out, places),
                    _ => self.each_of_columns::<4>(each.len(), pairs.as_ptr(), x, out, places),
                };
            }
        }
    }

    /// # Safety
    /// As `each`.
    unsafe fn each_of_columns<const N: usize>(
        &self,
        count: usize,
        w: *const i16,
        x: *const i16,
        out: *mut i32,
        places: &Places,
    ) -> usize {
        // SAFETY: the caller's promise.
        unsafe {
            match self.pairs {
                8 => self.each::<8, N>(count, w, x, out, places),
                16 => self.each::<16, N>(count, w, x, out, places),
                24 => self.each::<24, N>(count, w, x, out, places),
                _ => self.each::<32, N>(count, w, x, out, places),
            }
        }
        N
    }

    /// # Safety
    /// Every matrix is one chunk of P pairs; N columns at places that `multiply_each` has checked.
    unsafe fn each<const P: usize, const N: usize>(
        &self,
        count: usize,
        w: *const i16,
        x: *const i16,
        out: *mut i32,
        places: &Places,
    ) {
        let (mut w, mut x, mut out) = (w, x, out);
        for _ in 0..count {
            // SAFETY: the caller's promise.
            unsafe {
                groups::<P, 0, N>(w, 8 * P, self.groups, x, places.x_column, out, places.out_column);
                w = w.add(8 * P * self.groups);
                x = x.add(places.x_stride);
                out = out.add(places.out_stride);
            }
        }
    }
}

/// Weights of one chunk of one matrix.
struct Weights {
    w: *const i16,
    step: usize,
    groups: usize,
}

impl Weights {
    /// Every product of a matrix, every column.
    ///
    /// # Safety
    /// As `Places::check` has seen for this chunk of `length` pairs, which starts at pair `at`.
    unsafe fn multiply(
        &self,
        length: usize,
        products: &[Product],
        at: usize,
        x: &[i16],
        out: &mut [i32],
        places: &Places,
    ) {
        let &Weights { w, step, groups: count } = self;
        let (x_column, out_column) = (places.x_column, places.out_column);
        for product in products {
            let into = if product.into == Into::Store && at > 0 { Into::Add } else { product.into };
            let mut column = 0;
            while column < places.columns {
                // SAFETY: the caller's promise.
                unsafe {
                    let x = x.as_ptr().add(column * x_column + product.component * places.x_stride + 2 * at);
                    let out = out.as_mut_ptr().add(column * out_column + product.row * places.out_stride);
                    match places.columns - column {
                        1 => {
                            for_chunk!(groups, 1, length, into, (w, step, count, x, x_column, out, out_column));
                            column += 1;
                        }
                        2 | 3 => {
                            for_chunk!(groups, 2, length, into, (w, step, count, x, x_column, out, out_column));
                            column += 2;
                        }
                        _ => {
                            for_chunk!(groups, 4, length, into, (w, step, count, x, x_column, out, out_column));
                            column += 4;
                        }
                    }
                }
            }
        }
    }
}

/// Groups of eight rows times one chunk of N columns of x; MODE 0 stores, 1 adds, 2 subtracts.
///
/// # Safety
/// Group g has P pairs (eight i16 each) at `w + g * step`; a column of x has 2 P codes, one of out 8 `groups` sums.
unsafe fn groups<const P: usize, const MODE: usize, const N: usize>(
    w: *const i16,
    step: usize,
    groups: usize,
    x: *const i16,
    x_column: usize,
    out: *mut i32,
    out_column: usize,
) {
    let mut splats = [[i32x4_splat(0); P]; N];
    // SAFETY: the caller's promise, for every access below.
    unsafe {
        unroll!(c upto 4 in N, {
            let x = x.add(c * x_column);
            unroll!(p upto 32 in P, { splats[c][p] = v128_load32_splat(x.add(2 * p).cast()); });
        });
        let (mut w, mut out) = (w, out);
        for _ in 0..groups {
            let mut weights = [i32x4_splat(0); P];
            let mut to = out;
            unroll!(c upto 4 in N, {
                if c == 0 {
                    unroll!(p upto 32 in P, { weights[p] = v128_load(w.add(8 * p).cast()); });
                }
                let sum = dots(&weights, &splats[c]);
                let lower = i32x4_shr(i32x4_shl(sum, 18), 18);
                let upper = i32x4_shr(i32x4_sub(sum, lower), 14);
                if c > 0 {
                    to = to.add(out_column);
                }
                let (to_lower, to_upper) = (to.cast::<v128>(), to.add(4).cast::<v128>());
                match MODE {
                    0 => {
                        v128_store(to_lower, lower);
                        v128_store(to_upper, upper);
                    }
                    1 => {
                        v128_store(to_lower, i32x4_add(v128_load(to_lower), lower));
                        v128_store(to_upper, i32x4_add(v128_load(to_upper), upper));
                    }
                    _ => {
                        v128_store(to_lower, i32x4_sub(v128_load(to_lower), lower));
                        v128_store(to_upper, i32x4_sub(v128_load(to_upper), upper));
                    }
                }
            });
            w = w.add(step);
            out = out.add(8);
        }
    }
}

/// Two bits a weight into pairs: `length` vectors (a multiple of 4) from a quarter of them.
///
/// # Safety
/// `packed` has 4 `length` bytes, `pairs` room for 8 `length` numbers.
#[inline(always)]
unsafe fn expand(packed: *const u8, length: usize, pairs: *mut i16) {
    let top = i16x8_splat(0xc000_u16 as i16);
    let (mut packed, mut pairs) = (packed, pairs);
    for _ in 0..length / 4 {
        // SAFETY: the caller's promise.
        unsafe {
            let v = v128_load(packed.cast());
            unroll!(t in 4, {
                let t32 = t as u32;
                let upper = v128_and(i16x8_shl(v, 6 - 2 * t32), top);
                let lower = i16x8_shr(i16x8_shl(v, 14 - 2 * t32), 14);
                v128_store(pairs.add(8 * t).cast(), i16x8_add(lower, upper));
            });
            (packed, pairs) = (packed.add(16), pairs.add(32));
        }
    }
}

/// Pairs, eight per vector, into two bits a weight.
fn pack_pairs(pairs: &[i16]) -> Result<Vec<u8>> {
    let mut packed = try_vec(pairs.len() / 2, 0u8)?;
    for (quad, to) in pairs.chunks_exact(32).zip(packed.chunks_exact_mut(16)) {
        for (t, vector) in quad.chunks_exact(8).enumerate() {
            for (lane, &pair) in vector.iter().enumerate() {
                let lower = (pair << 2) >> 2;
                let upper = (pair - lower) >> 14;
                to[2 * lane] |= ((lower & 3) as u8) << (2 * t);
                to[2 * lane + 1] |= ((upper & 3) as u8) << (2 * t);
            }
        }
    }
    Ok(packed)
}

/// Refuse codes other than -1, 0 and 1.
pub fn check_codes(codes: &[i8]) -> Result<()> {
    let bad = codes.iter().find(|&&code| !(-1..=1).contains(&code));
    require!(bad.is_none(), Parameter, "codes hold {}: expected -1, 0 or 1", bad.copied().unwrap_or(0));
    Ok(())
}

/// The definition of `multiply`: out [N] = codes [N, K] x.
pub fn multiply_scalar(x: &[i16], codes: &[i8], out: &mut [i32]) {
    for (sum, row) in out.iter_mut().zip(codes.chunks_exact(x.len().max(1))) {
        *sum = row.iter().zip(x).map(|(&w, &a)| i32::from(w) * i32::from(a)).sum();
    }
}

/// `pack_ternary` of rows [rows, K]: two bits a code, the code is q + 1, least significant first; padding is code 1.
pub fn pack(q: &[i8], columns: usize, packed: &mut [u8]) -> Result<()> {
    check_codes(q)?;
    let width = columns.div_ceil(4);
    for (row, to) in q.chunks_exact(columns.max(1)).zip(packed.chunks_exact_mut(width.max(1))) {
        to.fill(0b0101_0101);
        for (k, &code) in row.iter().enumerate() {
            let shift = 2 * (k & 3);
            to[k >> 2] = to[k >> 2] & !(3 << shift) | ((code + 1) as u8) << shift;
        }
    }
    Ok(())
}

/// The inverse of `pack`.
pub fn unpack(packed: &[u8], columns: usize, q: &mut [i8]) -> Result<()> {
    let width = columns.div_ceil(4);
    for (from, row) in packed.chunks_exact(width.max(1)).zip(q.chunks_exact_mut(columns.max(1))) {
        for k in 0..4 * width {
            let code = from[k >> 2] >> (2 * (k & 3)) & 3;
            require!(code != 3, Format, "packed weights hold code 3 at position {k}: expected 0, 1 or 2");
            if k < columns {
                row[k] = code as i8 - 1;
            } else {
                require!(code == 1, Format, "padding holds code {code} at position {k}: expected 1, a zero weight");
            }
        }
    }
    Ok(())
}

/// Five trits a byte, the first weight the least significant digit, q + 1 each; padding digits are 1.
pub fn unpack_base3(packed: &[u8], q: &mut [i8]) -> Result<()> {
    require!(packed.len() == q.len().div_ceil(5), Format, "{} bytes for {} trits", packed.len(), q.len());
    for (i, &byte) in packed.iter().enumerate() {
        require!(byte < 243, Format, "byte {i} is {byte}: five trits end at 242");
        let mut rest = byte;
        for k in 5 * i..5 * i + 5 {
            let digit = rest % 3;
            rest /= 3;
            match q.get_mut(k) {
                Some(code) => *code = digit as i8 - 1,
                None => require!(digit == 1, Format, "padding trit {k} is {digit}: expected 1, a zero weight"),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn painted(length: usize, mul: usize, modulus: usize, sub: i32) -> Vec<i32> {
        (0..length).map(|i| ((i * mul + i / 7) % modulus) as i32 - sub).collect()
    }

    #[test]
    fn kernels_equal_scalar() {
        for (rows, columns) in
            [(1, 1), (4, 16), (8, 16), (16, 16), (43, 16), (16, 43), (5, 64), (64, 64), (9, 171), (8, 80)]
        {
            let codes: Vec<i8> = painted(3 * rows * columns, 5, 3, 1).iter().map(|&v| v as i8).collect();
            let mut x: Vec<i16> = painted(columns, 97, 255, 127).iter().map(|&v| v as i16).collect();
            for extreme in [false, true] {
                if extreme {
                    x.fill(127);
                }
                for packed in [false, true] {
                    let m = TernaryMatrices::new(&codes, 3, rows, columns, packed).unwrap();
                    for count in [1, 2, 3, 4, 7] {
                        check_products(&m, &codes, &x, rows, columns, count);
                    }
                }
            }
        }
    }

    /// Three products, and one of each, for `count` columns that differ in sign.
    fn check_products(m: &TernaryMatrices, codes: &[i8], x: &[i16], rows: usize, columns: usize, count: usize) {
        let (width, height) = (round_up(columns, 16), m.padded_rows() + 8);
        let sign = |c: usize| if c.is_multiple_of(2) { 1i16 } else { -1 };
        let mut input = vec![0; count * 3 * width];
        for (c, column) in input.chunks_exact_mut(3 * width).enumerate() {
            for (j, component) in column.chunks_exact_mut(width).enumerate() {
                component.iter_mut().zip(x).for_each(|(to, &v)| *to = if j == 1 { 0 } else { v * sign(c) });
            }
        }
        let places =
            Places { columns: count, x_stride: width, x_column: 3 * width, out_stride: height, out_column: 4 * height };
        let product = |matrix, component, row, into| Product { matrix, component, row, into };
        let list = Plan::new(vec![
            product(2, 0, 0, Into::Store),
            product(1, 2, 1, Into::Add),
            product(0, 0, 2, Into::Subtract),
            product(0, 1, 2, Into::Add),
        ]);
        let (mut out, mut each) = (vec![7; count * 4 * height], vec![5; count * 4 * height]);
        m.multiply(&list, &input, &mut out, &places, &mut Vec::new());
        m.multiply_each(&Plan::one_each(3), &input, &mut each, &places, &mut Vec::new());
        for c in 0..count {
            let (out, each) = (&out[c * 4 * height..], &each[c * 4 * height..]);
            for (matrix, row, base, factor) in [(2, 0, 0, 1), (1, 1, 7, 1), (0, 2, 7, -1)] {
                let mut expected = vec![0; rows];
                multiply_scalar(x, &codes[matrix * rows * columns..][..rows * columns], &mut expected);
                expected.iter_mut().for_each(|v| *v *= i32::from(sign(c)));
                let by_matrix: Vec<i32> = expected.iter().map(|v| if matrix == 1 { 0 } else { *v }).collect();
                assert_eq!(&each[matrix * height..][..rows], by_matrix);
                let expected: Vec<i32> = expected.iter().map(|v| base + factor * v).collect();
                assert_eq!(&out[row * height..][..rows], expected, "{rows} x {columns}, {count} columns");
            }
            assert!(out[3 * height..4 * height].iter().all(|&v| v == 7));
        }
    }

    #[test]
    fn extreme_sums_fit_their_lanes() {
        for sign in [-1i8, 1] {
            for other in [-1i8, 1] {
                let codes: Vec<i8> = (0..8 * 64).map(|i| if i / 64 < 4 { sign } else { other }).collect();
                let m = TernaryMatrices::new(&codes, 1, 8, 64, false).unwrap();
                let mut out = vec![0; 8];
                let places = Places { columns: 1, x_stride: 64, x_column: 64, out_stride: 8, out_column: 8 };
                m.multiply(&Plan::one_each(1), &[127; 64], &mut out, &places, &mut Vec::new());
                assert_eq!(out[..4], [8128 * i32::from(sign); 4]);
                assert_eq!(out[4..], [8128 * i32::from(other); 4]);
            }
        }
    }

    #[test]
    fn packings_round_trip_and_refuse() {
        for columns in 1..20 {
            let q: Vec<i8> = painted(3 * columns, 2, 3, 1).iter().map(|&v| v as i8).collect();
            let mut packed = vec![0; 3 * columns.div_ceil(4)];
            pack(&q, columns, &mut packed).unwrap();
            let mut back = vec![9; q.len()];
            unpack(&packed, columns, &mut back).unwrap();
            assert_eq!(q, back);
        }
        let mut packed = [0; 2];
        pack(&[1, 0, -1, -1, 1], 5, &mut packed).unwrap();
        assert_eq!(packed, [6, 86]);
        assert!(unpack(&[6, 87], 5, &mut [0; 5]).is_err(), "code 3");
        assert!(unpack(&[6, 82], 5, &mut [0; 5]).is_err(), "padding");
        assert!(pack(&[2], 1, &mut [0]).is_err());
        let mut q = [9; 7];
        unpack_base3(&[242, 121], &mut q).unwrap();
        assert_eq!(q, [1, 1, 1, 1, 1, 0, 0]);
        assert!(unpack_base3(&[243, 121], &mut q).is_err() && unpack_base3(&[242, 120 + 9], &mut q).is_err());
        assert!(unpack_base3(&[242], &mut q).is_err());
    }
}
