//! The rules of the house, one test each: arrows between rooms, walls, sizes, words, dead files.
//!
//! A rule is a function over `(path, text)` pairs that returns complaints, so each is tried twice: on the repository,
//! where it must be silent, and on a small made-up input, where it must speak. Text is scanned, not parsed: comments
//! and strings are blanked first, `use` groups are expanded. docs/architecture.md says why the rules are as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Rooms from the ground up; those in one line do not see each other, except on the ground.
const LAYERS: &[&[&str]] = &[
    &["error", "types", "event", "reclaim", "sync", "format"],
    &["sys"],
    &["device"],
    &["memory"],
    &["transfer", "codec", "attention", "tier"],
    &["cache", "monitor"],
    &["manager"],
    &["c_api"],
];

const CLI: &str = "src/bin/kavern/";
const CLI_ABI: &str = "src/bin/kavern/abi.rs";

/// Path (from the repository's root, with `/`) and text of a file.
type File = (String, String);

// ------------------------------------------------------------------------------------------------ the repository

/// Every file that git tracks or would track; without git, every file outside of build folders.
fn repository() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let git = std::process::Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output();
    match git {
        Ok(out) if out.status.success() && !out.stdout.is_empty() => {
            let list = String::from_utf8_lossy(&out.stdout).into_owned();
            list.lines().filter(|path| root.join(path).is_file()).map(String::from).collect()
        }
        _ => walk(root, ""),
    }
}

fn walk(root: &Path, below: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root.join(below)).expect("a folder that can be read").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
        let skipped = ["target", ".git", ".cache", ".venv", "__pycache__"].contains(&name.as_str());
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && !skipped => found.extend(walk(root, &path)),
            Ok(kind) if kind.is_file() => found.push(path),
            _ => {}
        }
    }
    found
}

/// Text files below a folder; what is not UTF-8 is left out.
fn texts(prefix: &str) -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let paths = repository().into_iter().filter(|path| path.starts_with(prefix));
    paths.filter_map(|path| Some((path.clone(), std::fs::read_to_string(root.join(&path)).ok()?))).collect()
}

fn sources() -> Vec<File> {
    let found: Vec<File> = texts("src/").into_iter().filter(|(path, _)| path.ends_with(".rs")).collect();
    assert!(found.len() > 5, "only {} sources found: the scan itself is broken", found.len());
    found
}

/// The C and C++ below a folder.
fn c_sources(prefix: &str) -> Vec<File> {
    let is_source = |path: &str| [".c", ".cpp", ".h"].iter().any(|end| path.ends_with(end));
    let found: Vec<File> = texts(prefix).into_iter().filter(|(path, _)| is_source(path)).collect();
    assert!(found.len() > 5, "only {} sources in {prefix}: the scan itself is broken", found.len());
    found
}

fn examples() -> Vec<File> {
    c_sources("examples/")
}

fn silent(complaints: &[String]) {
    assert!(complaints.is_empty(), "{} complaints:\n  {}", complaints.len(), complaints.join("\n  "));
}

fn made_up(files: &[(&str, &str)]) -> Vec<File> {
    files.iter().map(|(path, text)| ((*path).to_string(), (*text).to_string())).collect()
}

fn speaks(complaints: &[String], words: &str) {
    assert!(complaints.iter().any(|line| line.contains(words)), "nobody says {words:?}: {complaints:?}");
}

// ------------------------------------------------------------------------------------------------ reading Rust

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The code with comments and the insides of strings blanked; line breaks stay.
fn code(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    let blank = |from: usize, to: usize, out: &mut String| {
        out.extend(chars[from..to].iter().map(|&c| if c == '\n' { c } else { ' ' }));
    };
    while at < chars.len() {
        let rest = &chars[at..];
        let begins = |word: &str| word.chars().enumerate().all(|(i, c)| rest.get(i) == Some(&c));
        let end = if begins("//") {
            at + rest.iter().position(|&c| c == '\n').unwrap_or(rest.len())
        } else if begins("/*") {
            at + comment_length(rest)
        } else if let Some(hashes) = raw_string(&chars, at) {
            at + raw_string_length(rest, hashes)
        } else if rest[0] == '"' {
            at + quoted_length(rest, '"')
        } else if rest[0] == '\'' && (rest.get(1) == Some(&'\\') || rest.get(2) == Some(&'\'')) {
            at + quoted_length(rest, '\'')
        } else {
            out.push(rest[0]);
            at += 1;
            continue;
        };
        blank(at, end, &mut out);
        at = end;
    }
    out
}

