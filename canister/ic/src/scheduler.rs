//! Steps within a budget: for one session, or for a batch of sessions that read the weights together.
//!
//! A batch is a *cohort*: every session in it moves on by one token (a token of its prompt is read, or one is drawn),
//! always the ones behind first, so that all pass the same block together; then the next cohort is formed, beginning after
//! the session that was served last. A cohort outlives the message: the next one goes on where the budget ended.

use std::collections::BTreeMap;

use walsh_engine::forward::{COLUMNS, Session};
use walsh_engine::model::Model;

use crate::budget::{Budget, Kind};
use crate::session::{Chat, Goal, Next, Params};
use crate::types::{Answer, Error, Finish, Prediction};

/// The head is cut at multiples of so many ids.
const ROWS: usize = 256;

/// A model at work.
pub struct Engine {
    /// The weights.
    pub model: Model,
}

/// What was done.
#[derive(Clone, Copy, Default)]
pub struct Tally {
    /// Steps, each for a batch.
    pub steps: u64,
    /// Sessions in them.
    pub members: u64,
    /// Tokens that passed all blocks.
    pub read: u64,
    /// Tokens drawn.
    pub drawn: u64,
}

impl Tally {
    /// Add another.
    pub fn add(&mut self, other: Tally) {
        self.steps += other.steps;
        self.members += other.members;
        self.read += other.read;
        self.drawn += other.drawn;
    }
}

/// Whether a session may go on.
enum Outcome {
    Done,
    NoBudget,
}

impl Engine {
    /// V.
    pub fn vocabulary(&self) -> usize {
        self.model.config().vocabulary
    }

    /// Bytes of a session's cache, before it is made.
    pub fn cache_bytes(&self, capacity: u32) -> u64 {
        self.model.session_bytes(capacity as usize)
    }

    /// What a token costs after `context` others, by part.
    pub fn predict(&self, context: usize, params: &Params) -> Prediction {
        let (model, layers) = (&self.model, self.model.config().layers);
        let [linears, mixer, attention, rest] = model.layer_costs(context);
        let embedding = model.begin_cost();
        let head = model.begin_head_cost() + model.head_cost(self.vocabulary());
        let sampling = model.sample_cost_of(&params.sampling());
        let total = embedding + layers as u64 * (linears + mixer + attention + rest) + head + sampling;
        Prediction { embedding, linears, mixer, attention, rest, layers: layers as u32, head, sampling, total }
    }

    /// Take tokens into work: one, or as many of a prompt as pass a block together.
    pub fn begin(&mut self, chat: &mut Chat, most: usize) -> Answer<()> {
        let (read, capacity) = (chat.read(), chat.known.params.capacity as usize);
        let pending = chat.known.tokens.get(read..).unwrap_or_default();
        let ids: Vec<i64> = pending.iter().take(most).map(|&id| i64::from(id)).collect();
        if ids.is_empty() {
            return Err(Error::state("a token that is not read yet", "none"));
        }
        let cache = match &mut chat.cache {
            Some(cache) => cache,
            None => chat.cache.insert(self.model.new_session(capacity)?),
        };
        chat.rows = 0;
        Ok(self.model.begin_tokens(cache, &ids)?)
    }

    /// Wake a session that an upgrade put to sleep; false if the budget does not suffice.
    pub fn wake(&self, chat: &mut Chat, budget: &mut Budget) -> bool {
        let Some(bytes) = chat.asleep.as_ref().map(|asleep| asleep.bytes.len() as f64) else { return true };
        let allowed = budget.allows(Kind::Copy, bytes);
        if allowed {
            chat.wake(&self.model);
            budget.done(Kind::Copy, bytes);
        }
        allowed
    }

    /// One block for sessions that stand before the same one; those that fail are finished.
    fn blocks(&mut self, group: &mut [&mut Chat], most: usize, tally: &mut Tally) {
        for chat in &mut *group {
            if chat.layer().is_none()
                && let Err(error) = self.begin(chat, most)
            {
                fail(chat, error);
            }
        }
        let columns: Vec<usize> = group.iter().map(|chat| chat.columns()).collect();
        let mut caches: Vec<&mut Session> = group.iter_mut().filter_map(|chat| chat.cache.as_mut()).collect();
        let results = self.model.advance_batch(&mut caches);
        let holders = group.iter_mut().zip(columns).filter(|(chat, _)| chat.cache.is_some());
        for ((chat, columns), result) in holders.zip(results) {
            match result {
                Ok(whole) => tally.read += if whole { columns as u64 } else { 0 },
                Err(error) => fail(chat, error.into()),
            }
        }
    }

