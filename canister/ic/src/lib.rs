//! The Internet Computer face of the engine: a language model behind the interface of `walsh.did`.
//!
//! ```text
//! endpoints     who may call what, arguments in, typed results out
//! upload        a file in chunks, its digest            loader    from stable memory to a model on the heap
//! session       one sequence and its next step          scheduler steps within a budget, for one session or a batch
//! budget        what a step will cost                   state     everything together, timers, upgrades
//! ```
//!
//! No message may trap on any data; work is predicted before it is done, and a message that traps nevertheless takes
//! back all that it did. There is no await: background work is a message that the timer sends to the canister itself.

#![warn(missing_docs)]

mod access;
mod budget;
mod endpoints;
mod http;
mod loader;
mod metrics;
mod scheduler;
mod session;
mod state;
mod storage;
mod system;
mod types;
mod upload;

use candid::Principal;
use serde_bytes::ByteBuf;
use types::*;

#[allow(missing_docs)] // get_candid_pointer, by which tools read the interface
mod interface {
    use super::*;

    ic_cdk::export_candid!();
}
