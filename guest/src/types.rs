//! The words that a policy and its host share, as ordinary Rust types.
//!
//! They say what `wit/policy-0.1/policy.wit` says, and that file has the last word on units and
//! bounds. They are the SDK's own types, not generated ones, so that a policy compiles, runs and is
//! tested natively. Start at [`Step`], what a policy is asked, and [`Decision`], what it answers.

/// An index into the base model's vocabulary.
pub type Token = u32;

/// One decoding step of one sequence, as the policy sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// How many of the response tokens already shown to this policy still stand: all of them,
    /// unless somebody's splice took some back. [`Response`](crate::Response) keeps the account.
    pub kept: u32,
    /// The response tokens committed after those.
    pub appended: Vec<Token>,
    /// The candidates for the next token, most likely first, ties by token; empty only where
    /// [`ended`](Step::ended).
    pub candidates: Vec<Token>,
    /// The base model's raw logit of each candidate, in nats, before temperature.
    pub logits: Vec<f32>,
    /// Which heads are prefetched in this step: bit i is head i of the manifest.
    pub prefetched: u32,
    /// The prefetched heads' values, a row a head in manifest order, one value a candidate.
    /// [`Step::values_of`] finds a head's row.
    pub values: Vec<f32>,
    /// ln of the sum of exp(logit) over the vocabulary, in nats.
    pub log_normalizer: f32,
    /// The entropy of the base model's next-token distribution at temperature 1, in nats.
    pub entropy: f32,
    /// The response would end here. The answer is keep, stop, or a splice that takes back at least
    /// one token.
    pub ended: bool,
}

impl Step {
    /// The prefetched values of a head, one a candidate; `None` where this step brings none.
    pub fn values_of(&self, head: u32) -> Option<&[f32]> {
        let bit = 1u32.checked_shl(head)?;
        if self.prefetched & bit == 0 {
            return None;
        }
        let row = (self.prefetched & (bit - 1)).count_ones() as usize;
        let width = self.candidates.len();
        self.values.get(row * width..(row + 1) * width)
    }

    /// The base model's log-probability of candidate `index`, in nats, at temperature 1.
    ///
    /// # Panics
    /// If there is no such candidate.
    pub fn log_probability(&self, index: usize) -> f32 {
        self.logits[index] - self.log_normalizer
    }
}

/// What is subtracted from a candidate's value: it says what the tokens that were not valued count
/// as, where the tail is kept. [`blend::baseline`](crate::blend::baseline) computes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Baseline {
    /// Nothing.
    #[default]
    None,
    /// The plain mean over the candidates (the paper's).
    Candidates,
    /// The mean over the candidates, weighted by base probability.
    Weighted,
    /// The value of the sequence as it stands.
    State,
}

/// One term of a blend: the host adds `weight * (value - baseline)` to every candidate's logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadWeight {
    /// The head's index in the manifest; at most one term a head.
    pub head: u32,
    /// Nats of logit per unit of value; finite, at most 10,000 in magnitude.
    pub weight: f32,
    /// What is subtracted from the value.
    pub baseline: Baseline,
}

/// Changes of single tokens, candidates or not; at most 1,024.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenBias {
    /// The tokens.
    pub tokens: Vec<Token>,
    /// As many deltas, in nats; negative infinity forbids.
    pub deltas: Vec<f32>,
}

/// A change to every token of the vocabulary. [`TokenSet`](crate::TokenSet) makes the usual ones.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VocabularyBias {
    /// Bit i is token i, 64 tokens a word, lowest bit first.
    pub bits: Vec<u64>,
    /// Nats added where the bit is set.
    pub set: f32,
    /// Nats added where it is not.
    pub unset: f32,
}

/// What becomes of the tokens that are not candidates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tail {
    /// Their base logits stand.
    #[default]
    Keep,
    /// They cannot be sampled.
    Mask,
}

/// Changes to this step's logits; terms add up, the empty ones of [`Steering::default`] do nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Steering {
    /// One delta a candidate, in nats, or empty.
    pub adjust: Vec<f32>,
    /// Terms that the host computes: no values cross, so this is the cheapest way to steer.
    pub blend: Vec<HeadWeight>,
    /// Changes of single tokens.
    pub bias: Option<TokenBias>,
    /// A delta for every token. With it the candidates are chosen again from the biased logits.
    pub vocabulary: Option<VocabularyBias>,
    /// What becomes of the other tokens.
    pub tail: Tail,
}

/// Take response tokens back, then commit others unsampled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Splice {
    /// How many tokens are taken back, at most [`Manifest::rewind_max`]. Needs `rewind`.
    pub remove: u32,
    /// What is committed then, at most 256 tokens. Needs `insert`.
    pub insert: Vec<Token>,
}

