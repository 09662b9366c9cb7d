//! Everything that the canister holds, how it gets through an upgrade, and its timer.
//!
//! Background work is done by messages that the timer sends to the canister itself. The timer's own message does nothing
//! but set the next alarm and send, so it cannot fail; if the work traps it is taken back, the alarm rings again, and the
//! next attempt has half the budget.

use std::cell::RefCell;
use std::collections::BTreeMap;

use candid::{CandidType, Deserialize, Principal};
use serde_bytes::ByteBuf;

use crate::access::{Gate, check_limits};
use crate::budget::{Budget, Rates};
use crate::loader::{File, Loading, describe};
use crate::scheduler::{Cohort, Engine, Tally};
use crate::session::{Asleep, Chat, Goal, Known, Saved};
use crate::storage::Storage;
use crate::system;
use crate::types::*;
use crate::upload::{Hashing, Upstream};

/// Nanoseconds after which background work that did not come back is sent again.
const ALARM: u64 = 30_000_000_000;
/// Attempts after which background work is given up.
const MOST_STRIKES: u32 = 16;
/// Instructions after which an upgrade saves no more caches: a third of what the platform gives it.
const MOST_SAVING: u64 = 100_000_000_000;
/// Heap above which it saves none: copies, and later the model beside them, might not fit.
const FULLEST: u64 = 3 << 30;

/// What is kept over an upgrade.
#[derive(CandidType, Deserialize, Default)]
struct Kept {
    gate: Gate,
    limits: Limits,
    known: Vec<Known>,
    next_session: u64,
    upload: Option<Upstream>,
    file: Option<File>,
    previous: Option<File>,
    saved: Option<Vec<Saved>>,
}

/// Counts since the code was installed.
#[derive(Default)]
pub struct Counts {
    /// Of all work.
    pub tally: Tally,
    /// Refusals by kind.
    pub refused: BTreeMap<&'static str, u64>,
    /// Background messages.
    pub background: u64,
    /// Sessions started, and ended because nobody used them.
    pub started: u64,
    /// See above.
    pub expired: u64,
}

/// The canister.
#[derive(Default)]
pub struct Canister {
    /// Roles and quotas.
    pub gate: Gate,
    /// Limits.
    pub limits: Limits,
    /// Sessions by number.
    pub chats: BTreeMap<u64, Chat>,
    next_session: u64,
    /// The upload that is under way.
    pub upload: Option<Upstream>,
    /// Its digest so far.
    pub hashing: Hashing,
    /// The file of the model in use, or of the one being loaded.
    file: Option<File>,
    /// The file of the model in use while another is being loaded.
    previous: Option<File>,
    loading: Option<Loading>,
    refused: Option<(EngineKind, String)>,
    /// The model in use, and its description.
    pub engine: Option<(Engine, Model)>,
    cohort: Cohort,
    strikes: u32,
    /// What steps cost.
    pub rates: Rates,
    /// Counts.
    pub counts: Counts,
    storage: Storage,
}

thread_local! {
    static CANISTER: RefCell<Canister> = RefCell::new(Canister::default());
}

/// Run with the canister.
pub fn with<T>(run: impl FnOnce(&mut Canister) -> T) -> T {
    CANISTER.with_borrow_mut(run)
}

impl Canister {
    // ---- life

    /// Of install and upgrade.
    pub fn configure(&mut self, given: InitArgs) -> Answer<()> {
        if let Some(limits) = given.limits {
            check_limits(&limits)?;
            self.limits = limits;
        }
        self.gate.access = given.access.unwrap_or(self.gate.access);
        Ok(())
    }

    /// Write what is known to stable memory: whenever files or rights change, so that they survive even code that never
    /// gets to save.
    pub fn save(&self) -> Answer<()> {
        self.keep(None)
    }

    /// Before an upgrade: the same with the caches of all sessions, as far as there is room. What is not saved is computed
    /// again.
    pub fn save_all(&self) -> Answer<()> {
        let (mut saved, mut offset) = (Vec::new(), 0);
        for (&session, chat) in &self.chats {
            if system::instructions() > MOST_SAVING || system::heap_bytes() > FULLEST {
                break;
            }
            let Some((summary, bytes)) = chat.save(session, offset) else { continue };
            if self.storage.keep(offset, &bytes).is_err() {
                break;
            }
            offset += summary.bytes;
            saved.push(summary);
        }
        self.keep(Some(saved))
    }

