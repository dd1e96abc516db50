"""How far a planned run has come, as its folder tells."""
import os
from typing import NamedTuple

from dssn import config, records
from dssn.data.identity import identify
from dssn.engine import FREE_KEYS
from dssn.errors import UserError


class Standing(NamedTuple):
    """A run's state: 'to do', 'started' or 'done'; the epochs done, and the last evaluation."""
    state: str
    epoch: int = 0
    last: dict = {}


def standing(run):
    """The `Standing` of a planned run.

    Raises:
        UserError: its folder holds a run with other settings, lists or processes.
    """
    metrics, path = [os.path.join(run.folder, name) for name in ('metrics.jsonl', 'config.yaml')]
    if not os.path.exists(metrics) or not os.path.exists(path):
        return Standing('to do')
    found = records.read(metrics)
    evaluations = records.evaluations(found, metrics)
    if not evaluations:
        return Standing('started')
    check_alike(run, config.load(path), evaluations[-1])
    is_done = found[-1]['kind'] == 'summary' and found[-1]['epoch'] >= run.cfg.epochs
    return Standing('done' if is_done else 'started', evaluations[-1]['epoch'], evaluations[-1])


def check_alike(run, cfg, last):
    """Raise a UserError unless the run of a folder is the planned one."""
    now = {**config.to_dict(run.cfg), 'processes': run.processes}
    then = {**config.to_dict(cfg), 'processes': last.get('processes', run.processes)}
    changed = [f'{name} was {then.get(name)!r}, is {now.get(name)!r}'
               for name in sorted({*now, *then})
               if name not in FREE_KEYS and now.get(name) != then.get(name)]
    paths = config.list_paths(run.cfg)
    changed += [f'the {role} list has changed' for role, known in last.get('lists', {}).items()
                if role in paths and identify(paths[role]).sha256 != known['sha256']]
    if changed:
        raise UserError(f'{run.folder}: holds a run with other settings than {run.name}: '
                        f"{'; '.join(changed)}. Move it away, or give the experiment another exp")
