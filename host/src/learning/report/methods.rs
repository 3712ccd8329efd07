//! The methods that are compared, and the settings in which each is decoded.
//!
//! Every method is a shipped policy with settings over heads of one kind: nothing here is known to the engine. A [`Method`] is a
//! row of [`METHODS`]; [`plan`] turns them into [`Planned`] settings, as soon as it is known which dial of each costs how
//! much. Best-of-n is not here: it is computed from the pool.

use serde::{Deserialize, Serialize};

use super::samples::Setting;

/// One method.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Method {
    /// As in [`Point::method`](super::Point::method); `guided` for the samples that guided Best-of-n chooses from.
    pub name: &'static str,
    /// As in [`Point::variant`](super::Point::variant).
    pub variant: &'static str,
    /// The kind of heads, as in their files' names; empty for none.
    pub heads: &'static str,
    /// The shipped policy.
    pub policy: &'static str,
    /// Its settings besides dials.
    pub settings: &'static [(&'static str, &'static str)],
    /// Which of the asked divergences it is decoded at.
    pub at: At,
    /// Responses a prompt and seed.
    pub samples: usize,
}

/// Which divergences a method is decoded at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// None: no dial is turned.
    Base,
    /// All.
    Every,
    /// The first only.
    First,
}

const fn guided(name: &'static str, heads: &'static str, policy: &'static str) -> Method {
    Method { name, variant: "", heads, policy, settings: &[], at: At::Every, samples: 1 }
}

/// All methods, in the order in which they are decoded: the dearest last, so that what is stopped early has most of them.
pub const METHODS: [Method; 13] = [
    Method { at: At::Base, ..guided("base", "", "vas") },
    Method { at: At::Base, settings: &[("tail", "mask")], ..guided("base_top_k", "", "vas") },
    guided("vas", "look-ahead", "vas"),
    guided("vas_one_pass", "one-pass", "vas"),
    guided("token_bias", "token-bias", "vas"),
    Method { settings: &[("method", "random")], ..guided("random", "look-ahead", "comparison") },
    Method { variant: "one-pass", at: At::First, samples: 8, ..guided("guided", "one-pass", "vas") },
    Method { settings: &[("method", "shuffled")], ..guided("shuffled", "look-ahead", "comparison") },
    Method { variant: "floor 0.01", settings: &[("floor", "0.01")], ..guided("vas", "look-ahead", "vas") },
    guided("value_model", "value-model", "vas"),
    Method { settings: &[("method", "fudge")], ..guided("fudge", "fudge", "comparison") },
    guided("args", "args", "vas"),
    Method { variant: "look-ahead", at: At::First, samples: 4, ..guided("guided", "look-ahead", "vas") },
];

/// Every kind of heads that some method reads, as in their files' names.
pub fn head_kinds() -> Vec<&'static str> {
    let mut kinds: Vec<&str> = METHODS.iter().map(|method| method.heads).filter(|kind| !kind.is_empty()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

/// The method whose settings two dials at once are decoded in.
pub const GRID: Method = Method { at: At::First, ..guided("grid", "one-pass", "vas") };

/// The method that turns every dial at once.
pub const TOGETHER: Method = Method { variant: "all at once", at: At::First, ..guided("vas", "look-ahead", "vas") };

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Wanted {
    /// Names of the rewards.
    pub rewards: Vec<String>,
    /// Nats a token that dials are set to cost; the first is the main one.
    pub kls: Vec<f64>,
    /// A response a prompt and a seed.
    pub seeds: Vec<u64>,
    /// Dials along each side of the grid; 0 for none.
    pub grid: usize,
}

/// A setting that is to be decoded.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// What it is kept under.
    pub setting: Setting,
    /// How it is decoded.
    pub method: Method,
}

/// The settings of one method. `dial` says which dial of a reward costs so many nats a token.
pub fn plan(method: &Method, wanted: &Wanted, dial: impl Fn(&str, f64) -> f64) -> Vec<Planned> {
    let mut dials: Vec<Vec<(String, f64)>> = Vec::new();
    match method.at {
        At::Base => dials.push(Vec::new()),
        _ => {
            let kls = if method.at == At::First { &wanted.kls[..wanted.kls.len().min(1)] } else { &wanted.kls };
            for reward in &wanted.rewards {
                dials.extend(kls.iter().map(|&kl| vec![(reward.clone(), dial(reward, kl))]));
            }
        }
    }
    seeded(method, dials, if method.samples > 1 { &wanted.seeds[..1.min(wanted.seeds.len())] } else { &wanted.seeds })
}

