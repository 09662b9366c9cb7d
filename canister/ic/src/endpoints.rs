//! The methods of `walsh.did`: who may call them, and what they come down to.
//!
//! Arguments that are not Candid of the method's types are an error like any other, not a trap; that is why methods are
//! exported here and not by the attributes of ic-cdk.

use std::any::TypeId;
use std::cell::RefCell;
use std::collections::BTreeMap;

use candid::ser::ValueSerializer;
use candid::utils::{ArgumentDecoder, decode_args_with_config};
use candid::{CandidType, DecoderConfig, Principal, candid_method};
use serde_bytes::ByteBuf;

use crate::access::{Gate, check_limits};
use crate::metrics;
use crate::session::Goal;
use crate::state::{Canister, with};
use crate::system;
use crate::types::*;
use crate::upload::report;
use crate::{http, types};

/// What decoding may cost, in the decoder's own units: about twice that of the largest allowed message.
const DECODING: usize = 20_000_000;
/// And what may be spent on values that the method does not take.
const SKIPPING: usize = 10_000;
/// Longest argument of anything but a chunk: a prompt of ids and some room.
const LONGEST: usize = (1 << 20) + 4096;

fn decode<T: for<'a> ArgumentDecoder<'a>>() -> Answer<T> {
    let bytes = ic_cdk::api::msg_arg_data();
    let mut config = DecoderConfig::new();
    config.set_decoding_quota(DECODING).set_skipping_quota(SKIPPING);
    decode_args_with_config(&bytes, &config).map_err(|error| {
        let reason = error.to_string();
        // The library's reasons quote the bytes around the place: a start is enough.
        Error::InvalidCandid { reason: reason.chars().take(200).collect() }
    })
}

thread_local! {
    /// What stands before the values in an answer of a type: Candid's magic word and table of types.
    static HEADERS: RefCell<BTreeMap<TypeId, Vec<u8>>> = const { RefCell::new(BTreeMap::new()) };
}

/// Candid of a value. The table of types depends on the type alone and takes ten times as long as a value: it is made once.
fn encode<T: CandidType + 'static>(value: &T) -> candid::Result<Vec<u8>> {
    let mut values = ValueSerializer::new();
    value.idl_serialize(&mut values)?;
    let values = values.get_result();
    HEADERS.with_borrow_mut(|headers| match headers.get(&TypeId::of::<T>()) {
        Some(header) => Ok([header, values].concat()),
        None => {
            let whole = candid::encode_one(value)?;
            headers.insert(TypeId::of::<T>(), whole[..whole.len() - values.len()].to_vec());
            Ok(whole)
        }
    })
}

/// Make headers of answers to queries, whose messages keep nothing.
fn prepare_headers() {
    let error = || Error::Anonymous;
    let _ = encode::<Answer<Output>>(&Err(error()));
    let _ = encode::<Answer<ByteBuf>>(&Err(error()));
    let _ = encode::<Answer<types::Upload>>(&Err(error()));
    let _ = encode::<Answer<Vec<SessionInfo>>>(&Err(error()));
}

fn reply<T: CandidType + 'static>(value: T) {
    match encode(&value) {
        Ok(bytes) => ic_cdk::api::msg_reply(bytes),
        Err(_) => ic_cdk::api::msg_reject("the answer cannot be encoded"),
    }
}

/// An update: decoded, counted if refused, the timer set.
fn update<T: CandidType + 'static, A: for<'a> ArgumentDecoder<'a>>(run: impl FnOnce(A) -> Answer<T>) {
    // Nothing is decoded for somebody who may not call anything.
    let answer = Gate::somebody().and_then(|_| decode::<A>()).and_then(run);
    with(|canister| {
        if let Err(error) = &answer {
            *canister.counts.refused.entry(metrics::kind_of(error)).or_default() += 1;
        }
        canister.arm();
    });
    reply(answer);
}

fn query<T: CandidType + 'static, A: for<'a> ArgumentDecoder<'a>>(run: impl FnOnce(A) -> Answer<T>) {
    reply(decode::<A>().and_then(run));
}

/// Export methods: the wire name as a literal, then the function as it stands in the interface.
macro_rules! methods {
    ($($way:ident $wire:literal fn $name:ident($($arg:ident: $kind:ty),*) -> $result:ty $body:block)*) => {$(
        #[candid_method($way)]
        fn $name($($arg: $kind),*) -> Answer<$result> $body

        const _: () = {
            #[unsafe(export_name = $wire)]
            extern "C" fn exported() {
                $way(|($($arg,)*): ($($kind,)*)| $name($($arg),*));
            }
        };
    )*};
}

