//! A report with everything in it, for the tests of the page and of Markdown.
//!
//! Its numbers are made up by simple rules that look like an evaluation's: rewards that saturate in KL,
//! Best-of-n by the logarithm of n. [`hostile`] puts into every text what must never come out as it is.

use super::*;

/// What a stranger may write into any text of a report.
pub(super) const HOSTILE: &str = "<script>alert(1)</script> & \"quoted\" 'single' | pipe \u{1b}[2J\u{202e}drow\u{7}\n\
     </td></svg>\n\n# head `code` [a](http://b)";

/// A whole report of two rewards.
pub(super) fn report() -> Report {
    let rewards = [("sentiment", "VADER's compound score, rescaled."), ("word_length", "Mean letters a word.")];
    let about_reward = |summary: &str| RewardAbout {
        summary: summary.to_owned(),
        definition: "builtin:example 1".to_owned(),
        range: (0.0, 1.0),
        unscored: 3,
        reasons: "no words: 2; not UTF-8: 1".to_owned(),
    };
    Report {
        format: FORMAT.to_owned(),
        about: about(),
        rewards: rewards.map(|(name, summary)| (name.to_owned(), about_reward(summary))).into(),
        heads: [("sentiment".to_owned(), head(0.21)), ("word_length".to_owned(), head(0.45))].into(),
        points: rewards.iter().flat_map(|(name, _)| points(name)).collect(),
        comparisons: rewards.iter().flat_map(|(name, _)| comparisons(name)).collect(),
        compute: rewards.iter().flat_map(|(name, _)| compute(name)).collect(),
        grid: Some(grid()),
        failed: vec![
            "VAS does not reach Best-of-64 on word_length at any dial.".to_owned(),
            "The reward word_length has no score for 3 responses.".to_owned(),
        ],
        side_by_side: (0..2).map(side_by_side).collect(),
    }
}

/// The same with [`HOSTILE`] in every text that comes from outside, and no whole number of settings.
pub(super) fn hostile() -> Report {
    let mut report = report();
    let about = &mut report.about;
    write([&mut about.command, &mut about.model, &mut about.split, &mut about.tail, &mut about.device]);
    write([&mut about.version, &mut about.model_sha256, &mut about.prompts_sha256, &mut about.pool_sha256]);
    write([&mut report.format]);
    let reward = report.rewards.remove("sentiment").expect("an example has it");
    report.rewards.insert(HOSTILE.to_owned(), reward);
    for reward in report.rewards.values_mut() {
        write([&mut reward.summary, &mut reward.definition, &mut reward.reasons]);
    }
    let mut head = report.heads.remove("sentiment").expect("an example has it");
    let share = head.explained_variance;
    head.explained_by_controls.insert(HOSTILE.to_owned(), share);
    report.heads.insert(HOSTILE.to_owned(), head);
    for point in report.points.iter_mut().filter(|point| point.reward == "sentiment") {
        write([&mut point.method, &mut point.variant, &mut point.reward]);
    }
    for comparison in &mut report.comparisons {
        write([&mut comparison.method, &mut comparison.against, &mut comparison.matched]);
    }
    report.compute.iter_mut().for_each(|compute| compute.reached_by = Some(HOSTILE.to_owned()));
    let grid = report.grid.as_mut().expect("an example has it");
    write(&mut grid.rewards);
    grid.trends.iter_mut().for_each(|trend| write([&mut trend.reward]));
    write(&mut report.failed);
    for pair in &mut report.side_by_side {
        write([&mut pair.reward, &mut pair.prompt, &mut pair.base, &mut pair.aligned]);
    }
    report
}

fn write<'a>(texts: impl IntoIterator<Item = &'a mut String>) {
    texts.into_iter().for_each(|text| *text = HOSTILE.to_owned());
}

