//! The prebuilt kernels belong to their sources: digests of both, sizes, and that nothing is missing.
//!
//! A source that was changed without `make kernels` fails here. The digest is written out, so that no dependency is
//! needed for it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::Value;

/// Everything in kernels/prebuilt together.
const LIMIT_BYTES: u64 = 1 << 20;
const TARGETS: [&str; 7] = [
    "compute_80.ptx",
    "sm_80.cubin",
    "sm_86.cubin",
    "sm_89.cubin",
    "sm_90a.cubin",
    "sm_100a.cubin",
    "sm_120a.cubin",
];

fn folder(below: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("kernels").join(below)
}

fn names(below: &str, ends: &[&str]) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder(below)).expect("the folder is committed").flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| ends.iter().any(|end| name.ends_with(end))).collect()
}

fn manifest() -> Value {
    let text = std::fs::read_to_string(folder("prebuilt/manifest.json")).expect("the manifest is committed");
    serde_json::from_str(&text).expect("the manifest is JSON")
}

/// FIPS 180-4: the first 32 bits of the fractional parts of the roots of the first primes.
fn roots(count: usize, root: impl Fn(f64) -> f64) -> Vec<u32> {
    let is_prime = |n: &u32| (2..*n).all(|d| !n.is_multiple_of(d));
    let primes = (2u32..).filter(is_prime).take(count);
    primes.map(|prime| (root(f64::from(prime)).fract() * 4_294_967_296.0) as u32).collect()
}

fn sha256(bytes: &[u8]) -> String {
    let round = roots(64, f64::cbrt);
    let mut state = roots(8, f64::sqrt);
    let mut message = bytes.to_vec();
    message.push(0x80);
    while message.len() % 64 != 56 {
        message.push(0);
    }
    message.extend((bytes.len() as u64 * 8).to_be_bytes());
    for chunk in message.chunks_exact(64) {
        let mut w: Vec<u32> = chunk
            .chunks_exact(4)
            .map(|word| u32::from_be_bytes([word[0], word[1], word[2], word[3]]))
            .collect();
        for i in 16..64 {
            let (a, b) = (w[i - 15], w[i - 2]);
            let s0 = a.rotate_right(7) ^ a.rotate_right(18) ^ (a >> 3);
            let s1 = b.rotate_right(17) ^ b.rotate_right(19) ^ (b >> 10);
            w.push(w[i - 16].wrapping_add(s0).wrapping_add(w[i - 7]).wrapping_add(s1));
        }
        let mut v = state.clone();
        for i in 0..64 {
            let s1 = v[4].rotate_right(6) ^ v[4].rotate_right(11) ^ v[4].rotate_right(25);
            let choice = (v[4] & v[5]) ^ (!v[4] & v[6]);
            let t1 = v[7].wrapping_add(s1).wrapping_add(choice).wrapping_add(round[i]).wrapping_add(w[i]);
            let s0 = v[0].rotate_right(2) ^ v[0].rotate_right(13) ^ v[0].rotate_right(22);
            let majority = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
            v.rotate_right(1);
            v[4] = v[4].wrapping_add(t1);
            v[0] = t1.wrapping_add(s0).wrapping_add(majority);
        }
        state.iter_mut().zip(v).for_each(|(sum, value)| *sum = sum.wrapping_add(value));
    }
    state.iter().map(|word| format!("{word:08x}")).collect()
}

#[test]
fn the_digest_gives_the_known_answers() {
    assert_eq!(sha256(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

fn assert_digest(path: &str, wanted: Option<&str>) {
    let bytes = std::fs::read(folder(path)).expect("a listed file is there");
    assert_eq!(Some(sha256(&bytes).as_str()), wanted, "kernels/{path} was changed; run `make kernels`");
}

#[test]
fn sources_are_those_that_the_prebuilt_kernels_were_made_from() {
    let manifest = manifest();
    let listed = manifest["sources"].as_object().expect("a list of sources");
    assert_eq!(listed.keys().cloned().collect::<BTreeSet<_>>(), names("", &[".cu", ".cuh"]));
    for (name, digest) in listed {
        assert_digest(name, digest.as_str());
    }
}

#[test]
fn prebuilt_kernels_are_those_that_were_made() {
    let manifest = manifest();
    let listed = manifest["blobs"].as_object().expect("a list of blobs");
    let there = names("prebuilt", &[".ptx", ".cubin"]);
    assert_eq!(listed.keys().cloned().collect::<BTreeSet<_>>(), there);
    for (name, blob) in listed {
        assert_digest(&format!("prebuilt/{name}"), blob["sha256"].as_str());
    }
    let sources = names("", &[".cu"]);
    let wanted = sources.iter().flat_map(|source| TARGETS.map(|target| source.replace(".cu", ".") + target));
    assert_eq!(there, wanted.collect(), "every source for every target");
}

#[test]
fn prebuilt_kernels_are_small() {
    let entries = std::fs::read_dir(folder("prebuilt")).expect("the folder is committed").flatten();
    let total: u64 = entries.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum();
    assert!(total <= LIMIT_BYTES, "{total} bytes");
}

#[test]
fn portable_code_is_for_old_drivers_and_every_kernel_of_the_cache_is_in_it() {
    let mut entries = BTreeSet::new();
    for name in names("prebuilt", &[".ptx"]) {
        let text = std::fs::read_to_string(folder("prebuilt").join(&name)).expect("PTX is text");
        assert!(text.contains(".version 8.4") && text.contains(".target sm_80"), "{name}");
        let found = text.lines().filter_map(|line| line.strip_prefix(".visible .entry "));
        entries.extend(found.filter_map(|line| line.split_once('(')).map(|(name, _)| name.to_owned()));
    }
    for kernel in kavern::cache::kernels() {
        assert!(entries.contains(kernel.name), "{} has no device code", kernel.name);
    }
}
