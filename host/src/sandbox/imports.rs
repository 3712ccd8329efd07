//! What a guest may import, and the data of its store.
//!
//! Start at [`linkers`]: two of them, because one asynchronous import forces every call of a store onto the
//! slower asynchronous path. A policy that does not import `values`, and that is not slow, is linked with the
//! first and called plainly. With the second, calls can be suspended and run in slices of fuel: the guest's own
//! code yields by the runtime's count, and [`link_function`] sees to it that host functions do.
//! `text.rs` and `values.rs` hold the functions of those two interfaces.

use super::Shared;
use super::bindings;
use super::fault::{Fault, FaultKind, Raised};
use super::guest::Guest;
use super::limits::Limits;
use super::step::{ValueAnswer, ValueRequest};
use super::text::{self, VocabularyText};
use super::values;
use super::words::clean;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use wasmtime::component::{ComponentNamedList, Lift, Linker, LinkerInstance, Lower};
use wasmtime::{AsContextMut, Engine, ResourceLimiter, StoreContextMut, Trap, UpdateDeadline};

/// The interfaces that a policy may import, and the one that it exports.
pub(super) const TYPES: &str = "vassal:policy/types@0.1.0";
pub(super) const VALUES: &str = "vassal:policy/values@0.1.0";
pub(super) const TEXT: &str = "vassal:policy/text@0.1.0";
pub(super) const AUDIT: &str = "vassal:policy/audit@0.1.0";
pub(super) const POLICY: &str = "vassal:policy/policy@0.1.0";

/// The data of one instance's store.
pub(super) struct StoreData {
    pub(super) limits: Arc<Limits>,
    pub(super) text: Arc<VocabularyText>,
    pub(super) exchange: Exchange,
    /// Epochs in a window of the clock.
    window_ticks: u64,
    /// Windows at whose end a call is cut.
    pub(super) windows: u32,
    /// Windows of the call under way that have passed since it was last left alone.
    windows_passed: u32,
    /// How often calls had been left alone by then.
    pauses: u64,
    /// Calls have come to run in slices since the host functions were linked.
    pub(super) sliced: bool,
    /// Fuel that was left when the last slice of host functions began.
    pub(super) slice_fuel: u64,
    /// The manifest's heads.
    pub(super) heads: usize,
    /// `request.candidates`.
    pub(super) candidates: usize,
    /// What `values` may answer: nothing outside a `decide` of a step that has not ended.
    pub(super) deciding: values::Deciding,
}

impl StoreData {
    pub(super) fn new(shared: &Shared, text: &Arc<VocabularyText>) -> Self {
        Self {
            limits: Arc::clone(&shared.limits),
            text: Arc::clone(text),
            exchange: Exchange::default(),
            window_ticks: shared.window_ticks,
            windows: shared.limits.deadline_windows,
            windows_passed: 0,
            pauses: 0,
            sliced: false,
            slice_fuel: 0,
            heads: 0,
            candidates: 0,
            deciding: values::Deciding::default(),
        }
    }
}

/// Starts the clock of a call: at its beginning, and again after it has waited for others.
pub(super) fn start_clock(mut store: impl AsContextMut<Data = StoreData>) {
    let mut store = store.as_context_mut();
    store.data_mut().windows_passed = 0;
    let ticks = store.data().window_ticks;
    store.set_epoch_deadline(ticks);
}

/// What happens when a window has passed during a call.
pub(super) fn window_passed(mut store: StoreContextMut<'_, StoreData>) -> wasmtime::Result<UpdateDeadline> {
    let data = store.data_mut();
    // A call that runs in slices does not pay for the time between them.
    let pauses = data.exchange.lock().pauses;
    if pauses != data.pauses {
        (data.pauses, data.windows_passed) = (pauses, 0);
        return Ok(UpdateDeadline::Continue(data.window_ticks));
    }
    data.windows_passed += 1;
    if data.windows_passed < data.windows {
        Ok(UpdateDeadline::Continue(data.window_ticks))
    } else {
        Ok(UpdateDeadline::Interrupt)
    }
}

