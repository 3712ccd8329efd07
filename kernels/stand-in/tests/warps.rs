//! What the lanes of a warp do together, and what threads do to one word: against plain loops.
//!
//! Each test runs one warp whose lanes load their registers from an array and store results to
//! another; matrices are spread over lanes here by PTX's tables, written independently of the
//! interpreter's. Start at [`warp`].

use vassal_cuda_stand_in::direct::{Direct, Shape};

/// Runs `body` for 32 lanes with `count` 32-bit inputs `%a0`.. and results `%d0`.. a lane.
fn warp(inputs: &[Vec<u32>], results: usize, body: &str) -> Vec<Vec<u32>> {
    let count = inputs[0].len();
    let loads: String = (0..count).map(|i| format!("ld.global.u32 %a{i}, [%x+{}];\n", 4 * i)).collect();
    let stores: String = (0..results).map(|i| format!("st.global.u32 [%y+{}], %d{i};\n", 4 * i)).collect();
    let text = format!(
        "
.version 8.0
.target sm_90
.address_size 64
.visible .entry k(.param .u64 x, .param .u64 y)
{{
    .shared .align 16 .b8 s[4096];
    .reg .pred p, q;
    .reg .b32 %a<16>, %d<16>, %r<8>, %t;
    .reg .b64 %x, %y, %w;
    ld.param.u64 %x, [x];
    ld.param.u64 %y, [y];
    mov.u32 %t, %laneid;
    mul.wide.u32 %w, %t, {};
    add.s64 %x, %x, %w;
    mul.wide.u32 %w, %t, {};
    add.s64 %y, %y, %w;
    {loads}
    {body}
    {stores}
    ret;
}}
",
        4 * count,
        4 * results
    );
    let bytes: Vec<u8> = inputs.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
    let mut direct = Direct::new();
    let (x, y) = (direct.upload(&bytes), direct.reserve(4 * 32 * results as u64));
    let shape = Shape { grid: [1, 1, 1], block: [32, 1, 1], dynamic_shared_bytes: 0 };
    direct.run(&text, "k", shape, &[&x.to_le_bytes(), &y.to_le_bytes()]).expect("no finding");
    let out = direct.download(y, 4 * 32 * results);
    let words: Vec<u32> = out.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().expect("4 bytes"))).collect();
    words.chunks_exact(results).map(<[u32]>::to_vec).collect()
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    /// A small number that f16, bf16 and tf32 hold.
    fn small(&mut self) -> f32 {
        (self.next() % 33) as f32 / 8.0 - 2.0
    }
}

fn numbers() -> Vec<Vec<u32>> {
    let mut random = Random(3);
    (0..32).map(|_| vec![random.next()]).collect()
}

#[test]
fn shuffles() {
    let inputs = numbers();
    let value = |lane: usize| inputs[lane][0];
    let out = warp(
        &inputs,
        5,
        "shfl.sync.up.b32 %d0|p, %a0, 3, 0, 0xffffffff;
        shfl.sync.down.b32 %d1, %a0, 5, 31, 0xffffffff;
        shfl.sync.bfly.b32 %d2, %a0, 4, 0x181f, 0xffffffff;
        shfl.sync.idx.b32 %d3, %a0, 9, 0x181f, 0xffffffff;
        selp.u32 %d4, 1, 0, p;",
    );
    for (lane, have) in out.iter().enumerate() {
        // 0x181f: segments of 8 lanes.
        let segment = lane & 24;
        let expected = [
            value(if lane >= 3 { lane - 3 } else { lane }),
            value(if lane + 5 < 32 { lane + 5 } else { lane }),
            value(lane ^ 4),
            value(segment | 1),
            u32::from(lane >= 3),
        ];
        assert_eq!(*have, expected, "lane {lane}");
    }
}

#[test]
fn votes_and_reductions() {
    let inputs = numbers();
    let out = warp(
        &inputs,
        8,
        "and.b32 %r0, %a0, 1; setp.eq.u32 p, %r0, 1;
        vote.sync.ballot.b32 %d0, p, 0xffffffff;
        vote.sync.any.pred q, p, 0xffffffff; selp.u32 %d1, 1, 0, q;
        vote.sync.all.pred q, !p, 0xffffffff; selp.u32 %d2, 1, 0, q;
        redux.sync.add.u32 %d3, %a0, 0xffffffff;
        redux.sync.max.s32 %d4, %a0, 0xffffffff;
        match.any.sync.b32 %d5, %r0, 0xffffffff;
        setp.lt.u32 q, %t, 8; @q activemask.b32 %d6; @!q mov.u32 %d6, 0;
        match.all.sync.b32 %d7|q, %r0, 0xffffffff;",
    );
    let odd = (0..32).filter(|lane| inputs[*lane][0] & 1 == 1).fold(0, |mask, lane| mask | 1_u32 << lane);
    let sum = inputs.iter().fold(0_u32, |sum, value| sum.wrapping_add(value[0]));
    let most = inputs.iter().map(|value| value[0] as i32).max().expect("32 lanes") as u32;
    for (lane, have) in out.iter().enumerate() {
        let same = if odd >> lane & 1 == 1 { odd } else { !odd };
        assert_eq!(*have, [odd, 1, 0, sum, most, same, if lane < 8 { 0xff } else { 0 }, 0], "lane {lane}");
    }
}

