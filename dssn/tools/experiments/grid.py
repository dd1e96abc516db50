"""Reads the file of an experiment and plans its grid of runs.

    about: what it shows, for the page of results
    config: configs/camvid.yaml    config file of all runs
    exp: camvid                    first part of the names of the runs (default: the file's name);
                                   experiments with the same `exp` share runs with equal configs
    splits: [1_8]                  splits/<dataset>/<split>/labeled.txt and unlabeled.txt
    seeds: [1, 2, 3]
    processes: 1                   processes of each run
    after: experiments/first.yaml  an experiment whose runs are trained first
    settings: {epochs: 40}         config keys of all runs whose method has them; {out}, {dataset},
                                   {split} and {seed} in a text are replaced by the run's values
    variants:                      config keys of some of the runs (default of `method`: DSSN)
      supervised: {method: supervised}
      no_contrast: {contrast: false}
      DSSN_long: {length: 2, seeds: [1]}    twice the epochs (a fraction: 15/7), and other seeds
      oracle: {method: oracle_labels}       a method of dssn/tools/experiments/oracles.py
    reference: supervised          variant that the page of results subtracts from the others
    findings: what the runs show   for the page of results
    published: [pascal_resnet101]  tables of experiments/published.yaml, for the page of results

A run is a variant on a split with a seed. All runs on a split make the same number of optimizer
steps, or `length` times as many: for a method without unlabeled images `epoch_steps` is set so. Its
batch is `labeled_batch_size` if that is set; then all methods have the same labeled images a step.
Otherwise it is twice the `batch_size`, unless the variant sets `batch_size`.
"""
import dataclasses
import json
import os
import re
from typing import Any, Dict, List, NamedTuple

from dssn import config, methods
from dssn.data.lists import read_list
from dssn.errors import UserError
from dssn.tools.experiments import oracles  # noqa: F401, registers its methods
from dssn.yaml_text import parse, read_mapping

KEYS = ('about', 'config', 'exp', 'splits', 'seeds', 'processes', 'after', 'settings', 'variants',
        'reference', 'findings', 'published')
VARIANT_KEYS = ('seeds', 'length')  # keys of a variant that are no config keys
KEPT = 'experiments/results'  # the default folder of kept runs, see `keep`
NAME = re.compile(r'[A-Za-z0-9_.+-]+')


class Experiment(NamedTuple):
    """The checked content of an experiment's file."""
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
    own_seeds: Dict[str, List[int]]  # of the variants that have other seeds
    lengths: Dict[str, float]        # of the variants that have another length

    @property
    def name(self):
        return os.path.splitext(os.path.basename(self.path))[0]


class PlannedRun(NamedTuple):
    """A run of the grid."""
    variant: str
    split: str
    seed: int
    cfg: Any                # resolved config
    config: str             # path of the config file
    assignments: List[str]  # 'key=value', the keys that the grid adds to the config file
    exp: str                # name of the run, the `exp` of scripts/train.sh
    out: str                # parent folder of all runs
    processes: int
    steps: int              # optimizer steps
    kept: str = ''          # folder of its kept records, if it is kept; '': kept runs are ignored

    @property
    def name(self):
        return f'{self.variant}, split {self.split}, seed {self.seed}'

    @property
    def folder(self):
        return self.cfg.save_path


# Reading.

