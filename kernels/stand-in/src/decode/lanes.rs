//! Arithmetic over the 32 lanes of a warp: the function types and the macros that make them.
//!
//! A decoded instruction holds a plain function that does one operation for all lanes of a mask; the
//! loop is inside, so that the compiler sees it whole. Values travel as bits, zero-extended to 64.
//! Nothing here knows PTX; the tables that choose a function are `integer.rs`, `float.rs` and `half.rs`.

/// One value a lane, as bits.
pub(crate) type Lanes = [u64; 32];
pub(crate) type W1 = fn(&mut Lanes, &Lanes, u32);
pub(crate) type W2 = fn(&mut Lanes, &Lanes, &Lanes, u32);
pub(crate) type W3 = fn(&mut Lanes, &Lanes, &Lanes, &Lanes, u32);
pub(crate) type W4 = fn(&mut Lanes, &Lanes, &Lanes, &Lanes, &Lanes, u32);

/// A type with its bits, zero-extended.
pub(crate) trait Bits: Copy {
    /// The value of the low bits.
    fn of(bits: u64) -> Self;
    /// The bits of the value.
    fn bits(self) -> u64;
}

macro_rules! integer_bits {
    ($($signed:ty, $unsigned:ty);*) => { $(
        impl Bits for $signed {
            #[inline(always)]
            fn of(bits: u64) -> Self { bits as $signed }
            #[inline(always)]
            fn bits(self) -> u64 { u64::from(self as $unsigned) }
        }
        impl Bits for $unsigned {
            #[inline(always)]
            fn of(bits: u64) -> Self { bits as $unsigned }
            #[inline(always)]
            fn bits(self) -> u64 { u64::from(self) }
        }
    )* };
}
integer_bits!(i8, u8; i16, u16; i32, u32; i64, u64);

impl Bits for f32 {
    #[inline(always)]
    fn of(bits: u64) -> Self {
        f32::from_bits(bits as u32)
    }
    #[inline(always)]
    fn bits(self) -> u64 {
        u64::from(self.to_bits())
    }
}

impl Bits for f64 {
    #[inline(always)]
    fn of(bits: u64) -> Self {
        f64::from_bits(bits)
    }
    #[inline(always)]
    fn bits(self) -> u64 {
        self.to_bits()
    }
}

impl Bits for bool {
    #[inline(always)]
    fn of(bits: u64) -> Self {
        bits & 1 == 1
    }
    #[inline(always)]
    fn bits(self) -> u64 {
        u64::from(self)
    }
}

/// A function over lanes from an expression over bits; all lanes at once where the mask is full.
macro_rules! lanes {
    (@loop $mask:ident, $d:ident, $lane:ident, $value:expr) => {
        if $mask == u32::MAX {
            for $lane in 0..32 {
                $d[$lane] = $value;
            }
        } else {
            for $lane in 0..32 {
                if $mask >> $lane & 1 == 1 {
                    $d[$lane] = $value;
                }
            }
        }
    };
    (|$a:ident| $value:expr) => {{
        let function: crate::decode::lanes::W1 = |d, x, mask| {
            lanes!(@loop mask, d, lane, { let $a = x[lane]; $value });
        };
        function
    }};
    (|$a:ident, $b:ident| $value:expr) => {{
        let function: crate::decode::lanes::W2 = |d, x, y, mask| {
            lanes!(@loop mask, d, lane, { let ($a, $b) = (x[lane], y[lane]); $value });
        };
        function
    }};
    (|$a:ident, $b:ident, $c:ident| $value:expr) => {{
        let function: crate::decode::lanes::W3 = |d, x, y, z, mask| {
            lanes!(@loop mask, d, lane, { let ($a, $b, $c) = (x[lane], y[lane], z[lane]); $value });
        };
        function
    }};
    (|$a:ident, $b:ident, $c:ident, $e:ident| $value:expr) => {{
        let function: crate::decode::lanes::W4 = |d, x, y, z, w, mask| {
            lanes!(@loop mask, d, lane, { let ($a, $b, $c, $e) = (x[lane], y[lane], z[lane], w[lane]); $value });
        };
        function
    }};
}
pub(crate) use lanes;
