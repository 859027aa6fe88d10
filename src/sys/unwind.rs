//! Nobody unwinds: stand-ins for the library that would.
//!
//! The release profile aborts on a panic, and the static binary has no unwinding tables (`src/no-unwind.ld`), so that the library could not find a single
//! frame. But the standard library names its functions for backtraces and for `catch_unwind`, and so the linker takes all of it: 48 KB. With
//! these it takes none. The functions are those of the Itanium C++ ABI for exception handling, level 1.

use std::ffi::{c_int, c_void};

/// `_URC_END_OF_STACK`: there is no frame.
const END_OF_STACK: c_int = 5;

/// `_URC_FATAL_PHASE1_ERROR`: nothing is raised.
const FATAL_ERROR: c_int = 3;

macro_rules! stand_ins {
    ($($name:ident($($argument:ty),*) -> $result:ty = $value:expr;)*) => {
        $(
            // SAFETY: the name is that of the library's function, whose place this takes; it does nothing.
            #[unsafe(no_mangle)]
            extern "C" fn $name($(_: $argument),*) -> $result {
                $value
            }
        )*
    };
}

stand_ins! {
    _Unwind_Backtrace(*const c_void, *mut c_void) -> c_int = END_OF_STACK;
    _Unwind_RaiseException(*mut c_void) -> c_int = FATAL_ERROR;
    _Unwind_DeleteException(*mut c_void) -> () = ();
    _Unwind_GetIP(*mut c_void) -> usize = 0;
    _Unwind_GetIPInfo(*mut c_void, *mut c_int) -> usize = 0;
    _Unwind_GetCFA(*mut c_void) -> usize = 0;
    _Unwind_GetRegionStart(*mut c_void) -> usize = 0;
    _Unwind_GetTextRelBase(*mut c_void) -> usize = 0;
    _Unwind_GetDataRelBase(*mut c_void) -> usize = 0;
    _Unwind_GetLanguageSpecificData(*mut c_void) -> *const c_void = std::ptr::null();
    _Unwind_FindEnclosingFunction(*mut c_void) -> *const c_void = std::ptr::null();
    _Unwind_SetGR(*mut c_void, c_int, usize) -> () = ();
    _Unwind_SetIP(*mut c_void, usize) -> () = ();
    _Unwind_Resume(*mut c_void) -> ! = std::process::abort();
}