/// Every reward at once, at dials that cost equally much alone and the first divergence together.
pub fn together(wanted: &Wanted, dial: impl Fn(&str, f64) -> f64) -> Vec<Planned> {
    let Some(kl) = wanted.kls.first().filter(|_| wanted.rewards.len() > 1) else { return Vec::new() };
    let share = kl / wanted.rewards.len() as f64;
    let dials = wanted.rewards.iter().map(|reward| (reward.clone(), dial(reward, share))).collect();
    seeded(&TOGETHER, vec![dials], &wanted.seeds)
}

/// The dials along a side of the grid for a reward: from 0 to that of the first divergence.
pub fn side(wanted: &Wanted, reward: &str, dial: &impl Fn(&str, f64) -> f64) -> Vec<f64> {
    let Some(&kl) = wanted.kls.first() else { return Vec::new() };
    let most = dial(reward, kl);
    (0..wanted.grid).map(|place| most * place as f64 / (wanted.grid.max(2) - 1) as f64).collect()
}

/// The cells of the grid of the first two rewards, row by row, one seed.
pub fn grid(wanted: &Wanted, dial: impl Fn(&str, f64) -> f64) -> Vec<Planned> {
    let [first, second, ..] = wanted.rewards.as_slice() else { return Vec::new() };
    let (rows, columns) = (side(wanted, first, &dial), side(wanted, second, &dial));
    let cells = rows.iter().flat_map(|&row| columns.iter().map(move |&column| (row, column)));
    let dials = cells.map(|(row, column)| vec![(first.clone(), row), (second.clone(), column)]).collect();
    seeded(&GRID, dials, &wanted.seeds[..1.min(wanted.seeds.len())])
}

fn seeded(method: &Method, dials: Vec<Vec<(String, f64)>>, seeds: &[u64]) -> Vec<Planned> {
    let of = |(dials, &seed): (&Vec<(String, f64)>, &u64)| Planned {
        setting: Setting {
            method: method.name.to_owned(),
            variant: method.variant.to_owned(),
            dials: dials.clone(),
            samples: method.samples,
            seed,
            tune: false,
        },
        method: *method,
    };
    dials.iter().flat_map(|dials| seeds.iter().map(move |seed| of((dials, seed)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        Wanted { rewards: vec!["a".into(), "b".into()], kls: vec![0.25, 0.09], seeds: vec![1, 2, 3], grid: 3 }
    }

    fn dial(reward: &str, kl: f64) -> f64 {
        kl.sqrt() * if reward == "a" { 1.0 } else { 2.0 }
    }

    #[test]
    fn each_method_is_planned_at_its_divergences_and_seeds() {
        let count = |method: &Method| plan(method, &wanted(), dial).len();
        assert_eq!(METHODS.each_ref().map(count), [3, 3, 12, 12, 12, 12, 2, 12, 12, 12, 12, 12, 2]);
        let vas = plan(&METHODS[2], &wanted(), dial);
        assert_eq!(vas[3].setting.dials, [("a".to_owned(), 0.3)]);
        assert_eq!((vas[3].setting.seed, vas[4].setting.seed), (1, 2));
    }

    #[test]
    fn dials_together_cost_the_first_divergence() {
        let found = together(&wanted(), dial);
        let [(_, a), (_, b)] = &found[0].setting.dials[..] else { panic!("{found:?}") };
        assert!((a * a + b * b / 4.0 - 0.25).abs() < 1e-12);
        let cells = grid(&wanted(), dial);
        assert_eq!(cells.len(), 9);
        assert_eq!(cells[5].setting.dials, [("a".to_owned(), 0.25), ("b".to_owned(), 1.0)]);
        assert!(together(&Wanted { rewards: vec!["a".into()], ..wanted() }, dial).is_empty());
    }
}
