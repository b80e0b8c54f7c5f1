//! The operations, and what tokens alone decide of their answers.

use super::*;

impl Run {
    pub(super) fn admit(&mut self) {
        let length = self.random.usize(1..40);
        let mut input = self.random.u8(1..3);
        let mut prompt: Vec<i32> =
            (0..length).map(|_| if self.random.u8(0..10) == 0 { self.random.i32(0..3) } else { 0 }).collect();
        // What the newest has just told is there, and may be yet to be written.
        if let Some(newest) = self.live.last().filter(|_| self.random.u8(0..4) > 0) {
            (input, prompt) = (newest.input, newest.tokens.clone());
            prompt.truncate(MAX_TOKENS - 1);
            prompt.push(1);
        }
        let Some((lease, hit, found)) = self.look(input, &prompt) else { return };
        let count = if self.random.bool() { self.random.usize(0..=prompt.len() - hit) } else { 0 };
        let (tokens, lookahead, row) = (count as u64, self.random.u32(0..6), -1);
        let expected_tokens = self.random.u64(1..=MAX_TOKENS as u64);
        let expected_tokens = if self.random.u8(0..4) == 0 { expected_tokens } else { 0 };
        let op = Op::Admit { lease, tokens, lookahead, row, expected_tokens };
        let Some(result) = self.alone(&op, Some(Status::Ok)) else {
            self.alone(&Op::Release { lease }, Some(Status::Ok)).unwrap();
            return;
        };
        let mut sequence = Sequence {
            id: result.sequence,
            row: result.row as usize,
            input,
            tokens: prompt[..hit + count].to_vec(),
            ..Sequence::default()
        };
        sequence.begin(hit, count, found, self.first_cells(hit));
        self.live.push(sequence);
        self.note_unwritten(self.live.len() - 1, hit);
        self.done[0] += 1;
    }

    fn running(&self, at: usize) -> Status {
        if self.live[at].pause.is_some() { Status::WrongState } else { Status::Ok }
    }

    /// The step computes `count` tokens more of a sequence.
    fn extend(&mut self, at: usize, count: usize, lookahead: u32) {
        let length = self.live[at].tokens.len();
        let first = self.live[at].first.unwrap_or(length);
        for group in 0..self.groups.len() {
            let cell = self.first_cell(group, first, 0);
            let held = &mut self.live[at].firsts[group];
            *held = cell.max(*held);
        }
        for _ in 0..count {
            let token = if self.random.u8(0..6) == 0 { self.random.i32(0..3) } else { 0 };
            let sequence = &mut self.live[at];
            let before = sequence.numbers.last().copied().unwrap_or(sequence.input.into());
            sequence.tokens.push(token);
            sequence.numbers.push(number(before, token));
        }
        let sequence = &mut self.live[at];
        if count > 0 && sequence.first.is_none() {
            sequence.first = Some(length);
            sequence.start = Some((length, lookahead > 0));
        }
    }

    fn may_append(&self, at: usize, count: usize, lookahead: u32) -> Option<Status> {
        let sequence = &self.live[at];
        let fits = sequence.tokens.len() + count + lookahead as usize <= MAX_TOKENS;
        let is_taken = self.has_states() && sequence.first.is_some() && count > 0;
        match fits {
            false => Some(Status::InvalidArgument),
            true if count > 0 && is_open(&sequence.unwritten, &self.block_tokens, sequence.tokens.len()) => {
                Some(Status::WrongState)
            }
            // The state of the open step may be findable already.
            true if is_taken => None,
            true => Some(Status::Ok),
        }
    }

    /// At once the newest sequence tells what another one then finds, or changes what it found itself: either may be yet
    /// to be written.
    pub(super) fn hurry(&mut self) {
        let Some(at) = self.live.len().checked_sub(1) else { return };
        if self.random.bool() {
            self.commit(at);
            if at > 5 {
                // Another one needs a row and blocks.
                let other = self.random.usize(0..at);
                self.end(other);
            }
            self.admit();
        }
        let at = self.live.len() - 1;
        match self.random.u8(0..4) {
            0 | 1 => self.edit(at),
            2 => {
                self.rollback(at);
                self.append(at);
            }
            _ => {}
        }
    }

