//! `http_request`: /metrics, /health and a word of welcome. Answers are not certified: use the raw domain.

use serde_bytes::ByteBuf;

use crate::metrics;
use crate::state::Canister;
use crate::types::{HttpRequest, HttpResponse};

fn answer(status_code: u16, kind: &str, body: String) -> HttpResponse {
    let headers = [("content-type", kind), ("cache-control", "no-store"), ("x-content-type-options", "nosniff")];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    HttpResponse { status_code, headers, body: ByteBuf::from(body.into_bytes()) }
}

/// Answer a request.
pub fn respond(canister: &Canister, request: &HttpRequest) -> HttpResponse {
    const TEXT: &str = "text/plain; charset=utf-8";
    if !matches!(request.method.as_str(), "GET" | "HEAD") {
        return answer(405, TEXT, "expected GET\n".into());
    }
    match request.url.split(['?', '#']).next().unwrap_or_default() {
        "/metrics" => {
            let text = metrics::prometheus(&metrics::metrics(canister));
            answer(200, "text/plain; version=0.0.4; charset=utf-8", text)
        }
        "/health" => {
            let health = metrics::health(canister);
            answer(if health.ready { 200 } else { 503 }, "application/json", metrics::json(&health))
        }
        "/" => answer(200, TEXT, "walsh: a language model in a canister; see /health and /metrics\n".into()),
        _ => answer(404, TEXT, "expected /, /health or /metrics\n".into()),
    }
}
