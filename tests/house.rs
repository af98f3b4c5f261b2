//! What a machine can check of the house rules: who imports whom, what may be named where, how long
//! files are and how they begin. `architecture.md` and `style.md` give the reasons; clippy and
//! rustfmt check the rest.
//!
//! Reads the sources as text. That is crude, and enough: whoever tricks it does so on purpose.

use rstest::rstest;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Core's modules from left to right: imports point left only. What stands before `wire` is plain
/// data that anybody may use.
const LAYERS: [&str; 10] =
    ["time", "rng", "config", "tally", "wire", "fleet", "route", "engine", "exchange", "carry"];

/// Imports that point right, and why each may.
const LAYER_EXCEPTIONS: [(&str, &str); 13] = [
    // The words of a refusal are `route`'s, since the engine says them; how they look on the wire
    // is `answers`'s. The word is data and knows nothing of how it was come to.
    ("wire/answers.rs", "route::Refusal"),
    // The table of routes says who answers, what may be repeated and what changes, in the words in
    // which the engine is asked and told.
    ("wire/routes.rs", "route::Act"),
    ("wire/routes.rs", "route::Change"),
    ("wire/routes.rs", "route::Retry"),
    ("wire/routes.rs", "route::Who"),
    // What a body says is hashed where it is read, by `route`'s hash, which knows nothing of JSON.
    ("wire/scan.rs", "route::Fingerprint"),
    ("wire/scan/prompt.rs", "route::prompt"),
    ("wire/scan/render.rs", "route::prompt"),
    // Where a request's head goes: an authority and a prefix, as plain data.
    ("wire/forward.rs", "fleet::BackendSpec"),
    // Whose numbers these are, as the same plain data.
    ("wire/status.rs", "fleet::BackendSpec"),
    ("wire/status/json.rs", "fleet::BackendSpec"),
    ("wire/status/json.rs", "fleet::Address"),
    ("wire/facts/backends.rs", "fleet::Address"),
];

/// All that core may depend on: none of it can reach a socket, a clock, a file or a thread.
const CORE_DEPENDENCIES: [&str; 9] = [
    "base64",
    "hashbrown",
    "httparse",
    "log",
    "memchr",
    "rapidhash",
    "serde",
    "serde_json",
    "sha1_smol",
];

/// Lines of a file, its tests apart.
const LINES_MAX: usize = 500;

struct Source {
    /// From the root of the repository.
    path: String,
    text: String,
}

impl Source {
    /// What is no test: all before the module of tests at the foot.
    fn product(&self) -> &str {
        let foot = self.text.find("#[cfg(test)]\nmod tests {");
        foot.map_or(&*self.text, |at| &self.text[..at])
    }

