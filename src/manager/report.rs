//! The report of a manager as JSON.
//!
//! What it does: writes objects, arrays, numbers and escaped texts in one pass. What it does not: parse, or sort; the
//! order of the fields is part of no promise. Invariant: the result is one valid JSON object in ASCII quotes and UTF-8.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Foreign, Manager};
use crate::device::Capabilities;
use crate::memory::{ElasticStatistics, HeapStatistics, LiveAllocation, LiveBlock, Usage, Where};
use crate::sys::clock;

const NS_PER_MS: u64 = 1_000_000;

/// A JSON text under construction; adds the commas.
struct Json {
    text: String,
    needs_comma: bool,
}

impl Json {
    fn comma(&mut self) {
        if self.needs_comma {
            self.text.push(',');
        }
        self.needs_comma = true;
    }

    fn string(&mut self, value: &str) {
        self.comma();
        self.text.push('"');
        for character in value.chars() {
            match character {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                control if u32::from(control) < 0x20 => {
                    // Writing to a String does not fail.
                    let _ = write!(self.text, "\\u{:04x}", u32::from(control));
                }
                other => self.text.push(other),
            }
        }
        self.text.push('"');
    }

    fn number(&mut self, value: u64) {
        self.comma();
        // Writing to a String does not fail.
        let _ = write!(self.text, "{value}");
    }

    fn key(&mut self, key: &str) {
        self.string(key);
        self.text.push(':');
        self.needs_comma = false;
    }

    fn inside(&mut self, brackets: [char; 2], body: impl FnOnce(&mut Self)) {
        self.comma();
        self.text.push(brackets[0]);
        self.needs_comma = false;
        body(self);
        self.text.push(brackets[1]);
        self.needs_comma = true;
    }

    fn object(&mut self, body: impl FnOnce(&mut Self)) {
        self.inside(['{', '}'], body);
    }

    fn array(&mut self, body: impl FnOnce(&mut Self)) {
        self.inside(['[', ']'], body);
    }

    fn numbers(&mut self, fields: &[(&str, u64)]) {
        for (key, value) in fields {
            self.key(key);
            self.number(*value);
        }
    }
}

fn capability_names(has: Capabilities) -> impl Iterator<Item = &'static str> {
    let all = [
        (has.virtual_memory, "virtual_memory"),
        (has.stream_ordered, "stream_ordered"),
        (has.host_addressable, "host_addressable"),
        (has.capture, "capture"),
        (has.race_detection, "race_detection"),
        (has.managed_memory, "managed_memory"),
    ];
    all.into_iter().filter_map(|(is_there, name)| is_there.then_some(name))
}

fn device(json: &mut Json, manager: &Manager) {
    let description = manager.device.description();
    for (key, value) in
        [("name", &*description.name), ("model", &*description.model), ("backend", description.backend)]
    {
        json.key(key);
        json.string(value);
    }
    json.numbers(&[
        ("ordinal", description.ordinal.into()),
        ("total_bytes", description.total_bytes),
        ("page_bytes", description.page_bytes),
        ("calls", manager.device.call_count()),
        ("races", manager.device.race_count()),
    ]);
    // A lost device cannot tell; a report is wanted then more than ever.
    if let Ok(info) = manager.device.memory_info() {
        json.numbers(&[("free_bytes", info.free_bytes)]);
    }
    json.key("capabilities");
    json.array(|json| capability_names(description.capabilities).for_each(|name| json.string(name)));
}

fn usage(json: &mut Json, usage: &Usage, limit_bytes: u64) {
    json.object(|json| {
        json.numbers(&[
            ("bytes", usage.bytes),
            ("peak_bytes", usage.peak_bytes),
            ("count", usage.count),
            ("total_count", usage.total_count),
            ("limit_bytes", limit_bytes),
        ]);
    });
}

fn memory(json: &mut Json, manager: &Manager) {
    let totals = manager.memory.statistics();
    json.key("device");
    usage(json, &totals.device, manager.limits.device_limit_bytes);
    json.key("pinned");
    usage(json, &totals.pinned, manager.limits.pinned_limit_bytes);
    json.key("live");
    json.array(|json| {
        for live in manager.memory.live() {
            json.object(|json| {
                json.key("place");
                json.string(if live.place == Where::Device { "device" } else { "pinned" });
                json.key("tag");
                json.string(&live.tag);
                json.numbers(&[
                    ("address", live.address),
                    ("bytes", live.bytes),
                    ("age_ms", live.age_ns / NS_PER_MS),
                ]);
                if let Some(stream) = live.stream {
                    json.numbers(&[("stream", stream)]);
                }
            });
        }
    });
}

