//! What is printed and nothing else: the version, the README, for readers who may leave.

use super::{command, run};
use rstest::rstest;

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
fn a_reader_who_leaves_is_no_error(#[case] line: &str) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let arguments: Vec<_> = line.split(' ').collect();
    let output = command(&arguments, &[]).stdout(writer).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}
