"""Configuration: every key declared once, loaded strictly from flat YAML and from `--set`.

A method's own keys are declared beside the method (`dssn/methods/*.py`) in a subclass of `Config`.
"""
import dataclasses
import difflib
import re
import typing
from dataclasses import dataclass
from typing import Any, Dict, List

import yaml

from dssn.errors import UserError
from dssn.yaml_text import LARGEST, parse, read_mapping, shown

LONGEST_NAME = 100  # characters of a class name
DATASETS = ('pascal', 'cityscapes', 'coco', 'camvid', 'shapes')
# What a file that says nothing of these keys means, by data set: the settings of the published
# runs, so that existing DSSN and UniMatch files load unchanged and mean what they meant.
DATASET_DEFAULTS = {
    'pascal': {'pretrained': True, 'cutmix_partner': 'same', 'selection': 'class_max'},
    'coco': {'pretrained': True, 'cutmix_partner': 'same', 'selection': 'class_max'},
    'cityscapes': {'pretrained': True, 'cutmix_partner': 'same', 'selection': 'fixed',
                   'warm_up_epochs': 5, 'protocol': 'sliding_window'},
}


def key(default, help, choices=None, low=None, high=None, above=None, below=None, length=None,
        word=None):
    """Declare a config key: its default, one line of help and its legal values.

    `word` is legal in place of a value of the key's type.
    """
    limits = dict(choices=choices, low=low, high=high, above=above, below=below, length=length,
                  word=word)
    metadata = {'help': help, **{k: v for k, v in limits.items() if v is not None}}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def criterion_default():
    return {'name': 'CELoss', 'kwargs': {'ignore_index': 255}}


