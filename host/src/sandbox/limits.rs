//! Every number that bounds a policy or a reward, in one place.
//!
//! Each field gives its unit, its default (see [`Limits::default`]) and the reason for it. Numbers that the
//! contract itself states (256 candidates, 10,000 nats, ...) stand here too, so that no other file of the
//! sandbox holds one; raising those beyond the contract helps nobody, because guests are written against it.

/// What a guest may use. Set before instantiation, so that core start functions run under it too.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// A component's size, bytes. Policies are some 60 kB; a mebibyte leaves room for tables.
    pub component_bytes: usize,
    /// Components inside each other. A guest made by wit-component has 2; one composed of two has 3.
    pub component_depth: u32,
    /// Components in one file. Each export of an interface takes one.
    pub components: u32,
    /// Core modules in one file: the guest, its adapters, and wit-component's two shims.
    pub modules: u32,
    /// Instances declared in one file, of modules and components: some 10 in a usual guest. Components that
    /// instantiate each other multiply them, which only the compiler's own limits bound.
    pub instances: u32,
    /// Functions in one file, adapted ones included. A policy has some hundred; each costs the compiler
    /// some 50 µs at least, and 250,000 empty ones fit in a mebibyte.
    pub functions: u32,
    /// Types in one file, those inside others included: some 200 in a usual guest.
    pub types: u32,
    /// Component and instance types declared inside others. Three bytes declare one, and the parser calls itself for
    /// each: 300,000 would overrun the stack of the process that serves.
    pub nested_types: u32,
    /// Imports in one file, between its own modules included.
    pub imports: u32,
    /// Exports in one file, of its own modules included.
    pub exports: u32,
    /// Aliases in one file: wit-component makes one wherever a part is named by another.
    pub aliases: u32,
    /// Globals in one file. Compilers for linear memory make a handful; position-independent ones some hundreds.
    pub globals: u32,
    /// Data segments in one file: a usual guest has fewer than 10, other languages' some hundreds.
    pub data_segments: u32,
    /// Element segments in one file: one a table of functions.
    pub element_segments: u32,
    /// Entries of element segments in one file: two full tables.
    pub element_entries: u32,
    /// A core function's body, bytes. The compiler's time and memory grow faster than a body's length: the
    /// largest of a guest here is some 14 kB.
    pub function_bytes: usize,
    /// A core function's locals, parameters included: live values cost the register allocator the square.
    pub function_locals: u32,
    /// Blocks inside each other in a core function. A `match` of so many arms is compiled to so many.
    pub function_blocks: u32,
    /// Loops inside each other in a core function. 46 KiB of nested loops took 10 s and 700 MiB to compile.
    pub function_loops: u32,
    /// Operands on a core function's stack at once, which are live values like locals.
    pub function_operands: u32,
    /// Parameters and results of a core function or block together: each block of 1,000 would be 1,000 values.
    pub signature_values: u32,
    /// Compiling one component, milliseconds: 50 times what a component of the largest size usually takes.
    pub compile_ms: u64,
    /// Starting the compiler, milliseconds: it takes 20, and more on a machine that is busy.
    pub compiler_start_ms: u64,
    /// Address space of the compiler, bytes: 10 times what a usual policy takes.
    pub compile_memory_bytes: usize,
    /// Machine code of one component, bytes: three times a component's size in usual guests.
    pub code_bytes: usize,
    /// Machine code kept in the cache, bytes: some thousand policies.
    pub cache_bytes: u64,
    /// Live instances, one a policy of a sequence: an engine lets a sequence in once there is room for its whole chain.
    /// Each takes about 6 mappings of the process, of which Linux grants 65,530 by default, and 45 KiB resident.
    pub sequences: u32,
    /// Core instances in one component: a guest made by wit-component has up to 4.
    pub core_instances: u32,
    /// A linear memory, bytes. State of one response; a toy grammar needs well under 1 MiB.
    pub memory_bytes: usize,
    /// Linear memories of one instance. A guest has one; an adapter module may bring another.
    pub memories: u32,
    /// Tables of one instance: the guest's own and those of wit-component's shims.
    pub tables: u32,
    /// Entries of a table. A table of a million entries fits in 23 bytes of component.
    pub table_elements: usize,
    /// Fuel of one `decide`, units. The contract's number: at most about 5 ms even for denormal
    /// divisions, which cost 20 ns a unit; ordinary code burns it in well under 1 ms.
    pub fuel_decide: u64,
    /// Fuel of instantiation and `start` together, units. The contract's number: once a response, so a guest
    /// may look up a tenant's phrases in the vocabulary.
    pub fuel_start: u64,
    /// Fuel of instantiation and one `describe` together, units. The contract's number.
    pub fuel_describe: u64,
    /// Fuel a call of a host function, besides what crosses with it, units: a call takes the host some 200 ns.
    pub fuel_call: u64,
    /// Fuel a byte, a list, a token or a value that a host function takes from a guest or gives it, units.
    pub fuel_item: u64,
    /// Fuel a byte of text to be tokenised, units: up to a microsecond of the host's time.
    pub fuel_text_byte: u64,
    /// Fuel that a call uses between two points where it can be left alone, units: 200 µs even of denormal divisions.
    /// A policy of which a call has used more is called in slices from then on.
    pub fuel_slice: u64,
    /// How long a slow policy runs before others have their turn, microseconds: the design's number, some hundredth of
    /// a step of a batch.
    pub slice_us: u64,
    /// A window of the clock, milliseconds: 20 times what the fuel allows a call to take.
    pub deadline_ms: u64,
    /// Windows at whose end a call must still be running to be cut. More than one, because a thread that the
    /// machine has not run for a window looks like a guest that runs on; it has ended by the next. Overrunning
    /// them all is the host's fault, because fuel ends every guest before.
    pub deadline_windows: u32,
    /// What lifting one answer or one argument list may allocate, bytes. A 49,152-token vocabulary bias
    /// takes 6 KiB; the runtime's default would let aliased lists cost 85 MB.
    pub answer_bytes: usize,
    /// Live component-model handles. The contract has no resources, so nobody needs any.
    pub handles: usize,
    /// Guest stack, bytes.
    pub stack_bytes: usize,
    /// Stack of a call that may be suspended, bytes: the guest's and the host functions' above it.
    pub async_stack_bytes: usize,
    /// Evaluations that compute something and that a policy may ask for in one step. Each is a pass
    /// through the lower layers.
    pub evaluations: u32,
    /// Decoding steps of a response, for each token of its limit: rewinds, insertions and what is refused of them cost
    /// steps. A segment that is drawn four times over is as much patience as a request may ask for.
    pub steps_per_token: u64,
    /// Text that one `text.tokens` call may encode, bytes. The contract's number.
    pub text_bytes: usize,
    /// Notes kept of one response; more are dropped and counted. The contract's number.
    pub notes: usize,
    /// A note, bytes; the rest is cut. The contract's number.
    pub note_bytes: usize,
    /// A name in a manifest, bytes; longer is refused. The contract's number.
    pub name_bytes: usize,
    /// A version in a manifest, bytes; longer is refused. The contract's number.
    pub version_bytes: usize,
    /// A summary, a reason or an error, bytes; the rest is cut. It goes to a log line or a terminal. The
    /// contract's number.
    pub summary_bytes: usize,
    /// A text setting's value, bytes: room for a tenant's list of phrases. The contract's number.
    pub setting_text_bytes: usize,
    /// `candidates-max`. The contract's number.
    pub candidates: u32,
    /// `rewind-max`, tokens. The contract's number: the host sends nothing newer.
    pub rewind: u32,
    /// Heads a manifest may name. The contract's number.
    pub heads: usize,
    /// Settings a manifest may have. The contract's number.
    pub settings: usize,
    /// Words of a choice. The contract's number: what a page can still show.
    pub choices: usize,
    /// Tokens of a sparse bias. The contract's number.
    pub bias_tokens: usize,
    /// Tokens of an insertion. The contract's number.
    pub insert_tokens: usize,
    /// The magnitude of a delta (nats) or weight. The contract's number: far beyond what any logit needs,
    /// and products with a value stay finite.
    pub magnitude: f32,
    /// Exchanges of one `score`. The contract's number: a call's instance costs some 30 µs, which 32 make nothing; a
    /// fault in a call costs as many calls more.
    pub score_exchanges: usize,
    /// Text of all exchanges of one `score`, bytes; an exchange that has more has no score. The contract's number:
    /// twice what fits in a context of 8,192 tokens.
    pub score_text_bytes: usize,
    /// Fuel of `score` an exchange, besides that for its text, units; instantiation is paid from it. The contract's
    /// number: room to prepare a list of some thousand words.
    pub fuel_score: u64,
    /// Fuel of `score` a byte of text, units. The contract's number: ten times what splitting into words, folding
    /// their case and looking each of them up takes.
    pub fuel_score_byte: u64,
    /// Windows at whose end a `score` must still be running to be cut: as `deadline_windows`, for up to 225,000,000
    /// units of fuel, which take some 0.2 s in ordinary code and 4.5 s in denormal divisions.
    pub score_windows: u32,
}

