//! A hostile guest: one component with a mode for each attack that safe Rust can make.
//!
//! The text setting `mode` chooses what `start` or `decide` does. `describe` knows no settings, so there
//! the name of the first head offered chooses. What needs a forged binary (a realloc that spins, wrong
//! types, other imports) is written as WebAssembly text in `tests/attacks/`, where each attack stands
//! beside the fault that it must end in.

use std::hint::black_box;
use vassal_guest::*;

/// What moves a cursor, sets a title, turns the reading direction, hides, and ends a line.
const NASTY: &str = "\u{1b}[2J\u{1b}]0;x\u{7}\u{202e}\u{2066}\u{200b}\u{feff}\u{e0041}\u{9b}\r\n\u{2028}";

struct Hostile {
    mode: String,
    request: Request,
    kept: Vec<Vec<u8>>,
    steps: u32,
}

impl Policy for Hostile {
    fn manifest(offered: &[HeadOffer]) -> Manifest {
        let lie = offered.first().map_or("", |offer| offer.name.as_str());
        let mut manifest = Manifest {
            name: "hostile".into(),
            version: "0.1.0".into(),
            summary: "Misbehaves".into(),
            candidates_max: 256,
            rewind_max: 4,
            heads: offered.iter().map(|offer| offer.name.clone()).collect(),
            settings: vec![Setting::text("mode", "which attack", "none")],
            needs: ["rewind", "insert"].map(String::from).into(),
        };
        tell_a_lie(lie, &mut manifest);
        manifest
    }

    fn start(request: &Request) -> Result<Self, String> {
        let mode = request.text("mode").to_owned();
        match mode.as_str() {
            "start-loop" => spin(),
            "start-panic" => panic!("\u{1b}[2Jgiving up in start"),
            "start-refuse" => return Err("not \u{202e}today\n".repeat(100)),
            "start-evaluate" => match values::evaluate(&[0], &[1]) {
                Err(error) => return Err(error.to_string()),
                Ok(_) => return Err("values in start".into()),
            },
            _ => {}
        }
        Ok(Hostile { mode, request: request.clone(), kept: Vec::new(), steps: 0 })
    }

    fn plan(&self, request: &Request) -> Plan {
        let mut plan =
            Plan { candidates: 20, candidates_floor: 0.0, prefetch: vec![Schedule::Never; request.heads.len()] };
        match self.mode.as_str() {
            "plan-candidates" => plan.candidates = 257,
            "plan-floor" => plan.candidates_floor = f32::NAN,
            "plan-short" => plan.prefetch.clear(),
            "plan-every" => plan.prefetch.fill(Schedule::Every(0)),
            _ => {}
        }
        plan
    }