@dataclass(frozen=True)
class Config:
    """The keys every method has. Instances are made by `load` and are complete and checked."""
    # No key here: what a method with unlabeled images has of it, whose epochs have their length.
    epoch_steps = 0
    # the experiment
    method: str = key('DSSN', 'training method: the name of a class in dssn/methods')
    seed: int = key(0, 'seed of everything random', low=0)
    device: str = key('auto', 'auto: a GPU if there is one', choices=('auto', 'cpu', 'cuda'))
    # data
    dataset: str = key('', 'name of the data set; decides palette, class names and defaults')
    nclass: int = key(0, 'number of classes; may be left out where classes are named', low=2,
                      high=255)
    classes: List[str] = key([], 'class names in index order, or a text file with one name a line; '
                                 'empty: the names known for the data set, else "class 0", ...')
    colours: List[List[int]] = key([], 'a [red, green, blue] (0..255) for each class, for pictures; '
                                       "empty: the data set's own, or chosen")
    ignore_index: int = key(255, 'value that masks use for pixels without a class; becomes 255 when '
                                 'a mask is read, as 255 itself does', low=0, high=255)
    data_root: str = key('', 'folder that the id lists are relative to')
    labeled_id_path: str = key('', 'id list with images and masks')
    unlabeled_id_path: str = key('', 'id list of images without masks')
    val_id_path: str = key('', 'id list to evaluate on; empty: splits/<dataset>/val.txt')
    allow_outside: bool = key(False, 'let id lists name files outside data_root, by `..` or an '
                                     'absolute path; links in data_root are followed anyway')
    skip_check: bool = key(False, 'train without first checking that listed files exist, that val '
                                  'is apart, and some masks')
    save_path: str = key('', "the run's folder")
    workers: int = key('auto', 'loader processes per training process; 0: load in the process; '
                               'auto: with a GPU its share of the cores less one, 1 to 8; without '
                               'one 1, or 0 where it has a single core', low=0, word='auto')
    max_bad_samples: int = key(10, 'training files that cannot be read and are replaced by the next '
                                   'of their list, each named in the log, before the run stops; '
                                   'counted by each process; 0: it stops at the first', low=0)
    crop_size: int = key(321, 'side of the square training crop, pixels', low=17)
    # network
    model: str = key('deeplabv3plus', 'segmentation network', choices=('deeplabv3plus',))
    backbone: str = key('resnet101', 'backbone of the network',
                        choices=('resnet18', 'resnet50', 'resnet101', 'xception'))
    stem: str = key('deep', "deep: three 3x3 convolutions; plain: torchvision's 7x7",
                    choices=('deep', 'plain'))
    replace_stride_with_dilation: List[bool] = key(
        [False, False, True], "dilate ResNet's layer2, layer3, layer4 instead of striding", length=3)
    dilations: List[int] = key([6, 12, 18], 'dilations of the ASPP head', length=3, low=1)
    multi_grid: bool = key(False, 'must be false (a leftover in old files)', choices=(False,))
    decoder_channels: int = key(256, 'width of the decoder', low=1)
    base_channels: int = key(64, 'width of the first ResNet stage', low=2)
    pretrained: bool = key(False, 'start the backbone from pretrained/<backbone>.pth')
    init_from: str = key('', 'checkpoint whose weights training starts from')
    # optimisation
    epochs: int = key(100, 'epochs; one is a pass over the unlabeled list', low=1)
    batch_size: int = key(2, 'labeled images, and as many unlabeled, per process', low=1)
    lr: float = key(0.002, 'initial learning rate of the backbone', above=0)
    lr_multi: float = key(10.0, "everything else's rate is lr times this", above=0)
    criterion: Dict[str, Any] = dataclasses.field(
        default_factory=criterion_default,
        metadata={'help': 'labeled loss: {name: CELoss} or {name: OHEM, kwargs: {thresh, min_kept}}'})
    reference_batch: int = key(0, 'images of a kind (labeled) in the global batch that lr is meant '
                                  'for; 0: not stated', low=0)
    scale_lr: bool = key(False, 'use lr times the global batch over reference_batch')
    on_nonfinite: str = key('stop', 'what a loss or gradient that is not finite does: stop the run, '
                                    'or skip the step', choices=('stop', 'skip'))
    max_skips: int = key(20, 'steps that on_nonfinite: skip leaves out before the run stops', low=1)
    # speed and memory
    accumulate: int = key(1, 'parts that a batch is split into, one after the other, to save '
                             'memory; batch_size is a multiple of it', low=1)
    checkpoint_backbone: bool = key(False, "compute the backbone's activations again in the "
                                           'backward pass instead of keeping them')
    channels_last: bool = key(False, 'memory format of the networks: channels last')
    amp: str = key('off', 'half precision of the networks in training: bf16, or on a GPU fp16',
                   choices=('off', 'bf16', 'fp16'))
    tf32: bool = key(False, 'let GPUs round float32 factors to TF32 (Ampere and newer)')
    compile: bool = key(False, 'compile the networks with torch.compile')
    # evaluation and the log
    protocol: str = key('original', 'evaluation: whole images, a window of crop_size slid over '
                                    'them, or their middle crop_size x crop_size alone',
                        choices=('original', 'sliding_window', 'center_crop'))
    eval_batch_size: int = key(4, 'images of one size that a GPU predicts at once in evaluation; a '
                                  'CPU takes one', low=1)
    select_on: str = key('', 'id list, apart from the others, on which mIoU selects the best '
                             'weights; what is reported of them is their mIoU on val; empty: val '
                             'selects')
    eval_every: int = key(1, 'epochs between evaluations; the last epoch is always evaluated', low=1)
    save_every: str = key('15 min', "between saves of latest.pth beside those of each epoch's end: "
                                    'a number of steps, or minutes, such as 30 min; 0: none')
    log_every: int = key(50, 'steps between lines of the log', low=1)
    panel_every: int = key(1000, 'steps between panels in TensorBoard: views, pseudo-labels, '
                                 'predictions; also after the last step; 0: none', low=0)
    panel_images: int = key(4, "most images of a panel, the first of a step's batch", low=1)

    def check(self, place):
        """Raise a UserError where keys contradict each other; a method's own do so in its Config.

        Args:
            place: where the config is from.
        """


@dataclass(frozen=True)
class StrongViewsConfig(Config):
    """The keys of methods that train on strong views of unlabeled images."""
    # No keys here: what a method without the strong pool has of it.
    num_aug, flag_use_random_num_sampling = 0, True
    cutmix_partner: str = key('other', "whose strong view CutMix pastes: the same image's under "
                                       "another draw, or another image's",
                              choices=('same', 'other'))
    watch_truth: bool = key(False, 'with the panels, compare pseudo-labels with the masks that the '
                                   'unlabeled list happens to name; they are never trained on')
    conf_thresh: float = key(0.95, 'least confidence of a selected pseudo-label (DSSN: with '
                                   'selection = fixed)', low=0, high=1)


def load(path, overrides=None, assignments=()):
    """Read a YAML file and return the complete, checked config of its method.

    Args:
        path: a flat YAML file; keys as in `Config` and the methods' configs.
        overrides: {key: value} that win over the file (the launcher's flags); None is "not given".
        assignments: strings `key=value` (`--set`) that win over both.

    Returns:
        An instance of the method's config class (a subclass of `Config`).

    Raises:
        UserError: unreadable file, unknown key, wrong type or impossible value, naming the place.
    """
    return resolve(read_mapping(path), str(path), overrides, assignments)


