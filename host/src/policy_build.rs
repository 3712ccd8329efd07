//! Makes a component of a policy's or a reward's crate: `vassal policy build DIR`.
//!
//! It sees to the compiler's wasm32 target, runs cargo with the flags that suit a policy (so that an author
//! writes none of them down), and turns the module into a component by what wit-bindgen left in it. It
//! does not judge the result: `vassal policy check` does.
//!
//! The same sources give the same bytes, wherever they lie and whoever builds them: paths of the checkout,
//! of cargo's home and of the compiler are mapped away, and the profile is given here in full. What
//! still decides is the compiler's version and the machine type it was made for. Start at [`Recipe::build`].

use std::env::consts::EXE_SUFFIX;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use wit_component::ComponentEncoder;

use crate::files;

/// The only target that a guest is built for: no operating system, hence no imports but its contract's.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// How every version of the contracts names what a policy exports, and what a reward does.
const EXPORTS: [&[u8]; 2] = [b"vassal:policy/policy@", b"vassal:reward/reward@"];

/// Guests recurse little; a small stack keeps an instance's memory small. An overflow traps.
const STACK_BYTES: u32 = 128 * 1024;

/// The profile of a policy: the steps are short and run under fuel, so it is optimised for speed; no unwinding,
/// no names, one unit, so that nothing that is not called is left.
const PROFILE: [&str; 8] = [
    "inherits='release'",
    "opt-level=3",
    "lto='fat'",
    "codegen-units=1",
    "strip=true",
    "panic='abort'",
    "debug=false",
    "overflow-checks=false",
];

/// What to build, and how.
#[derive(Clone, Debug, Default)]
pub struct Recipe {
    /// The crate's folder, with its Cargo.toml.
    pub dir: PathBuf,
    /// An example of the crate in place of its library.
    pub example: Option<String>,
    /// Without the crate's default features.
    pub no_default_features: bool,
    /// Cargo.lock has to stand as it is.
    pub locked: bool,
    /// Where cargo puts what it makes, in place of the crate's own `target`.
    pub target_dir: Option<PathBuf>,
    /// Cargo's messages are kept for the error, not shown on stderr.
    pub quiet: bool,
}

/// A component that was built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// Where it was written.
    pub path: PathBuf,
    /// Its size.
    pub size_bytes: usize,
}

/// Why no component was built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// There is no crate.
    #[error(
        "{0} has no Cargo.toml: name the folder of a policy's or reward's crate (examples/policy-template and examples/reward-template are there to copy)"
    )]
    NoCrate(PathBuf),
    /// The compiler cannot be asked.
    #[error("`{0}` does not run ({1}): building a policy needs Rust, see https://rustup.rs")]
    NoRust(&'static str, String),
    /// The target is missing and nothing can install it.
    #[error(
        "the Rust target {TARGET} is not installed, and there is no rustup to install it with: \
         install it the way Rust was installed (a package named like rust-std-wasm32), or use https://rustup.rs"
    )]
    NoTarget,
    /// The target is missing and could not be installed.
    #[error("`rustup target add {TARGET}` failed: {0}")]
    TargetInstallation(String),
    /// Cargo refused the crate.
    #[error("cargo could not build {dir}{}", shown(.output))]
    Cargo {
        /// The crate's folder.
        dir: PathBuf,
        /// Cargo's messages, where they were not shown already.
        output: String,
    },
    /// The crate makes no module.
    #[error("{0} makes no WebAssembly module: its Cargo.toml needs [lib] crate-type = [\"cdylib\"]")]
    NoModule(PathBuf),
    /// The module is not one of the contract.
    #[error("the module makes no component: {0}")]
    NotAComponent(String),
    /// The module is nobody's policy or reward.
    #[error(
        "{0} exports no policy and no reward: its library calls vassal_guest::export!(Type), or \
         vassal_guest::export_reward!(Type), once"
    )]
    NoGuest(PathBuf),
    /// A file could not be read or written.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

fn shown(output: &str) -> String {
    if output.is_empty() { "; its messages are above".to_owned() } else { format!(":\n{output}") }
}

/// Builds the policy or reward in `dir` and writes the component to `out`.
///
/// # Errors
/// As [`Recipe::build`].
pub fn build(dir: &Path, out: &Path) -> Result<Built, BuildError> {
    Recipe { dir: dir.to_owned(), ..Recipe::default() }.build(out)
}

