//! The Bradley–Terry model: which of two answers people prefer, as a linear function of what tells them apart.
//!
//! P(chosen over rejected) = σ(w·Δ + a·z), where Δ is the difference of the answers' features and z that of something which the
//! score shall not use (here their lengths): z takes its own share of the preference, and is dropped from the score
//! afterwards. Bradley and Terry, *Rank analysis of incomplete block designs*, 1952; the control for length is that of
//! length-controlled AlpacaEval (arXiv 2404.04475). Penalised likelihood, maximised by Newton's method with conjugate gradients:
//! no matrix of features by features is ever formed, and the result depends on nothing but the numbers. Start at [`fit`].

/// Newton steps at most; a fit takes some six.
const STEPS: usize = 30;

/// Products with the Hessian a Newton step.
const PRODUCTS: usize = 60;

/// What a Newton step leaves of its gradient's square: more exactness is lost on the next one's.
const LEFT: f64 = 1e-5;

/// A fit ends where no step changes the loss by more than this share.
const TOLERANCE: f64 = 1e-9;

/// Pairs, as differences of what was chosen less what was rejected.
#[derive(Debug, Clone, Default)]
pub struct Differences {
    /// Features of a pair; 0 for a model of the nuisance alone.
    pub width: usize,
    /// `[pairs, width]`, row-major.
    pub features: Vec<f32>,
    /// What the score shall not use, `[pairs]`.
    pub nuisance: Vec<f64>,
}

/// What [`fit`] finds.
#[derive(Debug, Clone, PartialEq)]
pub struct Preference {
    /// w, in units of the features as they came, `[width]`.
    pub weights: Vec<f64>,
    /// a.
    pub nuisance: f64,
}

impl Differences {
    /// Pairs.
    pub fn count(&self) -> usize {
        self.nuisance.len()
    }

    /// Adds a pair.
    ///
    /// # Panics
    /// If the features are not as many as those before.
    pub fn push(&mut self, chosen: &[f32], rejected: &[f32], nuisance: f64) {
        assert!(chosen.len() == rejected.len() && (self.count() == 0 || chosen.len() == self.width));
        self.width = chosen.len();
        self.features.extend(chosen.iter().zip(rejected).map(|(chosen, rejected)| chosen - rejected));
        self.nuisance.push(nuisance);
    }

    /// The same pairs without features.
    pub fn nuisance_alone(&self) -> Self {
        Self { width: 0, features: Vec::new(), nuisance: self.nuisance.clone() }
    }

    fn row(&self, pair: usize) -> &[f32] {
        &self.features[pair * self.width..][..self.width]
    }

    /// Root mean squares of the features: a difference has no mean to take away, since the pair could stand the other way
    /// round. 1 where a feature never differs.
    fn scales(&self) -> Vec<f64> {
        let mut squares = vec![0.0; self.width];
        for pair in 0..self.count() {
            squares.iter_mut().zip(self.row(pair)).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
        }
        let root = |sum: f64| (sum / self.count().max(1) as f64).sqrt();
        squares.into_iter().map(root).map(|scale| if scale > 0.0 { scale } else { 1.0 }).collect()
    }

    /// Mean log-loss of a preference on these pairs, nats; with the nuisance's share or without it.
    pub fn loss(&self, found: &Preference, with_nuisance: bool) -> f64 {
        let of = |pair: usize| softplus(-self.margin(found, pair, with_nuisance));
        (0..self.count()).map(of).sum::<f64>() / self.count().max(1) as f64
    }

    /// Which pairs it orders as people did, a half where it does not tell them apart, `[pairs]`.
    pub fn right(&self, found: &Preference, with_nuisance: bool) -> Vec<f64> {
        let of = |pair: usize| {
            let margin = self.margin(found, pair, with_nuisance);
            if margin == 0.0 { 0.5 } else { f64::from(margin > 0.0) }
        };
        (0..self.count()).map(of).collect()
    }

    fn margin(&self, found: &Preference, pair: usize, with_nuisance: bool) -> f64 {
        times(self.row(pair), &found.weights) + if with_nuisance { found.nuisance * self.nuisance[pair] } else { 0.0 }
    }
}

/// ln(1 + e^x).
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn dot(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(a, b)| a * b).sum()
}

