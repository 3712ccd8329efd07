//! Fetching one file over HTTP so that it can be cut off anywhere: `NAME.part` grows, is resumed by
//! range, is checked as a whole, and only then takes its final name.
//!
//! TLS trusts what the machine trusts (its certificate store, `SSL_CERT_FILE`, `SSL_CERT_DIR`) and what
//! pip is told to trust (`PIP_CERT`, `REQUESTS_CA_BUNDLE`, `global.cert`); proxies come from the
//! environment. Nothing here knows models or indexes.
//!
//! Start at [`Client::download`].

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ureq::http::StatusCode;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, ResponseExt};

use super::address::shown;
use super::part::Part;

/// Bytes of a page that is read into memory: an index page of a large project has some 10 MB.
pub const PAGE_BYTES_MAX: u64 = 32 << 20;
/// Tries in a row that bring no byte before a download is given up.
const TRIES_MAX: u32 = 3;
/// A connection that sends nothing for this long is taken for dead.
const SILENCE_SECONDS: u64 = 30;

/// Who is told how far a download is.
pub trait Progress {
    /// `done` of `total` bytes of a file are there; no total where the server does not say.
    fn advance(&mut self, name: &str, done: u64, total: Option<u64>);

    /// Something worth a line: another road is taken, another process is waited for.
    fn note(&mut self, text: &str);
}

/// Tells nobody.
impl Progress for () {
    fn advance(&mut self, _name: &str, _done: u64, _total: Option<u64>) {}

    fn note(&mut self, _text: &str) {}
}

/// Why a file did not come. What was received stays in `NAME.part` and is resumed, unless its checksum
/// differs.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// Nothing was reached, or the connection broke and kept breaking.
    #[error("{url}: {message}")]
    Network {
        /// Where to, without credentials.
        url: String,
        /// What happened.
        message: String,
    },
    /// The server answered, but not with the file.
    #[error("{url}: the server answers {status}")]
    Status {
        /// Where to, without credentials.
        url: String,
        /// The status code.
        status: u16,
    },
    /// More bytes than there may be.
    #[error("{url}: larger than {max_bytes} bytes")]
    TooLarge {
        /// Where to, without credentials.
        url: String,
        /// The most that is taken.
        max_bytes: u64,
    },
    /// Not the file that it should be; the part is deleted.
    #[error("{name}: SHA-256 is {found}, expected {expected}")]
    Checksum {
        /// Which file.
        name: String,
        /// The hash that it should have.
        expected: String,
        /// The hash that it has.
        found: String,
    },
    /// The disk failed.
    #[error("{}: {source}", path.display())]
    Disk {
        /// Which path.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
}

/// A file to fetch.
#[derive(Debug, Clone)]
pub struct Fetch<'a> {
    /// Where from.
    pub url: &'a str,
    /// The value of the `Authorization` header, if one is needed; never sent to another host.
    pub authorization: Option<&'a str>,
    /// Its final path; the part lies beside it.
    pub path: &'a Path,
    /// The most bytes that it may have.
    pub max_bytes: u64,
    /// The SHA-256 that it must have, in lower-case hex. Without one nothing is resumed.
    pub sha256: Option<&'a str>,
}

/// An HTTP client that trusts what the machine trusts.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
}

