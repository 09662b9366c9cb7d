//! Little-endian numbers at the front of saved bytes, and floats at their end; see `saved`.

use crate::error::{Result, error, require};

/// Bytes that are taken from the front.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `length` bytes.
    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or_else(|| {
            error!(Format, "a saved sequence ends {length} bytes early or sooner; it was not saved whole")
        })?;
        self.0 = rest;
        Ok(taken)
    }

    /// The next number, unsigned.
    pub(crate) fn number(&mut self) -> Result<usize> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
    }

    /// The next `count` ids of a vocabulary.
    pub(crate) fn ids(&mut self, count: usize, vocabulary: usize) -> Result<Vec<i64>> {
        let bytes = self.take(count.saturating_mul(4))?;
        let ids: Vec<i64> =
            bytes.chunks_exact(4).map(|b| i64::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect();
        let bad = ids.iter().find(|&&id| id >= vocabulary as i64);
        require!(bad.is_none(), Format, "a saved sequence holds id {bad:?} of a vocabulary of {vocabulary}");
        Ok(ids)
    }

    /// Finite numbers into `out`.
    pub(crate) fn floats(&mut self, out: &mut [f32]) -> Result<()> {
        let bytes = self.take(4 * out.len())?;
        for (value, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
            *value = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            require!(value.is_finite(), Format, "a saved sequence holds {value}: expected finite numbers");
        }
        Ok(())
    }
}

/// Numbers as bytes.
pub(crate) fn put_floats(out: &mut Vec<u8>, values: &[f32]) {
    out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}
