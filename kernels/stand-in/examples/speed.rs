//! How fast the interpreter is: thread-instructions a second with all checks on.
//!
//! A tiled product of two f32 matrices through shared memory, and the same number of plain additions.
//! Not a test: speed depends on the machine. Start at `main`; run it with optimisation.

use std::time::Instant;

use vassal_cuda_stand_in::direct::{Direct, Shape};

const SIDE: usize = 256;

/// C = A B in 16 x 16 tiles, A and B of SIDE x SIDE f32.
const PRODUCT: &str = "
.version 8.0
.target sm_80
.address_size 64
.visible .entry product(.param .u64 a, .param .u64 b, .param .u64 c)
{
    .shared .align 4 .b8 ta[1024];
    .shared .align 4 .b8 tb[1024];
    .reg .pred p;
    .reg .b32 %tx, %ty, %row, %col, %k, %i, %pa, %pb, %put, %r<8>;
    .reg .f32 %sum, %x, %y;
    .reg .b64 %a, %b, %c, %o;
    ld.param.u64 %a, [a]; ld.param.u64 %b, [b]; ld.param.u64 %c, [c];
    mov.u32 %tx, %tid.x; mov.u32 %ty, %tid.y;
    mov.u32 %r1, %ctaid.y; mov.u32 %r2, %ctaid.x;
    mad.lo.u32 %row, %r1, 16, %ty; mad.lo.u32 %col, %r2, 16, %tx;
    mov.f32 %sum, 0f00000000;
    mov.u32 %k, 0;
$tile:
    add.u32 %r3, %k, %tx; mad.lo.u32 %r3, %row, 256, %r3;
    mul.wide.u32 %o, %r3, 4; add.s64 %o, %a, %o; ld.global.f32 %x, [%o];
    add.u32 %r4, %k, %ty; mad.lo.u32 %r4, %r4, 256, %col;
    mul.wide.u32 %o, %r4, 4; add.s64 %o, %b, %o; ld.global.f32 %y, [%o];
    mad.lo.u32 %put, %ty, 16, %tx; shl.b32 %put, %put, 2;
    mov.u32 %r5, ta; add.u32 %r5, %r5, %put; st.shared.f32 [%r5], %x;
    mov.u32 %r6, tb; add.u32 %r6, %r6, %put; st.shared.f32 [%r6], %y;
    bar.sync 0;
    mov.u32 %pa, ta; mad.lo.u32 %pa, %ty, 64, %pa;
    mov.u32 %pb, tb; mad.lo.u32 %pb, %tx, 4, %pb;
    mov.u32 %i, 0;
$inner:
    ld.shared.f32 %x, [%pa]; ld.shared.f32 %y, [%pb];
    fma.rn.f32 %sum, %x, %y, %sum;
    add.u32 %pa, %pa, 4; add.u32 %pb, %pb, 64; add.u32 %i, %i, 1;
    setp.lt.u32 p, %i, 16;
    @p bra $inner;
    bar.sync 0;
    add.u32 %k, %k, 16;
    setp.lt.u32 p, %k, 256;
    @p bra $tile;
    mad.lo.u32 %r7, %row, 256, %col; mul.wide.u32 %o, %r7, 4; add.s64 %o, %c, %o;
    st.global.f32 [%o], %sum;
    ret;
}
";

/// A loop of arithmetic alone.
const ARITHMETIC: &str = "
.version 8.0
.target sm_80
.address_size 64
.visible .entry arithmetic(.param .u32 n)
{
    .reg .pred p;
    .reg .b32 %i, %n, %r<4>;
    .reg .f32 %f<4>;
    ld.param.u32 %n, [n];
    mov.u32 %i, 0; mov.u32 %r1, %tid.x; mov.f32 %f1, 0f3F800000;
$loop:
    mad.lo.u32 %r1, %r1, 1664525, 1013904223;
    xor.b32 %r2, %r1, %i; shr.u32 %r3, %r2, 3; add.u32 %r1, %r1, %r3;
    fma.rn.f32 %f1, %f1, 0f3F7FFFFF, 0f3A83126F; mul.f32 %f2, %f1, %f1;
    add.u32 %i, %i, 1;
    setp.lt.u32 p, %i, %n;
    @p bra $loop;
    ret;
}
";

fn report(what: &str, instructions: u64, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    eprintln!("{what}: {:.1} million thread-instructions a second", instructions as f64 / seconds / 1e6);
}

fn main() {
    let ones: Vec<u8> = (0..SIDE * SIDE).flat_map(|_| 1_f32.to_le_bytes()).collect();
    let mut direct = Direct::new();
    let (a, b, c) = (direct.upload(&ones), direct.upload(&ones), direct.reserve(ones.len() as u64));
    let tiles = (SIDE / 16) as u32;
    let shape = Shape { grid: [tiles, tiles, 1], block: [16, 16, 1], dynamic_shared_bytes: 0 };
    let start = Instant::now();
    let params: [&[u8]; 3] = [&a.to_le_bytes(), &b.to_le_bytes(), &c.to_le_bytes()];
    let work = direct.run(PRODUCT, "product", shape, &params).expect("no finding");
    report("product through shared memory", work, start);
    assert!(direct.download(c, ones.len()).chunks_exact(4).all(|x| x == 256_f32.to_le_bytes()));

    let shape = Shape { grid: [8, 1, 1], block: [256, 1, 1], dynamic_shared_bytes: 0 };
    let start = Instant::now();
    let work = direct.run(ARITHMETIC, "arithmetic", shape, &[&2000_u32.to_le_bytes()]).expect("no finding");
    report("arithmetic", work, start);
}
