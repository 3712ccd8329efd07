//! Tenants: what a configuration comes to on a model, what a request cannot do under it, and policies that are
//! replaced while responses run.
//!
//! The file's own syntax is tested beside `host/src/tenant/config.rs`. Here a tiny model with two heads is opened
//! once a test through [`Host`], since tenants are its callers'.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use vassal::engine::{Event, Finish, Response, SequenceId};
use vassal::error::{Cause, Error};
use vassal::host::{Host, HostOptions};
use vassal::model::synthetic::SyntheticModel;
use vassal::request::{FaultPolicy, Request};
use vassal::sandbox::{Fault, FaultKind};
use vassal::tenant::{Asked, Tenant};
use vassal_kernels::cpu::Isa;

use crate::attacks::Served;
use crate::made_up_heads::look_ahead;
use crate::program::{Run, written};
use crate::rebuild::root;
use crate::support::{compilation, processor};

/// A tenant with a guard, `vas` for whoever asks, and whatever lines a test adds.
fn config(more: &str) -> String {
    let required = "[[required]]\npolicy = \"guard\"\nsettings = { phrases = \"the go\" }\n";
    format!("name = \"acme\"\ngrants = [\"rewind\", \"insert\"]\n{more}\n{required}\n[[policies]]\npolicy = \"vas\"\n")
}

pub(crate) fn host() -> Host {
    let model = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("tenants.gguf");
    static WRITTEN: std::sync::Once = std::sync::Once::new();
    WRITTEN.call_once(|| SyntheticModel::default().write(&model).unwrap());
    let options =
        HostOptions { device: processor(Isa::best(), 1), compilation: compilation(), ..HostOptions::new(model) };
    let heads = |sha256: &str, _: &_| {
        let mut heads = vec![look_ahead("sentiment", 2, 11), look_ahead("simplicity", 1, 12)];
        heads.iter_mut().for_each(|head| head.description.model_sha256 = sha256.to_owned());
        Ok(heads)
    };
    Host::open_with(&options, heads).unwrap()
}

/// A tenant from the text of its file.
fn open(host: &mut Host, name: &str, text: &str) -> Result<Tenant, Error> {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.toml"));
    std::fs::write(&path, text).unwrap();
    Tenant::open(host, &path)
}

fn asked(name: &str, settings: &[(&str, &str)]) -> Asked {
    let settings = settings.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    Asked { name: name.to_owned(), settings }
}

fn request(host: &Host) -> Request {
    Request { max_tokens: Some(16), seed: Some(3), ..host.request("you and the one").unwrap() }
}

/// The request under the tenant, or the error's words and whose it is.
fn made(host: &Host, tenant: &mut Tenant, asked: &[Asked]) -> Result<Request, (String, Cause)> {
    tenant.request(request(host), asked, Instant::now()).map_err(|error| (error.to_string(), error.cause()))
}

fn finish(host: &mut Host, id: SequenceId) -> Response {
    loop {
        for event in host.engine().step().unwrap() {
            match event {
                Event::Finished { sequence, response } if sequence == id => return *response,
                _ => {}
            }
        }
    }
}

#[test]
fn required_policies_come_first_and_requests_add_theirs() {
    let mut host = host();
    let mut tenant = open(&mut host, "first", &config("")).unwrap();
    let request = made(&host, &mut tenant, &[asked("vas", &[("sentiment", "1")])]).unwrap();
    let chain: Vec<(&str, bool)> =
        request.policies.iter().map(|used| (used.policy.name.as_str(), used.required)).collect();
    assert_eq!(chain, [("guard", true), ("vas", false)]);
    assert_eq!(request.policies[0].fault_policy, FaultPolicy::Abort);
    let response = host.generate(request, |_| ()).unwrap();
    assert!(!response.text.contains("the go") && response.counters.candidate_rows > 0, "{response:?}");
    // Without a policy of its own a request still has the guard.
    assert_eq!(made(&host, &mut tenant, &[]).unwrap().policies.len(), 1);
}

#[test]
fn a_request_can_neither_turn_a_tenants_dial_nor_touch_what_is_required() {
    let _served = Served::as_before();
    let mut host = host();
    let mut tenant = open(&mut host, "dials", &config("")).unwrap();
    let mut refused = |asked: &[Asked]| made(&host, &mut tenant, asked).err().expect("it is refused");
    let cases = [
        (vec![asked("vas", &[("candidates", "5")])], "setting `candidates` of policy `vas` belongs to the tenant"),
        (vec![asked("guard", &[("phrases", "x")])], "tenant \"acme\" requires the policy \"guard\" on every request"),
        (vec![asked("vsa", &[])], "tenant \"acme\" lets no request name the policy \"vsa\"; near: vas"),
        (vec![asked("vas", &[]), asked("vas", &[])], "the policy \"vas\" is on this request twice"),
    ];
    for (asked, words) in cases {
        let (error, cause) = refused(&asked);
        assert!(error.starts_with(words), "{error}");
        assert_eq!(cause, Cause::Client, "{error}");
    }
}

