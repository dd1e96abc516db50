"""DSSN: semi-supervised semantic segmentation with a dual-level Siamese structure network.

`dssn.load('best.pth')` loads a trained network, see `dssn.inference.network`.
"""
import importlib

__version__ = '0.1.0'
# Names that are imported when they are first used: importing PyTorch takes seconds.
_LATER = {'load': 'dssn.inference.network', 'Network': 'dssn.inference.network',
          'UserError': 'dssn.errors'}
__all__ = ['Network', 'UserError', '__version__', 'load']


def __getattr__(name):
    if name not in _LATER:
        raise AttributeError(f"module 'dssn' has no attribute '{name}'")
    return getattr(importlib.import_module(_LATER[name]), name)


def __dir__():
    return sorted({*globals(), *_LATER})
