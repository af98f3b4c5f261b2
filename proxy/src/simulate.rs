//! `vllm-proxy simulate`: a trace replayed against simulated servers, to compare policies.
//!
//! Owns the options, files and the terminal; what happens in there is `vllm-proxy-sim`'s.

mod args;
mod fault;
mod progress;

pub(crate) use args::Args;

use crate::cli;
use crate::usage::UsageError;
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
use vllm_proxy_sim::trace::Workload;
use vllm_proxy_sim::world::{self, Outcome, Setup};

/// What is to be simulated, checked and read.
pub(crate) struct Plan {
    title: String,
    workload: Workload,
    args: Args,
}

/// Reads the trace and checks what clap cannot.
pub(crate) fn plan(mut args: Args) -> Result<Plan, UsageError> {
    let workload = args.workload()?;
    let rate = args.rate;
    let title = format!(
        "{} requests of {}, {} servers ({}), {rate} requests/s each",
        workload.requests.len(),
        args.trace,
        args.backends,
        args.gpu,
    );
    Ok(Plan { title, workload, args })
}

/// Simulates and prints.
pub(crate) fn run(plan: &Plan) -> ExitCode {
    let outcomes = simulate(plan);
    let bounds = plan.args.bounds(&plan.workload);
    let named = || plan.args.policies.iter().zip(&outcomes);
    let summaries: Vec<_> =
        named().map(|(policy, outcome)| Summary::of(policy.name, outcome, bounds)).collect();
    if let Some(directory) = &plan.args.plot
        && let Err(error) = plot(directory, &plan.title, &plan.args.policies, &outcomes)
    {
        let error = format!("cannot write to {}: {error}", directory.display());
        return cli::complain(&error, crate::FAILED);
    }
    if plan.args.json {
        return cli::print(&json(plan, bounds, &summaries));
    }
    cli::print(&format!(
        "{}\nhit ratio of one cache of all memory {:.4}, of one without limit {:.4}\n\n{}",
        plan.title,
        bounds.pool,
        bounds.inf,
        report::table(&summaries)
    ))
}

/// Runs all policies, each in a world of its own; the results are in their order.
fn simulate(plan: &Plan) -> Vec<Outcome> {
    let setup = plan.args.setup(&plan.workload);
    let policies = &plan.args.policies;
    let progress = Progress::new(policies.len() * plan.workload.requests.len());
    let next = AtomicUsize::new(0);
    let outcomes: Mutex<Vec<Option<Outcome>>> = Mutex::new(vec![None; policies.len()]);
    let work = || {
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            let Some(policy) = policies.get(place) else { break };
            let outcome = one(&setup, policy, plan.args.proxies, &progress);
            outcomes.lock().unwrap_or_else(PoisonError::into_inner)[place] = Some(outcome);
        }
    };
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let jobs = plan.args.jobs.unwrap_or(cores).min(policies.len());
    thread::scope(|scope| {
        for _ in 1..jobs {
            scope.spawn(work);
        }
        work();
    });
    progress.finish();
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

fn json(plan: &Plan, bounds: Bounds, runs: &[Summary]) -> String {
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
        trace: &plan.args.trace,
        requests: plan.workload.requests.len(),
        backends: plan.args.backends,
        gpu: &plan.args.gpu,
        rate: plan.args.rate,
        seed: plan.args.seed,
        hit_pool: bounds.pool,
        hit_inf: bounds.inf,
        runs,
    };
    let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
    text.push('\n');
    text
}
