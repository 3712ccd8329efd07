//! Single instructions against Rust: each snippet runs over edge values and random ones.
//!
//! A snippet finds 64-bit inputs in `%da`, `%db`, `%dc`, their low halves in `%ra`.. (also as `%fa`..),
//! the lowest 16 bits in `%ha`.., and leaves its result in `%d`. Start at [`check`].

use vassal_cuda_stand_in::direct::{Direct, Shape};

const THREADS: usize = 1024;

/// Bits that matter somewhere: ends of ranges, signs, floats of every class.
const EDGES: [u64; 20] = [
    0,
    1,
    2,
    31,
    32,
    33,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0x8000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    u64::MAX,
    1 << 63,
    0x3f80_0000,
    0x7f80_0000,
    0x7fc0_0000,
    0x0000_0000_0040_0000,
];

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 ^ self.0 >> 29
    }
}

fn inputs() -> Vec<[u64; 3]> {
    let mut random = Random(7);
    let mut out: Vec<[u64; 3]> = Vec::new();
    for a in EDGES {
        for b in EDGES {
            out.push([a, b, EDGES[(random.next() % 20) as usize]]);
        }
    }
    while out.len() < THREADS {
        // Small numbers too, so that shifts and fields are in range.
        let small = |value: u64| if value & 1 == 0 { value >> 1 } else { value >> 58 };
        out.push([random.next(), small(random.next()), small(random.next())]);
    }
    out.truncate(THREADS);
    out
}

fn module(snippet: &str) -> String {
    format!(
        "
.version 8.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 x, .param .u64 y)
{{
    .reg .pred p, q;
    .reg .b16 %h, %ha, %hb, %hc;
    .reg .b32 %r, %s, %ra, %rb, %rc, %t;
    .reg .f32 %f, %fa, %fb, %fc;
    .reg .f64 %e, %ea, %eb, %ec;
    .reg .b64 %d, %da, %db, %dc, %x, %y, %o;
    ld.param.u64 %x, [x];
    ld.param.u64 %y, [y];
    mov.u32 %t, %tid.x;
    mul.wide.u32 %o, %t, 24;
    add.s64 %x, %x, %o;
    ld.global.u64 %da, [%x];
    ld.global.u64 %db, [%x+8];
    ld.global.u64 %dc, [%x+16];
    cvt.u32.u64 %ra, %da; cvt.u32.u64 %rb, %db; cvt.u32.u64 %rc, %dc;
    cvt.u16.u64 %ha, %da; cvt.u16.u64 %hb, %db; cvt.u16.u64 %hc, %dc;
    mov.b32 %fa, %ra; mov.b32 %fb, %rb; mov.b32 %fc, %rc;
    mov.b64 %ea, %da; mov.b64 %eb, %db; mov.b64 %ec, %dc;
    {snippet}
    mul.wide.u32 %o, %t, 8;
    add.s64 %y, %y, %o;
    st.global.u64 [%y], %d;
    ret;
}}
"
    )
}

/// Runs `snippet` for all inputs and compares with `expected`.
fn check(snippet: &str, expected: impl Fn(u64, u64, u64) -> u64) {
    check_module(&module(snippet), snippet, expected);
}

fn check_module(text: &str, snippet: &str, expected: impl Fn(u64, u64, u64) -> u64) {
    let inputs = inputs();
    let bytes: Vec<u8> = inputs.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
    let mut direct = Direct::new();
    let (x, y) = (direct.upload(&bytes), direct.reserve(8 * THREADS as u64));
    let shape = Shape { grid: [1, 1, 1], block: [THREADS as u32, 1, 1], dynamic_shared_bytes: 0 };
    direct.run(text, "k", shape, &[&x.to_le_bytes(), &y.to_le_bytes()]).expect(snippet);
    let out = direct.download(y, 8 * THREADS);
    for ([a, b, c], have) in inputs.iter().zip(out.chunks_exact(8)) {
        let have = u64::from_le_bytes(have.try_into().expect("8 bytes"));
        assert_eq!(have, expected(*a, *b, *c), "{snippet} of {a:#x}, {b:#x}, {c:#x} gives {have:#x}");
    }
}

