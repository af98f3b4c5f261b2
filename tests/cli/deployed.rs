//! What is deployed agrees with the program: variables, ports, how long a stop may take, versions.
//!
//! Reads `deploy/` and the Dockerfile as text; whether they are well formed is for
//! `tests/deploy/manifests`.

use super::run;
use rstest::rstest;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A stop may take as long as it may, and so many seconds more.
const SLACK_SECONDS: u64 = 5;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// All that is deployed, by path.
fn deployed() -> Vec<(String, String)> {
    let mut directories = vec![root().join("deploy")];
    let mut files = vec![("Dockerfile".to_owned(), read("Dockerfile"))];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                let text = fs::read_to_string(&path).unwrap();
                files.push((path.display().to_string(), text));
            }
        }
    }
    assert!(files.len() > 10, "what is deployed is not where it was");
    files
}

fn help() -> String {
    String::from_utf8(run(&["server", "--help"], &[]).stdout).unwrap()
}

/// What `--help` says a variable is without anybody saying so.
fn default_of(variable: &str) -> u64 {
    let help = help();
    let start = format!("[variable: {variable}] [default: ");
    let (_, rest) = help.split_once(&start).expect(variable);
    rest.split(']').next().unwrap().parse().unwrap()
}

fn variables(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices("VLLM_PXY_").map(|(at, _)| {
        let rest = &text[at..];
        let end = rest.find(|c: char| !c.is_ascii_uppercase() && c != '_');
        &rest[..end.unwrap_or(rest.len())]
    })
}

#[test]
fn variables_are_known_to_the_program() {
    let help = help();
    let known: BTreeSet<_> = variables(&help).collect();
    for (path, text) in deployed() {
        for variable in variables(&text) {
            assert!(known.contains(variable), "{variable} in {path}");
        }
    }
}

#[rstest]
#[case::image("Dockerfile", "docker stop -t ")]
#[case::compose("deploy/compose.yaml", "stop_grace_period: ")]
#[case::compose_mock("deploy/compose.mock.yaml", "stop_grace_period: ")]
#[case::kubernetes("deploy/kubernetes/base/proxy.yaml", "terminationGracePeriodSeconds: ")]
#[case::systemd("deploy/systemd/vllm-proxy.service", "TimeoutStopSec=")]
fn a_stop_gets_the_time_it_may_take(#[case] path: &str, #[case] key: &str) {
    let seconds =
        default_of("VLLM_PXY_DRAIN_GRACE") + default_of("VLLM_PXY_DRAIN_TIMEOUT") + SLACK_SECONDS;
    let text = read(path);
    let given: Vec<u64> = text
        .match_indices(key)
        .map(|(at, _)| {
            let digits = text[at + key.len()..].split(|c: char| !c.is_ascii_digit()).next();
            digits.unwrap().parse().unwrap()
        })
        .collect();
    assert!(!given.is_empty(), "{path} does not say how long a stop may take");
    assert!(given.iter().all(|given| *given == seconds), "{given:?} in {path}, not {seconds}");
}

#[test]
fn ports_are_the_documented_ones() {
    let port = default_of("VLLM_PXY_PORT");
    let proxy = read("deploy/kubernetes/base/proxy.yaml");
    assert!(proxy.contains(&format!("- name: http\n              containerPort: {port}\n")));
    // Where operators and probes come: the same port wherever it is said.
    assert!(proxy.contains("value: \":8001\"") && proxy.contains("containerPort: 8001"));
    for path in ["deploy/compose.yaml", "deploy/compose.mock.yaml"] {
        let compose = read(path);
        assert!(compose.contains("VLLM_PXY_ADMIN: \":8001\""), "{path}");
        assert!(compose.contains("127.0.0.1:8002:8001"), "{path}");
    }
    assert!(read("Dockerfile").contains(&format!("EXPOSE {port}\n")));
    for path in ["deploy/haproxy.cfg", "deploy/nginx.conf"] {
        for name in ["proxy-1", "proxy-2"] {
            assert!(read(path).contains(&format!("{name}:{port}")), "{name} in {path}");
        }
    }
}

#[test]
fn versions_are_this_one() {
    let version = env!("CARGO_PKG_VERSION");
    let images = format!("image: vllm-proxy:{version}\n");
    for path in ["deploy/compose.yaml", "deploy/compose.mock.yaml"] {
        assert!(read(path).contains(&images), "{path}");
    }
    let base = read("deploy/kubernetes/base/kustomization.yaml");
    assert!(base.contains(&format!("newTag: \"{version}\"\n")), "{base}");
    let image = read("Dockerfile");
    assert!(image.contains(&format!("image.version=\"{version}\"")), "{image}");
    // The compiler that the workspace asks for.
    let rust = env!("CARGO_PKG_RUST_VERSION");
    assert!(image.contains(&format!("RUST_IMAGE=rust:{rust}.")), "{image}");
    let changes = read("CHANGELOG.md");
    assert!(changes.contains(&format!("## [{version}]")), "CHANGELOG.md does not know {version}");
}

/// Kustomize takes no file from outside of an overlay, and nothing else makes one of the other.
#[test]
fn rules_are_the_same_in_kubernetes() {
    let indented = |line: &str| if line.is_empty() { String::new() } else { format!("  {line}") };
    let rules = read("deploy/alerts.yaml");
    let (_, rules) = rules.split_once("\ngroups:\n").unwrap();
    let rules: Vec<_> = rules.lines().map(indented).collect();
    let operator = read("deploy/kubernetes/overlays/prometheus-operator/prometheusrule.yaml");
    let (_, taken) = operator.split_once("\nspec:\n  groups:\n").unwrap();
    for (taken, rule) in taken.lines().zip(&rules) {
        assert_eq!(taken, rule);
    }
    assert_eq!(taken.lines().count(), rules.len());
}

/// What the Prometheus operator is told to look for is what the base calls its Service.
#[test]
fn the_monitor_finds_the_proxies() {
    let monitor = read("deploy/kubernetes/overlays/prometheus-operator/servicemonitor.yaml");
    let (_, labels) = monitor.split_once("    matchLabels:\n").unwrap();
    let (labels, endpoint) = labels.split_once("  endpoints:\n    - port: ").unwrap();
    let labels: Vec<_> = labels.lines().map(str::trim).collect();
    let port = endpoint.lines().next().unwrap();
    let base = read("deploy/kubernetes/base/proxy.yaml");
    let found: Vec<_> = base
        .split("\n---\n")
        .filter(|object| object.contains("kind: Service\n"))
        .filter(|service| {
            let (metadata, _) = service.split_once("\nspec:\n").unwrap();
            labels.iter().all(|label| metadata.lines().any(|line| line.trim() == *label))
        })
        .collect();
    assert_eq!((labels.len(), found.len()), (2, 1));
    assert!(found[0].contains("name: vllm-proxy-admin\n"), "its name is the job of its metrics");
    assert!(found[0].contains(&format!("    - name: {port}\n")), "{port} is none of its ports");
    assert!(read("deploy/alerts.yaml").contains("up{job=~\"vllm-proxy.*\"}"));
}