def from_dict(values, place, overrides=None, assignments=()):
    """The same from a mapping, such as the one a checkpoint carries; `place` is for errors."""
    return resolve(values, place, overrides, assignments)


def resolve(content, place, overrides, assignments):
    from dssn import methods
    values = {name: (value, place) for name, value in content.items()}
    for name, value in (overrides or {}).items():
        if value is not None:
            values[name] = value, 'command line'
    for text in assignments:
        name, value = parse_assignment(text)
        values[name] = value, f'--set {text}'
    method = methods.find(*values.get('method', ('DSSN', place)))
    own = {f.name: f for f in dataclasses.fields(method.Config)}
    # A file serves every method: keys of other methods are known, and unused by this one.
    known = {f.name: f for other in methods.all_methods().values()
             for f in dataclasses.fields(other.Config)}
    dataset = values.get('dataset', ('', place))[0]
    defaults = DATASET_DEFAULTS.get(dataset, {}) if isinstance(dataset, str) else {}
    resolved = {name: value for name, value in defaults.items() if name in own}
    for name, (value, where) in values.items():
        if name not in known:
            raise UserError(unknown_key(where, name, known))
        checked = check_value(where, known[name], value)
        if name in own:
            resolved[name] = checked
        elif where != place:
            raise UserError(f"{where}: key '{name}' has no effect with method {method.name}; "
                            'leave it out or choose another method')
    resolved['method'] = method.name
    places = {name: where for name, (_, where) in values.items() if where != place}
    return complete(method.Config, resolved, place, places)


def complete(config_class, values, path, places):
    """Fill in the defaults that depend on other keys and check what no single key can tell.

    `places` says of keys that the command line has set where it has.
    """
    def where(*names):
        return next((places[name] for name in names if name in places), path)
    if not values.get('dataset'):
        raise UserError(f"{where('dataset')}: key 'dataset' is missing; known data sets: "
                        f"{', '.join(DATASETS)}; any other name is your own data")
    if not re.fullmatch(r'[A-Za-z0-9_-][A-Za-z0-9_.-]*', values['dataset']):
        raise UserError(f"{where('dataset')}: dataset = {shown(values['dataset'])} must be a plain "
                        "name of letters, digits, '_', '-' and '.', which does not begin with '.'")
    names, colours = values.get('classes') or [], values.get('colours') or []
    if 'nclass' not in values and names:
        values['nclass'] = check_value(
            where('classes'), config_class.__dataclass_fields__['nclass'], len(names))
    if 'nclass' not in values:
        raise UserError(f"{path}: key 'nclass' is missing: the number of classes in the masks (or "
                        'name the classes in `classes`)')
    for name, items in (('classes', names), ('colours', colours)):
        if items and len(items) != values['nclass']:
            raise UserError(f"{where(name, 'nclass')}: {name} has {len(items)} entries but nclass = "
                            f"{values['nclass']}; make them agree")
    if values.get('watch_truth') and values.get('panel_every') == 0:
        raise UserError(f"{where('watch_truth', 'panel_every')}: "
                        'watch_truth = true has no effect with panel_every = 0: truth is '
                        'looked at when panels are drawn; set panel_every to at least 1, or leave '
                        'watch_truth out')
    check_batch(config_class, values, where)
    if not values.get('val_id_path'):
        values['val_id_path'] = f"splits/{values['dataset']}/val.txt"
    cfg = config_class(**values)
    cfg.check(path)
    return cfg


def check_batch(config_class, values, where):
    """Raise a UserError where batch_size, accumulate, scale_lr and reference_batch do not agree."""
    def value(name):
        return values.get(name, config_class.__dataclass_fields__[name].default)
    if value('batch_size') % value('accumulate'):
        raise UserError(f"{where('accumulate', 'batch_size')}: accumulate = {value('accumulate')} "
                        f"must divide batch_size = {value('batch_size')}: a batch is split into "
                        'equal parts')
    if value('scale_lr') and not value('reference_batch'):
        raise UserError(f"{where('scale_lr', 'reference_batch')}: scale_lr needs reference_batch, "
                        'the global batch that lr is meant for: set it, such as reference_batch=8')


def list_paths(cfg):
    """{role: id list} of the lists that `cfg` names: labeled, unlabeled, val, select_on."""
    paths = {'labeled': cfg.labeled_id_path, 'unlabeled': cfg.unlabeled_id_path,
             'val': cfg.val_id_path, 'select_on': cfg.select_on}
    return {role: path for role, path in paths.items() if path}


def names_of_classes(cfg):
    """Names of the classes of `cfg`, in index order."""
    from dssn.data.classes import class_names
    return list(cfg.classes) or class_names(cfg.dataset, cfg.nclass)