    fn keep(&self, saved: Option<Vec<Saved>>) -> Answer<()> {
        let kept = Kept {
            gate: self.gate.clone(),
            limits: self.limits.clone(),
            known: self.chats.values().map(|chat| chat.known.clone()).collect(),
            next_session: self.next_session,
            upload: self.upload.clone(),
            file: self.file.clone(),
            previous: self.previous.clone(),
            saved,
        };
        let bytes = candid::encode_one(kept).map_err(|error| Error::InvalidCandid { reason: error.to_string() })?;
        self.storage.save(&bytes)
    }

    /// Go on where the code before stopped; the model is loaded again by the timer.
    pub fn restore(&mut self) -> Answer<()> {
        let Some(bytes) = self.storage.restore() else { return Ok(()) };
        let kept: Kept =
            candid::decode_one(&bytes).map_err(|error| Error::InvalidCandid { reason: error.to_string() })?;
        self.gate = kept.gate;
        self.limits = kept.limits;
        self.chats = kept.known.into_iter().map(|known| (known.id, Chat::new(known))).collect();
        self.next_session = kept.next_session;
        self.upload = kept.upload;
        (self.file, self.previous) = (kept.file, kept.previous);
        self.loading = self.file.clone().map(Loading::new);
        for saved in kept.saved.unwrap_or_default() {
            // A sequence that cannot be read back is computed again.
            if let (Some(chat), Ok(bytes)) = (self.chats.get_mut(&saved.session), self.storage.kept(&saved)) {
                chat.asleep = Some(Asleep { saved, bytes });
            }
        }
        Ok(())
    }

    // ---- the timer

    /// Whether there is something to do in the background.
    fn has_work(&self) -> bool {
        let verifying = self.upload.as_ref().is_some_and(Upstream::is_verifying);
        let drawing = self.engine.is_some() && self.chats.values().any(|chat| chat.known.wanted > 0);
        verifying || self.loading.is_some() || drawing
    }

    /// Set the timer: at once if there is work, else when the next session expires.
    pub fn arm(&self) {
        if self.has_work() {
            system::set_timer(system::now() + 1);
            return;
        }
        let expiries = self.chats.values().map(|chat| chat.known.expires(self.limits.idle_seconds));
        system::set_timer(expiries.min().unwrap_or(0));
    }

    /// What the timer does: nothing that could fail.
    pub fn ring(&mut self) {
        self.expire();
        if !self.has_work() {
            self.arm();
            return;
        }
        self.strikes += 1;
        if self.strikes > MOST_STRIKES {
            self.give_up();
        }
        system::set_timer(system::now() + ALARM);
        system::send_background();
    }

    /// Work that traps time and again: whoever takes part in it has to leave.
    fn give_up(&mut self) {
        let error = Error::Trapped { times: self.strikes - 1 };
        self.strikes = 1;
        if let Some((engine, _)) = &self.engine {
            // A message that trapped in its first steps took back the cohort that it had formed: form it again.
            self.cohort.complete(&self.chats, engine.vocabulary(), self.limits.batch as usize);
        }
        for id in self.cohort.sessions() {
            if let Some(chat) = self.chats.get_mut(&id) {
                chat.forget();
                chat.known.finish = Some(Finish::Failed(error.clone()));
                chat.known.wanted = 0;
            }
        }
        self.cohort.clear();
        if self.loading.is_some() {
            self.refuse(EngineKind::Capacity, "loading trapped time and again".into());
        }
    }

    /// What the timer's message does.
    pub fn background(&mut self) -> Answer<Work> {
        self.counts.background += 1;
        let budget = self.limits.timer_budget >> self.strikes.saturating_sub(1).min(63);
        let done = self.work(budget);
        self.strikes = 0;
        done
    }