/// A snippet whose result is in `%r`.
fn check32(snippet: &str, expected: impl Fn(u32, u32, u32) -> u32) {
    check(&format!("{snippet} cvt.u64.u32 %d, %r;"), |a, b, c| expected(a as u32, b as u32, c as u32).into());
}

/// A snippet whose result is in `%f`; any NaN must be the hardware's.
fn check_float(snippet: &str, expected: impl Fn(f32, f32, f32) -> f32) {
    check32(&format!("{snippet} mov.b32 %r, %f;"), |a, b, c| {
        let value = expected(f32::from_bits(a), f32::from_bits(b), f32::from_bits(c));
        if value.is_nan() { 0x7fff_ffff } else { value.to_bits() }
    });
}

#[test]
fn integer_arithmetic() {
    check32("add.s32 %r, %ra, %rb;", |a, b, _| a.wrapping_add(b));
    check32("sub.u32 %r, %ra, -7;", |a, _, _| a.wrapping_add(7));
    check32("mul.lo.s32 %r, %ra, %rb;", |a, b, _| a.wrapping_mul(b));
    check32("mul.hi.u32 %r, %ra, %rb;", |a, b, _| ((u64::from(a) * u64::from(b)) >> 32) as u32);
    check32("mul.hi.s32 %r, %ra, %rb;", |a, b, _| ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32);
    check("mul.wide.s32 %d, %ra, %rb;", |a, b, _| (i64::from(a as i32) * i64::from(b as i32)) as u64);
    check("mul.wide.u32 %d, %ra, %rb;", |a, b, _| u64::from(a as u32) * u64::from(b as u32));
    check("mul.hi.u64 %d, %da, %db;", |a, b, _| ((u128::from(a) * u128::from(b)) >> 64) as u64);
    check("mad.wide.s32 %d, %ra, %rb, %dc;", |a, b, c| {
        (i64::from(a as i32) * i64::from(b as i32)).wrapping_add(c as i64) as u64
    });
    check("mad.lo.u64 %d, %da, %db, %dc;", |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    check32("mad.lo.s32 %r, %ra, %rb, %rc;", |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    check32("div.s32 %r, %ra, %rb;", |a, b, _| if b == 0 { !0 } else { (a as i32).wrapping_div(b as i32) as u32 });
    check("rem.u64 %d, %da, %db;", |a, b, _| if b == 0 { !0 } else { a % b });
    check32("min.s32 %r, %ra, %rb;", |a, b, _| (a as i32).min(b as i32) as u32);
    check32("max.u32 %r, %ra, %rb;", |a, b, _| a.max(b));
    check32("abs.s32 %r, %ra;", |a, _, _| (a as i32).wrapping_abs() as u32);
    check32("neg.s32 %r, %ra;", |a, _, _| a.wrapping_neg());
    check32("sad.u32 %r, %ra, %rb, %rc;", |a, b, c| c.wrapping_add(a.abs_diff(b)));
    check("add.cc.u32 %r, %ra, %rb; addc.u32 %s, 0, 0; mov.b64 %d, {%r, %s};", |a, b, _| {
        u64::from(a as u32) + u64::from(b as u32)
    });
    check(
        "sub.cc.u32 %r, %ra, %rb; mov.b64 {%ra, %s}, %da; mov.b64 {%ra, %rc}, %db; subc.u32 %s, %s, %rc; mov.b64 %d, {%r, %s};",
        |a, b, _| a.wrapping_sub(b),
    );
}

#[test]
fn bits_and_bytes() {
    check32("shl.b32 %r, %ra, %rb;", |a, b, _| a.checked_shl(b).unwrap_or(0));
    check32("shr.u32 %r, %ra, %rb;", |a, b, _| a.checked_shr(b).unwrap_or(0));
    check32("shr.s32 %r, %ra, %rb;", |a, b, _| ((a as i32) >> b.min(31)) as u32);
    check("shr.s64 %d, %da, %rb;", |a, b, _| ((a as i64) >> (b as u32).min(63)) as u64);
    check("shl.b64 %d, %da, %rb;", |a, b, _| a.checked_shl(b as u32).unwrap_or(0));
    check32("shf.l.wrap.b32 %r, %ra, %rb, %rc;", |a, b, c| {
        ((u64::from(b) << 32 | u64::from(a)) << (c & 31) >> 32) as u32
    });
    check32("shf.r.clamp.b32 %r, %ra, %rb, %rc;", |a, b, c| ((u64::from(b) << 32 | u64::from(a)) >> c.min(32)) as u32);
    check32("lop3.b32 %r, %ra, %rb, %rc, 0x96;", |a, b, c| a ^ b ^ c);
    check32("lop3.b32 %r, %ra, %rb, %rc, 0xea;", |a, b, c| (a & b) | c);
    check32("prmt.b32 %r, %ra, %rb, 0x5410;", |a, b, _| a & 0xffff | b << 16);
    check32("prmt.b32 %r, %ra, %rb, 0x8880;", |a, _, _| {
        let sign = if a & 0x80 == 0 { 0 } else { 0xffff_ff00 };
        a & 0xff | sign
    });
    check32("popc.b32 %r, %ra;", |a, _, _| a.count_ones());
    check("clz.b64 %r, %da; cvt.u64.u32 %d, %r;", |a, _, _| a.leading_zeros().into());
    check32("brev.b32 %r, %ra;", |a, _, _| a.reverse_bits());
    check32("bfind.u32 %r, %ra;", |a, _, _| a.checked_ilog2().unwrap_or(!0));
    check32("bfind.shiftamt.u32 %r, %ra;", |a, _, _| if a == 0 { !0 } else { a.leading_zeros() });
    check32("bfe.u32 %r, %ra, %rb, %rc;", |a, b, c| {
        let (at, count) = (b & 0xff, c & 0xff);
        let value = a.checked_shr(at).unwrap_or(0);
        if count >= 32 { value } else { value & ((1 << count) - 1) }
    });
    check32("bfe.s32 %r, %ra, 4, 8;", |a, _, _| i32::from((a >> 4) as i8) as u32);
    check32("bfi.b32 %r, %ra, %rb, 8, 4;", |a, b, _| b & !0xf00 | (a & 0xf) << 8);
    check("bfi.b64 %d, %da, %db, 32, 32;", |a, b, _| b & 0xffff_ffff | a << 32);
    check32("dp4a.s32.s32 %r, %ra, %rb, %rc;", |a, b, c| {
        let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
        (0..4).fold(c, |sum, i| sum.wrapping_add((i32::from(a[i] as i8) * i32::from(b[i] as i8)) as u32))
    });
    check32("mov.b32 {%ha, %hb}, %ra; mov.b32 %r, {%hb, %ha};", |a, _, _| a.rotate_left(16));
    check("not.b64 %d, %da;", |a, _, _| !a);
}

#[test]
fn comparisons_and_selections() {
    check32("setp.lt.s32 p, %ra, %rb; selp.b32 %r, %ra, %rb, p;", |a, b, _| (a as i32).min(b as i32) as u32);
    check32("setp.hi.u32 p, %ra, %rb; selp.u32 %r, 1, 0, p;", |a, b, _| u32::from(a > b));
    check32("setp.gtu.f32 p, %fa, %fb; selp.u32 %r, 1, 0, p;", |a, b, _| {
        let (a, b) = (f32::from_bits(a), f32::from_bits(b));
        u32::from(a > b || a.is_nan() || b.is_nan())
    });
    check32("setp.ne.f32 p, %fa, %fb; selp.u32 %r, 1, 0, p;", |a, b, _| {
        let (a, b) = (f32::from_bits(a), f32::from_bits(b));
        u32::from(a.partial_cmp(&b).is_some_and(std::cmp::Ordering::is_ne))
    });
    check32(
        "setp.eq.s32 q, %rc, 0; setp.lt.and.u32 p|q, %ra, %rb, !q; selp.u32 %r, 1, 0, p; selp.u32 %s, 2, 0, q; or.b32 %r, %r, %s;",
        |a, b, c| u32::from(a < b && c != 0) | u32::from(a >= b && c != 0) << 1,
    );
    check32(
        "mov.u32 %r, 5; setp.eq.u32 p, %ra, 0; @!p mov.u32 %r, 6; @p bra $L; add.u32 %r, %r, 10; $L:",
        |a, _, _| {
            if a == 0 { 5 } else { 16 }
        },
    );
    check32("set.lt.u32.s32 %r, %ra, %rb;", |a, b, _| if (a as i32) < (b as i32) { !0 } else { 0 });
}

/// The f32 at or below the exact sum of `a` and `b`, from its nearest f64 and f32.
fn rounded_down(a: f32, b: f32, wide: f64, near: f32) -> f32 {
    if near == 0.0 && (a.is_sign_negative() || b.is_sign_negative()) {
        return -0.0;
    }
    if !near.is_finite() {
        let finite = a.is_finite() && b.is_finite() && near > 0.0;
        return if finite { f32::MAX } else { near };
    }
    // What the sum of f64 left out (two-sum), or what the f32 did.
    let part = wide - f64::from(a);
    let rest = (f64::from(a) - (wide - part)) + (f64::from(b) - part);
    let above = f64::from(near) > wide || f64::from(near) == wide && rest < 0.0;
    if above { near.next_down() } else { near }
}

#[test]
fn floats_to_the_bit() {
    check_float("add.f32 %f, %fa, %fb;", |a, b, _| a + b);
    check_float("sub.rn.f32 %f, %fa, %fb;", |a, b, _| a - b);
    check_float("mul.f32 %f, %fa, %fb;", |a, b, _| a * b);
    check_float("fma.rn.f32 %f, %fa, %fb, %fc;", |a, b, c| a.mul_add(b, c));
    check_float("div.rn.f32 %f, %fa, %fb;", |a, b, _| a / b);
    check_float("sqrt.rn.f32 %f, %fa;", |a, _, _| a.sqrt());
    check_float("rcp.rn.f32 %f, %fa;", |a, _, _| 1.0 / a);
    check_float(
        "max.f32 %f, %fa, %fb;",
        |a, b, _| {
            if a == b { if a.is_sign_positive() { a } else { b } } else { a.max(b) }
        },
    );
    check_float("min.NaN.f32 %f, %fa, 0f3F800000;", |a, _, _| if a.is_nan() { a } else { a.min(1.0) });
    check_float("add.ftz.f32 %f, %fa, 0f00000000;", |a, _, _| if a.is_subnormal() { 0.0 * a } else { a + 0.0 });
    check_float("fma.rn.sat.f32 %f, %fa, 0f3F800000, 0f00000000;", |a, _, _| {
        if a.is_nan() || a <= 0.0 { 0.0 } else { a.min(1.0) }
    });
    check_float("mul.rz.f32 %f, %fa, %fb;", |a, b, _| {
        // The nearest, one step back where it is beyond the exact product.
        let (exact, near) = (f64::from(a) * f64::from(b), a * b);
        if exact.is_nan() || a.is_infinite() || b.is_infinite() {
            return near;
        }
        if f64::from(near).abs() > exact.abs() { f32::from_bits(near.to_bits() - 1) } else { near }
    });
    check_float("add.rm.f32 %f, %fa, %fb;", |a, b, _| rounded_down(a, b, f64::from(a) + f64::from(b), a + b));
    check("add.f64 %e, %ea, %eb; mov.b64 %d, %e;", |a, b, _| (f64::from_bits(a) + f64::from_bits(b)).to_bits());
    check("fma.rn.f64 %e, %ea, %eb, %ec; mov.b64 %d, %e;", |a, b, c| {
        f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c)).to_bits()
    });
}