    fn decide(&mut self, step: &Step) -> Decision {
        self.steps += 1;
        let k = step.candidates.len();
        let steer = |steering| Decision::Steer(steering);
        let adjust = |adjust| steer(Steering { adjust, ..Steering::default() });
        let blend = |terms: &[(u32, f32)]| {
            let blend = terms.iter().map(|&(head, weight)| HeadWeight { head, weight, baseline: Baseline::None });
            steer(Steering { blend: blend.collect(), ..Steering::default() })
        };
        let bias = |tokens: Vec<Token>, deltas| {
            steer(Steering { bias: Some(TokenBias { tokens, deltas }), ..Steering::default() })
        };
        let words = self.request.vocabulary_size.div_ceil(64) as usize;
        let vocabulary = |words, set| {
            let vocabulary = Some(VocabularyBias { bits: vec![u64::MAX; words], set, unset: 0.0 });
            steer(Steering { vocabulary, ..Steering::default() })
        };
        let splice = |remove, insert| Decision::Splice(Splice { remove, insert });
        match self.mode.as_str() {
            "loop" => spin(),
            "thousandth" if self.steps == 1_000 => spin(),
            "grow" => loop {
                self.kept.push(black_box(Vec::with_capacity(1 << 20)));
            },
            "recurse" => adjust(vec![recurse(1) as f32; k]),
            "panic" => panic!("\u{1b}[31mout of ideas"),
            "divide" => adjust(vec![(1 / black_box(0_i32)) as f32; k]),
            "short" => adjust(vec![0.0; k - 1]),
            "long" => adjust(vec![0.0; k + 1]),
            "nan" => adjust(vec![f32::NAN; k]),
            "huge" => adjust(vec![1e30; k]),
            "infinite" => adjust(vec![f32::INFINITY; k]),
            "bound" => adjust((0..k).map(|i| [10_000.0, -10_000.0, f32::NEG_INFINITY][i % 3]).collect()),
            "beyond" => adjust(vec![10_000.002; k]),
            "head" => blend(&[(7, 1.0)]),
            "head-twice" => blend(&[(0, 1.0), (0, 1.0)]),
            "weight-nan" => blend(&[(0, f32::NAN)]),
            "weight-forbids" => blend(&[(0, f32::NEG_INFINITY)]),
            "token" => bias(vec![self.request.vocabulary_size], vec![1.0]),
            "bias-lengths" => bias(vec![1, 2], vec![1.0]),
            "bias-long" => bias((0..1_025).collect(), vec![0.0; 1_025]),
            "bias-sum" => bias(vec![1; 1_024], vec![10_000.0; 1_024]),
            "bias-twice" => bias(vec![3, 1, 3], vec![1.0, 2.0, 4.0]),
            "vocabulary-short" => vocabulary(words - 1, 1.0),
            "vocabulary-long" => vocabulary(words + 1, 1.0),
            "vocabulary-nan" => vocabulary(words, f32::NAN),
            "vocabulary-full" => vocabulary(words, 1.0),
            "flood-answer" => vocabulary(9_000, 1.0),
            "remove" => splice(5, Vec::new()),
            "remove-too-early" => splice(step.kept + step.appended.len() as u32 + 1, Vec::new()),
            "insert-long" => splice(0, vec![1; 257]),
            "insert-token" => splice(0, vec![u32::MAX]),
            "splice-nothing" => splice(0, Vec::new()),
            "insert" => splice(0, vec![1]),
            "stop" => Decision::Stop("because".into()),
            "steer" => adjust(vec![0.0; k]),
            "evaluate-flood" => self.evaluate_flood(step),
            "evaluate-again" => self.evaluate_again(step),
            "evaluate-refusals" => self.evaluate_refusals(step),
            "evaluate-forever" => loop {
                let _ = black_box(values::evaluate(&[0; 4_000], &step.candidates));
            },
            "current-flood" => {
                let current: Vec<f32> = (0..100).map(|_| values::current(0).unwrap_or(f32::NAN)).collect();
                adjust(vec![current.iter().sum(); k])
            }
            "note-flood" => {
                for note in 0..100 {
                    // The first two are longer than a note may be.
                    let times = if note < 2 { 300 } else { 4 };
                    audit::note(&format!("{note}: {}", "\u{1b}]0;x\u{7}y".repeat(times)));
                }
                Decision::Keep
            }
            "note-forever" => loop {
                audit::note(&"n".repeat(60_000));
            },
            "text-flood" => loop {
                black_box(text::tokens(&"a".repeat(4_096)));
            },
            "text-long" => {
                black_box(text::tokens(&"a".repeat(4_097)));
                Decision::Keep
            }
            "bytes-flood" => loop {
                black_box(text::bytes(&[1; 15_000]));
            },
            "find-flood" => loop {
                black_box(text::find(&Pattern::text("a"), Place::Anywhere));
            },
            "find-invalid" => {
                let mut pattern = Pattern::new();
                pattern.push::<&[u8]>([]);
                black_box(text::find(&pattern, Place::Anywhere));
                Decision::Keep
            }
            _ => Decision::Keep,
        }
    }
}

impl Hostile {
    /// Answers how many of a hundred evaluations were given.
    fn evaluate_flood(&self, step: &Step) -> Decision {
        let given = (0..100).filter(|n| values::evaluate(&[0], &[*n]).is_ok()).count();
        Decision::Steer(Steering { adjust: vec![given as f32; step.candidates.len()], ..Steering::default() })
    }

