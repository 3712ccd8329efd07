//! Signatures: what a tenant that asks for them takes, and every way of not having one that is refused.
//!
//! Policies here are `vas` built otherwise, which does not ship, and files beside it; a tenant is opened on a tiny
//! model. The form of a signature and its bounds are tested beside `host/src/signature/mod.rs`; the last tests run the
//! program.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use vassal::audit::Record;
use vassal::error::{Cause, Error};
use vassal::host::Host;
use vassal::shipped;
use vassal::signature::{self, PrivateKey, Signature, trust};
use vassal::tenant::{Tenant, TenantError};

use crate::program::{Run, tiny};
use crate::tenants::host;

const DAY: Duration = Duration::from_secs(86_400);

/// A folder with a component and a key.
struct Bench {
    folder: PathBuf,
    component: PathBuf,
    key: PrivateKey,
}

impl Bench {
    fn new(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("signatures").join(name);
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let component = folder.join("mine.wasm");
        std::fs::write(&component, shipped::VAS_PLAIN).unwrap();
        let key = PrivateKey::make(&folder.join("key")).unwrap();
        Self { folder, component, key }
    }

    fn other_key(&self) -> PrivateKey {
        PrivateKey::make(&self.folder.join("other-key")).unwrap()
    }

    /// Signs these bytes, and puts the lines beside the component.
    fn sign(&self, bytes: &[u8], keys: &[&PrivateKey]) -> PathBuf {
        let now = trust::unix_seconds(SystemTime::now());
        let signatures: Vec<Signature> = keys.iter().map(|key| Signature::of(bytes, key, now)).collect();
        signature::write(&self.component, &signatures).unwrap()
    }

    /// A tenant that trusts this key until a day, and takes the component as `mine`.
    fn config(&self, key: &PrivateKey, expires: &str, more: &str) -> PathBuf {
        let key =
            format!("[[signatures.keys]]\nname = \"acme-security\"\nkey = \"{}\"\nexpires = {expires}\n", key.public());
        let policy = "[[policies]]\npolicy = \"mine.wasm\"\nsettings = {}\n";
        let path = self.folder.join("acme.toml");
        // From this folder: the name alone would be a shipped one's.
        let policy = policy.replace("mine.wasm", "./mine.wasm");
        std::fs::write(&path, format!("name = \"acme\"\n{more}\n{policy}{key}")).unwrap();
        path
    }

    fn open(&self, host: &mut Host) -> Result<Tenant, Error> {
        Tenant::open(host, &self.config(&self.key, "2099-12-31", ""))
    }

    /// It is refused as the guest's fault, before anything has looked at the component.
    #[track_caller]
    fn refused(&self, words: &str) {
        refused(self.open(&mut host()), words);
    }
}

#[track_caller]
fn refused(opened: Result<Tenant, Error>, words: &str) {
    let Err(error) = opened else { panic!("it is loaded") };
    assert!(error.to_string().contains(words), "{error}");
    let Error::Tenant(TenantError::Policy { source, .. }) = &error else { panic!("{error}") };
    assert!(matches!(**source, Error::Signature(_)), "{error}");
    assert_eq!(error.cause(), Cause::Guest);
}

/// The names of whoever signed a policy.
fn signers(tenant: &Tenant, name: &str) -> Vec<String> {
    let found = tenant.policies().find(|(config, ..)| config.name == name).unwrap();
    found.2.signers.iter().map(|signer| signer.name.clone()).collect()
}

#[test]
fn a_policy_that_a_trusted_key_signed_is_loaded_and_its_signer_known() {
    let bench = Bench::new("trusted");
    bench.sign(shipped::VAS_PLAIN, &[&bench.key]);
    let tenant = bench.open(&mut host()).unwrap();
    assert_eq!(signers(&tenant, "mine"), ["acme-security"]);
}

