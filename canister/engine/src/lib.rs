//! Inference of ternary hyper-complex language models in strict arithmetic.
//!
//! One file per operation of SPEC.md, with the same name. Knows neither the Internet Computer nor a browser: `exports` is
//! the plain C face for any WebAssembly host; a Rust host uses the modules directly, without the feature of that name.

#![warn(missing_docs)]

pub mod activations;
pub mod arithmetic;
pub mod attention;
pub mod bitmask;
pub mod blocks;
mod cache;
pub mod cayley_dickson;
pub mod config;
pub mod container;
pub mod cost;
pub mod embedding;
pub mod error;
#[cfg(feature = "exports")]
pub mod exports;
pub mod float;
pub mod forward;
pub mod hadamard;
pub mod head_mixer;
pub mod int8;
pub mod json;
pub mod kv_cache;
pub mod loading;
pub mod model;
mod paired;
pub mod products;
mod reader;
pub mod rms_norm;
pub mod rope;
pub mod rows;
pub mod sampling;
pub mod saved;
pub mod simd;
pub mod swiglu;
pub mod ternary;
pub mod tokenizer;
pub mod unicode;
