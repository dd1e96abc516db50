"""Training methods, one file each.

A module in this folder that defines a class with `name`, `Config` (its keys), `uses_unlabeled` and
`uses_teacher` is a method; it needs no other registration. Methods share one interface:

    method = Method(cfg)
    method.start_step(epoch, step, teacher, watched)
                                                 set what depends on the time, and whether the
                                                 predictions of this step will be looked at
    terms = method(student, teacher, x, u, v)    named scalar losses, and what there is to watch
    method.counts(x, u, v)                       {loss or share: pixels that it is a mean over}
    loss = method.total(terms.losses)            the weighted sum, with the paper's coefficients
    method.keep_rate                             the EMA's alpha after the step, with a teacher
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
    """What a method computes in one step. All but the losses is without gradient and optional.

    Branches are called `feature`, `image1`, `image2`: the weak view's features, the mixed strong
    views. Predictions are the student's, of the views `weak`, `strong1`, `strong2` of `u` and
    `labeled` of `x`.
    """
    losses: Dict[str, torch.Tensor]             # named scalars with gradient, summed by `total`
    shares: Dict[str, torch.Tensor] = {}        # named scalars, for the log
    labels: Dict[str, PseudoLabels] = {}        # by branch, (B, H, W) each
    predictions: Dict[str, torch.Tensor] = {}   # by view, classes (B, H, W); if watched


def all_methods():
    """{name: class} of every method in this folder."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        content = importlib.import_module(f'{__name__}.{module.name}')
        for value in vars(content).values():
            if isinstance(value, type) and value.__module__ == content.__name__ \
                    and 'name' in vars(value) and hasattr(value, 'Config'):
                found[value.name] = value
    return found


def find(name, place):
    """The method class called `name`; `place` is where the name was written, for the error."""
    methods = all_methods()
    if not isinstance(name, str) or name not in methods:
        by_lower = {known.lower(): known for known in methods}
        close = difflib.get_close_matches(name[:100].lower(), by_lower, n=1) \
            if isinstance(name, str) else []
        hint = f" (did you mean '{by_lower[close[0]]}'?)" if close else ''
        raise UserError(f"{place}: method = {shown(name)} is not known{hint}; allowed: "
                        f"{', '.join(sorted(methods))}")
    return methods[name]
