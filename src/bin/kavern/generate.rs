//! Seeded workloads that behave like the traffic of an inference server, for runs without a trace file.
//!
//! Three kinds of traffic, and all three interleaved. Lengths are in blocks of 16 tokens, the usual block of an engine.
//! Every tenant owns its nodes and its namespace, so nothing is shared between tenants.
//!
//! Invariant: the same kind, count and seed give the same workload on every machine.

use clap::ValueEnum;
use fastrand::Rng;

use crate::workload::Workload;

/// What traffic to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Growing conversations of many tenants, each with its own system prompt
    Chat,
    /// Agents with long shared tool prompts, many turns and branches
    Agents,
    /// Jobs that put one template before many different texts
    Batch,
    /// All three interleaved
    Mixed,
    /// Thousands of tenants that come and go, some of them hostile; bookkeeping only, any number of requests
    Internet,
}

/// Requests of a generated workload unless told otherwise.
pub(crate) const DEFAULT_REQUESTS: usize = 6000;

/// Most requests of a workload that lies in memory.
pub(crate) const MOST_REQUESTS: u64 = 100_000;

/// Chat tenants; few of them make most of the traffic.
const CHAT_TENANTS: usize = 48;
/// Agent tenants.
const AGENT_TENANTS: usize = 12;
/// Conversations and agent runs that are alive at a time.
const LIVE_CHATS: usize = 160;
const LIVE_AGENTS: usize = 40;
const LIVE_JOBS: usize = 3;
/// No context grows beyond this many blocks: 16 Ki tokens.
const LONGEST: usize = 1024;

/// Makes `requests` requests.
pub(crate) fn generate(kind: Kind, requests: usize, seed: u64) -> Workload {
    let name = match kind {
        Kind::Chat => "generated chat",
        Kind::Agents => "generated agents",
        Kind::Batch => "generated batch",
        Kind::Mixed | Kind::Internet => "generated mix of chat, agents and batch",
    };
    let mut world = World::new(name, seed);
    while world.workload.requests() < requests {
        // Shares of a server that mostly chats.
        let kind = match kind {
            Kind::Mixed | Kind::Internet => {
                [Kind::Chat, Kind::Agents, Kind::Batch][share(&mut world.rng, &[5, 3, 2])]
            }
            one => one,
        };
        match kind {
            Kind::Agents => world.agent_turn(),
            Kind::Batch => world.batch_item(),
            Kind::Chat | Kind::Mixed | Kind::Internet => world.chat_turn(),
        }
    }
    world.workload
}

/// A context that grows: a conversation, a run of an agent, a job with its template.
#[derive(Clone, Default)]
struct Context {
    tenant: u64,
    path: Vec<u32>,
    /// Lengths that the path had after its turns, to go back to.
    turns: Vec<usize>,
    turns_left: usize,
}

struct World {
    rng: Rng,
    workload: Workload,
    next_node: u32,
    /// Shared prompts by tenant, made at first use.
    chat_prompts: Vec<Vec<u32>>,
    agent_prompts: Vec<Vec<u32>>,
    chats: Vec<Context>,
    agents: Vec<Context>,
    jobs: Vec<Context>,
    next_job: u64,
}

impl World {
    fn new(name: &str, seed: u64) -> World {
        World {
            rng: Rng::with_seed(seed),
            workload: Workload::new(name.into()),
            next_node: 0,
            chat_prompts: vec![Vec::new(); CHAT_TENANTS],
            agent_prompts: vec![Vec::new(); AGENT_TENANTS],
            chats: Vec::new(),
            agents: Vec::new(),
            jobs: Vec::new(),
            next_job: 0,
        }
    }

    /// One message of one conversation, now and then a message asked again in other words.
    fn chat_turn(&mut self) {
        if self.chats.len() < LIVE_CHATS {
            let tenant = zipf(&mut self.rng, CHAT_TENANTS);
            let context = Context {
                tenant: 1 + tenant as u64,
                path: self.chat_prompt(tenant),
                turns: Vec::new(),
                turns_left: self.rng.usize(1..=16),
            };
            self.chats.push(context);
        }
        let at = self.pick(self.chats.len());
        let mut context = std::mem::take(&mut self.chats[at]);
        if self.rng.u32(0..100) < 4 {
            context.turns.pop();
            let kept = context.turns.last().copied();
            context.path.truncate(kept.unwrap_or(self.chat_prompts[context.tenant as usize - 1].len()));
        }
        // The question, then the answer, which the next question finds before it.
        let (question, answer) = (self.rng.usize(2..=24), self.rng.usize(4..=40));
        self.turn(&mut context, question, answer);
        match context.turns_left {
            0 => drop(self.chats.remove(at)),
            _ => self.chats[at] = context,
        }
    }

    /// One call of a tool and what it returned; now and then the agent goes back and tries something else.
    fn agent_turn(&mut self) {
        if self.agents.len() < LIVE_AGENTS {
            let tenant = zipf(&mut self.rng, AGENT_TENANTS);
            let context = Context {
                tenant: 1001 + tenant as u64,
                path: self.agent_prompt(tenant),
                turns: Vec::new(),
                turns_left: self.rng.usize(8..=60),
            };
            self.agents.push(context);
        }
        let at = self.pick(self.agents.len());
        let mut context = std::mem::take(&mut self.agents[at]);
        if context.turns.len() > 3 && self.rng.u32(0..100) < 10 {
            let back = self.rng.usize(1..=3);
            context.turns.truncate(context.turns.len() - back);
            context.path.truncate(context.turns[context.turns.len() - 1]);
        }
        let (result, thought) = (self.rng.usize(1..=30), self.rng.usize(1..=8));
        self.turn(&mut context, result, thought);
        match context.turns_left {
            0 => drop(self.agents.remove(at)),
            _ => self.agents[at] = context,
        }
    }

