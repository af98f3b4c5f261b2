//! The program `vllm-proxy`: parse, set up logs, run, exit status.

mod cli;
mod completions;
mod config;
mod demo;
mod health;
mod listen;
mod logging;
mod memory;
mod mock;
mod prober;
mod redis_url;
mod replica;
mod secret;
mod serve;
mod shared;
mod simulate;
mod stop;
mod upstream;
mod upstreams;
mod usage;
mod values;
mod version;

use crate::cli::Command;
use crate::config::Globals;
use std::process::ExitCode;

/// Could not start, or cut short.
const FAILED: u8 = 1;
/// The command line or a variable is wrong.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let (globals, command) = match cli::parse(std::env::args_os()) {
        Ok(parsed) => parsed,
        Err(stop) => return stop.finish(),
    };
    let env = config::environment;
    match command {
        // Whatever the variables say: who reads this may be about to learn what they mean.
        Command::Readme => match config::globals(&globals, &config::no_environment) {
            Ok(_) => cli::print(include_str!("../../README.md")),
            Err(error) => cli::complain(&error, USAGE),
        },
        Command::Completions(args) => {
            match config::globals(&globals, &config::no_environment)
                .and_then(|_| completions::script(&args))
            {
                Ok(script) => cli::print(&script),
                Err(error) => cli::complain(&error, USAGE),
            }
        }
        Command::Server(args) => match config::server(&globals, &args, &env) {
            Ok((globals, server)) => run(&globals, || serve::run(&globals, server)),
            Err(error) => cli::complain(&error, USAGE),
        },
        Command::Demo(args) => match config::globals(&globals, &env) {
            Ok(globals) => run(&globals, || demo::run(&globals, &args)),
            Err(error) => cli::complain(&error, USAGE),
        },
        Command::Mock(args) => match config::globals(&globals, &env) {
            Ok(globals) => run(&globals, || mock::run(args)),
            Err(error) => cli::complain(&error, USAGE),
        },
        Command::Simulate(args) => {
            match config::globals(&globals, &env).and_then(|_| simulate::plan(args)) {
                Ok(plan) => simulate::run(&plan),
                Err(error) => cli::complain(&error, USAGE),
            }
        }
        Command::Health(args) => match config::health(&globals, &args, &env) {
            Ok(address) => health::check(&address),
            Err(error) => cli::complain(&error, USAGE),
        },
    }
}

/// Runs what logs.
fn run(globals: &Globals, work: impl FnOnce() -> Result<(), String>) -> ExitCode {
    let started = logging::start(globals.level, globals.log_format)
        .map_err(|error| format!("cannot start the log: {error}"));
    serve::raise_descriptor_limit();
    let done = started.and_then(|()| work());
    logging::flush();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cli::complain(&error, FAILED),
    }
}
