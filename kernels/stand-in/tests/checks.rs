//! Each check with a kernel that it must stop and one that it must let run.
//!
//! A body is PTX in which `%x` and `%y` are two global allocations of 256 bytes (the first written, the
//! second not), `%t` is the thread and `%o` four times that; `s` is 256 bytes of shared memory. Start
//! at [`run`].

use vassal_cuda_stand_in::direct::{Direct, Shape};
use vassal_cuda_stand_in::{Finding, Kind};

fn run_with(body: &str, threads: u32, prepare: impl FnOnce(&mut Direct, u64, u64)) -> Result<u64, Finding> {
    let text = format!(
        "
.version 8.0
.target sm_80
.address_size 64
.const .align 4 .b8 table[8] = {{1, 0, 0, 0, 2, 0, 0, 0}};
.extern .shared .align 16 .b8 dynamic[];
.visible .entry k(.param .u64 x, .param .u64 y)
{{
    .local .align 8 .b8 own[16];
    .shared .align 16 .b8 s[256];
    .reg .pred p, q;
    .reg .b32 %r<8>, %t, %o;
    .reg .b64 %d<8>, %x, %y, %xt, %yt, %w;
    ld.param.u64 %x, [x];
    ld.param.u64 %y, [y];
    mov.u32 %t, %tid.x;
    shl.b32 %o, %t, 2;
    cvt.u64.u32 %w, %o;
    add.s64 %xt, %x, %w;
    add.s64 %yt, %y, %w;
    {body}
    ret;
}}
"
    );
    let mut direct = Direct::new();
    let x = direct.upload(&[1; 256]);
    let y = direct.reserve(256);
    prepare(&mut direct, x, y);
    let shape = Shape { grid: [1, 1, 1], block: [threads, 1, 1], dynamic_shared_bytes: 64 };
    direct.run(&text, "k", shape, &[&x.to_le_bytes(), &y.to_le_bytes()])
}

fn run(body: &str) -> Result<u64, Finding> {
    run_with(body, 64, |_, _, _| {})
}

fn clean(body: &str) {
    run(body).unwrap_or_else(|finding| panic!("{body}\n{finding}"));
}

fn found(body: &str, kind: Kind, words: &[&str]) {
    let finding = run(body).expect_err(body);
    assert_eq!(finding.kind, kind, "{body}\n{finding}");
    for word in words {
        assert!(finding.text.contains(word), "{word:?} is not in {finding}");
    }
}

#[test]
fn bounds_of_global_memory() {
    clean("st.global.u32 [%yt], %t;");
    found(
        "st.global.u32 [%yt+4], %t;",
        Kind::OutOfBounds,
        &["thread [63, 0, 0]", "256..260", "kernel k", "block [0, 0, 0]"],
    );
    found("ld.global.u32 %r1, [%xt+-4];", Kind::OutOfBounds, &["thread [0, 0, 0]"]);
    clean(
        "setp.lt.u32 p, %t, 16; shl.b32 %r1, %t, 4; cvt.u64.u32 %d1, %r1; add.s64 %d1, %x, %d1; @p ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%d1];",
    );
    found(
        "shl.b32 %r1, %t, 4; cvt.u64.u32 %d1, %r1; add.s64 %d1, %x, %d1; ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%d1];",
        Kind::OutOfBounds,
        &["thread [16, 0, 0]", "16 bytes"],
    );
    found("mov.u64 %d1, 0; ld.global.u8 %r1, [%d1];", Kind::OutOfBounds, &["address 0x0"]);
}

#[test]
fn alignment() {
    clean("ld.global.u16 %r1, [%xt+2];");
    found("ld.global.u32 %r1, [%xt+2];", Kind::Misaligned, &["4 bytes"]);
    found(
        "setp.lt.u32 p, %t, 8; @p ld.global.v2.u32 {%r1, %r2}, [%xt];",
        Kind::Misaligned,
        &["thread [1, 0, 0]", "8 bytes"],
    );
    found("mov.u32 %r1, s; st.shared.u32 [%r1+1], %t;", Kind::Misaligned, &["shared"]);
}

#[test]
fn bounds_of_shared_local_and_constant_memory() {
    clean("mov.u32 %r1, s; add.u32 %r1, %r1, %o; st.shared.u32 [%r1], %t;");
    // The dynamic part follows: 64 bytes of 320.
    clean("setp.eq.u32 p, %t, 0; mov.u32 %r1, dynamic; @p st.shared.u32 [%r1+60], %t;");
    found("setp.eq.u32 p, %t, 0; mov.u32 %r1, dynamic; @p st.shared.u32 [%r1+64], %t;", Kind::OutOfBounds, &["320"]);
    clean("st.local.u32 [own+12], %t; ld.local.u32 %r1, [own+12];");
    found("st.local.u32 [own+16], %t;", Kind::OutOfBounds, &["local"]);
    clean("ld.const.u32 %r1, [table+4]; st.global.u32 [%yt], %r1;");
    found("ld.const.u32 %r1, [table+8];", Kind::OutOfBounds, &["8 bytes at"]);
    found("mov.u64 %d1, table; st.global.u32 [%d1], %t;", Kind::ReadOnly, &[]);
}

