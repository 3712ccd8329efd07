//! The guard against an oracle that looks at every token of a toy vocabulary.
//!
//! Start at [`check`], which follows random responses token by token and compares what may be drawn with
//! what the oracle allows. The whole road, with a real vocabulary and the host's search, is tested in `tests/`.

use vassal_guest::test::{FakeHost, Harness};

use super::phrases::push_letter;
use super::*;

/// A small generator, so that every run draws the same.
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % bound
    }
}

/// Whether a phrase lies in the text, by trying every place and every spelling.
fn says(text: &[u8], phrase: &Pattern) -> bool {
    fn at(text: &[u8], phrase: &Pattern, letter: usize) -> bool {
        letter == phrase.len()
            || phrase
                .spellings(letter)
                .any(|spelling| text.strip_prefix(spelling).is_some_and(|text| at(text, phrase, letter + 1)))
    }
    (0..text.len()).any(|start| at(&text[start..], phrase, 0))
}

/// Draws `steps` tokens with every token equally likely but for the guard, and compares what is forbidden
/// in each step with the oracle.
fn check(list: &str, vocabulary: &[Vec<u8>], steps: usize, draw: &mut Draw) {
    let phrases = Phrases::new(list).unwrap();
    let mut harness = Harness::<Guard>::new(FakeHost::new(vocabulary)).set("phrases", list);
    harness.start().unwrap();
    let logits = vec![0.0; vocabulary.len()];
    let mut said: Vec<Token> = Vec::new();
    let mut forbidden_steps = 0;
    for _ in 0..steps {
        let steered = harness.steered(&logits);
        // No phrase here is longer than 24 tokens, so the last 30 tell all.
        let text = harness.host().text(&said[said.len().saturating_sub(30)..]);
        assert!(phrases.iter().all(|phrase| !says(&text, phrase)), "{list:?} was said: {text:?}");
        for (token, logit) in steered.iter().enumerate() {
            let next = [&text[..], &vocabulary[token]].concat();
            let completes = phrases.iter().any(|phrase| says(&next, phrase));
            let expected = if completes { f32::NEG_INFINITY } else { 0.0 };
            assert_eq!(*logit, expected, "{list:?}: {:?} after {text:?}", vocabulary[token]);
        }
        let allowed: Vec<usize> = (0..steered.len()).filter(|token| steered[*token].is_finite()).collect();
        forbidden_steps += usize::from(allowed.len() < steered.len());
        let token = allowed[draw.below(allowed.len())] as Token;
        said.push(token);
        harness.commit(token);
        // Now and then somebody takes tokens back.
        if draw.below(50) == 0 {
            let remove = draw.below(said.len().min(8) + 1);
            said.truncate(said.len() - remove);
            harness.splice(&Splice { remove: remove as u32, insert: Vec::new() });
        }
    }
    assert!(forbidden_steps > steps / 50, "{list:?}: only {forbidden_steps} steps were at stake");
}

#[test]
fn no_token_completes_a_phrase_inside_or_outside_the_candidates() {
    let mut draw = Draw(7);
    // Few letters make many near misses; É is split over tokens, and a special token says nothing.
    let pieces: [&[u8]; 8] = [b"a", b"B", b"b", b"A", b" ", "é".as_bytes(), &[0xc3], &[0x89]];
    let mut vocabulary: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
    vocabulary.push(Vec::new());
    while vocabulary.len() < 120 {
        vocabulary.push((0..1 + draw.below(5)).flat_map(|_| pieces[draw.below(8)]).copied().collect());
    }
    for list in ["abab\nbéa", "aa\nab ba\nbbé", "ÉÉ\naé b\nbabaab", "ba\naab\né"] {
        check(list, &vocabulary, 2_000, &mut draw);
    }
}

