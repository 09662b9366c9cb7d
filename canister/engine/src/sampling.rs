//! Sampling (SPEC.md, *sampling*).
//!
//! ```text
//! l = logits with the repetition penalty;                  temperature 0: the argmax, lowest id first
//! l = l / temperature, sorted by (l descending, id ascending), the first top_k kept
//! p = exp(l - max) / hsum(exp(l - max));  cum = running sums in sorted order;  shortest prefix with cum >= top_p kept
//! the answer is the first kept id with cum > u * total,    u = uniform(seed, position)
//! ```

use crate::activations::absmax_bits;
use crate::arithmetic::{exp, hsum_in_place};
use crate::error::{Result, require, try_vec};
use crate::simd::*;

/// How to draw.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// 0 for the argmax.
    pub temperature: f32,
    /// How many of the likeliest ids are kept; 0: all.
    pub top_k: usize,
    /// The probability at which the kept prefix ends.
    pub top_p: f32,
    /// Above 1 makes ids of the history less likely.
    pub repetition_penalty: f32,
    /// Of the stateless generator.
    pub seed: u64,
}

impl Sampling {
    /// Refuse parameters outside their domain.
    pub fn check(&self) -> Result<()> {
        let Self { temperature, top_p, repetition_penalty, .. } = *self;
        require!(temperature >= 0.0, Parameter, "temperature {temperature}: expected 0 (greedy) or more");
        require!(top_p > 0.0 && top_p <= 1.0, Parameter, "top_p {top_p}: expected more than 0 and at most 1");
        require!(
            repetition_penalty > 0.0 && repetition_penalty.is_finite(),
            Parameter,
            "repetition_penalty {repetition_penalty}: expected a finite number above 0"
        );
        Ok(())
    }
}

