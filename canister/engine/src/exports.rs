//! The plain C face of the engine: what a WebAssembly host calls. No imports.
//!
//! Every function that can be refused returns a negative `Kind` then, and the text is at `walsh_error_message`. Otherwise
//! it returns 0, a count or a handle. Tensors are little-endian and row-major in linear memory that `walsh_alloc` gave
//! (16-byte aligned). Models, sessions and caches are named by handles, never by pointers.
//!
//! `walsh_op_*` are the single operations, for conformance; `walsh_use_scalar(1)` runs their definitions, one number at a
//! time, instead of the kernels.
//!
//! # Safety
//! Pointers must name as many elements as the sizes beside them say; a host that lies reads or writes its own linear memory
//! elsewhere, nothing else. Everything that comes from files, prompts and parameters is checked.

#![allow(clippy::missing_safety_doc, clippy::too_many_arguments)] // one contract, above; arguments are those of SPEC.md

use std::alloc::{Layout as Allocation, alloc_zeroed, dealloc};
use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::activations::{quantize, quantize_scalar};
use crate::arithmetic::{exp, exp4};
use crate::attention::{self, attend, attend_scalar};
use crate::blocks::{gather, spread, stride};
use crate::cayley_dickson::{self, CayleyDicksonLinear, Layout};
use crate::config::MAX_WIDTH;
use crate::embedding::{Bytes, HashTables, Query, RowTable};
use crate::error::{Error, Result, checked_product, error, require, try_vec};
use crate::forward::{Model, Session};
use crate::hadamard::{self, HadamardLinear, check_size};
use crate::head_mixer::{self, Algebra, HeadMixer};
use crate::kv_cache::KvCache;
use crate::rms_norm::{rms_norm, rms_norm_scalar};
use crate::rope::Rotation;
use crate::sampling::{self, Sampling};
use crate::simd::*;
use crate::swiglu::{swiglu, swiglu_scalar};
use crate::tokenizer::Stream;
use crate::{bitmask, ternary};

/// Everything that lives between calls.
#[derive(Default)]
struct Engine {
    file: Vec<u8>,
    models: BTreeMap<i32, Model>,
    sessions: BTreeMap<i32, Open>,
    caches: BTreeMap<i32, KvCache>,
    next: i32,
    message: String,
    result: Vec<u8>,
    scalar: bool,
    attention: attention::Scratch,
    sampling: sampling::Scratch,
}

struct Open {
    model: i32,
    session: Session,
    stream: Stream,
}

thread_local! {
    static ENGINE: RefCell<Engine> = RefCell::new(Engine::default());
}

/// Run with the engine; an error becomes its code and leaves its text.
fn run(work: impl FnOnce(&mut Engine) -> Result<i32>) -> i32 {
    ENGINE.with_borrow_mut(|engine| match work(engine) {
        Ok(value) => value,
        Err(Error { kind, message }) => {
            engine.message = message;
            -(kind as i32)
        }
    })
}

impl Engine {
    fn handle(&mut self) -> i32 {
        self.next += 1;
        self.next
    }

    fn model(&mut self, handle: i32) -> Result<&mut Model> {
        self.models.get_mut(&handle).ok_or_else(|| error!(Parameter, "model {handle} does not exist"))
    }

    fn cache(&mut self, handle: i32) -> Result<&mut KvCache> {
        self.caches.get_mut(&handle).ok_or_else(|| error!(Parameter, "cache {handle} does not exist"))
    }

    fn session(&mut self, handle: i32) -> Result<(&mut Model, &mut Open)> {
        let open = self.sessions.get_mut(&handle).ok_or_else(|| error!(Parameter, "session {handle} does not exist"))?;
        let model = self.models.get_mut(&open.model).ok_or_else(|| error!(Parameter, "its model was dropped"))?;
        Ok((model, open))
    }
}

/// `length` elements at a pointer.
///
/// # Safety
/// See the module.
unsafe fn read<'a, T>(pointer: *const T, length: usize) -> Result<&'a [T]> {
    require!(pointer.is_aligned() && (!pointer.is_null() || length == 0), Parameter, "pointer {pointer:?} is not aligned");
    // SAFETY: the host's promise; alignment has been checked.
    Ok(if length == 0 { &[] } else { unsafe { std::slice::from_raw_parts(pointer, length) } })
}

/// `length` elements at a pointer, to be written.
///
/// # Safety
/// See the module.
unsafe fn write<'a, T>(pointer: *mut T, length: usize) -> Result<&'a mut [T]> {
    require!(pointer.is_aligned() && (!pointer.is_null() || length == 0), Parameter, "pointer {pointer:?} is not aligned");
    // SAFETY: as above; the host keeps inputs and outputs apart.
    Ok(if length == 0 { &mut [] } else { unsafe { std::slice::from_raw_parts_mut(pointer, length) } })
}

