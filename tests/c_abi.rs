//! The C interface as C programs meet it: life cycle, planted panics, forks, threads, and sweeps of bad calls, these
//! also under AddressSanitizer with its leak check and under valgrind.
//!
//! The programs are in tests/c_abi and are compiled against include/kavern.h and the shared library that was built with
//! this test. Without a tool a test says so and is left out, unless KAVERN_REQUIRE names `cc`, `asan` or `valgrind`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

const STRICT: &[&str] = &["-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-pthread"];
const SWEEP: &[&str] = &[
    "sweep.c",
    "sweep_abi.c",
    "sweep_kv.c",
    "sweep_plan.c",
    "sweep_sim.c",
    "sweep_memory.c",
    "sweep_pool.c",
    "sweep_pinned.c",
    "sweep_elastic.c",
];
/// Calls of each function in a sweep; `KAVERN_SOAK` asks for the long count.
fn sweep_calls(usual: &'static str, long: &'static str) -> &'static str {
    if std::env::var_os("KAVERN_SOAK").is_some() { long } else { usual }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn header() -> String {
    std::fs::read_to_string(root().join("include/kavern.h")).expect("include/kavern.h is committed")
}

/// The functions of the header with their result types.
fn functions() -> Vec<(String, bool)> {
    let text = header();
    let declared = text.lines().filter(|line| !line.starts_with([' ', '/', '#', '}']) && line.contains('('));
    let named = declared.filter_map(|line| {
        let (before, _) = line.split_once('(')?;
        let name = before.rsplit([' ', '*']).next()?;
        name.starts_with("kavern_").then(|| (name.to_owned(), before.starts_with("kavern_status ")))
    });
    named.collect()
}

/// Where the library lies under its soname, so that programs find it as users' programs do.
fn library_folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("c_abi");
        std::fs::create_dir_all(&folder).expect("the target folder is writable");
        let test = std::env::current_exe().expect("a running test has a path");
        let library = test.with_file_name("libkavern.so");
        assert!(library.exists(), "{} is missing", library.display());
        for name in ["libkavern.so.0", "libkavern.so"] {
            let link = folder.join(name);
            let _ = std::fs::remove_file(&link);
            std::os::unix::fs::symlink(&library, &link).expect("a link in the target folder");
        }
        folder
    })
}

fn is_required(what: &str) -> bool {
    std::env::var("KAVERN_REQUIRE").unwrap_or_default().split(',').any(|word| word == what)
}

/// Whether a tool is there; says why a test is left out.
#[expect(clippy::disallowed_macros, reason = "a test that is left out says so")]
fn there_is(what: &str, command: &str) -> bool {
    let is_there =
        Command::new(command).arg("--version").output().is_ok_and(|output| output.status.success());
    assert!(is_there || !is_required(what), "{command} is missing, and KAVERN_REQUIRE names {what}");
    if !is_there {
        eprintln!("left out: there is no {command}");
    }
    is_there
}

fn said(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{}\n{out}\n{err}", output.status)
}

/// Compiles and links sources of tests/c_abi; `None` where the compiler lacks a flag that may be left out.
fn try_build(program: &str, sources: &[&str], flags: &[&str]) -> Result<PathBuf, String> {
    let folder = library_folder();
    let target = folder.join(program);
    let mut command = Command::new("cc");
    command.args(STRICT).args(flags).arg("-I").arg(root().join("include"));
    command.args(sources.iter().map(|source| root().join("tests/c_abi").join(source)));
    command.arg("-o").arg(&target).arg("-L").arg(folder).arg("-lkavern");
    command.arg(format!("-Wl,-rpath,{}", folder.display()));
    let output = command.output().expect("cc was there a moment ago");
    if output.status.success() { Ok(target) } else { Err(said(&output)) }
}

fn build(program: &str, sources: &[&str]) -> PathBuf {
    try_build(program, sources, &[]).unwrap_or_else(|why| panic!("{program}: {why}"))
}

fn run(command: &mut Command) -> Output {
    let output = command.env_remove("KAVERN_LOG").output().expect("a program that was just built runs");
    assert!(output.status.success(), "{}", said(&output));
    output
}

