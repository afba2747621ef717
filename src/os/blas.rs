//! The numbers of threads of numerical libraries, as threadpoolctl sets them: by the functions that the libraries export. A
//! library that is linked statically exports none to others, and is not found.

#![expect(unsafe_code, reason = "functions of other libraries, and the environment")]

use core::ffi::{CStr, c_int};
use std::env;

/// The libraries, with the function of each that sets its number of threads. (BLIS takes a long; one register holds either.)
const LIBRARIES: [(&str, &CStr); 6] = [
    ("OpenBLAS", c"openblas_set_num_threads"),
    ("OpenBLAS", c"openblas_set_num_threads64_"),
    ("OpenBLAS", c"scipy_openblas_set_num_threads64_"),
    ("MKL", c"MKL_Set_Num_Threads"),
    ("BLIS", c"bli_thread_set_num_threads"),
    ("OpenMP", c"omp_set_num_threads"),
];

/// The variables by which users say how many threads they want.
const VARIABLES: [&str; 3] = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"];

/// Returns the address of a function of any library that is loaded.
fn find(name: &CStr) -> Option<core::ptr::NonNull<core::ffi::c_void>> {
    // SAFETY: the name ends with a zero byte.
    core::ptr::NonNull::new(unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) })
}

/// Returns the names of the libraries that are loaded.
pub(crate) fn loaded() -> Vec<&'static str> {
    let found = LIBRARIES.iter().filter(|(_, name)| find(name).is_some());
    let mut names: Vec<_> = found.map(|&(library, _)| library).collect();
    names.dedup();
    names
}

/// Returns the variable by which the user has said how many threads are wanted, if one does.
pub(crate) fn asked_for() -> Option<&'static str> {
    VARIABLES.into_iter().find(|name| env::var_os(name).is_some())
}

/// Lets the libraries of this process, and programs that it starts, use so many threads. Called when no other thread runs.
pub(crate) fn limit(threads: usize) {
    for (_, name) in LIBRARIES {
        if let Some(function) = find(name) {
            // SAFETY: the libraries declare these functions so; see above for BLIS.
            let set = unsafe {
                core::mem::transmute::<*mut core::ffi::c_void, unsafe extern "C" fn(i64)>(function.as_ptr())
            };
            // SAFETY: any number above 0 is allowed. The upper half of the register is not looked at where an int is taken.
            unsafe { set(threads.min(c_int::MAX as usize) as i64) };
        }
    }
    for name in VARIABLES {
        // SAFETY: no other thread runs that could read the environment.
        unsafe { env::set_var(name, threads.to_string()) };
    }
}