#[test]
fn a_flipped_byte_is_refused() {
    let bench = Bench::new("flipped");
    bench.sign(shipped::VAS_PLAIN, &[&bench.key]);
    for place in [0, shipped::VAS_PLAIN.len() / 2, shipped::VAS_PLAIN.len() - 1] {
        let mut flipped = shipped::VAS_PLAIN.to_vec();
        flipped[place] ^= 1;
        std::fs::write(&bench.component, flipped).unwrap();
        bench.refused("of \"acme-security\" is of other bytes, or was changed");
    }
    let longer = [shipped::VAS_PLAIN, b"\0"].concat();
    std::fs::write(&bench.component, longer).unwrap();
    bench.refused("is of other bytes, or was changed");
}

#[test]
fn another_key_is_refused() {
    let bench = Bench::new("another-key");
    let other = bench.other_key();
    let path = bench.sign(shipped::VAS_PLAIN, &[&other]);
    bench.refused(&format!("{} is no key that is trusted here", other.public()));
    // Nor does it help to write the trusted key's name over the signature.
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace(&other.public().to_string(), &bench.key.public().to_string())).unwrap();
    bench.refused("is of other bytes, or was changed");
}

#[test]
fn an_expired_key_is_refused() {
    let bench = Bench::new("expired");
    bench.sign(shipped::VAS_PLAIN, &[&bench.key]);
    let config = bench.config(&bench.key, "2020-02-29", "");
    refused(Tenant::open(&mut host(), &config), "of \"acme-security\" was trusted until 2020-02-29");
}

#[test]
fn a_stripped_signature_is_refused() {
    let bench = Bench::new("stripped");
    let path = bench.sign(shipped::VAS_PLAIN, &[&bench.key]);
    std::fs::write(&path, b"").unwrap();
    bench.refused("policy `mine`: unsigned");
    std::fs::remove_file(&path).unwrap();
    bench.refused("policy `mine`: unsigned");
}

#[test]
fn another_components_signature_is_refused() {
    let bench = Bench::new("moved");
    bench.sign(shipped::POLICIES[0].component, &[&bench.key]);
    bench.refused("is of other bytes, or was changed");
}

#[test]
fn a_signature_beside_garbage_is_refused() {
    let bench = Bench::new("garbage");
    let path = bench.sign(shipped::VAS_PLAIN, &[&bench.key]);
    let good = std::fs::read(&path).unwrap();
    std::fs::write(&path, [&good, b"garbage\n".as_slice()].concat()).unwrap();
    bench.refused("line 2 of its signatures: expected four words");
    std::fs::write(&path, [good.as_slice(), &[b'\n'; 5_000]].concat()).unwrap();
    bench.refused("4097 bytes or more, at most 4096");
    std::fs::write(&path, good.repeat(17)).unwrap();
    bench.refused("more than the 16 lines allowed");
}

#[test]
fn a_key_that_was_taken_out_of_the_store_is_refused() {
    let bench = Bench::new("revoked");
    bench.sign(shipped::VAS_PLAIN, &[&bench.key]);
    let config = bench.config(&bench.other_key(), "2099-12-31", "");
    refused(Tenant::open(&mut host(), &config), "is no key that is trusted here");
    // The last key taken out, the table left: nobody is trusted, and that is no leave to go unsigned.
    std::fs::write(&config, "name = \"acme\"\n[[policies]]\npolicy = \"./mine.wasm\"\n[signatures]\n").unwrap();
    refused(Tenant::open(&mut host(), &config), "is no key that is trusted here");
}

#[test]
fn one_trusted_signature_of_several_is_enough() {
    let bench = Bench::new("several");
    let stranger = bench.other_key();
    bench.sign(shipped::VAS_PLAIN, &[&stranger, &bench.key]);
    assert_eq!(signers(&bench.open(&mut host()).unwrap(), "mine"), ["acme-security"]);
    // One that is trusted and wrong beside one that is right and unknown: neither is enough.
    let now = trust::unix_seconds(SystemTime::now());
    let two = [Signature::of(b"other bytes", &bench.key, now), Signature::of(shipped::VAS_PLAIN, &stranger, now)];
    signature::write(&bench.component, &two).unwrap();
    bench.refused("is of other bytes, or was changed; ");
}

