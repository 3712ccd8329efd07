//! Decodes what a report needs, setting by setting, each kept in the journal as soon as it is done: tuned models first, then all methods.
//!
//! Methods come in groups that read heads of one kind; a host is opened for a group, and only where something of it is
//! missing. Which dial costs how much is known from the heads' files for `vas`, and measured on tune prompts for
//! everything else. A kind of head that the folder lacks leaves its methods out. Start at [`Runner::run`].

use std::path::{Path, PathBuf};

use super::super::decoding::{dial_for_kl, use_with};
use super::super::features::end_states;
use super::super::look_ahead::values;
use super::super::prompts::Prompt;
use super::super::rewards::{self, SharedReward};
use super::analysis::a_token;
use super::methods::{self, At, METHODS, Method, Wanted};
use super::samples::{Decoded, Journal, Setting, decode};
use super::tuned::Tuned;
use crate::error::Error;
use crate::host::{Host, HostOptions};
use crate::model::heads::{HeadFile, HeadWeights};
use crate::token::Token;

/// Dials whose cost is measured where no head's file tells it; the cost is about quadratic in the dial.
const CALIBRATED: [f64; 3] = [0.4, 1.0, 2.5];

/// What an evaluation decodes.
pub struct Runner<'a> {
    /// Model, device and engine; heads are set for each method.
    pub options: HostOptions,
    /// The folder of heads, `REWARD.KIND.safetensors`; none for the shipped ones.
    pub heads: Option<PathBuf>,
    /// The prompts that are answered.
    pub prompts: Vec<&'a Prompt>,
    /// The prompts that dials are calibrated on.
    pub tune: Vec<&'a Prompt>,
    /// The rewards that guide, in the order of their heads.
    pub rewards: Vec<SharedReward>,
    /// The rewards that only judge.
    pub judges: Vec<SharedReward>,
    /// Models that were tuned, which are compared.
    pub tuned: Vec<Tuned>,
    /// What is asked for.
    pub wanted: Wanted,
    /// Settings of every policy: candidates and tail.
    pub common: Vec<(String, String)>,
    /// Response tokens at most.
    pub max_tokens: usize,
}

/// Dials, and the nats a token that each costs.
type Table = Vec<(f64, f64)>;

/// A head's file of a reward, by kind.
pub fn head_path(folder: &Path, reward: &str, kind: &str) -> PathBuf {
    folder.join(format!("{reward}.{kind}.safetensors"))
}

