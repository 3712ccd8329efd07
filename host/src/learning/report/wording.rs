//! How numbers and methods are written, alike on the page, in its plots and in Markdown.
//!
//! A number that is none (NaN, infinite, not known) is [`NONE`]. Nothing is computed but the digits that are
//! shown: so many decimals where numbers of one kind stand in a column, three significant digits where they
//! differ by orders.

use super::Point;

/// In place of a number that is not there.
pub(super) const NONE: &str = "–";

/// With so many decimals.
pub(super) fn fixed(value: f64, decimals: usize) -> String {
    if !value.is_finite() {
        return NONE.to_owned();
    }
    if value.abs() >= 1e7 {
        return signed(&format!("{value:.2e}"));
    }
    signed(&format!("{value:.decimals$}"))
}

/// With three significant digits.
pub(super) fn significant(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let magnitude = value.abs().log10().floor();
    if value.is_finite() && !(-6.0..7.0).contains(&magnitude) {
        return signed(&format!("{value:.2e}"));
    }
    fixed(value, (2.0 - magnitude).clamp(0.0, 8.0) as usize)
}

/// With three significant digits at most: a dial of 0.50 is 0.5.
pub(super) fn short(value: f64) -> String {
    let text = significant(value);
    if text.contains('.') && !text.contains('e') {
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    text
}

/// A reward.
pub(super) fn reward(value: f64) -> String {
    fixed(value, 3)
}

/// An interval of rewards.
pub(super) fn interval(low: f64, high: f64) -> String {
    ends(low, high, 3)
}

/// An interval with so many decimals.
pub(super) fn ends(low: f64, high: f64, decimals: usize) -> String {
    if low.is_finite() && high.is_finite() {
        format!("[{}, {}]", fixed(low, decimals), fixed(high, decimals))
    } else {
        NONE.to_owned()
    }
}

/// A number that may not be known.
pub(super) fn known(value: Option<f64>, write: impl Fn(f64) -> String) -> String {
    value.map_or_else(|| NONE.to_owned(), write)
}

/// Numbers or words one after another.
pub(super) fn list<T: ToString>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(T::to_string).collect();
    match items.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => items.concat(),
    }
}

/// What a point's method and variant are called.
pub(super) fn series(point: &Point) -> String {
    let method = method(&point.method);
    if point.variant.is_empty() { method.to_owned() } else { format!("{method}, {}", point.variant) }
}

/// What a method is called; one that is not known keeps its name.
pub(super) fn method(name: &str) -> &str {
    match name {
        "base_top_k" => "base, top k",
        "vas" => "VAS",
        "vas_one_pass" => "VAS, one-pass",
        "value_model" => "value model",
        "best_of_n" => BEST_OF_N,
        "guided_best_of_n" => "guided Best-of-n",
        "fudge" => "FUDGE",
        "args" => "ARGS",
        "dpo" => "DPO",
        "ppo" => "PPO",
        "token_bias" => "token bias",
        "shuffled" => "shuffled values",
        "random" => "random values",
        other => other,
    }
}

/// The method that the others are measured by.
pub(super) const BEST_OF_N: &str = "Best-of-n";

/// A minus sign in place of a hyphen, and none before zero.
fn signed(text: &str) -> String {
    match text.strip_prefix('-') {
        Some(rest) if rest.chars().all(|c| c == '0' || c == '.') => rest.to_owned(),
        Some(rest) => format!("−{}", rest.replace("e-", "e−")),
        None => text.replace("e-", "e−"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_never_nan() {
        assert_eq!(fixed(-0.0001, 3), "0.000");
        assert_eq!(fixed(-0.25, 2), "−0.25");
        assert_eq!(fixed(f64::NAN, 3), NONE);
        assert_eq!(fixed(f64::INFINITY, 3), NONE);
        assert_eq!([0.0, 0.04567, 1.0, 11.5, 1234.0].map(significant), ["0", "0.0457", "1.00", "11.5", "1234"]);
        assert_eq!(significant(-1.5e-9), "−1.50e−9");
        assert_eq!(significant(f64::MAX), "1.80e308");
        assert_eq!(significant(f64::NAN), NONE);
        assert_eq!([0.5, 100.0, -1.25, 2.0].map(short), ["0.5", "100", "−1.25", "2"]);
        assert_eq!(interval(f64::NAN, 1.0), NONE);
        assert_eq!([list(&[1, 2, 3]), list(&[1]), list::<u8>(&[])], ["1, 2 and 3", "1", ""]);
    }
}