const ALIGNMENT: usize = 16;

/// `length` bytes of zeroed memory, or 0 where there is no more.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_alloc(length: usize) -> *mut u8 {
    match Allocation::from_size_align(length.max(1), ALIGNMENT) {
        // SAFETY: the size is not zero.
        Ok(layout) => unsafe { alloc_zeroed(layout) },
        Err(_) => std::ptr::null_mut(),
    }
}

/// Give back what `walsh_alloc(length)` returned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_free(pointer: *mut u8, length: usize) {
    if let (false, Ok(layout)) = (pointer.is_null(), Allocation::from_size_align(length.max(1), ALIGNMENT)) {
        // SAFETY: the host gives back what it was given, with the same length.
        unsafe { dealloc(pointer, layout) };
    }
}

/// The text of the last error.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_error_message() -> *const u8 {
    ENGINE.with_borrow(|engine| engine.message.as_ptr())
}

/// How many bytes of UTF-8 it has.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_error_length() -> usize {
    ENGINE.with_borrow(|engine| engine.message.len())
}

/// The bytes that the last call of `walsh_encode`, `walsh_token`, `walsh_text` or `walsh_op_bitmask_encode` left.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_result() -> *const u8 {
    ENGINE.with_borrow(|engine| engine.result.as_ptr())
}

/// Run definitions (1) or kernels (0) in `walsh_op_*`.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_use_scalar(scalar: i32) {
    ENGINE.with_borrow_mut(|engine| engine.scalar = scalar != 0);
}

/// Room for a file of `length` bytes, to be filled by the host before `walsh_load`; 0 where there is none.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_file(length: usize) -> *mut u8 {
    ENGINE.with_borrow_mut(|engine| {
        engine.file = Vec::new();
        match try_vec(length, 0u8) {
            Ok(file) => {
                engine.file = file;
                engine.file.as_mut_ptr()
            }
            Err(error) => {
                engine.message = error.message;
                std::ptr::null_mut()
            }
        }
    })
}

/// Load the file in `walsh_file`'s room; it is taken over. `layout`: 0 automatic, 1 to 4 as `Layout` lists them.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_load(verify: i32, layout: i32) -> i32 {
    run(|engine| {
        let layout = match layout {
            0 => None,
            1 => Some(Layout::Fast),
            2 => Some(Layout::FastPacked),
            3 => Some(Layout::Pairs),
            4 => Some(Layout::Packed),
            other => return Err(error!(Parameter, "layout {other}: expected 0 to 4")),
        };
        let model = Model::load(std::mem::take(&mut engine.file), verify != 0, layout)?;
        let handle = engine.handle();
        engine.models.insert(handle, model);
        Ok(handle)
    })
}

/// Drop a model; its sessions can only be dropped afterwards.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_drop_model(model: i32) {
    ENGINE.with_borrow_mut(|engine| engine.models.remove(&model));
}

/// Sizes of a model: layers, C, V, block size, end token (-1 without a tokenizer), layout (1 to 4).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_describe(model: i32, sizes: *mut i64) -> i32 {
    run(|engine| {
        // SAFETY: the host's promise: room for six numbers.
        let sizes = unsafe { write(sizes, 6)? };
        let model = engine.model(model)?;
        let config = model.config();
        let end = model.tokenizer().map_or(-1, |tokenizer| tokenizer.end_token() as i64);
        let known = [config.layers, config.width, config.vocabulary, config.block_size].map(|size| size as i64);
        sizes[..4].copy_from_slice(&known);
        sizes[4] = end;
        sizes[5] = match model.layout() {
            Layout::Fast => 1,
            Layout::FastPacked => 2,
            Layout::Pairs => 3,
            Layout::Packed => 4,
        };
        Ok(0)
    })
}

/// Bytes in memory: the file as loaded, weights, tokenizer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_memory(model: i32, bytes: *mut i64) -> i32 {
    run(|engine| {
        // SAFETY: the host's promise: room for three numbers.
        let bytes = unsafe { write(bytes, 3)? };
        let memory = engine.model(model)?.memory();
        bytes.copy_from_slice(&[memory.file, memory.weights, memory.tokenizer].map(|size| size as i64));
        Ok(0)
    })
}

/// A new sequence of at most `capacity` tokens.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_new_session(model: i32, capacity: usize) -> i32 {
    run(|engine| {
        let session = engine.model(model)?.new_session(capacity)?;
        let handle = engine.handle();
        engine.sessions.insert(handle, Open { model, session, stream: Stream::default() });
        Ok(handle)
    })
}

