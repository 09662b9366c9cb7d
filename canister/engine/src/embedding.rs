//! Embeddings and heads (SPEC.md, *embedding*): plain ones are a `RowTable`, hash embeddings several small ones.
//!
//! ```text
//! hash_embedding   e(t)     = (sum_i importance[t, i] * (f32(codes_i[h_i(t)]) * scales_i[h_i(t)])) * f32(scale)
//! hash_lm_head     logits_t = sum_i importance[t, i] * ((f32(a . codes_i[h_i(t)]) * r) * scales_i[h_i(t)])
//! ```

use crate::error::{Result, require, try_vec};
use crate::rows::{Query, RowTable};

/// `hash_indices` of one id.
pub fn hash_indices(id: usize, tables: usize) -> Result<Vec<usize>> {
    match tables {
        2 => Ok(vec![id % 1021, id / 1021]),
        3 => Ok(vec![id % 1021, id % 1019, id % 1013]),
        other => Err(crate::error::error!(Parameter, "{other} hash tables: expected 2 or 3")),
    }
}

/// Several small tables that make one embedding and its tied head.
pub struct HashTables {
    tables: Vec<RowTable>,
    /// [V, tables]
    importance: Vec<f32>,
    /// [V, tables], checked against the tables.
    indices: Vec<u32>,
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
        let mut checked = try_vec(importance.len(), 0u32)?;
        for id in 0..vocabulary {
            let defaults = if indices.is_none() { hash_indices(id, count)? } else { Vec::new() };
            for i in 0..count {
                let index = match &indices {
                    Some(indices) => indices.get(id * count + i).copied().unwrap_or(-1),
                    None => defaults[i] as i64,
                };
                require!(
                    (0..tables[i].rows() as i64).contains(&index),
                    Range,
                    "index {index} of id {id} in table {i}: expected 0 .. {}",
                    tables[i].rows() as i64 - 1
                );
                checked[id * count + i] = index as u32;
            }
        }
        if let Some(indices) = &indices {
            require!(
                indices.len() == importance.len(),
                Shape,
                "{} indices for {} importances",
                indices.len(),
                importance.len()
            );
        }
        Ok(Self { tables, importance, indices: checked })
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
        self.tables.iter().map(|table| 4 * table.rows()).sum::<usize>() + 8 * self.importance.len()
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
            table.embed(self.indices[id * count + i] as usize, row)?;
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
            for (id, out) in out.iter_mut().enumerate() {
                let at = (from + id) * count + i;
                let term = self.importance[at] * rows[self.indices[at] as usize];
                *out = if i == 0 { term } else { *out + term };
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
