"""
Fits detectors offline; needs scikit-learn, ``pip install 'innerwatch[fit]'``.

Import from the modules: `probes.fit.recipe`, `probes.fit.logistic`,
`probes.fit.mahalanobis`, `probes.fit.evaluate`, `probes.fit.select`.
"""
