//! The kernels as they were compiled ahead: PTX for every driver and card that we take, cubins for Hopper.
//!
//! `kernels/cuda/build.py` makes them; nothing is compiled here. A test compares the sources' hashes with the manifest
//! that came with the binaries, so sources cannot change without them.

/// A module: one `.cu` file.
pub(super) struct Module {
    /// The file's name.
    pub(super) name: &'static str,
    /// PTX text, ended by a zero byte.
    pub(super) ptx: &'static str,
    /// Machine code for compute capability 9.0.
    pub(super) cubin: &'static [u8],
    /// What it defines.
    pub(super) kernels: &'static [Kernel],
}

macro_rules! modules {
    ($($module:literal: $($kernel:ident = $name:literal),+;)+) => {
        /// A kernel, in the order in which modules define them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Kernel { $($($kernel),+),+ }

        impl Kernel {
            /// The name of its entry in the module.
            pub(super) const fn name(self) -> &'static str {
                match self { $($(Kernel::$kernel => $name),+),+ }
            }
        }

        pub(super) const MODULES: &[Module] = &[$(Module {
            name: $module,
            ptx: concat!(include_str!(concat!("../../cuda/prebuilt/", $module, ".ptx")), "\0"),
            cubin: include_bytes!(concat!("../../cuda/prebuilt/", $module, ".cubin")),
            kernels: &[$(Kernel::$kernel),+],
        }),+];
    };
}

modules! {
    "embed": Embed = "embed";
    "prepare": Prepare = "prepare";
    "linear": Linear1 = "linear_1", Linear2 = "linear_2", Linear3 = "linear_3", Linear4 = "linear_4",
        Linear8 = "linear_8";
    "attend": Attend32 = "attend_32", Attend64 = "attend_64", Attend96 = "attend_96", Attend128 = "attend_128",
        MergeSplits = "merge_splits";
    "cache": RopeStore = "rope_store", CopyRows = "copy_rows", Commit = "commit";
    "features": Accumulate = "accumulate", Values = "values", Project = "project", Score = "score",
        ReadFeatures = "read_features";
    "top_k": TopKChunks = "top_k_chunks", TopKMerge = "top_k_merge";
    "sample": Adjust = "adjust", Weigh = "weigh", Choose = "choose";
}