/// Where `vassal policy build DIR` writes where nothing else is said: the package's name, in its folder.
///
/// # Errors
/// [`BuildError`] where there is no crate, or no cargo to ask.
pub fn default_out(dir: &Path) -> Result<PathBuf, BuildError> {
    if !dir.join("Cargo.toml").is_file() {
        return Err(BuildError::NoCrate(dir.to_owned()));
    }
    let id = ask(dir, "cargo", &["pkgid"])?;
    // The address ends in `#name@version`, or in `/name#version` where the folder has the package's name.
    let (address, last) = id.rsplit_once('#').unwrap_or(("", &id));
    let name = match last.split_once('@') {
        Some((name, _)) => name,
        None => address.rsplit('/').next().unwrap_or(last),
    };
    Ok(dir.join(name).with_extension("wasm"))
}

impl Recipe {
    /// Builds the component and writes it to `out`, which is replaced in one step or not at all.
    ///
    /// # Errors
    /// [`BuildError`], which says what is missing and how to come by it.
    pub fn build(&self, out: &Path) -> Result<Built, BuildError> {
        let component = self.component()?;
        let failed = |error| BuildError::File { path: out.to_owned(), error };
        files::replace(out, &component).map_err(failed)?;
        Ok(Built { path: out.to_owned(), size_bytes: component.len() })
    }

    /// The component's bytes.
    ///
    /// # Errors
    /// As [`Recipe::build`].
    pub fn component(&self) -> Result<Vec<u8>, BuildError> {
        let manifest = self.dir.join("Cargo.toml");
        if !manifest.is_file() {
            return Err(BuildError::NoCrate(self.dir.clone()));
        }
        let dir = self.dir.canonicalize().map_err(|error| BuildError::File { path: self.dir.clone(), error })?;
        // Builds of one crate with other features share the module's file, and rustup installs for one at a time.
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        see_to_the_target(&dir)?;
        let module_path = self.module(&dir)?;
        let module = fs::read(&module_path).map_err(|error| BuildError::File { path: module_path, error })?;
        let component = encode(&module).map_err(|error| BuildError::NotAComponent(format!("{error:#}")))?;
        // A library without the macro makes an empty component, which would say nothing until it is loaded.
        let exports = |wanted: &[u8]| component.windows(wanted.len()).any(|name| name == wanted);
        if EXPORTS.into_iter().any(exports) { Ok(component) } else { Err(BuildError::NoGuest(self.dir.clone())) }
    }

    /// Runs cargo, and finds the module in its messages.
    fn module(&self, dir: &Path) -> Result<PathBuf, BuildError> {
        let mut cargo = Command::new("cargo");
        cargo.current_dir(dir).args(["build", "--target", TARGET, "--profile", "policy"]);
        for line in PROFILE {
            cargo.arg("--config").arg(format!("profile.policy.{line}"));
        }
        match &self.example {
            Some(example) => cargo.args(["--example", example]),
            None => cargo.arg("--lib"),
        };
        if self.no_default_features {
            cargo.arg("--no-default-features");
        }
        if let Some(target_dir) = &self.target_dir {
            cargo.arg("--target-dir").arg(target_dir);
        }
        if self.locked {
            cargo.arg("--locked");
        }
        cargo.args(["--message-format", "json-render-diagnostics"]);
        cargo.env("CARGO_ENCODED_RUSTFLAGS", flags(dir)?).stdin(Stdio::null());
        cargo.stderr(if self.quiet { Stdio::piped() } else { Stdio::inherit() });
        cargo.stdout(Stdio::piped());
        let output = cargo
            .spawn()
            .and_then(std::process::Child::wait_with_output)
            .map_err(|error| BuildError::NoRust("cargo", error.to_string()))?;
        if !output.status.success() {
            let output = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(BuildError::Cargo { dir: self.dir.clone(), output });
        }
        let messages = String::from_utf8_lossy(&output.stdout);
        let wanted = dir.join("Cargo.toml");
        let module = messages.lines().filter_map(|line| module_of(line, &wanted, self.example.as_deref())).next_back();
        module.ok_or_else(|| BuildError::NoModule(self.dir.clone()))
    }
}

/// Wraps the module as a component of the world that it was compiled against, and validates it.
fn encode(module: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut encoder = ComponentEncoder::default();
    encoder.validate(true).module(module)?.encode()
}

/// The module that one of cargo's messages tells of, if it is of this crate.
fn module_of(line: &str, manifest: &Path, example: Option<&str>) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let of_crate = message["manifest_path"].as_str().is_some_and(|path| Path::new(path) == manifest);
    let target = &message["target"];
    let of_target = example.is_none_or(|example| target["name"] == example);
    if message["reason"] != "compiler-artifact" || !of_crate || !of_target {
        return None;
    }
    let files = message["filenames"].as_array()?;
    files.iter().filter_map(|file| file.as_str()).find(|file| file.ends_with(".wasm")).map(PathBuf::from)
}

