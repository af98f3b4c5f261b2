//! `vllm-proxy simulate` as users meet it: what it prints, what it refuses, what it draws.

#![expect(clippy::unwrap_used, reason = "what a test needs and does not get fails it")]

use rstest::rstest;
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

const TRACE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../sim/tests/mooncake/conversation-400.jsonl");

fn simulate(arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vllm-proxy"));
    command.env_clear().arg("simulate").args(arguments.split_whitespace());
    command.stdin(Stdio::null()).output().unwrap()
}

fn printed(arguments: &str) -> String {
    let output = simulate(arguments);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A path below the system's directory for temporary files that nobody else uses.
fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("vllm-proxy-simulate-{}-{name}", std::process::id()))
}

#[rstest]
#[case::made_up("tool --requests 300 --rate 3 --policy all")]
#[case::everything(
    "conversation --requests 200 -n 3 --rate 2 --proxies 2 --streaming 0.5 \
    --leaving 0.2 --sigma 0.3 --slow 1 --fault down:0@30 --fault up:0@60 --gpu a100 --json"
)]
fn the_same_command_line_prints_the_same_bytes(#[case] arguments: &str) {
    let once = printed(arguments);
    assert_eq!(once, printed(&format!("{arguments} --jobs 1")));
    assert_ne!(once, printed(&format!("{arguments} --seed 2")));
}

#[test]
fn proxies_hear_each_other_after_a_while_or_never() {
    let lines = |how: &str| {
        let table =
            printed(&format!("tool --requests 300 -n 4 --rate 3 --policy cache-aware {how}"));
        table.lines().last().unwrap().to_owned()
    };
    let one = lines("");
    assert_eq!(lines("--proxies 4 --lag 1"), lines("--proxies 4"));
    let late = lines("--proxies 4 --lag 2000");
    let never = lines("--proxies 4 --isolated");
    assert!(late != one && never != one && late != never);
    assert_eq!(lines("--isolated"), one, "there is nobody to be heard");
}

/// What may happen between three proxies, each of which makes another run of it.
#[rstest]
#[case::killed("--redis-fault killed@20-60")]
#[case::hung("--redis-fault hung@20-60")]
#[case::slow("--redis-fault slow:500@20-60")]
#[case::cut("--redis-fault cut:1@20-60")]
#[case::dies("--redis-fault dies:2@50")]
#[case::restarts("--redis-fault restarts:0@50")]
#[case::restarts_and_nothing_is_kept(
    "--redis-fault flushed@49 --redis-fault full@49 --redis-fault restarts:0@50 \
    --redis-fault restarts:1@50 --redis-fault restarts:2@50-51"
)]
#[case::gathered_for_long("--gather 200")]
#[case::told_at_once("--gather 0")]
fn what_happens_between_proxies_makes_a_difference(#[case] options: &str) {
    let usual = "tool --requests 300 -n 4 --rate 3 --proxies 3 --policy cache-aware,smg --lag 2";
    let once = printed(&format!("{usual} {options}"));
    assert_ne!(once, printed(usual), "{options}");
    assert_eq!(once, printed(&format!("{usual} {options} --jobs 1")), "{options}");
}

/// Who starts anew knows what was kept in Redis, unless that is lost.
#[test]
fn the_only_proxy_knows_after_its_start_what_was_kept() {
    let hit = |faults: &str| {
        let text = printed(&format!(
            "conversation --requests 1000 --rate 0.6 --policy cache-aware --json {faults}"
        ));
        let document: Value = serde_json::from_str(&text).unwrap();
        document["runs"][0]["hit"].as_f64().unwrap()
    };
    let (usual, kept) = (hit(""), hit("--redis-fault restarts:0@50"));
    let lost = hit("--redis-fault full@0 --redis-fault restarts:0@50");
    assert!(kept > usual - 0.02 && lost < kept - 0.05, "{usual} {kept} {lost}");
}

#[test]
fn a_table_has_a_line_for_each_policy() {
    let table = printed(&format!("{TRACE} --requests 100 --policy least-load,smg,least-load"));
    let lines: Vec<_> = table.lines().collect();
    assert!(lines[0].starts_with("100 requests of "), "{table}");
    assert!(lines[0].ends_with("400.jsonl, 8 servers (h100), 0.5 requests/s each"), "{table}");
    assert!(lines[1].starts_with("hit ratio of one cache of all memory 0."), "{table}");
    let names: Vec<_> = lines[3..].iter().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names, ["policy", "least-load", "smg"]);
}