fn about() -> About {
    About {
        command: "vassal evaluate --reward sentiment --reward word_length --report out".to_owned(),
        version: "0.1.0".to_owned(),
        model: "SmolLM2-135M-Instruct Q8_0".to_owned(),
        model_sha256: "5a1395716f7913741cc51d98581b9b1228d80987a9f7d3664106742eb06bba83".to_owned(),
        prompts_sha256: "0d7f3c2b9e8a4f615d2c1b0a99887766554433221100ffeeddccbbaa99887766".to_owned(),
        pool_sha256: "aa11bb22cc33dd44ee55ff6600112233445566778899aabbccddeeff00112233".to_owned(),
        split: "test".to_owned(),
        prompts: 200,
        pool_samples: 128,
        seeds: vec![1, 2, 3],
        temperature: 1.0,
        top_p: 1.0,
        candidates: 20,
        tail: "mask".to_owned(),
        token_limit: 60,
        device: "CPU, AVX2, 2 threads".to_owned(),
        settings_missing: 0,
    }
}

fn estimate(mean: f64, half: f64) -> Estimate {
    Estimate { mean, ci_low: mean - half, ci_high: mean + half }
}

fn head(explained: f64) -> HeadReport {
    let controls = [("prompt mean", 0.0), ("position", 0.01), ("prefix reward", 0.12), ("token bias", 0.09)];
    HeadReport {
        layer: 21,
        explained_variance: estimate(explained, 0.02),
        explained_by_position: (0..10).map(|part| explained * (0.1 + 0.17 * f64::from(part))).collect(),
        explained_by_controls: controls.map(|(name, share)| (name.to_owned(), estimate(share, 0.015))).into(),
        within_state: Some(estimate(0.62, 0.06)),
        calibration_slope: estimate(0.97, 0.05),
        calibration: (0..10).map(|tenth| f64::from(tenth) * 0.06 - 0.27).map(|v| (v, v * 0.96 + v * v * 0.2)).collect(),
        martingale: estimate(0.0012, 0.002),
        martingale_terminal: -0.0031,
        spread: 0.0213,
        dial_to_kl: [0.25, 0.5, 1.0, 1.5].map(|dial| (dial, dial * dial * 0.42)).into(),
        ablation: vec![("residual and running mean".into(), 0.11), ("with the reward of the text so far".into(), 0.31)],
    }
}

fn point(reward: &str, method: &str, mean: f64, kl_per_token: f64, cost: f64) -> Point {
    Point {
        method: method.to_owned(),
        variant: String::new(),
        reward: reward.to_owned(),
        dial: 0.0,
        n: 1,
        seeds: 3,
        prompts: 200,
        mean,
        ci_low: mean - 0.018,
        ci_high: mean + 0.019,
        kl_per_token,
        cross_entropy_ratio: Some(1.0 + kl_per_token),
        distinct2_ratio: Some(1.0 - kl_per_token / 4.0),
        repeated4_ratio: Some(1.0 + kl_per_token * 2.0),
        forwards_per_token: cost,
        ms_per_token: cost * 3.1 + 9.4,
    }
}

