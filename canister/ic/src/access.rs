//! Who may do what: roles, open or listed access, and how many tokens a caller has drawn today.

use std::collections::BTreeMap;

use candid::{CandidType, Deserialize, Principal};

use crate::system;
use crate::types::{Access, Answer, Error, Limits, Role, RoleEntry};

/// Most principals with a role.
const MOST_ROLES: usize = 10_000;

/// Roles and quotas.
#[derive(CandidType, Deserialize, Clone)]
pub struct Gate {
    /// Who may start sessions.
    pub access: Access,
    roles: BTreeMap<Principal, Role>,
    /// Day and tokens drawn on it.
    drawn: BTreeMap<Principal, (u64, u64)>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { access: Access::AllowList, roles: BTreeMap::new(), drawn: BTreeMap::new() }
    }
}

impl Gate {
    /// The caller, who must not be anonymous.
    pub fn somebody() -> Answer<Principal> {
        let caller = system::caller();
        if caller == Principal::anonymous() { Err(Error::Anonymous) } else { Ok(caller) }
    }

    /// The caller, who must be an administrator.
    pub fn admin(&self) -> Answer<Principal> {
        let caller = Self::somebody()?;
        let listed = self.roles.get(&caller) == Some(&Role::Admin);
        if listed || system::is_controller(&caller) {
            Ok(caller)
        } else {
            Err(Error::NotAuthorized { need: Role::Admin })
        }
    }

    /// The caller, who must be allowed to have sessions.
    pub fn user(&self) -> Answer<Principal> {
        let caller = Self::somebody()?;
        let allowed = self.access == Access::Open || self.roles.contains_key(&caller) || system::is_controller(&caller);
        if allowed { Ok(caller) } else { Err(Error::NotAuthorized { need: Role::User }) }
    }

    /// Give or take a role.
    pub fn set_role(&mut self, holder: Principal, role: Option<Role>) -> Answer<()> {
        if holder == Principal::anonymous() {
            return Err(Error::argument("holder", "the anonymous principal: expected one that signs"));
        }
        match role {
            None => {
                self.roles.remove(&holder);
            }
            Some(role) => {
                if self.roles.len() >= MOST_ROLES && !self.roles.contains_key(&holder) {
                    let (used, limit) = (self.roles.len() as u64, MOST_ROLES as u64);
                    return Err(Error::QuotaExceeded { what: "roles".into(), used, limit });
                }
                self.roles.insert(holder, role);
            }
        }
        Ok(())
    }

    /// All of them.
    pub fn roles(&self) -> Vec<RoleEntry> {
        self.roles.iter().map(|(&holder, &role)| RoleEntry { holder, role }).collect()
    }

    fn drawn_today(&self, caller: &Principal, today: u64) -> u64 {
        self.drawn.get(caller).filter(|(day, _)| *day == today).map_or(0, |&(_, tokens)| tokens)
    }

    /// Tokens that a caller may still draw today.
    pub fn left_today(&self, caller: &Principal, limits: &Limits, today: u64) -> u64 {
        limits.tokens_per_day.saturating_sub(self.drawn_today(caller, today))
    }

    /// Refuse a caller who may draw no more today.
    pub fn check_quota(&self, caller: &Principal, limits: &Limits) -> Answer<()> {
        let (used, limit) = (self.drawn_today(caller, system::today()), limits.tokens_per_day);
        if used < limit { Ok(()) } else { Err(Error::QuotaExceeded { what: "tokens_per_day".into(), used, limit }) }
    }

    /// Count tokens that a caller drew.
    pub fn count(&mut self, caller: Principal, tokens: u64, today: u64) {
        if tokens == 0 {
            return;
        }
        if self.drawn.len() >= MOST_ROLES && !self.drawn.contains_key(&caller) {
            self.drawn.retain(|_, (day, _)| *day == today);
        }
        let used = self.drawn_today(&caller, today);
        self.drawn.insert(caller, (today, used + tokens));
    }
}

/// Limits that leave the canister able to work.
pub fn check_limits(limits: &Limits) -> Answer<()> {
    let bounds = [
        ("sessions", limits.sessions.into(), 0, 10_000),
        ("cache_bytes", limits.cache_bytes, 0, 3 << 30),
        ("prompt_bytes", limits.prompt_bytes.into(), 1, 1 << 20),
        ("model_bytes", limits.model_bytes, 1, 1 << 30),
        ("idle_seconds", limits.idle_seconds, 1, 10 * 365 * 86_400),
        ("message_budget", limits.message_budget, 1, limits.most_budget),
        ("most_budget", limits.most_budget, 1, 39_900_000_000),
        ("timer_budget", limits.timer_budget, 1, limits.most_budget),
        ("batch", limits.batch.into(), 1, 1024),
    ];
    match bounds.iter().find(|(_, value, least, most)| !(*least..=*most).contains(value)) {
        None => Ok(()),
        Some((field, value, least, most)) => {
            Err(Error::argument(&format!("limits.{field}"), format!("{value}: expected {least} .. {most}")))
        }
    }
}
