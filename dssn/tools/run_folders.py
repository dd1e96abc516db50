"""Reads the folders of trained runs, and groups runs that may be averaged into rows."""
import itertools
import json
import os
import re
import statistics
from typing import Any, Dict, List, NamedTuple

from dssn import config, methods
from dssn.errors import UserError
from dssn.run import metrics
from dssn.run.folder import ASIDE
from dssn.tools.experiments import oracles  # noqa: F401, registers its methods

LISTS = ('labeled', 'unlabeled', 'val', 'select_on')
SCORED_BY = ('val', 'protocol', 'absent')  # scores are comparable where these facts are the same
NOT_RECORDED = 'not recorded'


class RunRecord(NamedTuple):
    """What the folder of a run has recorded."""
    folder: str
    seed: int
    epochs: int               # in total, as configured
    evaluations: List[dict]   # those that are comparable, see `metrics.comparable`
    summary: dict             # of the evaluations so far, see `metrics.summarise`
    dataset: str
    method: str
    settings: Dict[str, Any]  # the config keys that affect the result, without the seed
    facts: Dict[str, Any]     # lists, protocol, ...: runs of a row have the same; None: has none
    lists: Dict[str, str]     # {role: text}
    labeled_images: int       # of a step, over all processes

    @property
    def finished(self):
        return self.summary['epoch'] >= self.epochs


class RowScores(NamedTuple):
    """mIoU of a network over the runs of a row, in percent; deviations are None for one run."""
    best: float
    best_deviation: float
    last: float
    last_deviation: float
    best_epochs: List[int]


class Row(NamedTuple):
    """Runs that are averaged, in the order of their seeds."""
    number: int              # from 1
    runs: List[RunRecord]
    differs: Dict[str, str]  # {key: value} that other rows of the data set have differently

    @property
    def first(self):
        return self.runs[0]


# Reading.

def find_runs(folders):
    """(runs, folders of runs without an evaluation) in some folders and below them, each once.

    Raises:
        UserError: a folder does not exist, holds no run, or its files cannot be read.
    """
    paths = {os.path.realpath(path): path for folder in folders for path in run_folders(folder)}
    runs = {path: read_run(path) for path in paths.values()}
    return [run for run in runs.values() if run], [path for path, run in runs.items() if not run]


def run_folders(folder):
    """The folders of runs at or below `folder`, without those that --fresh has moved aside."""
    if not os.path.isdir(folder):
        raise UserError(f'{folder}: no such folder; name folders that training wrote, or their '
                        'parent folders')
    found = [path for path, _, files in sorted(os.walk(folder))
             if 'config.yaml' in files and 'metrics.jsonl' in files
             and (path == folder or not os.path.basename(path).startswith(ASIDE))]
    if not found:
        raise UserError(f'{folder}: holds no run (a folder with config.yaml and metrics.jsonl); '
                        'name folders that training wrote, or their parent folders')
    return found


def read_run(folder):
    """The `RunRecord` of a folder, or None before the run's first evaluation."""
    cfg = config.load(os.path.join(folder, 'config.yaml'))
    path = os.path.join(folder, 'metrics.jsonl')
    evaluations = metrics.evaluations(metrics.read(path), path)
    if not evaluations:
        return None
    summary = metrics.summarise(evaluations, cfg.protocol)
    lists = list_identities(cfg, evaluations, path)
    window = '' if summary['protocol'] == 'original' else f' {cfg.crop_size}'
    facts = {role: known['sha256'] for role, known in lists.items()}
    facts.update(protocol=summary['protocol'] + window, absent=summary['absent'],
                 processes=summary['processes'] or NOT_RECORDED)
    compared = cfg.keys('result')
    settings = {key: value for key, value in config.to_dict(cfg).items() if key in compared}
    settings['eval_amp'] = evaluations[-1].get('eval_amp', settings['eval_amp'])
    # Each run may start from the run of its own seed: that is not a different setting.
    settings['init_from'] = re.sub(rf'seed{cfg.seed}(?!\d)', 'seed*', settings['init_from'])
    return RunRecord(folder, cfg.seed, cfg.epochs, metrics.comparable(evaluations), summary,
                     cfg.dataset, cfg.method, settings, facts,
                     {role: list_text(known) for role, known in lists.items()},
                     cfg.labeled_images * (summary['processes'] or 1))