def colours_of_classes(cfg):
    """An (R, G, B) for each class of `cfg`, in index order."""
    from dssn.data.classes import palette
    return [tuple(colour) for colour in cfg.colours] or palette(cfg.dataset, cfg.nclass)


def parse_assignment(text):
    """Split a `--set key=value`; the value is read as YAML."""
    name, sep, value = text.partition('=')
    if not sep or not name.strip():
        raise UserError(f"--set {text}: write key=value, such as --set lr=0.001")
    try:
        return name.strip(), parse(value)
    except ValueError:
        raise UserError(f'--set {text}: the value is not valid YAML; quote it') from None


def unknown_key(place, name, fields):
    close = difflib.get_close_matches(name[:100], fields, n=1) if isinstance(name, str) else []
    hint = f"; did you mean '{close[0]}'?" if close else ''
    return f"{place}: unknown key {shown(name)}{hint or ';'} Known keys: {', '.join(sorted(fields))}"


def check_value(place, field, value):
    """Return `value` as the field's type, or raise a UserError that says what is allowed."""
    origin = typing.get_origin(field.type) or field.type
    if field.name == 'criterion':
        return check_criterion(place, value)
    if field.name == 'save_every':
        return check_interval(place, field, value)
    if field.name == 'colours':
        return check_colours(place, value)
    if field.name == 'classes':
        value = check_names(place, value)
    if origin is list:
        inner, = typing.get_args(field.type)
        if not isinstance(value, (list, tuple)):
            raise UserError(f'{place}: {field.name} = {shown(value)} must be a list of '
                            f'{_word(inner)}: {field.metadata["help"]}')
        length = field.metadata.get('length')
        if length is not None and len(value) != length:
            raise UserError(f'{place}: {field.name} = {shown(value)} must have {length} entries: '
                            f'{field.metadata["help"]}')
        return [check_scalar(place, field, inner, item) for item in value]
    return check_scalar(place, field, origin, value)


