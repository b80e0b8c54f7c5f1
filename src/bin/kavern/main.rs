//! `kavern`: the command beside the library.
//!
//! It uses the library through its C ABI, as any other program would; abi.rs is the one file that calls it. A verb is
//! one file. Results go to stdout, everything else to stderr.
#![deny(unsafe_code)]

#[expect(unsafe_code, reason = "the one file that calls the C functions")]
mod abi;
mod alloc_generate;
mod alloc_trace;
mod bound;
mod curve;
mod failure;
mod generate;
mod internet;
mod keys;
mod number;
mod player;
mod prefix_tree;
mod replay;
mod replay_alloc;
mod scale;
mod screen;
mod summary;
mod timed;
mod trace;
mod workload;
mod zstd;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

/// Kavern: GPU memory and KV caches for inference engines
#[derive(Parser)]
#[command(name = "kavern", arg_required_else_help = true, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

/// One verb, one file.
#[derive(Subcommand)]
enum Verb {
    Replay(replay::Replay),
    ReplayAlloc(replay_alloc::ReplayAlloc),
}

fn main() -> ExitCode {
    let (version, build) = abi::version();
    // Made once and needed to the end; the parser takes only constants.
    let version: &'static str = Box::leak(format!("{version}\n{build}").into_boxed_str());
    let command = Cli::command().version(version);
    let outcome = match command.try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(Cli { verb: Verb::Replay(replay) }) => replay.run(),
        Ok(Cli { verb: Verb::ReplayAlloc(replay) }) => replay.run(),
        // Help and the version are results too; a complaint that nobody can read stays one.
        Err(text) => match text.print() {
            Err(error) if !text.use_stderr() => Err(error.into()),
            _ => return ExitCode::from(if text.use_stderr() { 2 } else { 0 }),
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = failure.to_string();
            if !text.is_empty() {
                screen::complain(&text);
            }
            failure.exit_code()
        }
    }
}
