//! The format's own tests: what is written reads back, and everything else is refused by name.
//!
//! Files are made as `super::file` makes them and then damaged, or made by hand with the Parquet library where they
//! have to be wrong in a way that ours cannot be.

use std::sync::Arc;

use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use proptest::prelude::*;

use super::*;
use crate::learning::rewards::{BuiltIn, Opening, Score, Unscored, find};
use crate::sandbox::Compilation;

fn header() -> Header {
    Header {
        format: FORMAT.into(),
        model_sha256: "aa".into(),
        prompts_sha256: "bb".into(),
        splits: vec![Split::Learn, Split::Tune, Split::Test],
        seed: 7,
        samples: 2,
        temperature: 1.0,
        top_p: 1.0,
        token_limit: 3,
        command: "vassal rollout".into(),
        version: "0".into(),
    }
}

fn rollout(id: &str, sample: u32) -> Rollout {
    let prompt = format!("Prompt {id}");
    Rollout {
        id: id.into(),
        split: Split::of(&prompt),
        prompt,
        sample,
        tokens: vec![1, u32::MAX][..1 + sample as usize % 2].to_vec(),
        text: "the cat ±".into(),
        end: if sample == 0 { End::EndOfText } else { End::TokenLimit },
        scores: Vec::new(),
    }
}

fn rollouts(all: Vec<Rollout>) -> Rollouts {
    Rollouts { header: header(), rewards: Vec::new(), all }
}

/// Two rewards over three rollouts, the second without a score for one of them.
fn scored() -> Rollouts {
    let mut rollouts = rollouts(vec![rollout("a", 0), rollout("a", 1), rollout("b", 0)]);
    let given = |third: Score| vec![Ok(0.25), Ok(1.0), third];
    rollouts.add(&BuiltIn::simplicity(), Scores::new("simplicity", given(Ok(0.5))));
    rollouts.add(&BuiltIn::sentiment(), Scores::new("sentiment", given(Err(Unscored::NotANumber))));
    rollouts
}

fn parse(bytes: Vec<u8>) -> Result<Rollouts, RolloutsError> {
    file::parse(bytes, Path::new("some.parquet"))
}

fn bytes(rollouts: &Rollouts) -> Vec<u8> {
    file::encode(rollouts).expect("plain data")
}

/// A folder that goes away.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("vassal-rollouts-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[track_caller]
fn refuses(result: Result<Rollouts, RolloutsError>, expected: &str) {
    let error = result.expect_err(expected).to_string();
    assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    assert!(error.contains("some.parquet"), "{error:?} names no file");
}

#[test]
fn what_is_written_reads_back_and_equal_rollouts_are_equal_bytes() {
    for rollouts in [scored(), rollouts(vec![]), rollouts(vec![rollout("a", 1)])] {
        let written = bytes(&rollouts);
        assert_eq!(parse(written.clone()).expect("valid"), rollouts);
        assert!(bytes(&rollouts) == written);
    }
    // More than a group of rows.
    let many: Vec<Rollout> = (0..=file::GROUP_ROWS).map(|n| rollout(&format!("p{}", n / 2), n as u32 % 2)).collect();
    let many = rollouts(many);
    assert!(parse(bytes(&many)).expect("valid") == many);
}

#[test]
fn refusals_say_where_and_why() {
    let check = |change: fn(&mut Rollouts), expected: &str| {
        let mut rollouts = scored();
        change(&mut rollouts);
        refuses(parse(bytes(&rollouts)), expected);
    };
    check(|all| all.header.format = "other".into(), "\"other\"");
    check(|all| all.header.token_limit = 0, "1 to 65536, it is 0");
    check(|all| all.all[1].tokens = vec![], "without tokens");
    check(|all| all.all[1].tokens = vec![1; 4], "row 2: a response has 1 to 3 tokens, this has 4");
    check(|all| all.all[1].sample = 2, "row 2: samples are numbered 0 to 1, this is 2");
    check(|all| all.all[1].sample = 0, "row 2: sample 0 of prompt \"a\" occurs twice");
    check(|all| all.all[2].id = "a".into(), "row 3: two different prompts have the id \"a\"");
    check(|all| all.all[0].text = "x".repeat(TEXT_BYTES_MAX + 1), "row 1: the text has at most 1048576 bytes");
    check(|all| all.all[0].scores[0] = Some(2.0), "row 1: the reward \"simplicity\" gives 0 to 1, this is 2");
    check(|all| all.all[0].scores[0] = Some(f64::NAN), "this is NaN");
    check(|all| all.rewards[0].range = (1.0, 0.0), "must be finite and ascend, it is 1 to 0");
    check(|all| all.rewards[1].name = "simplicity".into(), "two rewards are named \"simplicity\"");
    check(
        |all| {
            let right = all.all[0].split;
            all.all[0].split = if right == Split::Test { Split::Learn } else { Split::Test };
        },
        "but is filed under",
    );
}

