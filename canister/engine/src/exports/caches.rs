//! `walsh_op_cache_*`: key-value caches of one layer and one sequence, named by handles.
//!
//! The contract is that of `exports`; arguments are those of SPEC.md, *kv_cache*.

use super::operations::check_width;
use super::{ENGINE, read, run, write};
use crate::cache::Cache;
use crate::error::{checked_product, error};
use crate::float::FloatCache;
use crate::kv_cache::KvCache;

/// An empty cache for one sequence: of int8 codes, or of float32 if `ordinary`.
#[unsafe(no_mangle)]
pub extern "C" fn walsh_op_cache_new(capacity: usize, heads: usize, d: usize, ordinary: i32) -> i32 {
    run(|engine| {
        let cache = if ordinary == 0 {
            check_width(checked_product(&[heads, d])?)?;
            Cache::Strict(KvCache::new(capacity, heads, d)?)
        } else {
            Cache::Float(FloatCache::new(capacity, heads, d)?)
        };
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
        let ((heads, d), before) = (cache.shape(), cache.length());
        let size = heads * d;
        // SAFETY: the host's promise.
        let (k, v) = unsafe { (read(k, count * size)?, read(v, count * size)?) };
        for t in 0..count {
            if let Err(error) = cache.append(&k[t * size..][..size], &v[t * size..][..size]) {
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
        let size = cache.shape().0 * cache.shape().1;
        // SAFETY: the host's promise.
        let (q, o) = unsafe { (read(q, size)?, write(o, size)?) };
        let done = match usize::try_from(position) {
            Err(_) => {
                o.fill(0.0);
                Ok(())
            }
            Ok(position) => cache.attend(q, position, o, &mut scratch),
        };
        engine.attention = scratch;
        done.map(|()| 0)
    })
}

/// What an ordinary cache holds: keys and values [length, H, d].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn walsh_op_cache_read(cache: i32, keys: *mut f32, values: *mut f32) -> i32 {
    run(|engine| match engine.cache(cache)? {
        Cache::Strict(_) => Err(error!(Parameter, "a cache of int8 codes: expected one of float32")),
        Cache::Float(cache) => {
            let (held_keys, held_values) = cache.held();
            // SAFETY: the host's promise.
            let (keys, values) = unsafe { (write(keys, held_keys.len())?, write(values, held_values.len())?) };
            keys.copy_from_slice(held_keys);
            values.copy_from_slice(held_values);
            Ok(0)
        }
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
