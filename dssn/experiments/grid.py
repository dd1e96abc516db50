"""An experiment's file, and the grid of runs that it describes.

    about: what it shows, for the page of results
    config: configs/camvid.yaml    of all runs
    exp: camvid                    first part of the runs' names; the file's name where it is left
                                   out. Experiments that share it share the runs that are alike
    splits: [1_8]                  splits/<dataset>/<split>/labeled.txt and unlabeled.txt
    seeds: [1, 2, 3]
    processes: 1                   of each run
    after: experiments/first.yaml  an experiment whose runs are trained before
    settings: {epochs: 40}         config keys of all runs whose method has them; {out}, {split} and
                                   {seed} in a text stand for the run's own
    variants:                      config keys of some of the runs; `method` is DSSN if left out
      supervised: {method: supervised}
      no contrast: {contrast: false}
    reference: supervised          variant that the page of results subtracts from the others
    findings: what they show       for the page of results
    published: [pascal_resnet101]  of experiments/published.yaml, for the page of results

A run is a variant on a split with a seed. All runs on a split make the same number of optimizer
steps: a method without unlabeled images gets `epoch_steps` to that end and, where a variant sets no
`batch_size`, twice the batch.
"""
import dataclasses
import json
import os
import re
from typing import Any, Dict, List, NamedTuple

from dssn import config, methods
from dssn.data.lists import read_list
from dssn.errors import UserError
from dssn.yaml_text import read_mapping

KEYS = ('about', 'config', 'exp', 'splits', 'seeds', 'processes', 'after', 'settings', 'variants',
        'reference', 'findings', 'published')
# Keys of a run's config that the grid decides.
DECIDED = ('dataset', 'seed', 'save_path', 'epoch_steps')
NAME = re.compile(r'[A-Za-z0-9_.+-]+')


class Experiment(NamedTuple):
    """An experiment's file, checked."""
    path: str
    about: str
    config: str
    exp: str
    splits: List[str]
    seeds: List[int]
    processes: int
    after: str
    settings: Dict[str, Any]
    variants: Dict[str, Dict[str, Any]]
    reference: str
    findings: str
    published: List[str]

    @property
    def name(self):
        return os.path.splitext(os.path.basename(self.path))[0]


class Planned(NamedTuple):
    """A run of the grid."""
    variant: str
    split: str
    seed: int
    cfg: Any                # resolved
    config: str             # its file
    assignments: List[str]  # 'key=value', what the grid adds to the file
    exp: str                # the run's name, as scripts/train.sh has it
    out: str                # folder above all runs
    processes: int
    steps: int              # optimizer steps

    @property
    def name(self):
        return f'{self.variant}, split {self.split}, seed {self.seed}'

    @property
    def folder(self):
        return self.cfg.save_path


# Reading.

def read(path):
    """The `Experiment` in a file; raises a UserError that names the file and the key."""
    content = read_mapping(path)
    for key in content:
        if key not in KEYS:
            raise UserError(f"{path}: unknown key '{key}'; known keys: {', '.join(KEYS)}")
    for key in ('config', 'splits', 'seeds', 'variants'):
        if not content.get(key):
            raise UserError(f"{path}: key '{key}' is missing; see experiments/shapes.yaml")
    variants = mapping(path, 'variants', content['variants'])
    experiment = Experiment(
        path, flowing(content.get('about')), str(content['config']),
        str(content.get('exp') or os.path.splitext(os.path.basename(path))[0]),
        [plain(path, 'splits', str(split)) for split in items(path, 'splits', content['splits'])],
        [whole(path, 'seeds', seed, 0) for seed in items(path, 'seeds', content['seeds'])],
        whole(path, 'processes', content.get('processes', 1), 1), str(content.get('after') or ''),
        mapping(path, 'settings', content.get('settings') or {}),
        {plain(path, 'variants', str(name)): mapping(path, f'variants: {name}', keys or {})
         for name, keys in variants.items()},
        str(content.get('reference') or ''), flowing(content.get('findings')),
        [str(name) for name in items(path, 'published', content.get('published') or [])])
    plain(path, 'exp', experiment.exp)
    if experiment.reference and experiment.reference not in experiment.variants:
        raise UserError(f"{path}: reference: '{experiment.reference}' is none of the variants: "
                        f"{', '.join(experiment.variants)}")
    for key in experiment.settings:
        if key == 'method':
            raise UserError(f'{path}: settings: method is for variants to choose')
    return experiment


def flowing(text):
    """A text whose lines are paragraphs, as YAML's folded style (>) gives it, as Markdown."""
    paragraphs = [' '.join(line.split()) for line in str(text or '').split('\n')]
    return '\n\n'.join(paragraph for paragraph in paragraphs if paragraph)


def mapping(path, key, value):
    if not isinstance(value, dict) or not all(isinstance(name, (str, int)) for name in value):
        raise UserError(f'{path}: {key} = {value!r} must be a mapping of config keys')
    return value


def items(path, key, value):
    if not isinstance(value, list) or len(set(map(str, value))) < len(value):
        raise UserError(f'{path}: {key} = {value!r} must be a list, each item once')
    return value


def whole(path, key, value, low):
    if type(value) is not int or value < low:
        raise UserError(f'{path}: {key}: {value!r} must be a whole number, at least {low}')
    return value