#[test]
fn approximations_are_near() {
    let near = |snippet: &str, exact: fn(f64) -> f64| {
        check32(&format!("{snippet} mov.b32 %r, %f;"), |a, _, _| {
            let value = exact(f64::from(f32::from_bits(a))) as f32;
            if value.is_nan() { 0x7fff_ffff } else { value.to_bits() }
        });
    };
    near("ex2.approx.f32 %f, %fa;", f64::exp2);
    near("lg2.approx.f32 %f, %fa;", f64::log2);
    near("rsqrt.approx.f32 %f, %fa;", |x| 1.0 / x.sqrt());
    near("sin.approx.f32 %f, %fa;", f64::sin);
    near("cos.approx.f32 %f, %fa;", f64::cos);
    near("tanh.approx.f32 %f, %fa;", f64::tanh);
}

/// The bf16 nearest to `x`, ties to even.
fn bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    if x.is_nan() { 0x7fff } else { (bits + 0x7fff + (bits >> 16 & 1)) >> 16 }
}

#[test]
fn conversions() {
    check_float("cvt.rn.f32.s32 %f, %ra;", |a, _, _| a.to_bits() as i32 as f32);
    check32("cvt.rzi.s32.f32 %r, %fa;", |a, _, _| f32::from_bits(a) as i32 as u32);
    check32("cvt.rni.u32.f32 %r, %fa;", |a, _, _| f32::from_bits(a).round_ties_even() as u32);
    check32("cvt.rmi.s32.f32 %r, %fa;", |a, _, _| f32::from_bits(a).floor() as i32 as u32);
    check32("cvt.rpi.s32.f32 %r, %fa;", |a, _, _| f32::from_bits(a).ceil() as i32 as u32);
    check("cvt.s64.s32 %d, %ra;", |a, _, _| i64::from(a as i32) as u64);
    check32("cvt.s32.s8 %r, %ra;", |a, _, _| i32::from(a as i8) as u32);
    check32("cvt.u32.u8 %r, %ra;", |a, _, _| a & 0xff);
    check32("cvt.sat.s8.s32 %r, %ra;", |a, _, _| i32::from((a as i32).clamp(-128, 127) as i8) as u32);
    check32("cvt.sat.u8.s32 %r, %ra;", |a, _, _| (a as i32).clamp(0, 255) as u32);
    check32("cvt.rn.bf16.f32 %h, %fa; cvt.u32.u16 %r, %h;", |a, _, _| bf16(f32::from_bits(a)));
    check32("cvt.rn.bf16x2.f32 %r, %fa, %fb;", |a, b, _| bf16(f32::from_bits(a)) << 16 | bf16(f32::from_bits(b)));
    check32("cvt.f32.bf16 %f, %ha; mov.b32 %r, %f;", |a, _, _| {
        if f32::from_bits(a << 16).is_nan() { 0x7fff_ffff } else { a << 16 }
    });
    // Every f16 becomes its f32 and comes back.
    check32("cvt.f32.f16 %f, %ha; cvt.rn.f16.f32 %h, %f; cvt.u32.u16 %r, %h;", |a, _, _| {
        if a & 0x7fff > 0x7c00 { 0x7fff } else { a & 0xffff }
    });
    check("cvt.rn.f32.u64 %f, %da; mov.b32 %r, %f; cvt.u64.u32 %d, %r;", |a, _, _| (a as f32).to_bits().into());
    check("cvt.rn.f64.s64 %e, %da; mov.b64 %d, %e;", |a, _, _| (a as i64 as f64).to_bits());
    check("cvt.rzi.s64.f64 %d, %ea;", |a, _, _| {
        let x = f64::from_bits(a);
        if x.is_nan() { 1 << 63 } else { x as i64 as u64 }
    });
}

