"""Trained runs as their folders tell of them, in rows of runs that may be averaged."""
import json
import os
import re
import statistics
from typing import Any, Dict, List, NamedTuple

from dssn import config, methods, records
from dssn.engine import FREE_KEYS
from dssn.errors import UserError
from dssn.starting import ASIDE

LISTS = ('labeled', 'unlabeled', 'val', 'select_on')
SCORED_BY = ('val', 'protocol', 'absent')  # facts that scores can only be compared under
NOT_RECORDED = 'not recorded'
# Keys that are compared as facts, or that change no number: colours are for pictures.
NO_SETTINGS = FREE_KEYS + ('seed', 'dataset', 'method', 'colours', 'labeled_id_path',
                           'unlabeled_id_path', 'val_id_path', 'select_on', 'protocol')


class Run(NamedTuple):
    """What a run's folder tells."""
    folder: str
    seed: int
    epochs: int               # that the run is to have
    evaluations: List[dict]
    summary: dict             # of the evaluations so far, see `records.summarise`
    dataset: str
    method: str
    settings: Dict[str, Any]  # the config keys that change a number, without the seed
    facts: Dict[str, Any]     # what else must be alike: lists, protocol, ...; None: has none
    lists: Dict[str, str]     # {role: text}

    @property
    def finished(self):
        return self.summary['epoch'] >= self.epochs


class Scores(NamedTuple):
    """A network's scores over a row's runs; no deviations for a single run."""
    best: float
    best_deviation: float
    last: float
    last_deviation: float
    best_epochs: List[int]


class Row(NamedTuple):
    """Runs of one kind, in order of their seeds."""
    number: int             # from 1
    runs: List[Run]
    differs: Dict[str, str]  # in what the row is unlike others of its data set

    @property
    def first(self):
        return self.runs[0]


# Reading.

def find_runs(folders):
    """(runs, folders of runs without an evaluation) in some folders and below them, each once.

    Raises:
        UserError: a folder that is none, holds no run, or whose files cannot be read.
    """
    paths = {os.path.realpath(path): path for folder in folders for path in run_folders(folder)}
    runs = {path: read_run(path) for path in paths.values()}
    return [run for run in runs.values() if run], [path for path, run in runs.items() if not run]


def run_folders(folder):
    """The folders at or below `folder` that are a run's; not what --fresh moved aside."""
    if not os.path.isdir(folder):
        raise UserError(f'{folder}: no such folder; name folders that training wrote, or above '
                        'them')
    found = [path for path, _, files in sorted(os.walk(folder))
             if 'config.yaml' in files and 'metrics.jsonl' in files
             and (path == folder or not os.path.basename(path).startswith(ASIDE))]
    if not found:
        raise UserError(f'{folder}: holds no run, a folder with config.yaml and metrics.jsonl; '
                        'name folders that training wrote, or above them')
    return found


def read_run(folder):
    """A folder's `Run`, or None before its first evaluation."""
    cfg = config.load(os.path.join(folder, 'config.yaml'))
    path = os.path.join(folder, 'metrics.jsonl')
    evaluations = records.evaluations(records.read(path), path)
    if not evaluations:
        return None
    summary = records.summarise(evaluations, cfg.protocol)
    lists = identities(cfg, evaluations, path)
    window = '' if summary['protocol'] == 'original' else f' {cfg.crop_size}'
    facts = {role: known['sha256'] for role, known in lists.items()}
    facts.update(protocol=summary['protocol'] + window, absent=summary['absent'],
                 processes=summary['processes'] or NOT_RECORDED)
    settings = {key: value for key, value in config.to_dict(cfg).items() if key not in NO_SETTINGS}
    # Runs that each start from the run of their own seed are alike.
    settings['init_from'] = re.sub(rf'seed{cfg.seed}(?!\d)', 'seed*', settings['init_from'])
    return Run(folder, cfg.seed, cfg.epochs, evaluations, summary, cfg.dataset, cfg.method,
               settings, facts, {role: list_text(known) for role, known in lists.items()})


def identities(cfg, evaluations, path):
    """{role: {text, sha256, ...}} of the lists of a run; its path serves for an unknown SHA-256.

    Raises:
        UserError: they changed between two evaluations, so that the run's scores are of neither.
    """
    recorded = [line['lists'] for line in evaluations if line.get('lists')]
    for lists in recorded:
        for role in lists:
            if lists[role]['sha256'] != recorded[0].get(role, {}).get('sha256'):
                raise UserError(f'{path}: the {role} list was another one after the run was '
                                'resumed; such a run is like no other: move it elsewhere')
    known = recorded[0] if recorded else {}
    paths = config.list_paths(cfg)
    if not methods.find(cfg.method, path).uses_unlabeled:
        paths.pop('unlabeled', None)
    # Without a select_on list it is val that selects.
    found = {'unlabeled': {'text': 'none', 'sha256': None},
             'select_on': {'text': 'val', 'sha256': 'val'}}
    for role, listed in paths.items():
        unknown = {'text': f'{listed} (ids {NOT_RECORDED})', 'sha256': f'path {listed}'}
        found[role] = known.get(role, unknown)
    return found


def list_text(known):
    """A list in words that no other list has."""
    if known['text'].startswith('generated'):
        return f"{known['text']} ({known['lines']} lines, sha256 {known['sha256'][:12]})"
    return known['text']


# Averaging.

def make_rows(runs):
    """The `Row`s of some runs, in the order in which the first of each comes.

    Runs of a row are alike in all but the seed, and finished; any other has a row of its own.
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
    """{key: text} of what sets a run apart from some others of its data set.

    The labeled list is left out, and where that differs so does the unlabeled one.
    """
    peers = [other for other in others if other.dataset == run.dataset]
    found = {}
    for key, value in {**run.facts, **run.settings}.items():
        if key == 'unlabeled':
            values = [o.facts[key] for o in peers if o.facts['labeled'] == run.facts['labeled']]
        else:
            values = [{**o.facts, **o.settings}.get(key) for o in peers]
        if key != 'labeled' and value is not None and unlike(values):
            found[key] = run.lists[key] if key in LISTS else \
                value if isinstance(value, str) else json.dumps(value)
    return found


def unlike(values):
    """Whether there are two values that differ; None is no value."""
    return len({json.dumps(value, sort_keys=True) for value in values if value is not None}) > 1


def scores(row, role):
    """The `Scores` of a network over a row's runs; None where the method has no such network."""
    if any(run.summary['best'][role] is None for run in row.runs):
        return None
    best = [run.summary['best'][role] for run in row.runs]
    last = [run.summary['last'][role]['miou'] for run in row.runs]
    return Scores(*mean_and_deviation([entry['miou'] for entry in best]), *mean_and_deviation(last),
                  [entry['epoch'] for entry in best])


def mean_and_deviation(values):
    """(mean, sample standard deviation, which is None of a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def curve(row, role):
    """A network's mIoU over optimizer steps, at those where all of a row's runs were evaluated.

    Returns:
        (steps, means, deviations), lists; deviations hold None for a single run. None where the
        method has no such network.
    """
    if scores(row, role) is None:
        return None
    known = [{line['iteration']: line[role] for line in run.evaluations} for run in row.runs]
    steps = sorted(set.intersection(*map(set, known)))
    points = [mean_and_deviation([one[step] for one in known]) for step in steps]
    return steps, [mean for mean, _ in points], [deviation for _, deviation in points]