/// An independent copy of a sequence.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_fork(session: i32) -> i32 {
    run(|engine| {
        let (_, open) = engine.session(session)?;
        let copy = Open { model: open.model, session: open.session.fork(), stream: open.stream.clone() };
        let handle = engine.handle();
        engine.sessions.insert(handle, copy);
        Ok(handle)
    })
}

/// Drop a sequence.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_drop_session(session: i32) {
    ENGINE.with_borrow_mut(|engine| engine.sessions.remove(&session));
}

/// Forget all but the first `length` tokens.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_truncate(session: i32, length: usize) -> i32 {
    run(|engine| engine.session(session)?.1.session.truncate(length).map(|()| 0))
}

/// How many tokens a sequence has.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_length(session: i32) -> i32 {
    run(|engine| Ok(engine.session(session)?.1.session.tokens().len() as i32))
}

/// Bytes that a sequence takes.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_session_bytes(session: i32) -> i32 {
    run(|engine| Ok(engine.session(session)?.1.session.bytes() as i32))
}

/// Read `count` tokens; logits are those of the last.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_prefill(session: i32, ids: *const i64, count: usize) -> i32 {
    run(|engine| {
        // SAFETY: the host's promise.
        let ids = unsafe { read(ids, count)? };
        let (model, open) = engine.session(session)?;
        model.prefill(&mut open.session, ids).map(|()| 0)
    })
}

/// Read one token; logits are its own.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_step(session: i32, id: i64) -> i32 {
    run(|engine| {
        let (model, open) = engine.session(session)?;
        model.prefill(&mut open.session, &[id]).map(|()| 0)
    })
}

/// Start on a token: `walsh_advance` and `walsh_head` do the rest piece by piece.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_begin(session: i32, id: i64) -> i32 {
    run(|engine| {
        let (model, open) = engine.session(session)?;
        model.begin(&mut open.session, id).map(|()| 0)
    })
}

/// One block of the token in work; 1 once it is part of the sequence.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_advance(session: i32) -> i32 {
    run(|engine| {
        let (model, open) = engine.session(session)?;
        model.advance(&mut open.session).map(i32::from)
    })
}

/// Logits of the last token.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_head(session: i32) -> i32 {
    run(|engine| {
        let (model, open) = engine.session(session)?;
        model.head(&mut open.session).map(|()| 0)
    })
}

/// The logits, float32 [V]; valid until the next call on this session.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_logits(session: i32) -> *const f32 {
    ENGINE.with_borrow_mut(|engine| match engine.session(session) {
        Ok((_, open)) if !open.session.logits().is_empty() => open.session.logits().as_ptr(),
        _ => std::ptr::null(),
    })
}

/// The residual stream of the token in work or the last one, float32 [C].
#[unsafe(no_mangle)]
pub extern "C" fn walsh_hidden(session: i32) -> *const f32 {
    ENGINE.with_borrow_mut(|engine| engine.session(session).map_or(std::ptr::null(), |(_, o)| o.session.hidden().as_ptr()))
}

fn sampling(temperature: f32, top_k: i64, top_p: f32, repetition_penalty: f32, seed: u64) -> Result<Sampling> {
    require!(top_k >= 0, Parameter, "top_k {top_k}: expected 0 (all) or more");
    Ok(Sampling { temperature, top_k: usize::try_from(top_k).unwrap_or(0), top_p, repetition_penalty, seed })
}

/// Draw the next token from the last logits; it is not read yet.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_sample(session: i32, temperature: f32, top_k: i64, top_p: f32, penalty: f32, seed: u64) -> i32 {
    run(|engine| {
        let sampling = sampling(temperature, top_k, top_p, penalty, seed)?;
        let (model, open) = engine.session(session)?;
        model.sample(&open.session, &sampling).map(|id| id as i32)
    })
}

/// Draw up to `count` tokens, reading each but the last; stops after `stop` (-1: never). Returns how many were drawn.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_generate(
    session: i32,
    count: usize,
    stop: i64,
    temperature: f32,
    top_k: i64,
    top_p: f32,
    penalty: f32,
    seed: u64,
    ids: *mut i64,
) -> i32 {
    run(|engine| {
        // SAFETY: the host's promise.
        let ids = unsafe { write(ids, count)? };
        let sampling = sampling(temperature, top_k, top_p, penalty, seed)?;
        let (model, open) = engine.session(session)?;
        for i in 0..count {
            ids[i] = model.sample(&open.session, &sampling)? as i64;
            if ids[i] == stop || i + 1 == count {
                return Ok(i as i32 + 1);
            }
            model.prefill(&mut open.session, &[ids[i]])?;
        }
        Ok(0)
    })
}