fn comment_length(rest: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match (rest[at], rest.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at.min(rest.len())
}

fn raw_string(chars: &[char], at: usize) -> Option<usize> {
    let prefixed = chars[at] == 'r' && !(at > 0 && is_word(chars[at - 1]) && chars[at - 1] != 'b');
    let hashes = chars[at + 1..].iter().take_while(|&&c| c == '#').count();
    (prefixed && chars.get(at + 1 + hashes) == Some(&'"')).then_some(hashes)
}

fn raw_string_length(rest: &[char], hashes: usize) -> usize {
    let start = hashes + 2;
    let closes = |i: &usize| {
        rest[*i] == '"' && rest[i + 1..].iter().take(hashes).filter(|&&c| c == '#').count() == hashes
    };
    (start..rest.len()).find(closes).map_or(rest.len(), |i| i + 1 + hashes)
}

fn quoted_length(rest: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// Whether `word` stands in the code as a word of its own.
fn has_word(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

/// Every path that begins with `root::`, groups expanded: `root::{a::b, c}` gives `[a, b]` and `[c]`.
fn paths(code: &str, root: &str) -> Vec<Vec<String>> {
    let needle = format!("{root}::");
    let mut found = Vec::new();
    for (at, _) in code.match_indices(&needle) {
        if !code[..at].chars().next_back().is_some_and(is_word) {
            expand(&code[at + needle.len()..], &[], &mut found);
        }
    }
    found
}

/// Reads one path or group at the start of `text`; returns how much of it was read.
fn expand(text: &str, before: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let trimmed = text.trim_start();
    let mut at = text.len() - trimmed.len();
    if trimmed.starts_with('{') {
        at += 1;
        while at < text.len() && !text[at..].starts_with('}') {
            let read = expand(&text[at..], before, found);
            let tail = &text[at + read..];
            at += read + tail.find([',', '}']).unwrap_or(tail.len());
            at += usize::from(text[at..].starts_with(','));
            at += text[at..].len() - text[at..].trim_start().len();
        }
        return at + 1;
    }
    let word: String = trimmed.chars().take_while(|&c| is_word(c) || c == '*').collect();
    at += word.len();
    if word.is_empty() {
        return at;
    }
    let path = [before, &[word]].concat();
    if text[at..].starts_with("::") {
        return at + 2 + expand(&text[at + 2..], &path, found);
    }
    found.push(path);
    at
}

/// Module path of a file of the library: `src/device/host/mod.rs` is `[device, host]`.
fn module_of(path: &str) -> Vec<String> {
    let inner = path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    inner.split('/').filter(|part| *part != "lib").map(String::from).collect()
}

/// Paths from the root of the library that a file names, `super::` resolved.
fn crate_paths(path: &str, code: &str) -> Vec<Vec<String>> {
    let mut found = paths(code, "crate");
    let module = module_of(path);
    for tail in paths(code, "super") {
        let ups = 1 + tail.iter().take_while(|part| *part == "super").count();
        if ups <= module.len() {
            found.push([&module[..module.len() - ups], &tail[ups - 1..]].concat());
        }
    }
    found.retain(|p| !p.is_empty() && p[0] != "super");
    found
}

/// Files whose `mod` lines are in `code`, with whether each is public.
fn mod_lines(code: &str) -> Vec<(String, bool)> {
    let lines = code.lines().map(str::trim);
    let mods = lines.filter_map(|line| {
        let (visibility, name) = line.strip_suffix(';')?.rsplit_once("mod ")?;
        name.chars().all(is_word).then(|| (name.to_string(), visibility.trim_end().ends_with("pub")))
    });
    mods.collect()
}

// ------------------------------------------------------------------------------------------------ the rules

fn library(files: &[File]) -> impl Iterator<Item = (&str, String)> {
    let inside =
        |path: &str| path.starts_with("src/") && !path.starts_with("src/bin/") && path != "src/lib.rs";
    files.iter().filter(move |(path, _)| inside(path)).map(|(path, text)| (path.as_str(), code(text)))
}

fn layer_of(room: &str) -> Option<usize> {
    LAYERS.iter().position(|rooms| rooms.contains(&room))
}

fn arrows(files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, code) in library(files) {
        let own = module_of(path)[0].clone();
        let Some(own_layer) = layer_of(&own) else {
            complaints.push(format!("{path}: room {own} has no place in LAYERS"));
            continue;
        };
        for target in crate_paths(path, &code) {
            let room = target[0].as_str();
            let Some(layer) = layer_of(room) else { continue };
            let level = layer == own_layer && own_layer > 0;
            if room != own && (layer > own_layer || level) {
                complaints.push(format!("{path}: {own} must not see {room}"));
            }
            if room == "monitor" && own != "monitor" && own != "manager" {
                complaints.push(format!("{path}: only manager imports monitor"));
            }
        }
    }
    complaints
}

fn front_doors(files: &[File]) -> Vec<String> {
    let is_module = |room: &str, name: &str| {
        let at = |tail: &str| format!("src/{room}/{name}{tail}");
        files.iter().any(|(path, _)| *path == at(".rs") || *path == at("/mod.rs"))
    };
    let exported = |room: &str, name: &str| {
        let is_door = |path: &str| path == format!("src/{room}/mod.rs") || path == format!("src/{room}.rs");
        let door = files.iter().find(|(path, _)| is_door(path)).map(|(_, text)| code(text));
        door.is_some_and(|text| mod_lines(&text).contains(&(name.to_string(), true)))
    };
    let mut complaints = Vec::new();
    for (path, code) in library(files) {
        let own = &module_of(path)[0];
        for target in crate_paths(path, &code) {
            let [room, inner, ..] = target.as_slice() else { continue };
            if room != own && is_module(room, inner) && !exported(room, inner) {
                complaints
                    .push(format!("{path}: {room}::{inner} is inside; use what {room}'s mod.rs exports"));
            }
        }
    }
    complaints
}

/// Words in backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// What the map's table of a room names, as paths without ending: in a cell, what stands behind `folder/` lies in it.
fn mapped(table: &str, room: &str) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for cell in table.lines().filter_map(|line| line.strip_prefix('|')?.split('|').next()) {
        let mut folder = String::new();
        for word in quoted(cell) {
            match word.ends_with('/') {
                true => folder = word.to_string(),
                false => drop(named.insert(format!("src/{room}/{folder}{word}"))),
            }
        }
    }
    named
}

/// The map names every room, and each file of those that it has a table of; it names no other.
fn map_and_sources(files: &[File], map: &str) -> Vec<String> {
    let drawing =
        map.split("## ").find(|section| section.starts_with("Rooms and arrows")).unwrap_or_default();
    let mut rooms: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, _) in library(files).filter(|(path, _)| !path.contains("tests")) {
        let room = module_of(path)[0].clone();
        let own = rooms.entry(room.clone()).or_default();
        let is_door = path.ends_with("/mod.rs") || path == format!("src/{room}.rs");
        if !is_door {
            own.insert(path.trim_end_matches(".rs").to_string());
        }
    }
    let mut complaints = Vec::new();
    for (room, files) in rooms {
        if !has_word(drawing, &room) {
            complaints.push(format!("room {room} is not in the drawing of the map"));
        }
        let title = format!("The {room} room");
        let Some(table) = map.split("## ").find(|section| section.lines().next() == Some(&title)) else {
            if !files.is_empty() && room != "c_api" && layer_of(&room) != Some(0) {
                complaints.push(format!("the map has no table of room {room}"));
            }
            continue;
        };
        let named = mapped(table, &room);
        let missing = files.difference(&named);
        complaints.extend(missing.map(|path| format!("{path} is not in the map")));
        let strange = named.difference(&files).filter(|path| !path.ends_with("/mod"));
        complaints.extend(strange.map(|path| format!("the map names {path}, which is not there")));
    }
    complaints
}

