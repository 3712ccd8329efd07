//! `vassal fit --comparison`: the heads of the methods that an evaluation compares Value Augmented Sampling with.
//!
//! They are fitted to the rollouts that the value heads have seen, and to no others. Their dials are not tabled here: the
//! evaluation calibrates them on tune prompts. Start at [`Comparison::fit`].

use std::collections::HashMap;
use std::path::Path;

use vassal_kernels::ModelShape;

use super::complain;
use super::fit::describe;
use super::learn::bar;
use crate::engine::EngineOptions;
use crate::error::Error;
use crate::host::{Host, HostOptions};
use crate::learning::fitting::{BothMoments, ComparisonHeads, FitError, FitOptions, Material};
use crate::learning::look_ahead::ValueHead;
use crate::learning::report::run::head_path;
use crate::learning::rollouts::{RewardAbout, Rollouts};
use crate::model::heads::{HeadFile, HeadKind, HeadWeights, Provenance};
use crate::token::{Token, Vocabulary};

/// What the heads are fitted to and how.
pub(super) struct Comparison<'a> {
    /// The folder of heads.
    pub(super) out: &'a Path,
    /// Scored by every reward.
    pub(super) rollouts: &'a Rollouts,
    /// Each prompt id's tokens.
    pub(super) prompts: &'a HashMap<String, Vec<Token>>,
    /// The model's.
    pub(super) shape: &'a ModelShape,
    /// Model, device and engine.
    pub(super) options: &'a HostOptions,
    /// As for the value heads.
    pub(super) fit: &'a FitOptions,
    /// Of every head, but for what is its own.
    pub(super) provenance: &'a Provenance,
}

impl Comparison<'_> {
    /// Fits and writes all of them; `material` is that of the value heads.
    ///
    /// # Errors
    /// The engine's, the algebra's and the files'.
    pub(super) fn fit(&self, material: &Material<'_>, moments: &BothMoments) -> Result<(), Error> {
        complain("fitting the heads of ARGS and FUDGE");
        let heads = material.comparison(moments, self.fit.threads)?;
        let of = |head: fn(&ComparisonHeads) -> &ValueHead| {
            heads.iter().map(|heads| head(heads).clone()).collect::<Vec<_>>()
        };
        self.write("fudge", self.fit.layer, material, &of(|heads| &heads.fudge), &[])?;
        self.write("args", self.fit.layer, material, &of(|heads| &heads.args), &[])?;
        self.value_model(material)
    }

    /// The base's own first third of the layers as a value model.
    fn value_model(&self, material: &Material<'_>) -> Result<(), Error> {
        let layer = (self.shape.layers / 3).max(1);
        complain(&format!("fitting a value model of the first {layer} layers"));
        let engine = EngineOptions { taps: vec![layer], ..self.options.engine.clone() };
        let mut host = Host::open(&HostOptions { engine, ..self.options.clone() })?;
        let progress = bar(self.rollouts.all.len(), "features");
        let told = |count: usize| progress.set_position(count as u64);
        let vocabulary = host.tokenizer().clone();
        let known = (self.prompts, vocabulary.as_ref() as &dyn Vocabulary);
        let at = (layer, self.fit.threads);
        let material = Material::collect(host.engine(), self.rollouts, known, at, Some(material), told)?;
        progress.finish();
        drop(host);
        let fitted = material.look_ahead(&material.moments(self.fit.threads)?, self.fit.threads)?;
        let heads: Vec<ValueHead> = fitted.iter().map(|fitted| fitted.head.clone()).collect();
        let explained: Vec<f64> = fitted.iter().map(|fitted| fitted.evaluation.explained).collect();
        self.write("value-model", layer, &material, &heads, &explained)
    }

    /// Measures the spreads of one head a reward, and writes them.
    fn write(
        &self,
        kind: &str,
        layer: usize,
        material: &Material<'_>,
        heads: &[ValueHead],
        explained: &[f64],
    ) -> Result<(), Error> {
        let files = |spreads: &[f64]| -> Vec<HeadFile> {
            let file = |(place, (reward, head)): (usize, (&RewardAbout, &ValueHead))| {
                let explained = explained.get(place).copied().unwrap_or(0.0);
                let provenance = Provenance { explained, ..self.provenance.clone() };
                let of = (&self.rollouts.header, self.shape);
                let mut description = describe(of, reward, HeadKind::LookAhead, layer, spreads[place], provenance);
                description.text = material.term(place, head);
                HeadFile { description, weights: HeadWeights::LookAhead(head.linear.clone()) }
            };
            self.rollouts.rewards.iter().zip(heads).enumerate().map(file).collect()
        };
        let mut host = Host::open_with(self.options, |_, _| Ok(files(&vec![1.0; heads.len()])))?;
        let fit = FitOptions { layer, ..self.fit.clone() };
        let spreads = match material.spreads(host.engine(), self.prompts, &fit) {
            // A reward that no next token changes, as `json` before it parses, guides nothing in the middle of a response.
            Err(FitError::NoSpread(which)) => {
                complain(&format!("no {kind} heads: the one {which} values all tokens alike"));
                return Ok(());
            }
            spreads => spreads?,
        };
        for file in files(&spreads) {
            let name = &file.description.name;
            complain(&format!("{name} {kind}: spread {:.4}", file.description.spread));
            file.write(&head_path(self.out, name, kind))?;
        }
        Ok(())
    }
}