#[test]
fn json_says_the_same() {
    let text = printed("hot --requests 100 -n 2 --rate 1 --json --kv-tokens 0");
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&document["trace"], &document["requests"]), (&"hot".into(), &100.into()));
    let runs = document["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 3);
    for run in runs {
        assert_eq!((&run["done"], &run["lost"]), (&100.into(), &0.into()));
        assert!(run["ttft_us"]["p90"].as_u64().unwrap() > 7_000);
        assert!(run["hit_of_pool"].as_f64().unwrap() > 0.9);
    }
}

/// Two turns of a chat: 40 tokens of prompt, 25 of answer, and then 40 more of prompt.
#[rstest]
#[case::answers_known(", \"output_hash_ids\": [4, 5]", 64)]
#[case::answers_unknown("", 32)]
fn blocks_are_as_small_as_told(#[case] answer: &str, #[case] cached: u32) {
    let file = scratch(&format!("blocks-{cached}.jsonl"));
    let lines = format!(
        "{{\"timestamp\": 0, \"input_length\": 40, \"output_length\": 25, \
         \"hash_ids\": [1, 2, 3]{answer}}}\n{{\"timestamp\": 5000, \"input_length\": 105, \
         \"output_length\": 1, \"hash_ids\": [1, 2, 4, 5, 6, 7, 8]}}\n"
    );
    std::fs::write(&file, lines).unwrap();
    let arguments = "--block-tokens 16 --backends 1 --rate 0.2 --policy cache-aware --json";
    let document: Value =
        serde_json::from_str(&printed(&format!("{} {arguments}", file.display()))).unwrap();
    let hit = f64::from(cached) / 145.0;
    for found in [&document["hit_inf"], &document["hit_pool"], &document["runs"][0]["hit"]] {
        assert!((found.as_f64().unwrap() - hit).abs() < 1e-9, "{document}");
    }
    std::fs::remove_file(file).unwrap();
}

/// The constants of the simulated server, one by one: each makes another machine of it.
#[rstest]
#[case::step("--step-ms 20")]
#[case::prefill("--prefill-rate 6000.5")]
#[case::decode("--decode-us 100")]
#[case::context("--context-us 90")]
#[case::tokens("--max-num-batched-tokens 512")]
#[case::requests("--max-num-seqs 2")]
#[case::memory("--kv-tokens 30000")]
#[case::speed("--speed 100,40")]
#[case::slow("--slow 1")]
#[case::caching("--no-prefix-caching")]
#[case::bursts("--bursts")]
#[case::usage("--usage most")]
#[case::metrics("--usage none --no-prefix-caching --no-cache-metrics")]
#[case::drained("--fault leave:1@20 --fault join:1@80")]
#[case::flapping("--fault flap:0@10")]
fn every_option_makes_a_difference(#[case] options: &str) {
    let usual = "tool --requests 200 -n 2 --rate 3 --policy cache-aware,smg";
    assert_ne!(printed(&format!("{usual} {options}")), printed(usual), "{options}");
}

#[test]
fn fleets_of_several_sizes_share_the_traffic() {
    let text = printed("hot --requests 300 --total-rate 24 -n 2,4,8 --policy least-load --json");
    let documents: Value = serde_json::from_str(&text).unwrap();
    let documents = documents.as_array().unwrap();
    let sizes: Vec<_> = documents.iter().map(|one| one["backends"].as_u64().unwrap()).collect();
    assert_eq!(sizes, [2, 4, 8]);
    let waits = documents.iter().map(|one| one["runs"][0]["ttft_us"]["p90"].as_u64().unwrap());
    let waits: Vec<_> = waits.collect();
    assert!(waits[0] > waits[1] && waits[1] > waits[2], "{waits:?}");
    let table = printed("hot --requests 60 --total-rate 24 -n 2,4 --policy least-load");
    assert!(table.contains("\n\n60 requests of hot, 4 servers (h100), 6 requests/s each\n"));
}