/// Complains of each file that has `word` in its code and does not lie in one of `homes`.
fn wall(files: &[File], word: &str, homes: &[&str]) -> Vec<String> {
    let outside = files.iter().filter(|(path, _)| !homes.iter().any(|home| path.starts_with(home)));
    let guilty = outside.filter(|(_, text)| has_word(&code(text), word));
    guilty.map(|(path, _)| format!("{path}: `{word}` lives only in {}", homes.join(", "))).collect()
}

const UNSAFE_HOMES: &[&str] = &["src/device/", "src/sys/", "src/c_api/", CLI_ABI];
const FS_HOMES: &[&str] =
    &["src/sys/", "src/tier/disk", "src/cache/checkpoint", "src/monitor/trace", "src/bin/"];

fn file_system(files: &[File]) -> Vec<String> {
    let outside = files.iter().filter(|(path, _)| !FS_HOMES.iter().any(|home| path.starts_with(home)));
    let guilty = outside.filter(|(_, text)| paths(&code(text), "std").iter().any(|path| path[0] == "fs"));
    guilty.map(|(path, _)| format!("{path}: std::fs lives only in {}", FS_HOMES.join(", "))).collect()
}

fn sizes(files: &[File]) -> Vec<String> {
    let long = files.iter().filter(|(_, text)| text.lines().count() > 500);
    long.map(|(path, text)| {
        format!("{path}: {} lines; a file holds one thought, 500 at most", text.lines().count())
    })
    .collect()
}

