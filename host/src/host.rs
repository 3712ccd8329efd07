//! The front door: a model, its heads and policies, and responses.
//!
//! [`Host::open`] loads a model onto a device and value heads beside it; [`Host::load_policy`] takes a
//! shipped policy or a component from a file; [`Host::generate`] answers one prompt, handing out text as
//! it settles. Whoever serves many prompts at once drives [`Host::engine`] itself.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vassal_kernels::{AnyDevice, DeviceChoice, ModelShape};

use crate::engine::{Engine, EngineError, EngineOptions, Event, HeadId, Response};
use crate::error::Error;
use crate::files;
pub use crate::hex::hexadecimal;
use crate::learning::rewards;
use crate::memory::{MemoryNeeds, cache_bytes_per_token};
use crate::model::config::LlamaConfig;
use crate::model::gguf::Gguf;
use crate::model::heads::{HeadFile, HeadKind, ModelIdentity};
use crate::model::llama::{Llama, LlamaError};
use crate::model::source::SourceError;
use crate::model::template::{ChatTemplate, Message};
use crate::model::tokenizer::Tokenizer;
use crate::request::{FaultPolicy, LoadedPolicy, PolicyUse, Request, ValidRequest};
use crate::sandbox::{Compilation, Guest, Limits, LoadError, Needs, Sandbox, Scope, settings};
use crate::shipped;
use crate::token::Vocabulary;

/// What to open.
#[derive(Debug, Clone)]
pub struct HostOptions {
    /// The model's GGUF file.
    pub model: PathBuf,
    /// What the file's SHA-256 must be, where that is known: lower-case hexadecimal.
    pub model_sha256: Option<String>,
    /// Value heads: files, or the shipped ones of this kind where there are none.
    pub heads: Vec<PathBuf>,
    /// Which of the shipped heads; none for no heads at all.
    pub head_kind: Option<HeadKind>,
    /// What owns the model.
    pub device: DeviceChoice,
    /// The engine's size.
    pub engine: EngineOptions,
    /// The sandbox's limits.
    pub limits: Limits,
    /// Where policies are compiled.
    pub compilation: Compilation,
}

impl HostOptions {
    /// A model with its shipped look-ahead heads, on all cores of the processor. Policies are compiled in a child that runs this
    /// program, so its `main` must begin with [`crate::sandbox::compiler::serve_if_asked`].
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            model_sha256: None,
            heads: Vec::new(),
            head_kind: Some(HeadKind::LookAhead),
            device: DeviceChoice::default(),
            engine: EngineOptions::default(),
            limits: Limits::default(),
            compilation: Compilation::default(),
        }
    }

    /// The numbers of the model that these options open, which is not loaded for it.
    ///
    /// # Errors
    /// The file's.
    pub fn shape(&self) -> Result<ModelShape, Error> {
        Ok(LlamaConfig::from_gguf(&Gguf::open(&self.model)?)?.shape)
    }
}

/// A model ready to answer.
pub struct Host {
    engine: Engine<AnyDevice>,
    tokenizer: Arc<Tokenizer>,
    template: ChatTemplate,
    heads: Vec<HeadFile>,
    head_ids: Vec<HeadId>,
    limits: Limits,
    model: ModelInfo,
}

/// What is known of the loaded model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// What the file calls itself.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// SHA-256 of the file, lower-case hexadecimal.
    pub sha256: String,
    /// Size of the file.
    pub size_bytes: u64,
    /// The longest sequence, in tokens.
    pub context_tokens: usize,
    /// Keys and values of one position, all layers.
    pub cache_bytes_per_token: usize,
}

impl Host {
    /// Loads a model and its heads.
    ///
    /// # Errors
    /// The files', the device's and the sandbox's; a head of another model is refused by hash and by shape.
    pub fn open(options: &HostOptions) -> Result<Self, Error> {
        Self::open_with(options, |sha256, _| read_heads(options, sha256))
    }