fn block(json: &mut Json, block: &LiveBlock) {
    json.object(|json| {
        json.key("tag");
        json.string(&block.tag);
        json.numbers(&[
            ("address", block.address),
            ("bytes", block.bytes),
            ("block_bytes", block.block_bytes),
            ("stream", block.stream),
            ("age_ms", block.age_ms),
        ]);
    });
}

fn allocator(json: &mut Json, manager: &Manager) {
    // One that was never asked for holds nothing.
    let heap = manager.heap.get();
    let totals: HeapStatistics = heap.map(|heap| heap.statistics()).unwrap_or_default();
    json.numbers(&[
        ("live_bytes", totals.live_bytes),
        ("live_count", totals.live_count),
        ("allocations", totals.allocations),
        ("frees", totals.frees),
        ("backed_bytes", totals.backed_bytes),
        ("front_cache_bytes", totals.front_cache_bytes),
        ("ordered_bytes", totals.ordered_bytes),
        ("largest_free_bytes", totals.largest_free_bytes),
        ("retained_bytes", totals.retained_bytes),
        ("plain_allocations", totals.plain_allocations),
        ("looks", totals.looks),
        ("idle_flushes", totals.idle_flushes),
        ("failed_unmaps", totals.failed_unmaps),
        ("moved_pages", totals.ladder.moved_pages),
        ("meshes", totals.ladder.meshes),
        ("refusals", totals.ladder.refusals),
        ("ladder_own_caches", totals.ladder.own_caches),
        ("ladder_fences", totals.ladder.fences),
        ("ladder_trims", totals.ladder.trims),
        ("ladder_stream_waits", totals.ladder.stream_waits),
        ("ladder_rooms", totals.ladder.rooms),
        ("ladder_host_waits", totals.ladder.host_waits),
    ]);
    json.key("live");
    let live = heap.map(|heap| heap.live_blocks()).unwrap_or_default();
    json.array(|json| live.iter().for_each(|live| block(json, live)));
}

/// Physical pages of the manager and of its shared pools.
fn pages(json: &mut Json, manager: &Manager) {
    let pages = manager.pages();
    let (hits, misses) = pages.hits_and_misses();
    json.numbers(&[
        ("held_bytes", pages.held_bytes),
        ("pooled_bytes", pages.pooled_bytes),
        ("hits", hits),
        ("misses", misses),
        ("made_ahead", pages.made_ahead()),
        ("table_changes", pages.table_changes),
        ("loud_table_changes", pages.loud_changes),
        ("passed_on_mappings", pages.passed_on),
        ("stale_mappings", pages.stale_mappings),
        ("failed_unmaps", pages.failed_unmaps),
    ]);
}

fn range(json: &mut Json, range: &ElasticStatistics) {
    json.numbers(&[
        ("capacity_bytes", range.capacity_bytes),
        ("committed_bytes", range.committed_bytes),
        ("physical_bytes", range.physical_bytes),
        ("retained_bytes", range.retained_bytes),
        ("leaving_bytes", range.leaving_bytes),
        ("pins", range.pins),
    ]);
}

fn pools(json: &mut Json, manager: &Manager) {
    let now_ns = clock::now_ns();
    for pool in manager.holdings.pools() {
        let (totals, _) = pool.statistics();
        json.object(|json| {
            json.key("tag");
            json.string(pool.tag());
            json.numbers(&[
                ("held_bytes", totals.held_bytes),
                ("managed_bytes", totals.managed_bytes),
                ("in_use_bytes", totals.in_use_bytes),
                ("requested_bytes", totals.requested_bytes),
                ("blocks", totals.blocks),
                ("in_use", totals.in_use),
                ("max_bytes", totals.max_bytes),
            ]);
            json.key("live");
            json.array(|json| {
                for block in pool.live() {
                    json.object(|json| {
                        json.numbers(&[
                            ("address", block.address),
                            ("bytes", block.bytes),
                            ("block_bytes", block.block_bytes),
                            ("age_ms", now_ns.saturating_sub(block.since_ns) / NS_PER_MS),
                        ]);
                    });
                }
            });
        });
    }
}