/// Token ids (u32) of a UTF-8 text into the result; returns how many.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_encode(model: i32, text: *const u8, length: usize) -> i32 {
    run(|engine| {
        // SAFETY: the host's promise.
        let text = unsafe { read(text, length)? };
        let text = std::str::from_utf8(text).map_err(|reason| error!(Format, "the text is not UTF-8: {reason}"))?;
        let ids = engine.model(model)?.tokenizer()?.encode(text)?;
        engine.result = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        Ok(ids.len() as i32)
    })
}

/// The bytes of a token into the result; returns how many.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_token(model: i32, id: usize) -> i32 {
    run(|engine| {
        let mut bytes = Vec::new();
        engine.model(model)?.tokenizer()?.token(id, &mut bytes)?;
        engine.result = bytes;
        Ok(engine.result.len() as i32)
    })
}

/// Text (UTF-8) that a token completes into the result; -1 ends the text. Returns its bytes.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_text(session: i32, id: i64) -> i32 {
    run(|engine| {
        let (model, open) = engine.session(session)?;
        let text = if id == -1 {
            open.stream.finish().to_owned()
        } else {
            let mut bytes = Vec::new();
            model.tokenizer()?.token(usize::try_from(id).unwrap_or(usize::MAX), &mut bytes)?;
            open.stream.push(&bytes)
        };
        engine.result = text.into_bytes();
        Ok(engine.result.len() as i32)
    })
}

// ---- single operations ------------------------------------------------------------------------------------------------

/// Refuse a width whose integer sums might not fit 32 bits.
fn check_width(features: usize) -> Result<()> {
    require!((1..=MAX_WIDTH).contains(&features), Shape, "{features} features: expected 1 .. {MAX_WIDTH}");
    Ok(())
}

/// x [rows, C] -> a int8 [rows, C], r [rows].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_quantize_activations(x: *const f32, rows: usize, c: usize, a: *mut i8, r: *mut f32) -> i32 {
    run(|engine| {
        check_width(c)?;
        // SAFETY: the host's promise.
        let (x, a, r) = unsafe { (read(x, rows * c)?, write(a, rows * c)?, write(r, rows)?) };
        let mut codes = try_vec(c, 0i16)?;
        for ((x, a), r) in x.chunks_exact(c).zip(a.chunks_exact_mut(c)).zip(r) {
            *r = if engine.scalar { quantize_scalar(x, &mut codes)? } else { quantize(x, &mut codes)? };
            a.iter_mut().zip(&codes).for_each(|(a, &code)| *a = code as i8);
        }
        Ok(0)
    })
}

/// x [tokens, D K], codes [D, N, K], beta [N] -> y [tokens, D N]; `layout` 1 to 4.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_cayley_dickson_linear(
    x: *const f32,
    tokens: usize,
    codes: *const i8,
    d: usize,
    rows: usize,
    columns: usize,
    beta: *const f32,
    layout: i32,
    y: *mut f32,
) -> i32 {
    run(|engine| {
        check_width(checked_product(&[d, columns])?)?;
        // SAFETY: the host's promise.
        let (x, codes, beta, y) = unsafe {
            (
                read(x, tokens * d * columns)?,
                read(codes, checked_product(&[d, rows, columns])?)?,
                read(beta, rows)?,
                write(y, tokens * d * rows)?,
            )
        };
        let layout = [Layout::Fast, Layout::FastPacked, Layout::Pairs, Layout::Packed][(layout - 1).clamp(0, 3) as usize];
        let layer = CayleyDicksonLinear::new(codes, d, rows, columns, beta, layout)?;
        let mut scratch = cayley_dickson::Scratch::default();
        let (mut from, mut to) = (try_vec(d * stride(columns), 0.0)?, try_vec(d * stride(rows), 0.0)?);
        if rows == 0 {
            return Ok(0);
        }
        for (x, y) in x.chunks_exact(d * columns).zip(y.chunks_exact_mut(d * rows)) {
            if engine.scalar {
                cayley_dickson::linear_scalar(x, codes, d, rows, columns, beta, y)?;
            } else {
                spread(x, columns, &mut from);
                layer.apply(&from, &mut to, &mut scratch)?;
                gather(&to, rows, y);
            }
        }
        Ok(0)
    })
}

