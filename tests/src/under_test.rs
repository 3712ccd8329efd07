//! The program as tests of the command line run it: built with them, so it is never a stale one.
//!
//! It is `host/src/main.rs` word for word, under a name of its own. See `tests/program.rs`.

fn main() -> std::process::ExitCode {
    vassal::cli::main()
}
