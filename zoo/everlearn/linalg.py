"""The LAPACK and BLAS routines behind sums and heads, called so that other threads go on running.

SciPy's own wrappers hold the interpreter lock: a Householder reduction at d = 1280 then stops every request of the
server for some 100 ms, a Cholesky factorisation for 20 (the exact and the quick solve of `python -m tests.benchmarks
learn_cost`). `ctypes` lets go of the lock while it calls; the pointers are the ones that SciPy hands to Cython
(`scipy.linalg.cython_lapack`), so it is the same library and the same bits.

All matrices are float64 and column-major; those that are overwritten must be passed as such. Axes: d rows, K columns.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from types import ModuleType

import numpy as np
import numpy.typing as npt
from scipy.linalg import cython_blas, cython_lapack

Float = npt.NDArray[np.float64]
_Argument = str | int | float | Float | npt.NDArray[np.int32]


def add_gram(lower_dd: Float, rows_Kd: Float, *, sign: float = 1.0, keep: float = 1.0) -> None:
    """lower = keep * lower + sign * rows^T rows, in place on the lower triangle (dsyrk); no rows, no change."""
    rows_Kd = np.ascontiguousarray(rows_Kd, np.float64)  # read as its transpose, column-major
    count, dim = rows_Kd.shape
    if count:
        _call(cython_blas, "dsyrk", "L", "N", dim, count, sign, rows_Kd, dim, keep, _column_major(lower_dd), dim)


def factor_cholesky(lower_dd: Float) -> None:
    """A becomes its Cholesky factor, in place on the lower triangle (dpotrf). Raises LinAlgError unless A > 0."""
    dim, info = len(lower_dd), _int(0)
    _call(cython_lapack, "dpotrf", "L", dim, _column_major(lower_dd), dim, info)
    _check(info, "dpotrf: not positive definite")


def solve_cholesky(factor_dd: Float, target_dK: Float) -> Float:
    """A^-1 target, from A's Cholesky factor (dpotrs)."""
    solution_dK = np.array(target_dK, np.float64, order="F")
    dim, info = len(factor_dd), _int(0)
    count = solution_dK.shape[1]
    _call(cython_lapack, "dpotrs", "L", dim, count, _column_major(factor_dd), dim, solution_dK, dim, info)
    _check(info, "dpotrs")
    return solution_dK


def solve_triangular(factor_dd: Float, target_dK: Float, *, transposed: bool = False) -> Float:
    """L^-1 target, or L^-T target, from A's Cholesky factor L (dtrtrs)."""
    solution_dK = np.array(target_dK, np.float64, order="F")
    (dim, count), info = solution_dK.shape, _int(0)
    if count:
        matrix = (dim, count, _column_major(factor_dd), dim, solution_dK, dim, info)
        _call(cython_lapack, "dtrtrs", "L", "T" if transposed else "N", "N", *matrix)
        _check(info, "dtrtrs")
    return solution_dK


class Tridiagonal:
    """A = H T H^T with H orthogonal (as Householder reflectors) and T tridiagonal; overwrites A (dsytrd)."""

    def __init__(self, lower_dd: Float) -> None:
        dim = len(lower_dd)
        self._diagonal_d, self._beside, self._tau = np.empty(dim), np.empty(max(dim - 1, 1)), np.zeros(max(dim - 1, 1))
        self._reflectors_dd = _column_major(lower_dd)
        matrix = ("L", dim, self._reflectors_dd, dim, self._diagonal_d, self._beside, self._tau)
        self._with_workspace("dsytrd", matrix)
        if dim == 1:
            self._beside[:] = 0.0

    def eigenvalues(self) -> Float:
        """Of A, ascending; those that rounding made negative are 0 (dsterf)."""
        values_d, info = self._diagonal_d.copy(), _int(0)
        _call(cython_lapack, "dsterf", values_d.size, values_d, self._beside.copy(), info)
        _check(info, "dsterf")
        return np.maximum(values_d, 0.0)

    def solve(self, rotated_dK: Float, ridge: float) -> Float:
        """(T + ridge I)^-1 rotated (dptsv). Raises LinAlgError unless T + ridge I > 0."""
        solution_dK, info = np.array(rotated_dK, np.float64, order="F"), _int(0)
        dim, count = solution_dK.shape
        diagonal_d = self._diagonal_d + ridge
        _call(cython_lapack, "dptsv", dim, count, diagonal_d, self._beside.copy(), solution_dK, dim, info)
        _check(info, "dptsv: not positive definite")
        return solution_dK

    def rotate(self, columns_dK: Float) -> Float:
        """H^T columns (dormtr)."""
        return self._apply(columns_dK, "T")

    def rotate_back(self, columns_dK: Float) -> Float:
        """H columns (dormtr)."""
        return self._apply(columns_dK, "N")

    def _apply(self, columns_dK: Float, transpose: str) -> Float:
        result_dK = np.array(columns_dK, np.float64, order="F")
        dim, count = result_dK.shape
        if dim > 1 and count:
            reflectors = (self._reflectors_dd, dim, self._tau)
            self._with_workspace("dormtr", ("L", "L", transpose, dim, count, *reflectors, result_dK, dim))
        return result_dK

    @staticmethod
    def _with_workspace(name: str, arguments: tuple[_Argument, ...]) -> None:
        """Asks the routine how much workspace it likes, then calls it with that."""
        asked, info = np.empty(1), _int(0)
        _call(cython_lapack, name, *arguments, asked, -1, info)
        workspace = np.empty(max(1, int(asked[0])))
        _call(cython_lapack, name, *arguments, workspace, workspace.size, info)
        _check(info, name)


def _column_major(matrix_dd: Float) -> Float:
    assert matrix_dd.flags.f_contiguous, "LAPACK works in place on column-major matrices"
    assert matrix_dd.dtype == np.float64
    return matrix_dd


def _int(value: int) -> npt.NDArray[np.int32]:
    return np.full(1, value, np.int32)


def _check(info: npt.NDArray[np.int32], routine: str) -> None:
    if info[0] != 0:
        raise np.linalg.LinAlgError(f"{routine} (info {info[0]})")


def _call(library: ModuleType, name: str, *arguments: _Argument) -> None:
    """Fortran passes everything by reference; `held` keeps what is pointed at alive until the call returns."""
    held = [_referenced(argument) for argument in arguments]
    _routine(library, name)(*(pointer for pointer, _ in held))


def _referenced(argument: _Argument) -> tuple[ctypes.c_void_p, object]:
    if isinstance(argument, np.ndarray):
        return ctypes.c_void_p(argument.ctypes.data), argument
    owner: ctypes.c_char | ctypes.c_int | ctypes.c_double
    if isinstance(argument, str):
        owner = ctypes.c_char(argument.encode())
    elif isinstance(argument, int):
        owner = ctypes.c_int(argument)
    else:
        owner = ctypes.c_double(argument)
    return ctypes.c_void_p(ctypes.addressof(owner)), owner


@functools.cache
def _routine(library: ModuleType, name: str) -> Callable[..., None]:
    """The C function behind a PyCapsule; its name is its signature, which tells the number of arguments."""
    capsule = library.__pyx_capi__[name]
    name_of = ctypes.pythonapi.PyCapsule_GetName
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    signature: bytes = name_of(capsule)
    prototype = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (signature.count(b",") + 1))
    return prototype(pointer_of(capsule, signature))