impl Runner<'_> {
    /// Every reward that scores what is decoded: those that guide, then those that judge.
    pub fn scored(&self) -> Vec<SharedReward> {
        self.rewards.iter().chain(&self.judges).cloned().collect()
    }

    /// The methods that are asked for and have their heads, in order.
    fn methods(&self) -> impl Iterator<Item = &'static Method> {
        let asked = |method: &&Method| method.at != At::Grid || self.wanted.grid > 0;
        METHODS.iter().filter(asked).filter(|method| self.has(method.heads))
    }

    /// Whether every reward has a head of this kind; shipped heads are of two.
    fn has(&self, kind: &str) -> bool {
        match &self.heads {
            _ if kind.is_empty() => true,
            Some(folder) => self.rewards.iter().all(|reward| head_path(folder, reward.name(), kind).is_file()),
            None => ["look-ahead", "one-pass"].contains(&kind),
        }
    }

    /// A host with every reward's head of this kind.
    ///
    /// # Errors
    /// The files', the device's.
    pub fn open(&self, kind: &str) -> Result<Host, Error> {
        use crate::model::heads::HeadKind;
        let heads = match &self.heads {
            _ if kind.is_empty() => Vec::new(),
            Some(folder) => self.rewards.iter().map(|reward| head_path(folder, reward.name(), kind)).collect(),
            None => self.rewards.iter().map(|reward| PathBuf::from(reward.name())).collect(),
        };
        let head_kind = match kind {
            "" => None,
            "one-pass" | "token-bias" => Some(HeadKind::OnePass),
            _ => Some(HeadKind::LookAhead),
        };
        let host = Host::open(&HostOptions { heads, head_kind, ..self.options.clone() })?;
        for (head, reward) in host.heads().iter().zip(&self.rewards) {
            let (description, definition) = (&head.description, reward.definition());
            let learned = &description.provenance.reward;
            // Heads from before rewards had definitions say none.
            if description.name != reward.name() || !(learned.is_empty() || *learned == definition) {
                return Err(Error::Usage(format!(
                    "the {kind} head of {:?} was fitted to {:?} ({learned}), not to {:?} ({definition})",
                    reward.name(),
                    description.name,
                    reward.name()
                )));
            }
        }
        Ok(host)
    }

    /// Decodes everything that is missing; `told` hears of each setting and of each response that is done.
    ///
    /// # Errors
    /// The engine's, the rewards' and the journal's.
    pub fn run(&self, journal: &mut Journal, told: &mut dyn FnMut(Progress<'_>)) -> Result<(), Error> {
        self.tuned.iter().try_for_each(|tuned| self.tuned(tuned, journal, told))?;
        self.methods().try_for_each(|method| self.method(method, journal, told))
    }

    /// Opens every tuned model that is still to be decoded, so that one that cannot be compared is refused before minutes are spent.
    ///
    /// # Errors
    /// As [`Tuned::open`].
    pub fn check_tuned(&self, base: &Host, journal: &Journal) -> Result<(), Error> {
        let missing =
            |tuned: &&Tuned| self.wanted.seeds.iter().any(|&seed| journal.find(&tuned.setting(seed)).is_none());
        let check = |tuned: &Tuned| tuned.open(base, &self.options, &self.prompts).map(drop);
        self.tuned.iter().filter(missing).try_for_each(check)
    }

    fn tuned(&self, tuned: &Tuned, journal: &mut Journal, told: &mut dyn FnMut(Progress<'_>)) -> Result<(), Error> {
        let mut hosts = None;
        for &seed in &self.wanted.seeds {
            let setting = tuned.setting(seed);
            if journal.find(&setting).is_some() {
                told(Progress::Done(self.prompts.len()));
                continue;
            }
            let (base, own) = match &mut hosts {
                Some(hosts) => hosts,
                None => {
                    let base = self.open("")?;
                    let own = tuned.open(&base, &self.options, &self.prompts)?;
                    hosts.insert((base, own))
                }
            };
            told(Progress::Setting(&setting));
            let decoded = tuned.decode((base, own), &self.prompts, &self.scored(), self.max_tokens, seed, || {
                told(Progress::Response);
            })?;
            journal.add(decoded)?;
        }
        Ok(())
    }

    /// Settings and responses that are to be decoded in all, those that are done included.
    pub fn amount(&self) -> (usize, usize) {
        let dial = |_: &str, _: f64| 0.0;
        let mut planned = Vec::new();
        let mut calibrated = 0;
        for method in self.methods() {
            planned.extend(methods::plan(method, &self.wanted, dial));
            if method.policy != "vas" {
                calibrated += self.rewards.len() * CALIBRATED.len() * self.tune.len();
            }
        }
        let responses: usize = planned.iter().map(|setting| setting.samples).sum();
        let tuned = self.tuned.len() * self.wanted.seeds.len();
        (planned.len() + tuned, (responses + tuned) * self.prompts.len() + calibrated)
    }

    fn method(&self, method: &Method, journal: &mut Journal, told: &mut dyn FnMut(Progress<'_>)) -> Result<(), Error> {
        let mut host = None;
        let tables = self.tables(method, journal, &mut host, told)?;
        let dial = |reward: &str, kl: f64| {
            let table = tables.iter().find(|(name, _)| name == reward).map_or(&[][..], |(_, table)| table);
            // What differs in the last digits is the same setting to a reader, and to the journal.
            (dial_for_kl(table, kl) * 1e4).round() / 1e4
        };
        let planned = methods::plan(method, &self.wanted, dial);
        for setting in &planned {
            self.decode(setting, &self.prompts, method, journal, &mut host, told)?;
        }
        Ok(())
    }

    fn decode(
        &self,
        setting: &Setting,
        prompts: &[&Prompt],
        method: &Method,
        journal: &mut Journal,
        host: &mut Option<Host>,
        told: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), Error> {
        if journal.find(setting).is_some() {
            told(Progress::Done(prompts.len() * setting.samples));
            return Ok(());
        }
        let host = match host {
            Some(host) => host,
            None => host.insert(self.open(method.heads)?),
        };
        told(Progress::Setting(setting));
        let dials = setting.dials.iter().map(|(name, dial)| (name.clone(), dial.to_string()));
        let own = method.settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        // A method's own setting replaces the common one.
        let replaced = |(name, _): &&(String, String)| !method.settings.iter().any(|(own, _)| own == name);
        let settings: Vec<_> = self.common.iter().filter(replaced).cloned().chain(dials).chain(own).collect();
        let policies = vec![use_with(host, method.policy, settings)?];
        let mut decoded = decode(host, prompts, &self.scored(), setting.clone(), policies, self.max_tokens, || {
            told(Progress::Response);
        })?;
        if setting.samples > 1 {
            self.add_values(host, prompts, &mut decoded)?;
        }
        Ok(journal.add(decoded)?)
    }

    /// Adds V of the end state to each sample, by which one can be chosen where no reward is asked.
    fn add_values(&self, host: &mut Host, prompts: &[&Prompt], decoded: &mut Decoded) -> Result<(), Error> {
        let Some((reward, _)) = decoded.setting.dials.first() else { return Ok(()) };
        let Some(HeadFile { description, weights: HeadWeights::LookAhead(head) }) = self.head(reward, "look-ahead")?
        else {
            return Ok(());
        };
        let text = match &description.text {
            Some(term) => Some((term, term.reading(&description.name, &rewards::reading)?)),
            None => None,
        };
        for (prompt, group) in prompts.iter().zip(&mut decoded.samples) {
            let prompt = host.request(&prompt.text)?.prompt;
            let responses: Vec<&[Token]> = group.iter().map(|sample| sample.tokens.as_slice()).collect();
            let ends = end_states(host, &prompt, &responses, description.layer, self.max_tokens)?;
            let mut of_ends = Vec::new();
            ends.iter().for_each(|end| values(&head, end, &mut of_ends));
            let added = |tokens: &[Token]| match &text {
                Some((term, reading)) => {
                    term.of_response(reading.as_ref(), host.tokenizer().as_ref(), tokens, self.max_tokens)
                }
                None => 0.0,
            };
            for (sample, value) in group.iter_mut().zip(of_ends) {
                sample.value = Some(value + f64::from(added(&sample.tokens)));
            }
        }
        Ok(())
    }

    /// For each reward, which dial of a method costs how much.
    fn tables(
        &self,
        method: &Method,
        journal: &mut Journal,
        host: &mut Option<Host>,
        told: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Vec<(String, Table)>, Error> {
        let mut tables = Vec::new();
        for reward in &self.rewards {
            if method.at == At::Base {
                break;
            }
            let name = reward.name();
            let known = if method.policy == "vas" { self.table_of_file(name, method.heads)? } else { None };
            // A reward that hangs on when a response ends needs dials beyond those of files.
            let most = self.wanted.kls.iter().copied().fold(0.0, f64::max);
            let known = known.filter(|table| table.iter().any(|&(_, kl)| kl >= most));
            let table = match known {
                Some(table) => table,
                None => {
                    let mut table = Vec::new();
                    for dial in CALIBRATED {
                        let setting = Setting {
                            method: method.name.to_owned(),
                            variant: method.variant.to_owned(),
                            dials: vec![(name.to_owned(), dial)],
                            samples: 1,
                            seed: self.wanted.seeds.first().copied().unwrap_or(0),
                            tune: true,
                            model_sha256: None,
                        };
                        self.decode(&setting, &self.tune, method, journal, host, told)?;
                        let samples = journal.find(&setting).map_or(&[][..], |decoded| &decoded.samples);
                        table.push((dial, a_token(samples, |sample| sample.kl)));
                    }
                    table
                }
            };
            tables.push((name.to_owned(), table));
        }
        Ok(tables)
    }

    fn table_of_file(&self, reward: &str, kind: &str) -> Result<Option<Table>, Error> {
        let table = self.head(reward, kind)?.map(|head| head.description.provenance.dial_to_kl);
        Ok(table.filter(|table| !table.is_empty()))
    }

    /// A reward's head of this kind, of the folder or shipped; none where none of this kind ships.
    fn head(&self, reward: &str, kind: &str) -> Result<Option<HeadFile>, Error> {
        if let Some(folder) = &self.heads {
            return Ok(Some(HeadFile::open(&head_path(folder, reward, kind))?));
        }
        let wanted = format!("{reward}.{kind}");
        let shipped = crate::shipped::HEADS.iter().find(|head| head.name == wanted);
        Ok(shipped.map(|head| HeadFile::read(head.file)).transpose()?)
    }
}

/// What [`Runner::run`] tells.
pub enum Progress<'a> {
    /// A setting begins.
    Setting(&'a Setting),
    /// A response is done.
    Response,
    /// A setting was done before: so many responses.
    Done(usize),
}
