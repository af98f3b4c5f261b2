//! `vllm-proxy completions`: prints what lets a shell complete our command lines.
//!
//! Made from the definition that parses them, with the values that options have added: parsing
//! takes every value as it was written, and here nothing is parsed.

use crate::cli;
use crate::config::{POLICIES, Runtime, policy_name};
use crate::logging::Format;
use crate::secret::redacted;
use crate::usage::{Invalid, UsageError};
use clap::builder::PossibleValuesParser;
use clap::{Arg, Command, ValueEnum, ValueHint};
use clap_complete::Shell;
use std::ffi::OsString;

const AFTER_HELP: &str = "\
Examples:
  bash, once it has bash-completion:
    mkdir -p ~/.local/share/bash-completion/completions
    vllm-proxy completions bash > ~/.local/share/bash-completion/completions/vllm-proxy
  bash, this one only:
    source <(vllm-proxy completions bash)
  zsh, into a directory of its $fpath:
    vllm-proxy completions zsh > ~/.zfunc/_vllm-proxy
  fish:
    vllm-proxy completions fish > ~/.config/fish/completions/vllm-proxy.fish
  elvish, in ~/.config/elvish/rc.elv:
    eval (vllm-proxy completions elvish | slurp)
  PowerShell, in its $PROFILE:
    vllm-proxy completions powershell | Out-String | Invoke-Expression";

/// Print what lets a shell complete subcommands, options and their values
#[derive(clap::Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The shell, which has to be named: bash, elvish, fish, powershell or zsh
    shell: Option<OsString>,
}

/// The script.
pub(crate) fn script(args: &Args) -> Result<String, UsageError> {
    let expected = "bash, elvish, fish, powershell or zsh";
    let Some(written) = &args.shell else {
        return Err(UsageError::new(format!("missing SHELL: expected {expected}")));
    };
    let written = written.to_string_lossy();
    let shell = Shell::value_variants().iter().find(|shell| shell.to_string() == written);
    let shell = *shell.ok_or_else(|| {
        UsageError::value("SHELL", &written, &Invalid::shown_as(redacted(&written), expected))
    })?;
    let mut program = with_values(cli::program());
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut program, "vllm-proxy", &mut script);
    // clap_complete 4.6 writes a hyphen in a program's name for bash in two ways, and so finds no
    // option of any subcommand.
    Ok(String::from_utf8_lossy(&script).replace("vllm__subcmd__proxy", "vllm__proxy"))
}

/// A command and all below it, whose options know what values they may have.
fn with_values(command: Command) -> Command {
    let name = command.get_name().to_owned();
    command.mut_args(|arg| with_value(&name, arg)).mut_subcommands(with_values)
}

fn with_value(command: &str, arg: Arg) -> Arg {
    let hint = match (command, arg.get_id().as_str()) {
        ("server", "policy") => return one_of(arg, POLICIES.map(policy_name)),
        ("server", "runtime") => return one_of(arg, Runtime::all_names()),
        (_, "log_format") => return one_of(arg, Format::NAMES),
        ("completions", "shell") => {
            return one_of(
                arg,
                Shell::value_variants().iter().filter_map(Shell::to_possible_value),
            );
        }
        (_, "redis" | "upstreams" | "forward_unknown") => ValueHint::Url,
        (_, "host" | "addr") => ValueHint::Hostname,
        ("simulate", "given") | ("server", "upstreams_file") => ValueHint::FilePath,
        ("simulate", "plot") => ValueHint::DirPath,
        (_, "uds") => ValueHint::AnyPath,
        _ => return arg,
    };
    arg.value_hint(hint)
}

fn one_of<V: Into<clap::builder::PossibleValue>>(
    arg: Arg,
    values: impl IntoIterator<Item = V>,
) -> Arg {
    arg.value_parser(PossibleValuesParser::new(values))
}
