//! The methods that are compared, and the settings in which each is decoded.
//!
//! Every method is a shipped policy with settings over heads of one kind: nothing here is known to the engine. A [`Method`] is a
//! row of [`METHODS`]; [`plan`] turns them into [`Setting`]s, as soon as it is known which dial of each costs how
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
    /// The first, every reward's dial turned at once.
    Together,
    /// On a grid of dials of the first two rewards, up to the first.
    Grid,
}

const fn guided(name: &'static str, heads: &'static str, policy: &'static str) -> Method {
    Method { name, variant: "", heads, policy, settings: &[], at: At::Every, samples: 1 }
}

/// All methods, in the order in which they are decoded: the dearest last, so that what is stopped early has most of them.
pub static METHODS: [Method; 15] = [
    Method { at: At::Base, ..guided("base", "", "vas") },
    Method { at: At::Base, settings: &[("tail", "mask")], ..guided("base_top_k", "", "vas") },
    guided("vas", "look-ahead", "vas"),
    guided("vas_one_pass", "one-pass", "vas"),
    guided("token_bias", "token-bias", "vas"),
    Method { settings: &[("method", "random")], ..guided("random", "look-ahead", "comparison") },
    Method { at: At::Grid, ..guided(GRID, "one-pass", "vas") },
    Method { variant: "all at once", at: At::Together, ..guided("vas", "look-ahead", "vas") },
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

/// The name of the method whose settings two dials at once are decoded in.
pub const GRID: &str = "grid";

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

/// One way of turning dials: rewards' names with how far each is turned.
type Dials = Vec<(String, f64)>;

/// The settings of one method. `dial` says which dial of a reward costs so many nats a token.
pub fn plan(method: &Method, wanted: &Wanted, dial: impl Fn(&str, f64) -> f64) -> Vec<Setting> {
    let alone = |kls: &[f64]| -> Vec<Dials> {
        let of = |reward: &String| kls.iter().map(|&kl| vec![(reward.clone(), dial(reward, kl))]).collect::<Vec<_>>();
        wanted.rewards.iter().flat_map(of).collect()
    };
    let dials = match method.at {
        At::Base => vec![Vec::new()],
        At::Every => alone(&wanted.kls),
        At::First => alone(&wanted.kls[..wanted.kls.len().min(1)]),
        At::Together => together(wanted, &dial),
        At::Grid => grid(wanted, &dial),
    };
    let one_seed = method.samples > 1 || method.at == At::Grid;
    let seeds = if one_seed { &wanted.seeds[..wanted.seeds.len().min(1)] } else { &wanted.seeds };
    let of = |dials: &Dials, seed: u64| Setting {
        method: method.name.to_owned(),
        variant: method.variant.to_owned(),
        dials: dials.clone(),
        samples: method.samples,
        seed,
        tune: false,
        model_sha256: None,
    };
    dials.iter().flat_map(|dials| seeds.iter().map(move |&seed| of(dials, seed))).collect()
}

/// Every reward at once, at dials that cost equally much alone and the first divergence together; nothing for one reward alone.
fn together(wanted: &Wanted, dial: &impl Fn(&str, f64) -> f64) -> Vec<Dials> {
    let Some(kl) = wanted.kls.first().filter(|_| wanted.rewards.len() > 1) else { return Vec::new() };
    let share = kl / wanted.rewards.len() as f64;
    vec![wanted.rewards.iter().map(|reward| (reward.clone(), dial(reward, share))).collect()]
}

/// The dials along a side of the grid for a reward: from 0 to that of the first divergence.
fn side(wanted: &Wanted, reward: &str, dial: &impl Fn(&str, f64) -> f64) -> Vec<f64> {
    let Some(&kl) = wanted.kls.first() else { return Vec::new() };
    let most = dial(reward, kl);
    (0..wanted.grid).map(|place| most * place as f64 / (wanted.grid.max(2) - 1) as f64).collect()
}

/// The cells of the grid of the first two rewards, row by row.
fn grid(wanted: &Wanted, dial: &impl Fn(&str, f64) -> f64) -> Vec<Dials> {
    let [first, second, ..] = wanted.rewards.as_slice() else { return Vec::new() };
    let (rows, columns) = (side(wanted, first, dial), side(wanted, second, dial));
    let cells = rows.iter().flat_map(|&row| columns.iter().map(move |&column| (row, column)));
    cells.map(|(row, column)| vec![(first.clone(), row), (second.clone(), column)]).collect()
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
        assert_eq!(METHODS.each_ref().map(count), [3, 3, 12, 12, 12, 12, 9, 3, 2, 12, 12, 12, 12, 12, 2]);
        let vas = plan(&METHODS[2], &wanted(), dial);
        assert_eq!(vas[3].dials, [("a".to_owned(), 0.3)]);
        assert_eq!((vas[3].seed, vas[4].seed), (1, 2));
    }

    #[test]
    fn dials_together_cost_the_first_divergence() {
        let planned = |at: At, wanted: &Wanted| {
            let method = METHODS.iter().find(|method| method.at == at).expect("a method");
            plan(method, wanted, dial)
        };
        let found = planned(At::Together, &wanted());
        let [(_, a), (_, b)] = &found[0].dials[..] else { panic!("{found:?}") };
        assert!((a * a + b * b / 4.0 - 0.25).abs() < 1e-12);
        let cells = planned(At::Grid, &wanted());
        assert_eq!(cells.len(), 9);
        assert_eq!(cells[5].dials, [("a".to_owned(), 0.25), ("b".to_owned(), 1.0)]);
        assert!(planned(At::Together, &Wanted { rewards: vec!["a".into()], ..wanted() }).is_empty());
    }
}
