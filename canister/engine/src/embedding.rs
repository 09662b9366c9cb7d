//! Embeddings and heads (SPEC.md, *embedding*): plain ones are a `RowTable`, hash embeddings several small ones.
//!
//! ```text
//! hash_embedding   e(t)     = (sum_i importance[t, i] * (f32(codes_i[h_i(t)]) * scales_i[h_i(t)])) * f32(scale)
//! hash_lm_head     logits_t = sum_i importance[t, i] * ((f32(a . codes_i[h_i(t)]) * r) * scales_i[h_i(t)])
//! ```

use crate::error::{Result, error, require, try_vec};
use crate::rows::{Query, RowTable};

/// `hash_indices` of one id.
pub fn hash_indices(id: usize, tables: usize) -> Result<Vec<usize>> {
    match tables {
        2 => Ok(vec![id % 1021, id / 1021]),
        3 => Ok(vec![id % 1021, id % 1019, id % 1013]),
        other => Err(error!(Parameter, "{other} hash tables: expected 2 or 3")),
    }
}

/// Several small tables that make one embedding and its tied head.
pub struct HashTables {
    tables: Vec<RowTable>,
    /// [V, tables]
    importance: Vec<f32>,
    /// [V, tables], checked against the tables; empty where they are those of `hash_indices`.
    indices: Vec<u32>,
}

/// Ids after which the indices of table `i` of `tables` begin anew, or for the second of two go up by one.
fn period(tables: usize, i: usize) -> usize {
    if tables == 2 { 1021 } else { [1021, 1019, 1013][i] }
}

impl HashTables {
    /// Tables of one width; indices default to `hash_indices`.
    pub fn new(tables: Vec<RowTable>, importance: Vec<f32>, indices: Option<Vec<i64>>) -> Result<Self> {
        let count = tables.len();
        require!(count > 0, Shape, "no hash tables: expected at least one");
        let width = tables[0].width();
        require!(tables.iter().all(|t| t.width() == width), Shape, "hash tables of different widths");
        require!(importance.len().is_multiple_of(count), Shape, "{} importances for {count} tables", importance.len());
        let vocabulary = importance.len() / count;
        let refuse = |index: i64, id: usize, i: usize| {
            let last = tables[i].rows() as i64 - 1;
            error!(Range, "index {index} of id {id} in table {i}: expected 0 .. {last}")
        };
        let Some(indices) = indices else {
            hash_indices(0, count)?;
            for (i, table) in tables.iter().enumerate() {
                // The first id whose index is the table's height.
                let first = if (count, i) == (2, 1) { table.rows() * period(2, 1) } else { table.rows() };
                let reached = first < vocabulary && ((count, i) == (2, 1) || first < period(count, i));
                if reached {
                    return Err(refuse(table.rows() as i64, first, i));
                }
            }
            return Ok(Self { tables, importance, indices: Vec::new() });
        };
        let (given, expected) = (indices.len(), importance.len());
        require!(given == expected, Shape, "{given} indices for {expected} importances");
        let mut checked = try_vec(expected, 0u32)?;
        for (at, (to, &index)) in checked.iter_mut().zip(&indices).enumerate() {
            let i = at % count;
            if !(0..tables[i].rows() as i64).contains(&index) {
                return Err(refuse(index, at / count, i));
            }
            *to = index as u32;
        }
        Ok(Self { tables, importance, indices: checked })
    }

    /// Row of table i that `id` has.
    fn index(&self, id: usize, i: usize) -> usize {
        let count = self.tables.len();
        match (self.indices.get(id * count + i), (count, i)) {
            (Some(&index), _) => index as usize,
            (None, (2, 1)) => id / period(2, 1),
            (None, _) => id % period(count, i),
        }
    }

    /// V.
    pub fn vocabulary(&self) -> usize {
        self.importance.len() / self.tables.len()
    }

    /// K.
    pub fn width(&self) -> usize {
        self.tables[0].width()
    }

    /// Rows of all tables together.
    pub fn rows(&self) -> usize {
        self.tables.iter().map(RowTable::rows).sum()
    }

    /// Whether any table has int4 rows.
    pub fn four_bits(&self) -> bool {
        self.tables.iter().any(RowTable::four_bits)
    }

    /// Bytes in memory besides the codes: scales, importance and indices.
    pub fn bytes_beside_codes(&self) -> usize {
        let tables = self.tables.iter().map(RowTable::bytes_beside_codes).sum::<usize>();
        tables + 4 * (self.importance.len() + self.indices.len())
    }

    /// Embedding of one id into e [K]; `row` is scratch [K].
    pub fn embed(&self, id: usize, scale: f32, e: &mut [f32], row: &mut [f32]) -> Result<()> {
        let (count, vocabulary) = (self.tables.len(), self.vocabulary());
        require!(
            id < vocabulary,
            Range,
            "id {id}: expected 0 .. {}; use ids of this vocabulary",
            vocabulary as i64 - 1
        );
        for (i, table) in self.tables.iter().enumerate() {
            let importance = self.importance[id * count + i];
            table.embed(self.index(id, i), row)?;
            for (e, v) in e.iter_mut().zip(row.iter()) {
                *e = if i == 0 { importance * v } else { *e + importance * v };
            }
        }
        if scale != 1.0 {
            e.iter_mut().for_each(|v| *v *= scale);
        }
        Ok(())
    }

    /// Products of one token with every row of every table, one vector after the other.
    pub fn row_logits(&self, query: &Query, rows: &mut Vec<f32>) {
        rows.resize(self.tables.iter().map(|t| t.rows()).sum(), 0.0);
        let mut rest = rows.as_mut_slice();
        for table in &self.tables {
            let (mine, others) = rest.split_at_mut(table.rows());
            table.logits(&mut [(query, mine)], 0);
            rest = others;
        }
    }

    /// Logits of ids `from .. from + out.len()` from `row_logits`.
    pub fn combine(&self, rows: &[f32], from: usize, out: &mut [f32]) {
        let count = self.tables.len();
        let mut start = 0;
        for (i, table) in self.tables.iter().enumerate() {
            let rows = &rows[start..start + table.rows()];
            let mut at = 0;
            while at < out.len() {
                // Ids up to the next period have indices that go up together, or stay.
                let (id, mut index) = (from + at, self.index(from + at, i));
                let (most, step) = match (self.indices.is_empty(), (count, i)) {
                    (false, _) => (1, 0),
                    (true, (2, 1)) => (period(2, 1) - id % period(2, 1), 0),
                    (true, _) => (period(count, i) - id % period(count, i), 1),
                };
                let run = most.min(out.len() - at);
                let importance = self.importance[id * count..].iter().skip(i).step_by(count);
                for (out, importance) in out[at..at + run].iter_mut().zip(importance) {
                    let term = importance * rows[index];
                    *out = if i == 0 { term } else { *out + term };
                    index += step;
                }
                at += run;
            }
            start += table.rows();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashing_is_the_pinned_one() {
        assert_eq!(hash_indices(50256, 2).unwrap(), [227, 49]);
        assert!(hash_indices(0, 4).is_err());
    }
}