fn heads(files: &[File]) -> Vec<String> {
    let headless = files.iter().filter(|(_, text)| !text.starts_with("//! "));
    headless.map(|(path, _)| format!("{path}: does not open with `//!`")).collect()
}

/// Words for unfinished work, spelled so that this file does not contain them.
const UNFINISHED: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("to", "do!"),
    concat!("unimple", "mented!"),
    concat!("db", "g!"),
];

fn unfinished(files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, text) in files {
        for (number, line) in text.lines().enumerate() {
            for word in UNFINISHED.iter().filter(|word| has_word(line, word)) {
                complaints.push(format!("{path}:{}: {word}", number + 1));
            }
        }
    }
    complaints
}

fn dead_files(files: &[File]) -> Vec<String> {
    let mut alive = BTreeSet::new();
    let mut queue = vec!["src/lib.rs".to_string(), format!("{CLI}main.rs")];
    while let Some(path) = queue.pop() {
        let Some((_, text)) = files.iter().find(|(other, _)| *other == path) else { continue };
        let folder = path
            .trim_end_matches(".rs")
            .trim_end_matches("/mod")
            .trim_end_matches("/lib")
            .trim_end_matches("/main");
        for (name, _) in mod_lines(&code(text)) {
            queue.extend([format!("{folder}/{name}.rs"), format!("{folder}/{name}/mod.rs")]);
        }
        let beside = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let named =
            text.lines().filter_map(|line| line.trim().strip_prefix("#[path = \"")?.strip_suffix("\"]"));
        queue.extend(named.map(|name| format!("{beside}/{name}")));
        alive.insert(path);
    }
    files
        .iter()
        .filter(|(path, _)| !alive.contains(path))
        .map(|(path, _)| format!("{path}: no mod line leads here"))
        .collect()
}

fn vague_names(files: &[File]) -> Vec<String> {
    let vague = ["util", "utils", "common", "helper", "helpers", "misc", "shared_code"];
    let guilty = files.iter().filter(|(path, _)| path.split(['/', '.']).any(|part| vague.contains(&part)));
    guilty.map(|(path, _)| format!("{path}: name the thing, not the drawer")).collect()
}

fn blobs(sizes: &[(String, u64)]) -> Vec<String> {
    let big = sizes.iter().filter(|(_, bytes)| *bytes > 1 << 20);
    big.map(|(path, bytes)| format!("{path}: {bytes} bytes; 1 MiB at most")).collect()
}

