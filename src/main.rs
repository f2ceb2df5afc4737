//! Program `larder`: parses the arguments, runs the command, and reports an error as one line and an exit code.

use std::io::Write as _;
use std::process::ExitCode;

use larder::cli;

fn main() -> ExitCode {
    tune_allocator();
    match cli::run(cli::arguments(), release_memory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is closed, only the exit code remains.
            let _ = writeln!(std::io::stderr().lock(), "larder: {}", cli::sentence(&error));
            ExitCode::from(cli::exit_code(&error))
        }
    }
}

/// Configures the allocator of the C library for short-lived buffers that are used by all threads. The environment variables
/// of the allocator take precedence.
///
/// By default glibc creates eight heaps for each CPU, and freed memory stays in its heap. With blobs in sled this doubles
/// the memory use after many concurrent reads and is not faster. By default glibc also returns a buffer of 512 KiB to the
/// system when it is freed, and allocates it again, page by page, for the next step of a body.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the C library has no safe interface for this")]
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
    // Free memory kept at the top of each heap: 64 MiB over all heaps, but enough for a few buffers each.
    let spare = (64 * MIB / heaps).clamp(MIB, 8 * MIB);
    for (variable, parameter, value) in [
        ("MALLOC_ARENA_MAX", M_ARENA_MAX, heaps),
        // A step of a body is 512 KiB. It must be allocated from a heap.
        ("MALLOC_MMAP_THRESHOLD_", M_MMAP_THRESHOLD, MIB + 1),
        ("MALLOC_TRIM_THRESHOLD_", M_TRIM_THRESHOLD, spare),
    ] {
        if std::env::var_os(variable).is_none() {
            // SAFETY: mallopt takes two numbers and changes settings of the allocator under its lock. No other thread exists
            // yet. Unknown parameters are ignored.
            unsafe {
                mallopt(parameter, c_int::try_from(value).unwrap_or(c_int::MAX));
            }
        }
    }
}

#[cfg(not(target_env = "gnu"))]
fn tune_allocator() {}

/// Returns freed memory to the system. glibc by itself returns only the free memory at the top of each heap.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the C library has no safe interface for this")]
fn release_memory() {
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> std::ffi::c_int;
    }
    // SAFETY: malloc_trim changes only free memory of the allocator, under its locks. It may be called from any thread.
    unsafe {
        malloc_trim(0);
    }
}

#[cfg(not(target_env = "gnu"))]
fn release_memory() {}