#[test]
fn files_of_other_columns_are_refused_by_the_first_that_differs() {
    let file = |schema: &str, key: &str, value: String| {
        let mut out = Vec::new();
        let schema = Arc::new(parse_message_type(schema).expect("a schema"));
        let mut writer = SerializedFileWriter::new(&mut out, schema, Arc::default()).expect("begun");
        writer.append_key_value_metadata(parquet::file::metadata::KeyValue::new(key.to_owned(), value));
        let mut group = writer.next_row_group().expect("a group");
        let mut column = group.next_column().expect("columns").expect("a column");
        column.typed::<ByteArrayType>().write_batch(&[ByteArray::from("x")], None, None).expect("written");
        column.close().expect("closed");
        group.close().expect("closed");
        writer.close().expect("closed");
        out
    };
    let about = serde_json::json!({ "rollouts": header(), "rewards": [], "sha256": "" }).to_string();
    let text = "message rollouts { required binary id (STRING); }";
    refuses(parse(file(text, "other", about.clone())), "one value of the key \"vassal\"");
    refuses(parse(file(text, file::KEY, "{}".into())), "its header is wrong: missing field");
    refuses(parse(file(text, file::KEY, about.clone())), "column 2 must be `REQUIRED BYTE_ARRAY prompt");
    let bytes = "message rollouts { required binary id; }";
    refuses(parse(file(bytes, file::KEY, about)), "column 1 must be `REQUIRED BYTE_ARRAY id (STRING)");
    refuses(parse(b"{\"format\":\"vassal-rollouts-1\"}\n".to_vec()), "expected a whole vassal-rollouts-2 file");
    refuses(parse(Vec::new()), "expected a whole");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Whatever becomes of a file's bytes, it is refused or reads as what was written.
    #[test]
    fn damaged_files_are_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
        from_the_end in any::<bool>(),
    ) {
        let rollouts = scored();
        let mut damaged = bytes(&rollouts);
        let (size, footer) = (damaged.len(), 1024.min(damaged.len()));
        for (place, byte) in changes {
            // Half of the changes hit the footer, which says where everything is.
            let place = if from_the_end { size - 1 - place.index(footer) } else { place.index(size) };
            damaged[place] = byte;
        }
        if let Some(cut) = cut {
            damaged.truncate(cut.index(size));
        }
        match parse(damaged) {
            Ok(read) => prop_assert_eq!(read, rollouts),
            Err(error) => prop_assert!(error.to_string().contains("some.parquet")),
        }
    }

    /// Any rollouts that the header allows come back.
    #[test]
    fn any_rollouts_read_back(all in prop::collection::vec(("[a-z]{0,8}", prop::collection::vec(any::<u32>(), 1..4), "\\PC{0,20}"), 0..40)) {
        let mut seen = HashSet::new();
        let all = all.into_iter().filter(|(id, ..)| seen.insert(id.clone()));
        let all = all.map(|(id, tokens, text)| Rollout { tokens, text, ..rollout(&id, 0) }).collect();
        let rollouts = rollouts(all);
        prop_assert_eq!(parse(bytes(&rollouts)).expect("valid"), rollouts);
    }
}

#[test]
fn another_model_and_too_few_rollouts_are_refused() {
    let mut read = rollouts(vec![rollout("a", 0)]);
    assert!(read.require_model("aa").is_ok() && read.require_prompts("bb").is_ok());
    let error = read.require_model("cc").expect_err("another model").to_string();
    assert_eq!(error, "the rollouts were made with the model aa, this is cc");
    let split = Split::of("Prompt a");
    let error = read.groups(split, 1, 2).expect_err("one rollout only").to_string();
    assert!(error.ends_with("at least 1 prompts with 2 rollouts each; 0 have as many"), "{error}");
    read.header.splits = vec![Split::Tune];
    let error = read.groups(Split::Test, 1, 1).expect_err("no such split").to_string();
    assert_eq!(error, "there are no rollouts of test prompts: the file was made with --splits tune");
}