/// Tables of registration lines are marked `rustfmt::skip` and may be as wide as a line of them is.
fn wide_lines(files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, text) in files {
        let mut in_table = false;
        for (number, line) in text.lines().enumerate() {
            in_table = (in_table || line.trim() == "#[rustfmt::skip]") && line != "];";
            if !in_table && line.chars().count() > 120 && !line.contains("://") {
                complaints.push(format!("{path}:{}: wider than 120", number + 1));
            }
        }
    }
    complaints
}

/// Prose that is read as text too; a row of a table cannot be broken.
fn wide_prose(files: &[File]) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, text) in files.iter().filter(|(path, _)| path.ends_with(".md")) {
        for (number, line) in text.lines().enumerate() {
            if line.chars().count() > 130 && !line.starts_with('|') && !line.contains("://") {
                complaints.push(format!("{path}:{}: wider than 130", number + 1));
            }
        }
    }
    complaints
}

fn machine_paths(files: &[File]) -> Vec<String> {
    let roots = [concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/Us", "ers/")];
    let absolute = |line: &str, root: &str| {
        let starts =
            |at: usize| !line[..at].chars().next_back().is_some_and(|c| is_word(c) || "./~)}-".contains(c));
        line.match_indices(root).any(|(at, _)| starts(at))
    };
    let mut complaints = Vec::new();
    for (path, text) in files {
        for (number, line) in text.lines().enumerate() {
            for root in roots.iter().filter(|root| absolute(line, root)) {
                complaints.push(format!("{path}:{}: a path of one machine, {root}", number + 1));
            }
        }
    }
    complaints
}

// ------------------------------------------------------------------------------------------------ on the repository

#[test]
fn rooms_use_only_rooms_below_them() {
    silent(&arrows(&sources()));
}

#[test]
fn a_room_is_used_only_through_its_front_door() {
    silent(&front_doors(&sources()));
}

#[test]
fn the_map_and_the_sources_name_the_same_files() {
    let map = texts("docs/architecture.md");
    silent(&map_and_sources(&sources(), &map[0].1));
}

#[test]
fn cudarc_lives_only_in_the_cuda_backend() {
    silent(&wall(&sources(), "cudarc", &["src/device/cuda"]));
}

#[test]
fn unsafe_code_lives_only_at_the_edges() {
    silent(&wall(&sources(), "unsafe", UNSAFE_HOMES));
}

#[test]
fn functions_are_exported_only_by_c_api() {
    for word in ["no_mangle", "export_name"] {
        silent(&wall(&sources(), word, &["src/c_api/"]));
    }
}

#[test]
fn files_are_opened_only_behind_their_doors() {
    silent(&file_system(&sources()));
}

#[test]
fn no_source_is_longer_than_500_lines() {
    silent(&sizes(&sources()));
    silent(&sizes(&examples()));
}

#[test]
fn every_source_opens_with_what_it_is() {
    silent(&heads(&sources()));
    let headless =
        examples().into_iter().filter(|(_, text)| !text.starts_with("// ") && !text.starts_with("/* "));
    silent(&headless.map(|(path, _)| path).collect::<Vec<_>>());
}

#[test]
fn nothing_is_marked_unfinished() {
    let all = [
        "src/",
        "tests/",
        "benches/",
        "examples/",
        "bindings/",
        "scripts/",
        "include/",
        "build.rs",
        "Makefile",
    ];
    silent(&unfinished(&all.iter().flat_map(|prefix| texts(prefix)).collect::<Vec<_>>()));
}

#[test]
fn every_source_is_reached_by_a_mod_line() {
    silent(&dead_files(&sources()));
}

#[test]
fn no_source_has_a_vague_name() {
    silent(&vague_names(&sources()));
}

#[test]
fn no_big_blob_is_tracked() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let bytes = |path: &String| std::fs::metadata(root.join(path)).map_or(0, |meta| meta.len());
    silent(&blobs(&repository().into_iter().map(|path| (path.clone(), bytes(&path))).collect::<Vec<_>>()));
}

