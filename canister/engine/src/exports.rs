//! The plain C face of the engine: what a WebAssembly host calls. No imports.
//!
//! Every function that can be refused returns a negative `Kind` then, and the text is at `walsh_error_message`. Otherwise
//! it returns 0, a count or a handle. Tensors are little-endian and row-major in linear memory that `walsh_alloc` gave
//! (16-byte aligned). Models, sessions and caches are named by handles, never by pointers.
//!
//! `walsh_op_*` (strict or on integers) and `walsh_float_*` (ordinary) are the single operations, for conformance, in files
//! by kind; `walsh_use_scalar(1)` runs the definitions of strict ones, one number at a time, instead of the kernels.
//!
//! # Safety
//! Pointers must name as many elements as the sizes beside them say; a host that lies reads or writes its own linear memory
//! elsewhere, nothing else. Everything that comes from files, prompts and parameters is checked.

#![allow(clippy::missing_safety_doc, clippy::too_many_arguments)] // one contract, above; arguments are those of SPEC.md

use std::alloc::{Layout as Allocation, alloc_zeroed, dealloc};
use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::attention;
use crate::cache::Cache;
use crate::cayley_dickson::Layout;
use crate::error::{Error, Result, error, require, try_vec};
use crate::forward::Session;
use crate::model::Model;
use crate::sampling::{self, Sampling};
use crate::tokenizer::Stream;

mod caches;
mod integers;
mod operations;
mod ordinary;
mod ordinary_tables;
mod tables;

/// Everything that lives between calls.
#[derive(Default)]
struct Engine {
    file: Vec<u8>,
    models: BTreeMap<i32, Model>,
    sessions: BTreeMap<i32, Open>,
    caches: BTreeMap<i32, Cache>,
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

    fn cache(&mut self, handle: i32) -> Result<&mut Cache> {
        self.caches.get_mut(&handle).ok_or_else(|| error!(Parameter, "cache {handle} does not exist"))
    }

    fn session(&mut self, handle: i32) -> Result<(&mut Model, &mut Open)> {
        let open =
            self.sessions.get_mut(&handle).ok_or_else(|| error!(Parameter, "session {handle} does not exist"))?;
        let model = self.models.get_mut(&open.model).ok_or_else(|| error!(Parameter, "its model was dropped"))?;
        Ok((model, open))
    }
}

impl Engine {
    /// Run with several sequences of one model at once.
    fn with_batch<T>(
        &mut self,
        handles: &[i32],
        work: impl FnOnce(&mut Model, &mut [&mut Session]) -> Result<T>,
    ) -> Result<T> {
        let mut taken: Vec<(i32, Open)> = Vec::new();
        let found = handles.iter().try_for_each(|handle| {
            let open = self.sessions.remove(handle);
            taken.push((
                *handle,
                open.ok_or_else(|| {
                    error!(Parameter, "session {handle} does not exist, or is named twice in one batch")
                })?,
            ));
            Ok(())
        });
        let result = found.and_then(|()| {
            let first = taken.first().map_or(0, |(_, open)| open.model);
            require!(taken.iter().all(|(_, open)| open.model == first), Parameter, "sessions of different models");
            let model = self.models.get_mut(&first);
            let model = model.ok_or_else(|| error!(Parameter, "no sessions, or their model was dropped"))?;
            work(model, &mut taken.iter_mut().map(|(_, open)| &mut open.session).collect::<Vec<_>>())
        });
        self.sessions.extend(taken);
        result
    }
}

/// `length` elements at a pointer.
///
/// # Safety
/// See the module.
unsafe fn read<'a, T>(pointer: *const T, length: usize) -> Result<&'a [T]> {
    require!(
        pointer.is_aligned() && (!pointer.is_null() || length == 0),
        Parameter,
        "pointer {pointer:?} is not aligned"
    );
    // SAFETY: the host's promise; alignment has been checked.
    Ok(if length == 0 { &[] } else { unsafe { std::slice::from_raw_parts(pointer, length) } })
}

