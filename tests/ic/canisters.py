"""Small canisters as text. ``Canister text = imports + COMMON + methods``."""

SIGNATURES = {
    "msg_reply": "",
    "msg_reply_data_append": "(param i32 i32)",
    "msg_reject": "(param i32 i32)",
    "msg_arg_data_size": "(result i32)",
    "msg_arg_data_copy": "(param i32 i32 i32)",
    "msg_caller_size": "(result i32)",
    "msg_caller_copy": "(param i32 i32 i32)",
    "msg_reject_code": "(result i32)",
    "msg_cycles_available": "(result i64)",
    "msg_cycles_accept": "(param i64) (result i64)",
    "msg_cycles_refunded": "(result i64)",
    "canister_cycle_balance": "(result i64)",
    "canister_self_size": "(result i32)",
    "canister_self_copy": "(param i32 i32 i32)",
    "canister_version": "(result i64)",
    "call_new": "(param i32 i32 i32 i32 i32 i32 i32 i32)",
    "call_on_cleanup": "(param i32 i32)",
    "call_data_append": "(param i32 i32)",
    "call_cycles_add": "(param i64)",
    "call_perform": "(result i32)",
    "stable_size": "(result i32)",
    "stable64_size": "(result i64)",
    "stable64_grow": "(param i64) (result i64)",
    "stable64_write": "(param i64 i64 i64)",
    "stable64_read": "(param i64 i64 i64)",
    "certified_data_set": "(param i32 i32)",
    "time": "(result i64)",
    "global_timer_set": "(param i64) (result i64)",
    "performance_counter": "(param i32) (result i64)",
    "is_controller": "(param i32 i32) (result i32)",
    "in_replicated_execution": "(result i32)",
    "debug_print": "(param i32 i32)",
    "trap": "(param i32 i32)",
    "accept_message": "",
    "msg_method_name_size": "(result i32)",
}

COMMON = """
  (memory 2 64)
  (global $count (mut i64) (i64.const 0))
  (table $callbacks 8 funcref)
  (func $reply64 (param i64)
    (i64.store (i32.const 0) (local.get 0))
    (call $msg_reply_data_append (i32.const 0) (i32.const 8))
    (call $msg_reply))
  (func $argument (result i64)
    (i64.store (i32.const 0) (i64.const 0))
    (call $msg_arg_data_copy (i32.const 0) (i32.const 0) (call $msg_arg_data_size))
    (i64.load (i32.const 0)))
"""


def canister(methods: str, common: str = COMMON) -> str:
    """A module that imports the system calls its text names."""
    body = common + methods
    used = [
        name
        for name in SIGNATURES
        if f"${name}" in body.replace(")", " ").split() or f"${name} " in body.replace(")", " ")
    ]
    imports = "".join(f'(import "ic0" "{name}" (func ${name} {SIGNATURES[name]}))\n' for name in used)
    return f"(module {imports} {body})"


COUNTER = canister("""
  (func (export "canister_update increment")
    (global.set $count (i64.add (global.get $count) (i64.const 1)))
    (i64.store (i32.const 100) (i64.add (i64.load (i32.const 100)) (i64.const 1)))
    (call $reply64 (global.get $count)))
  (func (export "canister_update fail")
    (drop (memory.grow (i32.const 3)))
    (global.set $count (i64.const 77))
    (i64.store (i32.const 100) (i64.const 77))
    (i64.store (i32.const 262144) (i64.const 77))
    (drop (call $stable64_grow (i64.const 1)))
    (call $stable64_write (i64.const 0) (i64.const 100) (i64.const 8))
    (call $debug_print (i32.const 200) (i32.const 5))
    unreachable)
  (func (export "canister_query get") (call $reply64 (i64.add (global.get $count) (i64.load (i32.const 100)))))
  (func (export "canister_query change")
    (global.set $count (i64.const 55)) (i64.store (i32.const 100) (i64.const 55))
    (drop (call $stable64_grow (i64.const 1)))
    (call $reply64 (global.get $count)))
  (func (export "canister_query heap") (call $reply64 (i64.extend_i32_u (memory.size))))
  (func (export "canister_query stable") (call $reply64 (call $stable64_size)))
  (func (export "canister_update spin") (loop (br 0)))
  (func (export "canister_query spin_query") (loop (br 0)))
  (func (export "canister_update silent"))
  (func (export "canister_update twice") (call $msg_reply) (call $msg_reply))
  (func (export "canister_update no") (call $msg_reject (i32.const 200) (i32.const 5)))
  (func (export "canister_update who")
    (call $msg_caller_copy (i32.const 0) (i32.const 0) (call $msg_caller_size))
    (call $msg_reply_data_append (i32.const 0) (call $msg_caller_size)) (call $msg_reply))
  (func (export "canister_query who_query")
    (call $msg_caller_copy (i32.const 0) (i32.const 0) (call $msg_caller_size))
    (call $msg_reply_data_append (i32.const 0) (call $msg_caller_size)) (call $msg_reply))
  (func (export "canister_update controller")
    (call $msg_caller_copy (i32.const 0) (i32.const 0) (call $msg_caller_size))
    (call $reply64 (i64.extend_i32_u (call $is_controller (i32.const 0) (call $msg_caller_size)))))
  (func (export "canister_update replicated") (call $reply64 (i64.extend_i32_u (call $in_replicated_execution))))
  (func (export "canister_query replicated_query") (call $reply64 (i64.extend_i32_u (call $in_replicated_execution))))
  (func (export "canister_query now") (call $reply64 (call $time)))
  (func (export "canister_update measure") (call $reply64 (call $performance_counter (i32.const 0))))
  (func (export "canister_update certify") (call $certified_data_set (i32.const 200) (i32.const 5)) (call $msg_reply))
  (func (export "canister_update big")
    (drop (memory.grow (i32.const 40)))
    (call $msg_reply_data_append (i32.const 0) (i32.const 2097152))
    (call $msg_reply_data_append (i32.const 0) (i32.wrap_i64 (call $argument))) (call $msg_reply))
  (func (export "canister_update outside") (call $msg_reply_data_append (i32.const 131071) (i32.const 2)))
  (func (export "canister_query nan")
    (f64.store (i32.const 0) (f64.div (f64.const 0) (f64.const 0)))
    (call $msg_reply_data_append (i32.const 0) (i32.const 8)) (call $msg_reply))
  (func (export "canister_query forbidden") (call $certified_data_set (i32.const 0) (i32.const 1)))
  (data (i32.const 200) "words")
""")