/// A row times weights, in eight sums side by side: one alone waits for itself at every term.
fn times(row: &[f32], weights: &[f64]) -> f64 {
    let (mut sums, rest) = ([0.0_f64; 8], row.len() / 8 * 8);
    for (row, weights) in row.chunks_exact(8).zip(weights.chunks_exact(8)) {
        sums.iter_mut().zip(row.iter().zip(weights)).for_each(|(sum, (&x, w))| *sum += f64::from(x) * w);
    }
    let last: f64 = row[rest..].iter().zip(&weights[rest..]).map(|(&x, w)| f64::from(x) * w).sum();
    sums.iter().sum::<f64>() + last
}

/// The penalised likelihood over features divided by their scales, the nuisance last and free of penalty.
struct Problem<'a> {
    pairs: &'a Differences,
    scales: Vec<f64>,
    penalty: f64,
}

impl Problem<'_> {
    fn size(&self) -> usize {
        self.pairs.width + 1
    }

    fn penalty_of(&self, at: usize) -> f64 {
        if at < self.pairs.width { self.penalty } else { 0.0 }
    }

    fn margins(&self, weights: &[f64], out: &mut Vec<f64>) {
        let (own, nuisance) = weights.split_at(self.pairs.width);
        let scaled: Vec<f64> = own.iter().zip(&self.scales).map(|(w, scale)| w / scale).collect();
        out.clear();
        out.extend(
            (0..self.pairs.count())
                .map(|pair| times(self.pairs.row(pair), &scaled) + nuisance[0] * self.pairs.nuisance[pair]),
        );
    }

    fn loss(&self, weights: &[f64], margins: &[f64]) -> f64 {
        let fit: f64 = margins.iter().map(|&margin| softplus(-margin)).sum();
        let squares: f64 = weights.iter().enumerate().map(|(at, w)| self.penalty_of(at) * w * w).sum();
        fit / margins.len() as f64 + 0.5 * squares
    }

    /// Σ c·row over the pairs, divided by their number, with the penalty's share of `weights`.
    fn gather(&self, coefficients: &[f64], weights: &[f64], out: &mut [f64]) {
        let count = coefficients.len() as f64;
        out.fill(0.0);
        let (own, nuisance) = out.split_at_mut(self.pairs.width);
        for (pair, c) in coefficients.iter().enumerate() {
            own.iter_mut().zip(self.pairs.row(pair)).for_each(|(sum, &x)| *sum += c * f64::from(x));
            nuisance[0] += c * self.pairs.nuisance[pair];
        }
        own.iter_mut().zip(&self.scales).for_each(|(sum, scale)| *sum /= scale);
        for (at, sum) in out.iter_mut().enumerate() {
            *sum = *sum / count + self.penalty_of(at) * weights[at];
        }
    }

    /// The Newton step: conjugate gradients on H·step = −gradient.
    fn step(&self, gradient: &[f64], curvatures: &[f64]) -> Vec<f64> {
        let size = self.size();
        let (mut step, mut rest) = (vec![0.0; size], gradient.iter().map(|g| -g).collect::<Vec<_>>());
        let (mut along, mut product, mut margins) = (rest.clone(), vec![0.0; size], Vec::new());
        let mut square = dot(&rest, &rest);
        let enough = LEFT * square;
        for _ in 0..PRODUCTS.min(2 * size) {
            if square <= enough || square == 0.0 {
                break;
            }
            self.margins(&along, &mut margins);
            margins.iter_mut().zip(curvatures).for_each(|(margin, curvature)| *margin *= curvature);
            self.gather(&margins, &along, &mut product);
            let curvature = dot(&along, &product);
            if curvature <= 0.0 {
                break;
            }
            let length = square / curvature;
            step.iter_mut().zip(&along).for_each(|(step, along)| *step += length * along);
            rest.iter_mut().zip(&product).for_each(|(rest, product)| *rest -= length * product);
            let next = dot(&rest, &rest);
            along.iter_mut().zip(&rest).for_each(|(along, rest)| *along = rest + next / square * *along);
            square = next;
        }
        step
    }
}