    pub(super) fn append(&mut self, at: usize) {
        let (target, count) = (Target::Id(Id(self.live[at].id)), self.random.usize(0..6));
        let lookahead = if self.random.bool() { self.random.u32(0..5) } else { 0 };
        let expected = match self.running(at) {
            Status::Ok => self.may_append(at, count, lookahead),
            other => Some(other),
        };
        self.done[14] += u64::from(self.running(at) == Status::Ok && expected == Some(Status::WrongState));
        if self.alone(&Op::Append { target, tokens: count as u64, lookahead }, expected).is_some() {
            self.extend(at, count, lookahead);
            self.done[1] += 1;
        }
    }

    pub(super) fn commit(&mut self, at: usize) {
        let sequence = self.live[at].clone();
        let count = self.random.usize(0..=sequence.tokens.len() - sequence.committed);
        let ids = &sequence.tokens[sequence.committed..sequence.committed + count];
        let extras = self.extras(sequence.input, sequence.committed);
        let extras = if count == 0 { &[] } else { &extras[..] };
        let op = Op::Commit {
            target: Target::Id(Id(sequence.id)),
            tokens: count as u64,
            naming: Naming::Tokens(ids, extras),
        };
        if self.alone(&op, Some(self.running(at))).is_some() {
            self.live[at].committed += count;
            self.done[2] += 1;
        }
    }

    pub(super) fn fork(&mut self, at: usize) {
        let parent = self.live[at].clone();
        let tokens = self.random.usize(0..=parent.tokens.len() + 1);
        let tokens = if self.random.bool() { parent.tokens.len() } else { tokens };
        let length = if tokens == 0 { parent.tokens.len() } else { tokens };
        let expected = match self.running(at) {
            Status::Ok if tokens > parent.tokens.len() => Some(Status::InvalidArgument),
            Status::Ok if parent.is_pending() || !self.is_held(&parent, length) => Some(Status::WrongState),
            Status::Ok => match self.has_state(&parent, length) {
                Some(true) => Some(Status::Ok),
                Some(false) => Some(Status::WrongState),
                None => None,
            },
            other => Some(other),
        };
        let op = change(parent.id, Change::Fork { tokens: tokens as u64, row: -1 });
        if let Some(result) = self.alone(&op, expected) {
            let firsts = (0..self.groups.len())
                .map(|group| self.first_cell(group, length, parent.trimmed).max(parent.firsts[group]));
            self.live.push(Sequence {
                id: result.sequence,
                row: result.row as usize,
                tokens: parent.tokens[..length].to_vec(),
                numbers: parent.numbers[..length].to_vec(),
                committed: parent.committed.min(length),
                written: length,
                trimmed: parent.trimmed.min(length),
                edited: parent.edited.min(length),
                firsts: firsts.collect(),
                start: None,
                first: None,
                parent: parent.id,
                unwritten: keep_before(parent.unwritten, &self.block_tokens, length),
                ..parent
            });
            self.done[3] += 1;
        }
    }

    pub(super) fn rollback(&mut self, at: usize) {
        let sequence = self.live[at].clone();
        let length = sequence.tokens.len();
        let tokens = match self.random.u8(0..4) {
            0 => sequence.start.map_or(0, |(start, _)| start),
            1 => length.saturating_sub(self.random.usize(0..4)),
            _ => self.random.usize(0..=length + 1),
        };
        let boundary = (tokens - tokens % self.link).min(length);
        let open = if self.random.bool() { &sequence.tokens[boundary..tokens.min(length)] } else { &[] };
        let extras = self.extras(sequence.input, boundary);
        let expected = match self.running(at) {
            Status::Ok if tokens > length => Some(Status::InvalidArgument),
            Status::Ok if !self.is_held(&sequence, tokens) => Some(Status::WrongState),
            Status::Ok => match self.has_state(&sequence, tokens) {
                Some(true) => Some(Status::Ok),
                Some(false) => Some(Status::WrongState),
                None => None,
            },
            other => Some(other),
        };
        let lookahead = self.random.u32(0..8);
        let extras = if open.is_empty() { &[] } else { &extras[..] };
        let roll = Change::Rollback { tokens: tokens as u64, lookahead, open_tokens: open, extras };
        if self.alone(&change(sequence.id, roll), expected).is_some() {
            let is_pending = !self.is_tabled && sequence.first.is_some_and(|first| tokens > first);
            let sequence = &mut self.live[at];
            sequence.tokens.truncate(tokens);
            sequence.numbers.truncate(tokens);
            sequence.committed = sequence.committed.min(tokens);
            sequence.written = sequence.written.min(tokens);
            sequence.trimmed = sequence.trimmed.min(tokens);
            sequence.edited = sequence.edited.min(tokens);
            sequence.first = sequence.first.filter(|&first| first < tokens);
            if tokens < length && !is_pending {
                sequence.start = None;
            }
            let found = std::mem::take(&mut sequence.unwritten);
            sequence.unwritten = keep_before(found, &self.block_tokens, tokens);
            self.done[4] += 1;
        }
    }

