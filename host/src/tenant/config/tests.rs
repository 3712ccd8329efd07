//! Configurations that are accepted, and every kind that is refused, with its words. The example in the module's own
//! header is one of them.
//!
//! Only the file is checked here; what policies and heads say to it is tested in `tests/tenants.rs`.

use super::*;

fn parse(text: &str) -> Result<TenantConfig, String> {
    TenantConfig::parse("acme.toml", text, Path::new("conf")).map_err(|error| error.to_string())
}

fn refused(text: &str) -> String {
    parse(text).expect_err("it is refused")
}

#[test]
fn the_least_configuration_grants_nothing_and_has_defaults() {
    let config = parse("name = \"acme\"").unwrap();
    assert_eq!(config.name, "acme");
    assert_eq!((config.heads, config.required.len(), config.policies.len()), (None, 0, 0));
    assert_eq!(config.limits, RequestLimits { max_tokens: 256, candidates: 256, policies: 4 });
    assert_eq!(config.quotas, Quotas::default());
    assert!(config.signatures.is_empty(), "nobody asks for signatures");
}

#[test]
fn the_example_of_the_module_is_accepted() {
    let example: String = include_str!("../config.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("//!"))
        .skip_while(|line| !line.contains("```toml"))
        .skip(1)
        .take_while(|line| !line.contains("```"))
        .map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(line)))
        .collect();
    let config = parse(&example).unwrap();
    assert_eq!(config.heads, Some(vec![("sentiment".to_owned(), 3)]));
    let guard = &config.required[0];
    assert_eq!((guard.name.as_str(), guard.source.as_str(), guard.line), ("guard", "guard", 5));
    assert_eq!(guard.settings, [("phrases".to_owned(), "big deal".to_owned())]);
    assert_eq!(guard.grants, Needs { insert: true, rewind: true, stop: true, prompt: false });
    let mine = &config.policies[0];
    assert_eq!((mine.name.as_str(), mine.fault_policy, mine.grants), ("mine", FaultPolicy::Abort, Needs::default()));
    assert_eq!(Path::new(&mine.source), Path::new("conf/policies/mine.wasm"), "from the file's folder");
    assert_eq!(config.limits, RequestLimits { max_tokens: 256, candidates: 64, policies: 4 });
    assert_eq!(config.quotas, Quotas { policy_ms: Some(2000), forwards: Some(50_000), notes: Some(500) });
    assert!(config.signatures.required);
    let key = &config.signatures.keys[0];
    assert_eq!((key.name.as_str(), key.expires.to_string().as_str()), ("acme-security", "2027-06-30"));
    assert_eq!(key.key.to_string(), KEY);
}

/// The example's key, which is RFC 8032's first.
const KEY: &str = "ed25519:d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

#[test]
fn signatures_are_asked_for_by_the_table_and_keys_are_checked() {
    let with = |lines: &str| format!("name = \"a\"\n{lines}");
    let signatures = |lines: &str| parse(&with(lines)).unwrap().signatures;
    assert!(signatures("[signatures]").required, "a table that lost its last key trusts nobody");
    let key = format!("[[signatures.keys]]\nname = \"k\"\nkey = \"{KEY}\"\nexpires = 2024-02-29\n");
    assert!(signatures(&key).required && !signatures(&format!("[signatures]\nrequired = false\n{key}")).required);
    let changed = |from: &str, to: &str| refused(&with(&key.replace(from, to)));
    let secret = format!("vassal-private-key-1 {}", &KEY[8..]);
    let other = "ed25519:3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c";
    let cases = [
        (
            changed(KEY, &KEY[..70]),
            "line 4: a key must be `ed25519:` and 64 lower-case hexadecimal digits, got something else",
        ),
        (
            changed(KEY, &secret),
            "line 4: a key must be `ed25519:` and 64 lower-case hexadecimal digits, got a private key",
        ),
        (changed("\"k\"", "\"\""), "line 3: a key's name must be 1 to 64 bytes of printable text"),
        (changed("2024-02-29", "2023-02-29"), "line 5: "),
        (changed("2024-02-29", "\"2024-02-29\""), "line 5: "),
        (changed("2024-02-29", "2024-02-29T00:00:00Z"), "line 5: "),
        (changed("expires = 2024-02-29", ""), "line 2: missing field `expires`"),
        (changed("expires", "until"), "line 5: unknown field `until`"),
        (
            refused(&with(&key.repeat(2))),
            "line 6: a key must be another key under another name than those before, got that of \"k\" again",
        ),
        (refused(&with(&format!("{key}{}", key.replace(KEY, other)))), "line 6: a key must be another"),
        (refused(&with(&format!("{key}{}", key.replace("\"k\"", "\"l\"")))), "line 6: a key must be another"),
        (refused(&with("[signatures]\nrequired = 1")), "line 3: "),
    ];
    for (error, expected) in cases {
        assert!(error.starts_with(&format!("acme.toml, {expected}")), "{error}\nexpected {expected}");
        assert!(!error.contains(&KEY[8..]), "a secret may be in the wrong place: {error}");
    }
}