    /// Asks for the same values three times and for two of them in another order.
    fn evaluate_again(&self, step: &Step) -> Decision {
        let k = step.candidates.len();
        let (first, last) = (step.candidates[0], step.candidates[k - 1]);
        let asked = [values::evaluate(&[0], &step.candidates), values::evaluate(&[0], &step.candidates)];
        let same = asked[0] == asked[1];
        let reordered = values::evaluate(&[0], &[last, first]).unwrap_or_default();
        let expected = asked[0].clone().unwrap_or_default();
        let right = same && reordered == [expected[k - 1], expected[0]];
        Decision::Steer(Steering { adjust: vec![f32::from(u8::from(right)); k], ..Steering::default() })
    }

    /// Notes every refusal in the words of the contract.
    fn evaluate_refusals(&self, step: &Step) -> Decision {
        let many: Vec<Token> = (0..self.request.candidates + 1).collect();
        let asked: [(&[u32], &[Token]); 6] = [
            (&[7], &step.candidates),
            (&[], &step.candidates),
            (&[0; 100], &step.candidates),
            (&[0], &[]),
            (&[0], &many),
            (&[0], &[self.request.vocabulary_size]),
        ];
        for (heads, tokens) in asked {
            audit::note(&format!("{:?}", values::evaluate(heads, tokens)));
        }
        Decision::Keep
    }
}

fn tell_a_lie(lie: &str, manifest: &mut Manifest) {
    let number = |minimum, maximum, initial| Setting {
        kind: SettingKind::Number { minimum, maximum, initial },
        ..Setting::number("n", "", 0.0..=1.0, 0.0)
    };
    match lie {
        "lie-candidates" => manifest.candidates_max = 257,
        "lie-rewind" => manifest.rewind_max = 257,
        "lie-head" => manifest.heads = vec!["lie-heed".into()],
        "lie-head-twice" => manifest.heads = vec![lie.into(); 2],
        "lie-heads" => manifest.heads = vec![lie.into(); 17],
        "lie-settings" => manifest.settings = (0..65).map(|n| Setting::flag(&n.to_string(), "", true)).collect(),
        "lie-setting-twice" => manifest.settings = vec![number(0.0, 1.0, 0.5); 2],
        "lie-range" => manifest.settings = vec![number(1.0, 0.0, 0.5)],
        "lie-nan" => manifest.settings = vec![number(0.0, f64::NAN, 0.5)],
        "lie-choice" => manifest.settings = vec![Setting::choice("c", "", &[])],
        "lie-need" => manifest.needs = vec!["network".into()],
        "lie-stop" => manifest.needs = vec!["stop".into()],
        "lie-name" => manifest.name = "\u{202e}liah".into(),
        "lie-long-name" => manifest.name = "n".repeat(65),
        "lie-no-name" => manifest.name = String::new(),
        "lie-version" => manifest.version = "1\u{1b}[2J".into(),
        "lie-setting-name" => manifest.settings = vec![Setting::flag("loud\u{200b}", "", true)],
        "lie-equals" => manifest.settings = vec![Setting::flag("loud=on", "", true)],
        "lie-word" => manifest.settings = vec![Setting::choice("c", "", &["a", "\u{202e}b"])],
        "lie-words" => {
            manifest.summary = format!("{NASTY}shown{NASTY}").repeat(20);
            manifest.settings[0].summary = NASTY.repeat(100);
        }
        "lie-loop" => spin(),
        "lie-panic" => panic!("giving up in describe"),
        _ => {}
    }
}

fn spin() -> ! {
    loop {
        black_box(0);
    }
}

fn recurse(depth: u64) -> u64 {
    if depth == u64::MAX {
        return 0;
    }
    let frame = black_box([depth; 64]);
    frame[(depth % 64) as usize] + recurse(black_box(depth + 1))
}

export!(Hostile);
