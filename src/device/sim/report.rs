//! What the simulator found: counts by kind, the first findings in full, and the hash of what ran.
//!
//! What it does not: decide what is a finding. Invariant: counts count everything, the list holds the first
//! [`Report::FINDINGS_MAX`]. Same seed and same calls give the same report, but for addresses of pinned memory.

use std::fmt::Write;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FindingKind {
    /// A read in no order with the write before it.
    ReadAfterWrite,
    /// A write in no order with a read before it.
    WriteAfterRead,
    /// A write in no order with the write before it.
    WriteAfterWrite,
    /// An access after the memory was freed or unmapped.
    UseAfterFree,
    /// A free or unmap in no order with an access.
    FreeWhilePending,
    /// Use of memory in no order with its allocation on a stream.
    UnorderedReuse,
    /// The host changed pinned memory before the copy out of it was known to be done.
    PinnedReuse,
    /// An access to what is no memory, or that its mapping does not allow.
    InvalidAccess,
    /// Bytes are not those that the last write left.
    WrongValue,
    /// A wait for an event that was never recorded; it does not wait.
    UnrecordedWait,
    /// A destroyed stream or event was used; the call was refused.
    StaleHandle,
}

impl FindingKind {
    /// All kinds.
    pub const ALL: [Self; 11] = [
        Self::ReadAfterWrite,
        Self::WriteAfterRead,
        Self::WriteAfterWrite,
        Self::UseAfterFree,
        Self::FreeWhilePending,
        Self::UnorderedReuse,
        Self::PinnedReuse,
        Self::InvalidAccess,
        Self::WrongValue,
        Self::UnrecordedWait,
        Self::StaleHandle,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::ReadAfterWrite => "read_after_write",
            Self::WriteAfterRead => "write_after_read",
            Self::WriteAfterWrite => "write_after_write",
            Self::UseAfterFree => "use_after_free",
            Self::FreeWhilePending => "free_while_pending",
            Self::UnorderedReuse => "unordered_reuse",
            Self::PinnedReuse => "pinned_reuse",
            Self::InvalidAccess => "invalid_access",
            Self::WrongValue => "wrong_value",
            Self::UnrecordedWait => "unrecorded_wait",
            Self::StaleHandle => "stale_handle",
        }
    }

    /// Whether it counts as a race; the others are hints.
    pub fn is_race(self) -> bool {
        !matches!(self, Self::UnrecordedWait | Self::StaleHandle)
    }
}

/// Who took part in a finding: the number of a stream on its device, 0 the default stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Party {
    /// None for the host.
    pub stream: Option<u32>,
    /// Name of the operation or kernel.
    pub name: &'static str,
    /// Which operation of its device, in the order of execution; 0 for a call of the host.
    pub step: u64,
}

/// One finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub kind: FindingKind,
    /// Who was enqueued later.
    pub who: Party,
    /// With whom, where two are needed.
    pub other: Option<Party>,
    /// First byte; 0 where there is no memory.
    pub address: u64,
    /// First byte, counted from the first address of the device, so that runs can be compared.
    pub offset: u64,
    /// Length.
    pub bytes: u64,
}

/// What was found and done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// By [`FindingKind`], in the order of [`FindingKind::ALL`].
    pub counts: [u64; FindingKind::ALL.len()],
    /// The first ones.
    pub findings: Vec<Finding>,
    /// Hash of all that ran, in the order in which it ran.
    pub trace_hash: u64,
    /// Operations that ran.
    pub steps: u64,
    /// Operations that wait for their turn.
    pub pending: u64,
    /// Virtual time.
    pub time_ns: u64,
    /// The seed.
    pub seed: u64,
}

impl Report {
    /// Findings that are kept in full.
    pub const FINDINGS_MAX: usize = 64;

    /// Races of all kinds.
    pub fn races(&self) -> u64 {
        FindingKind::ALL.iter().filter(|kind| kind.is_race()).map(|&kind| self.count(kind)).sum()
    }

    /// Findings of one kind.
    pub fn count(&self, kind: FindingKind) -> u64 {
        self.counts[kind as usize]
    }

    pub(super) fn add(&mut self, finding: Finding) {
        self.counts[finding.kind as usize] += 1;
        if self.findings.len() < Self::FINDINGS_MAX {
            self.findings.push(finding);
        }
    }

    /// The report as one JSON object. Addresses and the hash are texts, because they need all 64 bits.
    pub fn to_json(&self) -> String {
        let mut text = format!(
            "{{\"seed\":{},\"steps\":{},\"pending\":{},\"time_ns\":{}",
            self.seed, self.steps, self.pending, self.time_ns
        );
        // Writing to a String does not fail.
        let _ = write!(text, ",\"trace_hash\":\"{:#018x}\",\"races\":{}", self.trace_hash, self.races());
        text.push_str(",\"counts\":{");
        for (index, kind) in FindingKind::ALL.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let _ = write!(text, "{comma}\"{}\":{}", kind.name(), self.count(*kind));
        }
        text.push_str("},\"findings\":[");
        for (index, finding) in self.findings.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let _ = write!(text, "{comma}{{\"kind\":\"{}\",\"who\":", finding.kind.name());
            party(&mut text, Some(&finding.who));
            text.push_str(",\"other\":");
            party(&mut text, finding.other.as_ref());
            let _ = write!(text, ",\"address\":\"{:#x}\",\"bytes\":{}}}", finding.address, finding.bytes);
        }
        text.push_str("]}");
        text
    }
}

/// Names are those of kernels and of this backend: static words without quotes.
fn party(text: &mut String, party: Option<&Party>) {
    let Some(party) = party else {
        text.push_str("null");
        return;
    };
    let stream = party.stream.map_or("null".to_owned(), |stream| stream.to_string());
    let _ = write!(text, "{{\"stream\":{stream},\"operation\":\"{}\",\"step\":{}}}", party.name, party.step);
}