    /// The product's lines with their numbers, comments apart.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.product().lines().enumerate().map(|(at, line)| (at + 1, line));
        lines.filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// Whether all of it is test code.
    fn is_test(&self) -> bool {
        let parts = || self.path.split('/');
        parts().any(|part| part == "tests" || part == "tests.rs")
            || self.path.ends_with("_tests.rs")
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the root").to_owned()
}

/// All Rust files below these directories.
fn sources(directories: &[&str]) -> Vec<Source> {
    fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
        let Ok(entries) = fs::read_dir(directory) else { return };
        for path in entries.map(|entry| entry.expect("a readable directory").path()) {
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                collect(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = root();
    let mut found = Vec::new();
    for directory in directories {
        collect(&root.join(directory), &mut found);
    }
    found.sort();
    let source = |path: PathBuf| Source {
        text: fs::read_to_string(&path).expect("sources are text"),
        path: path.strip_prefix(&root).expect("it lies below").display().to_string(),
    };
    found.into_iter().map(source).collect()
}

/// The sources of what is shipped, and of what simulates its surroundings.
fn product() -> Vec<Source> {
    let all =
        sources(&["core/src", "runtime-smol/src", "runtime-glommio/src", "proxy/src", "sim/src"]);
    assert!(all.len() > 30, "the sources are not where they were");
    all.into_iter().filter(|source| !source.is_test()).collect()
}

#[track_caller]
fn assert_none(rule: &str, offenders: &[String]) {
    assert!(offenders.is_empty(), "{rule}:\n  {}", offenders.join("\n  "));
}

/// Items of the crate's own that a text names: `crate::a::{b, c::d}` gives `a::b` and `a::c`.
fn own_items(code: &str) -> BTreeSet<String> {
    let mut items = BTreeSet::new();
    for (at, start) in code.match_indices("crate::") {
        let rest = &code[at + start.len()..];
        let module: String =
            rest.chars().take_while(|&c| c.is_alphanumeric() || c == '_').collect();
        let Some(below) = rest[module.len()..].strip_prefix("::") else {
            items.insert(format!("{module}::"));
            continue;
        };
        let word = |text: &str| -> String {
            text.chars().take_while(|&c| c.is_alphanumeric() || c == '_').collect()
        };
        match below.strip_prefix('{') {
            None => {
                items.insert(format!("{module}::{}", word(below)));
            }
            Some(list) => {
                let mut depth = 0;
                let end = list.find(|c| {
                    depth += i32::from(c == '{') - i32::from(c == '}');
                    depth < 0
                });
                let list = &list[..end.unwrap_or(list.len())];
                let names =
                    list.split(',').map(|name| word(name.trim())).filter(|name| !name.is_empty());
                items.extend(names.map(|name| format!("{module}::{name}")));
            }
        }
    }
    items
}

#[test]
fn imports_in_core_point_left() {
    let rank = |module: &str| LAYERS.iter().position(|&layer| layer == module);
    let mut offenders = Vec::new();
    let mut unused: BTreeSet<_> = LAYER_EXCEPTIONS.into_iter().collect();
    for source in sources(&["core/src"]).iter().filter(|source| !source.is_test()) {
        let file = source.path.strip_prefix("core/src/").expect("that is where we looked");
        let module = file.split(['/', '.']).next().unwrap_or_default();
        let Some(own) = rank(module) else {
            assert_eq!(file, "lib.rs", "a module that is in no layer");
            continue;
        };
        let code: String = source.code().map(|(_, line)| format!("{line}\n")).collect();
        for item in own_items(&code) {
            let target = item.split("::").next().unwrap_or_default();
            let exception = LAYER_EXCEPTIONS.iter().find(|&&(at, what)| at == file && what == item);
            if let Some(exception) = exception {
                unused.remove(exception);
            } else if rank(target).is_none_or(|target| target > own) {
                offenders.push(format!("{file} names {item}"));
            }
        }
    }
    assert_none("imports in core point left only", &offenders);
    let unused: Vec<_> = unused.into_iter().map(|(file, item)| format!("{file}: {item}")).collect();
    assert_none("exceptions that are needed no more", &unused);
}

#[rstest]
#[case::one("use crate::a::B;", &["a::B"])]
#[case::list("use crate::a::{B, c::D, self};", &["a::B", "a::c", "a::self"])]
#[case::lines("use crate::a::{\n    B,\n    C,\n};\nx", &["a::B", "a::C"])]
#[case::inline("let x = crate::a::b::C::new();", &["a::b"])]
#[case::module("use crate::a;", &["a::"])]
#[case::visibility("pub(crate) use x;", &[])]
fn own_items_are_found(#[case] code: &str, #[case] expected: &[&str]) {
    let expected: BTreeSet<_> = expected.iter().map(|&item| item.to_owned()).collect();
    assert_eq!(own_items(code), expected);
}

#[test]
fn core_depends_on_nothing_that_does_anything() {
    let manifest = fs::read_to_string(root().join("core/Cargo.toml")).expect("it exists");
    let section = manifest.split("\n[dependencies]\n").nth(1).expect("it has dependencies");
    let section = section.split("\n[").next().unwrap_or_default();
    let names = section.lines().filter(|line| line.starts_with(|c: char| c.is_alphabetic()));
    let unknown: Vec<_> = names
        .map(|line| line.split(['.', ' ', '=']).next().unwrap_or_default().to_owned())
        .filter(|name| !CORE_DEPENDENCIES.contains(&name.as_str()))
        .collect();
    assert_none("core depends on what the architecture does not name", &unknown);
    assert!(!manifest.contains("[build-dependencies]") && !manifest.contains("[target."));
    let lib = fs::read_to_string(root().join("core/src/lib.rs")).expect("it exists");
    for attribute in ["#![no_std]", "#![forbid(unsafe_code)]", "#![warn(missing_docs)]"] {
        assert!(lib.contains(attribute), "core is without {attribute}");
    }
}

/// Words that a part of the house must not use, and what for.
#[rstest]
#[case::core_waits_for_nothing(
    &["core/src"],
    &["async fn", "async move", "async {", ".await", "alloc::rc", "Mutex", "RwLock", "static mut"]
)]
#[case::runtimes_hold_no_policy(
    &["runtime-smol/src", "runtime-glommio/src"],
    &["core::wire", "core::route", "Failure::", "Outcome::", "Refusal", "status"]
)]
#[case::proxy_alone_reads_the_environment_and_exits(
    &["core/src", "runtime-smol/src", "runtime-glommio/src", "sim/src"],
    &["env::var", "env::args", "process::exit", "println!", "eprintln!"]
)]
#[case::simulations_have_no_clock_and_no_entropy(
    &["core/src", "sim/src"],
    &["Instant::now", "SystemTime", "thread::", "std::net", "RandomState"]
)]
#[case::decisions_are_the_same_on_every_machine(
    &["core/src/engine", "core/src/fleet", "core/src/route"],
    &["f32", "f64", "HashMap", "HashSet", "RandomState"]
)]
#[case::nobody_leaves_notes(
    &["core/src", "runtime-smol/src", "runtime-glommio/src", "proxy/src", "sim/src"],
    &["todo!", "unimplemented!", "dbg!", ".unwrap()", "expect(\"\")"]
)]
fn words_stay_where_they_belong(#[case] directories: &[&str], #[case] words: &[&str]) {
    let mut offenders = Vec::new();
    for source in sources(directories).iter().filter(|source| !source.is_test()) {
        for (number, line) in source.code() {
            for word in words.iter().filter(|word| line.contains(**word)) {
                offenders.push(format!("{}:{number} says {word}", source.path));
            }
        }
    }
    assert_none("words that do not belong there", &offenders);
}

