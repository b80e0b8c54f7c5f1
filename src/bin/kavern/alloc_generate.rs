//! Seeded traces of allocations as an inference server and a training run make them.
//!
//! What it does: numbers only; sizes follow from a made-up model whose width, depth and context lengths come from the
//! seed, so that few of them are powers of two. What it does not: allocate.
//!
//! `serving`: weights once; for each request keys and values of each layer in chunks as it grows; activations of each
//! step, whose sizes follow the batch; buffers of a copy stream; bursts, phases of other prompt lengths, and things
//! that live far longer than what was made beside them. `training`: parameters, then in each step activations forward
//! and their frees backward, gradients, optimizer state from the first step on, another sequence length each step, and
//! some layers that are computed again instead of being kept.
//!
//! Invariants: the same kind, peak and seed give the same trace on every machine; all that was allocated is freed.

use std::collections::{BTreeSet, VecDeque};

use clap::ValueEnum;
use fastrand::Rng;

use crate::alloc_trace::AllocationTrace;

/// Whose allocations to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// An inference server: weights, requests that come and go, activations of each step
    Serving,
    /// A training run: forward and backward, gradients, optimizer, sequence lengths that change
    Training,
}

const COMPUTE: u32 = 0;
const COPIES: u32 = 1;

const SERVING_STEPS: u64 = 400;
const TRAINING_STEPS: u64 = 60;

/// Makes a trace whose live bytes come near `peak_bytes` and do not exceed it by much.
pub(crate) fn generate(kind: Kind, peak_bytes: u64, seed: u64) -> AllocationTrace {
    let name = match kind {
        Kind::Serving => format!("generated serving, seed {seed}"),
        Kind::Training => format!("generated training, seed {seed}"),
    };
    let maker = Maker {
        rng: Rng::with_seed(seed),
        trace: AllocationTrace::new(name),
        live: BTreeSet::new(),
        live_bytes: 0,
        peak_bytes,
    };
    match kind {
        Kind::Serving => Server::new(maker).serve(),
        Kind::Training => Trainer::new(maker).train(),
    }
}

/// A trace as it is made.
struct Maker {
    rng: Rng,
    trace: AllocationTrace,
    live: BTreeSet<u32>,
    live_bytes: u64,
    peak_bytes: u64,
}

impl Maker {
    fn take_on(&mut self, bytes: u64, stream: u32) -> u32 {
        let bytes = bytes.max(1);
        let block = self.trace.allocate(bytes, stream);
        self.live.insert(block);
        self.live_bytes += bytes;
        block
    }

    fn take(&mut self, bytes: u64) -> u32 {
        self.take_on(bytes, COMPUTE)
    }

    fn give(&mut self, block: u32) {
        if self.live.remove(&block) {
            self.live_bytes -= self.trace.blocks[block as usize].bytes;
            self.trace.free(block);
        }
    }

    fn give_all(&mut self, blocks: impl IntoIterator<Item = u32>) {
        blocks.into_iter().for_each(|block| self.give(block));
    }

    /// From `low` to `high`, each doubling as likely as another.
    fn doubling(&mut self, low: u64, high: u64) -> u64 {
        let octaves = (high / low).ilog2().max(1);
        let base = low << self.rng.u32(0..octaves);
        (base + self.rng.u64(0..base)).min(high)
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.u32(0..100) < percent
    }

    fn finish(mut self) -> AllocationTrace {
        let left: Vec<u32> = self.live.iter().copied().collect();
        self.give_all(left);
        self.trace
    }
}

/// Widths of a transformer of two bytes a number.
struct Model {
    hidden: u64,
    key_value: u64,
    inner: u64,
    layers: u64,
    vocabulary: u64,
}

impl Model {
    /// As deep as so many numbers allow.
    fn of(rng: &mut Rng, hidden: &[u64], vocabulary: u64, numbers: u64) -> Self {
        let hidden = hidden[rng.usize(0..hidden.len())];
        let inner = (hidden * 8 / 3).next_multiple_of(128);
        let mut model = Self { hidden, key_value: hidden / 4, inner, layers: 2, vocabulary };
        let of_a_layer: u64 = model.tensors().iter().sum();
        model.layers = (numbers.saturating_sub(hidden * vocabulary) / of_a_layer).max(2);
        model
    }

    /// Numbers in each tensor of a layer.
    fn tensors(&self) -> [u64; 6] {
        let (hidden, inner) = (self.hidden, self.inner);
        let attention = hidden * (hidden + 2 * self.key_value);
        [hidden, attention, hidden * hidden, hidden, hidden * 2 * inner, inner * hidden]
    }
}

/// A request under way.
struct Request {
    prompt_left: u64,
    output_left: u64,
    /// Tokens for which keys and values have a place, and how many of them are used.
    room: u64,
    used: u64,
    blocks: Vec<u32>,
}