fn elastics(json: &mut Json, manager: &Manager) {
    for elastic in manager.memory.elastics() {
        json.object(|json| {
            json.numbers(&[("base", elastic.base()), ("age_ms", elastic.age_ns() / NS_PER_MS)]);
            range(json, &elastic.statistics());
        });
    }
}

fn shared_pools(json: &mut Json, manager: &Manager) {
    for shared in manager.holdings.shared() {
        let totals = shared.statistics();
        json.object(|json| {
            json.numbers(&[
                ("limit_bytes", totals.limit_bytes),
                ("used_bytes", totals.used_bytes),
                ("pooled_bytes", totals.pooled_bytes),
                ("refusals", totals.refusals),
            ]);
            json.key("models");
            json.array(|json| {
                for (name, model) in shared.models() {
                    json.object(|json| {
                        json.key("name");
                        json.string(&name);
                        range(json, &model.range);
                        json.numbers(&[
                            ("age_ms", model.age_ns / NS_PER_MS),
                            ("min_bytes", model.terms.min_bytes),
                            ("weight", model.terms.weight),
                            ("cap_bytes", model.terms.cap_bytes),
                        ]);
                    });
                }
            });
        });
    }
}

fn pinned_pool(json: &mut Json, manager: &Manager) {
    let pinned = manager.pinned.statistics();
    json.numbers(&[
        ("held_bytes", pinned.held_bytes),
        ("live_bytes", pinned.live_bytes),
        ("live", pinned.live),
        ("leaving_bytes", pinned.leaving_bytes),
        ("free_bytes", pinned.free_bytes),
        ("registered_bytes", pinned.registered_bytes),
    ]);
}

/// What was allocated straight from the device and is still there when the manager closes, by tag.
pub(super) fn leaks(live: &[LiveAllocation]) -> String {
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for one in live {
        *sums.entry(&one.tag).or_default() += one.bytes;
    }
    let mut sums: Vec<(&str, u64)> = sums.into_iter().collect();
    sums.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
    let shown: Vec<String> = sums.iter().take(8).map(|(tag, bytes)| format!("\"{tag}\" {bytes}")).collect();
    let bytes: u64 = live.iter().map(|one| one.bytes).sum();
    format!("closed with {} live allocations of {bytes} bytes: {}", live.len(), shown.join(", "))
}

fn streams(json: &mut Json, manager: &Manager) {
    let streams = manager.streams.lock();
    json.key("own");
    json.array(|json| streams.own.iter().for_each(|&value| json.number(value)));
    json.key("registered");
    json.array(|json| {
        for (&value, entry) in &streams.foreign {
            json.object(|json| {
                json.numbers(&[("value", value)]);
                if let Foreign::Ready(foreign) = entry {
                    let is_sibling = u64::from(foreign.origin.is_some());
                    json.numbers(&[("stream", foreign.stream.0), ("of_another_manager", is_sibling)]);
                }
            });
        }
    });
}

/// The report.
pub(super) fn json(manager: &Manager) -> String {
    let mut json = Json { text: String::new(), needs_comma: false };
    json.object(|json| {
        json.key("version");
        json.string(env!("CARGO_PKG_VERSION"));
        json.numbers(&[("age_ms", clock::now_ns().saturating_sub(manager.born_ns) / NS_PER_MS)]);
        json.key("device");
        json.object(|json| device(json, manager));
        json.key("memory");
        json.object(|json| memory(json, manager));
        json.key("allocator");
        json.object(|json| allocator(json, manager));
        json.key("pages");
        json.object(|json| pages(json, manager));
        json.key("pools");
        json.array(|json| pools(json, manager));
        json.key("elastic");
        json.array(|json| elastics(json, manager));
        json.key("shared_pools");
        json.array(|json| shared_pools(json, manager));
        json.key("pinned_pool");
        json.object(|json| pinned_pool(json, manager));
        json.key("streams");
        json.object(|json| streams(json, manager));
        json.numbers(&[("pending_tickets", manager.totals().pending_tickets)]);
        json.key("caches");
        json.array(|json| manager.caches.lock().values().for_each(|name| json.string(name)));
    });
    json.text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_escaped_so_that_any_parser_reads_them_back() {
        let mut json = Json { text: String::new(), needs_comma: false };
        let nasty = "quote \" backslash \\ newline \n bell \u{7} é";
        json.array(|json| json.string(nasty));
        let back: Vec<String> = serde_json::from_str(&json.text).unwrap();
        assert_eq!(back, [nasty]);
    }
}
