//! The unwinder, left out.
//!
//! With `panic = "abort"` nothing ever unwinds, and the release binary has no tables to do it with (`no-unwind.ld`). What is left that asks
//! for an unwinder is the backtrace that the standard library prints when a thread panics. With this answer, which the optimizer sees, that
//! goes from the binary too, with its readers of debug information and of mangled names: about a fifth of it.

use std::ffi::{c_int, c_void};

/// `_URC_END_OF_STACK`: there is nothing more to walk.
const END_OF_STACK: c_int = 5;

/// `_Unwind_Backtrace` of the Itanium C++ ABI: calls `frame` for every frame of the stack; here for none.
// SAFETY: the name is the ABI's, and the standard library, its only caller here, takes this answer for an empty stack.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Backtrace(_frame: *const c_void, _argument: *mut c_void) -> c_int {
    END_OF_STACK
}

// The rest of what stands in one object file with it, and is named by code that nobody calls: without them the linker would take that file,
// and find the one above twice.

#[unsafe(no_mangle)]
extern "C" fn _Unwind_GetCFA(_context: *mut c_void) -> usize {
    0
}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_GetIPInfo(_context: *mut c_void, _before: *mut c_int) -> usize {
    0
}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_GetTextRelBase(_context: *mut c_void) -> usize {
    0
}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_GetDataRelBase(_context: *mut c_void) -> usize {
    0
}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_FindEnclosingFunction(_pc: *mut c_void) -> *mut c_void {
    std::ptr::null_mut()
}

// What the standard library was compiled with, and never gets to: clean-up on the way of a panic, which here ends the program before.

#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume(_exception: *mut c_void) -> ! {
    std::process::abort()
}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_GetLanguageSpecificData(_context: *mut c_void) -> *const c_void {
    std::ptr::null()
}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_GetRegionStart(_context: *mut c_void) -> usize {
    0
}