/// An inference server.
struct Server {
    maker: Maker,
    model: Model,
    /// Most tokens of a step.
    batch_tokens: u64,
    running: Vec<Request>,
    /// Prompt and output lengths of requests that wait.
    waiting: VecDeque<(u64, u64)>,
    /// What ends at a step that is known.
    leaving: Vec<(u64, u32)>,
    /// Typical prompt of this phase.
    prompt: u64,
}

/// Tokens by which the keys and values of a request grow.
const GROWTH_TOKENS: u64 = 96;

impl Server {
    fn new(mut maker: Maker) -> Self {
        let numbers = maker.peak_bytes * 45 / 100 / 2;
        let model = Model::of(&mut maker.rng, &[896, 1024, 1280, 1536, 2048], 32_000, numbers);
        let of_a_token = 2 * (4 * model.hidden + 3 * model.inner);
        let batch_tokens = (maker.peak_bytes * 12 / 100 / of_a_token).clamp(64, 8192);
        let (running, waiting, leaving) = (Vec::new(), VecDeque::new(), Vec::new());
        Self { maker, model, batch_tokens, running, waiting, leaving, prompt: 300 }
    }

    fn serve(mut self) -> AllocationTrace {
        self.maker.take(self.model.vocabulary * self.model.hidden * 2);
        for _ in 0..self.model.layers {
            for numbers in self.model.tensors() {
                self.maker.take(numbers * 2);
            }
        }
        let mut workspace = self.maker.take(8 << 20);
        for step in 0..SERVING_STEPS {
            if step % 80 == 79 {
                // Another kind of traffic, and kernels that want another workspace.
                self.prompt = self.maker.doubling(60, 4000);
                self.maker.give(workspace);
                let bytes = self.maker.doubling(1 << 20, 16 << 20);
                workspace = self.maker.take(bytes);
            }
            self.arrive();
            self.forward(step);
            self.leave(step);
        }
        self.maker.finish()
    }

    fn arrive(&mut self) {
        let count =
            if self.maker.chance(5) { self.maker.rng.usize(8..40) } else { self.maker.rng.usize(0..3) };
        for _ in 0..count {
            let prompt = self.maker.doubling((self.prompt / 4).max(8), self.prompt * 4);
            let output = self.maker.doubling(8, 400);
            self.waiting.push_back((prompt, output));
        }
        self.waiting.truncate(200);
    }

    fn of_a_token(&self) -> u64 {
        2 * self.model.layers * self.model.key_value * 2
    }

    /// Bytes that requests may still take, with room left for the activations of a step.
    fn spare(&self) -> u64 {
        let limit = self.maker.peak_bytes * 87 / 100;
        limit.saturating_sub(self.maker.live_bytes)
    }

    /// Keys and values of so many tokens in each layer.
    fn grow(&mut self, tokens: u64) -> Vec<u32> {
        let bytes = tokens * self.model.key_value * 2;
        (0..2 * self.model.layers).map(|_| self.maker.take(bytes)).collect()
    }

    /// Gives each running request its tokens of this step; how many all have.
    fn schedule(&mut self) -> u64 {
        while self.running.len() < 64
            && let Some(&(prompt, output)) = self.waiting.front()
            && prompt * self.of_a_token() < self.spare() / 2
        {
            self.waiting.pop_front();
            let (room, used, blocks) = (0, 0, Vec::new());
            self.running.push(Request { prompt_left: prompt, output_left: output, room, used, blocks });
        }
        let mut left = self.batch_tokens;
        let mut running = std::mem::take(&mut self.running);
        for request in &mut running {
            let tokens = if request.prompt_left > 0 { request.prompt_left.min(left) } else { left.min(1) };
            if request.used + tokens > request.room {
                let more = tokens.max(if request.prompt_left > 0 { 1 } else { GROWTH_TOKENS });
                if more * self.of_a_token() > self.spare() {
                    continue;
                }
                request.blocks.extend(self.grow(more));
                request.room += more;
            }
            request.used += tokens;
            left -= tokens;
            match request.prompt_left {
                0 => request.output_left -= tokens.min(request.output_left),
                _ => request.prompt_left -= tokens,
            }
        }
        self.running = running;
        self.batch_tokens - left
    }