#[test]
fn halves() {
    let value = |bits: u32| {
        let (sign, field, mantissa) = (bits >> 15 & 1, bits >> 10 & 31, bits & 1023);
        let magnitude = match field {
            0 => f64::from(mantissa) * 2_f64.powi(-24),
            31 if mantissa == 0 => f64::INFINITY,
            31 => f64::NAN,
            _ => f64::from(mantissa | 1024) * 2_f64.powi(field as i32 - 25),
        };
        if sign == 1 { -magnitude } else { magnitude }
    };
    // The difference of f16 values is exact in f64, so it says whether the sum is the nearest.
    check32("add.f16 %h, %ha, %hb; cvt.f32.f16 %f, %h; mov.b32 %r, %f;", |a, b, _| {
        let exact = value(a) + value(b);
        let step = |x: f64| 2_f64.powi((x.abs().log2().floor() as i32).max(-14) - 10);
        let near = if exact == 0.0 || !exact.is_finite() {
            exact
        } else {
            let unit = step(exact);
            let rounded = (exact / unit).round_ties_even() * unit;
            if rounded.abs() >= 65536.0 { f64::INFINITY.copysign(exact) } else { rounded }
        };
        if near.is_nan() { 0x7fff_ffff } else { (near as f32).to_bits() }
    });
    check32("neg.bf16x2 %r, %ra;", |a, _, _| a ^ 0x8000_8000);
    check32("mov.b32 %s, 0x3f803f80; fma.rn.bf16x2 %r, %ra, %s, %s;", |a, _, _| {
        let one = |bits: u32| bf16((f64::from(f32::from_bits(bits << 16)) + 1.0) as f32);
        let exact = |bits: u32| {
            let x = f32::from_bits(bits << 16);
            // f32 holds the sum exactly, or it is too small to matter to bf16's rounding.
            if x.abs() < 1e-6 { 0x3f80 } else { one(bits) }
        };
        exact(a >> 16) << 16 | exact(a & 0xffff)
    });
}