#[test]
fn no_source_line_is_wider_than_120() {
    [sources(), examples(), c_sources("tests/")].iter().for_each(|files| silent(&wide_lines(files)));
    silent(&wide_prose(&texts("")));
}

#[test]
fn no_file_names_a_path_of_one_machine() {
    silent(&machine_paths(&texts("")));
}

// ------------------------------------------------------------------------------------------------ each rule can fail

#[test]
fn the_arrow_rule_sees_upward_sideways_and_unknown_rooms() {
    let up = made_up(&[("src/device/host/mod.rs", "use crate::memory::Memory;")]);
    speaks(&arrows(&up), "device must not see memory");
    let up_by_super = made_up(&[("src/device/host/mod.rs", "use super::super::cache::KvCache;")]);
    speaks(&arrows(&up_by_super), "device must not see cache");
    let grouped = made_up(&[("src/codec/fp8.rs", "use crate::{error::Result, tier::{ram, disk}};")]);
    speaks(&arrows(&grouped), "codec must not see tier");
    let monitor = made_up(&[("src/c_api/monitor.rs", "use crate::monitor::Monitor;")]);
    speaks(&arrows(&monitor), "only manager imports monitor");
    speaks(&arrows(&made_up(&[("src/attic/mod.rs", "")])), "attic has no place");
    let fine = made_up(&[
        (
            "src/cache/store.rs",
            "use crate::{codec::Codec, memory::Memory, tier::Tier, transfer::Copy};\nuse super::block;",
        ),
        (
            "src/memory/mod.rs",
            "// use crate::cache::x;\nconst A: &str = \"crate::cache\"; /* crate::cache::y */",
        ),
        ("src/manager.rs", "use crate::monitor::Monitor;"),
        ("src/error.rs", "use crate::types::Bytes;"),
    ]);
    silent(&arrows(&fine));
}

#[test]
fn the_front_door_rule_sees_a_private_module() {
    let door = ("src/device/mod.rs", "mod slice;\npub mod registry;\npub(crate) mod kernel;");
    let files = |user: &str| {
        made_up(&[
            door,
            ("src/device/slice.rs", ""),
            ("src/device/registry.rs", ""),
            ("src/device/kernel.rs", ""),
            ("src/memory/mod.rs", user),
        ])
    };
    speaks(&front_doors(&files("use crate::device::slice::DeviceSlice;")), "device::slice is inside");
    speaks(&front_doors(&files("use crate::device::{Stream, kernel::Kernel};")), "device::kernel is inside");
    silent(&front_doors(&files("use crate::device::{DeviceSlice, registry::open};")));
}

#[test]
fn the_rule_about_the_map_sees_what_is_missing_on_either_side() {
    let map = "## Rooms and arrows\nerror, memory\n\n## The memory room\n\n| file | what it is |\n|---|---|\n\
               | `mod` | the front |\n| `range`, `heap/`: `core`, `plain/leaving` | see `validate` |\n";
    let with = |more: &[&str]| {
        let known =
            ["mod", "range", "heap/mod", "heap/core", "heap/plain/leaving", "heap/tests/a", "range_tests"];
        let paths = known.iter().map(|name| format!("src/memory/{name}.rs"));
        let paths = paths.chain(["src/error.rs".into()]).chain(more.iter().map(|path| (*path).into()));
        map_and_sources(&paths.map(|path| (path, String::new())).collect::<Vec<_>>(), map)
    };
    silent(&with(&[]));
    speaks(&with(&["src/memory/heap/range.rs"]), "src/memory/heap/range is not in the map");
    speaks(&with(&["src/memory/core.rs"]), "src/memory/core is not in the map");
    speaks(&with(&["src/cache/mod.rs"]), "room cache is not in the drawing");
    speaks(&with(&["src/cache/mod.rs", "src/cache/step.rs"]), "no table of room cache");
    let gone = made_up(&[("src/memory/mod.rs", ""), ("src/memory/range.rs", "")]);
    speaks(&map_and_sources(&gone, map), "names src/memory/heap/core, which is not there");
}