def read_experiment(path):
    """The `Experiment` in a file.

    Raises:
        UserError: the file is not valid; the message names the file and the key.
    """
    content = read_mapping(path)
    for key in content:
        if key not in KEYS:
            raise UserError(f"{path}: unknown key '{key}'; known keys: {', '.join(KEYS)}")
    for key in ('config', 'splits', 'seeds', 'variants'):
        if not content.get(key):
            raise UserError(f"{path}: key '{key}' is missing; see experiments/shapes.yaml")
    variants = {check_name(path, 'variants', str(name)):
                check_mapping(path, f'variants: {name}', keys or {})
                for name, keys in check_mapping(path, 'variants', content['variants']).items()}
    experiment = Experiment(
        path, paragraphs(content.get('about')), str(content['config']),
        str(content.get('exp') or os.path.splitext(os.path.basename(path))[0]),
        [check_name(path, 'splits', str(split))
         for split in check_list(path, 'splits', content['splits'])],
        check_seeds(path, 'seeds', content['seeds']),
        check_whole_number(path, 'processes', content.get('processes', 1), 1),
        str(content.get('after') or ''),
        check_mapping(path, 'settings', content.get('settings') or {}),
        {name: {key: value for key, value in keys.items() if key not in VARIANT_KEYS}
         for name, keys in variants.items()},
        str(content.get('reference') or ''), paragraphs(content.get('findings')),
        [str(name) for name in check_list(path, 'published', content.get('published') or [])],
        {name: check_seeds(path, f'variants: {name}: seeds', keys['seeds'])
         for name, keys in variants.items() if 'seeds' in keys},
        {name: check_length(path, f'variants: {name}: length', keys['length'])
         for name, keys in variants.items() if 'length' in keys})
    check_name(path, 'exp', experiment.exp)
    if experiment.reference and experiment.reference not in experiment.variants:
        raise UserError(f"{path}: reference: '{experiment.reference}' is not a variant; the "
                        f"variants are: {', '.join(experiment.variants)}")
    if 'method' in experiment.settings:
        raise UserError(f'{path}: settings: method can be set in variants only')
    return experiment


def paragraphs(text):
    """Markdown paragraphs from the lines of a text in YAML's folded style (>)."""
    lines = [' '.join(line.split()) for line in str(text or '').split('\n')]
    return '\n\n'.join(line for line in lines if line)


def check_mapping(path, key, value):
    if not isinstance(value, dict) or not all(isinstance(name, (str, int)) for name in value):
        raise UserError(f'{path}: {key} = {value!r} must be a mapping of config keys')
    return value


def check_list(path, key, value):
    if not isinstance(value, list) or len(set(map(str, value))) < len(value):
        raise UserError(f'{path}: {key} = {value!r} must be a list, each item once')
    return value


def check_seeds(path, key, value):
    seeds = [check_whole_number(path, key, seed, 0) for seed in check_list(path, key, value)]
    if not seeds:
        raise UserError(f'{path}: {key} = [] must name a seed, such as [1]')
    return seeds


def check_length(path, key, value):
    """A length as a number; a text such as 15/7 is a fraction."""
    found = value
    if isinstance(value, str) and re.fullmatch(r'[1-9]\d{0,5}/[1-9]\d{0,5}', value):
        above, below = map(int, value.split('/'))
        found = above / below
    if type(found) not in (int, float) or not 0 < found <= 1000:
        raise UserError(f'{path}: {key}: {value!r} must be a number above 0 and at most 1000, such '
                        'as 0.5, 2 or 15/7')
    return found


def check_whole_number(path, key, value, low):
    if type(value) is not int or value < low:
        raise UserError(f'{path}: {key}: {value!r} must be a whole number, at least {low}')
    return value


def check_name(path, key, value):
    """A name that can be the name of a folder."""
    if not NAME.fullmatch(value):
        raise UserError(f"{path}: {key}: '{value}' must be a plain name of letters, digits, '_', "
                        "'-', '+' and '.'")
    return value


# The grid.

def plan_runs(experiment, out='exp', assignments=(), kept=None):
    """The `PlannedRun`s of an experiment: all variants with their first seeds, then the second.

    Args:
        out: parent folder of all runs.
        assignments: strings `key=value` for all runs whose method has the key. They override the
            settings of the experiment, but not those of a variant; `variant.key=value` does.
        kept: parent folder of the kept runs of all experiments; None: ignore kept runs.

    Raises:
        UserError: a key, the config or a list is wrong, or runs have different numbers of steps.
    """
    experiment = with_assignments(experiment, assignments)
    check_keys(experiment)
    seeds = {variant: experiment.own_seeds.get(variant, experiment.seeds)
             for variant in experiment.variants}
    return [plan_run(experiment, out, kept, variant, split, seeds[variant][place])
            for place in range(max(map(len, seeds.values()))) for split in experiment.splits
            for variant in experiment.variants if place < len(seeds[variant])]