#[test]
fn branches_by_table() {
    check32(
        "rem.u32 %s, %ra, 3; mov.u32 %r, 9; brx.idx %s, $table; $table: .branchtargets $A, $B, $C;
        $A: mov.u32 %r, 10; bra $E; $B: mov.u32 %r, 20; bra $E; $C: mov.u32 %r, 30; $E:",
        |a, _, _| 10 * (a % 3 + 1),
    );
}

#[test]
fn device_functions_are_expanded_with_their_own_registers() {
    let call = |index: &str| {
        format!(
            "{{ .param .b32 first; .param .b32 second; .param .b32 back;
            st.param.b32 [first+0], %ra; st.param.b32 [second+0], {index};
            call.uni (back), mix, (first, second);
            ld.param.b32 %r, [back+0]; }}"
        )
    };
    let function = ".func (.param .b32 result) mix(.param .b32 a, .param .b32 b)
        { .reg .b32 %r<4>; .reg .pred p;
        ld.param.u32 %r1, [a]; ld.param.u32 %r2, [b]; setp.lt.u32 p, %r1, %r2; @p bra $out;
        sub.u32 %r3, %r1, %r2; st.param.b32 [result+0], %r3; ret;
        $out: st.param.b32 [result+0], 77; ret; }";
    let body = format!("{} mov.u32 %s, %r; setp.eq.u32 p, %rb, 0; {} add.u32 %r, %r, %s;", call("%rb"), call("5"));
    check_module(
        &module(&format!("{body} cvt.u64.u32 %d, %r;")).replace(".visible", &format!("{function} .visible")),
        &body,
        |a, b, _| {
            let mix = |a: u32, b: u32| if a < b { 77 } else { a - b };
            mix(a as u32, b as u32).wrapping_add(mix(a as u32, 5)).into()
        },
    );
}