    /// End sessions that nobody used.
    pub fn expire(&mut self) {
        let (now, idle, before) = (system::now(), self.limits.idle_seconds, self.chats.len());
        self.chats.retain(|_, chat| chat.known.expires(idle) > now);
        self.counts.expired += (before - self.chats.len()) as u64;
    }

    // ---- work

    /// The instructions that a call may take.
    pub fn allowance(&self, budget: Option<u64>) -> u64 {
        budget.unwrap_or(self.limits.message_budget).min(self.limits.most_budget)
    }

    /// Everything that the background wants: a digest, a model, tokens.
    pub fn work(&mut self, allowance: u64) -> Answer<Work> {
        let mut tally = Tally::default();
        let verified = self.verify(allowance);
        let loaded = if verified.is_ok() { self.load(allowance) } else { Ok(()) };
        if let Some((engine, _)) = &mut self.engine {
            let mut budget = Budget::new(&mut self.rates, allowance, self.limits.most_budget);
            let (gate, limits, now, today) = (&mut self.gate, &self.limits, system::now(), system::today());
            let drawn = |chat: &mut Chat| {
                let known = &mut chat.known;
                known.used = now;
                gate.count(known.owner, 1, today);
                if known.wanted > 0 && gate.left_today(&known.owner, limits, today) == 0 {
                    (known.wanted, known.finish) = (0, Some(Finish::Quota));
                }
            };
            self.cohort.work(engine, &mut self.chats, limits.batch as usize, &mut budget, &mut tally, drawn);
            self.counts.tally.add(tally);
        }
        verified?;
        loaded?;
        let sessions = self.chats.values().filter(|chat| chat.known.wanted > 0).count() as u32;
        let instructions = system::instructions();
        Ok(Work { steps: tally.steps, tokens: tally.drawn, read: tally.read, sessions, instructions })
    }

    /// One session towards a goal.
    pub fn pursue(&mut self, id: u64, goal: Goal, allowance: u64) -> Answer<()> {
        self.drive(id, allowance, |engine, chat, budget, tally| engine.pursue(chat, goal, budget, tally))
    }

    /// Steps of one session, counted and charged to its owner.
    pub fn drive(
        &mut self,
        id: u64,
        allowance: u64,
        run: impl FnOnce(&mut Engine, &mut Chat, &mut Budget, &mut Tally) -> Answer<()>,
    ) -> Answer<()> {
        let phase = self.phase();
        let (Some((engine, _)), Some(chat)) = (&mut self.engine, self.chats.get_mut(&id)) else {
            return Err(Error::ModelNotReady { phase });
        };
        let mut budget = Budget::new(&mut self.rates, allowance, self.limits.most_budget);
        let mut tally = Tally::default();
        let done = run(engine, chat, &mut budget, &mut tally);
        self.gate.count(chat.known.owner, tally.drawn, system::today());
        self.counts.tally.add(tally);
        done
    }

    // ---- the model

    /// Begin an upload into the bank that is not in use.
    pub fn begin_upload(&mut self, size: u64, sha256: ByteBuf) -> Answer<()> {
        if size == 0 || size > self.limits.model_bytes {
            let limit = self.limits.model_bytes;
            return Err(Error::TooLarge { what: "file (1 byte at least)".into(), size, limit });
        }
        if sha256.len() != 32 {
            return Err(Error::argument("sha256", format!("{} bytes: expected 32", sha256.len())));
        }
        if self.loading.is_some() && self.previous.is_some() {
            return Err(Error::state("a model that is not being replaced", "loading"));
        }
        let bank = self.file.as_ref().map_or(0, |file| 1 - file.bank.min(1));
        self.storage.reserve(bank.into(), size)?;
        self.upload = Some(Upstream::new(bank, size, sha256));
        self.hashing = Hashing::default();
        self.save()
    }

    /// One chunk.
    pub fn put_chunk(&mut self, index: u32, bytes: &[u8]) -> Answer<()> {
        let upload = self.upload.as_mut().ok_or_else(no_upload)?;
        upload.put(&self.storage, index, bytes)
    }

