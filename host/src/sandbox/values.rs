//! The `values` interface: where a guest is suspended until the host has evaluated what it asks for.
//!
//! A request is checked here, and what needs no computing is answered here: refusals, and values that this
//! policy was given in this step already. Everything else is left in the [`Exchange`](super::imports) and
//! awaited; whoever drives the instance finds it there, evaluates many sequences at once, and resumes it.

use super::bindings::{Step, ValueError};
use super::imports::{StoreData, charge_call, charge_items, start_clock, yield_if_due};
use super::step::{ValueAnswer, ValueRequest, copy};
use crate::token::Token;
use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use wasmtime::StoreContextMut;
use wasmtime::component::LinkerInstance;

/// What `values` knows of the step that is being decided. Its buffers serve one step after the other.
#[derive(Default)]
pub(super) struct Deciding {
    /// The step; none outside a `decide` of one that has not ended.
    step: Option<Arc<Step>>,
    /// Evaluations that may still be asked for.
    evaluations_left: u32,
    /// How many of `evaluated` are this step's; the others are buffers.
    answered: usize,
    evaluated: Vec<Evaluated>,
    /// The current values asked for in this step, by head.
    current: Vec<(u32, f32)>,
}

/// One answered evaluation: `values` has a row a head, one value a token.
#[derive(Default)]
struct Evaluated {
    heads: Vec<u32>,
    tokens: Vec<Token>,
    values: Vec<f32>,
}

type Values = Result<Vec<f32>, ValueError>;

pub(super) fn link(values: &mut LinkerInstance<'_, StoreData>) -> wasmtime::Result<()> {
    values.func_wrap_async("evaluate", |mut store, (heads, tokens): (Vec<u32>, Vec<Token>)| {
        Box::new(async move {
            let answer = evaluate(&mut store, heads, tokens).await?;
            yield_if_due(&mut store).await?;
            Ok((answer,))
        })
    })?;
    values.func_wrap_async("current", |mut store, (head,): (u32,)| {
        Box::new(async move {
            let answer = current(&mut store, head).await?;
            yield_if_due(&mut store).await?;
            Ok((answer,))
        })
    })
}

async fn evaluate(
    store: &mut StoreContextMut<'_, StoreData>,
    heads: Vec<u32>,
    tokens: Vec<Token>,
) -> wasmtime::Result<Values> {
    // What was handed over is paid for whatever the answer: a refused flood costs its sender too.
    charge_call(store, heads.len() + tokens.len())?;
    if let Err(refusal) = admissible(store.data(), &heads, &tokens) {
        return Ok(Err(refusal));
    }
    charge_items(store, heads.len() * tokens.len())?;
    let deciding = &mut store.data_mut().deciding;
    if let Some(known) = deciding.known(&heads, &tokens) {
        return Ok(Ok(known));
    }
    let Some(left) = deciding.evaluations_left.checked_sub(1) else {
        return Ok(Err(ValueError::BudgetSpent));
    };
    deciding.evaluations_left = left;
    let asked = deciding.asked(&heads, &tokens);
    Ok(match ask(store, ValueRequest::Evaluate { heads, tokens }).await {
        ValueAnswer::Values(values) => {
            store.data_mut().deciding.answered(asked, &values);
            Ok(values)
        }
        ValueAnswer::Unavailable => Err(ValueError::Unavailable),
    })
}

async fn current(store: &mut StoreContextMut<'_, StoreData>, head: u32) -> wasmtime::Result<Result<f32, ValueError>> {
    charge_call(store, 1)?;
    let heads = store.data().heads;
    let deciding = &store.data().deciding;
    if deciding.step.is_none() {
        return Ok(Err(ValueError::NotNow));
    }
    if head as usize >= heads {
        return Ok(Err(ValueError::UnknownHead));
    }
    // Asked of the host once a head and step, so the heads bound how often a step is suspended here.
    if let Some((_, value)) = deciding.current.iter().find(|(asked, _)| *asked == head) {
        return Ok(Ok(*value));
    }
    let answer = ask(store, ValueRequest::Current { head }).await;
    Ok(match answer {
        ValueAnswer::Values(values) if values.len() == 1 => {
            store.data_mut().deciding.current.push((head, values[0]));
            Ok(values[0])
        }
        _ => Err(ValueError::Unavailable),
    })
}

/// Whether the contract allows to ask for these values at all.
fn admissible(data: &StoreData, heads: &[u32], tokens: &[Token]) -> Result<(), ValueError> {
    if data.deciding.step.is_none() {
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
    let exchange = &store.data().exchange;
    exchange.lock().request = Some(request);
    // No waker is kept: the driver polls again exactly when it has left an answer.
    let answer = poll_fn(|_| exchange.lock().answer.take().map_or(Poll::Pending, Poll::Ready)).await;
    // The guest does not pay for the time that others took.
    start_clock(store);
    answer
}

impl Deciding {
    /// From here on values are answered, of this step.
    pub(super) fn open(&mut self, step: Arc<Step>, evaluations: u32) {
        self.step = Some(step);
        self.evaluations_left = evaluations;
        self.answered = 0;
        self.current.clear();
    }

    /// From here on they are not.
    pub(super) fn close(&mut self) {
        self.step = None;
    }

    /// Notes what is asked for; it counts once it is [answered](Self::answered).
    fn asked(&mut self, heads: &[u32], tokens: &[Token]) -> usize {
        if self.evaluated.len() == self.answered {
            self.evaluated.push(Evaluated::default());
        }
        let evaluated = &mut self.evaluated[self.answered];
        copy(&mut evaluated.heads, heads);
        copy(&mut evaluated.tokens, tokens);
        self.answered
    }

    fn answered(&mut self, asked: usize, values: &[f32]) {
        copy(&mut self.evaluated[asked].values, values);
        self.answered = asked + 1;
    }

    /// The values asked for, where this policy was given every one of them in this step.
    fn known(&self, heads: &[u32], tokens: &[Token]) -> Option<Vec<f32>> {
        let step = self.step.as_deref()?;
        let prefetched = |head: &u32| step.prefetched >> (head % 32) & 1 == 1;
        if self.answered == 0 && !heads.iter().any(prefetched) {
            return None;
        }
        let mut places = Places::default();
        let mut values = Vec::with_capacity(heads.len() * tokens.len());
        for head in heads {
            for token in tokens {
                values.push(self.known_value(step, *head, *token, &mut places)?);
            }
        }
        Some(values)
    }

    fn known_value<'a>(&'a self, step: &'a Step, head: u32, token: Token, places: &mut Places<'a>) -> Option<f32> {
        let columns = step.candidates.len();
        if step.prefetched >> (head % 32) & 1 == 1 {
            let row = (step.prefetched & ((1 << (head % 32)) - 1)).count_ones() as usize;
            if let Some(column) = places.find(0, &step.candidates, token) {
                return step.values.get(row * columns + column).copied();
            }
        }
        self.evaluated[..self.answered].iter().enumerate().find_map(|(index, evaluated)| {
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
