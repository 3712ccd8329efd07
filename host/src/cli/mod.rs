//! The command line: arguments are parsed here, resolved by each command's own file, and nothing else
//! in the program prints or exits. Exit codes are [`crate::error::Cause::exit_code`]'s.
//!
//! Start at [`main`]; [`command`] is the definition that tests compare documents with.

mod audit;
mod bench;
mod bench_engine;
mod chain;
mod device;
mod display;
mod evaluate;
mod evaluate_inputs;
mod fit;
mod fit_comparison;
mod fit_preference;
mod learn;
mod policy;
mod policy_report;
mod policy_reward;
mod policy_sign;
mod process;
mod pull;
mod reward;
mod rollout;
mod run;
mod tenant;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use vassal_kernels::DeviceChoice;

use self::device::DeviceArguments;
use crate::engine::EngineOptions;
use crate::error::{Cause, Error};
use crate::host::HostOptions;
use crate::model::heads::HeadKind;
use crate::model::source::Models;
use crate::sandbox::{ChildCompiler, Compilation};

/// Decode-time alignment of frozen language models by policies that nobody has to trust.
#[derive(Debug, Parser)]
#[command(
    name = "vassal",
    version,
    about,
    after_help = "Exit codes: 0 done, 1 the host failed (its device, its disk, the network, a replay that differs), 2 what was asked cannot be accepted, 3 a policy failed or was refused, 4 no capacity."
)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answers a prompt, steered by policies.
    Run(run::RunArguments),
    /// Fetches a model, or checks a file.
    Pull(pull::PullArguments),
    /// Inspects, checks, builds, signs or verifies a policy.
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Checks a tenant's configuration.
    #[command(subcommand)]
    Tenant(tenant::TenantCommand),
    /// Checks a file of audit records.
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Makes recorded responses once more and compares them to the bit.
    Replay(audit::ReplayArguments),
    /// Measures this machine.
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Samples responses of the base model, for learning.
    Rollout(rollout::RolloutArguments),
    /// Lets rewards score rollouts.
    Reward(reward::RewardArguments),
    /// Fits a look-ahead head and a one-pass head to the rewards of rollouts; or a reward to preference pairs.
    Fit(fit::FitCommand),
    /// Reports what guided decoding buys on test prompts, against other methods and at which cost.
    Evaluate(evaluate::EvaluateArguments),
    /// Rollout, reward, fit and evaluate in one.
    Learn(learn::LearnArguments),
}

/// The model, and what it runs on.
#[derive(Debug, Clone, Args)]
struct ModelArguments {
    /// A known model's name, `hub:OWNER/NAME/FILE.gguf`, or a path.
    #[arg(long, default_value = crate::model::source::DEFAULT_MODEL, value_name = "MODEL")]
    model: String,
    #[command(flatten)]
    device: DeviceArguments,
}

/// Which value heads to offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum HeadsArgument {
    /// Best quality: a row of the model for each candidate.
    LookAhead,
    /// No rows: from the state before the candidates.
    OnePass,
}

/// The value heads.
#[derive(Debug, Args)]
struct HeadArguments {
    /// Which of the shipped heads to offer.
    #[arg(long, value_enum, default_value = "look-ahead")]
    heads: HeadsArgument,
    /// A head's file instead of the shipped ones; may repeat.
    #[arg(long = "head", value_name = "FILE")]
    files: Vec<PathBuf>,
}

impl HeadArguments {
    /// A host's options with these heads.
    fn offered_by(&self, options: HostOptions) -> HostOptions {
        HostOptions { head_kind: Some(self.kind()), heads: self.files.clone(), ..options }
    }

    fn kind(&self) -> HeadKind {
        match self.heads {
            HeadsArgument::LookAhead => HeadKind::LookAhead,
            HeadsArgument::OnePass => HeadKind::OnePass,
        }
    }
}

impl ModelArguments {
    /// The model's file (fetched where it is not there yet) and the device asked for.
    fn resolve(&self) -> Result<HostOptions, Error> {
        self.resolve_on(self.device.choose()?)
    }