fn names(text: &[u8]) -> BTreeSet<String> {
    String::from_utf8_lossy(text).lines().map(String::from).collect()
}

#[test]
fn the_header_may_be_in_several_sources_of_c_and_of_cpp() {
    if !there_is("cc", "cc") || !there_is("cc", "c++") {
        return;
    }
    let folder = library_folder();
    let first = folder.join("unit_a.c");
    let second = folder.join("unit_b.cpp");
    let include = "#include <kavern.h>\n#include <kavern.h>\n";
    let plain = "unsigned other(void);\nunsigned other(void) { return kavern_abi_version(); }\n";
    let main = "extern \"C\" unsigned other(void);\nint main() { return other() != KAVERN_ABI_VERSION; }\n";
    std::fs::write(&first, format!("{include}{plain}")).expect("the target folder is writable");
    std::fs::write(&second, format!("{include}{main}")).expect("the target folder is writable");
    let object = folder.join("unit_a.o");
    let mut compile = Command::new("cc");
    compile.args(["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-c", "-I"]);
    run(compile.arg(root().join("include")).arg(&first).arg("-o").arg(&object));
    let program = folder.join("units");
    let mut link = Command::new("c++");
    link.args(["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I"]);
    link.arg(root().join("include")).arg(&second).arg(&object).arg("-L").arg(folder).arg("-lkavern");
    run(link.arg(format!("-Wl,-rpath,{}", folder.display())).arg("-o").arg(&program));
    run(&mut Command::new(program));
}

