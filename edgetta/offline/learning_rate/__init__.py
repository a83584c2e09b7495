"""Learning rates from curvature: batch eigenvalues, their law over batch size, stable rates, and a learner."""

from edgetta.offline.learning_rate.analysis import (
    AdamReference,
    LearningRateAnalysis,
    Row,
    analyse_learning_rate,
    load_rows,
)
from edgetta.offline.learning_rate.damping import DampingLaw, DampingPoint, fit_damping
from edgetta.offline.learning_rate.fit import FormFit, Support, fit_form, fit_forms
from edgetta.offline.learning_rate.interval import Interval
from edgetta.offline.learning_rate.ladder import BatchExtremes, Ladder, draw_batches, measure_ladder
from edgetta.offline.learning_rate.learner import PUBLISHED, LearnerConfig, LearningRateLearner, Refresh
from edgetta.offline.learning_rate.plot import plot_eigenvalues, plot_rates
from edgetta.offline.learning_rate.prediction import Prediction, WholeCurvature, measure_whole
from edgetta.offline.learning_rate.random_matrix import (
    Bulk,
    marchenko_pastur_largest,
    marchenko_pastur_outlier,
    perturbed_extreme,
    sampling_share,
    wigner_crossover,
    wigner_extremes,
)
from edgetta.offline.learning_rate.rates import (
    divergence_rate,
    gauss_newton_damping,
    gradient_descent_rate,
    heavy_ball_rate,
    mean_square_rate,
    moving_average_rate,
    nesterov_rate,
    square_root_rate,
)
from edgetta.offline.learning_rate.sharpness import BatchSharpness, batch_sharpness
from edgetta.offline.learning_rate.threshold import (
    Threshold,
    Trial,
    bisect,
    diverges,
    gauss_newton_step,
    optimizer_step,
    stable_damping,
    stable_rate,
)
from edgetta.offline.learning_rate.variance import (
    DirectionalVariance,
    HessianVariance,
    directional_variance,
    hessian_variance,
)
from edgetta.rate_law import RateLaw

__all__ = [
    "PUBLISHED",
    "AdamReference",
    "BatchExtremes",
    "BatchSharpness",
    "Bulk",
    "DampingLaw",
    "DampingPoint",
    "DirectionalVariance",
    "FormFit",
    "HessianVariance",
    "Interval",
    "Ladder",
    "LearnerConfig",
    "LearningRateAnalysis",
    "LearningRateLearner",
    "Prediction",
    "RateLaw",
    "Refresh",
    "Row",
    "Support",
    "Threshold",
    "Trial",
    "WholeCurvature",
    "analyse_learning_rate",
    "batch_sharpness",
    "bisect",
    "directional_variance",
    "divergence_rate",
    "diverges",
    "draw_batches",
    "fit_damping",
    "fit_form",
    "fit_forms",
    "gauss_newton_damping",
    "gauss_newton_step",
    "gradient_descent_rate",
    "heavy_ball_rate",
    "hessian_variance",
    "load_rows",
    "marchenko_pastur_largest",
    "marchenko_pastur_outlier",
    "mean_square_rate",
    "measure_ladder",
    "measure_whole",
    "moving_average_rate",
    "nesterov_rate",
    "optimizer_step",
    "perturbed_extreme",
    "plot_eigenvalues",
    "plot_rates",
    "sampling_share",
    "square_root_rate",
    "stable_damping",
    "stable_rate",
    "wigner_crossover",
    "wigner_extremes",
]