/// Growth beyond a limit is an error rather than a failed `memory.grow`, so that it has a kind of its own.
impl ResourceLimiter for StoreData {
    fn memory_growing(&mut self, _: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let limit_bytes = self.limits.memory_bytes;
        if desired > limit_bytes {
            return Err(Raised(FaultKind::Memory { wanted_bytes: desired, limit_bytes }).into());
        }
        Ok(maximum.is_none_or(|maximum| desired <= maximum))
    }

    fn table_growing(&mut self, _: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let limit = self.limits.table_elements;
        if desired > limit {
            return Err(Raised(FaultKind::Table { wanted: desired, limit }).into());
        }
        Ok(maximum.is_none_or(|maximum| desired <= maximum))
    }

    fn instances(&self) -> usize {
        self.limits.core_instances as usize
    }

    fn tables(&self) -> usize {
        self.limits.tables as usize
    }

    fn memories(&self) -> usize {
        self.limits.memories as usize
    }
}

/// Where a call and whoever drives it leave things for each other. It outlives the store, so that notes
/// survive a fault, and is reachable while a suspended call owns the store.
#[derive(Clone, Default)]
pub(super) struct Exchange(Arc<Mutex<Exchanged>>);

#[derive(Default)]
pub(super) struct Exchanged {
    /// What a suspended call waits for.
    pub(super) request: Option<ValueRequest>,
    /// The answer to it.
    pub(super) answer: Option<ValueAnswer>,
    /// How often a call has been left alone between two slices.
    pub(super) pauses: u64,
    /// Notes that nobody has taken yet.
    pub(super) notes: Vec<String>,
    /// Notes kept so far, taken or not.
    pub(super) noted: usize,
    /// Notes dropped so far.
    pub(super) notes_dropped: u64,
}

impl Exchange {
    /// Never held across a guest's code, so nobody waits for it. A panic elsewhere leaves it usable.
    pub(super) fn lock(&self) -> MutexGuard<'_, Exchanged> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Classifies the error of a call, with the last note for its detail.
    pub(super) fn fault(&self, guest: &Guest, error: &wasmtime::Error) -> Fault {
        Fault::from_error(guest, error, self.lock().notes.last())
    }
}

/// The linkers for calls that run through, and for those that can be suspended and run in slices.
pub(super) fn linkers(engine: &Engine) -> wasmtime::Result<(Linker<StoreData>, Linker<StoreData>)> {
    let mut plain = Linker::new(engine);
    link_common(&mut plain, false)?;
    let mut suspending = Linker::new(engine);
    link_common(&mut suspending, true)?;
    values::link(&mut suspending.instance(VALUES)?)?;
    Ok((plain, suspending))
}

fn link_common(linker: &mut Linker<StoreData>, sliced: bool) -> wasmtime::Result<()> {
    linker.instance(TYPES)?;
    text::link(&mut linker.instance(TEXT)?, sliced)?;
    link_function(&mut linker.instance(AUDIT)?, "note", sliced, note)
}

fn note(store: &mut StoreContextMut<'_, StoreData>, (message,): (String,)) -> wasmtime::Result<()> {
    charge_call(store, message.len())?;
    let data = store.data();
    let mut exchanged = data.exchange.lock();
    if exchanged.noted < data.limits.notes {
        exchanged.noted += 1;
        exchanged.notes.push(clean(&message, data.limits.note_bytes));
    } else {
        exchanged.notes_dropped += 1;
    }
    Ok(())
}