/// x [rows, n] -> y [rows, n].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_hadamard_transform(x: *const f32, rows: usize, n: usize, y: *mut f32) -> i32 {
    run(|engine| {
        check_width(n)?;
        check_size(n)?;
        // SAFETY: the host's promise.
        let (x, y) = unsafe { (read(x, rows * n)?, write(y, rows * n)?) };
        // The kernel transforms across blocks: give it one column, padded.
        let (mut from, mut to) = (try_vec(n * stride(1), 0.0)?, try_vec(n * stride(1), 0.0)?);
        for (x, y) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)) {
            if engine.scalar {
                hadamard::transform_scalar(x, y);
            } else {
                spread(x, 1, &mut from);
                hadamard::transform_blocks(&from, None, n, stride(1), &mut to);
                gather(&to, 1, y);
            }
        }
        Ok(0)
    })
}

/// x [tokens, n K], codes [n, N, K], alpha [n, K], beta [n, N] -> y [tokens, n N].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_hadamard_linear(
    x: *const f32,
    tokens: usize,
    codes: *const i8,
    n: usize,
    rows: usize,
    columns: usize,
    alpha: *const f32,
    beta: *const f32,
    packed: i32,
    y: *mut f32,
) -> i32 {
    run(|engine| {
        check_width(checked_product(&[n, columns])?)?;
        // SAFETY: the host's promise.
        let (x, codes, alpha, beta, y) = unsafe {
            (
                read(x, tokens * n * columns)?,
                read(codes, checked_product(&[n, rows, columns])?)?,
                read(alpha, n * columns)?,
                read(beta, n * rows)?,
                write(y, tokens * n * rows)?,
            )
        };
        let layer = HadamardLinear::new(codes, n, rows, columns, alpha, beta, packed != 0)?;
        let mut scratch = hadamard::Scratch::default();
        let (mut from, mut to) = (try_vec(n * stride(columns), 0.0)?, try_vec(n * stride(rows), 0.0)?);
        if rows == 0 {
            return Ok(0);
        }
        for (x, y) in x.chunks_exact(n * columns).zip(y.chunks_exact_mut(n * rows)) {
            if engine.scalar {
                hadamard::linear_scalar(x, codes, n, rows, columns, alpha, beta, y)?;
            } else {
                spread(x, columns, &mut from);
                layer.apply(&from, &mut to, &mut scratch)?;
                gather(&to, rows, y);
            }
        }
        Ok(0)
    })
}

/// x [tokens, H, d], codes [n, d, d], scale [d], beta [d] -> y; `algebra` 0 Cayley-Dickson, 1 Hadamard.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_head_mixer(
    x: *const f32,
    tokens: usize,
    heads: usize,
    d: usize,
    codes: *const i8,
    n: usize,
    scale: *const f32,
    beta: *const f32,
    algebra: i32,
    y: *mut f32,
) -> i32 {
    run(|engine| {
        check_width(checked_product(&[heads.max(1), d])?)?;
        check_width(checked_product(&[n, d])?)?;
        let algebra = if algebra == 0 {
            require!(matches!(n, 1 | 2 | 4 | 8 | 16), Shape, "codes have {n} components: expected 1, 2, 4, 8 or 16");
            Algebra::CayleyDickson(n)
        } else {
            check_size(n)?;
            Algebra::Hadamard(n)
        };
        require!(heads % n == 0, Shape, "{heads} heads: expected a multiple of the group size {n}");
        // SAFETY: the host's promise.
        let (x, codes, scale, beta, y) = unsafe {
            (
                read(x, tokens * heads * d)?,
                read(codes, checked_product(&[n, d, d])?)?,
                read(scale, d)?,
                read(beta, d)?,
                write(y, tokens * heads * d)?,
            )
        };
        let mixer = HeadMixer::new(codes, algebra, d, scale, beta)?;
        if engine.scalar {
            head_mixer::mix_scalar(x, codes, algebra, d, scale, beta, y)?;
        } else {
            mixer.apply(x, y, &mut head_mixer::Scratch::default())?;
        }
        Ok(0)
    })
}

/// x [rows, C], weight [C] -> y [rows, C].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_rms_norm(x: *const f32, rows: usize, c: usize, weight: *const f32, y: *mut f32) -> i32 {
    run(|engine| {
        require!(c > 0, Shape, "rows without features");
        // SAFETY: the host's promise.
        let (x, weight, y) = unsafe { (read(x, rows * c)?, read(weight, c)?, write(y, rows * c)?) };
        let mut scratch = try_vec(c, 0.0)?;
        for (x, y) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
            if engine.scalar {
                rms_norm_scalar(x, weight, y);
            } else {
                rms_norm(x, weight, y, &mut scratch);
            }
        }
        Ok(0)
    })
}