    /// As [`Host::open`], with heads made for the model's hash and shape.
    ///
    /// # Errors
    /// As [`Host::open`].
    pub fn open_with(
        options: &HostOptions,
        heads: impl FnOnce(&str, &ModelShape) -> Result<Vec<HeadFile>, Error>,
    ) -> Result<Self, Error> {
        let of_path = |source| SourceError::Path { path: options.model.clone(), source };
        let mut gguf = Gguf::open(&options.model).map_err(of_path)?;
        let config = LlamaConfig::from_gguf(&gguf)?;
        let sha256 = hexadecimal(&gguf.sha256()?);
        if let Some(expected) = options.model_sha256.as_ref().filter(|expected| **expected != sha256) {
            let (path, expected) = (options.model.clone(), expected.clone());
            return Err(SourceError::Altered { path, found: sha256, expected }.into());
        }
        let tokenizer = Arc::new(Tokenizer::from_gguf(&gguf)?);
        let template = ChatTemplate::from_gguf(&gguf)?;
        // The lists of tokens and merges are in the tokenizer now.
        gguf.forget("tokenizer.");
        let heads = heads(&sha256, &config.shape)?;
        let identity = ModelIdentity::of(&sha256, &config.shape);
        for (place, head) in heads.iter().enumerate() {
            head.check_model(identity).map_err(|source| match options.heads.get(place) {
                Some(path) => Error::HeadFile { path: path.display().to_string(), source },
                None => source.into(),
            })?;
        }
        let mut device = AnyDevice::open(options.device).map_err(EngineError::from)?;
        let llama = Llama::load(&mut device, &gguf, &config, options.engine.rows_max).map_err(|error| match error {
            LlamaError::Device(error) => {
                MemoryNeeds::new(gguf.length_bytes(), &config.shape, &options.engine).beside(error.into()).into()
            }
            other => Error::from(other),
        })?;
        let limits = Limits { sequences: sandbox_sequences(options), ..options.limits.clone() };
        let sandbox = Sandbox::new(limits, options.compilation.clone())?;
        let shape = &config.shape;
        let model = ModelInfo {
            name: config.name.clone(),
            path: options.model.clone(),
            sha256,
            size_bytes: gguf.length_bytes(),
            context_tokens: shape.context_tokens,
            cache_bytes_per_token: cache_bytes_per_token(shape),
        };
        let engine =
            Engine::new(device, llama, tokenizer.clone(), sandbox, &heads, &rewards::reading, &options.engine)?;
        let head_ids = (0..heads.len()).map(HeadId).collect();
        Ok(Self { engine, tokenizer, template, heads, head_ids, limits: options.limits.clone(), model })
    }

    /// The engine, for many sequences at once.
    pub fn engine(&mut self) -> &mut Engine<AnyDevice> {
        &mut self.engine
    }

    /// The model's numbers.
    pub fn shape(&self) -> &ModelShape {
        self.engine.shape()
    }

    /// The model.
    pub fn model(&self) -> &ModelInfo {
        &self.model
    }