    fn forward(&mut self, step: u64) {
        let tokens = self.schedule();
        if tokens == 0 {
            // All of them wait for memory: the youngest is turned away, as servers do.
            if let Some(request) = self.running.pop() {
                self.maker.give_all(request.blocks);
            }
            return;
        }
        let (hidden, inner) = (tokens * self.model.hidden * 2, tokens * self.model.inner * 2);
        let inputs = [tokens * 8, tokens * 4, self.running.len() as u64 * 1024];
        for bytes in inputs {
            let block = self.maker.take_on(bytes, COPIES);
            self.leaving.push((step + 2, block));
        }
        let mut residual = self.maker.take(hidden);
        for _ in 0..self.model.layers {
            let normal = self.maker.take(hidden);
            let projected = self.maker.take(hidden + tokens * self.model.key_value * 4);
            self.maker.give(normal);
            let attended = self.maker.take(hidden);
            let sums = self.maker.take(tokens * 4 * (self.model.hidden / 64));
            self.maker.give(projected);
            let out = self.maker.take(hidden);
            self.maker.give_all([attended, sums]);
            let next = self.maker.take(hidden);
            self.maker.give_all([residual, out]);
            let gated = self.maker.take(2 * inner);
            let active = self.maker.take(inner);
            self.maker.give(gated);
            residual = self.maker.take(hidden);
            self.maker.give_all([active, next]);
        }
        let rows = self.running.len() as u64;
        let logits = self.maker.take(rows * self.model.vocabulary * 4);
        self.maker.give(residual);
        let sampled = self.maker.take(rows * 8);
        self.maker.give(logits);
        self.leaving.push((step + 1, sampled));
        if self.maker.chance(12) {
            // An adapter, a grammar, a cached image: it outlives what was made beside it.
            let bytes = self.maker.doubling(512, 4 << 20);
            let until = step + self.maker.rng.u64(20..300);
            if bytes < self.spare() {
                let block = self.maker.take(bytes);
                self.leaving.push((until, block));
            }
        }
    }

    fn leave(&mut self, step: u64) {
        let gone = self.leaving.extract_if(.., |(until, _)| *until <= step).map(|(_, block)| block);
        let mut gone: Vec<u32> = gone.collect();
        for request in self.running.extract_if(.., |request| request.output_left == 0) {
            gone.extend(request.blocks);
        }
        self.maker.give_all(gone);
    }
}

/// A training run.
struct Trainer {
    maker: Maker,
    model: Model,
    /// Layers whose activations are computed again in the backward pass.
    again: Vec<bool>,
    tokens_max: u64,
    /// Numbers of each parameter.
    parameters: Vec<u64>,
    gradients: Vec<Option<u32>>,
}

impl Trainer {
    fn new(mut maker: Maker) -> Self {
        let numbers = maker.peak_bytes * 55 / 100 / 16;
        let vocabulary = [8_000, 10_000, 12_288][maker.rng.usize(0..3)];
        let model = Model::of(&mut maker.rng, &[384, 512, 640, 768], vocabulary, numbers);
        let every = maker.rng.u64(1..4);
        let again: Vec<bool> = (0..model.layers).map(|layer| layer % every == 1).collect();
        let kept = again.iter().filter(|again| !**again).count() as u64;
        let of_a_layer: u64 = Self::saved(&model, 1).iter().sum();
        let of_a_token = (kept + 1) * of_a_layer + model.layers * model.hidden * 2 + model.vocabulary * 10;
        let tokens_max = (maker.peak_bytes * 40 / 100 / of_a_token).max(256);
        let mut parameters = vec![model.vocabulary * model.hidden];
        (0..model.layers).for_each(|_| parameters.extend(model.tensors()));
        let gradients = vec![None; parameters.len()];
        Self { maker, model, again, tokens_max, parameters, gradients }
    }

    /// What a layer keeps for its backward pass.
    fn saved(model: &Model, tokens: u64) -> [u64; 9] {
        let (hidden, inner) = (tokens * model.hidden * 2, tokens * model.inner * 2);
        let projected = hidden + tokens * model.key_value * 4;
        let (sums, mask) = (tokens * 4 * (model.hidden / 64), tokens * model.hidden);
        [hidden, projected, hidden, sums, mask, hidden, 2 * inner, inner, tokens * 4]
    }

    fn train(mut self) -> AllocationTrace {
        for numbers in self.parameters.clone() {
            self.maker.take(numbers * 2);
        }
        let mut has_state = false;
        for step in 0..TRAINING_STEPS {
            let length = self.maker.doubling(64, 1024.min(self.tokens_max));
            let tokens = (self.tokens_max / length).max(1) * length;
            let is_evaluated = step % 12 == 11;
            let inputs = [self.maker.take_on(tokens * 8, COPIES), self.maker.take_on(tokens * 8, COPIES)];
            self.pass(if is_evaluated { tokens / 2 + 1 } else { tokens }, is_evaluated);
            self.maker.give_all(inputs);
            if !is_evaluated {
                self.optimize(!has_state);
                has_state = true;
            }
            if step % 10 == 3 {
                // Losses and norms that somebody keeps.
                let bytes = self.maker.doubling(512, 64 << 10);
                self.maker.take(bytes);
            }
        }
        self.maker.finish()
    }