#[test]
fn pictures_are_drawn() {
    let directory = scratch("pictures").join("below");
    let arguments = format!("uniform --requests 50 --policy smg --plot {}", directory.display());
    printed(&arguments);
    for name in ["ttft.svg", "load-smg.svg"] {
        let picture = std::fs::read_to_string(directory.join(name)).unwrap();
        assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
    }
    std::fs::remove_dir_all(directory.parent().unwrap()).unwrap();
}

#[test]
fn lengths_without_contents_will_do() {
    let file = scratch("azure.csv");
    let rows: String =
        (0..20).map(|row| format!("2023-11-16 18:15:{:02}.5,1000,20\n", row * 2)).collect();
    std::fs::write(&file, format!("TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}")).unwrap();
    let table = printed(&file.display().to_string());
    assert!(table.contains("all memory 0.0000, of one without limit 0.0000"), "{table}");
    std::fs::remove_file(file).unwrap();
}

#[rstest]
#[case::no_trace("", "missing TRACE: expected a file, or one of tool, uniform, ")]
#[case::no_file("nowhere", "`nowhere` for TRACE: expected a trace, or one of tool, ")]
#[case::no_trace_in_it("Cargo.toml", "for TRACE: expected a trace, or one of ")]
#[case::line("Cargo.toml", "(line 1: expected {\"timestamp\": milliseconds, ")]
#[case::policy("tool --policy best", "`best` for --policy: ")]
#[case::second_policy("tool --policy smg,best", "`best` for --policy: ")]
#[case::rate("tool --rate 0", "`0` for --rate: ")]
#[case::rate_nan("tool --rate NaN", "`NaN` for --rate: ")]
#[case::backends("tool --backends 0", "`0` for --backends: ")]
#[case::gpu("tool --gpu h200", "`h200` for --gpu: ")]
#[case::block_tokens("tool --block-tokens 0", "`0` for --block-tokens: ")]
#[case::blocks_made_up("tool --block-tokens 17", "`17` for --block-tokens: expected a trace with ")]
#[case::part("tool --leaving 2", "`2` for --leaving: ")]
#[case::fault("tool --fault explode:1@2", "`explode:1@2` for --fault: ")]
#[case::sizes("tool -n 4,0", "`0` for --backends: ")]
#[case::two_rates("tool --rate 1 --total-rate 2", "cannot be used with")]
#[case::usage("tool --usage lies", "`lies` for --usage: ")]
#[case::step("tool --step-ms 0", "`0` for --step-ms: ")]
#[case::fault_in_the_smallest("tool -n 8,4 --fault down:4@1", "expected a server from 0 to 3")]
#[case::fault_elsewhere("tool --fault down:8@50", "`8` for --fault: expected a server from 0 to 7")]
#[case::lag("tool --lag 60001", "`60001` for --lag: ")]
#[case::isolated("tool --lag 1 --isolated", "wrong use of --lag")]
#[case::gather("tool --gather x", "`x` for --gather: ")]
#[case::redis_fault("tool --redis-fault lost@5", "`lost@5` for --redis-fault: ")]
#[case::no_such_proxy(
    "tool --proxies 2 --redis-fault dies:2@5",
    "`2` for --redis-fault: expected a proxy from 0 to 1"
)]
#[case::one_proxy("tool --redis-fault cut:1@5", "`1` for --redis-fault: expected proxy 0, as ")]
#[case::isolated_faults("tool --isolated --redis-fault hung@5", "wrong use of --isolated")]
#[case::another_argument("tool hot", "unexpected argument")]
#[case::global("tool -L xml", "`xml` for --log-format: ")]
fn what_is_wrong_is_said_in_a_line(#[case] arguments: &str, #[case] expected: &str) {
    let output = simulate(arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(output.stdout.is_empty() && said.matches('\n').count() == 1, "{said}");
    assert!(said.contains(expected), "{said}");
}

#[test]
fn what_cannot_be_drawn_fails() {
    let output = simulate("hot --requests 10 --plot /dev/null/below");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("vllm-proxy: cannot write to /dev/null/below: "), "{said}");
}

#[test]
fn help_names_every_kind_and_fits() {
    let help = printed("--help");
    for name in [
        "tool",
        "zipf-flip",
        "llmd-affinity",
        "dynamo-2",
        "--plot",
        "--redis-fault",
        "Examples:",
        "TPOT",
    ] {
        assert!(help.contains(name), "{name} in {help}");
    }
    assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
}