impl Limits {
    /// Decoding steps of a response.
    pub fn steps_max(&self, max_tokens: usize) -> u64 {
        self.steps_per_token.saturating_mul(max_tokens as u64)
    }

    /// Rows of a response after its prompt, of which each is a forward at most: a row a step, and candidate rows.
    ///
    /// A step asks for no more than all candidates, all chosen again under vocabulary biases, and the evaluations of each
    /// policy. A response may take that for each token of its limit, so one that takes nothing back never meets the
    /// bound, whatever it evaluates. The steps beyond are what taking back costs: each may look ahead at every candidate.
    pub fn rows_max(&self, max_tokens: usize, candidates: usize, policies: usize) -> u64 {
        let (candidates, evaluations) = (candidates as u64, u64::from(self.evaluations) * policies as u64);
        let once = candidates.saturating_mul(2 + evaluations) + 1;
        let again = self.steps_per_token.saturating_sub(1).saturating_mul(candidates + 1);
        once.saturating_add(again).saturating_mul(max_tokens as u64)
    }
}

impl Default for Limits {
    fn default() -> Self {
        const KIB: usize = 1 << 10;
        const MIB: usize = 1 << 20;
        Self {
            component_bytes: MIB,
            component_depth: 4,
            components: 32,
            modules: 16,
            instances: 64,
            functions: 10_000,
            types: 4_096,
            nested_types: 64,
            imports: 1_024,
            exports: 1_024,
            aliases: 2_048,
            globals: 1_024,
            data_segments: 1_024,
            element_segments: 64,
            element_entries: 20_000,
            function_bytes: 64 * KIB,
            function_locals: 512,
            function_blocks: 256,
            function_loops: 32,
            function_operands: 512,
            signature_values: 64,
            compile_ms: 10_000,
            compiler_start_ms: 10_000,
            compile_memory_bytes: 1 << 30,
            code_bytes: 32 * MIB,
            cache_bytes: 256 << 20,
            sequences: 1_024,
            core_instances: 8,
            memory_bytes: 16 * MIB,
            memories: 2,
            tables: 4,
            table_elements: 10_000,
            fuel_decide: 250_000,
            fuel_start: 1_000_000,
            fuel_describe: 1_000_000,
            fuel_call: 100,
            fuel_item: 1,
            fuel_text_byte: 32,
            fuel_slice: 10_000,
            slice_us: 200,
            deadline_ms: 100,
            deadline_windows: 5,
            answer_bytes: 64 * KIB,
            handles: 1_000,
            stack_bytes: 256 * KIB,
            async_stack_bytes: MIB,
            evaluations: 2,
            steps_per_token: 4,
            text_bytes: 4 * KIB,
            notes: 64,
            note_bytes: KIB,
            name_bytes: 64,
            version_bytes: 32,
            summary_bytes: 256,
            setting_text_bytes: 4 * KIB,
            candidates: 256,
            rewind: 256,
            heads: 16,
            settings: 64,
            choices: 64,
            bias_tokens: 1_024,
            insert_tokens: 256,
            magnitude: 10_000.0,
            score_exchanges: 32,
            score_text_bytes: 64 * KIB,
            fuel_score: 5_000_000,
            fuel_score_byte: 1_000,
            score_windows: 100,
        }
    }
}