    /// The heads, in the order of their ids.
    pub fn heads(&self) -> &[HeadFile] {
        &self.heads
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// A policy by shipped name, or from a component's file (anything with a path separator or ending in
    /// `.wasm`), granted all it needs.
    ///
    /// # Errors
    /// An unknown name with those there are, the file's, or why the component is refused.
    pub fn load_policy(&self, name: &str) -> Result<Arc<LoadedPolicy>, Error> {
        let component = find_policy(name)?;
        let short = Path::new(name).file_stem().map_or(name.into(), |stem| stem.to_string_lossy());
        self.load_component(&short, &component, &self.head_ids)
    }

    /// A component's bytes, as a policy that is offered these heads; `name` is the host's for it.
    ///
    /// # Errors
    /// What is wrong with the component.
    pub fn load_component(&self, name: &str, component: &[u8], heads: &[HeadId]) -> Result<Arc<LoadedPolicy>, Error> {
        Ok(Arc::new(self.engine.load_policy(name, component, heads, Needs::ALL)?))
    }

    /// A policy with settings given as text. `tenant` are those that only a tenant may turn.
    ///
    /// # Errors
    /// The first setting that is refused.
    pub fn use_policy(
        &self,
        policy: &Arc<LoadedPolicy>,
        tenant: &[(String, String)],
        given: &[(String, String)],
        required: bool,
        fault_policy: FaultPolicy,
    ) -> Result<PolicyUse, Error> {
        let mut values = settings::resolve(&policy.manifest, tenant, Scope::Tenant, &self.limits)?;
        settings::apply(&policy.manifest, &mut values, given, Scope::Request, &self.limits)?;
        Ok(PolicyUse { policy: policy.clone(), settings: values, required, fault_policy })
    }

    /// A request for one user's prompt, under the model's chat template.
    ///
    /// # Errors
    /// The template's or the tokenizer's.
    pub fn request(&self, prompt: &str) -> Result<Request, Error> {
        // The prompt first: what is too long is refused in its own words, not in the template's.
        let user_prompt = self.tokenizer.encode(prompt, false)?;
        let render = |content: &str| self.template.render(&[Message::new("user", content)], true);
        let tokens = if self.tokenizer.names_special(prompt) {
            // Only the template's special tokens are special: a prompt that spells some cannot forge a turn. It is put
            // in after rendering, where a mark stands that no template writes.
            let text = render(USER_MARK)?;
            match text.split(USER_MARK).collect::<Vec<_>>()[..] {
                [before, after] => {
                    let own = before.len()..before.len() + prompt.len();
                    self.tokenizer.encode_prompt(&format!("{before}{prompt}{after}"), &[own])?
                }
                _ => {
                    return Err(Error::Usage(
                        "the prompt spells a special token of this model, and its chat template \
                    does not repeat a prompt once and unchanged, so that token cannot be told from the template's"
                            .into(),
                    ));
                }
            }
        } else {
            self.tokenizer.encode_prompt(&render(prompt)?, &[])?
        };
        Ok(Request { prompt: tokens, user_prompt, heads: self.head_ids.clone(), ..Request::default() })
    }

    /// The tokens of a conversation under the model's chat template, up to where the answer begins.
    ///
    /// # Errors
    /// The template's or the tokenizer's. Messages that spell a special token ([`Tokenizer::names_special`]) would forge a turn
    /// and are refused.
    pub fn conversation(&self, messages: &[Message]) -> Result<Vec<u32>, Error> {
        if let Some(message) = messages.iter().find(|message| self.tokenizer.names_special(&message.content)) {
            return Err(Error::Usage(format!("a {}'s message spells a special token of this model", message.role)));
        }
        Ok(self.tokenizer.encode_prompt(&self.template.render(messages, true)?, &[])?)
    }

    /// Checks a request against the model.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn validate(&self, request: Request) -> Result<ValidRequest, Error> {
        Ok(request.validate(self.tokenizer.as_ref(), self.model.context_tokens)?)
    }

    /// Answers one request; `on_text` gets the text as it settles.
    ///
    /// # Errors
    /// The request's, and the engine's.
    pub fn generate(&mut self, request: Request, on_text: impl FnMut(&str)) -> Result<Response, Error> {
        let request = self.validate(request)?;
        self.generate_valid(request, on_text)
    }

    /// As [`Host::generate`], for a request that has been checked.
    ///
    /// # Errors
    /// The engine's.
    pub fn generate_valid(&mut self, request: ValidRequest, mut on_text: impl FnMut(&str)) -> Result<Response, Error> {
        let id = self.engine.submit(request)?;
        loop {
            for event in self.engine.step()? {
                match event {
                    Event::Text { sequence, text } if sequence == id => on_text(&text),
                    Event::Finished { sequence, response } if sequence == id => return Ok(*response),
                    _ => {}
                }
            }
        }
    }

