//! `walsh_float_*`: embeddings, heads and losses in ordinary arithmetic, on float32 tables.
//!
//! The contract is that of `exports`. Tables of a hash embedding stand one under the other.

use super::{read, run, write};
use crate::error::{Result, require, try_vec};
use crate::float::dot;

/// ids [count], table [V, C] -> e [count, C].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_float_embedding(
    ids: *const i64,
    count: usize,
    table: *const f32,
    v: usize,
    c: usize,
    e: *mut f32,
) -> i32 {
    run(|_| {
        // SAFETY: the host's promise.
        let (ids, table, e) = unsafe { (read(ids, count)?, read(table, v * c)?, write(e, count * c)?) };
        for (i, &id) in ids.iter().enumerate() {
            require!((0..v as i64).contains(&id), Range, "id {id}: expected 0 .. {}", v as i64 - 1);
            e[i * c..][..c].copy_from_slice(&table[id as usize * c..][..c]);
        }
        Ok(0)
    })
}

/// x [tokens, C], table [V, C] -> logits [tokens, V].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_float_lm_head(
    x: *const f32,
    tokens: usize,
    table: *const f32,
    v: usize,
    c: usize,
    logits: *mut f32,
) -> i32 {
    run(|_| {
        // SAFETY: the host's promise.
        let (x, table, logits) = unsafe { (read(x, tokens * c)?, read(table, v * c)?, write(logits, tokens * v)?) };
        for t in 0..tokens {
            for row in 0..v {
                logits[t * v + row] = dot(&x[t * c..][..c], &table[row * c..][..c]);
            }
        }
        Ok(0)
    })
}

/// Loss of one token: ln sum exp(logits) - logits[target].
fn token_loss(logits: &[f32], target: i64) -> Result<f64> {
    let at = usize::try_from(target).unwrap_or(usize::MAX);
    require!(at < logits.len(), Range, "target {target}: expected -1 .. {}", logits.len() as i64 - 1);
    let nan = logits.iter().any(|v| v.is_nan());
    let most = logits.iter().fold(f64::NEG_INFINITY, |most, &v| most.max(f64::from(v)));
    let sum: f64 = logits.iter().map(|&v| (f64::from(v) - most).exp()).sum();
    Ok(if nan { f64::NAN } else { sum.ln() + most - f64::from(logits[at]) })
}

/// Mean of the losses of tokens whose target is not -1; 0 without any.
fn mean_loss(targets: &[i64], mut loss: impl FnMut(usize) -> Result<f64>) -> Result<f64> {
    let (mut total, mut counted) = (0.0, 0);
    for (t, _) in targets.iter().enumerate().filter(|(_, target)| **target != -1) {
        total += loss(t)?;
        counted += 1;
    }
    Ok(if counted == 0 { 0.0 } else { total / f64::from(counted) })
}

/// logits [rows, V], targets [rows], -1 where there is none -> the mean loss (float64).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_float_cross_entropy(
    logits: *const f32,
    targets: *const i64,
    rows: usize,
    v: usize,
    loss: *mut f64,
) -> i32 {
    run(|_| {
        // SAFETY: the host's promise.
        let (logits, targets, loss) = unsafe { (read(logits, rows * v)?, read(targets, rows)?, write(loss, 1)?) };
        loss[0] = mean_loss(targets, |t| token_loss(&logits[t * v..][..v], targets[t]))?;
        Ok(0)
    })
}

/// x [rows, C], table [V, C], targets [rows] -> the mean loss of the tied head; logits of one token at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_float_linear_cross_entropy(
    x: *const f32,
    table: *const f32,
    targets: *const i64,
    rows: usize,
    v: usize,
    c: usize,
    loss: *mut f64,
) -> i32 {
    run(|_| {
        // SAFETY: the host's promise.
        let (x, table, targets, loss) =
            unsafe { (read(x, rows * c)?, read(table, v * c)?, read(targets, rows)?, write(loss, 1)?) };
        let mut logits = try_vec(v, 0.0)?;
        loss[0] = mean_loss(targets, |t| {
            logits.iter_mut().enumerate().for_each(|(row, to)| *to = dot(&x[t * c..][..c], &table[row * c..][..c]));
            token_loss(&logits, targets[t])
        })?;
        Ok(0)
    })
}

/// Tables of a hash embedding, one under the other [P, C]; importance and rows of them [V, tables].
struct Hash<'a> {
    table: &'a [f32],
    importance: &'a [f32],
    rows: &'a [i64],
    tables: usize,
    c: usize,
}

impl<'a> Hash<'a> {
    /// # Safety
    /// See `exports`.
    unsafe fn new(
        (table, p, c): (*const f32, usize, usize),
        (importance, rows, v, tables): (*const f32, *const i64, usize, usize),
    ) -> Result<Self> {
        // SAFETY: the host's promise.
        let (table, importance, rows) =
            unsafe { (read(table, p * c)?, read(importance, v * tables)?, read(rows, v * tables)?) };
        let bad = rows.iter().find(|row| !(0..p as i64).contains(row));
        require!(bad.is_none(), Range, "row {bad:?} of hash tables: expected 0 .. {}", p as i64 - 1);
        Ok(Self { table, importance, rows, tables, c })
    }

    /// (importance, row) of an id, table by table.
    fn terms(&self, id: usize) -> impl Iterator<Item = (f64, &'a [f32])> {
        let (at, table, c) = (id * self.tables..(id + 1) * self.tables, self.table, self.c);
        let factors = self.importance[at.clone()].iter().map(|&factor| f64::from(factor));
        factors.zip(self.rows[at].iter().map(move |&row| &table[row as usize * c..][..c]))
    }
}

/// ids [count], table [P, C], importance and rows [V, tables] -> e [count, C].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_float_hash_embedding(
    ids: *const i64,
    count: usize,
    table: *const f32,
    p: usize,
    c: usize,
    importance: *const f32,
    rows: *const i64,
    v: usize,
    tables: usize,
    scale: f64,
    e: *mut f32,
) -> i32 {
    run(|_| {
        // SAFETY: the host's promise.
        let (ids, hash, e) = unsafe {
            (read(ids, count)?, Hash::new((table, p, c), (importance, rows, v, tables))?, write(e, count * c)?)
        };
        for (i, &id) in ids.iter().enumerate() {
            require!((0..v as i64).contains(&id), Range, "id {id}: expected 0 .. {}", v as i64 - 1);
            for (at, e) in e[i * c..][..c].iter_mut().enumerate() {
                *e = (scale * hash.terms(id as usize).map(|(w, row)| w * f64::from(row[at])).sum::<f64>()) as f32;
            }
        }
        Ok(0)
    })
}

/// x [tokens, C], table [P, C], importance and rows [V, tables] -> logits [tokens, V].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_float_hash_lm_head(
    x: *const f32,
    tokens: usize,
    table: *const f32,
    p: usize,
    c: usize,
    importance: *const f32,
    rows: *const i64,
    v: usize,
    tables: usize,
    logits: *mut f32,
) -> i32 {
    run(|_| {
        // SAFETY: the host's promise.
        let (x, hash, logits) = unsafe {
            (read(x, tokens * c)?, Hash::new((table, p, c), (importance, rows, v, tables))?, write(logits, tokens * v)?)
        };
        for t in 0..tokens {
            let x = &x[t * c..][..c];
            for (id, logit) in logits[t * v..][..v].iter_mut().enumerate() {
                *logit = hash.terms(id).map(|(w, row)| w * f64::from(dot(x, row))).sum::<f64>() as f32;
            }
        }
        Ok(0)
    })
}