#[test]
fn bytes_alone_make_any_phrase() {
    let vocabulary: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
    let mut harness = Harness::<Guard>::new(FakeHost::new(&vocabulary)).set("phrases", "Straße 7\nСТОП");
    for said in ["STRASSE ", "strasse\n", "Stra\u{df}e\t", "straẞe\u{a0}", "we said: sTRASSe "] {
        harness.start().unwrap();
        said.bytes().for_each(|byte| harness.commit(Token::from(byte)));
        let steered = harness.steered(&[0.0; 256]);
        assert_eq!(steered[usize::from(b'7')], f32::NEG_INFINITY, "{said:?}");
        assert_eq!(steered.iter().filter(|logit| logit.is_infinite()).count(), 1);
    }
    harness.start().unwrap();
    let said = "стоп".as_bytes();
    said[..said.len() - 1].iter().for_each(|byte| harness.commit(Token::from(*byte)));
    assert_eq!(harness.steered(&[0.0; 256])[usize::from(said[said.len() - 1])], f32::NEG_INFINITY);
}

#[test]
fn many_forbidden_tokens_bias_the_vocabulary() {
    let mut vocabulary = vec![b"no".to_vec(); 2_000];
    vocabulary.push(b"yes".to_vec());
    let mut harness = Harness::<Guard>::new(FakeHost::new(&vocabulary)).set("phrases", "NO");
    harness.start().unwrap();
    let step = harness.step(&vec![0.0; 2_001]);
    let decision = harness.decide(&step);
    assert!(matches!(&decision, Decision::Steer(steering) if steering.vocabulary.is_some()), "{decision:?}");
    let steered = harness.steered(&vec![0.0; 2_001]);
    assert!(steered[..2_000].iter().all(|logit| logit.is_infinite()) && steered[2_000] == 0.0);
}

#[test]
fn an_empty_list_changes_nothing() {
    for list in ["", "\n \n\t\n"] {
        let mut harness = Harness::<Guard>::new(FakeHost::new(&["a", "b"])).set("phrases", list);
        harness.start().unwrap();
        assert_eq!(harness.decide(&harness.step(&[0.0, 1.0])), Decision::Keep);
    }
}

#[test]
fn a_list_beyond_its_bounds_is_refused() {
    let many: Vec<String> = (0..129).map(|number| format!("phrase {number}")).collect();
    assert!(Phrases::new(&many.join("\n")).unwrap_err().contains("129"));
    assert!(Phrases::new(&many[..128].join("\n")).is_ok());
    assert!(Phrases::new(&"x".repeat(257)).unwrap_err().contains("257"));
}

#[test]
fn letters_have_their_cases() {
    let letter = |character| {
        let mut letters = Pattern::new();
        push_letter(&mut letters, character);
        letters
    };
    let spells =
        |character: char, text: &str| letter(character).spellings(0).any(|spelling| spelling == text.as_bytes());
    for (character, text) in [
        ('a', "A"),
        ('A', "a"),
        ('é', "É"),
        ('Ж', "ж"),
        ('σ', "ς"),
        ('ς', "Σ"),
        ('k', "\u{212a}"),
        ('ß', "Ss"),
        ('ŉ', "ʼN"),
    ] {
        assert!(spells(character, text), "{character} is also {text}");
    }
    assert_eq!(letter('7'), Pattern::text("7"));
    assert!(!spells('e', "é"), "accents are not folded");
    for character in (0..=0x2ffff).filter_map(char::from_u32) {
        let letter = letter(character);
        assert!((1..=16).contains(&letter.spellings(0).count()), "{character}");
        assert!(letter.spellings(0).all(|spelling| (1..=16).contains(&spelling.len())), "{character}");
        // The quick cases say what the tables say.
        assert!(spells(character, &character.to_string()) || character.is_whitespace(), "{character}");
        for other in character.to_lowercase().chain(character.to_uppercase()) {
            let simple = character.to_lowercase().count() == 1 && character.to_uppercase().count() == 1;
            assert!(!simple || spells(character, &other.to_string()), "{character} is also {other}");
        }
    }
}