/// Fits a preference to pairs. `penalty` is on the square of the weights of features divided by their root mean squares,
/// beside the mean log-loss of a pair.
pub fn fit(pairs: &Differences, penalty: f64) -> Preference {
    let problem = Problem { pairs, scales: pairs.scales(), penalty };
    let mut weights = vec![0.0; problem.size()];
    let (mut margins, mut tried, mut gradient) = (Vec::new(), Vec::new(), weights.clone());
    problem.margins(&weights, &mut margins);
    let mut loss = problem.loss(&weights, &margins);
    for _ in 0..STEPS {
        let missed: Vec<f64> = margins.iter().map(|&margin| -1.0 / (1.0 + margin.exp())).collect();
        let curvatures: Vec<f64> = missed.iter().map(|miss| -miss * (1.0 + miss)).collect();
        problem.gather(&missed, &weights, &mut gradient);
        let step = problem.step(&gradient, &curvatures);
        // The likelihood is concave, so a step that is short enough always helps.
        let mut length = 1.0;
        let gained = loop {
            let next: Vec<f64> = weights.iter().zip(&step).map(|(w, step)| w + length * step).collect();
            problem.margins(&next, &mut tried);
            let found = problem.loss(&next, &tried);
            if found <= loss || length < 1e-6 {
                let gained = loss - found;
                if gained > 0.0 {
                    (weights, loss) = (next, found);
                    std::mem::swap(&mut margins, &mut tried);
                }
                break gained;
            }
            length *= 0.5;
        };
        if gained <= TOLERANCE * loss {
            break;
        }
    }
    let nuisance = weights.pop().unwrap_or_default();
    Preference { weights: weights.iter().zip(&problem.scales).map(|(w, scale)| w / scale).collect(), nuisance }
}

#[cfg(test)]
mod tests {
    use super::super::super::statistics::{SplitMix, mean};
    use super::*;

    /// Pairs whose first feature decides, together with the nuisance; a second one is noise, a third follows the nuisance.
    fn planted(count: usize, seed: u64) -> Differences {
        let mut random = SplitMix::new(seed);
        let mut pairs = Differences::default();
        let mut number = || (0..12).map(|_| random.unit()).sum::<f64>() - 6.0;
        let mut draws = SplitMix::new(seed + 1);
        for _ in 0..count {
            let (x, noise, z) = (number(), number(), number());
            let sign = if draws.unit() < 1.0 / (1.0 + (-(2.0 * x + z)).exp()) { 1.0 } else { -1.0 };
            let row = [sign * x, sign * 100.0 * noise, sign * (z + 0.1 * number())].map(|x| x as f32);
            pairs.push(&row, &[0.0; 3], sign * z);
        }
        pairs
    }

    #[test]
    fn a_planted_preference_is_found_and_the_nuisance_kept_out_of_it() {
        let pairs = planted(4_000, 1);
        let found = fit(&pairs, 1e-3);
        assert!((found.weights[0] - 2.0).abs() < 0.2, "{found:?}");
        assert!(found.weights[1].abs() < 0.002, "noise, in units of a hundred: {found:?}");
        assert!(found.nuisance > 0.6 && found.weights[2].abs() < 0.4, "{found:?}");
        let (unseen, alone) = (planted(2_000, 9), fit(&pairs.nuisance_alone(), 1e-3));
        let right = |found: &Preference, with| mean(&unseen.right(found, with));
        assert!(right(&found, true) > right(&found, false), "the nuisance does decide");
        assert!(right(&found, false) > 0.7);
        assert!((0.6..0.7).contains(&mean(&unseen.nuisance_alone().right(&alone, true))), "{alone:?}");
        assert!(unseen.loss(&found, true) < 0.5);
    }

    #[test]
    fn the_likelihood_has_no_slope_where_a_fit_ends() {
        let pairs = planted(500, 3);
        let problem = Problem { pairs: &pairs, scales: pairs.scales(), penalty: 0.01 };
        let found = fit(&pairs, 0.01);
        let mut weights: Vec<f64> = found.weights.iter().zip(&problem.scales).map(|(w, scale)| w * scale).collect();
        weights.push(found.nuisance);
        let (mut margins, mut gradient) = (Vec::new(), vec![0.0; 4]);
        problem.margins(&weights, &mut margins);
        let missed: Vec<f64> = margins.iter().map(|&margin| -1.0 / (1.0 + margin.exp())).collect();
        problem.gather(&missed, &weights, &mut gradient);
        assert!(gradient.iter().all(|slope| slope.abs() < 1e-4), "{gradient:?}");
    }

    #[test]
    fn features_that_never_differ_say_nothing() {
        let mut pairs = Differences::default();
        for place in 0..20 {
            pairs.push(&[1.0, 7.0], &[if place < 15 { 0.0 } else { 2.0 }, 7.0], 0.0);
        }
        let found = fit(&pairs, 1e-6);
        // Fifteen of twenty for it: three to one.
        assert!((found.weights[0] - 3.0_f64.ln()).abs() < 1e-3 && found.weights[1] == 0.0, "{found:?}");
        assert_eq!(mean(&pairs.right(&found, false)), 0.75);
    }
}