/// What the policy asks the host to do with this step.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Sample from the base logits, as far as this policy is concerned.
    Keep,
    /// Change logits, then sample.
    Steer(Steering),
    /// Take tokens back and commit others.
    Splice(Splice),
    /// End the response here; the reason goes to the tenant's audit log. Needs `stop`.
    Stop(String),
}

/// A setting's kind and its initial value.
#[derive(Clone, Debug, PartialEq)]
pub enum SettingKind {
    /// A finite number in a range.
    Number {
        /// The least.
        minimum: f64,
        /// The greatest.
        maximum: f64,
        /// The value where nobody sets one.
        initial: f64,
    },
    /// On or off, with the initial state.
    Flag(bool),
    /// One of these words; the first is the initial one.
    Choice(Vec<String>),
    /// At most 4 KiB of text, with the initial one.
    Text(String),
}

/// Who may turn a dial.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Only the tenant's configuration.
    Tenant,
    /// A request too.
    #[default]
    Request,
}

/// A typed dial, as `--set name=value` turns it.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// Its name, at most 64 bytes, unlike every other of the manifest.
    pub name: String,
    /// One line that says what it does, at most 256 bytes.
    pub summary: String,
    /// Who may turn it.
    pub scope: Scope,
    /// What it takes.
    pub kind: SettingKind,
}

impl Setting {
    fn new(name: &str, summary: &str, kind: SettingKind) -> Setting {
        let (name, summary) = (name.to_owned(), summary.to_owned());
        Setting { name, summary, scope: Scope::Request, kind }
    }

    /// A number that a request may set, within `range`.
    pub fn number(name: &str, summary: &str, range: core::ops::RangeInclusive<f64>, initial: f64) -> Setting {
        let (minimum, maximum) = range.into_inner();
        Setting::new(name, summary, SettingKind::Number { minimum, maximum, initial })
    }

    /// A switch that a request may set.
    pub fn flag(name: &str, summary: &str, initial: bool) -> Setting {
        Setting::new(name, summary, SettingKind::Flag(initial))
    }

    /// A choice that a request may make; the first word is the initial one.
    pub fn choice(name: &str, summary: &str, words: &[&str]) -> Setting {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        Setting::new(name, summary, SettingKind::Choice(words))
    }

    /// A text that a request may give.
    pub fn text(name: &str, summary: &str, initial: &str) -> Setting {
        Setting::new(name, summary, SettingKind::Text(initial.to_owned()))
    }

    /// The same setting, for the tenant's configuration alone.
    pub fn of_tenant(self) -> Setting {
        Setting { scope: Scope::Tenant, ..self }
    }
}

/// A setting's value; of a choice, one of its words.
#[derive(Clone, Debug, PartialEq)]
pub enum SettingValue {
    /// Of a number.
    Number(f64),
    /// Of a flag.
    Flag(bool),
    /// Of a choice.
    Choice(String),
    /// Of a text.
    Text(String),
}

/// What a setting of the manifest has come to for this response.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedValue {
    /// The setting's name.
    pub name: String,
    /// Its value, already checked against the setting's kind.
    pub value: SettingValue,
}

/// A head that the tenant offers to this policy.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadOffer {
    /// Its name.
    pub name: String,
    /// `value`, `probability` or `log-probability`; more kinds may come.
    pub kind: String,
    /// The standard deviation of its values over next tokens drawn from the base model,
    /// root-mean-square over states. A weight of `dial * temperature / spread` steers alike for
    /// every head.
    pub spread: f32,
}

/// When a head's values are delivered with the step, before the policy asks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Schedule {
    /// Never.
    Never,
    /// In steps where the response's length in tokens is a multiple of this, the first step
    /// among them; 1 is every step, 0 a fault.
    Every(u32),
    /// Where the likeliest token's base probability is below this (0 to 1).
    Unsure(f32),
}

impl Schedule {
    /// Every step.
    pub const EVERY_STEP: Schedule = Schedule::Every(1);
}

/// What a policy is, before it runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// Its name, 1 to 64 bytes.
    pub name: String,
    /// Its version, at most 32 bytes.
    pub version: String,
    /// One line, at most 256 bytes.
    pub summary: String,
    /// The most candidates that any plan of this policy asks for, 1 to 256.
    pub candidates_max: u32,
    /// How far back a splice may reach, at most 256 tokens: the host sends nothing newer.
    pub rewind_max: u32,
    /// The heads it uses, each among the offered; at most 16. Their order gives them their indices.
    pub heads: Vec<String>,
    /// Its dials, at most 64.
    pub settings: Vec<Setting>,
    /// What must be granted: `prompt`, `insert`, `rewind`, `stop`.
    pub needs: Vec<String>,
}

