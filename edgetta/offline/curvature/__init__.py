"""Curvature of a loss surface: operators over a data set, Lanczos, spectral densities, traces."""

from edgetta.offline.curvature.basis import BasisPlan
from edgetta.offline.curvature.data_operator import DataOperator, LinearOperator
from edgetta.offline.curvature.errors import (
    CurvatureError,
    DataSetTooSmallError,
    MemoryLimitError,
    NotFiniteError,
    NotSymmetricError,
    NotTwiceDifferentiableError,
)
from edgetta.offline.curvature.extremes import Eigenpairs, Extremes, extreme_eigenpairs
from edgetta.offline.curvature.lanczos import LanczosRun, Progress, ProgressCallback, Tridiagonal, run_lanczos
from edgetta.offline.curvature.operators import (
    OPERATORS,
    EmpiricalFisherOperator,
    GaussNewtonOperator,
    HessianOperator,
    PreconditionedOperator,
)
from edgetta.offline.curvature.parallel import Processes, launched_processes
from edgetta.offline.curvature.plot import plot_spectrum
from edgetta.offline.curvature.results import describe, load_spectrum, save_spectrum
from edgetta.offline.curvature.samples import DatasetSamples, Samples, TensorSamples, as_samples
from edgetta.offline.curvature.solve import solve_damped
from edgetta.offline.curvature.spectrum import Density, Spectrum, measure_spectrum
from edgetta.offline.curvature.surface import LossSurface, select_parameters
from edgetta.offline.curvature.trace import Estimate, Moments, hutchinson

__all__ = [
    "OPERATORS",
    "BasisPlan",
    "CurvatureError",
    "DataOperator",
    "DataSetTooSmallError",
    "DatasetSamples",
    "Density",
    "Eigenpairs",
    "EmpiricalFisherOperator",
    "Estimate",
    "Extremes",
    "GaussNewtonOperator",
    "HessianOperator",
    "LanczosRun",
    "LinearOperator",
    "LossSurface",
    "MemoryLimitError",
    "Moments",
    "NotFiniteError",
    "NotSymmetricError",
    "NotTwiceDifferentiableError",
    "PreconditionedOperator",
    "Processes",
    "Progress",
    "ProgressCallback",
    "Samples",
    "Spectrum",
    "TensorSamples",
    "Tridiagonal",
    "as_samples",
    "describe",
    "extreme_eigenpairs",
    "hutchinson",
    "run_lanczos",
    "launched_processes",
    "load_spectrum",
    "plot_spectrum",
    "save_spectrum",
    "select_parameters",
    "solve_damped",
    "measure_spectrum",
]
