"""The one jit decorator: results are the same bits on every x86-64 machine, and threads run side by side.

`fastmath=False` keeps LLVM from contracting to FMA or reassociating sums; `nogil` lets a thread pool work;
`error_model="numpy"` makes 0/0 a NaN, as in C.
"""

from numba import njit

kernel = njit(cache=True, nogil=True, fastmath=False, error_model="numpy")