#[test]
fn uninitialised_memory() {
    clean("st.global.u32 [%yt], %t; ld.global.u32 %r1, [%yt];");
    found("ld.global.u32 %r1, [%yt];", Kind::Uninitialised, &["global", "thread [0, 0, 0]"]);
    found("st.global.u8 [%yt], %t; ld.global.u16 %r1, [%yt];", Kind::Uninitialised, &[]);
    found("mov.u32 %r1, s; add.u32 %r1, %r1, %o; ld.shared.u32 %r2, [%r1];", Kind::Uninitialised, &["shared"]);
    found("ld.local.u32 %r1, [own];", Kind::Uninitialised, &["local"]);
}

#[test]
fn use_after_free() {
    let finding = run_with("ld.global.u32 %r1, [%xt];", 64, |direct, x, _| assert!(direct.free(x))).expect_err("freed");
    assert_eq!(finding.kind, Kind::UseAfterFree);
}

/// Each thread writes its word of `s`, then reads the one of thread `t ^ by`.
fn exchange(between: &str, by: u32) -> String {
    format!(
        "mov.u32 %r1, s; add.u32 %r2, %r1, %o; st.shared.u32 [%r2], 0; bar.sync 0; st.shared.u32 [%r2], %t;
        {between}
        xor.b32 %r3, %o, {}; add.u32 %r3, %r1, %r3; ld.shared.u32 %r4, [%r3]; st.global.u32 [%yt], %r4;",
        4 * by
    )
}

#[test]
fn races() {
    for by in [1, 32] {
        clean(&exchange("bar.sync 0;", by));
        found(&exchange("", by), Kind::Race, &["which thread"]);
    }
    // In one warp its own barrier is enough, between warps it is not.
    clean(&exchange("bar.warp.sync 0xffffffff;", 1));
    found(&exchange("bar.warp.sync 0xffffffff;", 32), Kind::Race, &[]);
    // A read, then a write without a barrier between.
    let late = "bar.sync 0; ld.shared.u32 %r5, [%r2]; st.shared.u32 [%r3], %t;";
    found(&format!("{}{late}", exchange("bar.sync 0;", 1)), Kind::Race, &["reads at line"]);
    clean(&format!("{}bar.sync 0; st.shared.u32 [%r3], %t;", exchange("bar.sync 0;", 1)));
    // Two writes of one word by two threads.
    found("mov.u32 %r1, s; st.shared.u32 [%r1], %t;", Kind::Race, &["writes shared byte"]);
    // Bytes of one word are different bytes.
    clean("mov.u32 %r1, s; add.u32 %r1, %r1, %t; st.shared.u8 [%r1], %t;");
    // Atomics do not race with each other, but with plain accesses they do.
    let zero = "mov.u32 %r1, s; setp.eq.u32 p, %t, 0; @p st.shared.u32 [%r1], 0;";
    clean(&format!("{zero} bar.sync 0; atom.shared.add.u32 %r2, [%r1], 1; bar.sync 0; ld.shared.u32 %r3, [%r1];"));
    found(&format!("{zero} bar.sync 0; atom.shared.add.u32 %r2, [%r1], 1; ld.shared.u32 %r3, [%r1];"), Kind::Race, &[]);
}

#[test]
fn named_barriers_order_only_who_meets() {
    let halves = |first: &str, second: &str| {
        format!(
            "mov.u32 %r1, s; setp.lt.u32 p, %t, 32; setp.eq.u32 q, %t, 0;
            @q st.shared.u32 [%r1], 7;
            @!p bra $other;
            {first}
            bra.uni $end;
            $other: {second} ld.shared.u32 %r2, [%r1];
            $end: bar.sync 0;"
        )
    };
    clean(&halves("bar.arrive 1, 64;", "bar.sync 1, 64;"));
    found(&halves("bar.sync 1, 32;", "bar.sync 2, 32;"), Kind::Race, &[]);
    // Who arrives without waiting may not write again what the others now read.
    found(&halves("bar.arrive 1, 64; @q st.shared.u32 [%r1], 8;", "bar.sync 1, 64;"), Kind::Race, &[]);
}

#[test]
fn divergence_at_barriers() {
    clean("setp.lt.u32 p, %t, 32; @p bra $L; mov.u32 %r1, 1; $L: bar.sync 0;");
    found(
        "setp.lt.u32 p, %t, 32; @p ret; bar.sync 0;",
        Kind::BarrierDivergence,
        &["32 threads wait at barrier 0", "32 of 64 threads have exited"],
    );
    found(
        "setp.lt.u32 p, %t, 7; @p bra $L; bar.sync 0; bra.uni $E; $L: bar.sync 0; $E:",
        Kind::BarrierDivergence,
        &["7 threads wait", "57 threads wait"],
    );
    found(
        "setp.lt.u32 p, %t, 32; @p bra $L; bar.sync 1; bra.uni $E; $L: bar.sync 2; $E:",
        Kind::BarrierDivergence,
        &["barrier 1", "barrier 2"],
    );
}