    /// The forward part of a layer; what it keeps. Temporaries go.
    fn layer(&mut self, tokens: u64) -> Vec<u32> {
        let mut kept = Vec::new();
        for bytes in Self::saved(&self.model, tokens) {
            let passing = self.maker.take(bytes);
            kept.push(self.maker.take(bytes));
            self.maker.give(passing);
        }
        kept
    }

    fn pass(&mut self, tokens: u64, is_evaluated: bool) {
        let hidden = tokens * self.model.hidden * 2;
        let mut stages = Vec::new();
        for layer in 0..self.model.layers as usize {
            let input = self.maker.take(hidden);
            let kept = self.layer(tokens);
            if is_evaluated || self.again[layer] {
                self.maker.give_all(kept);
                stages.push((input, Vec::new()));
            } else {
                stages.push((input, kept));
            }
            if is_evaluated {
                self.maker.give(input);
            }
        }
        let logits = self.maker.take(tokens * self.model.vocabulary * 2);
        let exact = self.maker.take(tokens * self.model.vocabulary * 4);
        let loss = self.maker.take(4);
        if is_evaluated {
            return self.maker.give_all([logits, exact, loss]);
        }
        let slope = self.maker.take(tokens * self.model.vocabulary * 4);
        self.maker.give_all([exact, logits]);
        let mut upward = self.maker.take(hidden);
        self.grade(0);
        self.maker.give_all([slope, loss]);
        for (layer, (input, kept)) in stages.into_iter().enumerate().rev() {
            let kept = if kept.is_empty() { self.layer(tokens) } else { kept };
            let tensors = self.model.tensors().len();
            let mut parameter = 1 + (layer + 1) * tensors;
            for (at, block) in kept.into_iter().enumerate().rev() {
                let passing = self.maker.take(self.maker.trace.blocks[block as usize].bytes);
                if at < tensors {
                    parameter -= 1;
                    self.grade(parameter);
                }
                self.maker.give_all([block, passing]);
            }
            let downward = self.maker.take(hidden);
            self.maker.give_all([upward, input]);
            upward = downward;
        }
        self.maker.give(upward);
    }

    /// The gradient of a parameter, added up in place if it is there; sent to others in a bucket on the copy stream.
    fn grade(&mut self, parameter: usize) {
        let bytes = self.parameters[parameter] * 2;
        if self.gradients[parameter].is_none() {
            self.gradients[parameter] = Some(self.maker.take(bytes));
        }
        let bucket = self.maker.take_on(bytes.min(4 << 20), COPIES);
        self.maker.give(bucket);
    }

    /// One step of the optimizer: the first makes its state. Gradients go.
    fn optimize(&mut self, is_first: bool) {
        let parameters = self.parameters.clone();
        if is_first {
            for numbers in &parameters {
                let _kept = [(); 3].map(|()| self.maker.take(numbers * 4));
            }
        }
        for some in parameters.chunks(6) {
            let roots: Vec<u32> = some.iter().map(|numbers| self.maker.take(numbers * 4)).collect();
            self.maker.give_all(roots);
        }
        let gradients: Vec<u32> = self.gradients.iter_mut().filter_map(Option::take).collect();
        self.maker.give_all(gradients);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alloc_trace::Event;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_seed_is_a_trace_that_comes_near_its_peak_and_frees_everything() {
        for kind in [Kind::Serving, Kind::Training] {
            for seed in 1..=8 {
                let trace = generate(kind, GIB, seed);
                assert_eq!(trace, generate(kind, GIB, seed));
                let peak = trace.peak_live_bytes();
                assert!(peak > GIB * 3 / 5 && peak < GIB * 5 / 4, "{kind:?} {seed}: {peak}");
                assert_eq!(trace.events.len(), 2 * trace.blocks.len(), "{kind:?} {seed}");
                let sizes: BTreeSet<u64> = trace.blocks.iter().map(|block| block.bytes).collect();
                assert!(sizes.len() > 100, "{kind:?} {seed}: {} sizes", sizes.len());
                assert!(trace.stream_count() == 2, "{kind:?} {seed}");
            }
            assert_ne!(generate(kind, GIB, 1).blocks, generate(kind, GIB, 2).blocks);
        }
    }

    #[test]
    fn a_block_is_freed_after_its_allocation_and_once() {
        for kind in [Kind::Serving, Kind::Training] {
            let mut live = BTreeSet::new();
            for event in generate(kind, GIB / 2, 5).events {
                let is_right = match event {
                    Event::Allocate { block } => live.insert(block),
                    Event::Free { block } => live.remove(&block),
                };
                assert!(is_right, "{kind:?}: {event:?}");
            }
            assert!(live.is_empty(), "{kind:?}");
        }
    }
}