    /// The model's file, for a device that was chosen before.
    fn resolve_on(&self, device: DeviceChoice) -> Result<HostOptions, Error> {
        let path = pull::fetch(&self.model)?;
        let model_sha256 = crate::model::source::known_sha256(&self.model);
        let engine = self.device.engine(EngineOptions::default());
        Ok(HostOptions { device, engine, model_sha256, compilation: compilation(), ..HostOptions::new(path) })
    }
}

/// Policies are compiled in a child of this program, once a machine and version where there is a user's data
/// directory to keep the code in.
fn compilation() -> Compilation {
    let cache = Models::from_env().ok().map(|models| models.home().to_owned());
    Compilation::Child(ChildCompiler { program: None, cache })
}

/// What was typed, as provenance tells it.
fn command_line() -> String {
    std::env::args().skip(1).fold("vassal".to_owned(), |command, word| command + " " + &word)
}

/// The definition of the command line, for tests that compare documents with it.
pub fn command() -> clap::Command {
    <Arguments as clap::CommandFactory>::command()
}

/// Parses the command line and runs it. The exit code comes back; where the program was started as the compiler of
/// policies, it is that and nothing else.
pub fn main() -> std::process::ExitCode {
    crate::sandbox::compiler::serve_if_asked();
    process::started();
    let arguments = Arguments::parse();
    let done = match &arguments.command {
        Command::Run(arguments) => run::run(arguments),
        Command::Pull(arguments) => pull::run(arguments),
        Command::Policy(command) => policy::run(command),
        Command::Tenant(command) => tenant::run(command),
        Command::Audit(command) => audit::run(command),
        Command::Replay(arguments) => audit::replay(arguments),
        Command::Bench(command) => bench::run(command),
        Command::Rollout(arguments) => rollout::rollout(arguments),
        Command::Reward(arguments) => reward::reward(arguments),
        Command::Fit(arguments) => fit::run(arguments),
        Command::Learn(arguments) => learn::learn(arguments),
        Command::Evaluate(arguments) => evaluate::evaluate(arguments),
    };
    match done {
        Ok(()) if OUTPUT_FAILED.load(Ordering::Relaxed) => std::process::ExitCode::from(Cause::Host.exit_code()),
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            complain(&error.to_string());
            std::process::ExitCode::from(error.cause().exit_code())
        }
    }
}

/// A count with bounds: far beyond use, short of harm.
fn between(least: u64, most: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(least..=most)
}

/// `name=value` of a `--set`.
fn parse_setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("expected NAME=VALUE, got {text:?}")),
    }
}

/// Standard output could not be written, and not because its reader had enough.
static OUTPUT_FAILED: AtomicBool = AtomicBool::new(false);

/// Writes to standard output. A closed pipe is not worth a complaint, and ends nothing: records are still written,
/// and the exit code is what the command comes to. Another failure is the host's, and decides the exit code.
fn print(text: &str) {
    use std::io::{ErrorKind, Write};
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        Err(error) => {
            if !OUTPUT_FAILED.swap(true, Ordering::Relaxed) {
                complain(&format!("standard output: {error}"));
            }
        }
    }
}

/// A line on standard error, where there is one to write to. Names of files and what others say stand in it, so nothing
/// that a terminal would obey is let through.
fn complain(text: &str) {
    use std::io::Write;
    // Nobody is left to be told that nobody can be told.
    let _ = writeln!(std::io::stderr(), "vassal: {}", harmless(text));
}

/// A text with its control characters, but for ends of lines and tabs, written out.
fn harmless(text: &str) -> String {
    let plain = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().map(|c| if plain(c) { c.to_string() } else { c.escape_default().to_string() }).collect()
}

/// One JSON object on standard output.
fn print_json(value: &serde_json::Value) {
    print(&format!("{value:#}\n"));
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_terminal_is_told_nothing_that_it_would_obey() {
        assert_eq!(super::harmless("a\x1b[31m\u{9b}é\n\tb"), "a\\u{1b}[31m\\u{9b}é\n\tb");
    }
}
