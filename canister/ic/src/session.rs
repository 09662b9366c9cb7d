//! One sequence: what it knows, what it has read, and what comes next.
//!
//! ```text
//! tokens  known: prompts and drawn ones         read  those that passed all blocks, a prefix
//! read < tokens             the next step is a block of token `read`
//! read = tokens, rows < V   the next step is the head         rows = V   the next is a draw, which adds a token
//! ```
//!
//! An upgrade keeps what is known, and what was computed as well, as far as there is room for it: a session is then *asleep*
//! until its next step wakes it. What is not kept is computed again, which strict arithmetic does to the bit, at some thirty
//! times the cost.

use candid::{CandidType, Deserialize, Principal};
use serde_bytes::ByteBuf;
use walsh_engine::forward::Session;
use walsh_engine::model::Model;
use walsh_engine::sampling::Sampling;
use walsh_engine::tokenizer::Stream;

use crate::types::{Answer, Error, Finish, Output, Progress, SessionInfo, SessionParams, State};

/// Most stop tokens or texts of a session.
const MOST_STOPS: usize = 64;
/// Longest stop text in bytes.
const LONGEST_STOP: usize = 256;
/// Most tokens in one answer of `poll`.
const MOST_POLLED: usize = 4096;

/// Parameters of a session, complete.
#[derive(CandidType, Deserialize, Clone)]
pub struct Params {
    temperature: f32,
    top_k: u32,
    top_p: f32,
    repetition_penalty: f32,
    seed: u64,
    max_tokens: u32,
    stop_tokens: Vec<u32>,
    stop_texts: Vec<String>,
    stop_at_end: bool,
    /// Tokens that fit.
    pub capacity: u32,
}

impl Params {
    /// Fill in defaults and refuse what is outside its domain.
    pub fn read(given: SessionParams, block_size: u32) -> Answer<Self> {
        let capacity = given.capacity.unwrap_or(block_size);
        if capacity == 0 || capacity > block_size {
            return Err(Error::argument("capacity", format!("{capacity}: expected 1 .. {block_size}")));
        }
        let params = Self {
            temperature: given.temperature.unwrap_or(0.0),
            top_k: given.top_k.unwrap_or(0),
            top_p: given.top_p.unwrap_or(1.0),
            repetition_penalty: given.repetition_penalty.unwrap_or(1.0),
            seed: given.seed.unwrap_or(0),
            max_tokens: given.max_tokens.unwrap_or(u32::MAX),
            stop_tokens: given.stop_tokens.unwrap_or_default(),
            stop_texts: given.stop_texts.unwrap_or_default(),
            stop_at_end: given.stop_at_end.unwrap_or(true),
            capacity,
        };
        params.sampling().check().map_err(|error| Error::argument("sampling", error.message))?;
        if !params.temperature.is_finite() {
            return Err(Error::argument("temperature", "infinite: expected a finite number from 0 (greedy) up"));
        }
        if params.stop_tokens.len().max(params.stop_texts.len()) > MOST_STOPS {
            return Err(Error::argument("stop", format!("too many: expected at most {MOST_STOPS}")));
        }
        if params.stop_texts.iter().any(|text| text.is_empty() || text.len() > LONGEST_STOP) {
            return Err(Error::argument("stop_texts", format!("expected 1 .. {LONGEST_STOP} bytes each")));
        }
        Ok(params)
    }

    /// As the engine takes them.
    pub fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k as usize,
            top_p: self.top_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
        }
    }
}

/// What survives an upgrade.
#[derive(CandidType, Deserialize, Clone)]
pub struct Known {
    /// Its number.
    pub id: u64,
    /// Who started it.
    pub owner: Principal,
    /// Digest of the model that it talks to.
    pub model: ByteBuf,
    /// How it draws.
    pub params: Params,
    /// Prompts and drawn tokens.
    pub tokens: Vec<u32>,
    /// Drawn ones.
    pub drawn: Vec<u32>,
    /// Text of the drawn ones, and where the text of each ends.
    pub text: String,
    /// Byte offsets, one for each drawn token.
    pub ends: Vec<u32>,
    /// Tokens that the background has still to draw.
    pub wanted: u32,
    /// Why no more come.
    pub finish: Option<Finish>,
    /// Nanoseconds since 1970.
    pub created: u64,
    /// Nanoseconds since 1970.
    pub used: u64,
}

/// A cache in stable memory: where, and how far its session was.
#[derive(CandidType, Deserialize, Clone)]
pub struct Saved {
    /// Whose.
    pub session: u64,
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub bytes: u64,
    /// Tokens that passed all blocks.
    read: u32,
    /// Tokens in work.
    columns: u32,
    /// Blocks that these have passed.
    layer: u32,
}

/// A cache that came through an upgrade and was not needed since.
pub struct Asleep {
    /// What it is.
    pub saved: Saved,
    /// As the engine wrote it.
    pub bytes: Vec<u8>,
}

/// A session.
pub struct Chat {
    /// What survives an upgrade.
    pub known: Known,
    /// Keys and values, and the token in work.
    pub cache: Option<Session>,
    /// The same as an upgrade left it.
    pub asleep: Option<Asleep>,
    stream: Option<Stream>,
    /// Logits of the last token that are computed.
    pub rows: usize,
}

