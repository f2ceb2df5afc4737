//! The `larder` program: parses its arguments, runs, and turns an error into one sentence and an exit code.

use std::io::Write as _;
use std::process::ExitCode;

use larder::cli;

fn main() -> ExitCode {
    tune_allocator();
    match cli::run(cli::arguments()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is gone too, the exit code has to do.
            let _ = writeln!(std::io::stderr().lock(), "larder: {}", cli::sentence(&error));
            ExitCode::from(cli::exit_code(&error))
        }
    }
}

/// Sets the C library's allocator up for buffers that are used for a moment by every thread, unless its own variables say
/// otherwise. By itself it makes eight heaps for each processor, and whatever a thread frees stays in the heap that it came
/// from: with content in sled that doubles the memory held after many have read at once, and is no faster. And it gives a
/// buffer of half a MiB back to the system as soon as it is freed, to get it anew, page by page, for the next step.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the C library has no other way, but for a variable set before the start")]
fn tune_allocator() {
    use std::ffi::c_int;

    // <malloc.h>; mallopt(3)
    const M_TRIM_THRESHOLD: c_int = -1;
    const M_MMAP_THRESHOLD: c_int = -3;
    const M_ARENA_MAX: c_int = -8;
    const MIB: usize = 1 << 20;
    unsafe extern "C" {
        fn mallopt(parameter: c_int, value: c_int) -> c_int;
    }

    let heaps = std::thread::available_parallelism().map_or(2, |number| number.get().max(2));
    // What may lie free at the top of each heap: 64 MiB over all of them, as long as that makes a few buffers for each.
    let spare = (64 * MIB / heaps).clamp(MIB, 8 * MIB);
    for (variable, parameter, value) in [
        ("MALLOC_ARENA_MAX", M_ARENA_MAX, heaps),
        // A step of a body is 512 KiB and must come from a heap.
        ("MALLOC_MMAP_THRESHOLD_", M_MMAP_THRESHOLD, MIB + 1),
        ("MALLOC_TRIM_THRESHOLD_", M_TRIM_THRESHOLD, spare),
    ] {
        if std::env::var_os(variable).is_none() {
            // SAFETY: It takes two numbers, changes the allocator's own settings under its lock, and there is no second
            // thread yet. What it does not understand it ignores.
            unsafe {
                mallopt(parameter, c_int::try_from(value).unwrap_or(c_int::MAX));
            }
        }
    }
}

#[cfg(not(target_env = "gnu"))]
fn tune_allocator() {}