fn points(reward: &str) -> Vec<Point> {
    let mut points = vec![point(reward, "base", 0.283, 0.0, 1.0), point(reward, "base_top_k", 0.301, 0.021, 1.0)];
    let steered = [
        ("vas", "", 0.72, 11.5),
        ("vas", "floor 0.01", 0.66, 6.2),
        ("vas_one_pass", "", 0.6, 1.04),
        ("value_model", "", 0.63, 8.3),
        ("fudge", "", 0.5, 11.5),
        ("args", "", 0.41, 11.5),
        ("token_bias", "", 0.55, 1.01),
        ("shuffled", "", 0.03, 11.5),
        ("random", "", 0.01, 1.01),
    ];
    for (method, variant, gain, cost) in steered {
        for dial in [0.25f64, 0.5, 0.75, 1.0, 1.5] {
            let kl = dial * dial * 0.21;
            let mean = 0.29 + gain * (1.0 - (-9.0 * kl).exp());
            points.push(Point { dial, variant: variant.to_owned(), ..point(reward, method, mean, kl, cost) });
        }
    }
    for n in [2u32, 4, 8, 16, 32, 64] {
        let (log, cost) = (f64::from(n).ln(), f64::from(n));
        let best = point(reward, "best_of_n", 0.3 + 0.155 * log, (log - (cost - 1.0) / cost) / 54.0, cost);
        points.push(Point { n: n as usize, cross_entropy_ratio: None, ..best });
    }
    for n in [2u32, 4, 8] {
        let cost = f64::from(n) * 1.04;
        let guided = point(reward, "guided_best_of_n", 0.68 + 0.1 * f64::from(n).ln(), 0.06 + 0.02 * cost, cost);
        points.push(Point { n: n as usize, dial: 0.5, ..guided });
    }
    points
}

fn comparisons(reward: &str) -> Vec<Comparison> {
    let compared = [
        ("vas", "best_of_n", "kl 0.05", 0.182, 0.03),
        ("vas", "best_of_n", "forwards 11.5", 0.021, 0.026),
        ("vas_one_pass", "token_bias", "kl 0.05", -0.043, 0.02),
        ("shuffled", "base", "kl 0.25", 0.002, 0.02),
    ];
    let comparison = |(method, against, matched, difference, half): (&str, &str, &str, f64, f64)| Comparison {
        reward: reward.to_owned(),
        method: method.to_owned(),
        against: against.to_owned(),
        matched: matched.to_owned(),
        difference,
        ci_low: difference - half,
        ci_high: difference + half,
    };
    compared.map(comparison).into()
}

fn compute(reward: &str) -> Vec<Compute> {
    let reached = |n: usize, target: f64, by: Option<(&str, f64)>| Compute {
        reward: reward.to_owned(),
        n,
        target,
        reached_by: by.map(|(by, _)| by.to_owned()),
        forwards_per_token: by.map(|(_, forwards)| forwards),
        times_cheaper: by.map(|(_, forwards)| n as f64 / forwards),
    };
    vec![
        reached(4, 0.515, Some(("VAS, one-pass, dial 0.5", 1.04))),
        reached(16, 0.73, Some(("guided Best-of-n, n 2, dial 0.5", 2.08))),
        reached(64, 0.945, None),
    ]
}

fn grid() -> Grid {
    let dials = vec![0.0, 0.5, 1.0, 1.5];
    let means = |own: f64, other: f64| -> Vec<Vec<f64>> {
        let mean = |first: &f64, second: &f64| 0.3 + own * first + other * second;
        dials.iter().map(|first| dials.iter().map(|second| mean(first, second)).collect()).collect()
    };
    let trend = |reward: &str, other: f64| Trend { reward: reward.to_owned(), other, p: 0.0002, p_holm: 0.0016 };
    Grid {
        rewards: ["sentiment", "word_length"].map(str::to_owned),
        first: dials.clone(),
        second: dials.clone(),
        means: [means(0.36, -0.04), means(0.02, 0.29)],
        trends: ["sentiment", "word_length"]
            .iter()
            .flat_map(|reward| dials.iter().map(|dial| trend(reward, *dial)))
            .collect(),
    }
}

fn side_by_side(index: usize) -> SideBySide {
    SideBySide {
        reward: "sentiment".to_owned(),
        prompt: ["Describe a rainy day in one paragraph.", "How do I boil an egg?"][index % 2].to_owned(),
        base: "The rain fell on the roofs all morning.\n\n1. Nobody went out.\n2. The streets were grey & empty."
            .to_owned(),
        base_reward: 0.312,
        aligned: "What a wonderful, cosy day! The rain sang softly on the roofs, and everyone smiled.".to_owned(),
        aligned_reward: 0.934,
    }
}
