//! `vllm-proxy simulate`: a trace replayed against simulated servers, to compare policies.
//!
//! Owns the options, files and the terminal; what happens in there is `vllm-proxy-sim`'s.

mod args;
mod company;
mod fault;
mod mishap;
mod progress;
mod servers;

pub(crate) use args::Args;

use crate::cli;
use crate::usage::UsageError;
use args::Fleet;
use progress::Progress;
use serde::Serialize;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use vllm_proxy_sim::policies::Named;
use vllm_proxy_sim::report::{self, Bounds, Summary};
use vllm_proxy_sim::world::{self, Outcome, Setup};

/// What is to be simulated, checked and read.
pub(crate) struct Plan {
    fleets: Vec<Fleet>,
    args: Args,
}

/// Reads the trace and checks what clap cannot.
pub(crate) fn plan(mut args: Args) -> Result<Plan, UsageError> {
    Ok(Plan { fleets: args.fleets()?, args })
}

/// Simulates and prints.
pub(crate) fn run(plan: &Plan) -> ExitCode {
    let Plan { fleets, args } = plan;
    let requests: usize = fleets.iter().map(|fleet| fleet.workload.requests.len()).sum();
    let progress = Progress::new(args.policies.len() * requests);
    let mut parts = Vec::new();
    for fleet in fleets {
        let outcomes = simulate(args, fleet, &progress);
        if let Some(directory) = &args.plot {
            // Of one fleet they are where they are asked for.
            let below = fleet.backends.to_string();
            let directory =
                if fleets.len() == 1 { directory.clone() } else { directory.join(below) };
            if let Err(error) = plot(&directory, &title(args, fleet), &args.policies, &outcomes) {
                let error = format!("cannot write to {}: {error}", directory.display());
                return cli::complain(&error, crate::FAILED);
            }
        }
        parts.push(part(args, fleet, &outcomes));
    }
    progress.finish();
    let text = match &parts[..] {
        [part] => format!("{part}\n"),
        parts if args.json => format!("[{}]\n", parts.join(", ")),
        parts => format!("{}\n", parts.join("\n\n")),
    };
    cli::print(&text)
}

fn title(args: &Args, fleet: &Fleet) -> String {
    let Fleet { backends, rate, workload } = fleet;
    let (requests, trace, gpu) = (workload.requests.len(), &args.trace, args.gpu());
    format!("{requests} requests of {trace}, {backends} servers ({gpu}), {rate} requests/s each")
}

/// What is printed of one fleet, without the end of its last line.
fn part(args: &Args, fleet: &Fleet, outcomes: &[Outcome]) -> String {
    let bounds = args.bounds(fleet);
    let named = args.policies.iter().zip(outcomes);
    let summaries: Vec<_> =
        named.map(|(policy, outcome)| Summary::of(policy.name, outcome, bounds)).collect();
    if args.json {
        return json(args, fleet, bounds, &summaries);
    }
    format!(
        "{}\nhit ratio of one cache of all memory {:.4}, of one without limit {:.4}\n\n{}",
        title(args, fleet),
        bounds.pool,
        bounds.inf,
        report::table(&summaries).trim_end()
    )
}

/// Runs all policies, each in a world of its own; the results are in their order.
fn simulate(args: &Args, fleet: &Fleet, progress: &Progress) -> Vec<Outcome> {
    let setup = args.setup(fleet);
    let policies = &args.policies;
    let next = AtomicUsize::new(0);
    let outcomes: Mutex<Vec<Option<Outcome>>> = Mutex::new(vec![None; policies.len()]);
    let work = || {
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            let Some(policy) = policies.get(place) else { break };
            let outcome = one(&setup, policy, args.company.proxies, progress);
            outcomes.lock().unwrap_or_else(PoisonError::into_inner)[place] = Some(outcome);
        }
    };
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let jobs = args.jobs.unwrap_or(cores).min(policies.len());
    thread::scope(|scope| {
        for _ in 1..jobs {
            scope.spawn(work);
        }
        work();
    });
    let outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.into_iter().flatten().collect()
}

fn one(setup: &Setup<'_>, policy: &Named, proxies: usize, progress: &Progress) -> Outcome {
    // Proxies of one fleet differ in what they know, not in what they are.
    let routers = (0..proxies as u64).map(|proxy| policy.router(setup.seed.wrapping_add(proxy)));
    let mut before = 0;
    world::run(setup, routers.collect(), &mut |come, _all| {
        progress.add(come - before);
        before = come;
    })
}

fn plot(
    directory: &Path,
    title: &str,
    policies: &[&Named],
    outcomes: &[Outcome],
) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let runs: Vec<_> = policies.iter().map(|policy| policy.name).zip(outcomes).collect();
    std::fs::write(directory.join("ttft.svg"), report::waits(title, &runs))?;
    for (name, outcome) in runs {
        let title = format!("{name}: {title}");
        std::fs::write(directory.join(format!("load-{name}.svg")), report::loads(&title, outcome))?;
    }
    Ok(())
}

fn json(args: &Args, fleet: &Fleet, bounds: Bounds, runs: &[Summary]) -> String {
    #[derive(Serialize)]
    struct Document<'a> {
        trace: &'a str,
        requests: usize,
        backends: usize,
        gpu: &'a str,
        rate: f64,
        seed: u64,
        hit_pool: f64,
        hit_inf: f64,
        runs: &'a [Summary],
    }
    let document = Document {
        trace: &args.trace,
        requests: fleet.workload.requests.len(),
        backends: fleet.backends,
        gpu: args.gpu(),
        rate: fleet.rate,
        seed: args.seed,
        hit_pool: bounds.pool,
        hit_inf: bounds.inf,
        runs,
    };
    serde_json::to_string_pretty(&document).unwrap_or_default()
}
