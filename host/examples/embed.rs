//! Vassal inside another program: load a model, load a policy, answer a prompt with a callback for its text.
//!
//!     cargo run --release -p vassal --example embed -- "What is the sea like?"

use std::io::Write;

use vassal::engine::Response;
use vassal::host::{Host, HostOptions};
use vassal::model::source::{DEFAULT_MODEL, Models};
use vassal::request::{FaultPolicy, Request};

/// Answers a prompt under a tenant's policy; `on_text` gets the text as it settles, some letters at a time.
pub fn answer(options: &HostOptions, prompt: &str, on_text: impl FnMut(&str)) -> anyhow::Result<Response> {
    // The model with its heads, on all cores. One host answers any number of prompts.
    let mut host = Host::open(options)?;

    // A shipped policy's name, or the path of a component: `host.load_policy("./my.wasm")`.
    let guard = host.load_policy("guard")?;

    // Settings that only a tenant may turn, then those of the request (for `vas`, ("sentiment", "1")). Required:
    // it ranks first and vets insertions.
    let phrases = [("phrases".to_owned(), "sea\nocean".to_owned())];
    let guard = host.use_policy(&guard, &phrases, &[], true, FaultPolicy::Abort)?;

    let request = Request { policies: vec![guard], max_tokens: Some(40), seed: Some(7), ..host.request(prompt)? };
    Ok(host.generate(request, on_text)?)
}

fn main() -> anyhow::Result<()> {
    // Policies are compiled in a child with limits, which is this program once more: this line makes it one.
    vassal::sandbox::compiler::serve_if_asked();
    let prompt = std::env::args().nth(1).unwrap_or_else(|| "What is the sea like?".to_owned());
    // Fetched by `vassal pull`; any GGUF file's path will do.
    let model = Models::from_env()?.find(DEFAULT_MODEL)?;
    let response = answer(&HostOptions::new(model), &prompt, |text| {
        let mut out = std::io::stdout();
        // A closed pipe is not worth a complaint.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    })?;
    let (finish, kl) = (response.finish.name(), response.kl());
    writeln!(
        std::io::stdout(),
        "\n[{finish} after {} tokens, {kl:.2} nats from the base model]",
        response.tokens.len()
    )?;
    Ok(())
}
