//! Bitmask codec (SPEC.md, *bitmask*): one bit per weight, and one per non-zero.
//!
//! Position p (row-major) is bit `p & 7` of byte `p >> 3` of the mask, 1 = non-zero; signs hold one bit per non-zero in
//! the same order, 1 = +1; padding bits are 0.

use crate::error::{Result, require};
use crate::ternary::check_codes;

/// Encode codes; mask has ceil(P / 8) bytes, signs grow as needed.
pub fn encode(q: &[i8]) -> Result<(Vec<u8>, Vec<u8>)> {
    check_codes(q)?;
    let mut mask = vec![0u8; q.len().div_ceil(8)];
    let mut signs = Vec::new();
    for (count, (p, &code)) in q.iter().enumerate().filter(|(_, code)| **code != 0).enumerate() {
        mask[p >> 3] |= 1 << (p & 7);
        if count & 7 == 0 {
            signs.push(0);
        }
        if let (true, Some(last)) = (code > 0, signs.last_mut()) {
            *last |= 1 << (count & 7);
        }
    }
    Ok((mask, signs))
}

/// Decode into q; every bit of both must be accounted for.
pub fn decode(mask: &[u8], signs: &[u8], q: &mut [i8]) -> Result<()> {
    require!(mask.len() == q.len().div_ceil(8), Format, "mask of {} bytes for {} weights", mask.len(), q.len());
    let ones: usize = mask.iter().map(|byte| byte.count_ones() as usize).sum();
    require!(signs.len() == ones.div_ceil(8), Format, "{} sign bytes for {ones} non-zeros", signs.len());
    let padding = |bytes: &[u8], bits: usize| bits & 7 != 0 && bytes.last().is_some_and(|last| last >> (bits & 7) != 0);
    require!(!padding(mask, q.len()), Format, "a padding bit of the mask is set");
    require!(!padding(signs, ones), Format, "a padding bit of the signs is set");
    let mut count = 0;
    for (p, code) in q.iter_mut().enumerate() {
        *code = 0;
        if mask[p >> 3] >> (p & 7) & 1 == 1 {
            *code = if signs[count >> 3] >> (count & 7) & 1 == 1 { 1 } else { -1 };
            count += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_at_every_length() {
        for length in 0..131 {
            let q: Vec<i8> = (0..length).map(|i| ((i * 7 + i / 5) % 3) as i8 - 1).collect();
            let (mask, signs) = encode(&q).unwrap();
            let mut back = vec![9; length];
            decode(&mask, &signs, &mut back).unwrap();
            assert_eq!(q, back);
        }
        assert_eq!(encode(&[1, 0, -1, 0, 0, 0, 0, 0, 1]).unwrap(), (vec![5, 1], vec![5]));
    }

    #[test]
    fn malformed_masks_are_refused() {
        let mut q = [0; 9];
        assert!(decode(&[5, 1], &[5], &mut q).is_ok());
        assert!(decode(&[5], &[5], &mut q).is_err(), "short mask");
        assert!(decode(&[5, 3], &[5], &mut q).is_err(), "padding bit of the mask");
        assert!(decode(&[5, 1], &[13], &mut q).is_err(), "padding bit of the signs");
        assert!(decode(&[5, 1], &[], &mut q).is_err(), "no signs");
        assert!(decode(&[5, 1], &[5, 0], &mut q).is_err(), "too many signs");
    }
}