    pub(super) fn edit(&mut self, at: usize) {
        let sequence = self.live[at].clone();
        let length = sequence.tokens.len();
        let (offset, tokens) = (self.random.usize(0..=length), self.random.usize(0..=length / 2 + 1));
        let moved =
            |token: usize| if token <= offset { token } else { offset.max(token.saturating_sub(tokens)) };
        let mut firsts = sequence.firsts.clone();
        let (mut is_held, mut is_early, mut edited) = (true, false, moved(sequence.edited));
        if offset + tokens <= length {
            for (group, first) in firsts.iter_mut().enumerate() {
                let needed = self.needed(group, length - tokens, moved(sequence.trimmed));
                let each = self.groups[group].1 as usize;
                let from = if needed < offset { offset - offset % each } else { needed };
                is_early |= copies(&sequence.unwritten, group, each, from, (offset, tokens, length));
                if !matches!(self.groups[group].0, Reach::All | Reach::Cross { .. } | Reach::State { .. }) {
                    let before = if needed < offset { needed } else { needed + tokens };
                    is_held &= self.holds(group, &sequence, before, sequence.edited);
                    if self.is_window(group) && needed >= offset {
                        edited = edited.max(needed);
                    }
                    *first = if needed < offset { *first } else { needed / each };
                }
            }
        }
        let expected = match self.running(at) {
            Status::Ok if tokens == 0 || offset + tokens > length => Status::InvalidArgument,
            Status::Ok if self.has_states() => Status::Unsupported,
            Status::Ok if sequence.is_pending() || !is_held => Status::WrongState,
            other => other,
        };
        let is_early = is_early && expected == Status::Ok;
        let expected = if is_early { Status::WrongState } else { expected };
        self.done[14] += u64::from(is_early);
        let edit = Change::Edit { offset: offset as u64, tokens: tokens as u64 };
        if self.alone(&change(sequence.id, edit), Some(expected)).is_some() {
            let sequence = &mut self.live[at];
            sequence.tokens.drain(offset..offset + tokens);
            sequence.numbers.drain(offset..offset + tokens);
            sequence.written -= tokens;
            sequence.committed = match sequence.committed >= offset + tokens {
                true => sequence.committed - tokens,
                false => sequence.committed.min(offset),
            };
            sequence.firsts = firsts;
            (sequence.trimmed, sequence.edited) = (moved(sequence.trimmed), edited);
            sequence.first = None;
            // From the first copied block on all are its own.
            let each = &self.block_tokens;
            sequence.unwritten.retain(|&(group, cell)| cell < offset / each[group]);
            self.done[5] += 1;
        }
    }

    pub(super) fn trim(&mut self, at: usize) {
        let sequence = self.live[at].clone();
        let offset = self.random.usize(0..=sequence.tokens.len() + 1);
        let lets_go =
            |&(reach, _): &Kind| !matches!(reach, Reach::All | Reach::State { .. } | Reach::Cross { .. });
        let expected = match self.running(at) {
            Status::Ok if offset > sequence.tokens.len() => Status::InvalidArgument,
            Status::Ok if !self.groups.iter().any(lets_go) => Status::Unsupported,
            Status::Ok if sequence.first.is_some_and(|first| offset > first) => Status::WrongState,
            other => other,
        };
        let op = Op::Trim { target: Target::Id(Id(sequence.id)), offset: offset as u64 };
        if self.alone(&op, Some(expected)).is_some() {
            let sequence = &mut self.live[at];
            sequence.trimmed = sequence.trimmed.max(offset);
            for (held, kind) in sequence.firsts.iter_mut().zip(&self.groups) {
                *held = if lets_go(kind) { (*held).max(offset / kind.1 as usize) } else { 0 };
            }
            self.done[12] += 1;
        }
    }

