"""Training methods, one file each.

A class in this folder with `name`, `Config` (its keys), `uses_unlabeled` and `uses_teacher` is a
method. It needs no registration. `register` adds classes from elsewhere: the oracles of
`dssn/tools/experiments/oracles.py`, which train on masks that no method may read. `find` returns
them by name, but `all_methods` does not list them. All share one interface:

    method = build(cfg)
    method.start_step(epoch, step, teacher, watched)
                                          called before each step: set what depends on the time;
                                          `watched`: return the predictions of this step
    terms = method(student, teacher, labeled, unlabeled, partner)
                                          named scalar losses, and values for the log, see `Terms`
    loss = method.total(terms.losses)     the weighted sum, with the paper's coefficients
    method.keep_rate                      the EMA's alpha after the step, with a teacher
"""
import difflib
import importlib
import pkgutil
from typing import Dict, NamedTuple

import torch

from dssn.errors import UserError
from dssn.pseudo_labels import PseudoLabels
from dssn.yaml_text import shown


class Terms(NamedTuple):
    """The result of a method for one step. All but the losses is optional and without gradient.

    Branches are `feature` (the weak view's features), `image1` and `image2` (the mixed strong
    views). Predictions are the student's, of the views `weak`, `strong1` and `strong2` of unlabeled
    images, and of the `labeled` images.
    """
    losses: Dict[str, torch.Tensor]             # named scalars with gradient, summed by `total`
    fractions: Dict[str, torch.Tensor] = {}     # named scalars, for the log
    labels: Dict[str, PseudoLabels] = {}        # by branch, (B, H, W) each
    predictions: Dict[str, torch.Tensor] = {}   # by view, classes (B, H, W); if watched


def all_methods():
    """{name: class} of every method in this folder."""
    return {one.name: one for one in _classes() if 'name' in vars(one) and hasattr(one, 'Config')}


def build(cfg):
    """The method that a config asks for.

    A class that `ablates` the method takes its place where it `applies` to the config.
    """
    method = find(cfg.method, 'config')
    for one in _classes():
        if vars(one).get('ablates') is method and one.applies(cfg):
            return one(cfg)
    return method(cfg)


def _classes():
    """All classes that the modules of this folder define."""
    for module in pkgutil.iter_modules(__path__):
        content = importlib.import_module(f'{__name__}.{module.name}')
        yield from (value for value in vars(content).values()
                    if isinstance(value, type) and value.__module__ == content.__name__)


_registered = {}


def register(*classes):
    """Make methods known to `find` that are not in this folder."""
    _registered.update({one.name: one for one in classes})


def find(name, place):
    """The method class called `name`; `place` is the origin of the name, for the error."""
    methods = all_methods()
    if isinstance(name, str) and name in _registered:
        return _registered[name]
    if not isinstance(name, str) or name not in methods:
        by_lower = {known.lower(): known for known in methods}
        close = difflib.get_close_matches(name[:100].lower(), by_lower, n=1) \
            if isinstance(name, str) else []
        hint = f" (did you mean '{by_lower[close[0]]}'?)" if close else ''
        raise UserError(f"{place}: method = {shown(name)} is not known{hint}; allowed: "
                        f"{', '.join(sorted(methods))}")
    return methods[name]


def masks_of(method):
    """The list whose masks take the place of pseudo-labels: 'unlabeled', 'labeled' or None.

    It is None for every method. The oracles (`dssn/tools/experiments/oracles.py`) name a list. With
    'labeled' the labeled list also replaces the unlabeled list.
    """
    return getattr(method, 'masks_of', None)


def reads_unlabeled(method):
    """Whether a run with this method reads the unlabeled list."""
    return method.uses_unlabeled and masks_of(method) != 'labeled'