fn as_admin<T>(run: impl FnOnce(&mut Canister, Principal) -> Answer<T>) -> Answer<T> {
    with(|canister| canister.gate.admin().and_then(|caller| run(canister, caller)))
}

fn as_user<T>(run: impl FnOnce(&mut Canister, Principal) -> Answer<T>) -> Answer<T> {
    with(|canister| canister.gate.user().and_then(|caller| run(canister, caller)))
}

fn upload_report(canister: &Canister) -> types::Upload {
    report(canister.upload.as_ref(), &canister.hashing, system::instructions())
}

/// A step of a session by its owner: what it had drawn before is not answered again.
fn on_session(session: u64, run: impl FnOnce(&mut Canister, Principal) -> Answer<()>) -> Answer<Progress> {
    as_user(|canister, caller| {
        let since = canister.session(caller, session)?.known.drawn.len();
        run(canister, caller)?;
        Ok(canister.seen(caller, session)?.progress(since, system::instructions()))
    })
}

/// Check and add a prompt.
fn add_prompt(canister: &mut Canister, caller: Principal, session: u64, prompt: Prompt) -> Answer<()> {
    let chat = canister.seen(caller, session)?;
    match &chat.known.finish {
        None | Some(Finish::StopToken(_) | Finish::StopText(_) | Finish::Quota) => {}
        Some(finish) => return Err(Error::state("a session that goes on", &format!("{finish:?}"))),
    }
    let (length, capacity) = (chat.known.tokens.len(), chat.known.params.capacity);
    let tokens = canister.read_prompt(prompt, length, capacity)?;
    canister.session(caller, session)?.extend(&tokens);
    Ok(())
}

/// Check that tokens may be drawn, and how many of `tokens`.
fn check_draw(canister: &mut Canister, caller: Principal, session: u64, tokens: u32) -> Answer<usize> {
    let chat = canister.seen(caller, session)?;
    if chat.known.tokens.is_empty() {
        return Err(Error::state("a session with a prompt: prefill", "an empty one"));
    }
    if tokens > 0 {
        canister.gate.check_quota(&caller, &canister.limits)?;
    }
    let left = canister.gate.left_today(&caller, &canister.limits, system::today());
    Ok(u64::from(tokens).min(left) as usize)
}

fn draw(session: u64, tokens: u32, budget: Option<u64>) -> Answer<Progress> {
    on_session(session, |canister, caller| {
        let count = check_draw(canister, caller, session, tokens)?;
        let chat = canister.session(caller, session)?;
        let goal = if tokens == 0 { Goal::Read } else { Goal::Drawn(chat.known.drawn.len() + count) };
        let allowance = canister.allowance(budget);
        canister.pursue(session, goal, allowance)
    })
}