    /// The text of some tokens, special ones left out.
    pub fn decode(&self, tokens: &[u32]) -> String {
        crate::token::decode(self.tokenizer.as_ref() as &dyn Vocabulary, tokens)
    }
}

/// The component of a policy: shipped, or a file's.
///
/// # Errors
/// An unknown name with those there are, or the file's.
pub fn find_policy(name: &str) -> Result<Vec<u8>, Error> {
    if let Some(component) = shipped::component(name) {
        return Ok(component.to_vec());
    }
    if name.ends_with(".wasm") || name.contains(std::path::MAIN_SEPARATOR) {
        return read_component("policy", name);
    }
    Err(Error::unknown("policy", name, shipped::POLICIES.iter().map(|policy| policy.name)))
}

/// A component's file. One that no sandbox would take is not read to its end.
pub(crate) fn read_component(what: &'static str, path: &str) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::File { what, path: path.to_owned(), source };
    let limit_bytes = Limits::default().component_bytes;
    let file = files::open(Path::new(path)).map_err(failed)?;
    let length = usize::try_from(file.metadata().map_err(failed)?.len()).unwrap_or(usize::MAX);
    if length > limit_bytes {
        return Err(LoadError::TooLarge { guest: Guest::policy(path), bytes: length, limit_bytes }.into());
    }
    let mut component = Vec::with_capacity(length);
    // One byte more, so that the sandbox refuses what has no length of its own and goes on.
    file.take(limit_bytes as u64 + 1).read_to_end(&mut component).map_err(failed)?;
    Ok(component)
}

/// The head files asked for, or the shipped ones.
fn read_heads(options: &HostOptions, model_sha256: &str) -> Result<Vec<HeadFile>, Error> {
    if options.heads.is_empty() {
        let Some(kind) = options.head_kind else { return Ok(Vec::new()) };
        let mut heads = Vec::new();
        for shipped in &shipped::HEADS {
            let head = HeadFile::read(shipped.file)?;
            // Shipped heads are the default model's; another model simply has none.
            if head.description.kind == kind && head.description.model_sha256 == model_sha256 {
                heads.push(head);
            }
        }
        return Ok(heads);
    }
    let mut heads: Vec<HeadFile> = Vec::new();
    for path in &options.heads {
        let head = read_head(path, options.head_kind, model_sha256)?;
        let name = &head.description.name;
        if heads.iter().any(|other| other.description.name == *name) {
            return Err(Error::Usage(format!("two heads are named {name:?}: {} is the second", path.display())));
        }
        heads.push(head);
    }
    Ok(heads)
}

/// A head's file; or, by its name, a shipped head of the kind that is asked for.
fn read_head(path: &Path, kind: Option<HeadKind>, model_sha256: &str) -> Result<HeadFile, Error> {
    let name = path.to_string_lossy();
    if path.exists() || name.ends_with(".safetensors") || name.contains(std::path::MAIN_SEPARATOR) {
        let refused = |source| Error::HeadFile { path: name.to_string(), source };
        return HeadFile::open(path).map_err(refused);
    }
    let mut names = Vec::new();
    for shipped in &shipped::HEADS {
        let head = HeadFile::read(shipped.file)?;
        let description = &head.description;
        if Some(description.kind) == kind && description.model_sha256 == model_sha256 {
            if description.name == name {
                return Ok(head);
            }
            names.push(description.name.clone());
        }
    }
    Err(Error::unknown("shipped head (and no file)", &name, names.iter().map(String::as_str)))
}

/// Instances that the sandbox must hold: each sequence may have a short chain. Where many are long, some wait.
fn sandbox_sequences(options: &HostOptions) -> u32 {
    options.limits.sequences.max(4 * options.engine.sequences_max as u32)
}

/// Cores of this machine.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Stands for a prompt while the chat template is rendered: private-use characters.
const USER_MARK: &str = "\u{f8f0}\u{f8f1}\u{f8f2}";