#[test]
fn a_signature_from_the_future_is_refused_and_an_old_one_is_not() {
    let bench = Bench::new("future");
    let now = SystemTime::now();
    let dated = |time: SystemTime| {
        let signature = Signature::of(shipped::VAS_PLAIN, &bench.key, trust::unix_seconds(time));
        signature::write(&bench.component, &[signature]).unwrap()
    };
    dated(now + DAY);
    bench.refused("which is later than now");
    let path = dated(SystemTime::UNIX_EPOCH);
    assert!(bench.open(&mut host()).is_ok(), "a key's time has an end and no beginning");
    // Another date than was signed.
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace(" 0 ", " 1 ")).unwrap();
    bench.refused("is of other bytes, or was changed");
}

#[test]
fn what_nobody_answers_for_is_not_even_read() {
    let bench = Bench::new("unread");
    std::fs::write(&bench.component, b"no WebAssembly").unwrap();
    bench.refused("policy `mine`: unsigned");
    bench.sign(b"no WebAssembly", &[&bench.key]);
    let error = bench.open(&mut host()).err().unwrap();
    assert!(error.to_string().contains("not a WebAssembly file"), "a signature opens no other door: {error}");
}

#[test]
fn shipped_policies_need_no_signature_under_their_own_name_and_only_there() {
    let bench = Bench::new("shipped");
    let required = "[[required]]\npolicy = \"guard\"\nsettings = { phrases = \"the go\" }\n";
    // A signature beside a shipped policy's name is nobody's.
    let config = bench.config(&bench.key, "2099-12-31", required);
    bench.sign(shipped::VAS_PLAIN, &[&bench.key]);
    let tenant = Tenant::open(&mut host(), &config).unwrap();
    assert!(signers(&tenant, "guard").is_empty());
    // Whoever can write the folder may not put a shipped policy where another one should be.
    std::fs::write(&bench.component, shipped::POLICIES[0].component).unwrap();
    std::fs::remove_file(signature::path_of(&bench.component)).unwrap();
    refused(Tenant::open(&mut host(), &config), "mine");
}

#[test]
fn a_copy_of_a_shipped_policy_is_shown_as_what_the_loader_takes_it_for() {
    let bench = Bench::new("copy");
    std::fs::write(&bench.component, shipped::component("guard").unwrap()).unwrap();
    let more = "signatures.required = false\n[[required]]\npolicy = \"guard\"\n";
    let config = bench.config(&bench.key, "2099-12-31", more);
    let report = Run::of(&["tenant", "check", config.to_str().unwrap(), "--model", tiny(), "--json"]).object(0);
    let shown = |place: usize| (&report["policies"][place]["name"], &report["policies"][place]["shipped"]);
    assert_eq!(shown(0), (&"guard".into(), &true.into()));
    assert_eq!(shown(1), (&"mine".into(), &false.into()), "it would need a signature");
}

#[test]
fn where_signatures_are_not_required_they_are_taken_down() {
    let bench = Bench::new("optional");
    let config = bench.config(&bench.key, "2099-12-31", "signatures.required = false");
    let mut host = host();
    assert!(signers(&Tenant::open(&mut host, &config).unwrap(), "mine").is_empty());
    let path = bench.sign(shipped::VAS_PLAIN, &[&bench.key]);
    assert_eq!(signers(&Tenant::open(&mut host, &config).unwrap(), "mine"), ["acme-security"]);
    std::fs::write(path, b"garbage").unwrap();
    assert!(signers(&Tenant::open(&mut host, &config).unwrap(), "mine").is_empty());
}