#[test]
fn the_walls_see_words_but_not_comments_or_lints() {
    let guilty = made_up(&[("src/memory/pool.rs", "fn f() { unsafe { g() } }")]);
    speaks(&wall(&guilty, "unsafe", UNSAFE_HOMES), "src/memory/pool.rs");
    let fine = made_up(&[(
        "src/lib.rs",
        "#![deny(unsafe_code)] // unsafe\nconst A: &str = \"unsafe\"; const B: char = '\"';",
    )]);
    silent(&wall(&fine, "unsafe", UNSAFE_HOMES));
    speaks(
        &wall(&made_up(&[("src/device/mod.rs", "use cudarc::driver;")]), "cudarc", &["src/device/cuda"]),
        "cudarc",
    );
    speaks(
        &wall(&made_up(&[("src/manager.rs", "#[unsafe(no_mangle)]")]), "no_mangle", &["src/c_api/"]),
        "no_mangle",
    );
}

#[test]
fn the_file_system_rule_sees_groups() {
    speaks(&file_system(&made_up(&[("src/memory/mod.rs", "use std::{fs, io};")])), "std::fs");
    speaks(&file_system(&made_up(&[("src/memory/mod.rs", "let a = std::fs::read(b);")])), "std::fs");
    silent(&file_system(&made_up(&[
        ("src/sys/shm.rs", "use std::fs::File;"),
        ("src/memory/mod.rs", "use std::io;"),
    ])));
}

#[test]
fn the_rules_about_one_file_see_what_they_forbid() {
    let one = |text: &str| made_up(&[("src/memory/mod.rs", text)]);
    speaks(&sizes(&one(&"\n".repeat(501))), "501 lines");
    silent(&sizes(&one(&"\n".repeat(500))));
    speaks(&heads(&one("// A comment.\n")), "does not open");
    speaks(&unfinished(&one(concat!("a\n// TO", "DO: later"))), "mod.rs:2");
    silent(&unfinished(&one("let todos = 1; // the todo list of a scheduler")));
    speaks(&wide_lines(&one(&"x".repeat(121))), "mod.rs:1");
    let table = format!("#[rustfmt::skip]\nstatic A: &[B] = &[\n{0}\n];\n{0}\n", "x".repeat(121));
    assert_eq!(wide_lines(&one(&table)).len(), 1, "only the line behind the table");
    silent(&wide_lines(&one(&format!("// https://{}", "x".repeat(120)))));
    let page = |line: String| made_up(&[("docs/a.md", &line)]);
    speaks(&wide_prose(&page("x".repeat(131))), "a.md:1");
    silent(&wide_prose(&page(format!("| {}", "x".repeat(131)))));
    speaks(&machine_paths(&one(concat!("let a = \"/ho", "me/someone/a\";"))), "a path of one machine");
    silent(&machine_paths(&one(concat!("let a = \"data/ho", "me/a\";"))));
}

#[test]
fn the_rules_about_the_tree_see_what_they_forbid() {
    let tree =
        |files: &[&str]| made_up(&files.iter().map(|path| (*path, "//! x\nmod a;\n")).collect::<Vec<_>>());
    speaks(&dead_files(&tree(&["src/lib.rs", "src/a/mod.rs", "src/a/b.rs"])), "src/a/b.rs");
    silent(&dead_files(&tree(&[
        "src/lib.rs",
        "src/a/mod.rs",
        "src/a/a.rs",
        "src/bin/kavern/main.rs",
        "src/bin/kavern/a.rs",
    ])));
    let mut by_path = tree(&["src/lib.rs", "src/a.rs", "src/a_tests.rs"]);
    by_path[1].1.push_str("#[cfg(test)]\n#[path = \"a_tests.rs\"]\nmod tests;\n");
    silent(&dead_files(&by_path));
    speaks(&vague_names(&tree(&["src/memory/utils.rs"])), "utils.rs");
    speaks(&vague_names(&tree(&["src/common/mod.rs"])), "src/common/mod.rs");
    speaks(&blobs(&[("a.bin".into(), (1 << 20) + 1)]), "a.bin");
    silent(&blobs(&[("a.bin".into(), 1 << 20)]));
}