#[test]
fn grants_heads_and_dials_are_checked_when_the_tenant_is_opened() {
    let mut host = host();
    let mut refused = |text: &str| match open(&mut host, "opened", text) {
        Err(error) => (error.to_string(), error.cause()),
        Ok(_) => panic!("{text} is accepted"),
    };
    let (error, cause) = refused("name = \"a\"\nheads = [\n\"sentimant\"]");
    assert!(error.ends_with("opened.toml, line 3: there is no head \"sentimant\"; near: sentiment"), "{error}");
    assert_eq!(cause, Cause::Client);
    let (error, cause) = refused("name = \"a\"\n[[required]]\npolicy = \"vas\"\nsettings = { sentiment = 9 }");
    assert!(error.ends_with("line 2: setting `sentiment` takes a number from -3 to 3, not `9`"), "{error}");
    assert_eq!(cause, Cause::Client);
    let (error, cause) =
        refused("name = \"a\"\nheads = [\"simplicity\"]\n[[policies]]\npolicy = \"vas\"\nsettings = { sentiment = 1 }");
    assert!(
        error.contains("policy `vas` has no setting `sentiment`"),
        "a head that is not offered has no dial: {error}"
    );
    assert_eq!(cause, Cause::Client);
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("tenants-scripted.wasm");
    std::fs::write(&path, crate::support::component("scripted")).unwrap();
    let text = |grants: &str| format!("name = \"a\"\n[[policies]]\npolicy = {path:?}\ngrants = [{grants}]");
    let (error, cause) = refused(&text("\"rewind\", \"insert\""));
    assert!(error.contains("stop"), "what is not granted is named: {error}");
    assert_eq!(cause, Cause::Guest);
    // Whatever is wrong with a policy, it is said where it stands, and it stays whose it was.
    let none = "name = \"a\"\n\n[[policies]]\npolicy = ";
    for (source, cause, words) in [
        ("gaurd", Cause::Client, "there is no policy \"gaurd\"; near: guard"),
        ("./nowhere.wasm", Cause::Client, "nowhere.wasm: No such file"),
        ("opened.toml/x.wasm", Cause::Client, "x.wasm: Not a directory"),
        ("./opened.toml", Cause::Guest, "not a WebAssembly file"),
    ] {
        let (error, whose) = refused(&format!("{none}{source:?}"));
        assert!(error.contains("opened.toml, line 3: ") && error.contains(words), "{error}");
        assert_eq!(whose, cause, "{error}");
    }
    assert!(open(&mut host, "granted", &text("\"rewind\", \"insert\", \"stop\"")).is_ok());
}

#[test]
fn a_running_response_keeps_the_policy_that_it_started_with() {
    let mut host = host();
    let component = |name: &str| std::fs::read(root().join(format!("guest/policies/{name}.wasm"))).unwrap();
    let mut tenant = open(&mut host, "replace", &config("")).unwrap();
    let steered = [asked("vas", &[("sentiment", "2")])];
    let untouched = made(&host, &mut tenant, &steered).unwrap();
    let untouched = host.generate(untouched, |_| ()).unwrap();
    let running = made(&host, &mut tenant, &steered).unwrap();
    let running = host.validate(running).unwrap();
    let id = host.engine().submit(running).unwrap();
    for _ in 0..4 {
        host.engine().step().unwrap();
    }
    // What fails to load changes nothing.
    let before: Vec<_> = tenant.policies().map(|(_, _, policy)| *policy.compiled.sha256()).collect();
    let broken = &component("vas")[..1000];
    assert_eq!(tenant.replace(&mut host, "vas", broken).unwrap_err().cause(), Cause::Guest);
    assert_eq!(tenant.replace(&mut host, "vsa", &component("vas")).unwrap_err().cause(), Cause::Client);
    assert_eq!(before, tenant.policies().map(|(_, _, policy)| *policy.compiled.sha256()).collect::<Vec<_>>());
    tenant.replace(&mut host, "vas", &component("vas_plain")).unwrap();
    assert_ne!(before, tenant.policies().map(|(_, _, policy)| *policy.compiled.sha256()).collect::<Vec<_>>());
    assert_eq!(finish(&mut host, id).token_ids(), untouched.token_ids());
    // The same arithmetic in another component: the same tokens.
    let replaced = made(&host, &mut tenant, &steered).unwrap();
    assert_eq!(host.generate(replaced, |_| ()).unwrap().token_ids(), untouched.token_ids());
    tenant.remove("vas").unwrap();
    assert!(made(&host, &mut tenant, &steered).is_err());
    let error = tenant.remove("guard").unwrap_err().to_string();
    assert_eq!(error, "tenant \"acme\" requires the policy \"guard\": it can be replaced, but not removed");
}

