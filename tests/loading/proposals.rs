//! A component for each WebAssembly proposal that is off, and for what is on.
//!
//! The parser's words are compared loosely: they say which proposal it is, in some form. That the compiler has the
//! same proposals off is a unit test beside its configuration (`host/src/sandbox/config.rs`).

use vassal::sandbox::LoadError;

use super::{inspect_text, module};
use crate::attacks::Served;

#[track_caller]
fn refuses(text: &str, words: &str) {
    match inspect_text(text) {
        Err(LoadError::Invalid { detail, .. }) => assert!(detail.contains(words), "`{words}` is not in {detail:?}"),
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn core_proposals_that_no_guest_needs_are_refused() {
    let _served = Served::as_before();
    for (fields, words) in [
        ("(memory 1 1 shared)", "threads"),
        ("(memory 1) (func (drop (i32.atomic.load (i32.const 0) )))", "threads"),
        ("(memory 1) (memory 1)", "memor"),
        ("(memory i64 1)", "memory64"),
        ("(table i64 1 funcref)", "memory64"),
        ("(func $f (return_call $f))", "tail call"),
        ("(tag)", "exceptions"),
        ("(func (try_table))", "exceptions"),
        ("(func try end)", "exceptions"),
        ("(type (struct (field i32)))", "gc"),
        ("(type (array i8))", "gc"),
        ("(func (param externref))", "gc"),
        ("(type $t (func)) (func (param (ref $t)))", "function references"),
        ("(memory 1 (pagesize 1))", "custom page sizes"),
        ("(func (param i64 i64) (drop (i64.mul_wide_u (local.get 0) (local.get 1))) drop)", "wide arithmetic"),
        ("(type $f (func)) (type (cont $f))", "stack switching"),
        ("(global i32 (i32.add (i32.const 1) (i32.const 2)))", "constant expression"),
        ("(func (param v128) (drop (f32x4.relaxed_madd (local.get 0) (local.get 0) (local.get 0))))", "relaxed"),
        ("(memory 1) (func (memory.discard (i32.const 0) (i32.const 0)))", "memory control"),
        ("(global (shared mut i32) (i32.const 0))", "shared"),
    ] {
        refuses(&module(fields), words);
    }
}

#[test]
fn component_proposals_that_no_guest_needs_are_refused() {
    let _served = Served::as_before();
    for (fields, words) in [
        ("(core func (canon backpressure.inc))", "async"),
        ("(core func (canon task.cancel))", "async"),
        ("(type (future))", "async"),
        ("(type (stream u8))", "async"),
        ("(type (func async))", "async"),
        ("(core func (canon thread.yield))", "async"),
        ("(core func (canon thread.index))", "thread"),
        ("(core func (canon error-context.drop))", "error"),
        ("(type error-context)", "error"),
        ("(type (list u8 4))", "fixed"),
        ("(type (map string u8))", "map"),
        ("(import \"v\" (value u8))", "value"),
    ] {
        refuses(&format!("(component {fields})"), words);
    }
}

#[test]
fn what_ordinary_compilers_emit_is_taken() {
    for fields in [
        "(memory 1) (func (memory.copy (i32.const 0) (i32.const 1) (i32.const 2)))",
        "(func (param v128) (drop (f32x4.mul (local.get 0) (local.get 0))))",
        "(func (param f32) (result i32 i32) (i32.trunc_sat_f32_s (local.get 0)) (i32.extend8_s (i32.const 1)))",
        "(table 1 funcref) (func (drop (table.get 0 (i32.const 0))))",
        "(global (export \"g\") (mut i32) (i32.const 0))",
    ] {
        inspect_text(&module(fields)).unwrap_or_else(|error| panic!("{fields}: {error}"));
    }
}