#[test]
fn settings_of_every_type_become_text() {
    let text = "name = \"a\"\n[[policies]]\npolicy = \"vas\"\nsettings = { a = 0.5, b = 3, c = true, d = \"x\" }";
    let settings = &parse(text).unwrap().policies[0].settings;
    let texts: Vec<&str> = settings.iter().map(|(_, value)| value.as_str()).collect();
    assert_eq!(texts, ["0.5", "3", "true", "x"]);
}

#[test]
fn refusals_name_file_line_bound_and_what_was_given() {
    let with = |line: &str| format!("name = \"a\"\n\n{line}");
    let cases = [
        ("name = \"\"", "line 1: name must be 1 to 64 bytes of printable text, got \"\""),
        ("name = \"a\\u001bb\"", "line 1: name must be 1 to 64 bytes of printable text, got \"a\\u{1b}b\""),
        (
            &with("grants = [\"rewinds\"]"),
            "line 3: a grant must be one of prompt, insert, rewind, stop, got \"rewinds\"; near: rewind",
        ),
        (&with("[limits]\nmax-tokens = 0"), "line 4: max-tokens must be 1 to 32768, got 0"),
        (&with("[limits]\ncandidates = 257"), "line 4: candidates must be 1 to 256, got 257"),
        (&with("[limits]\npolicies = -1"), "line 4: policies must be 0 to 64, got -1"),
        (&with("[quotas]\nnotes = -5"), "line 4: notes must be 0 or more, got -5"),
        (
            &with("[[required]]\npolicy = \"guard\"\non-fault = \"ignore\""),
            "line 5: on-fault must be \"abort\" or \"base\", got \"ignore\"",
        ),
        (
            &with("[[policies]]\npolicy = \"vas\"\nsettings = { a = [1] }"),
            "line 3: a setting must be a text, a number or a flag, got \"a\", a array",
        ),
        (
            &with("[[required]]\npolicy = \"vas\"\n[[policies]]\npolicy = \"vas\""),
            "line 5: the policy \"vas\" is there twice; give one of them another `name`",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(refused(text), format!("acme.toml, {expected}"), "{text}");
    }
}

#[test]
fn what_the_parser_refuses_has_a_line() {
    for (text, line, word) in [
        ("name = \"a\"\nnmae = 1", 2, "nmae"),
        ("", 1, "name"),
        ("name = \"a\"\n[limits]\nmax-tokens = \"many\"", 3, "many"),
        ("name = \"a\"\nheads = [1]", 2, "string"),
        ("name = \"a\n", 1, ""),
        ("name = \"a\"\n[[required]]\nsettings = {}", 2, "policy"),
    ] {
        let words = refused(text);
        assert!(words.starts_with(&format!("acme.toml, line {line}: ")) && words.contains(word), "{text:?}: {words}");
    }
    let deep = format!("name = \"a\"\nheads = {}{}", "[".repeat(50_000), "]".repeat(50_000));
    assert!(refused(&deep).starts_with("acme.toml, line 2: "), "nesting has a bound");
}

#[test]
fn policies_have_a_bound() {
    let policy = |number: usize| format!("[[policies]]\npolicy = \"vas\"\nname = \"p{number}\"\n");
    let of = |count: usize| format!("name = \"a\"\n{}", (0..count).map(policy).collect::<String>());
    assert_eq!(parse(&of(64)).unwrap().policies.len(), 64);
    assert_eq!(refused(&of(65)), "acme.toml, line 194: the number of policies must be at most 64, got 65");
}

#[test]
fn files_are_read_within_bounds() {
    let folder = std::env::temp_dir().join(format!("vassal-tenant-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("large.toml");
    std::fs::write(&file, vec![b'\n'; FILE_BYTES_MAX as usize + 1]).unwrap();
    assert!(matches!(TenantConfig::read(&file), Err(ConfigError::TooLarge { bytes: 1_048_577, .. })));
    std::fs::write(&file, b"name = \"a\"").unwrap();
    assert_eq!(TenantConfig::read(&file).unwrap().name, "a");
    std::fs::write(&file, b"name = \"\xff\"").unwrap();
    assert!(matches!(TenantConfig::read(&file), Err(ConfigError::File { .. })), "not UTF-8");
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(matches!(TenantConfig::read(&file), Err(ConfigError::File { .. })), "not there");
}
