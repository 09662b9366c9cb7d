//! Component-major features in padded blocks: the layout in which linear layers read and write.
//!
//! A feature axis of n*K is n blocks of K. Kernels want every block to start at a multiple of 16 and to be followed by
//! zeros up to one, so block g of K features lives at `g * stride`, `stride` = K rounded up to 16. Where K is a multiple
//! of 16 already, the padded layout *is* the plain one and nothing is copied.

use crate::arithmetic::round_up;

/// Distance between the starts of two blocks of `k` features.
pub const fn stride(k: usize) -> usize {
    round_up(k, 16)
}

/// Plain features [n*K] into padded blocks [n, stride]; the padding becomes zero.
pub fn spread(x: &[f32], k: usize, blocks: &mut [f32]) {
    let stride = stride(k);
    for (from, to) in x.chunks_exact(k.max(1)).zip(blocks.chunks_exact_mut(stride.max(1))) {
        to[..k].copy_from_slice(from);
        to[k..].fill(0.0);
    }
}

/// Padded blocks [n, stride] into plain features [n*K].
pub fn gather(blocks: &[f32], k: usize, x: &mut [f32]) {
    let stride = stride(k);
    for (to, from) in x.chunks_exact_mut(k.max(1)).zip(blocks.chunks_exact(stride.max(1))) {
        to.copy_from_slice(&from[..k]);
    }
}
