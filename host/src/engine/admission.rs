//! Who comes in: requests wait in their order until there is room for all that they may come to need.
//!
//! Room is pages for prompt and token limit, a slot for logits, and an instance for each policy of the chain, so that
//! whoever has been let in never waits for what others hold. Samples of one request share their prompt's whole pages:
//! the first of the group runs it, the others wait for that.

use std::sync::Arc;

use vassal_kernels::{Device, PAGE_TOKENS};

use super::pages::Pages;
use super::sequence::Sequence;
use super::start::StartingChain;
use super::{Engine, EngineError, SequenceId};
use crate::request::ValidRequest;

/// A prompt shared by the sequences of a group.
pub(super) struct SharedPrompt {
    /// Pages of the prompt's positions but its last.
    pub(super) pages: Vec<u32>,
    /// Members that have not started yet.
    pub(super) waiting: usize,
}

/// A request that waits for its turn.
pub(super) struct Waiting {
    pub(super) id: SequenceId,
    pub(super) request: Arc<ValidRequest>,
    pub(super) stream: u64,
    /// The group it shares its prompt with, and whether it is the one to run it.
    pub(super) group: Option<(u64, bool)>,
    pub(super) paused: bool,
}

impl<D: Device> Engine<D> {
    /// Lets waiting requests in, in their order, while there is room.
    pub(super) fn admit(&mut self) -> Result<(), EngineError> {
        let mut place = 0;
        while place < self.waiting.len() {
            let waiting = &self.waiting[place];
            let shared = match waiting.group {
                Some((group, false)) => match self.groups.get(&group) {
                    // Its prompt is still running: it stays, others may pass.
                    Some(None) => {
                        place += 1;
                        continue;
                    }
                    Some(Some(shared)) => Some((group, shared.pages.clone())),
                    None => None,
                },
                _ => None,
            };
            let prompt = waiting.request.prompt.len();
            let needed = Pages::needed(prompt + waiting.request.max_tokens);
            // Whole pages of all positions but the prompt's last can be shared; that one runs again for its logits.
            let whole = shared.as_ref().map_or(0, |_| (prompt - 1) / PAGE_TOKENS);
            // Its whole chain: else long chains of others could leave a required policy without an instance.
            let instances = waiting.request.policies.len();
            if self.logits_slots.is_empty() || self.pages.free() < needed - whole || self.instances_free < instances {
                // Where nothing runs nothing will ever be given back: the prompt's shared pages are in the way.
                if self.running.iter().all(Option::is_none) && self.drop_shared_prompts() {
                    continue;
                }
                break;
            }
            let Some(waiting) = self.waiting.remove(place) else { break };
            let mut pages = Vec::with_capacity(needed);
            let mut cached = 0;
            if let Some((_, from)) = &shared {
                for &page in &from[..whole] {
                    self.pages.hold(page);
                    pages.push(page);
                }
                cached = prompt - 1;
            }
            while pages.len() < needed {
                let Some(page) = self.pages.take() else { break };
                pages.push(page);
            }
            if let Some((_, from)) = &shared {
                let slot = |pages: &[u32], position: usize| {
                    pages[position / PAGE_TOKENS] * PAGE_TOKENS as u32 + (position % PAGE_TOKENS) as u32
                };
                let copies: Vec<_> = (whole * PAGE_TOKENS..cached)
                    .map(|position| (slot(from, position), slot(&pages, position)))
                    .collect();
                self.device.commit(&mut self.cache, &copies, 0..self.costs.layers)?;
            }
            if shared.is_some() {
                self.leave_group(waiting.group);
            }
            let Some(slot) = self.logits_slots.pop() else { break };
            self.instances_free -= instances;
            let mut sequence =
                Sequence::new(waiting.id, waiting.request, waiting.stream, pages, slot, self.sandbox.limits());
            (sequence.cached, sequence.paused, sequence.starting) =
                (cached, waiting.paused, Some(StartingChain::default()));
            match self.running.iter().position(Option::is_none) {
                Some(free) => self.running[free] = Some(sequence),
                None => self.running.push(Some(sequence)),
            }
        }
        Ok(())
    }

    /// A member of a group has started (or never will): the last one lets the shared pages go.
    pub(super) fn leave_group(&mut self, group: Option<(u64, bool)>) {
        let Some((group, leads)) = group else { return };
        if leads {
            // The leader never ran: the members run their prompts themselves.
            self.groups.remove(&group);
            return;
        }
        if let Some(Some(shared)) = self.groups.get_mut(&group) {
            shared.waiting -= 1;
            if shared.waiting == 0 {
                for page in std::mem::take(&mut shared.pages) {
                    self.pages.release(page);
                }
                self.groups.remove(&group);
            }
        }
    }

    /// Lets the pages of all shared prompts go; the members run their prompts themselves. Whether there were any.
    fn drop_shared_prompts(&mut self) -> bool {
        let mut dropped = false;
        for shared in self.groups.extract_if(|_, shared| shared.is_some()).filter_map(|(_, shared)| shared) {
            dropped = true;
            for page in shared.pages {
                self.pages.release(page);
            }
        }
        dropped
    }

    /// The prompt of a leader has run: its pages wait for the group's other members.
    pub(super) fn share_prompt(&mut self, sequence: &Sequence) {
        let group = sequence.id.0;
        if !matches!(self.groups.get(&group), Some(None)) {
            return;
        }
        let waiting = self.waiting.iter().filter(|waiting| waiting.group == Some((group, false))).count();
        if waiting == 0 {
            self.groups.remove(&group);
            return;
        }
        let pages = sequence.pages[..Pages::needed(sequence.prompt_tokens)].to_vec();
        for &page in &pages {
            self.pages.hold(page);
        }
        self.groups.insert(group, Some(SharedPrompt { pages, waiting }));
    }
}