    /// The sequence and all that was forked from it leave the list.
    fn forget_family(&mut self, id: u64) {
        let children: Vec<u64> = self.live.iter().filter(|s| s.parent == id).map(|s| s.id).collect();
        self.live.retain(|sequence| sequence.id != id);
        children.into_iter().for_each(|child| self.forget_family(child));
    }

    pub(super) fn accept(&mut self, at: usize) {
        let child = self.live[at].clone();
        let parent = self.live.iter().position(|s| s.id == child.parent);
        let expected = match (self.running(at), parent) {
            (Status::Ok, Some(parent)) if self.running(parent) != Status::Ok => Status::WrongState,
            (Status::Ok, Some(parent)) if child.is_pending() || self.live[parent].is_pending() => {
                Status::WrongState
            }
            (Status::Ok, Some(_)) => Status::Ok,
            _ => Status::WrongState,
        };
        if self.alone(&change(child.id, Change::Accept), Some(expected)).is_none() {
            return;
        }
        let others: Vec<u64> =
            self.live.iter().filter(|s| s.parent == child.parent && s.id != child.id).map(|s| s.id).collect();
        others.into_iter().for_each(|other| self.forget_family(other));
        self.live.retain(|sequence| sequence.id != child.id);
        for sequence in &mut self.live {
            if sequence.parent == child.id {
                sequence.parent = child.parent;
            }
        }
        let heir = self.live.iter_mut().find(|s| s.id == child.parent).unwrap();
        *heir = Sequence { id: heir.id, row: heir.row, parent: heir.parent, first: None, ..child };
        self.done[6] += 1;
    }

    pub(super) fn preempt(&mut self, at: usize) {
        let mode = if self.random.bool() { PreemptMode::Keep } else { PreemptMode::Drop };
        let op = change(self.live[at].id, Change::Preempt { mode });
        if self.alone(&op, Some(self.running(at))).is_some() {
            let sequence = &mut self.live[at];
            sequence.pause = Some(mode);
            if mode == PreemptMode::Drop {
                (sequence.numbers, sequence.committed, sequence.written) = (Vec::new(), 0, 0);
                (sequence.first, sequence.start, sequence.trimmed, sequence.edited) = (None, None, 0, 0);
                sequence.firsts.fill(0);
                sequence.unwritten.clear();
            }
            self.done[7] += 1;
        }
    }

    pub(super) fn resume(&mut self, at: usize) {
        let sequence = self.live[at].clone();
        if !sequence.is_dropped() {
            let count = self.random.usize(0..4);
            let expected = match sequence.pause {
                None => Some(Status::WrongState),
                Some(_) => self.may_append(at, count, 0),
            };
            let resume = Change::Resume { lease: None, tokens: count as u64, lookahead: 0 };
            if self.alone(&change(sequence.id, resume), expected).is_some() {
                self.live[at].pause = None;
                self.extend(at, count, 0);
                self.done[8] += 1;
            }
            return;
        }
        let Some((lease, hit, found)) = self.look(sequence.input, &sequence.tokens) else { return };
        let count = self.random.usize(0..=sequence.tokens.len() - hit);
        let resume = Change::Resume { lease: Some(lease), tokens: count as u64, lookahead: 0 };
        // What it is about decides its namespace, so the lease fits.
        if self.alone(&change(sequence.id, resume), Some(Status::Ok)).is_none() {
            self.alone(&Op::Release { lease }, Some(Status::Ok)).unwrap();
            return;
        }
        let firsts = self.first_cells(hit);
        let sequence = &mut self.live[at];
        sequence.tokens.truncate(hit + count);
        sequence.begin(hit, count, found, firsts);
        self.note_unwritten(at, hit);
        self.done[9] += 1;
    }

    pub(super) fn end(&mut self, at: usize) {
        let sequence = self.live[at].clone();
        let target = Target::Id(Id(sequence.id));
        // A freed sequence leaves behind what it committed and nobody writes; a cancelled one does not.
        let op = match sequence.committed <= sequence.written && self.random.bool() {
            true => Op::Free { target },
            false => Op::Change { target, change: Change::Cancel },
        };
        if self.alone(&op, Some(Status::Ok)).is_some() {
            self.live.remove(at);
            for other in &mut self.live {
                if other.parent == sequence.id {
                    other.parent = 0;
                }
            }
            self.done[10] += 1;
        }
    }
}
