//! Refusals: what every device checks before anything runs, with the same words, so that a caller's mistake reads alike.
//!
//! Conditions are written as what is accepted, and an error names the operation, the argument, what it accepts and
//! what it was given. [`Bounds`] is what a pass's checks need to know of its rows.

use crate::device::{DeviceError, OnePassHead, PAGE_TOKENS, Plan};

/// The largest of everything in a plan, each plus one, so that checks need no walk over its rows.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bounds {
    /// Tokens.
    pub(crate) tokens: usize,
    /// Positions.
    pub(crate) positions: usize,
    /// Slots of rows.
    pub(crate) slots: usize,
    /// Pages of sequences.
    pub(crate) pages: usize,
}

pub(crate) fn refuse<T>(
    operation: &'static str,
    what: &'static str,
    expected: impl ToString,
    got: impl ToString,
) -> Result<T, DeviceError> {
    Err(DeviceError::Shape { operation, what, expected: expected.to_string(), got: got.to_string() })
}

pub(crate) fn check_equal(
    operation: &'static str,
    what: &'static str,
    expected: usize,
    got: usize,
) -> Result<(), DeviceError> {
    if got == expected { Ok(()) } else { refuse(operation, what, expected, got) }
}

pub(crate) fn check_below(
    operation: &'static str,
    what: &'static str,
    bound: usize,
    got: usize,
) -> Result<(), DeviceError> {
    if got < bound { Ok(()) } else { refuse(operation, what, format!("below {bound}"), got) }
}

/// Bounds are one more than the largest, so they may reach the size.
pub(crate) fn check_within(
    operation: &'static str,
    what: &'static str,
    size: usize,
    bound: usize,
) -> Result<(), DeviceError> {
    if bound <= size { Ok(()) } else { refuse(operation, what, format!("below {size}"), bound - 1) }
}

impl Bounds {
    pub(crate) fn of(plan: &Plan) -> Result<Bounds, DeviceError> {
        let mut bounds = Bounds::default();
        for row in &plan.rows {
            check_below("begin", "a row's sequence", plan.block_tables.len(), row.sequence as usize)?;
            let position = row.position as usize;
            let table = &plan.block_tables[row.sequence as usize];
            if table.len().saturating_mul(PAGE_TOKENS) < position {
                return refuse("begin", "a sequence's pages", position.div_ceil(PAGE_TOKENS), table.len());
            }
            if row.response_count as usize > position + 1 {
                return refuse(
                    "begin",
                    "a row's response count",
                    format!("at most {}", position + 1),
                    row.response_count,
                );
            }
            bounds.tokens = bounds.tokens.max(row.token as usize + 1);
            bounds.positions = bounds.positions.max(position + 1);
            bounds.slots = bounds.slots.max(row.slot as usize + 1);
        }
        let pages = plan.block_tables.iter().flatten();
        bounds.pages = pages.map(|&page| page as usize + 1).max().unwrap_or(0);
        Ok(bounds)
    }
}

/// Matrices are `[n, k]`.
pub(crate) fn check_matrix(
    operation: &'static str,
    matrix: [usize; 2],
    expected: [usize; 2],
) -> Result<(), DeviceError> {
    let text = |[n, k]: [usize; 2]| format!("{n} by {k}");
    if matrix == expected { Ok(()) } else { refuse(operation, "a matrix", text(expected), text(matrix)) }
}

pub(crate) fn check_one_pass(operation: &'static str, head: &OnePassHead, hidden: usize) -> Result<(), DeviceError> {
    let rank = head.rank;
    if !(1..=64).contains(&rank) {
        return refuse(operation, "the head's rank", "from 1 to 64", rank);
    }
    check_equal(operation, "the head's state matrix", rank * (2 * hidden + 2), head.state.len())?;
    check_equal(operation, "the head's embedding matrix", rank * hidden, head.embedding.len())
}