    /// Logits of ids `from .. to` for sessions that stand there.
    fn head(&mut self, group: &mut [&mut Chat], from: usize, to: usize) {
        if from == 0 {
            for chat in &mut *group {
                let Some(cache) = &mut chat.cache else { continue };
                if let Err(error) = self.model.begin_head(cache) {
                    fail(chat, error.into());
                }
            }
        }
        let mut caches: Vec<&mut Session> = group.iter_mut().filter_map(|chat| chat.cache.as_mut()).collect();
        match self.model.head_range_batch(&mut caches, from, to) {
            Ok(()) => group.iter_mut().for_each(|chat| chat.rows = to),
            Err(error) => group.iter_mut().for_each(|chat| fail(chat, error.clone().into())),
        }
    }

    fn block_work(&self, group: &[&mut Chat], most: usize) -> f64 {
        let cost = |chat: &&mut Chat| match chat.layer() {
            Some(_) => chat.columns() as u64 * self.model.layer_cost(chat.read() + chat.columns()),
            None => {
                let columns = (chat.known.tokens.len() - chat.read()).min(most);
                columns as u64 * (self.model.begin_cost() + self.model.layer_cost(chat.read() + columns))
            }
        };
        group.iter().map(cost).sum::<u64>() as f64
    }

    /// One step of a group that stands at the same place; at most `most` tokens of a prompt are begun together.
    fn step(
        &mut self,
        group: &mut [&mut Chat],
        next: Next,
        most: usize,
        budget: &mut Budget,
        tally: &mut Tally,
    ) -> Outcome {
        let (vocabulary, members) = (self.vocabulary(), group.len() as u64);
        if group.iter().any(|chat| chat.asleep.is_some()) {
            // A step of its own: what comes next is known once they are awake.
            let awake = group.iter_mut().all(|chat| self.wake(chat, budget));
            return if awake { Outcome::Done } else { Outcome::NoBudget };
        }
        let (kind, work) = match next {
            Next::Block(_) => {
                let work = self.block_work(group, most);
                if !budget.allows(Kind::Block, work) {
                    return Outcome::NoBudget;
                }
                self.blocks(group, most, tally);
                (Kind::Block, work)
            }
            Next::Head(from) => {
                let begin = if from == 0 { members * self.model.begin_head_cost() } else { 0 };
                let cost = |rows: usize| (begin + members * self.model.head_cost(rows)) as f64;
                let units = budget.share(Kind::Head, begin as f64, cost(ROWS) - begin as f64);
                if units == 0 {
                    return Outcome::NoBudget;
                }
                let to = vocabulary.min(from.saturating_add(units.saturating_mul(ROWS)));
                let work = cost(to - from);
                self.head(group, from, to);
                (Kind::Head, work)
            }
            Next::Draw => {
                let cost = |chat: &&mut Chat| self.model.sample_cost_of(&chat.known.params.sampling());
                let work = group.iter().map(cost).sum::<u64>() as f64;
                if !budget.allows(Kind::Draw, work) {
                    return Outcome::NoBudget;
                }
                for chat in &mut *group {
                    match chat.draw(&mut self.model) {
                        Ok(()) => tally.drawn += 1,
                        Err(error) => fail(chat, error),
                    }
                }
                (Kind::Draw, work)
            }
        };
        budget.done(kind, work);
        tally.steps += 1;
        tally.members += members;
        Outcome::Done
    }

    /// Up to `count` blocks of the token in work.
    pub fn layers(&mut self, chat: &mut Chat, count: u32, budget: &mut Budget, tally: &mut Tally) -> Answer<()> {
        if !self.wake(chat, budget) {
            return Ok(());
        }
        for _ in 0..count {
            let Some(layer) = chat.layer() else { break };
            if matches!(self.step(&mut [chat], Next::Block(layer), 1, budget, tally), Outcome::NoBudget) {
                break;
            }
            failure(chat)?;
        }
        Ok(())
    }

