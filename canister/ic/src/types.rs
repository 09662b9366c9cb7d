//! The types of `walsh.did`, where they are explained.

#![allow(missing_docs)] // documented once, in walsh.did

use candid::{CandidType, Deserialize, Nat, Principal};
use serde_bytes::ByteBuf;

#[derive(CandidType, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Admin,
    User,
}

#[derive(CandidType, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Open,
    AllowList,
}

#[derive(CandidType, Deserialize, Clone, Debug)]
pub struct RoleEntry {
    pub holder: Principal,
    pub role: Role,
}

#[derive(CandidType, Deserialize, Clone, Debug)]
pub struct Limits {
    pub sessions: u32,
    pub sessions_per_caller: u32,
    pub cache_bytes: u64,
    pub tokens_per_day: u64,
    pub prompt_bytes: u32,
    pub model_bytes: u64,
    pub idle_seconds: u64,
    pub message_budget: u64,
    pub most_budget: u64,
    pub timer_budget: u64,
    pub batch: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: 256,
            sessions_per_caller: 16,
            cache_bytes: 1 << 30,
            tokens_per_day: 1_000_000,
            prompt_bytes: 64 << 10,
            model_bytes: 256 << 20,
            idle_seconds: 24 * 3600,
            message_budget: 10_000_000_000,
            most_budget: 39_500_000_000,
            timer_budget: 10_000_000_000,
            batch: 16,
        }
    }
}

#[derive(CandidType, Deserialize, Clone, Debug, Default)]
pub struct InitArgs {
    pub access: Option<Access>,
    pub limits: Option<Limits>,
}

#[derive(CandidType, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    Format,
    Shape,
    DType,
    NonFinite,
    Parameter,
    Range,
    Strict,
    Capacity,
}

#[derive(CandidType, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum Error {
    Anonymous,
    NotAuthorized { need: Role },
    NotFound { session: u64 },
    InvalidCandid { reason: String },
    InvalidArgument { field: String, reason: String },
    TooLarge { what: String, size: u64, limit: u64 },
    QuotaExceeded { what: String, used: u64, limit: u64 },
    Capacity { tokens: u64, limit: u64 },
    WrongState { expected: String, found: String },
    Incomplete { missing: u32 },
    HashMismatch { expected: ByteBuf, found: ByteBuf },
    ModelNotReady { phase: ModelPhase },
    Engine { kind: EngineKind, message: String },
    OutOfMemory { bytes: u64 },
    Trapped { times: u32 },
}

pub type Answer<T> = Result<T, Error>;

impl Error {
    pub fn argument(field: &str, reason: impl Into<String>) -> Self {
        Error::InvalidArgument { field: field.into(), reason: reason.into() }
    }

    pub fn state(expected: &str, found: &str) -> Self {
        Error::WrongState { expected: expected.into(), found: found.into() }
    }
}

impl From<walsh_engine::error::Kind> for EngineKind {
    fn from(kind: walsh_engine::error::Kind) -> Self {
        use walsh_engine::error::Kind;
        match kind {
            Kind::Format => EngineKind::Format,
            Kind::Shape => EngineKind::Shape,
            Kind::DType => EngineKind::DType,
            Kind::NonFinite => EngineKind::NonFinite,
            Kind::Parameter => EngineKind::Parameter,
            Kind::Range => EngineKind::Range,
            Kind::Strict => EngineKind::Strict,
            Kind::Capacity => EngineKind::Capacity,
        }
    }
}

impl From<walsh_engine::error::Error> for Error {
    fn from(error: walsh_engine::error::Error) -> Self {
        Error::Engine { kind: error.kind.into(), message: error.message }
    }
}

#[derive(CandidType, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum UploadPhase {
    Idle,
    Receiving,
    Verifying { hashed: u64 },
}

#[derive(CandidType, Deserialize, Clone, Debug)]
pub struct Upload {
    pub phase: UploadPhase,
    pub size: u64,
    pub sha256: ByteBuf,
    pub chunk_bytes: u32,
    pub chunks: u32,
    pub received: u32,
    pub missing: Vec<u32>,
    pub instructions: u64,
}