/// mix(seed + (position + 1) * golden) >> 40, times 2^-24 (splitmix64): a multiple of 2^-24 in [0, 1).
pub fn uniform(seed: u64, position: u64) -> f32 {
    let mut z = seed.wrapping_add(position.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    (z >> 40) as f32 * (1.0 / 16_777_216.0)
}

/// Scratch of sampling; grows to the vocabulary.
#[derive(Default)]
pub struct Scratch {
    logits: Vec<f32>,
    seen: Vec<bool>,
    keys: Vec<u64>,
    spare: Vec<u64>,
    e: Vec<f32>,
}

/// Draw one token from logits [V]; `history` holds ids, negative ones unused.
// Never inlined: a caller may be compiled for size, and profiles look for the name.
#[inline(never)]
pub fn sample(
    logits: &[f32],
    history: &[i64],
    sampling: &Sampling,
    position: u64,
    scratch: &mut Scratch,
) -> Result<usize> {
    sampling.check()?;
    require!(!logits.is_empty(), Shape, "no logits: expected at least one");
    let vocabulary = logits.len();
    let finite = absmax_bits(logits) < f32::INFINITY.to_bits();
    require!(finite, NonFinite, "logits hold NaN or infinity: expected finite numbers");
    if sampling.temperature == 0.0 && (sampling.repetition_penalty == 1.0 || history.is_empty()) {
        check_history(history, vocabulary)?;
        return Ok(argmax(logits));
    }
    scratch.logits.clear();
    scratch.logits.extend_from_slice(logits);
    let penalty = sampling.repetition_penalty;
    check_history(history, vocabulary)?;
    if penalty != 1.0 {
        scratch.seen.clear();
        scratch.seen.resize(vocabulary, false);
        for &id in history {
            if id >= 0 && !scratch.seen[id as usize] {
                scratch.seen[id as usize] = true;
                let l = &mut scratch.logits[id as usize];
                *l = if *l > 0.0 { *l / penalty } else { *l * penalty };
            }
        }
    }
    if sampling.temperature == 0.0 {
        return Ok(argmax(&scratch.logits));
    }
    scratch.logits.iter_mut().for_each(|l| *l /= sampling.temperature);
    sort(scratch, sampling.top_k)?;
    draw(scratch, sampling.top_p, uniform(sampling.seed, position))
}

fn check_history(history: &[i64], vocabulary: usize) -> Result<()> {
    let bad = history.iter().find(|&&id| !(-1..vocabulary as i64).contains(&id));
    require!(bad.is_none(), Range, "history holds {:?}: expected -1 .. {}", bad, vocabulary - 1);
    Ok(())
}

/// The first of the largest.
fn argmax(logits: &[f32]) -> usize {
    let body = &logits[..logits.len() & !15];
    let largest = maximum(logits);
    let wanted = f32x4_splat(largest);
    let holds = |sixteen: &[f32]| {
        // SAFETY: sixteen floats are four vectors.
        let at = |i: usize| unsafe { v128_load(sixteen.as_ptr().add(4 * i).cast()) };
        let most = f32x4_pmax(f32x4_pmax(at(0), at(1)), f32x4_pmax(at(2), at(3)));
        v128_any_true(f32x4_eq(most, wanted))
    };
    let before = 16 * body.chunks_exact(16).position(holds).unwrap_or(body.len() / 16);
    // Zeros of either sign are one value, as they are to `==`.
    before + logits[before..].iter().position(|&l| l == largest).unwrap_or(0)
}

/// Larger for smaller floats, equal for both zeros: sorting (key, id) upwards sorts by (l descending, id ascending).
fn descending_key(l: f32) -> u32 {
    let bits = (l + 0.0).to_bits();
    if bits >> 31 == 1 { bits } else { !bits & 0x7fff_ffff }
}

fn key(id: usize, l: f32) -> u64 {
    u64::from(descending_key(l)) << 32 | id as u64
}

/// Ids of a group that are passed over together.
const GROUP: usize = 64;

/// Keys of a few ids, the `count` likeliest among them: as many groups have a maximum that is no less than the `count`-th
/// largest of all maxima, so that no id below it is among the likeliest.
fn shortlist(scratch: &mut Scratch, count: usize) {
    let Scratch { logits, keys, e: largest, .. } = scratch;
    largest.clear();
    largest.extend(logits.chunks(GROUP).map(maximum));
    keys.clear();
    keys.extend(largest.iter().map(|&l| u64::from(descending_key(l))));
    keys.select_nth_unstable(count - 1);
    let last = keys[count - 1] as u32;
    keys.clear();
    for (group, &most) in largest.iter().enumerate() {
        if descending_key(most) <= last {
            let ids = logits.iter().enumerate().skip(GROUP * group).take(GROUP);
            keys.extend(ids.filter(|&(_, &l)| descending_key(l) <= last).map(|(id, &l)| key(id, l)));
        }
    }
}

/// The largest of some logits; of zeros either.
fn maximum(logits: &[f32]) -> f32 {
    let mut most = f32x4_splat(f32::NEG_INFINITY);
    let (body, tail) = logits.split_at(logits.len() & !15);
    for sixteen in body.chunks_exact(16) {
        // SAFETY: sixteen floats are four vectors.
        let at = |i: usize| unsafe { v128_load(sixteen.as_ptr().add(4 * i).cast()) };
        most = f32x4_pmax(most, f32x4_pmax(f32x4_pmax(at(0), at(1)), f32x4_pmax(at(2), at(3))));
    }
    f32x4_lanes(most).into_iter().chain(tail.iter().copied()).fold(f32::NEG_INFINITY, f32::max)
}

/// The kept ids in order, in `keys` (id in the low half).
fn sort(scratch: &mut Scratch, top_k: usize) -> Result<()> {
    let vocabulary = scratch.logits.len();
    if top_k > 0 && top_k <= vocabulary / GROUP {
        shortlist(scratch, top_k);
    } else {
        scratch.keys.clear();
        scratch.keys.extend(scratch.logits.iter().enumerate().map(|(id, &l)| key(id, l)));
    }
    if top_k > 0 && top_k < scratch.keys.len() {
        scratch.keys.select_nth_unstable(top_k - 1);
        scratch.keys.truncate(top_k);
    }
    if scratch.keys.len() <= 256 {
        scratch.keys.sort_unstable();
    } else {
        radix_sort(&mut scratch.keys, &mut scratch.spare);
    }
    Ok(())
}

/// Sort by the upper half, stably: after a selection ids may be out of order, so their bytes are sorted first.
fn radix_sort(keys: &mut Vec<u64>, spare: &mut Vec<u64>) {
    spare.clear();
    spare.resize(keys.len(), 0);
    for shift in (0..64).step_by(8) {
        let mut counts = [0usize; 256];
        keys.iter().for_each(|key| counts[(key >> shift & 255) as usize] += 1);
        if counts.contains(&keys.len()) {
            continue;
        }
        let mut next = 0;
        for count in &mut counts {
            (*count, next) = (next, next + *count);
        }
        for &key in keys.iter() {
            let place = &mut counts[(key >> shift & 255) as usize];
            spare[*place] = key;
            *place += 1;
        }
        std::mem::swap(keys, spare);
    }
}

fn draw(scratch: &mut Scratch, top_p: f32, u: f32) -> Result<usize> {
    let id = |key: u64| (key & 0xffff_ffff) as usize;
    let vocabulary = scratch.logits.len();
    let max = scratch.logits[id(scratch.keys[0])];
    scratch.e.clear();
    scratch.e.extend(scratch.keys.iter().map(|&key| exp(scratch.logits[id(key)] - max)));
    let total = if scratch.keys.len() * 16 < vocabulary {
        sparse_hsum(scratch.keys.iter().map(|&key| id(key)).zip(scratch.e.iter().copied()), vocabulary)
    } else {
        let mut dense = try_vec(vocabulary, 0.0f32)?;
        scratch.keys.iter().zip(&scratch.e).for_each(|(&key, &e)| dense[id(key)] = e);
        hsum_in_place(&mut dense)
    };
    let (mut cum, mut kept) = (0.0f32, scratch.e.len());
    for (i, e) in scratch.e.iter_mut().enumerate() {
        let p = *e / total;
        cum = if i == 0 { p } else { cum + p };
        *e = cum;
        if cum >= top_p {
            kept = i + 1;
            break;
        }
    }
    let cums = &scratch.e[..kept];
    let threshold = u * cums[kept - 1];
    let chosen = cums.iter().position(|&cum| cum > threshold).unwrap_or(kept - 1);
    Ok(id(scratch.keys[chosen]))
}

/// hsum over 0 .. length - 1 of a few (index, value), +0 elsewhere.
///
/// Halving adds index i and i + half: numbers meet when their low bits agree. Ordered by reversed bits, those that meet
/// next are neighbours at every level.
fn sparse_hsum(terms: impl Iterator<Item = (usize, f32)>, length: usize) -> f32 {
    let bits = length.next_power_of_two().trailing_zeros();
    // Sorted as the numbers that are sorted elsewhere: another sort is another twenty kilobytes of code.
    let key =
        |(index, value): (usize, f32)| u64::from((index as u32).reverse_bits()) << 32 | u64::from(value.to_bits());
    let mut keys: Vec<u64> = terms.map(key).collect();
    keys.sort_unstable();
    let term = |key: u64| (((key >> 32) as u32).reverse_bits() as usize, f32::from_bits(key as u32));
    let mut terms: Vec<(usize, f32)> = keys.into_iter().map(term).collect();
    for level in (0..bits).rev() {
        let mask = (1usize << level) - 1;
        let mut merged: Vec<(usize, f32)> = Vec::with_capacity(terms.len());
        for (index, value) in terms {
            match merged.last_mut() {
                Some((last, sum)) if *last == index & mask => *sum += value,
                _ => merged.push((index & mask, value)),
            }
        }
        terms = merged;
    }
    terms.first().map_or(0.0, |&(_, sum)| sum) + 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(temperature: f32) -> Sampling {
        Sampling { temperature, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, seed: 5 }
    }

    #[test]
    fn greedy_takes_the_lowest_id() {
        let mut scratch = Scratch::default();
        assert_eq!(sample(&[0.0, 3.0, 3.0], &[], &plain(0.0), 0, &mut scratch).unwrap(), 1);
        let penalised = Sampling { repetition_penalty: 4.0, ..plain(0.0) };
        assert_eq!(sample(&[0.0, 3.0, 2.0], &[1, 1, -1], &penalised, 0, &mut scratch).unwrap(), 2);
    }

    #[test]
    fn argmax_finds_the_first_wherever_it_is() {
        for length in [1, 5, 16, 17, 40] {
            for at in 0..length {
                let mut logits = vec![-3.0; length];
                logits[at] = -0.0;
                logits[length - 1] = 0.0;
                assert_eq!(argmax(&logits), at);
            }
        }
    }

    #[test]
    fn a_shortlist_holds_the_likeliest_in_order() {
        for (vocabulary, top_k) in [(6400, 1), (6400, 100), (6400, 101), (6463, 100), (640, 10), (1000, 15)] {
            for values in [3, 17, 100_000] {
                // Few values: ties across groups and across the end of the list, zeros of both signs among them.
                let logits: Vec<f32> = (0..vocabulary as i64)
                    .map(|i| {
                        (((i * 2_654_435_761) >> 7) % values - values / 2) as f32 * if i % 2 == 0 { 0.5 } else { -0.5 }
                    })
                    .collect();
                let mut expected: Vec<usize> = (0..vocabulary).collect();
                expected.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap().then(a.cmp(&b)));
                let mut scratch = Scratch { logits, ..Scratch::default() };
                sort(&mut scratch, top_k).unwrap();
                let found: Vec<usize> = scratch.keys.iter().map(|key| (key & 0xffff_ffff) as usize).collect();
                assert_eq!(found, expected[..top_k], "{vocabulary} ids, {top_k} kept, {values} values");
            }
        }
    }

    #[test]
    fn sparse_sums_equal_dense_ones() {
        let terms: Vec<(usize, f32)> = (0..40).map(|i| (i * 1237 % 50257, 0.1 + i as f32 * 0.37)).collect();
        let mut dense = vec![0.0; 50257];
        terms.iter().for_each(|&(i, v)| dense[i] = v);
        assert_eq!(sparse_hsum(terms.into_iter(), 50257).to_bits(), hsum_in_place(&mut dense).to_bits());
    }

    #[test]
    fn a_share_that_ends_on_the_threshold_is_passed_over() {
        for (vocabulary, expected) in [(2, 1), (4, 2)] {
            let logits = vec![0.0; vocabulary];
            let mut scratch = Scratch { logits: logits.clone(), ..Scratch::default() };
            sort(&mut scratch, 0).unwrap();
            assert_eq!(draw(&mut scratch, 1.0, 0.5).unwrap(), expected);
            // The seed whose first number is one half: the finaliser of splitmix64, undone.
            let half = Sampling { seed: 0x2fed_f1ef_ce1d_5545, ..plain(1.0) };
            assert_eq!(uniform(half.seed, 0), 0.5);
            assert_eq!(sample(&logits, &[], &half, 0, &mut scratch).unwrap(), expected);
        }
    }

    #[test]
    fn sorting_is_by_logit_then_id() {
        let logits: Vec<f32> = (0..1000).map(|i| ((i * 7919 % 31) as f32 - 15.0) * 0.5).collect();
        let mut expected: Vec<usize> = (0..1000).collect();
        expected.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        for top_k in [0, 5, 600, 1000, 2000] {
            let mut scratch = Scratch { logits: logits.clone(), ..Scratch::default() };
            sort(&mut scratch, top_k).unwrap();
            let ids: Vec<usize> = scratch.keys.iter().map(|key| (key & 0xffff_ffff) as usize).collect();
            let length = if top_k == 0 { 1000 } else { top_k.min(1000) };
            assert_eq!(ids, expected[..length]);
        }
        assert_eq!(descending_key(0.0), descending_key(-0.0));
    }

    #[test]
    fn bad_parameters_are_refused() {
        let mut scratch = Scratch::default();
        for bad in [
            plain(-1.0),
            plain(f32::NAN),
            Sampling { top_p: 0.0, ..plain(1.0) },
            Sampling { top_p: 1.5, ..plain(1.0) },
            Sampling { repetition_penalty: 0.0, ..plain(1.0) },
            Sampling { repetition_penalty: f32::NAN, ..plain(1.0) },
        ] {
            assert!(sample(&[1.0, 2.0], &[], &bad, 0, &mut scratch).is_err());
        }
        assert!(sample(&[1.0, f32::NAN], &[], &plain(1.0), 0, &mut scratch).is_err());
        assert!(sample(&[1.0, 2.0], &[2], &plain(1.0), 0, &mut scratch).is_err());
        assert!(sample(&[], &[], &plain(1.0), 0, &mut scratch).is_err());
    }
}
