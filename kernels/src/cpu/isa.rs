//! Which instructions a kernel may use, found at run time.
//!
//! Every instruction set gives the same bits (see `cpu/mod.rs`), so this choice is about speed alone.
//! [`Isa`] is a plain name that anybody can write down; [`Detected`] is proof that the processor has it,
//! and what kernels ask for before they run code that needs it.

/// Instruction sets that kernels are written for, slowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// What every processor of the target has; the readable reference of the others.
    Scalar,
    /// AVX2, FMA and F16C, 256 bits wide.
    Avx2,
    /// The same with AVX-VNNI's 8-bit dot products, 256 bits wide.
    AvxVnni,
    /// AVX-512 F, BW, VL, DQ and VNNI, 512 bits wide.
    Avx512Vnni,
}

impl Isa {
    /// All of them, slowest first.
    pub const ALL: [Isa; 4] = [Isa::Scalar, Isa::Avx2, Isa::AvxVnni, Isa::Avx512Vnni];

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => Isa::Avx2.is_available() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The fastest that this processor has.
    pub fn best() -> Isa {
        Isa::ALL.into_iter().rev().find(|isa| isa.is_available()).unwrap_or(Isa::Scalar)
    }

    /// The name in reports and the audit log.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avx-vnni",
            Isa::Avx512Vnni => "avx512-vnni",
        }
    }
}

/// An instruction set that this processor has. Every one but `Scalar` includes `Avx2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Detected(Isa);

impl Detected {
    /// `None` where the processor lacks it.
    pub(crate) fn new(isa: Isa) -> Option<Detected> {
        isa.is_available().then_some(Detected(isa))
    }

    /// The fastest that this processor has.
    pub(crate) fn best() -> Detected {
        Detected(Isa::best())
    }

    /// Its name.
    pub(crate) fn isa(self) -> Isa {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_available_and_includes_the_ones_promised() {
        assert!(Isa::Scalar.is_available());
        let best = Isa::best();
        assert!(best.is_available());
        if best > Isa::Avx2 {
            assert!(Isa::Avx2.is_available());
        }
        assert_eq!(Detected::new(best).map(Detected::isa), Some(best));
    }
}
