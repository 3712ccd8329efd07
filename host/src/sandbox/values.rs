//! The `values` interface: where a guest is suspended until the host has evaluated what it asks for.
//!
//! A request is checked here, and what needs no computing is answered here: refusals, and values that this
//! policy was given in this step already. Everything else is left in the [`Exchange`](super::imports) and
//! awaited; whoever drives the instance finds it there, evaluates many sequences at once, and resumes it.

use super::bindings::{Step, ValueError};
use super::imports::{Exchange, StoreData, charge_items, start_clock};
use super::instance::{ValueAnswer, ValueRequest};
use crate::token::Token;
use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use wasmtime::StoreContextMut;
use wasmtime::component::LinkerInstance;

/// What `values` knows of the step that is being decided.
pub(super) struct Deciding {
    pub(super) step: Arc<Step>,
    /// Evaluations that may still be asked for.
    pub(super) evaluations_left: u32,
    /// What was evaluated in this step.
    pub(super) evaluated: Vec<Evaluated>,
    /// The current values asked for in this step, by head.
    pub(super) current: Vec<(u32, f32)>,
}

/// One answered evaluation: `values` has a row a head, one value a token.
pub(super) struct Evaluated {
    heads: Vec<u32>,
    tokens: Vec<Token>,
    values: Vec<f32>,
}

type Values = Result<Vec<f32>, ValueError>;

pub(super) fn link(values: &mut LinkerInstance<'_, StoreData>) -> wasmtime::Result<()> {
    values.func_wrap_async("evaluate", |store, (heads, tokens): (Vec<u32>, Vec<Token>)| {
        Box::new(async move { Ok((evaluate(store, heads, tokens).await?,)) })
    })?;
    values.func_wrap_async("current", |store, (head,): (u32,)| {
        Box::new(async move { Ok((current(store, head).await?,)) })
    })
}

async fn evaluate(
    mut store: StoreContextMut<'_, StoreData>,
    heads: Vec<u32>,
    tokens: Vec<Token>,
) -> wasmtime::Result<Values> {
    // What was handed over is paid for whatever the answer: a refused flood costs its sender too.
    charge_items(&mut store, heads.len() + tokens.len())?;
    if let Err(refusal) = admissible(store.data(), &heads, &tokens) {
        return Ok(Err(refusal));
    }
    charge_items(&mut store, heads.len() * tokens.len())?;
    let Some(deciding) = &mut store.data_mut().deciding else {
        return Ok(Err(ValueError::NotNow));
    };
    if let Some(known) = deciding.known(&heads, &tokens) {
        return Ok(Ok(known));
    }
    let Some(left) = deciding.evaluations_left.checked_sub(1) else {
        return Ok(Err(ValueError::BudgetSpent));
    };
    deciding.evaluations_left = left;
    let request = ValueRequest::Evaluate { heads: heads.clone(), tokens: tokens.clone() };
    let answer = ask(&mut store, request).await;
    Ok(match answer {
        ValueAnswer::Values(values) => {
            if let Some(deciding) = &mut store.data_mut().deciding {
                deciding.evaluated.push(Evaluated { heads, tokens, values: values.clone() });
            }
            Ok(values)
        }
        ValueAnswer::Unavailable => Err(ValueError::Unavailable),
    })
}

async fn current(mut store: StoreContextMut<'_, StoreData>, head: u32) -> wasmtime::Result<Result<f32, ValueError>> {
    let heads = store.data().heads;
    let Some(deciding) = &store.data().deciding else {
        return Ok(Err(ValueError::NotNow));
    };
    if head as usize >= heads {
        return Ok(Err(ValueError::UnknownHead));
    }
    // Asked of the host once a head and step, so the heads bound how often a step is suspended here.
    if let Some((_, value)) = deciding.current.iter().find(|(asked, _)| *asked == head) {
        return Ok(Ok(*value));
    }
    let answer = ask(&mut store, ValueRequest::Current { head }).await;
    Ok(match answer {
        ValueAnswer::Values(values) if values.len() == 1 => {
            if let Some(deciding) = &mut store.data_mut().deciding {
                deciding.current.push((head, values[0]));
            }
            Ok(values[0])
        }
        _ => Err(ValueError::Unavailable),
    })
}

/// Whether the contract allows to ask for these values at all.
fn admissible(data: &StoreData, heads: &[u32], tokens: &[Token]) -> Result<(), ValueError> {
    if data.deciding.is_none() {
        return Err(ValueError::NotNow);
    }
    // At most as many as there are, which bounds the request also where one is named over and over.
    let known = heads.iter().all(|head| (*head as usize) < data.heads);
    if !(known && (1..=data.heads).contains(&heads.len())) {
        return Err(ValueError::UnknownHead);
    }
    let size = data.text.size();
    let known = tokens.iter().all(|token| (*token as usize) < size);
    if !(known && (1..=data.candidates).contains(&tokens.len())) {
        return Err(ValueError::InvalidTokens);
    }
    Ok(())
}

/// Leaves a request and waits for its answer.
async fn ask(store: &mut StoreContextMut<'_, StoreData>, request: ValueRequest) -> ValueAnswer {
    let exchange: Exchange = store.data().exchange.clone();
    exchange.lock().request = Some(request);
    // No waker is kept: the driver polls again exactly when it has left an answer.
    let answer = poll_fn(|_| exchange.lock().answer.take().map_or(Poll::Pending, Poll::Ready)).await;
    // The guest does not pay for the time that others took.
    start_clock(store);
    answer
}

impl Deciding {
    pub(super) fn new(step: Arc<Step>, evaluations: u32) -> Self {
        Self { step, evaluations_left: evaluations, evaluated: Vec::new(), current: Vec::new() }
    }

    /// The values asked for, where this policy was given every one of them in this step.
    fn known(&self, heads: &[u32], tokens: &[Token]) -> Option<Vec<f32>> {
        let prefetched = |head: &u32| self.step.prefetched >> (head % 32) & 1 == 1;
        if self.evaluated.is_empty() && !heads.iter().any(prefetched) {
            return None;
        }
        let mut places = Places::default();
        let mut values = Vec::with_capacity(heads.len() * tokens.len());
        for head in heads {
            for token in tokens {
                values.push(self.known_value(*head, *token, &mut places)?);
            }
        }
        Some(values)
    }

    fn known_value<'a>(&'a self, head: u32, token: Token, places: &mut Places<'a>) -> Option<f32> {
        let columns = self.step.candidates.len();
        if self.step.prefetched >> (head % 32) & 1 == 1 {
            let row = (self.step.prefetched & ((1 << (head % 32)) - 1)).count_ones() as usize;
            if let Some(column) = places.find(0, &self.step.candidates, token) {
                return self.step.values.get(row * columns + column).copied();
            }
        }
        self.evaluated.iter().enumerate().find_map(|(index, evaluated)| {
            let row = evaluated.heads.iter().position(|known| *known == head)?;
            let column = places.find(index + 1, &evaluated.tokens, token)?;
            evaluated.values.get(row * evaluated.tokens.len() + column).copied()
        })
    }
}

/// Where each token stands in each of the lists met so far: 256 tokens are looked up among 256.
#[derive(Default)]
struct Places<'a>(HashMap<usize, HashMap<&'a Token, usize>>);

impl<'a> Places<'a> {
    fn find(&mut self, list: usize, tokens: &'a [Token], token: Token) -> Option<usize> {
        let places =
            self.0.entry(list).or_insert_with(|| tokens.iter().enumerate().map(|(at, token)| (token, at)).collect());
        places.get(&token).copied()
    }
}
