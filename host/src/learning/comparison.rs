//! Heads of the methods that Value Augmented Sampling is compared with, fitted to the same rollouts.
//!
//! *ARGS* (Khanov, Burapacheep and Li, arXiv 2402.01694) steers by a reward model of finished responses, read before they are
//! finished: the reward itself where it can be read off text, else a look-ahead head fitted on end states alone. *FUDGE* (Yang and Klein, arXiv 2104.05218) steers by the probability
//! that the finished response is good: here, better than its prompt's others. Its head gives log-odds, by ridge regression
//! of the two classes (their linear discriminant) and a logistic fit of what that says ([`calibrate`]); the policy `comparison`
//! turns them into ln of the probability. Start at [`classes`].

use vassal_kernels::LinearHead;

use super::features::States;
use super::look_ahead::ValueHead;
use super::text_columns::TextColumns;
use crate::model::heads::text::readings_of;

/// Newton's steps of the logistic fit; it converges in fewer than ten.
const STEPS: usize = 50;

/// 1 for a rollout whose reward is above its prompt's mean, else 0, from centred rewards.
pub fn classes(centred: &[f64]) -> Vec<f64> {
    // Equal rewards can differ from their mean by rounding.
    centred.iter().map(|&reward| f64::from(u8::from(reward > 1e-9))).collect()
}

/// The head whose value is the log-odds a·v + b of class 1, where v is this head's value: a and b are the logistic
/// regression over all states. Where the classes cannot be told apart, a is 0 and the head says nothing.
pub fn calibrate(head: &ValueHead, (states, text): (&States, Option<&TextColumns>), classes: &[f64]) -> ValueHead {
    let (mut rows, mut of_states, mut pairs) = (Vec::new(), Vec::new(), Vec::new());
    for (rollout, &class) in classes.iter().enumerate().take(states.rollouts()) {
        states.rows(rollout, &mut rows);
        head.values(states, text, rollout, &rows, &mut of_states);
        pairs.extend(of_states.iter().map(|&value| (value, class)));
    }
    let (a, b) = logistic(&pairs);
    let scaled = |weights: &[f32]| weights.iter().map(|&weight| (a * f64::from(weight)) as f32).collect();
    let ValueHead { linear, text } = head;
    let linear = LinearHead {
        tap: linear.tap,
        residual: scaled(&linear.residual),
        mean: scaled(&linear.mean),
        share: scaled(&linear.share),
        remaining: (a * f64::from(linear.remaining)) as f32,
        bias: (a * f64::from(linear.bias) + b) as f32,
    };
    ValueHead { linear, text: scaled(text) }
}

/// The head of ARGS where the reward itself can be read off the text so far: it says that reward, which a reading gives first and
/// over its highest value, and nothing else.
pub fn text_reward(hidden: usize, columns: &TextColumns, highest: f64) -> ValueHead {
    let zeros = vec![0.0; hidden];
    let linear =
        LinearHead { tap: 0, residual: zeros.clone(), mean: zeros, share: Vec::new(), remaining: 0.0, bias: 0.0 };
    let mut text = vec![0.0; columns.width()];
    // While the response goes on, and where it has ended.
    text[0] = highest as f32;
    text[3 * readings_of(columns.width()) + 1] = highest as f32;
    ValueHead { linear, text }
}