#[test]
fn a_rollout_that_one_reward_has_not_scored_is_left_out_for_all() {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let (all, left_out) = scored().scored_by(&[]).expect("scored");
    assert_eq!((all.all.len(), all.rewards.len(), left_out), (2, 2, 1));
    let (turned, _) = scored().scored_by(&names(&["sentiment", "simplicity"])).expect("scored");
    assert_eq!(turned.rewards[0].name, "sentiment");
    let (one, left_out) = scored().scored_by(&names(&["simplicity"])).expect("scored");
    assert_eq!((one.all.len(), left_out), (3, 0));
    assert_eq!(column(&one.all.iter().collect::<Vec<_>>(), 0), [0.25, 1.0, 0.5]);
    let error = scored().scored_by(&names(&["length"])).expect_err("no such column").to_string();
    assert!(error.contains("\"length\"") && error.ends_with("they have: simplicity, sentiment"), "{error}");
    let error = rollouts(vec![]).scored_by(&[]).expect_err("no column").to_string();
    assert!(error.contains("`vassal reward`"), "{error}");
}

#[test]
fn a_column_is_taken_by_its_definition_and_otherwise_the_reward_is_asked() {
    let all = scored();
    let groups = vec![all.all.iter().collect::<Vec<_>>()];
    let of = |spec: &str| {
        let opening =
            Opening { compilation: &Compilation::InProcess, model: &|| panic!("no reward here reads a model") };
        let rewards = find(&[spec.to_owned()], &opening).expect("a reward");
        all.score(&groups, &*rewards[0]).expect("scored")
    };
    assert_eq!(of("other:simplicity"), [[Some(0.25), Some(1.0), Some(0.5)]]);
    assert_eq!(of("sentiment"), [[Some(0.25), Some(1.0), None]]);
    assert_eq!(of("length=2")[0].len(), 3);
}

#[test]
fn a_column_replaces_that_of_its_name() {
    let mut all = scored();
    all.add(&BuiltIn::simplicity(), Scores::new("simplicity", vec![Ok(0.0); 3]));
    assert_eq!(all.rewards.len(), 2);
    assert_eq!(all.all[2].scores, [Some(0.0), None]);
    assert!(all.same_rollouts(&scored()) && all != scored());
}

#[test]
fn a_journal_goes_on_after_its_last_whole_line() {
    let folder = Folder::new("journal");
    let out = folder.0.join("r.parquet");
    let part = part_of(&out);
    let mut journal = Journal::open(&out, &header()).expect("begun");
    journal.append(rollout("a", 0)).expect("written");
    let busy = Journal::open(&out, &header()).expect_err("locked").to_string();
    assert!(busy.contains("another process is at work"), "{busy}");
    journal.append(rollout("a", 1)).expect("written");
    drop(journal);
    let whole = std::fs::read(&part).expect("a journal");
    for end in 0..whole.len() {
        std::fs::write(&part, &whole[..end]).expect("written");
        let lines = whole[..end].iter().filter(|&&byte| byte == b'\n').count();
        let journal = Journal::open(&out, &Header { command: "in other words".into(), ..header() }).expect("taken up");
        assert_eq!(journal.rollouts().all.len(), lines.saturating_sub(1));
        let command = if lines > 0 { "vassal rollout" } else { "in other words" };
        assert_eq!(journal.rollouts().header.command, command);
    }
    let journal = Journal::open(&out, &header()).expect("taken up");
    journal.remove().expect("removed");
    assert!(!part.exists());
}

#[test]
fn a_journal_of_another_command_is_neither_taken_up_nor_overwritten() {
    let folder = Folder::new("other-journal");
    let out = folder.0.join("some.parquet");
    let part = part_of(&out);
    drop(Journal::open(&out, &header()).expect("begun"));
    let before = std::fs::read(&part).expect("a journal");
    let refused = |header: Header, expected: &str| {
        let error = Journal::open(&out, &header).expect_err(expected).to_string();
        assert!(error.contains(expected) && error.contains("delete"), "{error:?} lacks {expected:?}");
    };
    refused(Header { seed: 8, ..header() }, "another seed (7, this has 8)");
    refused(Header { model_sha256: "cc".into(), ..header() }, "another model (aa, this has cc)");
    refused(
        Header { splits: vec![Split::Test], ..header() },
        "another choice of splits (learn,tune,test, this has test)",
    );
    assert!(std::fs::read(&part).expect("a journal") == before);
    for content in ["my notes", "my notes\nmore\n", "{}\n"] {
        std::fs::write(&part, content).expect("written");
        refused(header(), "does not begin with a header");
        assert_eq!(std::fs::read_to_string(&part).expect("kept"), content);
    }
    let no_rollout = crate::learning::journal::line(&serde_json::json!({})).expect("a line");
    std::fs::write(&part, [&before[..], no_rollout.as_bytes()].concat()).expect("written");
    let error = Journal::open(&out, &header()).expect_err("no rollout").to_string();
    assert!(error.contains("line 2: missing field"), "{error}");
    std::fs::remove_file(&part).expect("removed");
    std::fs::create_dir(&part).expect("a folder");
    refused(header(), "no regular file");
}