methods! {
    update "canister_update begin_upload" fn begin_upload(size: u64, sha256: ByteBuf) -> types::Upload {
        as_admin(|canister, _| {
            canister.begin_upload(size, sha256)?;
            Ok(upload_report(canister))
        })
    }

    update "canister_update put_chunk" fn put_chunk(index: u32, bytes: ByteBuf) -> types::Upload {
        as_admin(|canister, _| {
            canister.put_chunk(index, &bytes)?;
            Ok(upload_report(canister))
        })
    }

    query "canister_query upload_status" fn upload_status() -> types::Upload {
        as_admin(|canister, _| Ok(upload_report(canister)))
    }

    update "canister_update commit_upload" fn commit_upload(budget: Option<u64>) -> types::Upload {
        as_admin(|canister, _| {
            let allowance = canister.allowance(budget);
            canister.commit_upload(allowance)?;
            Ok(upload_report(canister))
        })
    }

    update "canister_update abort_upload" fn abort_upload() -> () {
        as_admin(|canister, _| canister.abort_upload())
    }

    update "canister_update load" fn load(budget: Option<u64>) -> Health {
        as_admin(|canister, _| {
            let allowance = canister.allowance(budget);
            canister.load(allowance)?;
            Ok(metrics::health(canister))
        })
    }

    update "canister_update set_role" fn set_role(holder: Principal, role: Option<Role>) -> () {
        as_admin(|canister, _| {
            canister.gate.set_role(holder, role)?;
            canister.save()
        })
    }

    query "canister_query roles" fn roles() -> Vec<RoleEntry> {
        as_admin(|canister, _| Ok(canister.gate.roles()))
    }

    update "canister_update set_access" fn set_access(access: Access) -> () {
        as_admin(|canister, _| {
            canister.gate.access = access;
            canister.save()
        })
    }

    update "canister_update set_limits" fn set_limits(limits: Limits) -> () {
        as_admin(|canister, _| {
            check_limits(&limits)?;
            canister.limits = limits;
            canister.save()
        })
    }

    update "canister_update start_session" fn start_session(params: SessionParams) -> SessionInfo {
        as_user(|canister, caller| canister.start(caller, params))
    }

    query "canister_query sessions" fn sessions() -> Vec<SessionInfo> {
        as_user(|canister, caller| {
            let own = canister.chats.values().filter(|chat| chat.known.owner == caller);
            Ok(own.map(|chat| chat.info(canister.limits.idle_seconds)).collect())
        })
    }

    update "canister_update prefill" fn prefill(session: u64, prompt: Prompt, budget: Option<u64>) -> Progress {
        on_session(session, |canister, caller| {
            add_prompt(canister, caller, session, prompt)?;
            let allowance = canister.allowance(budget);
            canister.pursue(session, Goal::Read, allowance)
        })
    }

    update "canister_update generate" fn generate(session: u64, tokens: u32, budget: Option<u64>) -> Progress {
        draw(session, tokens, budget)
    }

    update "canister_update submit" fn submit(session: u64, tokens: u32) -> Progress {
        on_session(session, |canister, caller| {
            let count = check_draw(canister, caller, session, tokens)?;
            let known = &mut canister.session(caller, session)?.known;
            if known.finish == Some(Finish::Quota) {
                known.finish = None;
            }
            if known.finish.is_none() {
                known.wanted = known.wanted.saturating_add(count as u32).min(known.params.capacity);
            }
            Ok(())
        })
    }

    query "canister_query poll" fn poll(session: u64, offset: u32) -> Output {
        as_user(|canister, caller| Ok(canister.seen(caller, session)?.output(offset)))
    }

    update "canister_update cancel" fn cancel(session: u64) -> Progress {
        as_user(|canister, caller| {
            let chat = canister.session(caller, session)?;
            chat.known.wanted = 0;
            Ok(chat.progress(chat.known.drawn.len(), system::instructions()))
        })
    }

    update "canister_update end" fn end(session: u64) -> () {
        as_user(|canister, caller| {
            canister.seen(caller, session)?;
            canister.chats.remove(&session);
            Ok(())
        })
    }

    update "canister_update work" fn work(budget: Option<u64>) -> Work {
        as_user(|canister, _| {
            let allowance = canister.allowance(budget);
            canister.work(allowance)
        })
    }

    update "canister_update start_generation"
    fn start_generation(session: u64, prompt: Prompt, max_tokens: u32) -> Progress {
        on_session(session, |canister, caller| {
            let capacity = canister.seen(caller, session)?.known.params.capacity;
            let tokens = canister.read_prompt(prompt, 0, capacity)?;
            if tokens.is_empty() {
                return Err(Error::argument("prompt", "empty: expected at least one token"));
            }
            canister.session(caller, session)?.restart(&tokens, max_tokens);
            Ok(())
        })
    }

    update "canister_update start_forward" fn start_forward(session: u64) -> Progress {
        on_session(session, |canister, _| {
            let allowance = canister.allowance(None);
            canister.drive(session, allowance, |engine, chat, budget, _| {
                if chat.layer().is_some() {
                    return Err(Error::state("no token in work: process_layers", "one"));
                }
                if engine.wake(chat, budget) { engine.begin(chat, 1) } else { Ok(()) }
            })
        })
    }

    update "canister_update process_layers" fn process_layers(session: u64, count: u32) -> Progress {
        on_session(session, |canister, _| {
            let allowance = canister.allowance(None);
            canister.drive(session, allowance, |engine, chat, budget, tally| {
                if chat.layer().is_none() {
                    return Err(Error::state("a token in work: start_forward", "none"));
                }
                engine.layers(chat, count, budget, tally)
            })
        })
    }

    update "canister_update finish_forward" fn finish_forward(session: u64) -> Progress {
        on_session(session, |canister, caller| {
            check_draw(canister, caller, session, 1)?;
            let chat = canister.session(caller, session)?;
            if chat.layer().is_some() {
                return Err(Error::state("no token in work: process_layers", "one"));
            }
            let goal = Goal::Drawn(chat.known.drawn.len() + 1);
            let allowance = canister.allowance(None);
            let pending = canister.seen(caller, session)?.is_pending();
            if pending { Ok(()) } else { canister.pursue(session, goal, allowance) }
        })
    }

    update "canister_update generate_n_tokens" fn generate_n_tokens(session: u64, tokens: u32) -> Progress {
        draw(session, tokens, None)
    }

    update "canister_update score" fn score(session: u64, budget: Option<u64>) -> Progress {
        on_session(session, |canister, caller| {
            check_draw(canister, caller, session, 0)?;
            let allowance = canister.allowance(budget);
            canister.pursue(session, Goal::Score, allowance)
        })
    }

    query "canister_query logits" fn logits(session: u64) -> ByteBuf {
        as_user(|canister, caller| {
            let chat = canister.seen(caller, session)?;
            let vocabulary = canister.engine.as_ref().map_or(0, |(engine, _)| engine.vocabulary());
            match &chat.cache {
                Some(cache) if chat.rows > 0 && chat.rows == vocabulary => Ok(bytes_of(cache.logits())),
                _ => Err(Error::state("logits: score", "none")),
            }
        })
    }

    query "canister_query hidden" fn hidden(session: u64) -> ByteBuf {
        as_user(|canister, caller| {
            canister.wake(caller, session)?;
            match &canister.seen(caller, session)?.cache {
                Some(cache) => Ok(bytes_of(cache.hidden())),
                None => Err(Error::state("a token that was begun", "none")),
            }
        })
    }

    query "canister_query predict" fn predict(context: u32, params: SessionParams) -> Prediction {
        as_user(|canister, _| canister.predict(context, params))
    }

    update "canister_update background" fn background() -> Work {
        if !system::is_own_message() {
            return Err(Error::NotAuthorized { need: Role::Admin });
        }
        with(Canister::background)
    }
}