#[test]
fn barriers_that_reduce() {
    let inputs = numbers();
    let out = warp(
        &inputs,
        3,
        "and.b32 %r0, %a0, 1; setp.eq.u32 p, %r0, 1;
        bar.red.popc.u32 %d0, 0, p;
        bar.red.or.pred q, 0, p; selp.u32 %d1, 1, 0, q;
        barrier.red.and.pred q, 1, 32, !p; selp.u32 %d2, 1, 0, q;",
    );
    let odd = inputs.iter().filter(|value| value[0] & 1 == 1).count() as u32;
    assert!(out.iter().all(|have| *have == [odd, 1, 0]));
}

#[test]
fn atomics() {
    let inputs = numbers();
    let out = warp(
        &inputs,
        6,
        "setp.eq.u32 p, %t, 0; mov.u32 %r0, s; @p st.shared.v2.u32 [%r0], {0, 100}; @p st.shared.u32 [%r0+8], 0; bar.sync 0;
        atom.shared.add.u32 %d0, [%r0], %t;
        atom.shared.min.u32 %d1, [%r0+4], %t;
        red.shared.add.f32 [%r0+8], 0f3FC00000;
        bar.sync 0;
        ld.shared.u32 %d2, [%r0]; ld.shared.u32 %d3, [%r0+4]; ld.shared.u32 %d4, [%r0+8];
        st.global.u32 [%y], 5; atom.global.cas.b32 %d5, [%y], 5, 7; ld.global.u32 %d5, [%y];",
    );
    for (lane, have) in out.iter().enumerate() {
        let before: u32 = (0..lane as u32).sum();
        let least = if lane == 0 { 100 } else { 0 };
        assert_eq!(*have, [before, least, 496, 0, 48_f32.to_bits(), 7], "lane {lane}");
    }
}

fn f16_bits(x: f32) -> u32 {
    // Small multiples of 1/8, which f16 holds: 5 bits of exponent, 10 of mantissa.
    if x == 0.0 {
        return 0;
    }
    let bits = x.to_bits();
    bits >> 16 & 0x8000 | ((bits >> 23 & 0xff) - 112) << 10 | bits >> 13 & 0x3ff
}

/// An element as the matrix type holds it.
fn encode(kind: &str, x: f32) -> u32 {
    match kind {
        "f16" => f16_bits(x),
        "bf16" => x.to_bits() >> 16,
        "tf32" => x.to_bits(),
        "s8" => (x * 8.0) as i8 as u8 as u32,
        _ => (x.abs() * 8.0) as u32,
    }
}

fn value_of(kind: &str, x: f32) -> f64 {
    match kind {
        "s8" => f64::from((x * 8.0) as i8),
        "u8" => f64::from((x.abs() * 8.0) as u8),
        _ => f64::from(x),
    }
}

/// D = A B + C of m16n8k`depth`, with the fragments as the PTX manual's figures give them.
fn product(kind: &str, sum_kind: &str, depth: usize) {
    let bits = match kind {
        "f16" | "bf16" => 16,
        "tf32" => 32,
        _ => 8,
    };
    let per = 32 / bits;
    let (a_count, b_count) = (16 * depth / 32 / per, 8 * depth / 32 / per);
    let mut random = Random(depth as u64);
    let a: Vec<Vec<f32>> = (0..16).map(|_| (0..depth).map(|_| random.small()).collect()).collect();
    let b: Vec<Vec<f32>> = (0..depth).map(|_| (0..8).map(|_| random.small()).collect()).collect();
    let c: Vec<Vec<f32>> = (0..16).map(|_| (0..8).map(|_| random.small().round()).collect()).collect();
    let float = sum_kind == "f32";
    let inputs: Vec<Vec<u32>> = (0..32)
        .map(|lane| {
            let (group, thread) = (lane >> 2, lane % 4);
            let mut registers = vec![0_u32; a_count + b_count + 4];
            for (register, bits_of_it) in registers.iter_mut().enumerate().take(a_count) {
                for part in 0..per {
                    let row = if register % 2 == 0 { group } else { group + 8 };
                    let k = thread * per + part + if register >= 2 { 4 * per } else { 0 };
                    *bits_of_it |= encode(kind, a[row][k]) << (bits * part);
                }
            }
            for register in 0..b_count {
                for part in 0..per {
                    let k = thread * per + part + if register >= 1 { 4 * per } else { 0 };
                    registers[a_count + register] |= encode(kind, b[k][group]) << (bits * part);
                }
            }
            for index in 0..4 {
                let x = c[if index < 2 { group } else { group + 8 }][thread * 2 + index % 2];
                registers[a_count + b_count + index] = if float { x.to_bits() } else { x as i32 as u32 };
            }
            registers
        })
        .collect();
    let list = |name: &str, from: usize, count: usize| {
        (from..from + count).map(|i| format!("%{name}{i}")).collect::<Vec<_>>().join(", ")
    };
    let body = format!(
        "mma.sync.aligned.m16n8k{depth}.row.col.{sum_kind}.{kind}.{kind}.{sum_kind} {{{}}}, {{{}}}, {{{}}}, {{{}}};",
        list("d", 0, 4),
        list("a", 0, a_count),
        list("a", a_count, b_count),
        list("a", a_count + b_count, 4)
    );
    let out = warp(&inputs, 4, &body);
    for (lane, have) in out.iter().enumerate() {
        for (index, have) in have.iter().enumerate() {
            let (row, column) = (if index < 2 { lane >> 2 } else { (lane >> 2) + 8 }, lane % 4 * 2 + index % 2);
            let sum: f64 = (0..depth).map(|k| value_of(kind, a[row][k]) * value_of(kind, b[k][column])).sum();
            let exact = sum + f64::from(c[row][column]);
            // All numbers are small multiples of 1/64, so every order of summing gives these bits.
            let have = if float { f64::from(f32::from_bits(*have)) } else { f64::from(*have as i32) };
            assert!((have - exact).abs() <= 0.0, "{kind} {depth} [{row}, {column}]: {have} is not {exact}");
        }
    }
}