#[test]
fn a_required_policy_that_refuses_the_request_ends_it_whatever_the_fault_policy() {
    let mut host = host();
    let long = "a".repeat(257);
    let text = format!(
        "name = \"a\"\n[[required]]\npolicy = \"guard\"\non-fault = \"base\"\nsettings = {{ phrases = \"{long}\" }}"
    );
    let mut tenant = open(&mut host, "refusing", &text).unwrap();
    let request = made(&host, &mut tenant, &[]).unwrap();
    let response = host.generate(request, |_| ()).unwrap();
    let refused =
        |fault: &Fault| fault.kind == FaultKind::StartRefused && fault.to_string().contains("at most 256 letters");
    assert!(matches!(&response.finish, Finish::Faulted(fault) if refused(fault)), "{response:?}");
    assert!(response.tokens.is_empty());
}

#[test]
fn limits_are_the_requests_and_quotas_the_minutes() {
    let mut host = host();
    let more = "[limits]\nmax-tokens = 20\npolicies = 1\ncandidates = 8\n[quotas]\nforwards = 20";
    let text = format!("name = \"acme\"\n[[policies]]\npolicy = \"vas\"\n[[policies]]\npolicy = \"guard\"\n{more}");
    let mut tenant = open(&mut host, "limits", &text).unwrap();
    let now = Instant::now();
    let mut refused = |asks: Request, asked: &[Asked]| tenant.request(asks, asked, now).err().unwrap().to_string();
    let long = Request { max_tokens: Some(21), ..request(&host) };
    assert_eq!(refused(long, &[]), "tenant \"acme\" allows at most 20 response tokens, got 21");
    let wide = Request { candidates_max: Some(9), ..request(&host) };
    assert_eq!(refused(wide, &[]), "tenant \"acme\" allows at most 8 candidates, got 9");
    let two = [asked("vas", &[]), asked("guard", &[])];
    assert_eq!(refused(request(&host), &two), "tenant \"acme\" allows at most 1 policies of a request's own, got 2");
    let silent = Request { max_tokens: None, ..request(&host) };
    let silent = tenant.request(silent, &[], now).unwrap();
    assert_eq!((silent.max_tokens, silent.candidates_max), (Some(20), Some(8)));
    // Nobody but the engine counts, and what was cancelled counts too.
    let valid = host.validate(silent.clone()).unwrap();
    let id = host.engine().submit(valid).unwrap();
    for _ in 0..13 {
        host.engine().step().unwrap();
    }
    assert!(host.engine().cancel(id).is_some());
    assert!(tenant.request(request(&host), &[], Instant::now()).is_ok(), "12 of 20 or so");
    host.generate(silent, |_| ()).unwrap();
    let (now, second) = (Instant::now(), Duration::from_secs(1));
    let error = tenant.request(request(&host), &[], now + 10 * second).err().unwrap();
    assert!(
        error.to_string().starts_with("tenant \"acme\": ") && error.to_string().contains("of 20 forwards a minute")
    );
    assert_eq!(error.cause(), Cause::Capacity);
    assert!(tenant.request(request(&host), &[], now + 60 * second).is_ok(), "both are a minute old");
    // Who opens the file once more counts anew.
    assert!(open(&mut host, "limits", &text).unwrap().request(request(&host), &[], now).is_ok());
}

#[test]
fn the_program_keeps_to_a_tenants_limit_where_nobody_says_how_many_tokens() {
    let short = written("short.toml", b"name = \"acme\"\n[limits]\nmax-tokens = 40\n");
    for more in [&[][..], &["--compare"], &["--max-tokens", "40"]] {
        let run = Run::tiny("x", &[&["--tenant", &short, "--json"], more].concat());
        assert_eq!(run.code, Some(0), "{more:?}: {run:?}");
    }
    let words = "tenant \"acme\" allows at most 40 response tokens, got 41";
    Run::tiny("x", &["--tenant", &short, "--max-tokens", "41"]).refuses(2, &[words]);
    // One request a process: the one quota that it can meet lets nothing begin.
    let none = written("none.toml", b"name = \"acme\"\n[quotas]\nforwards = 0\n");
    Run::tiny("x", &["--tenant", &none]).refuses(4, &["tenant \"acme\": 0 of 0 forwards a minute are used"]);
}
