"""The progress of a planned run, from its own folder or from its kept records."""
import os
from typing import NamedTuple

from dssn import config
from dssn.data.identity import identify
from dssn.errors import UserError
from dssn.run import metrics
from dssn.tools.experiments.portable import portable

FINISHED = ('done', 'kept')  # states of runs with complete records


class RunProgress(NamedTuple):
    """The state of a run, the finished epochs, the last evaluation, and the folder of its records.

    state: 'to do', 'started', 'done', or 'kept': finished, but only config.yaml and metrics.jsonl
        exist, in another folder, so there are no weights.
    """
    state: str
    epoch: int = 0
    last: dict = {}
    folder: str = ''


def progress_of(run):
    """The `RunProgress` of a planned run. Kept records are used where its own folder is not done.

    Raises:
        UserError: the folder holds a run with other settings, lists or processes.
    """
    found = progress_in_folder(run)
    return found if found.state == 'done' else progress_in_kept(run) or found


def progress_in_folder(run):
    """The `RunProgress` by the run's own folder. A run that is 'done' has its weights there."""
    if not holds_run(run.folder):
        return RunProgress('to do', folder=run.folder)
    return read_progress(run, run.folder)


def progress_in_kept(run):
    """The `RunProgress` by the kept records; None if there are none or they are ignored."""
    if not run.kept or not holds_run(run.kept):
        return None
    # Kept records contain no paths of the machine that trained the run.
    kept = read_progress(run._replace(cfg=portable(run.cfg, run.out)), run.kept)
    if kept.state != 'done':
        raise UserError(f'{run.kept}: its records end before the run does (epoch {kept.epoch} of '
                        f'{run.cfg.epochs}); only finished runs are kept: restore the files, or '
                        'remove the folder')
    return kept._replace(state='kept')


def holds_run(folder):
    return all(os.path.exists(os.path.join(folder, name))
               for name in ('metrics.jsonl', 'config.yaml'))


def read_progress(run, folder):
    """The `RunProgress` of a planned run by the records in `folder`."""
    path = os.path.join(folder, 'metrics.jsonl')
    records = metrics.read(path)
    evaluations = metrics.evaluations(records, path)
    if not evaluations:
        return RunProgress('started', folder=folder)
    require_same_settings(run, config.load(os.path.join(folder, 'config.yaml')), evaluations[-1],
                          folder)
    is_done = records[-1]['kind'] == 'summary' and records[-1]['epoch'] >= run.cfg.epochs
    return RunProgress('done' if is_done else 'started', evaluations[-1]['epoch'], evaluations[-1],
                    folder)


def require_same_settings(run, cfg, last, folder):
    """Raise a UserError if the run in a folder differs from the planned one.

    Args:
        cfg: config of the run in the folder. last: its last evaluation.
    """
    now = {**config.to_dict(run.cfg), 'processes': run.processes}
    then = {**config.to_dict(cfg), 'processes': last.get('processes', run.processes)}
    changed = [f'{name} was {then.get(name)!r}, is {now.get(name)!r}'
               for name in sorted({*now, *then})
               if name not in run.cfg.keys('none') and now.get(name) != then.get(name)]
    paths = run.cfg.list_paths
    changed += [f'the {role} list has changed' for role, known in last.get('lists', {}).items()
                if role in paths and identify(paths[role]).sha256 != known['sha256']]
    if changed:
        ways = 'Move it away, or give the experiment another exp'
        if folder == run.kept:
            ways = ('Give the experiment another exp, or ignore kept runs with --kept none '
                    '(for `keep`: choose another folder with --to)')
        raise UserError(f'{folder}: holds a run with other settings than {run.name}: '
                        f"{'; '.join(changed)}. {ways}")