#[test]
fn matrix_products() {
    product("f16", "f32", 16);
    product("f16", "f32", 8);
    product("bf16", "f32", 16);
    product("tf32", "f32", 8);
    product("s8", "s32", 32);
    product("s8", "s32", 16);
    product("u8", "s32", 32);
}

#[test]
fn products_summed_in_f16_are_those_of_f32_rounded() {
    let mut random = Random(11);
    let mut pair = || encode("f16", random.small()) | encode("f16", random.small()) << 16;
    let inputs: Vec<Vec<u32>> = (0..32).map(|_| (0..6).map(|_| pair()).collect()).collect();
    let out = warp(
        &inputs,
        4,
        "mov.u32 %r0, 0;
        mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%d0, %d1}, {%a0, %a1, %a2, %a3}, {%a4, %a5}, {%r0, %r0};
        mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32
            {%a6, %a7, %a8, %a9}, {%a0, %a1, %a2, %a3}, {%a4, %a5}, {%r0, %r0, %r0, %r0};
        cvt.rn.f16x2.f32 %d2, %a7, %a6; cvt.rn.f16x2.f32 %d3, %a9, %a8;",
    );
    assert!(out.iter().all(|have| have[..2] == have[2..]));
    assert!(out.iter().any(|have| have[0] != 0), "the sums are not all zero");
}

#[test]
fn matrices_are_loaded_stored_and_transposed() {
    // Lane l writes row l of four 8 x 8 matrices: element c of row r of matrix m is 100 m + 10 r + c.
    let inputs: Vec<Vec<u32>> = (0..32)
        .map(|lane| {
            let base = lane / 8 * 100 + lane % 8 * 10;
            (0..4).map(|pair| (base + 2 * pair) | ((base + 2 * pair + 1) << 16)).collect()
        })
        .collect();
    let out = warp(
        &inputs,
        10,
        "mov.u32 %r0, s; shl.b32 %r1, %t, 4; add.u32 %r0, %r0, %r1;
        st.shared.v4.u32 [%r0], {%a0, %a1, %a2, %a3};
        bar.sync 0;
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%d0, %d1, %d2, %d3}, [%r0];
        ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%d4, %d5, %d6, %d7}, [%r0];
        movmatrix.sync.aligned.m8n8.trans.b16 %d8, %d0;
        stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%r0+512], {%d1};
        bar.sync 0;
        mov.u32 %r0, s; shl.b32 %r1, %t, 2; add.u32 %r0, %r0, %r1;
        ld.shared.u32 %d9, [%r0+512];",
    );
    for (lane, have) in out.iter().enumerate() {
        let (row, column) = (lane as u32 / 4, lane as u32 % 4 * 2);
        for matrix in 0..4 {
            let element = |row: u32, column: u32| 100 * matrix + 10 * row + column;
            let plain = element(row, column) | element(row, column + 1) << 16;
            let across = element(column, row) | element(column + 1, row) << 16;
            assert_eq!(have[matrix as usize], plain, "lane {lane}");
            assert_eq!(have[4 + matrix as usize], across, "lane {lane}");
            if matrix == 0 {
                assert_eq!(have[8], across, "lane {lane}");
            }
            if matrix == 1 {
                assert_eq!(have[9], across, "lane {lane}");
            }
        }
    }
}