/// How far a call wants a session to go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Every token read.
    Read,
    /// And the logits of the last one.
    Score,
    /// And so many tokens drawn, of the session's life.
    Drawn(usize),
}

/// The next step of a session, in the order in which a batch takes them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Next {
    /// This block.
    Block(usize),
    /// Logits from this id on.
    Head(usize),
    /// A draw.
    Draw,
}

impl Chat {
    /// A session that has read nothing yet.
    pub fn new(known: Known) -> Self {
        Self { known, cache: None, asleep: None, stream: None, rows: 0 }
    }

    /// Tokens that passed all blocks.
    pub fn read(&self) -> usize {
        match (&self.cache, &self.asleep) {
            (Some(cache), _) => cache.tokens().len(),
            (None, Some(asleep)) => asleep.saved.read as usize,
            (None, None) => 0,
        }
    }

    /// Blocks that the tokens in work have passed, if there are any.
    pub fn layer(&self) -> Option<usize> {
        match (&self.cache, &self.asleep) {
            (Some(cache), _) => cache.in_work().map(|(_, layer)| layer),
            (None, Some(asleep)) => (asleep.saved.columns > 0).then_some(asleep.saved.layer as usize),
            (None, None) => None,
        }
    }

    /// How many tokens are in work.
    pub fn columns(&self) -> usize {
        match (&self.cache, &self.asleep) {
            (Some(cache), _) => cache.in_work().map_or(0, |(tokens, _)| tokens.len()),
            (None, Some(asleep)) => asleep.saved.columns as usize,
            (None, None) => 0,
        }
    }

    /// What to do next for a goal; nothing if it is reached.
    pub fn next(&self, goal: Goal, vocabulary: usize) -> Option<Next> {
        let known = &self.known;
        if self.read() < known.tokens.len() && (goal == Goal::Read || goal == Goal::Score || self.may_draw(goal)) {
            return Some(Next::Block(self.layer().unwrap_or(0)));
        }
        match goal {
            Goal::Read => None,
            Goal::Score => (self.rows < vocabulary).then_some(Next::Head(self.rows)),
            Goal::Drawn(_) if !self.may_draw(goal) => None,
            Goal::Drawn(_) if self.rows < vocabulary => Some(Next::Head(self.rows)),
            Goal::Drawn(_) => Some(Next::Draw),
        }
    }

    fn may_draw(&self, goal: Goal) -> bool {
        matches!(goal, Goal::Drawn(count) if self.known.finish.is_none() && self.known.drawn.len() < count)
    }

    /// What the background wants.
    pub fn background(&self) -> Goal {
        Goal::Drawn(self.known.drawn.len() + self.known.wanted as usize)
    }

    /// Begin anew with a prompt.
    pub fn restart(&mut self, prompt: &[u32], max_tokens: u32) {
        let known = &mut self.known;
        known.tokens = prompt.to_vec();
        (known.drawn, known.ends) = Default::default();
        known.text.clear();
        (known.wanted, known.finish) = (0, None);
        known.params.max_tokens = max_tokens;
        self.forget();
        self.stream = None;
    }

    /// Whether tokens are known that were not read yet.
    pub fn is_pending(&self) -> bool {
        self.read() < self.known.tokens.len()
    }

    /// Forget what was computed.
    pub fn forget(&mut self) {
        (self.cache, self.asleep, self.rows) = (None, None, 0);
    }

    /// What was computed, for the code that comes next.
    pub fn save(&self, session: u64, offset: u64) -> Option<(Saved, Vec<u8>)> {
        let bytes = match (&self.cache, &self.asleep) {
            (Some(cache), _) => cache.save(),
            (None, Some(asleep)) => asleep.bytes.clone(),
            (None, None) => return None,
        };
        let (read, columns) = (self.read() as u32, self.columns() as u32);
        let layer = self.layer().unwrap_or(0) as u32;
        Some((Saved { session, offset, bytes: bytes.len() as u64, read, columns, layer }, bytes))
    }

    /// Take back what an upgrade left; bytes that are not of this model are let go, and computed again.
    pub fn wake(&mut self, model: &Model) {
        let Some(asleep) = self.asleep.take() else { return };
        self.cache = model.restore_session(&asleep.bytes).ok();
    }

    /// Add a prompt that was checked.
    pub fn extend(&mut self, prompt: &[u32]) {
        if !prompt.is_empty() {
            self.known.tokens.extend_from_slice(prompt);
            self.known.finish = None;
            self.rows = 0;
        }
    }