#[test]
fn a_manager_lives_and_its_report_is_json() {
    if !there_is("cc", "cc") {
        return;
    }
    let output = run(&mut Command::new(build("smoke", &["smoke.c"])));
    assert!(output.stderr.is_empty(), "the library is silent by default: {}", said(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("the report is JSON");
    assert_eq!(report["device"]["backend"], "host");
    assert_eq!(report["memory"]["device"]["bytes"], 0);
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn pools_serve_streams_and_refuse_what_is_wrong() {
    if there_is("cc", "cc") {
        run(&mut Command::new(build("pool", &["pool.c"])));
    }
}

#[test]
fn sequences_branch_are_cut_and_stopped_and_tell_what_is_copied() {
    if there_is("cc", "cc") {
        run(&mut Command::new(build("branches", &["branches.c"])));
    }
}

#[test]
fn a_cache_without_memory_tells_what_is_to_be_wiped() {
    if there_is("cc", "cc") {
        run(&mut Command::new(build("zeros", &["zeros.c"])));
    }
}

#[test]
fn a_list_does_what_its_operations_do_one_by_one_but_for_what_depends_on_a_refused_one() {
    if there_is("cc", "cc") {
        run(&mut Command::new(build("lists", &["lists.c"])));
    }
}

#[test]
fn pinned_memory_is_shared_out_and_a_range_of_the_callers_is_pinned() {
    if there_is("cc", "cc") {
        run(&mut Command::new(build("pinned", &["pinned.c"])));
    }
}

#[test]
fn sequences_get_blocks_of_the_size_that_suits_them() {
    if there_is("cc", "cc") {
        run(&mut Command::new(build("classes", &["classes.c"])));
    }
}

#[test]
fn prompts_are_found_by_probes_on_the_device_and_as_chunks() {
    if there_is("cc", "cc") {
        run(&mut Command::new(build("lookups", &["lookups.c"])));
    }
}

#[test]
fn the_log_variable_writes_to_stderr() {
    if !there_is("cc", "cc") {
        return;
    }
    let output = Command::new(build("smoke_log", &["smoke.c"])).env("KAVERN_LOG", "info").output();
    let output = output.expect("a program that was just built runs");
    assert!(output.status.success(), "{}", said(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("kavern info manager: "), "{}", said(&output));
}

/// Functions that answer a status through the guard; `kavern_last_error` works without it, in every state.
fn guarded() -> BTreeSet<String> {
    let all = functions().into_iter();
    let guarded = all.filter(|(name, is_status)| *is_status && name != "kavern_last_error");
    guarded.map(|(name, _)| name).collect()
}

#[test]
fn the_list_of_calls_names_every_guarded_function() {
    let text = std::fs::read_to_string(root().join("tests/c_abi/calls.h")).expect("it is in the tree");
    let entries = text.split("ON_").skip(1).filter_map(|rest| rest.split_once('(')?.1.split_once(','));
    let listed: BTreeSet<String> =
        entries.map(|(name, _)| name.to_owned()).filter(|name| name.starts_with("kavern_")).collect();
    assert_eq!(listed, guarded());
}

#[test]
fn a_panic_in_any_function_is_a_status_and_the_process_lives() {
    if !there_is("cc", "cc") {
        return;
    }
    let program = build("panic", &["panic.c"]);
    for function in guarded() {
        let output = run(Command::new(&program).arg(&function).env("KAVERN_FAULT_PANIC", &function));
        assert!(output.stderr.is_empty(), "{function}: a caught panic prints nothing: {}", said(&output));
    }
}

#[test]
fn the_child_of_a_fork_is_refused_and_the_parent_goes_on() {
    if there_is("cc", "cc") {
        run(&mut Command::new(build("fork", &["fork.c"])));
    }
}

#[test]
fn a_worker_in_another_process_holds_what_one_cache_would_hold() {
    if let Some(mut program) = build_with_asan("plan_asan", &["plan.c"]) {
        run(&mut program);
    }
    if there_is("cc", "cc") {
        run(&mut Command::new(build("plan", &["plan.c"])));
    }
}

#[test]
fn a_worker_in_another_process_follows_the_sizes_of_classes_and_holds_what_one_cache_would_hold() {
    if let Some(mut program) = build_with_asan("plan_classes_asan", &["plan_classes.c"]) {
        run(&mut program);
    }
    if there_is("cc", "cc") {
        run(&mut Command::new(build("plan_classes", &["plan_classes.c"])));
    }
}

#[test]
fn sizes_of_classes_change_under_steps_in_flight_without_a_race() {
    if there_is("cc", "cc") {
        run(&mut Command::new(build("plan_sim", &["plan_sim.c"])));
    }
}

#[test]
fn memory_comes_and_goes_behind_addresses_that_stay() {
    if let Some(mut program) = build_with_asan("elastic_asan", &["elastic.c"]) {
        run(&mut program);
    }
    if there_is("cc", "cc") {
        run(&mut Command::new(build("elastic", &["elastic.c"])));
        run(Command::new(build("elastic", &["elastic.c"])).env("KAVERN_TEST_DEVICE", "sim?seed=3"));
    }
}

#[test]
fn eight_threads_use_and_destroy_the_same_handles() {
    if there_is("cc", "cc") {
        run(Command::new(build("threads", &["threads.c"])).arg("10000"));
    }
}

#[test]
fn threads_that_free_in_their_last_destructors_leave_nothing_behind() {
    if there_is("cc", "cc") {
        run(&mut Command::new(build("late_frees", &["late_frees.c"])));
    }
}

/// `KAVERN_SOAK` makes it ten minutes, `KAVERN_SOAK_SECONDS` any time.
#[test]
#[expect(clippy::disallowed_macros, reason = "what a long run did is told to whoever runs it")]
fn sixty_four_threads_share_a_manager_and_a_cache_and_nothing_is_left_at_the_end() {
    if !there_is("cc", "cc") {
        return;
    }
    let mut program = Command::new(build("many_threads", &["many_threads.c"]));
    if std::env::var_os("KAVERN_SOAK_SECONDS").is_none() {
        program.arg(sweep_calls("3", "600"));
    }
    eprintln!("{}", String::from_utf8_lossy(&run(&mut program).stdout).trim_end());
}

#[test]
fn running_out_of_host_memory_is_an_error_and_not_an_abort() {
    if there_is("cc", "cc") {
        run(&mut Command::new(build("oom", &["oom.c"])));
    }
}

#[test]
fn bad_calls_of_every_function_are_refused() {
    if !there_is("cc", "cc") {
        return;
    }
    let output = run(Command::new(build("sweep", SWEEP)).args([sweep_calls("20000", "1000000"), "1"]));
    let declared: BTreeSet<String> = functions().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names(&output.stdout), declared, "each function of the header has its entry in the sweep");
}

/// Builds with AddressSanitizer; `None` where the compiler has none.
#[expect(clippy::disallowed_macros, reason = "a test that is left out says so")]
fn build_with_asan(program: &str, sources: &[&str]) -> Option<Command> {
    if !there_is("asan", "cc") {
        return None;
    }
    match try_build(program, sources, &["-fsanitize=address", "-fno-omit-frame-pointer"]) {
        Ok(program) => {
            let mut command = Command::new(program);
            command.env("ASAN_OPTIONS", "detect_leaks=1:halt_on_error=1:exitcode=99");
            Some(command)
        }
        Err(why) => {
            assert!(!is_required("asan"), "AddressSanitizer is required: {why}");
            eprintln!("left out: cc has no AddressSanitizer");
            None
        }
    }
}

#[test]
fn bad_calls_touch_no_memory_that_is_not_theirs_and_leak_nothing() {
    if let Some(mut program) = build_with_asan("sweep_asan", SWEEP) {
        run(program.args([sweep_calls("20000", "200000"), "2"]));
    }
}

#[test]
fn a_failure_of_any_call_of_the_device_is_told_and_leaves_nothing_behind() {
    for how in ["oom", "device", "lost", "panic"] {
        for parameter in ["", "virtual=0&"] {
            if let Some(mut program) = build_with_asan(&format!("faults_{how}"), &["faults.c"]) {
                run(program.args([how, parameter]));
            }
        }
    }
}

#[test]
fn device_memory_is_given_out_ordered_refused_and_given_back() {
    if there_is("cc", "cc") {
        run(&mut Command::new(build("memory", &["memory.c"])));
    }
}

#[test]
fn memory_goes_when_the_device_is_done_with_it_however_its_manager_is_destroyed() {
    if there_is("cc", "cc") {
        let program = build("destroy", &["destroy.c"]);
        run(&mut Command::new(&program));
        run(Command::new(&program).env("KAVERN_TEST_DEVICE", "host?virtual=0"));
    }
}

#[test]
fn the_books_hold_what_is_taken_by_every_way_and_the_report_lists_it() {
    if !there_is("cc", "cc") {
        return;
    }
    let output = run(&mut Command::new(build("ledger", &["ledger.c"])));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("the report is JSON");
    let text = String::from_utf8_lossy(&output.stdout);
    // Of two equal keys of one object a parser keeps the last, and what it writes again is shorter.
    assert_eq!(report.to_string().len(), text.trim_end().len(), "no key stands twice in an object: {text}");
    let live = report["allocator"]["live"].as_array().expect("a list of blocks");
    let weights = live.iter().find(|block| block["tag"] == "weights").expect("each block has its tag");
    assert_eq!((live.len(), &weights["bytes"], &weights["stream"]), (2, &1000.into(), &0.into()));
    assert!(weights["address"].as_u64() > Some(0) && weights["age_ms"].is_u64(), "{weights}");
    let listed: u64 = live.iter().filter_map(|block| block["bytes"].as_u64()).sum();
    assert_eq!(report["allocator"]["live_bytes"], listed);
    let direct = report["memory"]["live"].as_array().expect("a list of allocations");
    let device = direct.iter().filter(|one| one["place"] == "device");
    let batches: u64 = device.filter_map(|one| one["bytes"].as_u64()).sum();
    assert_eq!(report["pools"][0]["held_bytes"], batches, "a pool's batches are direct allocations");
    assert_eq!(report["pools"][0]["requested_bytes"], 5);
    let acquired = report["pools"][0]["live"].as_array().expect("a list of blocks in use");
    assert_eq!(
        (acquired.len(), &acquired[0]["bytes"], &acquired[0]["block_bytes"]),
        (1, &5.into(), &(1 << 20).into())
    );
    assert!(
        acquired[0]["age_ms"].as_u64() < Some(600_000) && acquired[0]["address"].is_u64(),
        "{acquired:?}"
    );
    let pinned = direct.iter().find(|one| one["place"] == "pinned").expect("pinned memory is listed");
    assert_eq!((&pinned["tag"], &pinned["bytes"]), (&"staging".into(), &12345.into()));
    let model = &report["shared_pools"][0]["models"][0];
    for one in [pinned, &report["elastic"][0], model] {
        assert!(one["age_ms"].as_u64().is_some_and(|age_ms| age_ms < 600_000), "{one}");
        assert!(one.get("stream").is_none(), "all streams may use it: {one}");
    }
    assert_eq!(report["elastic"][0]["committed_bytes"], 6 << 20);
    let counts = ["hits", "misses", "made_ahead", "passed_on_mappings", "stale_mappings", "failed_unmaps"];
    assert!(counts.iter().all(|name| report["pages"][name].is_u64()), "{}", report["pages"]);
    assert!(report["pages"]["held_bytes"].as_u64() >= Some(16 << 20), "{}", report["pages"]);
    let counts = ["retained_bytes", "looks", "idle_flushes", "moved_pages", "meshes", "refusals"];
    assert!(counts.iter().all(|name| report["allocator"][name].is_u64()), "{}", report["allocator"]);
    let steps = ["own_caches", "fences", "trims", "stream_waits", "rooms", "host_waits"];
    let steps = steps.map(|step| format!("ladder_{step}"));
    assert!(steps.iter().all(|name| report["allocator"][name].is_u64()), "{}", report["allocator"]);
    assert_eq!(report["shared_pools"][0]["models"][0]["name"], "chat");
    assert_eq!(report["shared_pools"][0]["models"][0]["committed_bytes"], 10 << 20);
    assert_eq!(report["pinned_pool"]["live_bytes"], 12345);
}

#[test]
fn soft_limits_and_budgets_of_the_machine_hold() {
    if there_is("cc", "cc") {
        run(&mut Command::new(build("limits", &["limits.c"])));
    }
}

#[test]
fn a_log_callback_may_use_what_the_news_is_about() {
    if there_is("cc", "cc") {
        run(&mut Command::new(build("log", &["log.c"])));
    }
}

#[test]
fn a_log_callback_may_use_the_pool_whose_thread_it_hears() {
    if there_is("cc", "cc") {
        let program = build("log_pinned", &["log_pinned.c"]);
        for what in ["allocate", "reserve", "destroy"] {
            run(Command::new(&program).arg(what));
        }
    }
}

#[test]
fn the_programs_with_a_graph_are_for_a_gpu_and_say_so() {
    if !there_is("cc", "cc") {
        return;
    }
    for (program, source) in
        [("graph", "graph.c"), ("graph_memory", "graph_memory.c"), ("captures", "captures.c")]
    {
        let output = run(&mut Command::new(build(program, &[source])));
        assert!(said(&output).contains("left out"), "{}", said(&output));
    }
}

#[test]
fn an_engine_finds_its_own_race_on_a_simulated_device() {
    if !there_is("cc", "cc") {
        return;
    }
    let output = run(&mut Command::new(build("01_sim_race", &["../../examples/01_sim_race.c"])));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let reports: Vec<serde_json::Value> =
        text.lines().filter_map(|line| serde_json::from_str(line.split_once(": ")?.1).ok()).collect();
    assert_eq!(reports.len(), 2, "{text}");
    assert_eq!(reports[0]["counts"]["read_after_write"], 1, "{text}");
    assert_eq!(reports[0]["findings"][0]["who"]["operation"], "sim_launch", "{text}");
    assert_eq!(
        (&reports[1]["races"], &reports[1]["findings"]),
        (&0.into(), &serde_json::json!([])),
        "{text}"
    );
}

#[test]
fn valgrind_finds_nothing_in_bad_calls() {
    if !there_is("cc", "cc") || !there_is("valgrind", "valgrind") {
        return;
    }
    let program = build("sweep_valgrind", SWEEP);
    let mut valgrind = Command::new("valgrind");
    valgrind.args([
        "--quiet",
        "--error-exitcode=99",
        "--leak-check=full",
        "--errors-for-leak-kinds=definite",
    ]);
    run(valgrind.arg(program).args([sweep_calls("500", "10000"), "3"]));
}
