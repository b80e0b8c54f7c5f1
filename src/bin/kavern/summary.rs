//! What a replay came to, as a table for people and as JSON for programs.
//!
//! It computes percentiles and renders; it measures nothing. One struct feeds both forms, so they cannot differ.

use std::fmt::Write;

use serde::Serialize;

use crate::failure::Failure;

/// The result of a replay; the names of the fields are the names in the JSON.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) workload: String,
    pub(crate) device: String,
    pub(crate) policy: String,
    pub(crate) capacity_blocks: u64,
    pub(crate) block_bytes: u64,
    pub(crate) tokens: bool,
    pub(crate) bytes: bool,
    pub(crate) seed: u64,
    pub(crate) requests: u64,
    /// Each block of each request: the touches.
    pub(crate) blocks: u64,
    pub(crate) unique_blocks: u64,
    pub(crate) tenants: u64,
    pub(crate) hit_blocks: u64,
    pub(crate) hit_rate: f64,
    pub(crate) evicted_blocks: u64,
    /// Hits whose bytes were read back and right.
    pub(crate) verified_blocks: u64,
    pub(crate) mismatches: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) first_mismatch: Option<i64>,
    pub(crate) races: u64,
    pub(crate) pool_bytes: u64,
    pub(crate) metadata_bytes: u64,
    pub(crate) seconds: f64,
    pub(crate) block_touches_per_s: f64,
    pub(crate) step_us_p50: f64,
    pub(crate) step_us_p99: f64,
}

impl Report {
    /// One object in one line.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string(self).expect("numbers, flags and strings always serialise") + "\n"
    }

    /// The table.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "{}", self.workload);
        let _ = writeln!(text, "{} on {}, {}\n", self.policy, self.device, self.cache());
        for (name, value, remark) in self.rows() {
            let line = format!("  {name:<14} {value:>13}   {remark}");
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text
    }

    fn cache(&self) -> String {
        match self.bytes {
            true => format!("{} blocks of {}", grouped(self.capacity_blocks), bytes(self.block_bytes)),
            false => format!("{} blocks, bookkeeping only", grouped(self.capacity_blocks)),
        }
    }

    /// Name, value, remark.
    fn rows(&self) -> [(&'static str, String, String); 10] {
        let (hits, blocks) = (grouped(self.hit_blocks), grouped(self.blocks));
        let tenants = match self.tenants {
            1 => "of 1 tenant".into(),
            many => format!("of {} tenants", grouped(many)),
        };
        let memory = format!("{} blocks, {} bookkeeping", bytes(self.pool_bytes), bytes(self.metadata_bytes));
        let verified = match self.bytes {
            true => {
                (grouped(self.verified_blocks), format!("of {hits} hit blocks; {} wrong", self.mismatches))
            }
            false => ("-".into(), "no bytes were moved".into()),
        };
        let percent = format!("{:.2} %", self.hit_rate * 100.0);
        [
            ("requests", grouped(self.requests), tenants),
            ("block touches", blocks, format!("{} different blocks", grouped(self.unique_blocks))),
            ("hit rate", percent, format!("{} {hits} blocks", bar(self.hit_rate))),
            ("evictions", grouped(self.evicted_blocks), String::new()),
            ("memory held", bytes(self.pool_bytes + self.metadata_bytes), memory),
            ("verified", verified.0, verified.1),
            ("races", grouped(self.races), String::new()),
            ("speed", grouped(self.block_touches_per_s as u64), "block touches/s".into()),
            (
                "step latency",
                format!("{:.1} us", self.step_us_p50),
                format!("p50; p99 {:.1} us", self.step_us_p99),
            ),
            ("time", format!("{:.2} s", self.seconds), String::new()),
        ]
    }

    /// A replay that moved a wrong byte, or did not look at one that it should have, has failed.
    pub(crate) fn verdict(&self) -> Result<(), Failure> {
        if self.mismatches > 0 {
            let block = self.first_mismatch.unwrap_or(-1);
            return Err(Failure::Run(format!(
                "{} of {} hit blocks did not hold the bytes that were written for them, block {block} among them",
                self.mismatches, self.hit_blocks
            )));
        }
        if self.bytes && self.verified_blocks != self.hit_blocks {
            let (verified, hits) = (self.verified_blocks, self.hit_blocks);
            return Err(Failure::Run(format!("{verified} blocks were verified, expected all {hits} hits")));
        }
        if self.races > 0 {
            return Err(Failure::Run(format!("the device saw {} races between streams", self.races)));
        }
        Ok(())
    }
}