#[derive(CandidType, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum ModelPhase {
    Empty,
    Loading { done: u64, total: u64 },
    Ready,
    Refused { kind: EngineKind, message: String },
}

#[derive(CandidType, Deserialize, Clone, Debug)]
pub struct Model {
    pub sha256: ByteBuf,
    pub bytes: u64,
    pub algebra: String,
    pub n_layer: u32,
    pub n_embd: u32,
    pub vocab_size: u32,
    pub block_size: u32,
    pub layout: String,
    pub weight_bytes: u64,
    pub end_token: Option<u32>,
}

#[derive(CandidType, Deserialize, Clone, Debug)]
pub enum Prompt {
    Tokens(Vec<u32>),
    Text(String),
}

#[derive(CandidType, Deserialize, Clone, Debug, Default)]
pub struct SessionParams {
    pub temperature: Option<f32>,
    pub top_k: Option<u32>,
    pub top_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub seed: Option<u64>,
    pub max_tokens: Option<u32>,
    pub stop_tokens: Option<Vec<u32>>,
    pub stop_texts: Option<Vec<String>>,
    pub stop_at_end: Option<bool>,
    pub capacity: Option<u32>,
}

#[derive(CandidType, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    Length,
    Capacity,
    StopToken(u32),
    StopText(String),
    Quota,
    ModelReplaced,
    Failed(Error),
}

#[derive(CandidType, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum State {
    Idle,
    Working,
    Finished(Finish),
}

#[derive(CandidType, Deserialize, Clone, Debug)]
pub struct Progress {
    pub session: u64,
    pub state: State,
    pub tokens: Vec<u32>,
    pub text: String,
    pub produced: u32,
    pub length: u32,
    pub pending: u32,
    pub layer: u32,
    pub rows: u32,
    pub wanted: u32,
    pub instructions: u64,
}

#[derive(CandidType, Deserialize, Clone, Debug)]
pub struct Output {
    pub state: State,
    pub offset: u32,
    pub tokens: Vec<u32>,
    pub text: String,
    pub produced: u32,
    pub wanted: u32,
}

#[derive(CandidType, Deserialize, Clone, Debug)]
pub struct SessionInfo {
    pub session: u64,
    pub state: State,
    pub length: u32,
    pub produced: u32,
    pub capacity: u32,
    pub cache_bytes: u64,
    pub created: u64,
    pub expires: u64,
}

#[derive(CandidType, Deserialize, Clone, Debug, Default)]
pub struct Work {
    pub steps: u64,
    pub tokens: u64,
    pub read: u64,
    pub sessions: u32,
    pub instructions: u64,
}

#[derive(CandidType, Deserialize, Clone, Debug)]
pub struct Prediction {
    pub embedding: u64,
    pub linears: u64,
    pub mixer: u64,
    pub attention: u64,
    pub rest: u64,
    pub layers: u32,
    pub head: u64,
    pub sampling: u64,
    pub total: u64,
}

#[derive(CandidType, Deserialize, Clone, Debug)]
pub struct Health {
    pub ready: bool,
    pub phase: ModelPhase,
    pub model: Option<Model>,
    pub sessions: u32,
    pub working: u32,
    pub cache_bytes: u64,
    pub heap_bytes: u64,
    pub stable_bytes: u64,
    pub cycles: Nat,
    pub version: String,
}

#[derive(CandidType, Deserialize, Clone, Debug)]
pub struct Metric {
    pub name: String,
    pub labels: Vec<(String, String)>,
    pub help: String,
    pub value: f64,
}

#[derive(CandidType, Deserialize, Clone, Debug)]
pub struct HttpRequest {
    pub method: String,
    pub url: String,
    pub headers: Vec<(String, String)>,
    pub body: ByteBuf,
}

#[derive(CandidType, Deserialize, Clone, Debug)]
pub struct HttpResponse {
    pub status_code: u16,
    pub headers: Vec<(String, String)>,
    pub body: ByteBuf,
}
