//! The form of a signature, what it covers, and each bound at its edge, by a clock that the tests set.
//!
//! Keys are made anew for each test, in folders that go with it. What a tenant does with a signature, and what the
//! program says, is tested in `tests/signatures.rs`.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::{Date, Month};

use super::*;

/// 2026-06-30, noon.
const NOON: u64 = 1_782_820_800;

/// The order of the curve's base point, little-endian.
const ORDER: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

/// A folder of one test, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("vassal-signature-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn key(name: &str) -> PrivateKey {
    PrivateKey::make(&Folder::new(name).0.join("key")).unwrap()
}

fn at(unix: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(unix)
}

fn sha256(component: &[u8]) -> [u8; 32] {
    Sha256::digest(component).into()
}

/// A store that trusts this key until 2026-06-30.
fn store(key: &PrivateKey) -> TrustStore {
    let expires = Date::from_calendar_date(2026, Month::June, 30).unwrap();
    TrustStore { required: true, keys: vec![TrustedKey { name: "acme".into(), key: key.public(), expires }] }
}

#[test]
fn a_signature_covers_the_domain_the_bytes_the_key_and_the_time() {
    let key = key("covers");
    let signature = Signature::of(b"component", &key, NOON);
    let public = key.public();
    let mut message = b"vassal policy signature 1\0".to_vec();
    message.extend(Sha256::digest(b"component"));
    message.extend(public.bytes());
    message.extend(NOON.to_le_bytes());
    assert_eq!(signature.bytes, key.sign(&message), "docs/security.md gives the message");
    assert!(signature.holds(&sha256(b"component")) && !signature.holds(&sha256(b"componenu")));
    assert!(!Signature { signed_unix: NOON + 1, ..signature.clone() }.holds(&sha256(b"component")));
    let other = self::key("covers-other").public();
    assert!(!Signature { key: other, ..signature.clone() }.holds(&sha256(b"component")));
    for place in 0..64 {
        let mut flipped = signature.clone();
        flipped.bytes[place] ^= 1;
        assert!(!flipped.holds(&sha256(b"component")), "byte {place}");
    }
}

#[test]
fn a_signature_has_one_form_and_no_key_is_of_small_order() {
    let mut signature = Signature::of(b"component", &key("form"), NOON);
    // The same number modulo the order: loose readers take it.
    let mut carry = 0;
    for (byte, more) in signature.bytes[32..].iter_mut().zip(ORDER) {
        let sum = u16::from(*byte) + u16::from(more) + carry;
        (*byte, carry) = (sum as u8, sum >> 8);
    }
    assert!(!signature.holds(&sha256(b"component")));
    for small in [format!("01{}", "0".repeat(62)), format!("ec{}7f", "f".repeat(60)), "0".repeat(64)] {
        let error = format!("ed25519:{small}").parse::<PublicKey>().unwrap_err();
        assert!(matches!(error, KeyError::NotPublic { given: "a point of small order" }), "{small}: {error}");
    }
}

#[test]
fn lines_read_back_and_anything_else_is_refused_with_its_line() {
    let key = key("lines");
    let signature = Signature::of(b"component", &key, NOON);
    let line = signature.line();
    assert_eq!(parse(line.repeat(2).as_bytes()).unwrap(), [signature.clone(), signature]);
    assert_eq!(parse(line.trim_end().as_bytes()).unwrap().len(), 1, "an editor may drop the last newline");
    assert_eq!(parse(b"").unwrap(), []);
    let words: Vec<&str> = line.trim_end().split(' ').collect();
    let with = |place: usize, word: &str| {
        let mut words = words.clone();
        words[place] = word;
        words.join(" ")
    };
    let cases = [
        (format!("{line}garbage"), 2, "four words"),
        (format!("{line}\n"), 2, "four words"),
        (format!("{} x", line.trim_end()), 1, "four words"),
        (line.replace(' ', "  "), 1, "four words"),
        (with(0, "vassal-signature-2"), 1, "vassal-signature-1"),
        (with(1, "ed25519:00"), 1, "64 hexadecimal digits"),
        (with(1, &words[1].to_uppercase()), 1, "64 hexadecimal digits"),
        (with(2, "+5"), 1, "seconds since 1970"),
        (with(2, "05"), 1, "seconds since 1970"),
        (with(2, "253402300800"), 1, "the year 9999"),
        (with(3, &words[3][2..]), 1, "128 hexadecimal digits"),
        (with(3, &format!("{}00", words[3])), 1, "128 hexadecimal digits"),
        ("\u{1b}[2J\u{202e}".to_owned(), 1, "four words"),
    ];
    for (text, expected, word) in cases {
        let Err(SignatureFault::Malformed { line, accepted, given }) = parse(text.as_bytes()) else {
            panic!("{text:?} is accepted")
        };
        assert!(line == expected && accepted.contains(word), "{text:?}: line {line}, {accepted}");
        assert!(!given.contains(['\u{1b}', '\u{202e}']) && given.len() <= GIVEN_BYTES + 3, "{given:?}");
    }
    assert!(matches!(parse(&[0xff; 40]), Err(SignatureFault::Malformed { .. })), "not UTF-8");
}