/// Nanoseconds of each step.
pub(crate) struct Latencies {
    steps_ns: Vec<u64>,
}

impl Latencies {
    /// Nothing is allocated later for up to `steps`.
    pub(crate) fn with_room(steps: usize) -> Latencies {
        Latencies { steps_ns: Vec::with_capacity(steps) }
    }

    /// Adds a step.
    pub(crate) fn push(&mut self, step_ns: u64) {
        self.steps_ns.push(step_ns);
    }

    /// The smallest latency that so many percent of the steps do not exceed; 0 without steps.
    pub(crate) fn percentile_us(&self, percent: usize) -> f64 {
        let mut sorted = self.steps_ns.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100);
        sorted.get(rank.saturating_sub(1)).map_or(0.0, |&ns| ns as f64 / 1000.0)
    }
}

/// The smallest value that so many percent do not exceed; 0 without values. Sorts them.
pub(crate) fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let rank = (values.len() * percent).div_ceil(100);
    values.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// 1234567 as 1,234,567.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in the largest unit in which they are at least one.
pub(crate) fn bytes(count: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", units[unit])
}

/// A share of one as a bar of 20 cells.
fn bar(share: f64) -> String {
    let full = (share.clamp(0.0, 1.0) * 20.0).round() as usize;
    format!("[{}{}]", "#".repeat(full), ".".repeat(20 - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            workload: "w".into(),
            device: "host".into(),
            policy: "lru".into(),
            capacity_blocks: 1000,
            block_bytes: 4096,
            tokens: false,
            bytes: true,
            seed: 1,
            requests: 10,
            blocks: 1_234_567,
            unique_blocks: 7,
            tenants: 1,
            hit_blocks: 5,
            hit_rate: 0.5,
            evicted_blocks: 0,
            verified_blocks: 5,
            mismatches: 0,
            first_mismatch: None,
            races: 0,
            pool_bytes: 4_096_000,
            metadata_bytes: 100,
            seconds: 0.5,
            block_touches_per_s: 2e6,
            step_us_p50: 1.0,
            step_us_p99: 2.0,
        }
    }

    #[test]
    fn percentiles_are_steps_that_happened() {
        let mut latencies = Latencies::with_room(100);
        assert_eq!(latencies.percentile_us(50), 0.0);
        (1..=100).rev().for_each(|us| latencies.push(us * 1000));
        assert_eq!((latencies.percentile_us(50), latencies.percentile_us(99)), (50.0, 99.0));
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(
            (grouped(0), grouped(999), grouped(1_234_567)),
            ("0".into(), "999".into(), "1,234,567".into())
        );
        assert_eq!(
            (bytes(5), bytes(1024), bytes(81_920_000)),
            ("5 B".into(), "1.0 KiB".into(), "78.1 MiB".into())
        );
        assert_eq!(bar(0.5), "[##########..........]");
        assert!(report().table().contains("1,234,567"));
    }

    #[test]
    fn wrong_missing_and_racing_bytes_fail_the_run() {
        assert!(report().verdict().is_ok());
        let wrong = Report { mismatches: 2, first_mismatch: Some(17), verified_blocks: 3, ..report() };
        assert!(wrong.verdict().unwrap_err().to_string().contains("block 17"));
        assert!(Report { verified_blocks: 4, ..report() }.verdict().is_err());
        assert!(Report { races: 1, ..report() }.verdict().is_err());
        assert!(Report { bytes: false, verified_blocks: 0, ..report() }.verdict().is_ok());
    }
}