def check_scalar(place, field, kind, value):
    word = field.metadata.get('word')
    if word and value == word:
        return value
    wrong = UserError(f'{place}: {field.name} = {shown(value)} must be {_word(kind)}'
                      f'{f" or {word}" if word else ""}: {field.metadata["help"]}')
    if isinstance(value, int) and not -2 ** 63 <= value < 2 ** 63:
        raise wrong  # more than any program here can count to
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is str and value is None:
        value = ''
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise wrong
    if kind is float and not (float('-inf') < value < float('inf')):
        raise wrong
    meta = field.metadata
    if 'choices' in meta and value not in meta['choices']:
        close = difflib.get_close_matches(str(value)[:100], [str(c) for c in meta['choices']], n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ''
        allowed = ', '.join(_yaml_word(c) for c in meta['choices'])
        raise UserError(f'{place}: {field.name} = {_yaml_word(value)[:200]} is not allowed{hint}; '
                        f'allowed: {allowed}')
    bounds = [('low', 'at least', lambda a, b: a >= b), ('high', 'at most', lambda a, b: a <= b),
              ('above', 'above', lambda a, b: a > b), ('below', 'below', lambda a, b: a < b)]
    for bound, words, holds in bounds:
        if bound in meta and not holds(value, meta[bound]):
            limits = ' and '.join(f'{w} {meta[b]}' for b, w, _ in bounds if b in meta)
            raise UserError(f'{place}: {field.name} = {shown(value)} must be {limits}: {meta["help"]}')
    return value


def check_interval(place, field, value):
    """'500' of 500 steps, or '30 min'."""
    text = re.sub(r'\s+', ' ', str(value)).strip()
    if isinstance(value, bool) or not re.fullmatch(r'\d{1,9}|\d{1,5}(\.\d{1,3})? ?min', text):
        raise UserError(f'{place}: {field.name} = {value!r} must be a number of steps, such as 500, '
                        f'or of minutes, such as 30 min: {field.metadata["help"]}')
    return text


def interval(text):
    """(steps, seconds) of a `save_every`; 0 is never."""
    number = re.match(r'[\d.]+', text).group()
    return (0, 60 * float(number)) if text.endswith('min') else (int(number), 0.0)


def check_colours(place, value):
    """A list of [red, green, blue]."""
    for colour in value if isinstance(value, (list, tuple)) else [value]:
        if not isinstance(colour, (list, tuple)) or len(colour) != 3 or not all(
                isinstance(c, int) and not isinstance(c, bool) and 0 <= c <= 255 for c in colour):
            raise UserError(f'{place}: colours holds {shown(colour)}; write one [red, green, blue] a '
                            'class, each a whole number from 0 to 255')
    return [list(colour) for colour in value]


def check_names(place, value):
    """Class names from a list, or from the text file that a text names; printable ones only."""
    names = [] if value is None or value == '' else value
    if isinstance(names, str):
        names = read_names(place, names)
    for name in names if isinstance(names, list) else ():
        # Names are shown in terminals, which obey some characters instead.
        if isinstance(name, str) and not (name.isprintable() and len(name) <= LONGEST_NAME):
            raise UserError(f'{place}: classes holds {shown(name)}; a name is of printable '
                            f'characters, at most {LONGEST_NAME}: write another')
    return names


def read_names(place, path):
    """Class names from a text file: one a line, empty lines skipped."""
    try:
        with open(path, encoding='utf-8-sig') as file:
            lines = file.read(LARGEST).split('\n')
    except (OSError, ValueError) as error:
        raise UserError(f'{place}: classes = {shown(path)} cannot be read as a text file of names '
                        f'({error}); write a list, or a file with one name a line, by its path '
                        'from where you run this') from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UserError(f"{place}: classes = '{path}' names no class; write one name a line")
    return names


def check_criterion(place, value):
    """The labeled loss: `CELoss`, or `OHEM` with thresh and min_kept; ignore_index is 255."""
    if not isinstance(value, dict) or value.get('name') not in ('CELoss', 'OHEM'):
        raise UserError(f'{place}: criterion = {shown(value)} must be {{name: CELoss}} or '
                        '{name: OHEM, kwargs: {thresh: 0.7, min_kept: 100000}}')
    for name in value:
        if name not in ('name', 'kwargs'):
            raise UserError(f'{place}: criterion has an unknown key {shown(name)}; known keys: name, '
                            'kwargs')
    kwargs = value.get('kwargs') or {}
    if not isinstance(kwargs, dict):
        raise UserError(f'{place}: criterion kwargs = {shown(kwargs)} must be a mapping such as '
                        '{ignore_index: 255}')
    allowed = {'ignore_index': 255}
    if value['name'] == 'OHEM':
        allowed.update(thresh=0.7, min_kept=100000)
    for name, item in kwargs.items():
        if name not in allowed:
            raise UserError(f"{place}: criterion {value['name']} has no argument {shown(name)}; known "
                            f"arguments: {', '.join(sorted(allowed))}")
        if isinstance(item, bool) or not isinstance(item, (int, float)) or not -2**63 < item < 2**63:
            raise UserError(f'{place}: criterion argument {name} = {shown(item)} must be a number, '
                            f'such as {allowed[name]}')
    merged = {**allowed, **kwargs}
    if merged['ignore_index'] != 255:
        raise UserError(f'{place}: criterion argument ignore_index = {merged["ignore_index"]} must '
                        'be 255, the value that masks use for "ignore"; for another one in masks '
                        'set the key ignore_index')
    merged['ignore_index'] = 255
    if value['name'] == 'OHEM':
        if not 0 <= merged['thresh'] <= 1:
            raise UserError(f'{place}: criterion argument thresh = {merged["thresh"]} must be a '
                            'probability between 0 and 1')
        if merged['min_kept'] < 0 or merged['min_kept'] != int(merged['min_kept']):
            raise UserError(f'{place}: criterion argument min_kept = {merged["min_kept"]} must be a '
                            'whole number of pixels, at least 0')
        merged['min_kept'] = int(merged['min_kept'])
    return {'name': value['name'], 'kwargs': merged}


def to_dict(cfg):
    """Plain Python values of a config, in the order of declaration."""
    return dataclasses.asdict(cfg)


def dump(cfg):
    """The resolved config as YAML text."""
    return yaml.safe_dump(to_dict(cfg), sort_keys=False, default_flow_style=None, width=100)


def help_text(method):
    """One line per key of a method: name, type, default, help."""
    lines = []
    for field in dataclasses.fields(method.Config):
        default = field.default
        if default is dataclasses.MISSING:
            default = field.default_factory()
        kind = getattr(field.type, '__name__', None) or str(field.type).replace('typing.', '')
        if 'word' in field.metadata:
            kind += f" or {field.metadata['word']}"
        lines.append(f'  {field.name} ({kind}, default {_yaml_word(default)}): '
                     f'{field.metadata["help"]}')
    return '\n'.join(lines)


def _word(kind):
    return {int: 'a whole number', float: 'a number', bool: 'true or false', str: 'text'}[kind]


def _yaml_word(value):
    if isinstance(value, bool):
        return 'true' if value else 'false'
    return repr(value) if isinstance(value, (list, dict)) or value == '' else str(value)
