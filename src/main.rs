//! The `larder` program: parses its arguments, runs, and turns an error into one sentence and an exit code.

use std::io::Write as _;
use std::process::ExitCode;

use larder::cli;

fn main() -> ExitCode {
    bound_heaps();
    match cli::run(cli::arguments()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is gone too, the exit code has to do.
            let _ = writeln!(std::io::stderr().lock(), "larder: {}", cli::sentence(&error));
            ExitCode::from(cli::exit_code(&error))
        }
    }
}

/// Bounds the heaps of the C library's allocator by the number of processors, unless `MALLOC_ARENA_MAX` says otherwise.
/// By itself it makes eight for each, and whatever a thread frees stays in the heap that it came from: with content in
/// sled that doubles the memory held after many have read at once, and is no faster.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the C library has no other way, but for a variable set before the start")]
fn bound_heaps() {
    use std::ffi::c_int;

    // <malloc.h>; mallopt(3)
    const M_ARENA_MAX: c_int = -8;
    unsafe extern "C" {
        fn mallopt(parameter: c_int, value: c_int) -> c_int;
    }
    if std::env::var_os("MALLOC_ARENA_MAX").is_none() {
        let processors = std::thread::available_parallelism().map_or(2, |number| number.get().max(2));
        #[expect(
            unsafe_code,
            reason = "the C library has no other way, but for a variable set before the start"
        )]
        // SAFETY: It takes two numbers, changes the allocator's own settings under its lock, and there is no second
        // thread yet. What it does not understand it ignores.
        unsafe {
            mallopt(M_ARENA_MAX, c_int::try_from(processors).unwrap_or(c_int::MAX));
        }
    }
}

#[cfg(not(target_env = "gnu"))]
fn bound_heaps() {}
