//! The program: see [`vassal::cli`].

fn main() -> std::process::ExitCode {
    vassal::cli::main()
}