/// `length` elements at a pointer, to be written.
///
/// # Safety
/// See the module.
unsafe fn write<'a, T>(pointer: *mut T, length: usize) -> Result<&'a mut [T]> {
    require!(
        pointer.is_aligned() && (!pointer.is_null() || length == 0),
        Parameter,
        "pointer {pointer:?} is not aligned"
    );
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

/// The bytes that the last call of `walsh_encode`, `walsh_token`, `walsh_text`, `walsh_save_session` or
/// `walsh_op_bitmask_encode` left.
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

/// Start on `count` tokens that follow each other, to be read together.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_begin_tokens(session: i32, ids: *const i64, count: usize) -> i32 {
    run(|engine| {
        // SAFETY: the host's promise.
        let ids = unsafe { read(ids, count)? };
        let (model, open) = engine.session(session)?;
        model.begin_tokens(&mut open.session, ids).map(|()| 0)
    })
}

/// `walsh_advance` of `count` sequences of one model; their results as it returns them. The text is that of the first error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_advance_batch(sessions: *const i32, count: usize, results: *mut i32) -> i32 {
    run(|engine| {
        // SAFETY: the host's promise.
        let (handles, results) = unsafe { (read(sessions, count)?, write(results, count)?) };
        let found = engine.with_batch(handles, |model, sessions| Ok(model.advance_batch(sessions)))?;
        let mut text = None;
        for (to, result) in results.iter_mut().zip(found) {
            *to = match result {
                Ok(done) => i32::from(done),
                Err(Error { kind, message }) => {
                    text.get_or_insert(message);
                    -(kind as i32)
                }
            };
        }
        engine.message = text.unwrap_or_default();
        Ok(0)
    })
}

/// `walsh_head` of `count` sequences of one model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_head_batch(sessions: *const i32, count: usize) -> i32 {
    run(|engine| {
        // SAFETY: the host's promise.
        let handles = unsafe { read(sessions, count)? };
        engine.with_batch(handles, |model, sessions| model.head_batch(sessions).map(|()| 0))
    })
}

/// Quantise the last token for the head.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_begin_head(session: i32) -> i32 {
    run(|engine| {
        let (model, open) = engine.session(session)?;
        model.begin_head(&mut open.session).map(|()| 0)
    })
}

/// Logits of ids `from .. to` of `count` sequences of one model, each after `walsh_begin_head`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_head_range_batch(sessions: *const i32, count: usize, from: usize, to: usize) -> i32 {
    run(|engine| {
        // SAFETY: the host's promise.
        let handles = unsafe { read(sessions, count)? };
        engine.with_batch(handles, |model, sessions| model.head_range_batch(sessions, from, to).map(|()| 0))
    })
}

/// A sequence as bytes into the result; returns how many.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_save_session(session: i32) -> i32 {
    run(|engine| {
        engine.result = engine.session(session)?.1.session.save();
        Ok(engine.result.len() as i32)
    })
}

/// A sequence from such bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_restore_session(model: i32, saved: *const u8, length: usize) -> i32 {
    run(|engine| {
        // SAFETY: the host's promise.
        let saved = unsafe { read(saved, length)? };
        let session = engine.model(model)?.restore_session(saved)?;
        let handle = engine.handle();
        engine.sessions.insert(handle, Open { model, session, stream: Stream::default() });
        Ok(handle)
    })
}

/// Predicted instructions after `position` tokens: to begin, per block, to begin the head, for `rows` ids, to sample.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_costs(model: i32, position: usize, rows: usize, costs: *mut i64) -> i32 {
    run(|engine| {
        // SAFETY: the host's promise: room for five numbers.
        let costs = unsafe { write(costs, 5)? };
        let model = engine.model(model)?;
        let found = [
            model.begin_cost(),
            model.layer_cost(position),
            model.begin_head_cost(),
            model.head_cost(rows),
            model.sample_cost(),
        ];
        costs.iter_mut().zip(found).for_each(|(to, cost)| *to = cost as i64);
        Ok(0)
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
    ENGINE.with_borrow_mut(|engine| {
        engine.session(session).map_or(std::ptr::null(), |(_, o)| o.session.hidden().as_ptr())
    })
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
        for (i, id) in ids.iter_mut().enumerate() {
            *id = model.sample(&open.session, &sampling)? as i64;
            if *id == stop || i + 1 == count {
                return Ok(i as i32 + 1);
            }
            model.prefill(&mut open.session, &[*id])?;
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