impl Client {
    /// A client; `certificates` are PEM files to trust besides the machine's store.
    pub fn new(certificates: &[PathBuf]) -> Client {
        let config = Agent::config_builder()
            .tls_config(TlsConfig::builder().root_certs(roots(certificates)).build())
            .timeout_connect(Some(Duration::from_secs(SILENCE_SECONDS)))
            .timeout_recv_response(Some(Duration::from_secs(SILENCE_SECONDS)))
            .timeout_per_read(Some(Duration::from_secs(SILENCE_SECONDS)))
            // A range of a compressed file is not a range of the file.
            .accept_encoding("identity")
            .user_agent(concat!("vassal/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .build();
        Client { agent: config.into() }
    }

    /// Fetches a small page: its address after redirects, its content type and its text.
    pub fn page(&self, url: &str, accept: &str) -> Result<Page, DownloadError> {
        let network = |error: ureq::Error| DownloadError::Network { url: shown(url), message: error.to_string() };
        let request = self.agent.get(url).header("Accept", accept);
        let mut response = request.call().map_err(network)?;
        if response.status() != StatusCode::OK {
            return Err(DownloadError::Status { url: shown(url), status: response.status().as_u16() });
        }
        let address = response.get_uri().to_string();
        let content_type = header(&response, "content-type").unwrap_or_default().to_owned();
        let body = response.body_mut().with_config().limit(PAGE_BYTES_MAX);
        let text = body.read_to_string().map_err(network)?;
        Ok(Page { address, content_type, text })
    }

    /// The value of a header of the first answer for an address, redirects not followed.
    pub fn first_header(&self, fetch: &Fetch<'_>, name: &str) -> Result<Option<String>, DownloadError> {
        let mut request = self.agent.head(fetch.url);
        if let Some(authorization) = fetch.authorization {
            request = request.header("Authorization", authorization);
        }
        let request = request.config().max_redirects(0).max_redirects_will_error(false);
        let response = request
            .build()
            .call()
            .map_err(|error| DownloadError::Network { url: shown(fetch.url), message: error.to_string() })?;
        let status = response.status();
        if status.is_success() || status.is_redirection() {
            Ok(header(&response, name).map(str::to_owned))
        } else {
            Err(DownloadError::Status { url: shown(fetch.url), status: status.as_u16() })
        }
    }

    /// Fetches a file, from where an earlier try stopped, and checks it. The final path is written by
    /// one rename of a complete and synchronised file.
    pub fn download(&self, fetch: &Fetch<'_>, progress: &mut dyn Progress) -> Result<(), DownloadError> {
        let mut part = Part::open(fetch)?;
        let resumed = part.length() > 0;
        if let Err(error) = self.fill(fetch, &mut part, progress) {
            if part.length() == 0 {
                part.discard()?;
            }
            return Err(error);
        }
        let found = part.sha256();
        match fetch.sha256 {
            Some(expected) if expected != found => {}
            _ => return part.finish(fetch.path),
        }
        // The first half may be another file's: one try from the start tells.
        if resumed {
            progress.note("the parts do not fit together; starting again");
            part.restart()?;
            self.fill(fetch, &mut part, progress)?;
            if fetch.sha256 == Some(part.sha256().as_str()) {
                return part.finish(fetch.path);
            }
        }
        let found = part.sha256();
        part.discard()?;
        Err(DownloadError::Checksum {
            name: file_name(fetch.path),
            expected: fetch.sha256.unwrap_or_default().to_owned(),
            found,
        })
    }

    /// Asks again and again until the part is complete or nothing comes any more.
    fn fill(&self, fetch: &Fetch<'_>, part: &mut Part, progress: &mut dyn Progress) -> Result<(), DownloadError> {
        let mut tries = 0;
        loop {
            let before = part.length();
            match self.request(fetch, part, progress) {
                Err(DownloadError::Network { url, message }) => {
                    tries = if part.length() > before { 0 } else { tries + 1 };
                    if tries >= TRIES_MAX {
                        return Err(DownloadError::Network { url, message });
                    }
                    if fetch.sha256.is_none() {
                        part.restart()?;
                    }
                }
                done => return done,
            }
        }
    }

    fn request(&self, fetch: &Fetch<'_>, part: &mut Part, progress: &mut dyn Progress) -> Result<(), DownloadError> {
        let network = |message: String| DownloadError::Network { url: shown(fetch.url), message };
        let mut request = self.agent.get(fetch.url);
        if let Some(authorization) = fetch.authorization {
            request = request.header("Authorization", authorization);
        }
        if part.length() > 0 {
            request = request.header("Range", format!("bytes={}-", part.length()));
        }
        let response = request.call().map_err(|error| network(error.to_string()))?;
        match response.status() {
            StatusCode::OK => part.restart()?,
            StatusCode::PARTIAL_CONTENT => {
                let range = header(&response, "content-range").unwrap_or_default();
                if !range.starts_with(&format!("bytes {}-", part.length())) {
                    part.restart()?;
                    return Err(network(format!("unexpected range {range:?}")));
                }
            }
            // Nothing lies behind the part: it is complete, or it is wrong, which its checksum tells.
            StatusCode::RANGE_NOT_SATISFIABLE if part.length() > 0 => return Ok(()),
            status => {
                return Err(DownloadError::Status { url: shown(fetch.url), status: status.as_u16() });
            }
        }
        let rest: Option<u64> = header(&response, "content-length").and_then(|n| n.parse().ok());
        let total = rest.map(|rest| part.length().saturating_add(rest));
        if total.unwrap_or(part.length()) > fetch.max_bytes {
            return Err(too_large(fetch));
        }
        let name = file_name(fetch.path);
        let mut body = response.into_body().into_reader();
        let mut piece = vec![0; 1 << 16];
        loop {
            progress.advance(&name, part.length(), total);
            let count = match body.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) => return Err(network(format!("the connection broke: {error}"))),
            };
            if part.length() + count as u64 > fetch.max_bytes {
                return Err(too_large(fetch));
            }
            part.append(&piece[..count])?;
        }
        match total {
            Some(total) if part.length() < total => {
                Err(network(format!("the connection ended after {} of {total} bytes", part.length())))
            }
            _ => Ok(()),
        }
    }
}

/// A page that was read.
#[derive(Debug, Clone)]
pub struct Page {
    /// Its address, after redirects.
    pub address: String,
    /// Its content type.
    pub content_type: String,
    /// Its text.
    pub text: String,
}

fn too_large(fetch: &Fetch<'_>) -> DownloadError {
    DownloadError::TooLarge { url: shown(fetch.url), max_bytes: fetch.max_bytes }
}

fn header<'a, B>(response: &'a ureq::http::Response<B>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

fn roots(extra: &[PathBuf]) -> RootCerts {
    let mut trusted: Vec<Certificate<'static>> = rustls_native_certs::load_native_certs()
        .certs
        .iter()
        .map(|certificate| Certificate::from_der(certificate).to_owned())
        .collect();
    for pem in extra.iter().filter_map(|path| fs::read(path).ok()) {
        trusted.extend(parse_pem(&pem).filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        }));
    }
    if trusted.is_empty() {
        // A machine without a store: the list that comes with the TLS library.
        return RootCerts::WebPki;
    }
    RootCerts::Specific(Arc::new(trusted))
}

pub(super) fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}
