//! A policy that does what its setting `script` says, for tests of chains and of the engine.
//!
//! A script is lines `WHEN ACTION ARGUMENTS`. WHEN is `*` (every step but the last), a response length in
//! tokens, or `end`; with `!` after it, the first time only. The first line that fits decides, but
//! notes fall through to the next. Tokens are written `3,5`, biased ones `3:0.5,7:-2`, none `-`.
//! It is no example of a good policy: it panics where a script makes no sense.
#![forbid(unsafe_code)]

use vassal_guest::*;

struct Line {
    when: String,
    once: bool,
    done: bool,
    words: Vec<String>,
}

struct Scripted {
    lines: Vec<Line>,
    candidates: u32,
    vocabulary_size: u32,
}

impl Policy for Scripted {
    fn manifest(offered: &[HeadOffer]) -> Manifest {
        Manifest {
            name: "scripted".into(),
            version: "0.1.0".into(),
            summary: "Does what its script says".into(),
            candidates_max: 256,
            rewind_max: 8,
            heads: offered.iter().map(|offer| offer.name.clone()).collect(),
            settings: vec![
                Setting::text("script", "what to do", ""),
                Setting::number("candidates", "how many it sees", 1.0..=256.0, 4.0),
            ],
            needs: ["rewind", "insert", "stop"].map(String::from).into(),
        }
    }

    fn start(request: &Request) -> Result<Self, String> {
        let line = |line: &str| {
            let mut words = line.split_whitespace().map(String::from);
            let when = words.next().unwrap_or_default();
            let once = when.ends_with('!');
            Line { when: when.trim_end_matches('!').into(), once, done: false, words: words.collect() }
        };
        Ok(Scripted {
            lines: request.text("script").lines().map(line).filter(|line| !line.words.is_empty()).collect(),
            candidates: request.number("candidates") as u32,
            vocabulary_size: request.vocabulary_size,
        })
    }

    fn plan(&self, request: &Request) -> Plan {
        let prefetch = vec![Schedule::Never; request.heads.len()];
        Plan { candidates: self.candidates, candidates_floor: 0.0, prefetch }
    }

    fn decide(&mut self, step: &Step) -> Decision {
        let length = (step.kept as usize + step.appended.len()).to_string();
        for line in &mut self.lines {
            let fits = match line.when.as_str() {
                "end" => step.ended,
                "*" => !step.ended,
                other => !step.ended && other == length,
            };
            if !fits || (line.once && line.done) {
                continue;
            }
            line.done = true;
            let words: Vec<&str> = line.words.iter().map(String::as_str).collect();
            if let Some(decision) = act(&words, step, self.vocabulary_size) {
                return decision;
            }
        }
        Decision::Keep
    }
}

/// What a line decides; nothing where it only notes.
fn act(words: &[&str], step: &Step, vocabulary_size: u32) -> Option<Decision> {
    let steer = |steering| Some(Decision::Steer(steering));
    let bias = |pairs: Vec<(Token, f32)>| {
        let (tokens, deltas) = pairs.into_iter().unzip();
        steer(Steering { bias: Some(TokenBias { tokens, deltas }), ..Steering::default() })
    };
    match *words {
        ["keep"] => Some(Decision::Keep),
        ["stop", reason] => Some(Decision::Stop(reason.into())),
        ["splice", remove, insert] => {
            Some(Decision::Splice(Splice { remove: number(remove) as u32, insert: tokens(insert) }))
        }
        ["forbid", named] => bias(tokens(named).into_iter().map(|token| (token, f32::NEG_INFINITY)).collect()),
        ["bias", pairs] => bias(pairs.split(',').map(pair).collect()),
        ["adjust", delta] => {
            steer(Steering { adjust: vec![number(delta) as f32; step.candidates.len()], ..Steering::default() })
        }
        ["only", named] => {
            let mut set = TokenSet::empty(vocabulary_size);
            tokens(named).into_iter().for_each(|token| set.insert(token));
            steer(Steering { vocabulary: Some(set.allow_only()), ..Steering::default() })
        }
        ["mask"] => steer(Steering { tail: Tail::Mask, ..Steering::default() }),
        ["blend", head, weight] => {
            let (head, weight) = (number(head) as u32, number(weight) as f32);
            let term = HeadWeight { head, weight, baseline: Baseline::None };
            steer(Steering { blend: vec![term], ..Steering::default() })
        }
        ["panic"] => panic!("as the script says"),
        ["note", text] => note(text),
        ["show"] => note(&format!(
            "kept {} appended {:?} candidates {:?} ended {}",
            step.kept, step.appended, step.candidates, step.ended
        )),
        ["evaluate", head, named] => note(&format!("{:?}", values::evaluate(&[number(head) as u32], &tokens(named)))),
        // More rows than some passes hold.
        ["evaluate-widely", head] => {
            let asked: Vec<Token> = (0..vocabulary_size.min(256)).collect();
            note(&format!("{:?}", values::evaluate(&[number(head) as u32], &asked).map(|values| values.len())))
        }
        ["current", head] => note(&format!("{:?}", values::current(number(head) as u32))),
        _ => panic!("no such action: {words:?}"),
    }
}

fn note(text: &str) -> Option<Decision> {
    audit::note(text);
    None
}

fn number(text: &str) -> f64 {
    text.parse().expect("a number")
}

fn tokens(text: &str) -> Vec<Token> {
    if text == "-" { Vec::new() } else { text.split(',').map(|token| number(token) as Token).collect() }
}

fn pair(text: &str) -> (Token, f32) {
    let (token, delta) = text.split_once(':').expect("token:delta");
    (number(token) as Token, number(delta) as f32)
}

export!(Scripted);