fn bytes_of(floats: &[f32]) -> ByteBuf {
    ByteBuf::from(floats.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
}

// ---- everybody

#[candid_method(query)]
fn limits() -> Limits {
    with(|canister| canister.limits.clone())
}

#[unsafe(export_name = "canister_query limits")]
extern "C" fn export_limits() {
    reply(limits());
}

#[candid_method(query)]
fn health() -> Health {
    with(|canister| metrics::health(canister))
}

#[unsafe(export_name = "canister_query health")]
extern "C" fn export_health() {
    reply(health());
}

#[candid_method(query, rename = "metrics")]
fn list_metrics() -> Vec<Metric> {
    with(|canister| metrics::metrics(canister))
}

#[unsafe(export_name = "canister_query metrics")]
extern "C" fn export_metrics() {
    reply(list_metrics());
}

#[candid_method(query)]
fn http_request(request: HttpRequest) -> HttpResponse {
    with(|canister| http::respond(canister, &request))
}

#[unsafe(export_name = "canister_query http_request")]
extern "C" fn export_http_request() {
    match decode::<(HttpRequest,)>() {
        Ok((request,)) => reply(http_request(request)),
        Err(_) => ic_cdk::api::msg_reject("not an HttpRequest"),
    }
}

// ---- the canister's life. A trap here is wanted: the platform then keeps the code and the state that were there.

#[candid_method(init)]
#[allow(unused)] // stands for the interface; the export below reads the argument
fn init(given: Option<InitArgs>) {}

fn begin_life(restore: bool) {
    let done = decode::<(Option<InitArgs>,)>().and_then(|(given,)| {
        with(|canister| {
            if restore {
                canister.restore()?;
            }
            canister.configure(given.unwrap_or_default())?;
            prepare_headers();
            canister.arm();
            Ok(())
        })
    });
    if let Err(error) = done {
        ic_cdk::api::trap(format!("{error:?}"));
    }
}

#[unsafe(export_name = "canister_init")]
extern "C" fn export_init() {
    begin_life(false);
}

#[unsafe(export_name = "canister_post_upgrade")]
extern "C" fn export_post_upgrade() {
    begin_life(true);
}

#[unsafe(export_name = "canister_pre_upgrade")]
extern "C" fn export_pre_upgrade() {
    if let Err(error) = with(|canister| canister.save_all()) {
        ic_cdk::api::trap(format!("{error:?}"));
    }
}

#[unsafe(export_name = "canister_global_timer")]
extern "C" fn export_global_timer() {
    with(Canister::ring);
}

/// A cheap first filter, on one node only: it saves cycles, and nothing relies on it.
#[unsafe(export_name = "canister_inspect_message")]
extern "C" fn export_inspect_message() {
    let long = ic_cdk::api::msg_arg_data().len() > LONGEST && ic_cdk::api::msg_method_name() != "put_chunk";
    if Gate::somebody().is_ok() && !long && ic_cdk::api::msg_method_name() != "background" {
        ic_cdk::api::accept_message();
    }
}