/// Links a function that never waits. Sliced, it yields where a slice of fuel is used up: charging a call sets the
/// runtime's own count back, so a guest that does little but call the host would never come to the end of it.
pub(super) fn link_function<P, R>(
    interface: &mut LinkerInstance<'_, StoreData>,
    name: &str,
    sliced: bool,
    function: fn(&mut StoreContextMut<'_, StoreData>, P) -> wasmtime::Result<R>,
) -> wasmtime::Result<()>
where
    P: ComponentNamedList + Lift + Send + 'static,
    R: ComponentNamedList + Lower + Send + 'static,
{
    if !sliced {
        return interface.func_wrap(name, move |mut store: StoreContextMut<'_, StoreData>, parameters: P| {
            let answer = function(&mut store, parameters)?;
            yield_soon_if_due(&mut store)?;
            Ok(answer)
        });
    }
    interface.func_wrap_async(name, move |mut store: StoreContextMut<'_, StoreData>, parameters: P| {
        Box::new(async move {
            let answer = function(&mut store, parameters)?;
            yield_if_due(&mut store).await?;
            Ok(answer)
        })
    })
}

/// Gives the thread back where a slice of fuel is used up; whoever drives the call polls it again when it likes.
pub(super) async fn yield_if_due(store: &mut StoreContextMut<'_, StoreData>) -> wasmtime::Result<()> {
    let left = store.get_fuel()?;
    let data = store.data_mut();
    if data.slice_fuel.saturating_sub(left) >= data.limits.fuel_slice {
        data.slice_fuel = left;
        let mut yielded = false;
        poll_fn(|_| if std::mem::replace(&mut yielded, true) { Poll::Ready(()) } else { Poll::Pending }).await;
    }
    Ok(())
}

/// As [`yield_if_due`], in a store that came to run in slices during its life: its host functions cannot yield, so the
/// guest does at its next count, and at each until it calls the host again.
fn yield_soon_if_due(store: &mut StoreContextMut<'_, StoreData>) -> wasmtime::Result<()> {
    if !store.data().sliced {
        return Ok(());
    }
    let left = store.get_fuel()?;
    let data = store.data_mut();
    let slice = data.limits.fuel_slice;
    let due = data.slice_fuel.saturating_sub(left) >= slice;
    if due {
        data.slice_fuel = left;
    }
    store.fuel_async_yield_interval(Some(if due { 1 } else { slice }))
}

/// Takes `units` of fuel from the running call; a call that has fewer is out of fuel.
pub(super) fn charge(store: &mut StoreContextMut<'_, StoreData>, units: u64) -> wasmtime::Result<()> {
    let left = store.get_fuel()?.checked_sub(units);
    store.set_fuel(left.unwrap_or(0))?;
    if left.is_some() { Ok(()) } else { Err(Trap::OutOfFuel.into()) }
}

/// Charges for a call of a host function, and for `items` bytes, tokens or values that cross with it.
pub(super) fn charge_call(store: &mut StoreContextMut<'_, StoreData>, items: usize) -> wasmtime::Result<()> {
    let limits = &store.data().limits;
    let units = limits.fuel_item.saturating_mul(items as u64).saturating_add(limits.fuel_call);
    charge(store, units)
}

/// Charges for `items` bytes, tokens or values that cross.
pub(super) fn charge_items(store: &mut StoreContextMut<'_, StoreData>, items: usize) -> wasmtime::Result<()> {
    let units = store.data().limits.fuel_item.saturating_mul(items as u64);
    charge(store, units)
}

impl bindings::Pattern {
    pub(super) fn as_search(&self) -> crate::token_search::Pattern<'_> {
        crate::token_search::Pattern { bytes: &self.bytes, spellings: &self.spellings, letters: &self.letters }
    }
}

impl From<bindings::Place> for crate::token_search::Place {
    fn from(place: bindings::Place) -> Self {
        match place {
            bindings::Place::Whole => Self::Whole,
            bindings::Place::Start => Self::Start,
            bindings::Place::End => Self::End,
            bindings::Place::Anywhere => Self::Anywhere,
        }
    }
}