impl Default for Manifest {
    /// No heads, no settings, no needs, and the paper's 20 candidates.
    fn default() -> Manifest {
        Manifest {
            name: String::new(),
            version: String::new(),
            summary: String::new(),
            candidates_max: 20,
            rewind_max: 0,
            heads: Vec::new(),
            settings: Vec::new(),
            needs: Vec::new(),
        }
    }
}

/// What is known when a response starts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// One value a setting, in manifest order. [`Request::number`] and its like read them by name.
    pub settings: Vec<NamedValue>,
    /// The manifest's heads as they were offered, in manifest order.
    pub heads: Vec<HeadOffer>,
    /// The user's prompt; empty unless `prompt` is granted.
    pub prompt: Vec<Token>,
    /// The most candidates that a step of this response has.
    pub candidates: u32,
    /// How many tokens the base model knows.
    pub vocabulary_size: u32,
    /// The tokens that end a response.
    pub end_of_text: Vec<Token>,
    /// The response's token limit.
    pub max_tokens: u32,
    /// 0 for greedy decoding; at most 100.
    pub temperature: f32,
    /// In (0, 1]; 1 where nothing is cut.
    pub top_p: f32,
    /// For the policy's own draws: fixed by the request's seed and the policy's place.
    pub seed: u64,
}

impl Request {
    fn setting(&self, name: &str) -> Option<&SettingValue> {
        self.settings.iter().find(|setting| setting.name == name).map(|setting| &setting.value)
    }

    /// The number setting of this name.
    ///
    /// # Panics
    /// If the manifest has none: a mistake in the policy, which its first test shows.
    pub fn number(&self, name: &str) -> f64 {
        match self.setting(name) {
            Some(SettingValue::Number(value)) => *value,
            _ => not_declared("number", name),
        }
    }

    /// The flag of this name.
    ///
    /// # Panics
    /// If the manifest has none.
    pub fn flag(&self, name: &str) -> bool {
        match self.setting(name) {
            Some(SettingValue::Flag(value)) => *value,
            _ => not_declared("flag", name),
        }
    }

    /// The word chosen for the choice of this name.
    ///
    /// # Panics
    /// If the manifest has none.
    pub fn choice(&self, name: &str) -> &str {
        match self.setting(name) {
            Some(SettingValue::Choice(word)) => word,
            _ => not_declared("choice", name),
        }
    }

    /// The text setting of this name.
    ///
    /// # Panics
    /// If the manifest has none.
    pub fn text(&self, name: &str) -> &str {
        match self.setting(name) {
            Some(SettingValue::Text(text)) => text,
            _ => not_declared("text", name),
        }
    }
}

#[cold]
fn not_declared(kind: &str, name: &str) -> ! {
    panic!("the manifest declares no {kind} setting `{name}`")
}

/// How this response's steps shall be prepared, now that the settings are known.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// How many candidates this policy sees a step, 1 to [`Manifest::candidates_max`]; no step has
    /// more than [`Request::candidates`]. Each policy of a response has its own number.
    pub candidates: u32,
    /// Candidates less likely than this under the base model are left out, 0 to 1; 0 for none.
    /// Each policy of a response has its own.
    pub candidates_floor: f32,
    /// One schedule a head, in manifest order.
    pub prefetch: Vec<Schedule>,
}

/// Why the host has no values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueError {
    /// Not inside `decide`, or the response has ended.
    NotNow,
    /// The manifest does not name this head.
    UnknownHead,
    /// No token, more tokens than [`Request::candidates`], or one outside the vocabulary.
    InvalidTokens,
    /// This step's evaluations (2 by default) are spent.
    BudgetSpent,
    /// The head failed. Nothing else follows: the policy decides without the value.
    Unavailable,
}

impl core::fmt::Display for ValueError {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        formatter.write_str(match self {
            ValueError::NotNow => "values are only known while a step is decided",
            ValueError::UnknownHead => "the manifest does not name this head",
            ValueError::InvalidTokens => "no tokens, too many, or one outside the vocabulary",
            ValueError::BudgetSpent => "this step's evaluations are spent",
            ValueError::Unavailable => "the head failed",
        })
    }
}

impl core::error::Error for ValueError {}

/// Where in a token a pattern has to lie; see [`text::find`](crate::text::find).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is the whole token.
    Whole,
    /// The token begins with it.
    Start,
    /// The token ends with it.
    End,
    /// The token has it somewhere.
    Anywhere,
}