def with_assignments(experiment, assignments):
    """The experiment with the settings of `--set`, of all variants or of one."""
    settings = dict(experiment.settings)
    variants = {name: dict(keys) for name, keys in experiment.variants.items()}
    for text in assignments:
        name, value = config.parse_assignment(text)
        variant, dot, key = name.rpartition('.')
        if not dot:
            settings[name] = value
        elif variant in variants and key != 'method':
            variants[variant][key] = value
        else:
            raise UserError(f"--set {text}: write key=value, or variant.key=value with one of the "
                            f"variants of {experiment.path}: {', '.join(variants)}; method can be "
                            'set in the file only')
    return experiment._replace(settings=settings, variants=variants)


def check_keys(experiment):
    """Raise a UserError for a config key that an experiment may not set, or that has no effect."""
    path = experiment.path
    known = {field.name: field for method in methods.all_methods().values()
             for field in dataclasses.fields(method.Config)}
    used = {name for variant in experiment.variants
            for name in key_names(method_of(experiment, variant))}
    for place, keys in [('settings', experiment.settings), *experiment.variants.items()]:
        for key in keys:
            if key not in known:
                raise UserError(config.unknown_key(f'{path}: {place}', key, known))
            if not known[key].metadata.get('in_experiments', True) \
                    or (key == 'epoch_steps' and place != 'settings'):
                raise UserError(f'{path}: {place}: {key} is decided by the experiment; leave it '
                                'out')
            if key not in used:
                raise UserError(f"{path}: {place}: no method of the variants has the key '{key}'")


def method_of(experiment, variant):
    """The method class of a variant."""
    return methods.find(experiment.variants[variant].get('method', 'DSSN'),
                        f'{experiment.path}: {variant}')


def key_names(method):
    """The names of the config keys of a method class, a set."""
    return {field.name for field in dataclasses.fields(method.Config)}


def plan_run(experiment, out, kept, variant, split, seed):
    """The `PlannedRun` of a variant on a split with a seed; other arguments as of `plan_runs`."""
    dataset = read_mapping(experiment.config).get('dataset')
    values = {'{out}': out, '{dataset}': str(dataset), '{split}': split, '{seed}': str(seed)}
    experiment = experiment._replace(
        settings=fill_placeholders(experiment.settings, values),
        variants={variant: fill_placeholders(experiment.variants[variant], values)})
    method, place = method_of(experiment, variant), f'{experiment.path}: {variant}'
    # The settings that all runs share decide the number of steps.
    common = resolve_config(experiment, place, methods.find('DSSN', place), split, {})
    one_pass = steps_of_pass(common, experiment.processes)
    if common.epoch_steps > one_pass:
        raise UserError(f'{place}: epoch_steps = {common.epoch_steps} is more than one pass over '
                        f'{common.unlabeled_id_path}, {one_pass} steps; set at most that, and more '
                        'epochs')
    epoch_steps = common.epoch_steps or one_pass
    own = own_keys(experiment, variant, method, common, epoch_steps)
    epochs = own['epochs'] if variant in experiment.lengths else common.epochs
    exp = f'{experiment.exp}-{variant}-seed{seed}'
    own.update(seed=seed)
    folder = '/'.join([out, common.dataset, method.name, exp, split])
    cfg = resolve_config(experiment, place, method, split, {**own, 'save_path': folder})
    steps = cfg.epochs * (cfg.epoch_steps or steps_of_pass(cfg, experiment.processes))
    if steps != epochs * epoch_steps or steps == 0:
        raise UserError(f'{place}: {steps} optimizer steps on split {split}, where the experiment '
                        f'has {epochs * epoch_steps}: set epochs and batch_size in settings, the '
                        'same for all runs (a supervised variant may have another batch_size); use '
                        'length to train a variant longer or shorter')
    keys = {**settings_of(experiment, method), **own}
    return PlannedRun(
        variant, split, seed, cfg, experiment.config,
        [f'{key}={assignment_text(value)}' for key, value in keys.items()], exp, out,
        experiment.processes, steps,
        '' if kept is None else f'{kept}/{experiment.exp}/{split}/{variant}-seed{seed}')


def steps_of_pass(cfg, processes):
    """Optimizer steps of one pass over the unlabeled list."""
    return len(read_list(cfg.unlabeled_id_path, masks=False)) // (cfg.batch_size * processes)


