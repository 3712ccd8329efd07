//! Models of the model hub: `hub:OWNER/NAME/FILE.gguf`.
//!
//! The crate `hf-hub` says where a file of a repository lies (`HF_ENDPOINT` and its own default) and
//! which token is stored; fetching is ours, because it resumes, checks and renames as for every other
//! source. (The crate's releases from 1.0 on bring an async runtime and a second HTTP client, so an
//! earlier one is used.) The hub tells the SHA-256 of a large file in a header, and that is what the
//! file is checked against: it proves that the file came whole, not that its owner is honest.
//!
//! Start at [`pull`].

use std::path::{Path, PathBuf};

use hf_hub::api::sync::ApiBuilder;
use hf_hub::{Cache, Repo, RepoType};

use super::SourceError;
use super::download::{Client, Fetch, Progress};
use super::part::disk;

/// Bytes of a model file: what a machine of the largest size in use might hold.
pub const MODEL_BYTES_MAX: u64 = 1 << 40;
const PART_BYTES_MAX: usize = 128;

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubFile {
    /// Whose repository.
    pub owner: String,
    /// Its name.
    pub name: String,
    /// The file, at the top of the repository.
    pub file: String,
}

impl HubFile {
    /// Reads `OWNER/NAME/FILE.gguf`.
    pub fn parse(text: &str) -> Option<HubFile> {
        let parts: Vec<&str> = text.split('/').collect();
        let [owner, name, file] = parts[..] else {
            return None;
        };
        let plain = |part: &str| {
            // A leading dot would make a hidden file or leave the folder.
            (1..=PART_BYTES_MAX).contains(&part.len())
                && !part.starts_with('.')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        (parts.iter().all(|part| plain(part)) && file.ends_with(".gguf")).then(|| HubFile {
            owner: owner.to_owned(),
            name: name.to_owned(),
            file: file.to_owned(),
        })
    }

    /// Where the file lies below the model directory.
    pub fn path(&self, home: &Path) -> PathBuf {
        home.join("hub").join(&self.owner).join(&self.name).join(&self.file)
    }
}

impl std::fmt::Display for HubFile {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "hub:{}/{}/{}", self.owner, self.name, self.file)
    }
}

/// Fetches a file of the hub to its place, unless it is there. Without an `endpoint` the environment's
/// is used (`HF_ENDPOINT`), or the crate's.
pub fn pull(
    file: &HubFile,
    home: &Path,
    endpoint: Option<&str>,
    client: &Client,
    progress: &mut dyn Progress,
) -> Result<PathBuf, SourceError> {
    let path = file.path(home);
    if path.exists() {
        return Ok(path);
    }
    let mut builder = ApiBuilder::from_env().with_progress(false);
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(endpoint.to_owned());
    }
    let api = builder.build().map_err(|error| SourceError::Hub { message: error.to_string() })?;
    let repository = Repo::new(format!("{}/{}", file.owner, file.name), RepoType::Model);
    let url = api.repo(repository).url(&file.file);
    let token = std::env::var("HF_TOKEN").ok().or_else(|| Cache::from_env().token());
    let authorization = token.map(|token| format!("Bearer {token}"));
    let mut fetch = Fetch {
        url: &url,
        authorization: authorization.as_deref(),
        path: &path,
        max_bytes: MODEL_BYTES_MAX,
        sha256: None,
    };
    let tag = client.first_header(&fetch, "x-linked-etag")?.unwrap_or_default();
    let tag = tag.trim_matches('"').to_ascii_lowercase();
    if tag.len() == 64 && tag.bytes().all(|b| b.is_ascii_hexdigit()) {
        fetch.sha256 = Some(&tag);
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(disk(folder))?;
    }
    client.download(&fetch, progress)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_files_of_the_hub() {
        let file = HubFile::parse("owner/Some-Model_1.0/file.Q8_0.gguf").unwrap();
        assert_eq!(file.path(Path::new("home")), Path::new("home/hub/owner/Some-Model_1.0/file.Q8_0.gguf"));
        for text in [
            "owner/name",
            "owner/name/file.bin",
            "../name/file.gguf",
            "owner/../file.gguf",
            "owner/name/.gguf",
            "owner//file.gguf",
            "owner/name/sub/file.gguf",
            "owner/na me/file.gguf",
        ] {
            assert_eq!(HubFile::parse(text), None, "{text}");
        }
    }
}
