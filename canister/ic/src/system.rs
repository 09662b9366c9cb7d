//! The platform: time, instructions, memory, timers.

use candid::Principal;

/// The code's version, as health shows it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Instructions of this message so far.
pub fn instructions() -> u64 {
    ic_cdk::api::instruction_counter()
}

/// Nanoseconds since 1970.
pub fn now() -> u64 {
    ic_cdk::api::time()
}

/// Days since 1970.
pub fn today() -> u64 {
    now() / 86_400_000_000_000
}

/// Who sent this message.
pub fn caller() -> Principal {
    ic_cdk::api::msg_caller()
}

/// Whether the canister sent this message to itself.
pub fn is_own_message() -> bool {
    caller() == ic_cdk::api::canister_self()
}

/// Whether a principal controls this canister.
pub fn is_controller(principal: &Principal) -> bool {
    ic_cdk::api::is_controller(principal)
}

/// Bytes of the heap.
pub fn heap_bytes() -> u64 {
    #[cfg(target_arch = "wasm32")]
    return core::arch::wasm32::memory_size::<0>() as u64 * 65536;
    #[cfg(not(target_arch = "wasm32"))]
    return 0;
}

/// Bytes of stable memory.
pub fn stable_bytes() -> u64 {
    ic_cdk::api::stable_size() * 65536
}

/// The balance.
pub fn cycles() -> u128 {
    ic_cdk::api::canister_cycle_balance()
}

/// Fire the global timer at this time; 0 for never.
pub fn set_timer(at: u64) {
    ic_cdk::api::global_timer_set(at);
}

/// Send `background` to this canister, and do not wait for the answer.
pub fn send_background() -> bool {
    ic_cdk::call::Call::unbounded_wait(ic_cdk::api::canister_self(), "background").oneway().is_ok()
}