    /// Begin or go on verifying, and begin loading once the digest is right.
    pub fn commit_upload(&mut self, allowance: u64) -> Answer<()> {
        let upload = self.upload.as_mut().ok_or_else(no_upload)?;
        if !upload.is_verifying() {
            upload.begin_verifying()?;
        }
        self.verify(allowance)
    }

    fn verify(&mut self, allowance: u64) -> Answer<()> {
        let Some(upload) = self.upload.as_ref().filter(|upload| upload.is_verifying()) else { return Ok(()) };
        let mut budget = Budget::new(&mut self.rates, allowance, self.limits.most_budget);
        let Some(found) = upload.hash(&self.storage, &mut self.hashing, &mut budget) else { return Ok(()) };
        let Upstream { bank, size, sha256, .. } = upload.clone();
        self.upload = None;
        if found != sha256.as_slice() {
            self.save()?;
            return Err(Error::HashMismatch { expected: sha256, found: ByteBuf::from(found) });
        }
        // A file that was refused or is still being loaded is not worth going back to.
        self.previous = if self.loading.is_some() { self.previous.take() } else { self.file.take() };
        let file = File { bank, size, sha256 };
        self.loading = Some(Loading::new(file.clone()));
        (self.file, self.refused) = (Some(file), None);
        self.save()
    }

    /// Forget an upload.
    pub fn abort_upload(&mut self) -> Answer<()> {
        self.upload.take().ok_or_else(no_upload)?;
        self.hashing = Hashing::default();
        self.save()
    }

    /// Go on loading; sessions of another model end when it is there.
    pub fn load(&mut self, allowance: u64) -> Answer<()> {
        let Some(loading) = &mut self.loading else { return Ok(()) };
        let mut budget = Budget::new(&mut self.rates, allowance, self.limits.most_budget);
        match loading.step(&self.storage, &mut budget) {
            Ok(None) => Ok(()),
            Ok(Some(weights)) => {
                let file = loading.file.clone();
                self.loading = None;
                self.previous = None;
                self.cohort.clear();
                for chat in self.chats.values_mut() {
                    // What an upgrade saved was computed with the same weights, if they are.
                    (chat.cache, chat.rows) = (None, 0);
                    if chat.known.model != file.sha256 {
                        chat.forget();
                        (chat.known.wanted, chat.known.finish) = (0, Some(Finish::ModelReplaced));
                    }
                }
                let model = describe(&weights, &file);
                self.engine = Some((Engine { model: weights }, model));
                self.save()
            }
            Err(error) => {
                if let Error::Engine { kind, message } = &error {
                    self.refuse(*kind, message.clone());
                }
                Err(error)
            }
        }
    }

    /// The file cannot become a model: stay with the one before.
    fn refuse(&mut self, kind: EngineKind, message: String) {
        self.refused = Some((kind, message));
        self.file = self.previous.take();
        self.loading = None;
        if self.engine.is_none() {
            self.loading = self.file.clone().map(Loading::new);
        }
    }

    /// How far the model is.
    pub fn phase(&self) -> ModelPhase {
        match (&self.loading, &self.refused, &self.engine) {
            (Some(loading), ..) => {
                let (done, total) = loading.progress();
                ModelPhase::Loading { done, total }
            }
            (None, Some((kind, message)), _) => ModelPhase::Refused { kind: *kind, message: message.clone() },
            (None, None, Some(_)) => ModelPhase::Ready,
            (None, None, None) => ModelPhase::Empty,
        }
    }

    // ---- sessions

    /// A session of this caller, with a model that is ready.
    pub fn session(&mut self, caller: Principal, id: u64) -> Answer<&mut Chat> {
        let phase = self.phase();
        let now = system::now();
        let ready = self.engine.is_some();
        let chat = self.chats.get_mut(&id).filter(|chat| chat.known.owner == caller);
        let chat = chat.ok_or(Error::NotFound { session: id })?;
        if !ready {
            return Err(Error::ModelNotReady { phase });
        }
        chat.known.used = now;
        Ok(chat)
    }

    /// A session of this caller, to be looked at.
    pub fn seen(&self, caller: Principal, id: u64) -> Answer<&Chat> {
        self.chats.get(&id).filter(|chat| chat.known.owner == caller).ok_or(Error::NotFound { session: id })
    }