/// The compiler's flags, in cargo's encoding: vectors for the arithmetic, a small stack, and no machine's paths.
fn flags(dir: &Path) -> Result<OsString, BuildError> {
    let mut flags: Vec<OsString> =
        vec!["-Ctarget-feature=+simd128".into(), format!("-Clink-arg=-zstack-size={STACK_BYTES}").into()];
    let sysroot = PathBuf::from(ask(dir, "rustc", &["--print", "sysroot"])?);
    let root = ask(dir, "cargo", &["locate-project", "--workspace", "--message-format", "plain"])?;
    let workspace = Path::new(&root).parent().unwrap_or(dir).to_owned();
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    // The last mapping that fits is taken, so the widest come first.
    let mut mappings = Vec::new();
    if let Some(home) = cargo_home {
        mappings.extend(registries(&home));
        mappings.push((home, "cargo".to_owned()));
        mappings.reverse();
    }
    mappings.push((sysroot, "rust".to_owned()));
    mappings.push((workspace, "policy".to_owned()));
    for (from, to) in mappings {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(from);
        flag.push("=");
        flag.push(to);
        flags.push(flag);
    }
    Ok(flags.join("\x1f".as_ref()))
}

/// Where cargo keeps the sources of registries: the folder's name tells which, and by which mirror it came.
fn registries(cargo_home: &Path) -> Vec<(PathBuf, String)> {
    let entries = fs::read_dir(cargo_home.join("registry").join("src")).into_iter().flatten().flatten();
    entries.map(|entry| (entry.path(), "registry".to_owned())).collect()
}

/// The first line that a tool of the Rust toolchain answers.
fn ask(dir: &Path, tool: &'static str, arguments: &[&str]) -> Result<String, BuildError> {
    let output = Command::new(tool).current_dir(dir).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| BuildError::NoRust(tool, error.to_string()))?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(BuildError::NoRust(tool, reason));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Installs the target where it is missing. Rustup's own automatic installation may be switched off, and is then
/// silent, so nothing is left to it.
fn see_to_the_target(dir: &Path) -> Result<(), BuildError> {
    // Two of rustup's installations at once break each other, and a half installed target looks like a whole one: whoever
    // comes second waits. The compiler is a file that all of them can lock; where it cannot be, nobody else is there.
    let sysroot = ask(dir, "rustc", &["--print", "sysroot"])?;
    let compiler = fs::File::open(Path::new(&sysroot).join("bin").join(format!("rustc{EXE_SUFFIX}"))).ok();
    let _waits = compiler.as_ref().map(fs::File::lock);
    let libraries = ask(dir, "rustc", &["--print", "target-libdir", "--target", TARGET])?;
    let installed = fs::read_dir(libraries).is_ok_and(|mut files| files.next().is_some());
    if installed {
        return Ok(());
    }
    let output = Command::new("rustup").current_dir(dir).args(["target", "add", TARGET]).stdin(Stdio::null()).output();
    match output {
        Err(_) => Err(BuildError::NoTarget),
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(BuildError::TargetInstallation(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_a_crate_is_named() {
        let error = build(Path::new("nowhere"), Path::new("out.wasm")).unwrap_err();
        assert!(matches!(&error, BuildError::NoCrate(dir) if dir == Path::new("nowhere")), "{error}");
    }

    #[test]
    fn the_component_is_named_after_its_package() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for (dir, name) in [
            ("guest/policies/vas", "vassal-policy-vas.wasm"),
            ("examples/policy-template", "my.wasm"),
            ("examples/reward-template", "on-topic.wasm"),
        ] {
            assert_eq!(default_out(&root.join(dir)).unwrap(), root.join(dir).join(name));
        }
    }

    #[test]
    fn the_module_is_found_in_cargos_messages() {
        let line = r#"{"reason":"compiler-artifact","manifest_path":"/a/Cargo.toml","target":{"name":"mine"},
            "filenames":["/t/libmine.rlib","/t/mine.wasm"]}"#;
        let line = line.replace('\n', "");
        let manifest = Path::new("/a/Cargo.toml");
        assert_eq!(module_of(&line, manifest, None), Some("/t/mine.wasm".into()));
        assert_eq!(module_of(&line, manifest, Some("other")), None);
        assert_eq!(module_of(&line, Path::new("/b/Cargo.toml"), None), None);
        assert_eq!(module_of("not json", manifest, None), None);
    }
}