    /// Draw the next token from the logits, all of which are there.
    pub fn draw(&mut self, model: &mut Model) -> Answer<()> {
        let Some(cache) = &self.cache else { return Err(Error::state("logits", "none")) };
        let token = model.sample(cache, &self.known.params.sampling())? as u32;
        self.rows = 0;
        let piece = self.piece(model, token)?;
        let known = &mut self.known;
        known.tokens.push(token);
        known.drawn.push(token);
        known.wanted = known.wanted.saturating_sub(1);
        let end = model.tokenizer().ok().map(|tokenizer| tokenizer.end_token() as u32);
        let stops = known.params.stop_tokens.contains(&token) || (known.params.stop_at_end && end == Some(token));
        if stops {
            known.finish = Some(Finish::StopToken(token));
        } else {
            let from = known.text.len();
            known.text.push_str(&piece);
            known.finish = known.stop_text(from);
        }
        known.ends.push(known.text.len() as u32);
        if known.finish.is_none() && known.drawn.len() >= known.params.max_tokens as usize {
            known.finish = Some(Finish::Length);
        }
        if known.finish.is_none() && known.tokens.len() > known.params.capacity as usize {
            known.finish = Some(Finish::Capacity);
        }
        if known.finish.is_some() {
            known.wanted = 0;
        }
        Ok(())
    }

    /// Text that a token completes.
    fn piece(&mut self, model: &Model, token: u32) -> Answer<String> {
        let Ok(tokenizer) = model.tokenizer() else { return Ok(String::new()) };
        let mut bytes = Vec::new();
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                // After an upgrade: whatever stood unfinished at the end stands there again.
                let mut stream = Stream::default();
                for &earlier in &self.known.drawn {
                    bytes.clear();
                    tokenizer.token(earlier as usize, &mut bytes)?;
                    stream.push(&bytes);
                }
                self.stream.insert(stream)
            }
        };
        bytes.clear();
        tokenizer.token(token as usize, &mut bytes)?;
        Ok(stream.push(&bytes))
    }

    /// What it is doing.
    pub fn state(&self) -> State {
        match &self.known.finish {
            Some(finish) => State::Finished(finish.clone()),
            None if self.known.wanted > 0 || self.layer().is_some() => State::Working,
            // The last drawn token is read when another one is asked for: it is no work.
            None if self.read() + usize::from(!self.known.drawn.is_empty()) < self.known.tokens.len() => State::Working,
            None => State::Idle,
        }
    }

    /// What a call answers; new tokens are those from `since` on.
    pub fn progress(&self, since: usize, instructions: u64) -> Progress {
        let known = &self.known;
        Progress {
            session: known.id,
            state: self.state(),
            tokens: known.drawn[since.min(known.drawn.len())..].to_vec(),
            text: known.text_between(since, known.drawn.len()),
            produced: known.drawn.len() as u32,
            length: known.tokens.len() as u32,
            pending: (known.tokens.len() - self.read()) as u32,
            layer: self.layer().unwrap_or(0) as u32,
            rows: self.rows as u32,
            wanted: known.wanted,
            instructions,
        }
    }

    /// What `poll` answers.
    pub fn output(&self, offset: u32) -> Output {
        let known = &self.known;
        let from = (offset as usize).min(known.drawn.len());
        let to = known.drawn.len().min(from + MOST_POLLED);
        Output {
            state: self.state(),
            offset: from as u32,
            tokens: known.drawn[from..to].to_vec(),
            text: known.text_between(from, to),
            produced: known.drawn.len() as u32,
            wanted: known.wanted,
        }
    }

    /// What `sessions` lists.
    pub fn info(&self, idle_seconds: u64) -> SessionInfo {
        SessionInfo {
            session: self.known.id,
            state: self.state(),
            length: self.known.tokens.len() as u32,
            produced: self.known.drawn.len() as u32,
            capacity: self.known.params.capacity,
            cache_bytes: self.cache.as_ref().map_or(0, |cache| cache.bytes() as u64),
            created: self.known.created,
            expires: self.known.expires(idle_seconds),
        }
    }
}

impl Known {
    /// When it ends if it is not used, in nanoseconds.
    pub fn expires(&self, idle_seconds: u64) -> u64 {
        self.used.saturating_add(idle_seconds.saturating_mul(1_000_000_000))
    }

    fn text_between(&self, from: usize, to: usize) -> String {
        let start = if from == 0 { 0 } else { self.ends.get(from - 1).map_or(self.text.len(), |&end| end as usize) };
        let end = if to == 0 { 0 } else { self.ends.get(to - 1).map_or(self.text.len(), |&end| end as usize) };
        self.text.get(start.min(end)..end).unwrap_or_default().to_owned()
    }

    /// The stop text that appeared with the bytes from `from` on, if one did: the text then ends before it.
    fn stop_text(&mut self, from: usize) -> Option<Finish> {
        let longest = self.params.stop_texts.iter().map(String::len).max()?;
        let mut start = from.saturating_sub(longest);
        while !self.text.is_char_boundary(start) {
            start -= 1;
        }
        let window = &self.text[start..];
        let found = self.params.stop_texts.iter().filter_map(|stop| Some((window.find(stop.as_str())?, stop)));
        let (at, stop) = found.min_by_key(|(at, _)| *at)?;
        let finish = Finish::StopText(stop.clone());
        self.text.truncate(start + at);
        // A piece that was answered already may end inside what is cut now.
        let length = self.text.len() as u32;
        self.ends.iter_mut().for_each(|end| *end = (*end).min(length));
        Some(finish)
    }
}