def list_identities(cfg, evaluations, path):
    """{role: {text, sha256, ...}} of the lists of a run; the path replaces an unknown SHA-256.

    Raises:
        UserError: a list changed between two evaluations, so the scores belong to neither list.
            Lists to evaluate on may change if the evaluations are not compared.
    """
    for lines, roles in ((evaluations, LISTS[:2]), (metrics.comparable(evaluations), LISTS[2:])):
        recorded = [line['lists'] for line in lines if line.get('lists')]
        for role, lists in itertools.product(roles, recorded):
            if role in lists and \
                    lists[role]['sha256'] != recorded[0].get(role, {}).get('sha256'):
                raise UserError(f'{path}: the {role} list changed after the run was resumed; such '
                                'a run cannot be compared with others: move it elsewhere')
    known = recorded[0] if recorded else {}  # of the evaluations that are compared
    paths = cfg.list_paths
    if not methods.reads_unlabeled(methods.find(cfg.method, path)):
        paths.pop('unlabeled', None)
    # Without a select_on list, val selects the best weights.
    found = {'unlabeled': {'text': 'none', 'sha256': None},
             'select_on': {'text': 'val', 'sha256': 'val'}}
    if known:  # the config may name lists on which the run has not been evaluated yet
        paths = {role: paths[role] for role in paths if role in LISTS[:2] or role in known}
    for role, listed in paths.items():
        unknown = {'text': f'{listed} (ids {NOT_RECORDED})', 'sha256': f'path {listed}'}
        found[role] = known.get(role, unknown)
    return found


def list_text(known):
    """A list in words. Two generated lists have different texts."""
    if known['text'].startswith('generated'):
        return f"{known['text']} ({known['lines']} lines, sha256 {known['sha256'][:12]})"
    return known['text']


# Averaging.

def make_rows(runs):
    """The `Row`s of some runs, in the order in which the first run of each row comes.

    Finished runs share a row if they differ in nothing but the seed. An unfinished run has a row of
    its own.
    """
    kinds = {}
    for run in runs:
        alone = None if run.finished else run.folder
        kind = json.dumps([run.dataset, run.method, run.settings, run.facts, alone], sort_keys=True)
        kinds.setdefault(kind, []).append(run)
    groups = [sorted(group, key=lambda run: run.seed) for group in kinds.values()]
    first = [group[0] for group in groups]
    return [Row(number, group, differences(group[0], first))
            for number, group in enumerate(groups, 1)]


def differences(run, others):
    """{key: text} of the settings and facts in which runs of this run's data set differ.

    The labeled list is left out: it has a column of its own. The unlabeled list is compared among
    runs with the same labeled list only.
    """
    peers = [other for other in others if other.dataset == run.dataset]
    found = {}
    for key, value in {**run.facts, **run.settings}.items():
        if key == 'unlabeled':
            values = [o.facts[key] for o in peers if o.facts['labeled'] == run.facts['labeled']]
        else:
            values = [{**o.facts, **o.settings}.get(key) for o in peers]
        if key != 'labeled' and value is not None and differ(values):
            found[key] = run.lists[key] if key in LISTS else \
                value if isinstance(value, str) else json.dumps(value)
    return found


def differ(values):
    """Whether two of the values are different; None is ignored."""
    return len({json.dumps(value, sort_keys=True) for value in values if value is not None}) > 1


def row_scores(row, role):
    """The `RowScores` of a network; None where the method has no such network."""
    if any(run.summary['best'][role] is None for run in row.runs):
        return None
    best = [run.summary['best'][role] for run in row.runs]
    last = [run.summary['last'][role]['miou'] for run in row.runs]
    return RowScores(*mean_and_deviation([entry['miou'] for entry in best]),
                     *mean_and_deviation(last), [entry['epoch'] for entry in best])


def mean_and_deviation(values):
    """(mean, sample standard deviation); the deviation of a single value is None."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def curve(row, role):
    """mIoU of a network over optimizer steps, at the steps where all runs of a row were evaluated.

    Returns:
        (steps, means, deviations), lists; deviations hold None for a single run. None where the
        method has no such network.
    """
    if row_scores(row, role) is None:
        return None
    known = [{line['iteration']: line[role] for line in run.evaluations} for run in row.runs]
    steps = sorted(set.intersection(*map(set, known)))
    points = [mean_and_deviation([one[step] for one in known]) for step in steps]
    return steps, [mean for mean, _ in points], [deviation for _, deviation in points]