    /// Steps of one session towards a goal.
    pub fn pursue(&mut self, chat: &mut Chat, goal: Goal, budget: &mut Budget, tally: &mut Tally) -> Answer<()> {
        while let Some(next) = chat.next(goal, self.vocabulary()) {
            if matches!(self.step(&mut [chat], next, COLUMNS, budget, tally), Outcome::NoBudget) {
                break;
            }
            failure(chat)?;
        }
        Ok(())
    }
}

/// A session that the engine refused ends.
fn fail(chat: &mut Chat, error: Error) {
    chat.forget();
    chat.known.finish = Some(Finish::Failed(error));
    chat.known.wanted = 0;
}

fn failure(chat: &Chat) -> Answer<()> {
    match &chat.known.finish {
        Some(Finish::Failed(error)) => Err(error.clone()),
        _ => Ok(()),
    }
}

/// A session in a cohort, and what it had read and drawn when the cohort was formed.
struct Member {
    id: u64,
    read: usize,
    drawn: usize,
}

/// Background work; see the module.
#[derive(Default)]
pub struct Cohort {
    members: Vec<Member>,
    last: u64,
}

impl Member {
    /// The next step, or nothing if it moved on by a token or does not want to.
    fn next(&self, chats: &BTreeMap<u64, Chat>, vocabulary: usize) -> Option<Next> {
        let chat = chats.get(&self.id)?;
        let moved = chat.known.drawn.len() > self.drawn
            || (chat.read() > self.read && chat.layer().is_none() && chat.read() < chat.known.tokens.len());
        if moved { None } else { next_in_background(chat, vocabulary) }
    }
}

fn next_in_background(chat: &Chat, vocabulary: usize) -> Option<Next> {
    if chat.known.wanted == 0 { None } else { chat.next(chat.background(), vocabulary) }
}

impl Cohort {
    /// Numbers of its sessions.
    pub fn sessions(&self) -> Vec<u64> {
        self.members.iter().map(|member| member.id).collect()
    }

    /// Forget it: the model changed.
    pub fn clear(&mut self) {
        self.members.clear();
    }

    /// Drop members that are done; form the next cohort if none is left.
    pub fn complete(&mut self, chats: &BTreeMap<u64, Chat>, vocabulary: usize, batch: usize) {
        self.members.retain(|member| member.next(chats, vocabulary).is_some());
        if self.members.is_empty() {
            self.form(chats, vocabulary, batch);
        }
    }

    fn form(&mut self, chats: &BTreeMap<u64, Chat>, vocabulary: usize, batch: usize) {
        let after = chats.range(self.last.saturating_add(1)..);
        let before = chats.range(..=self.last);
        let wanting = after.chain(before).filter(|(_, chat)| next_in_background(chat, vocabulary).is_some());
        self.members = wanting
            .take(batch)
            .map(|(&id, chat)| Member { id, read: chat.read(), drawn: chat.known.drawn.len() })
            .collect();
        if let Some(member) = self.members.last() {
            self.last = member.id;
        }
    }

    /// Work until the budget ends or nothing is wanted; `drawn` is told every session that drew a token.
    pub fn work(
        &mut self,
        engine: &mut Engine,
        chats: &mut BTreeMap<u64, Chat>,
        batch: usize,
        budget: &mut Budget,
        tally: &mut Tally,
        mut drawn: impl FnMut(&mut Chat),
    ) {
        let vocabulary = engine.vocabulary();
        loop {
            self.complete(chats, vocabulary, batch);
            let Some(next) = self.members.iter().filter_map(|member| member.next(chats, vocabulary)).min() else {
                break;
            };
            let here: Vec<u64> = self
                .members
                .iter()
                .filter(|member| member.next(chats, vocabulary) == Some(next))
                .map(|member| member.id)
                .collect();
            let mut group: Vec<&mut Chat> =
                chats.iter_mut().filter(|(id, _)| here.contains(id)).map(|(_, chat)| chat).collect();
            loop {
                if let Outcome::Done = engine.step(&mut group, next, COLUMNS, budget, tally) {
                    break;
                }
                if group.len() == 1 {
                    return;
                }
                // Perhaps the budget suffices for fewer of them.
                group.truncate(group.len() / 2);
            }
            if next == Next::Draw {
                group.into_iter().for_each(&mut drawn);
            }
        }
    }
}