def own_keys(experiment, variant, method, common, epoch_steps):
    """The config keys of a variant: its own, and those that follow from the number of steps.

    Args:
        common: config that all variants share. epoch_steps: steps of an epoch of all variants.

    Raises:
        UserError: the variant sets a key without effect, or its length twice.
    """
    place = f'{experiment.path}: {variant}'
    own = {key: value for key, value in experiment.variants[variant].items() if key != 'method'}
    if not methods.reads_unlabeled(method):
        batch = {} if method.uses_unlabeled else batch_keys(place, common, own)
        own = {**batch, **own, 'epoch_steps': epoch_steps}
    if variant in experiment.lengths:
        if 'epochs' in own:
            raise UserError(f'{place}: epochs and length: both set the length of the run; leave '
                            'one out')
        own['epochs'] = scale_epochs(place, common.epochs, experiment.lengths[variant])
    return own


def batch_keys(place, common, own):
    """Config keys of the batch of a method without unlabeled images.

    Args:
        common: config that all variants share. own: config keys of the variant.
    """
    if not own.get('labeled_batch_size', common.labeled_batch_size):
        return {'batch_size': 2 * common.batch_size,
                'reference_batch': 2 * common.reference_batch}
    if 'batch_size' in own:
        raise UserError(f"{place}: batch_size = {own['batch_size']} has no effect on a method "
                        'without unlabeled images where labeled_batch_size is set; set '
                        'labeled_batch_size instead')
    return {}


def scale_epochs(place, epochs, length):
    """`length` times `epochs`, which must be a whole number."""
    found = round(epochs * length)
    if found < 1 or abs(found - epochs * length) > 1e-9:
        raise UserError(f'{place}: length = {length:g} of {epochs} epochs is {epochs * length:g}, '
                        'not a whole number of epochs; set other epochs, or another length')
    return found


def fill_placeholders(keys, values):
    """Config keys with the placeholders in their texts, such as {seed}, replaced by `values`."""
    def fill(text):
        for placeholder, value in values.items():
            text = text.replace(placeholder, value)
        return text
    return {key: fill(value) if isinstance(value, str) else value for key, value in keys.items()}


def settings_of(experiment, method):
    """The settings of the experiment that are keys of a method."""
    names = key_names(method)
    return {key: value for key, value in experiment.settings.items() if key in names}


def resolve_config(experiment, place, method, split, own):
    """The config of a run, as train.py resolves it; `own` overrides the settings."""
    values = read_mapping(experiment.config)
    folder = f"splits/{values.get('dataset')}/{split}"
    overrides = {'method': method.name, 'labeled_id_path': f'{folder}/labeled.txt',
                 'unlabeled_id_path': f'{folder}/unlabeled.txt',
                 **settings_of(experiment, method), **own}
    try:
        return config.from_dict(values, experiment.config, overrides)
    except UserError as error:
        raise UserError(f'{place}: {error}') from None


def assignment_text(value):
    """A value as text that `--set key=value` reads back."""
    return value if isinstance(value, str) and re.fullmatch(r'[A-Za-z_/][\w./-]*', value) and \
        parse(value) == value else json.dumps(value, ensure_ascii=False)


# The command line.

def add_grid_options(parser, kept=True):
    """Add the options --out, --set and --kept (a folder or None), arguments of `plan_runs`."""
    parser.add_argument('--out', default='exp',
                        help='parent folder of all runs (default: %(default)s)')
    parser.add_argument('--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE',
                        dest='assignments', help='config keys of all runs whose method has them, '
                        'such as data_root=/data/camvid; VARIANT.KEY=VALUE for one variant')
    if kept:
        parser.add_argument('--kept', default=KEPT, metavar='FOLDER',
                            type=lambda text: None if text == 'none' else text,
                            help='parent folder of the kept runs of all experiments; none: ignore '
                                 'kept runs (default: %(default)s)')


def start_command(run, port):
    """(arguments, environment variables) of the command that starts a run."""
    variables = {'dataset': run.cfg.dataset, 'method': run.cfg.method, 'exp': run.exp,
                 'split': run.split, 'config': run.config, 'exp_root': run.out}
    return ['sh', 'scripts/train.sh', str(run.processes), str(port), '--set',
            *run.assignments], variables