#[test]
fn divergence_in_warps() {
    clean("setp.lt.u32 p, %t, 40; @p bra $L; mov.u32 %r1, 1; $L: shfl.sync.bfly.b32 %r2, %t, 1, 31, 0xffffffff;");
    found(
        "setp.lt.u32 p, %t, 40; @p bra $L; shfl.sync.bfly.b32 %r2, %t, 1, 31, 0xffffffff; $L:",
        Kind::WarpDivergence,
        &["have exited"],
    );
    found(
        "setp.lt.u32 p, %t, 40; @p bra $L; shfl.sync.bfly.b32 %r2, %t, 1, 31, 0xffff0000; $L:",
        Kind::WarpDivergence,
        &["does not name this lane"],
    );
    // Lanes 8 to 31 of the second warp, and only they, take part.
    clean("setp.lt.u32 p, %t, 40; @p bra $L; shfl.sync.up.b32 %r2, %t, 0, 0, 0xffffff00; $L:");
}

#[test]
fn asynchronous_copies_arrive_when_they_were_waited_for() {
    let copy = |wait: &str, barrier: &str| {
        format!(
            "mov.u32 %r1, s; add.u32 %r2, %r1, %o;
            cp.async.ca.shared.global [%r2], [%xt], 4; cp.async.commit_group;
            {wait} {barrier}
            xor.b32 %r3, %o, 4; add.u32 %r3, %r1, %r3; ld.shared.u32 %r4, [%r3];"
        )
    };
    clean(&copy("cp.async.wait_group 0;", "bar.sync 0;"));
    clean(&copy("cp.async.wait_all;", "bar.sync 0;"));
    found(&copy("", "bar.sync 0;"), Kind::PendingCopy, &["asynchronous"]);
    // One group may still be under way.
    found(&copy("cp.async.wait_group 1;", "bar.sync 0;"), Kind::PendingCopy, &[]);
    found(&copy("cp.async.wait_group 0;", ""), Kind::Race, &[]);
    found("mov.u32 %r1, s; add.u32 %r2, %r1, %o; cp.async.ca.shared.global [%r2], [%xt+4], 4;", Kind::OutOfBounds, &[]);
    found("mov.u32 %r1, s; add.u32 %r2, %r1, %o; cp.async.ca.shared.global [%r2], [%yt], 4;", Kind::Uninitialised, &[]);
    // Nothing is read beyond the source's size, and the rest becomes zero.
    clean(
        "mov.u32 %r1, s; add.u32 %r2, %r1, %o; cp.async.ca.shared.global [%r2], [%yt], 4, 0; cp.async.wait_all;
        ld.shared.u32 %r3, [%r2]; setp.ne.u32 p, %r3, 0; @p trap;",
    );
}

#[test]
fn traps_and_spinning_are_told() {
    found("setp.eq.u32 p, %t, 3; @p trap;", Kind::Trap, &["thread [3, 0, 0]"]);
    // A lane that spins lets the one that it waits for go on.
    clean(
        "mov.u32 %r1, s; setp.eq.u32 p, %t, 0; @p st.shared.u32 [%r1], 0; bar.sync 0;
        setp.eq.u32 p, %t, 63; @p bra $store;
        $spin: ld.volatile.shared.u32 %r2, [%r1]; setp.eq.u32 q, %r2, 0; @q bra $spin;
        bra.uni $end;
        $store: st.volatile.shared.u32 [%r1], 1;
        $end: bar.sync 0;",
    );
}

#[test]
fn unknown_things_are_refused_with_their_line() {
    for (body, words) in [
        ("add.s32.frob %r1, %t, 1;", "frob"),
        ("bmsk.clamp.b32 %r1, %t, 2;", "bmsk"),
        ("wgmma.fence.sync.aligned;", "wgmma"),
        ("ld.global.b128 %r1, [%xt];", "b128"),
        ("add.f32 %r1, %t, %nothing;", "%nothing"),
        ("bra $nowhere;", "$nowhere"),
        ("call.uni (), printf, ();", "printf"),
        ("cp.async.bulk.commit_group;", "bulk"),
    ] {
        found(body, Kind::Module, &["PTX line 21", words]);
    }
}

#[test]
fn parameters_must_fit() {
    let text = ".version 8.0 .target sm_80 .address_size 64 .entry k(.param .u32 n) { ret; }";
    let shape = Shape { grid: [1, 1, 1], block: [32, 1, 1], dynamic_shared_bytes: 0 };
    let text = text.replace(".target sm_80 ", "\n.target sm_80\n").replace(".version 8.0", ".version 8.0\n");
    assert_eq!(Direct::new().run(&text, "k", shape, &[&[0; 4]]), Ok(32));
    assert_eq!(Direct::new().run(&text, "k", shape, &[]).expect_err("too few").kind, Kind::Launch);
    assert_eq!(Direct::new().run(&text, "k", shape, &[&[0; 4], &[0; 4]]).expect_err("too many").kind, Kind::Launch);
}