def plain(path, key, value):
    """A name that folders are called by."""
    if not NAME.fullmatch(value):
        raise UserError(f"{path}: {key}: '{value}' must be a plain name of letters, digits, '_', "
                        "'-', '+' and '.'")
    return value


# The grid.

def plan(experiment, out='exp', assignments=()):
    """The runs of an experiment, seed by seed, so that all variants come early.

    Args:
        out: folder above all runs. assignments: strings `key=value` for all runs whose method has
            the key; they win over the experiment's settings.

    Raises:
        UserError: whatever is wrong with keys, config or lists; or runs of unlike length.
    """
    extra = dict(config.parse_assignment(text) for text in assignments)
    experiment = experiment._replace(settings={**experiment.settings, **extra})
    check_keys(experiment)
    return [plan_run(experiment, out, variant, split, seed) for seed in experiment.seeds
            for split in experiment.splits for variant in experiment.variants]


def check_keys(experiment):
    """Raise a UserError for a key that is not for the experiment to set, or without effect."""
    path = experiment.path
    known = {name for method in methods.all_methods().values() for name in key_names(method)}
    used = {name for variant in experiment.variants
            for name in key_names(method_of(experiment, variant))}
    for place, keys in [('settings', experiment.settings), *experiment.variants.items()]:
        for key in keys:
            if key in DECIDED:
                raise UserError(f"{path}: {place}: {key} is decided by the experiment; leave it "
                                'out')
            if key not in known:
                raise UserError(config.unknown_key(f'{path}: {place}', key, known))
            if key not in used:
                raise UserError(f"{path}: {place}: no method of the variants has the key '{key}'")


def method_of(experiment, variant):
    return methods.find(experiment.variants[variant].get('method', 'DSSN'),
                        f'{experiment.path}: {variant}')


def key_names(method):
    return {field.name for field in dataclasses.fields(method.Config)}


def plan_run(experiment, out, variant, split, seed):
    own_names = {'{out}': out, '{split}': split, '{seed}': str(seed)}
    experiment = experiment._replace(settings=filled(experiment.settings, own_names), variants={
        variant: filled(experiment.variants[variant], own_names)})
    method, place = method_of(experiment, variant), f'{experiment.path}: {variant}'
    # What all runs share decides the number of steps.
    common = resolve(experiment, place, methods.find('DSSN', place), split, {})
    epoch_steps = len(read_list(common.unlabeled_id_path, masks=False)) // (
        common.batch_size * experiment.processes)
    own = {key: value for key, value in experiment.variants[variant].items() if key != 'method'}
    if not method.uses_unlabeled:
        own = {'batch_size': 2 * common.batch_size, 'reference_batch': 2 * common.reference_batch,
               **own, 'epoch_steps': epoch_steps}
    exp = f'{experiment.exp}-{variant}-seed{seed}'
    own.update(seed=seed)
    folder = '/'.join([out, common.dataset, method.name, exp, split])
    cfg = resolve(experiment, place, method, split, {**own, 'save_path': folder})
    steps = cfg.epochs * (cfg.epoch_steps or len(read_list(cfg.unlabeled_id_path, masks=False))
                          // (cfg.batch_size * experiment.processes))
    if steps != common.epochs * epoch_steps or steps == 0:
        raise UserError(f'{place}: {steps} optimizer steps on split {split}, where the experiment '
                        f'has {common.epochs * epoch_steps}: epochs and batch_size are for '
                        'settings, alike for all (but the batch of supervised training)')
    keys = {**settings_of(experiment, method), **own}
    return Planned(variant, split, seed, cfg, experiment.config,
                   [f'{key}={text_of(value)}' for key, value in keys.items()], exp, out,
                   experiment.processes, steps)


def filled(keys, names):
    """Config keys whose texts have what a name in braces stands for."""
    def fill(value):
        for name, text in names.items():
            value = value.replace(name, text)
        return value
    return {key: fill(value) if isinstance(value, str) else value for key, value in keys.items()}


def settings_of(experiment, method):
    """The settings that a method has, as a config file's other keys are unused by it."""
    names = key_names(method)
    return {key: value for key, value in experiment.settings.items() if key in names}


def resolve(experiment, place, method, split, own):
    """The config of a run, as train.py will resolve it; `own` wins over the settings."""
    values = read_mapping(experiment.config)
    folder = f"splits/{values.get('dataset')}/{split}"
    overrides = {'method': method.name, 'labeled_id_path': f'{folder}/labeled.txt',
                 'unlabeled_id_path': f'{folder}/unlabeled.txt',
                 **settings_of(experiment, method), **own}
    try:
        return config.from_dict(values, experiment.config, overrides)
    except UserError as error:
        raise UserError(f'{place}: {error}') from None


def text_of(value):
    """A value as `--set key=value` reads it."""
    return value if isinstance(value, str) and re.fullmatch(r'[A-Za-z_/][\w./-]*', value) and \
        value not in ('true', 'false', 'null', 'yes', 'no', 'on', 'off') else json.dumps(value)


# How a run is started.

def command(run, port):
    """(arguments, variables) that start a run: what a user would type."""
    variables = {'dataset': run.cfg.dataset, 'method': run.cfg.method, 'exp': run.exp,
                 'split': run.split, 'config': run.config, 'exp_root': run.out}
    arguments = ['sh', 'scripts/train.sh', str(run.processes), str(port)]
    return arguments + (['--set', *run.assignments] if run.assignments else []), variables