    /// Wake a session that an upgrade put to sleep, to look at it.
    pub fn wake(&mut self, caller: Principal, id: u64) -> Answer<()> {
        let chat = self.chats.get_mut(&id).filter(|chat| chat.known.owner == caller);
        if let (Some((engine, _)), Some(chat)) = (&self.engine, chat) {
            chat.wake(&engine.model);
        }
        self.seen(caller, id).map(|_| ())
    }

    /// What the engine expects a token to cost after `context` others.
    pub fn predict(&self, context: u32, params: SessionParams) -> Answer<Prediction> {
        let Some((engine, model)) = &self.engine else { return Err(Error::ModelNotReady { phase: self.phase() }) };
        if context >= model.block_size {
            return Err(Error::argument("context", format!("{context}: expected 0 .. {}", model.block_size - 1)));
        }
        let params = crate::session::Params::read(params, model.block_size)?;
        Ok(engine.predict(context as usize, &params))
    }

    /// Bytes of all caches, those not made yet included.
    pub fn cache_bytes(&self) -> u64 {
        let Some((engine, _)) = &self.engine else { return 0 };
        self.chats.values().map(|chat| engine.cache_bytes(chat.known.params.capacity)).sum()
    }

    /// A new session.
    pub fn start(&mut self, owner: Principal, params: SessionParams) -> Answer<SessionInfo> {
        self.expire();
        let Some((engine, model)) = &self.engine else { return Err(Error::ModelNotReady { phase: self.phase() }) };
        let params = crate::session::Params::read(params, model.block_size)?;
        let own = self.chats.values().filter(|chat| chat.known.owner == owner).count() as u64;
        let bytes = self.cache_bytes() + engine.cache_bytes(params.capacity);
        let quotas = [
            ("sessions_per_caller", own + 1, u64::from(self.limits.sessions_per_caller)),
            ("sessions", self.chats.len() as u64 + 1, u64::from(self.limits.sessions)),
            ("cache_bytes", bytes, self.limits.cache_bytes),
        ];
        if let Some(&(what, used, limit)) = quotas.iter().find(|(_, used, limit)| used > limit) {
            return Err(Error::QuotaExceeded { what: what.into(), used, limit });
        }
        let (id, now) = (self.next_session, system::now());
        let chat = Chat::new(Known {
            id,
            owner,
            model: model.sha256.clone(),
            params,
            tokens: Vec::new(),
            drawn: Vec::new(),
            text: String::new(),
            ends: Vec::new(),
            wanted: 0,
            finish: None,
            created: now,
            used: now,
        });
        let info = chat.info(self.limits.idle_seconds);
        self.chats.insert(id, chat);
        self.next_session += 1;
        self.counts.started += 1;
        Ok(info)
    }

    /// Ids of a prompt that fits behind `length` tokens of a session.
    pub fn read_prompt(&self, prompt: Prompt, length: usize, capacity: u32) -> Answer<Vec<u32>> {
        let size = match &prompt {
            Prompt::Tokens(tokens) => 4 * tokens.len() as u64,
            Prompt::Text(text) => text.len() as u64,
        };
        let limit = u64::from(self.limits.prompt_bytes);
        if size > limit {
            return Err(Error::TooLarge { what: "prompt".into(), size, limit });
        }
        let Some((engine, model)) = &self.engine else { return Err(Error::ModelNotReady { phase: self.phase() }) };
        let tokens = match prompt {
            Prompt::Tokens(tokens) => tokens,
            Prompt::Text(text) => engine.model.tokenizer()?.encode(&text)?,
        };
        if let Some(token) = tokens.iter().find(|&&token| token >= model.vocab_size) {
            let reason = format!("id {token}: expected 0 .. {}", model.vocab_size - 1);
            return Err(Error::argument("prompt", reason));
        }
        let total = (length + tokens.len()) as u64;
        let limit = u64::from(capacity);
        if total > limit && !tokens.is_empty() {
            return Err(Error::Capacity { tokens: total, limit });
        }
        Ok(tokens)
    }
}

fn no_upload() -> Error {
    Error::state("an upload: begin_upload", "Idle")
}