# Version in a global; init stores its argument in stable memory; upgrades count in stable memory.
PERSISTENT = canister("""
  (func (export "canister_init")
    (drop (call $stable64_grow (i64.const 1)))
    (drop (call $argument))
    (call $stable64_write (i64.const 70) (i64.const 0) (i64.const 8)))
  (func (export "canister_pre_upgrade")
    (i64.store (i32.const 8) (global.get $count))
    (call $stable64_write (i64.const 80) (i64.const 8) (i64.const 8)))
  (func (export "canister_post_upgrade")
    (if (i64.eq (call $argument) (i64.const 13)) (then unreachable))
    (call $stable64_read (i64.const 8) (i64.const 80) (i64.const 8))
    (global.set $count (i64.add (i64.load (i32.const 8)) (i64.const 1000))))
  (func (export "canister_update increment")
    (global.set $count (i64.add (global.get $count) (i64.const 1))) (call $reply64 (global.get $count)))
  (func (export "canister_query get") (call $reply64 (global.get $count)))
  (func (export "canister_query initial")
    (call $stable64_read (i64.const 8) (i64.const 70) (i64.const 8)) (call $reply64 (i64.load (i32.const 8))))
  (func (export "canister_query version") (call $reply64 (call $canister_version)))
""")

# Calls another canister: argument = 10 bytes of principal, then the method's name.
CALLER = canister("""
  (func $callback (param i32)
    (global.set $count (i64.add (global.get $count) (i64.extend_i32_u (local.get 0))))
    (call $msg_arg_data_copy (i32.const 0) (i32.const 0) (call $msg_arg_data_size))
    (call $msg_reply_data_append (i32.const 0) (call $msg_arg_data_size)) (call $msg_reply))
  (func $rejected (param i32)
    (global.set $count (i64.add (global.get $count) (i64.const 500)))
    (call $reply64 (i64.extend_i32_u (call $msg_reject_code))))
  (func $explode (param i32) (global.set $count (i64.const 9999)) unreachable)
  (func $cleanup (param i32) (global.set $count (i64.add (global.get $count) (i64.extend_i32_u (local.get 0)))))
  (func $refund (param i32) (call $reply64 (call $msg_cycles_refunded)))
  (elem (i32.const 1) func $callback $rejected $explode $cleanup $refund)
  (func $call (param $then i32)
    (call $msg_arg_data_copy (i32.const 300) (i32.const 0) (call $msg_arg_data_size))
    (call $call_new (i32.const 300) (i32.const 10)
      (i32.const 310) (i32.sub (call $msg_arg_data_size) (i32.const 10))
      (local.get $then) (i32.const 7) (i32.const 2) (i32.const 8))
    (call $call_data_append (i32.const 400) (i32.const 8)))
  (func (export "canister_update call") (call $call (i32.const 1)) (drop (call $call_perform)))
  (func (export "canister_update call_and_explode")
    (call $call (i32.const 3)) (call $call_on_cleanup (i32.const 4) (i32.const 40)) (drop (call $call_perform)))
  (func (export "canister_update call_then_trap")
    (call $call (i32.const 1)) (drop (call $call_perform)) unreachable)
  (func (export "canister_update call_nowhere")
    (call $call (i32.const 6)) (drop (call $call_perform)))
  (func (export "canister_update pay")
    (call $call (i32.const 5)) (call $call_cycles_add (i64.const 1000000)) (drop (call $call_perform)))
  (func (export "canister_update accept_some") (drop (call $msg_cycles_accept (i64.const 300000))) (call $msg_reply))
  (func (export "canister_update random")
    (call $call_new (i32.const 0) (i32.const 0) (i32.const 408) (i32.const 8)
      (i32.const 1) (i32.const 0) (i32.const 2) (i32.const 0))
    (drop (call $call_perform)))
  (func (export "canister_query get") (call $reply64 (global.get $count)))
  (data (i32.const 400) "argument")
  (data (i32.const 408) "raw_rand")
""")

TIMED = canister("""
  (global $beats (mut i64) (i64.const 0))
  (func (export "canister_heartbeat") (global.set $beats (i64.add (global.get $beats) (i64.const 1))))
  (func (export "canister_global_timer")
    (global.set $count (i64.add (global.get $count) (i64.const 1)))
    (if (i64.eq (global.get $count) (i64.const 3)) (then unreachable)))
  (func (export "canister_update arm") (call $reply64 (call $global_timer_set (call $argument))))
  (func (export "canister_query beats") (call $reply64 (global.get $beats)))
  (func (export "canister_query get") (call $reply64 (global.get $count)))
""")

GUARDED = canister("""
  (func (export "canister_inspect_message")
    (global.set $count (i64.const 5))
    (if (i32.eq (call $msg_method_name_size) (i32.const 4)) (then (call $accept_message))))
  (func (export "canister_update open") (call $reply64 (global.get $count)))
  (func (export "canister_update closed") (call $msg_reply))
""")