/// x [tokens, H, d], inv_freq [d / 2], positions [tokens]; rotated in place.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_rope(
    x: *mut f32,
    tokens: usize,
    heads: usize,
    d: usize,
    inv_freq: *const f64,
    positions: *const i64,
) -> i32 {
    run(|engine| {
        require!(d % 2 == 0, Shape, "{d} features per head: expected an even number");
        let size = heads * d;
        // SAFETY: the host's promise.
        let (x, inv_freq, positions) =
            unsafe { (write(x, tokens * size)?, read(inv_freq, d / 2)?, read(positions, tokens)?) };
        let mut rotations = Vec::new();
        for &position in positions {
            let mut rotation = Rotation::default();
            rotation.turn(position, inv_freq)?;
            rotations.push(rotation);
        }
        for (x, rotation) in x.chunks_exact_mut(size.max(1)).zip(&rotations) {
            if engine.scalar { rotation.apply_scalar(x) } else { rotation.apply(x) }
        }
        Ok(0)
    })
}

/// One sequence: q [T, H, d], k and v [S, H, d], positions [T] in -1 .. S - 1 -> o [T, H, d].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_attention(
    q: *const f32,
    k: *const f32,
    v: *const f32,
    positions: *const i64,
    t: usize,
    s: usize,
    heads: usize,
    d: usize,
    o: *mut f32,
) -> i32 {
    run(|engine| {
        let size = checked_product(&[heads, d])?;
        check_width(size)?;
        // SAFETY: the host's promise.
        let (q, k, v, positions, o) = unsafe {
            (read(q, t * size)?, read(k, s * size)?, read(v, s * size)?, read(positions, t)?, write(o, t * size)?)
        };
        let bad = positions.iter().find(|&&position| !(-1..s as i64).contains(&position));
        require!(bad.is_none(), Range, "position {bad:?}: expected -1 .. {}", s as i64 - 1);
        // A key that no query sees is never looked at.
        let seen = positions.iter().max().map_or(0, |&last| (last + 1) as usize);
        let mut cache = KvCache::new(seen, heads, d)?;
        for (k, v) in k.chunks_exact(size).zip(v.chunks_exact(size)).take(seen) {
            cache.append(k, v)?;
        }
        for ((q, &position), o) in q.chunks_exact(size).zip(positions).zip(o.chunks_exact_mut(size)) {
            match usize::try_from(position) {
                Err(_) => o.fill(0.0),
                Ok(position) if engine.scalar => attend_scalar(q, k, v, heads, position, o)?,
                Ok(position) => attend(&cache, q, position, o, &mut engine.attention)?,
            }
        }
        Ok(0)
    })
}

/// An empty cache for one sequence.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_op_cache_new(capacity: usize, heads: usize, d: usize) -> i32 {
    run(|engine| {
        check_width(checked_product(&[heads, d])?)?;
        let cache = KvCache::new(capacity, heads, d)?;
        let handle = engine.handle();
        engine.caches.insert(handle, cache);
        Ok(handle)
    })
}

/// Append k and v [count, H, d]; on an error the cache is as it was.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_cache_append(cache: i32, k: *const f32, v: *const f32, count: usize) -> i32 {
    run(|engine| {
        let cache = engine.cache(cache)?;
        let (size, before) = (cache.heads * cache.head_dim, cache.length());
        // SAFETY: the host's promise.
        let (k, v) = unsafe { (read(k, count * size)?, read(v, count * size)?) };
        for (k, v) in k.chunks_exact(size).zip(v.chunks_exact(size)) {
            if let Err(error) = cache.append(k, v) {
                cache.truncate(before)?;
                return Err(error);
            }
        }
        Ok(0)
    })
}

/// Attend with q [H, d] to positions 0 ..= `position`; -1 gives zeros.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_cache_attend(cache: i32, q: *const f32, position: i64, o: *mut f32) -> i32 {
    run(|engine| {
        let mut scratch = std::mem::take(&mut engine.attention);
        let cache = engine.cache(cache)?;
        let size = cache.heads * cache.head_dim;
        // SAFETY: the host's promise.
        let (q, o) = unsafe { (read(q, size)?, write(o, size)?) };
        let done = match usize::try_from(position) {
            Err(_) => {
                o.fill(0.0);
                Ok(())
            }
            Ok(position) => attend(cache, q, position, o, &mut scratch),
        };
        engine.attention = scratch;
        done.map(|()| 0)
    })
}

/// Forget all but the first `length` tokens.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_op_cache_truncate(cache: i32, length: usize) -> i32 {
    run(|engine| engine.cache(cache)?.truncate(length).map(|()| 0))
}