/// Where the kernel is lent memory: nobody else has to be trusted with it.
const LENDS_MEMORY: &str = "runtime-glommio/src/ring.rs";

#[test]
fn the_compiler_checks_all_but_one_file() {
    let places = ["core/src", "runtime-smol/src", "runtime-glommio/src", "proxy/src", "sim/src"];
    let unchecked: BTreeSet<_> = sources(&places)
        .iter()
        .filter(|source| !source.is_test())
        .filter(|source| source.code().any(|(_, line)| line.contains("unsafe {")))
        .map(|source| source.path.clone())
        .collect();
    let unchecked: Vec<_> = unchecked.iter().map(String::as_str).collect();
    assert_eq!(unchecked, [LENDS_MEMORY]);
}

#[test]
fn runtimes_are_twins() {
    let files = |runtime: &str| -> BTreeSet<String> {
        let all = sources(&[&format!("{runtime}/src")]);
        all.iter()
            .filter_map(|source| source.path.split('/').next_back().map(str::to_owned))
            .collect()
    };
    let (smol, glommio) = (files("runtime-smol"), files("runtime-glommio"));
    if glommio.is_empty() {
        println!("skipped: there is no second runtime");
        return;
    }
    // What only one of them needs to be made of.
    let own = ["check.rs", "line.rs", "pace.rs", "reactor.rs", "ring.rs", "source.rs", "tests.rs"];
    let apart: Vec<_> = smol
        .symmetric_difference(&glommio)
        .filter(|file| !own.contains(&file.as_str()))
        .cloned()
        .collect();
    assert_none("files that only one runtime has", &apart);
}

#[test]
fn files_are_short() {
    let long: Vec<_> = product()
        .iter()
        .map(|source| (source.product().lines().count(), &source.path))
        .filter(|(lines, _)| *lines > LINES_MAX)
        .map(|(lines, path)| format!("{path}: {lines} lines"))
        .collect();
    assert_none("files of more than 500 lines", &long);
}

#[test]
fn files_say_what_they_own() {
    let all = sources(&["core", "runtime-smol", "runtime-glommio", "proxy", "sim", "tests"]);
    let silent: Vec<_> = all
        .iter()
        .filter(|source| !source.text.trim_start_matches("#![no_main]\n").starts_with("//! "))
        .map(|source| source.path.clone())
        .collect();
    assert_none("files that do not begin with //!", &silent);
}

#[test]
fn comments_fit_into_100_columns() {
    // rustfmt leaves comments as they are, and strings.
    let all = sources(&["core", "runtime-smol", "runtime-glommio", "proxy", "sim", "tests"]);
    let mut wide = Vec::new();
    for source in &all {
        for (at, line) in source.text.lines().enumerate() {
            let width = line.chars().count();
            let line = line.trim_start();
            // A row of a table cannot be wrapped.
            let is_row = line.starts_with("/// |") || line.starts_with("//! |");
            if line.starts_with("//") && !is_row && width > 100 {
                wide.push(format!("{}:{}", source.path, at + 1));
            }
        }
    }
    assert_none("comments of more than 100 columns", &wide);
}

/// The README tells what becomes of each route: every row of the table in `wire/routes.rs`.
#[test]
fn every_route_is_documented() {
    let routes = fs::read_to_string(root().join("core/src/wire/routes.rs")).expect("it exists");
    let readme = fs::read_to_string(root().join("README.md")).expect("it exists");
    let rows = routes.lines().filter_map(|line| line.trim().strip_prefix("(\"")?.split_once("\","));
    let paths: BTreeSet<&str> = rows.filter_map(|(_, rest)| rest.split('"').nth(1)).collect();
    assert!(paths.len() > 60, "the table is not where it was");
    let missing: Vec<_> = paths
        .into_iter()
        .filter(|path| !readme.contains(&format!("{}`", path.replace("/{}", "/{id}"))))
        .filter(|path| !readme.contains(&format!("{path}`")))
        .map(ToOwned::to_owned)
        .collect();
    assert_none("routes that the README does not tell of", &missing);
}
