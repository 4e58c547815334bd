"""
Fits detectors offline; needs scikit-learn, ``pip install 'innerwatch[fit]'``.

Probes trained by gradient descent need PyTorch, too, ``innerwatch[train]``. Import
from the modules: `probes.fit.recipe` for a whole bundle, `probes.fit.logistic`,
`probes.fit.directions`, `probes.fit.nonlinear`, `probes.fit.mahalanobis` for one
detector, `probes.fit.streamed` for many on a data set larger than memory,
`probes.fit.evaluate`, `probes.fit.select`; `probes.fit.baselines` for comparison.
"""