/// Tokens held.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_op_cache_length(cache: i32) -> i32 {
    run(|engine| Ok(engine.cache(cache)?.length() as i32))
}

/// An independent copy.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_op_cache_fork(cache: i32) -> i32 {
    run(|engine| {
        let copy = engine.cache(cache)?.clone();
        let handle = engine.handle();
        engine.caches.insert(handle, copy);
        Ok(handle)
    })
}

/// Drop a cache.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_op_cache_drop(cache: i32) {
    ENGINE.with_borrow_mut(|engine| engine.caches.remove(&cache));
}

/// h into gate; gate and up of `length` numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_swiglu(gate: *mut f32, up: *const f32, length: usize) -> i32 {
    run(|engine| {
        // SAFETY: the host's promise.
        let (gate, up) = unsafe { (write(gate, length)?, read(up, length)?) };
        if engine.scalar { swiglu_scalar(gate, up) } else { swiglu(gate, up) }
        Ok(0)
    })
}

/// e^x in place.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_exp(x: *mut f32, length: usize) -> i32 {
    run(|engine| {
        // SAFETY: the host's promise.
        let x = unsafe { write(x, length)? };
        if engine.scalar {
            x.iter_mut().for_each(|v| *v = exp(*v));
        } else {
            x.iter_mut().for_each(|v| *v = f32x4_lanes(exp4(f32x4_splat(*v)))[0]);
        }
        Ok(0)
    })
}

/// A row table over memory of the host's, copied; `bits` 8 or 4.
unsafe fn row_table(codes: *const u8, rows: usize, c: usize, bits: i32, scale: *const f32) -> Result<RowTable> {
    require!(bits == 8 || bits == 4, Parameter, "{bits} bits: expected 8 or 4");
    let row = if bits == 4 { c.div_ceil(2) } else { c };
    // SAFETY: the host's promise.
    let (codes, scale) = unsafe { (read(codes, checked_product(&[rows, row])?)?, read(scale, rows)?) };
    RowTable::new(Bytes::owned(codes.to_vec()), rows, c, bits == 4, scale.to_vec())
}

/// ids [count], codes [V, C], scale [V] -> e [count, C].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_embedding(
    ids: *const i64,
    count: usize,
    codes: *const u8,
    v: usize,
    c: usize,
    bits: i32,
    scale: *const f32,
    e: *mut f32,
) -> i32 {
    run(|_| {
        // SAFETY: the host's promise.
        let (ids, table, e) = unsafe { (read(ids, count)?, row_table(codes, v, c, bits, scale)?, write(e, count * c)?) };
        for (i, &id) in ids.iter().enumerate() {
            table.embed(usize::try_from(id).unwrap_or(usize::MAX), &mut e[i * c..][..c])?;
        }
        Ok(0)
    })
}

/// x [tokens, C], codes [V, C], scale [V] -> logits [tokens, V].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_lm_head(
    x: *const f32,
    tokens: usize,
    codes: *const u8,
    v: usize,
    c: usize,
    bits: i32,
    scale: *const f32,
    logits: *mut f32,
) -> i32 {
    run(|engine| {
        check_width(c)?;
        // SAFETY: the host's promise.
        let (x, table, logits) =
            unsafe { (read(x, tokens * c)?, row_table(codes, v, c, bits, scale)?, write(logits, tokens * v)?) };
        let mut query = Query::default();
        for (i, x) in x.chunks_exact(c).enumerate() {
            query.quantize(x)?;
            let logits = &mut logits[i * v..][..v];
            if engine.scalar {
                logits.iter_mut().enumerate().for_each(|(row, logit)| *logit = table.logit_scalar(&query, row));
            } else {
                table.logits(&query, 0, logits);
            }
        }
        Ok(0)
    })
}

/// Hash tables from arrays of pointers: codes and scales per table, importance [V, tables], indices or null.
unsafe fn hash_tables(
    codes: *const *const u8,
    scales: *const *const f32,
    rows: *const u32,
    tables: usize,
    c: usize,
    importance: *const f32,
    indices: *const i64,
    v: usize,
) -> Result<HashTables> {
    // SAFETY: the host's promise.
    unsafe {
        let (codes, scales, rows) = (read(codes, tables)?, read(scales, tables)?, read(rows, tables)?);
        let mut list = Vec::new();
        for i in 0..tables {
            list.push(row_table(codes[i], rows[i] as usize, c, 8, scales[i])?);
        }
        let indices = if indices.is_null() { None } else { Some(read(indices, v * tables)?.to_vec()) };
        HashTables::new(list, read(importance, v * tables)?.to_vec(), indices)
    }
}