#[test]
fn a_replacement_obeys_the_same_rule() {
    let bench = Bench::new("replaced");
    bench.sign(shipped::VAS_PLAIN, &[&bench.key]);
    let mut host = host();
    let now = SystemTime::now();
    let expires = trust::day(trust::unix_seconds(now) + 10 * DAY.as_secs()).to_string();
    let mut tenant = Tenant::open_at(&mut host, &bench.config(&bench.key, &expires, ""), now).unwrap();
    let hash = |tenant: &Tenant| tenant.policies().map(|(_, _, policy)| *policy.compiled.sha256()).collect::<Vec<_>>();
    let before = hash(&tenant);
    // Another component: the same with an empty custom section at its end.
    let other = [shipped::VAS_PLAIN, &[0, 2, 1, b'x']].concat();
    let signed = Signature::of(&other, &bench.key, trust::unix_seconds(now)).line();
    let foreign = Signature::of(&other, &bench.other_key(), trust::unix_seconds(now)).line();
    let mut refused = |component: &[u8], signatures: Option<&[u8]>, now, words: &str| {
        let error = tenant.replace_signed(&mut host, "mine", component, signatures, now).unwrap_err();
        assert!(error.to_string().contains(words) && error.cause() == Cause::Guest, "{error}");
        assert_eq!(hash(&tenant), before, "nothing has changed");
    };
    refused(&other, None, now, "unsigned");
    refused(&other, Some(foreign.as_bytes()), now, "is no key that is trusted here");
    refused(shipped::VAS_PLAIN, Some(signed.as_bytes()), now, "is of other bytes");
    refused(&other, Some(signed.as_bytes()), now + 12 * DAY, "was trusted until");
    assert!(tenant.replace(&mut host, "mine", &other).is_err());
    tenant.replace_signed(&mut host, "mine", &other, Some(signed.as_bytes()), now).unwrap();
    assert_ne!(hash(&tenant), before);
    assert_eq!(signers(&tenant, "mine"), ["acme-security"]);
    // What ships needs one like any other, in this place.
    assert!(tenant.replace(&mut host, "mine", shipped::POLICIES[0].component).is_err());
}

#[test]
fn pipes_are_no_files_and_planted_links_are_not_written_through() {
    let (bench, key, component, public) = made_by_the_program("planted");
    let victim = bench.folder.join("victim");
    std::fs::write(&victim, "precious").unwrap();
    for planted in ["mine.wasm.sig", "mine.wasm.sig.part"] {
        let _ = std::os::unix::fs::symlink(&victim, bench.folder.join(planted));
    }
    std::fs::remove_file(bench.folder.join("mine.wasm.sig")).unwrap();
    assert_eq!(Run::of(&["policy", "sign", &component, "--key", &key]).code, Some(0));
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
    assert!(bench.folder.join("mine.wasm.sig").symlink_metadata().unwrap().is_file());
    std::fs::remove_file(bench.folder.join("mine.wasm.sig")).unwrap();
    let pipe = |name: &str| {
        let made = std::process::Command::new("mkfifo").arg(bench.folder.join(name)).status().unwrap();
        assert!(made.success());
    };
    pipe("mine.wasm.sig");
    Run::of(&["policy", "verify", &component, "--trust", &public]).refuses(2, &["not a regular file"]);
    pipe("pipe.wasm");
    let path = bench.folder.join("pipe.wasm");
    Run::of(&["policy", "inspect", path.to_str().unwrap()]).refuses(2, &["not a regular file"]);
}

/// A bench whose key and signature the program has made, and the public key that it printed.
fn made_by_the_program(name: &str) -> (Bench, String, String, String) {
    let bench = Bench::new(name);
    let path = |file: &str| bench.folder.join(file).to_str().unwrap().to_owned();
    let (key, component) = (path("acme.key"), path("mine.wasm"));
    let made = Run::of(&["policy", "keygen", &key]);
    assert_eq!((made.code, made.error.as_str()), (Some(0), ""), "{made:?}");
    let public = made.out.trim_end().to_owned();
    (bench, key, component, public)
}