    /// One text behind the template of its job; the text is never seen again.
    fn batch_item(&mut self) {
        if self.jobs.len() < LIVE_JOBS {
            let mut path = Vec::new();
            let length = self.rng.usize(40..=160);
            self.grow(&mut path, length);
            let turns_left = self.rng.usize(100..=600);
            self.jobs.push(Context { tenant: 2001 + self.next_job % 4, path, turns: Vec::new(), turns_left });
            self.next_job += 1;
        }
        let at = self.rng.usize(0..self.jobs.len());
        let template = self.jobs[at].path.len();
        let mut job = std::mem::take(&mut self.jobs[at]);
        let text = self.rng.usize(8..=80);
        self.turn(&mut job, text, 0);
        job.path.truncate(template);
        job.turns.clear();
        match job.turns_left {
            0 => drop(self.jobs.remove(at)),
            _ => self.jobs[at] = job,
        }
    }

    /// Asks with `asked` new blocks behind the path; the answer's blocks are there at the next turn.
    fn turn(&mut self, context: &mut Context, asked: usize, answered: usize) {
        self.grow(&mut context.path, asked);
        context.path.iter().for_each(|&node| self.workload.push_block(node));
        self.workload.finish_request(context.tenant);
        self.grow(&mut context.path, answered);
        context.turns.push(context.path.len());
        context.turns_left = match context.path.len() < LONGEST {
            true => context.turns_left.saturating_sub(1),
            false => 0,
        };
    }

    /// Recent contexts are busier than old ones.
    fn pick(&mut self, count: usize) -> usize {
        let (first, second) = (self.rng.usize(0..count), self.rng.usize(0..count));
        first.max(second)
    }

    fn chat_prompt(&mut self, tenant: usize) -> Vec<u32> {
        if self.chat_prompts[tenant].is_empty() {
            let (mut path, length) = (Vec::new(), self.rng.usize(20..=120));
            self.grow(&mut path, length);
            self.chat_prompts[tenant] = path;
        }
        self.chat_prompts[tenant].clone()
    }

    fn agent_prompt(&mut self, tenant: usize) -> Vec<u32> {
        if self.agent_prompts[tenant].is_empty() {
            let (mut path, length) = (Vec::new(), self.rng.usize(150..=400));
            self.grow(&mut path, length);
            self.agent_prompts[tenant] = path;
        }
        self.agent_prompts[tenant].clone()
    }

    /// Appends blocks that nobody has seen.
    fn grow(&mut self, path: &mut Vec<u32>, blocks: usize) {
        path.extend((0..blocks as u32).map(|offset| self.next_node + offset));
        self.next_node += blocks as u32;
    }
}

/// 0..count, where n has the weight 1 / (n + 1).
fn zipf(rng: &mut Rng, count: usize) -> usize {
    let total: f64 = (1..=count).map(|rank| 1.0 / rank as f64).sum();
    let mut rest = rng.f64() * total;
    for rank in 0..count - 1 {
        rest -= 1.0 / (rank + 1) as f64;
        if rest < 0.0 {
            return rank;
        }
    }
    count - 1
}

/// An index, each with its share.
fn share(rng: &mut Rng, shares: &[u32]) -> usize {
    let mut rest = rng.u32(0..shares.iter().sum());
    for (index, &share) in shares.iter().enumerate() {
        if rest < share {
            return index;
        }
        rest -= share;
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};

    const KINDS: [Kind; 4] = [Kind::Chat, Kind::Agents, Kind::Batch, Kind::Mixed];

    fn paths(workload: &Workload) -> Vec<(u64, Vec<u32>)> {
        (0..workload.requests())
            .map(|request| (workload.tenant(request), workload.nodes()[workload.range(request)].to_vec()))
            .collect()
    }

    #[test]
    fn a_seed_gives_the_same_workload_each_time_and_another_seed_another() {
        for kind in KINDS {
            let (one, two, other) = (generate(kind, 500, 3), generate(kind, 500, 3), generate(kind, 500, 4));
            assert_eq!(one.requests(), 500);
            assert_eq!(paths(&one), paths(&two), "{kind:?}");
            assert_ne!(paths(&one), paths(&other), "{kind:?}");
        }
    }

    #[test]
    fn a_node_has_one_tenant_and_one_predecessor() {
        for kind in KINDS {
            let mut seen = HashMap::new();
            for (tenant, path) in paths(&generate(kind, 2000, 1)) {
                assert!(!path.is_empty() && path.len() <= LONGEST + 40, "{kind:?}: {}", path.len());
                for (at, &node) in path.iter().enumerate() {
                    let place = (tenant, at.checked_sub(1).map(|before| path[before]));
                    assert_eq!(*seen.entry(node).or_insert(place), place, "{kind:?}, node {node}");
                }
            }
        }
    }

    #[test]
    fn every_kind_has_something_to_reuse_and_something_new() {
        for kind in KINDS {
            let workload = generate(kind, 2000, 1);
            let reused = 1.0 - workload.unique_blocks() as f64 / workload.blocks() as f64;
            assert!((0.3..0.99).contains(&reused), "{kind:?}: {reused}");
        }
        let tenants: HashSet<_> =
            paths(&generate(Kind::Mixed, 2000, 1)).into_iter().map(|(t, _)| t / 1000).collect();
        assert_eq!(tenants.len(), 3, "chat, agents and batch all appear");
    }
}
