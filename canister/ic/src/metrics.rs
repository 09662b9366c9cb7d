//! What the canister counts, as a list and as Prometheus text; and its health.

use candid::Nat;

use crate::budget::KINDS;
use crate::state::Canister;
use crate::system;
use crate::types::{Error, Health, Metric, ModelPhase};

/// The word for a kind of error.
pub fn kind_of(error: &Error) -> &'static str {
    match error {
        Error::Anonymous => "anonymous",
        Error::NotAuthorized { .. } => "not_authorized",
        Error::NotFound { .. } => "not_found",
        Error::InvalidCandid { .. } => "invalid_candid",
        Error::InvalidArgument { .. } => "invalid_argument",
        Error::TooLarge { .. } => "too_large",
        Error::QuotaExceeded { .. } => "quota_exceeded",
        Error::Capacity { .. } => "capacity",
        Error::WrongState { .. } => "wrong_state",
        Error::Incomplete { .. } => "incomplete",
        Error::HashMismatch { .. } => "hash_mismatch",
        Error::ModelNotReady { .. } => "model_not_ready",
        Error::Engine { .. } => "engine",
        Error::OutOfMemory { .. } => "out_of_memory",
        Error::Trapped { .. } => "trapped",
    }
}

/// Health.
pub fn health(canister: &Canister) -> Health {
    Health {
        ready: canister.engine.is_some(),
        phase: canister.phase(),
        model: canister.engine.as_ref().map(|(_, model)| model.clone()),
        sessions: canister.chats.len() as u32,
        working: canister.chats.values().filter(|chat| chat.known.wanted > 0).count() as u32,
        cache_bytes: canister.cache_bytes(),
        heap_bytes: system::heap_bytes(),
        stable_bytes: system::stable_bytes(),
        cycles: Nat::from(system::cycles()),
        version: system::VERSION.into(),
    }
}

/// Every metric.
pub fn metrics(canister: &Canister) -> Vec<Metric> {
    let metric = |name: &str, help: &str, value: f64| Metric {
        name: format!("walsh_{name}"),
        labels: Vec::new(),
        help: help.into(),
        value,
    };
    let (health, counts) = (health(canister), &canister.counts);
    let tally = &counts.tally;
    let mut metrics = vec![
        metric("ready", "1 once a model can be talked to.", f64::from(u8::from(health.ready))),
        metric("sessions", "Sessions.", health.sessions.into()),
        metric("sessions_working", "Sessions with background work.", health.working.into()),
        metric("sessions_started_total", "Sessions that were started.", counts.started as f64),
        metric("sessions_expired_total", "Sessions that nobody used for too long.", counts.expired as f64),
        metric("tokens_read_total", "Tokens that passed all blocks.", tally.read as f64),
        metric("tokens_drawn_total", "Tokens that were drawn.", tally.drawn as f64),
        metric("steps_total", "Steps, each for a batch of sessions.", tally.steps as f64),
        metric(
            "step_members_total",
            "Sessions in those steps: divided by steps, the mean batch.",
            tally.members as f64,
        ),
        metric("background_messages_total", "Messages of the timer.", counts.background as f64),
        metric("cache_bytes", "Caches of all sessions.", health.cache_bytes as f64),
        metric("heap_bytes", "The heap.", health.heap_bytes as f64),
        metric("stable_bytes", "Stable memory.", health.stable_bytes as f64),
        metric("cycles", "The balance.", system::cycles() as f64),
    ];
    for (kind, spent) in KINDS.iter().zip(canister.rates.spent) {
        let mut one = metric("instructions_total", "Instructions spent on steps, by kind.", spent as f64);
        one.labels.push(("kind".into(), (*kind).into()));
        metrics.push(one);
    }
    for (kind, count) in &counts.refused {
        let mut one = metric("refused_total", "Calls that were refused, by error.", *count as f64);
        one.labels.push(("error".into(), (*kind).into()));
        metrics.push(one);
    }
    metrics
}

/// Prometheus' text format.
pub fn prometheus(metrics: &[Metric]) -> String {
    let mut text = String::new();
    let mut last = "";
    for metric in metrics {
        if metric.name != last {
            let kind = if metric.name.ends_with("_total") { "counter" } else { "gauge" };
            text += &format!("# HELP {0} {1}\n# TYPE {0} {kind}\n", metric.name, metric.help);
            last = &metric.name;
        }
        let labels: Vec<String> = metric.labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        text += &format!("{}{labels} {}\n", metric.name, metric.value);
    }
    text
}

/// Health as JSON.
pub fn json(health: &Health) -> String {
    let phase = match &health.phase {
        ModelPhase::Empty => "empty".into(),
        ModelPhase::Loading { done, total } => format!("loading {done} of {total}"),
        ModelPhase::Ready => "ready".into(),
        ModelPhase::Refused { kind, .. } => format!("refused: {kind:?}"),
    };
    format!(
        "{{\"ready\":{},\"phase\":\"{phase}\",\"sessions\":{},\"working\":{},\"version\":\"{}\"}}\n",
        health.ready, health.sessions, health.working, health.version
    )
}