#[test]
fn the_program_makes_keys_signs_and_verifies() {
    let (bench, key, component, public) = made_by_the_program("program");
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    Run::of(&["policy", "keygen", &key]).refuses(2, &["there is such a file", "never overwritten"]);
    let verify = |more: &[&str]| Run::of(&[&["policy", "verify", &component, "--trust", &public], more].concat());
    verify(&[]).refuses(3, &["policy `mine`: unsigned"]);
    let report = verify(&["--json"]).object(3);
    assert!(report["trusted"] == false && report["error"].as_str().unwrap().contains("unsigned"), "{report:#}");
    let sign = |more: &[&str]| Run::of(&[&["policy", "sign", &component, "--key", &key], more].concat());
    assert_eq!(sign(&[]).out, format!("{component}.sig: signed by {public}\n"));
    let verified = verify(&[]);
    assert!(verified.code == Some(0) && verified.out.contains(&public), "{verified:?}");
    let report = verify(&["--json"]).object(0);
    assert_eq!((&report["trusted"], &report["signatures"][0]["verdict"]), (&true.into(), &"trusted".into()));
    // A second signer joins; signing again replaces one's own.
    let other = bench.folder.join("key");
    let second = Run::of(&["policy", "sign", &component, "--key", other.to_str().unwrap(), "--json"]).object(0);
    assert_eq!((&second["count"], &second["dropped"]), (&2.into(), &0.into()));
    assert_eq!(sign(&["--json"]).object(0)["count"], 2);
    let report = verify(&["--json"]).object(0);
    assert_eq!(report["signatures"][0]["verdict"], "unknown", "{report:#}");
    let inspected = Run::of(&["policy", "inspect", &component]);
    assert_eq!(inspected.out.lines().filter(|line| line.starts_with("signed      by ed25519:")).count(), 2);
    let checked = Run::of(&["policy", "check", &component, "--json"]).object(0);
    assert_eq!(checked["signatures"]["found"][1]["holds"], true, "{checked:#}");
    // Another build: what was signed before is of other bytes, and goes with the next signature.
    std::fs::write(&component, [shipped::VAS_PLAIN, &[0, 2, 1, b'x']].concat()).unwrap();
    verify(&[]).refuses(3, &["is of other bytes, or was changed"]);
    let inspected = Run::of(&["policy", "inspect", &component]);
    assert!(inspected.out.contains("signed      NOT by ed25519:"), "{inspected:?}");
    assert_eq!(sign(&["--json"]).object(0)["dropped"], 1);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    sign(&[]).refuses(2, &["mode 644", "chmod 600"]);
    Run::of(&["policy", "verify", &component]).refuses(2, &["--trust"]);
    Run::of(&["policy", "sign", &component, "--key", &component]).refuses(2, &["key"]);
    let vas = Run::of(&["policy", "inspect", "vas", "--json"]).object(0);
    assert_eq!((&vas["signatures"]["shipped"], &vas["signatures"]["found"]), (&true.into(), &serde_json::json!([])));
}

#[test]
fn the_audit_record_names_the_signer_and_replays() {
    let (bench, key, component, public) = made_by_the_program("audited");
    assert_eq!(Run::of(&["policy", "sign", &component, "--key", &key]).code, Some(0));
    let config = bench.config(&PrivateKey::read(Path::new(&key)).unwrap(), "2099-12-31", "");
    let config = config.to_str().unwrap();
    let verified = Run::of(&["policy", "verify", &component, "--tenant", config]);
    assert!(verified.code == Some(0) && verified.out.starts_with("signed by \"acme-security\" on "), "{verified:?}");
    let check = ["tenant", "check", config, "--model", tiny()];
    let checked = Run::of(&check);
    assert!(checked.out.contains("  signed by \"acme-security\" on "), "{checked:?}");
    let report = Run::of(&[&check[..], &["--json"]].concat()).object(0);
    assert_eq!(report["policies"][0]["signed_by"][0]["key"], public.as_str());
    let log = bench.folder.join("log.jsonl");
    let log = log.to_str().unwrap();
    let run = Run::tiny("x", &["--max-tokens", "4", "--tenant", config, "--policy", "mine", "--audit", log]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let text = std::fs::read_to_string(log).unwrap();
    let record = Record::parse(text.trim_end().as_bytes()).unwrap();
    let signers = &record.request.policies[0].signers;
    assert_eq!(
        (signers.len(), signers[0].name.as_str(), signers[0].key.as_str()),
        (1, "acme-security", public.as_str())
    );
    assert_eq!(Run::of(&["audit", "verify", log]).code, Some(0));
    let replayed = Run::of(&["replay", log, "--model", tiny(), "--json"]).object(0);
    assert_eq!(replayed["equal"], true, "{replayed:#}");
    // Without a signer a record is as it was before there were any.
    let plain = bench.folder.join("plain.jsonl");
    let plain = plain.to_str().unwrap();
    assert_eq!(Run::tiny("x", &["--max-tokens", "4", "--policy", "vas", "--audit", plain]).code, Some(0));
    assert!(!std::fs::read_to_string(plain).unwrap().contains("signers"));
}