#[test]
fn files_of_signatures_are_bounded_before_they_are_read() {
    let line = Signature::of(b"component", &key("bounds"), SIGNED_MAX).line();
    assert_eq!(parse(line.repeat(SIGNATURES_MAX).as_bytes()).unwrap().len(), SIGNATURES_MAX);
    assert!(line.len() * SIGNATURES_MAX <= FILE_BYTES_MAX, "the longest line, as often as is allowed");
    assert_eq!(parse(line.repeat(SIGNATURES_MAX + 1).as_bytes()), Err(SignatureFault::TooMany));
    assert!(matches!(parse(&[b' '; FILE_BYTES_MAX]), Err(SignatureFault::Malformed { line: 1, .. })));
    let bytes = FILE_BYTES_MAX + 1;
    assert_eq!(parse(&[b' '; FILE_BYTES_MAX + 1]), Err(SignatureFault::TooLarge { bytes }));
    let folder = Folder::new("long");
    let path = folder.0.join("a.wasm");
    std::fs::write(path_of(&path), vec![b' '; 100_000]).unwrap();
    assert_eq!(beside(&path).unwrap().unwrap().len(), bytes, "no more than one byte beyond is read");
}

#[test]
fn a_key_is_trusted_to_the_last_second_of_its_day() {
    let key = key("expires");
    let store = store(&key);
    let signature = Signature::of(b"component", &key, NOON);
    let judge = |unix: u64| store.judge(b"component", std::slice::from_ref(&signature), at(unix)).remove(0);
    let midnight = NOON + 12 * 3600;
    assert!(matches!(judge(midnight - 1), Verdict::Trusted(signer) if signer.name == "acme"));
    assert_eq!(judge(midnight), Verdict::Expired(store.keys[0].clone()), "however old the signature is");
    assert!(judge(midnight).to_string().ends_with("of \"acme\" was trusted until 2026-06-30"));
}

#[test]
fn a_signature_may_be_old_but_not_from_the_future() {
    let key = key("future");
    let store = store(&key);
    let judge = |signed: u64, now: SystemTime| {
        let signature = Signature::of(b"component", &key, signed);
        store.judge(b"component", &[signature], now).remove(0)
    };
    assert!(judge(0, at(NOON)).trusted().is_some(), "a key's time has an end and no beginning");
    assert!(judge(NOON + 600, at(NOON)).trusted().is_some(), "clocks differ");
    let verdict = judge(NOON + 601, at(NOON));
    assert!(matches!(verdict, Verdict::Future(_)), "{verdict}");
    // Dated after its key's last day: from the future as well, as long as the key is trusted.
    assert!(matches!(judge(NOON + 86_400, at(NOON)), Verdict::Future(_)));
    let before_1970 = UNIX_EPOCH - Duration::from_secs(5);
    assert!(matches!(judge(NOON, before_1970), Verdict::Future(_)), "a clock that is set back makes no key valid");
}

#[test]
fn whom_to_trust_is_asked_before_anything_is_computed() {
    let (key, stranger) = (key("order"), self::key("order-stranger"));
    let store = store(&key);
    let wrong = |key: &PrivateKey, signed| Signature::of(b"other bytes", key, signed);
    let judge = |signature, now| store.judge(b"component", &[signature], at(now)).remove(0);
    assert_eq!(judge(wrong(&stranger, NOON), NOON), Verdict::Unknown(stranger.public()));
    assert!(matches!(judge(wrong(&key, NOON), NOON + 86_400), Verdict::Expired(_)));
    assert!(matches!(judge(wrong(&key, NOON + 601), NOON), Verdict::Future(_)));
    assert!(matches!(judge(wrong(&key, NOON), NOON), Verdict::Wrong(_)));
}

#[test]
fn a_private_key_is_its_users_alone_and_never_overwritten() {
    let folder = Folder::new("private");
    let path = folder.0.join("key");
    let public = PrivateKey::make(&path).unwrap().public();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(PrivateKey::read(&path).unwrap().public(), public);
    let text = std::fs::read(&path).unwrap();
    assert!(matches!(PrivateKey::make(&path), Err(KeyError::Exists { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), text);
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
    // What is pasted where a public key belongs is refused, and not shown.
    let secret = String::from_utf8(text).unwrap();
    let error = secret.trim_end().parse::<PublicKey>().unwrap_err().to_string();
    assert!(error.ends_with("got a private key, which is nobody's to read"), "{error}");
    for mode in [0o640, 0o604, 0o620] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        assert!(matches!(PrivateKey::read(&path), Err(KeyError::Exposed { mode: found, .. }) if found == mode));
    }
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
    assert!(PrivateKey::read(&path).is_ok());
    for text in ["", "ed25519:00", "vassal-private-key-1 ", &secret[..40], &format!("{secret}x")] {
        let path = path.with_extension(text.len().to_string());
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(PrivateKey::read(&path), Err(KeyError::NotPrivate { .. })), "{text:?}");
    }
}