/// Slope and level of the log-odds, by Newton's method with halved steps where one would overshoot.
fn logistic(pairs: &[(f64, f64)]) -> (f64, f64) {
    let loss = |a: f64, b: f64| -> f64 {
        // ln(1 + e^z) - y z, without overflow.
        pairs.iter().map(|&(x, y)| (a * x + b, y)).map(|(z, y)| z.max(0.0) + (-z.abs()).exp().ln_1p() - y * z).sum()
    };
    let (mut a, mut b) = (0.0, 0.0);
    let mut least = loss(a, b);
    for _ in 0..STEPS {
        let (mut ga, mut gb, mut haa, mut hab, mut hbb) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for &(x, y) in pairs {
            let p = 1.0 / (1.0 + (-(a * x + b)).exp());
            let (error, weight) = (p - y, p * (1.0 - p));
            ga += error * x;
            gb += error;
            haa += weight * x * x;
            hab += weight * x;
            hbb += weight;
        }
        let determinant = haa * hbb - hab * hab;
        if determinant <= f64::EPSILON * haa * hbb {
            break;
        }
        let (da, db) = ((hbb * ga - hab * gb) / determinant, (haa * gb - hab * ga) / determinant);
        let better = (0..20).map(|halvings| 0.5_f64.powi(halvings)).find_map(|step| {
            let (a, b) = (a - step * da, b - step * db);
            let loss = loss(a, b);
            (loss < least).then_some((a, b, loss))
        });
        let Some((next_a, next_b, next_loss)) = better else { break };
        let gained = least - next_loss;
        (a, b, least) = (next_a, next_b, next_loss);
        if gained < 1e-9 * least.abs() {
            break;
        }
    }
    (a, b)
}

#[cfg(test)]
mod tests {
    use super::super::statistics::SplitMix;
    use super::*;

    #[test]
    fn log_odds_are_found_again() {
        let mut random = SplitMix::new(5);
        let pairs: Vec<(f64, f64)> = (0..40_000)
            .map(|_| {
                let x = 4.0 * random.unit() - 2.0;
                let p = 1.0 / (1.0 + (-(1.5 * x - 0.7)).exp());
                (x, f64::from(u8::from(random.unit() < p)))
            })
            .collect();
        let (a, b) = logistic(&pairs);
        assert!((a - 1.5).abs() < 0.06 && (b + 0.7).abs() < 0.06, "{a} {b}");
        assert_eq!(logistic(&[(1.0, 1.0), (1.0, 0.0)]).0, 0.0, "no slope where values do not differ");
    }

    #[test]
    fn a_calibrated_head_says_log_odds() {
        let mut random = SplitMix::new(8);
        let mut states = States::new(1);
        let mut classes = Vec::new();
        for _ in 0..2_000 {
            let x = 2.0 * random.unit() as f32 - 1.0;
            states.push(&[], &[x, 0.0, 1.0, 1.0]).expect("a row");
            let p = 1.0 / (1.0 + (-3.0 * f64::from(x)).exp());
            classes.push(f64::from(u8::from(random.unit() < p)));
        }
        let linear =
            LinearHead { tap: 0, residual: vec![0.2], mean: vec![0.0], share: vec![], remaining: 0.1, bias: 0.3 };
        let odds = calibrate(&ValueHead { linear, text: Vec::new() }, (&states, None), &classes).linear;
        assert!((odds.residual[0] - 3.0).abs() < 0.4, "{odds:?}");
        assert!((odds.remaining + odds.bias).abs() < 0.3, "{odds:?}");
    }

    #[test]
    fn args_says_the_reward_of_the_text_and_nothing_else() {
        use super::super::rewards::{BuiltIn, reading};
        use crate::model::heads::TextTerm;
        use crate::model::heads::text::basis;
        for definition in ["sentiment 1", "length 1: 4"] {
            let reading = reading(definition).expect(definition);
            let mut numbers = Vec::new();
            reading.read("a good day", &mut numbers);
            let score = numbers[0];
            for ended in [false, true] {
                let mut row = Vec::new();
                basis(&numbers, 0.25, ended, &mut row);
                let head = text_reward(3, &TextColumns::of_rows(row.len(), row), 1.0);
                let term = TextTerm { reward: definition.into(), weights: head.text };
                assert_eq!(term.value(reading.as_ref(), "a good day", 0.25, ended), score, "{definition}");
            }
        }
        assert!((BuiltIn::sentiment().score_text("a good day") - 0.72).abs() < 0.01);
    }

    #[test]
    fn better_than_the_prompts_others_is_good() {
        assert_eq!(classes(&[0.2, -0.1, 0.0]), [1.0, 0.0, 0.0]);
    }
}