/// ids [count] -> e [count, C].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_hash_embedding(
    ids: *const i64,
    count: usize,
    codes: *const *const u8,
    scales: *const *const f32,
    rows: *const u32,
    tables: usize,
    c: usize,
    importance: *const f32,
    indices: *const i64,
    v: usize,
    scale: f32,
    e: *mut f32,
) -> i32 {
    run(|_| {
        require!(scale.is_finite(), Parameter, "scale {scale}: expected a finite float32");
        // SAFETY: the host's promise.
        let (ids, hash, e) = unsafe {
            (
                read(ids, count)?,
                hash_tables(codes, scales, rows, tables, c, importance, indices, v)?,
                write(e, count * c)?,
            )
        };
        let mut row = try_vec(c, 0.0)?;
        for (i, &id) in ids.iter().enumerate() {
            hash.embed(usize::try_from(id).unwrap_or(usize::MAX), scale, &mut e[i * c..][..c], &mut row)?;
        }
        Ok(0)
    })
}

/// x [tokens, C] -> logits [tokens, V].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_hash_lm_head(
    x: *const f32,
    tokens: usize,
    codes: *const *const u8,
    scales: *const *const f32,
    rows: *const u32,
    tables: usize,
    c: usize,
    importance: *const f32,
    indices: *const i64,
    v: usize,
    logits: *mut f32,
) -> i32 {
    run(|_| {
        check_width(c)?;
        // SAFETY: the host's promise.
        let (x, hash, logits) = unsafe {
            (
                read(x, tokens * c)?,
                hash_tables(codes, scales, rows, tables, c, importance, indices, v)?,
                write(logits, tokens * v)?,
            )
        };
        let (mut query, mut row_logits) = (Query::default(), Vec::new());
        for (i, x) in x.chunks_exact(c).enumerate() {
            query.quantize(x)?;
            hash.row_logits(&query, &mut row_logits);
            hash.combine(&row_logits, 0, &mut logits[i * v..][..v]);
        }
        Ok(0)
    })
}

/// logits [V], history [P] -> an id.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_sample(
    logits: *const f32,
    v: usize,
    history: *const i64,
    p: usize,
    temperature: f32,
    top_k: i64,
    top_p: f32,
    penalty: f32,
    seed: u64,
    position: u64,
) -> i32 {
    run(|engine| {
        let sampling = sampling(temperature, top_k, top_p, penalty, seed)?;
        // SAFETY: the host's promise.
        let (logits, history) = unsafe { (read(logits, v)?, read(history, p)?) };
        sampling::sample(logits, history, &sampling, position, &mut engine.sampling).map(|id| id as i32)
    })
}

/// The uniform number of a seed and a position.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_op_uniform(seed: u64, position: u64) -> f32 {
    sampling::uniform(seed, position)
}

/// q [length] -> mask (ceil(length / 8) bytes) and signs in the result; returns their bytes together.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_bitmask_encode(q: *const i8, length: usize) -> i32 {
    run(|engine| {
        // SAFETY: the host's promise.
        let (mask, signs) = bitmask::encode(unsafe { read(q, length)? })?;
        engine.result = [mask, signs].concat();
        Ok(engine.result.len() as i32)
    })
}

/// mask and signs -> q [length].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_bitmask_decode(
    mask: *const u8,
    mask_length: usize,
    signs: *const u8,
    signs_length: usize,
    q: *mut i8,
    length: usize,
) -> i32 {
    run(|_| {
        // SAFETY: the host's promise.
        let (mask, signs, q) = unsafe { (read(mask, mask_length)?, read(signs, signs_length)?, write(q, length)?) };
        bitmask::decode(mask, signs, q).map(|()| 0)
    })
}

/// q [rows, K] -> packed [rows, ceil(K / 4)].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_pack_ternary(q: *const i8, rows: usize, k: usize, packed: *mut u8) -> i32 {
    run(|_| {
        // SAFETY: the host's promise.
        let (q, packed) = unsafe { (read(q, rows * k)?, write(packed, rows * k.div_ceil(4))?) };
        ternary::pack(q, k, packed).map(|()| 0)
    })
}

/// packed [rows, ceil(K / 4)] -> q [rows, K].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_unpack_ternary(packed: *const u8, rows: usize, k: usize, q: *mut i8) -> i32 {
    run(|_| {
        // SAFETY: the host's promise.
        let (packed, q) = unsafe { (read(packed, rows * k.div_ceil(4))?, write(q, rows * k)?) };
        ternary::unpack(packed, k, q).map(|()| 0)
    })
}
