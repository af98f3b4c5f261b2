//! What is printed and nothing else: the version, the README, completions, for readers who may
//! leave. Completions are tried in a real bash.

use super::{command, run};
use rstest::rstest;
use std::io::Write;
use std::process::{Command, Stdio};

fn printed(line: &str) -> String {
    // Whatever the variables say.
    let arguments: Vec<_> = line.split(' ').collect();
    let output = run(&arguments, &[("VLLM_PXY_PORT", "x")]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn features() -> String {
    let built_in = [("glommio", cfg!(feature = "glommio")), ("smol", cfg!(feature = "smol"))];
    let names: Vec<_> = built_in.iter().filter(|(_, is)| *is).map(|(name, _)| *name).collect();
    names.join(", ")
}

#[test]
fn readme_is_printed() {
    assert_eq!(printed("readme"), include_str!("../../README.md"));
}

#[test]
fn the_version_is_one_line_or_many() {
    let (number, features) = (env!("CARGO_PKG_VERSION"), features());
    let line = printed("-V");
    let rest = line.strip_prefix(&format!("vllm-proxy {number} (")).expect(&line);
    let commit = rest.strip_suffix(&format!(", {features})\n")).expect(&line);
    let digits = commit.strip_suffix("-dirty").unwrap_or(commit);
    let is_hash = digits.len() >= 12 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    // Sources without a repository, or a name given to the build.
    let is_word = commit == "unknown" || option_env!("VLLM_PROXY_COMMIT").is_some();
    assert!(is_hash || is_word, "{line}");

    let lines = printed("--version");
    let lines: Vec<_> = lines.lines().collect();
    assert_eq!(lines[0], format!("vllm-proxy {number}"));
    assert!(lines[1].starts_with(&format!("commit: {commit}")), "{lines:?}");
    assert_eq!(lines[2], format!("features: {features}"));
    assert!(lines[3].starts_with("target: ") && lines[3].contains(std::env::consts::ARCH));
    assert!(lines[4].starts_with("rustc: 1."), "{lines:?}");
    assert_eq!(lines.len(), 5);
}

#[rstest]
#[case::readme("readme")]
#[case::help("--help")]
#[case::version("--version")]
#[case::completions("completions bash")]
fn a_reader_who_leaves_is_no_error(#[case] line: &str) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let arguments: Vec<_> = line.split(' ').collect();
    let output = command(&arguments, &[]).stdout(writer).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[rstest]
#[case::bash("bash")]
#[case::elvish("elvish")]
#[case::fish("fish")]
#[case::powershell("powershell")]
#[case::zsh("zsh")]
fn every_shell_is_told_of_every_subcommand(#[case] shell: &str) {
    let script = printed(&format!("completions {shell}"));
    for name in ["server", "readme", "demo", "mock", "simulate", "health", "completions"] {
        assert!(script.contains(name), "{name} in {script}");
    }
    assert!(script.contains("drain-timeout") && script.contains("least-load"), "{script}");
}

/// What bash offers for the last word of a line.
fn offered(line: &str) -> Vec<String> {
    const DRIVER: &str = r#"
        read -ra COMP_WORDS <<<"$LINE"
        [[ $LINE == *' ' ]] && COMP_WORDS+=('')
        COMP_LINE=$LINE COMP_POINT=${#LINE} COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        [[ $(complete -p vllm-proxy) =~ -F\ ([^ ]+) ]] || exit 3
        "${BASH_REMATCH[1]}" vllm-proxy "${COMP_WORDS[COMP_CWORD]}" \
          "${COMP_WORDS[COMP_CWORD - 1]}" || exit 4
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let script = printed("completions bash") + DRIVER;
    let mut bash = Command::new("bash");
    bash.args(["--norc", "--noprofile", "-s"]).env("LINE", line);
    let mut bash = bash.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    bash.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = bash.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let words = String::from_utf8(output.stdout).unwrap();
    words.lines().filter(|word| !word.is_empty()).map(ToOwned::to_owned).collect()
}

#[rstest]
#[case::subcommand("vllm-proxy se", &["server"])]
#[case::subcommand_after_global("vllm-proxy -L json simu", &["simulate"])]
#[case::option("vllm-proxy server --drain-", &["--drain-grace", "--drain-timeout"])]
#[case::global_behind("vllm-proxy server --log", &["--log-format"])]
#[case::global_before("vllm-proxy --log", &["--log-format"])]
#[case::policy("vllm-proxy server --policy ", &["cache-aware", "least-load", "round-robin"])]
#[case::policy_begun("vllm-proxy server --policy le", &["least-load"])]
#[case::format("vllm-proxy server -L ", &["txt", "json", "yaml"])]
#[case::gpu("vllm-proxy mock --gpu h", &["h100"])]
#[case::shell("vllm-proxy completions z", &["zsh"])]
fn bash_completes(#[case] line: &str, #[case] expected: &[&str]) {
    assert_eq!(offered(line), expected);
}

#[test]
fn bash_completes_runtimes_that_are_built_in() {
    let mut names = offered("vllm-proxy server --runtime ");
    names.sort();
    assert_eq!(names.join(", "), features());
}
