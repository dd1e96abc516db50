"""Configuration: loaded strictly from flat YAML and from `--set`; the keys are in `dssn.keys`."""
import dataclasses
import difflib
import math
import re
import typing

from dssn import methods, yaml_text
from dssn.errors import UserError
from dssn.models.vit import PATCH
from dssn.yaml_text import LARGEST, parse, read_mapping, shown

LONGEST_NAME = 100  # characters of a class name
SWITCHES = {'yes': True, 'on': True, 'no': False, 'off': False}  # words for true and false
DATASETS = ('pascal', 'cityscapes', 'coco', 'ade20k', 'camvid', 'idd_lite', 'shapes')
# Defaults by data set, for files that do not set these keys. They are the settings of the published
# runs: existing DSSN and UniMatch files load unchanged and keep their meaning.
DATASET_DEFAULTS = {
    'pascal': {'pretrained': True, 'cutmix_partner': 'same', 'selection': 'class_max'},
    'coco': {'pretrained': True, 'cutmix_partner': 'same', 'selection': 'class_max'},
    'ade20k': {'pretrained': True, 'cutmix_partner': 'same', 'selection': 'class_max'},
    'cityscapes': {'pretrained': True, 'cutmix_partner': 'same', 'selection': 'fixed',
                   'warm_up_epochs': 5, 'protocol': 'sliding_window'},
}
# Defaults by network; they win over those of the data set. The settings of UniMatch V2's published
# runs.
# docs/training.md explains those of DSSN.
NETWORK_DEFAULTS = {
    'dpt': {'optimizer': 'adamw', 'lr': 5e-6, 'lr_multi': 40.0, 'crop_size': 518,
            'cutmix_partner': 'batch', 'label_ema': 0.996, 'ema_ramp': True,
            'warm_up_epochs': 0},
}
OPTIMIZER_DEFAULTS = {'adamw': {'weight_decay': 0.01}}
# {key: (another key, the value of that which it has an effect with)}
ONLY_WITH = {
    **{name: ('model', 'deeplabv3plus') for name in (
        'stem', 'replace_stride_with_dilation', 'dilations', 'decoder_channels', 'base_channels',
        'teacher_bn', 'lean')},
    'lock_backbone': ('model', 'dpt'), 'momentum': ('optimizer', 'sgd'),
    'betas': ('optimizer', 'adamw'), 'eps': ('optimizer', 'adamw'),
}


def load(path, overrides=None, assignments=()):
    """Read a YAML file and return the complete, checked config of its method.

    Args:
        path: a flat YAML file; keys as in `Config` and the methods' configs.
        overrides: {key: value} from flags; they replace values of the file. None: not given.
        assignments: strings `key=value` (`--set`); they replace both.

    Returns:
        An instance of the method's config class (a subclass of `Config`).

    Raises:
        UserError: the file cannot be read, a key is unknown, or a value is not allowed.
    """
    return resolve(read_mapping(path), str(path), overrides, assignments)


def from_dict(values, place, overrides=None, assignments=()):
    """Like `load`, from a mapping such as the config in a checkpoint. `place` is for errors."""
    return resolve(values, place, overrides, assignments)


def find_method(path, overrides=None, assignments=()):
    """The method class that `load` would choose with these arguments; `path` may be None."""
    content = read_mapping(path) if path else {}
    return method_of(given_values(content, path, overrides, assignments), path)


def given_values(content, place, overrides, assignments):
    """{key: (value, origin)} of a mapping, of flags and of `--set`; later ones replace others."""
    values = {name: (value, place) for name, value in content.items()}
    for name, value in (overrides or {}).items():
        if value is not None:
            values[name] = value, 'command line'
    for text in assignments:
        name, value = parse_assignment(text)
        values[name] = value, f'--set {text}'
    return values


def method_of(values, place):
    return methods.find(*values.get('method', ('DSSN', place)))


def resolve(content, place, overrides, assignments):
    values = given_values(content, place, overrides, assignments)
    method = method_of(values, place)
    own = {f.name: f for f in dataclasses.fields(method.Config)}
    # A file may serve several methods: keys of other methods are checked, but not used.
    known = {f.name: f for other in methods.all_methods().values()
             for f in dataclasses.fields(other.Config)}
    resolved = {}
    for key, table in (('dataset', DATASET_DEFAULTS), ('model', NETWORK_DEFAULTS)):
        chosen = values.get(key, ('', place))[0]
        defaults = table.get(chosen, {}) if isinstance(chosen, str) else {}
        resolved.update({name: value for name, value in defaults.items() if name in own})
    for name, (value, where) in values.items():
        if name not in known:
            raise UserError(unknown_key(where, name, known))
        checked = check_value(where, known[name], value)
        if name in own:
            resolved[name] = checked
        elif where != place:
            raise UserError(f"{where}: key '{name}' has no effect with method {method.name}; "
                            'leave it out or choose another method')
    for name, value in OPTIMIZER_DEFAULTS.get(resolved.get('optimizer'), {}).items():
        resolved.setdefault(name, value)
    resolved['method'] = method.name
    places = {name: where for name, (_, where) in values.items() if where != place}
    notes = unlock_backbone(resolved, values, place)
    cfg = complete(method.Config, resolved, place, places)
    object.__setattr__(cfg, 'notes', notes)
    return cfg


def unlock_backbone(resolved, values, place):
    """Train the backbone where UniMatch V2's file for ADE20K freezes it, but its results do not.

    Such a file does not name the optimizer. Returns lines for the log.
    """
    key = values.get('lock_backbone', (False, place))
    if key != (True, place) or 'optimizer' in values or resolved.get('dataset') != 'ade20k':
        return ()
    resolved['lock_backbone'] = False
    return (f'lock_backbone: {place} has true, but the published results on ADE20K were trained '
            'with false, so it is false here; to freeze the backbone: --set lock_backbone=true',)


def complete(config_class, values, path, places):
    """Fill in the defaults that depend on other keys, and check keys against each other.

    Args:
        path: origin of the config. places: {key: origin} of keys that the command line sets.
    """
    def where(*names):
        return next((places[name] for name in names if name in places), path)
    if not values.get('dataset'):
        raise UserError(f"{where('dataset')}: key 'dataset' is missing; known data sets: "
                        f"{', '.join(DATASETS)}; for your own data choose another name")
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
            raise UserError(f"{where(name, 'nclass')}: {name} has {len(items)} entries but nclass "
                            f"= {values['nclass']}; make them agree")
    if values.get('watch_truth') and values.get('panel_every') == 0:
        raise UserError(f"{where('watch_truth', 'panel_every')}: "
                        'watch_truth = true has no effect with panel_every = 0: pseudo-labels are '
                        'compared with ground truth when panels are written; set panel_every to at '
                        'least 1, or leave watch_truth out')
    check_batch(config_class, values, where)
    check_network(config_class, values, where)
    check_unused(config_class, values, where, places)
    if not values.get('val_id_path'):
        values['val_id_path'] = f"splits/{values['dataset']}/val.txt"
    cfg = config_class(**values)
    cfg.check(path)
    return cfg


def check_batch(config_class, values, where):
    """Raise a UserError if batch sizes, accumulate, scale_lr and reference_batch disagree."""
    def value(name):
        return values.get(name, config_class.__dataclass_fields__[name].default)
    # The keys that set the sizes. Unlabeled images always use batch_size.
    sizes = ['labeled_batch_size'] if value('labeled_batch_size') else ['batch_size']
    if config_class.takes_unlabeled and 'batch_size' not in sizes:
        sizes.append('batch_size')
    for name in sizes:
        if value(name) % value('accumulate'):
            largest = math.gcd(*map(value, sizes)) if len(sizes) == 2 else value(name)
            raise UserError(f"{where('accumulate', name)}: accumulate = {value('accumulate')} must "
                            f'divide {name} = {value(name)}: a batch is split into equal parts; '
                            f'set a divisor of {largest}, or another {name}')
    if value('scale_lr') and not value('reference_batch'):
        raise UserError(f"{where('scale_lr', 'reference_batch')}: scale_lr needs reference_batch, "
                        'the global batch that lr is meant for; set it, for example '
                        'reference_batch=8')


def check_unused(config_class, values, where, places):
    """Raise a UserError for a key that has no effect with another one's value, see `ONLY_WITH`.

    A key of the file is left out if the command line chooses that value.
    """
    fields = config_class.__dataclass_fields__
    for name, (other, needed) in ONLY_WITH.items():
        chosen = values.get(other, fields[other].default)
        if name not in values or chosen == needed:
            continue
        # `model` also decides the default of `optimizer`.
        if name not in places and {other, 'model'} & set(places):
            del values[name]
        elif values[name] != default_of(fields[name]):
            raise UserError(f'{where(name, other)}: {name} = {_yaml_word(values[name])} has no '
                            f'effect with {other} = {chosen}; leave it out')


def default_of(field):
    return field.default_factory() if field.default is dataclasses.MISSING else field.default


def check_network(config_class, values, where):
    """Raise a UserError if model, backbone and crop_size disagree."""
    fields = config_class.__dataclass_fields__
    model, backbone = [values.get(name, fields[name].default) for name in ('model', 'backbone')]
    known = [name for name in fields['backbone'].metadata['choices']
             if name.startswith('dinov2_') == (model == 'dpt')]
    if backbone not in known:
        raise UserError(f"{where('backbone', 'model')}: backbone = {backbone} is not possible with "
                        f"model = {model}, whose backbones are {', '.join(known)}; set one of "
                        f"them, or model={'dpt' if model != 'dpt' else 'deeplabv3plus'}")
    if values.get('lock_backbone') and values.get('checkpoint_backbone'):
        raise UserError(f"{where('checkpoint_backbone', 'lock_backbone')}: checkpoint_backbone = "
                        'true has no effect with lock_backbone = true, since there is no backward '
                        'pass through the backbone; leave it out')
    crop = values.get('crop_size', fields['crop_size'].default)
    if model == 'dpt' and crop % PATCH:
        near = [side for side in (crop // PATCH * PATCH, (crop // PATCH + 1) * PATCH)
                if side >= fields['crop_size'].metadata['low']]
        raise UserError(f"{where('crop_size', 'model')}: crop_size = {crop} must be a multiple of "
                        f'{PATCH} with model = dpt, whose patches have {PATCH} x {PATCH} pixels; '
                        f"set {' or '.join(map(str, near))}")


def parse_assignment(text):
    """Split a `--set key=value`; the value is read as YAML."""
    name, sep, value = text.partition('=')
    if not sep or not name.strip():
        raise UserError(f'--set {text}: write key=value, such as --set lr=0.001')
    try:
        return name.strip(), parse(value)
    except ValueError:
        raise UserError(f'--set {text}: the value is not valid YAML; quote it') from None


def unknown_key(place, name, fields):
    close = difflib.get_close_matches(name[:100], fields, n=1) if isinstance(name, str) else []
    hint = f"; did you mean '{close[0]}'?" if close else ''
    return (f"{place}: unknown key {shown(name)}{hint or ';'} Known keys: "
            f"{', '.join(sorted(fields))}")


def check_value(place, field, value):
    """Return `value` as the field's type, or raise a UserError that names the legal values."""
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
        value = [check_scalar(place, field, inner, item) for item in value]
        if field.metadata.get('ordered') and sorted(value) != value:
            raise UserError(f'{place}: {field.name} = {shown(value)} must not fall: write the '
                            f'smaller value first: {field.metadata["help"]}')
        return value
    return check_scalar(place, field, origin, value)


def check_scalar(place, field, kind, value):
    word = field.metadata.get('word')
    if word and value == word:
        return value
    advice = ''
    if kind is str and not isinstance(value, (list, dict)):
        advice = '; write it in quotes'
    elif isinstance(value, str) and re.match(r'[-+]?\d', value):  # such as 010, 1_000, 1:30
        advice = ', in decimal digits without a leading 0'
    wrong = UserError(f'{place}: {field.name} = {shown(value)} must be {_word(kind)}'
                      f'{f" or {word}" if word else ""}{advice}: {field.metadata["help"]}')
    if isinstance(value, int) and not -2 ** 63 <= value < 2 ** 63:
        raise wrong  # does not fit into 64 bits
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if field.type is str and value is None:
        value = ''
    if kind is bool and isinstance(value, str):
        value = SWITCHES.get(value.lower(), value)
    if value is False and 'off' in field.metadata.get('choices', ()):
        value = 'off'  # old files have `false`
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
    for bound, _, holds in bounds:
        if bound in meta and not holds(value, meta[bound]):
            limits = ' and '.join(f'{w} {meta[b]}' for b, w, _ in bounds if b in meta)
            raise UserError(f'{place}: {field.name} = {shown(value)} must be {limits}: '
                            f'{meta["help"]}')
    return value


def check_interval(place, field, value):
    """A checked `save_every` as text: '500' (steps) or '30 min'."""
    text = re.sub(r'\s+', ' ', str(value)).strip()
    if isinstance(value, bool) or not re.fullmatch(r'\d{1,9}|\d{1,5}(\.\d{1,3})? ?min', text):
        raise UserError(f'{place}: {field.name} = {value!r} must be a number of steps, such as '
                        f'500, or of minutes, such as 30 min: {field.metadata["help"]}')
    return text


def interval(text):
    """(steps, seconds) of a `save_every`; 0 means never."""
    number = re.match(r'[\d.]+', text).group()
    return (0, 60 * float(number)) if text.endswith('min') else (int(number), 0.0)


def check_colours(place, value):
    """A list of [red, green, blue]."""
    for colour in value if isinstance(value, (list, tuple)) else [value]:
        if not isinstance(colour, (list, tuple)) or len(colour) != 3 or not all(
                isinstance(c, int) and not isinstance(c, bool) and 0 <= c <= 255 for c in colour):
            raise UserError(f'{place}: colours holds {shown(colour)}; write [red, green, blue] for '
                            'each class, whole numbers from 0 to 255')
    return [list(colour) for colour in value]


def check_names(place, value):
    """Class names from a list, or from a text file given by its path; all must be printable."""
    names = [] if value is None or value == '' else value
    if isinstance(names, str):
        names = read_names(place, names)
    for name in names if isinstance(names, list) else ():
        # Other characters could be commands to the terminal that shows the names.
        if isinstance(name, str) and not (name.isprintable() and len(name) <= LONGEST_NAME):
            raise UserError(f'{place}: classes holds {shown(name)}; a name has at most '
                            f'{LONGEST_NAME} characters, all printable; write another')
    return names


def read_names(place, path):
    """Class names from a text file, one per line; empty lines are skipped."""
    try:
        with open(path, encoding='utf-8-sig') as file:
            lines = file.read(LARGEST).split('\n')
    except (OSError, ValueError) as error:
        raise UserError(f'{place}: classes = {shown(path)} cannot be read as a text file of names '
                        f'({error}); write a list, or the path of a file with one name per '
                        'line, relative to the current folder') from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UserError(f"{place}: classes = '{path}' names no class; write one name per line")
    return names


def check_criterion(place, value):
    """The labeled loss: `CELoss`, or `OHEM` with thresh and min_kept; ignore_index is 255."""
    if not isinstance(value, dict) or value.get('name') not in ('CELoss', 'OHEM'):
        raise UserError(f'{place}: criterion = {shown(value)} must be {{name: CELoss}} or '
                        '{name: OHEM, kwargs: {thresh: 0.7, min_kept: 100000}}')
    for name in value:
        if name not in ('name', 'kwargs'):
            raise UserError(f'{place}: criterion has an unknown key {shown(name)}; known keys: '
                            'name, kwargs')
    kwargs = value.get('kwargs') or {}
    if not isinstance(kwargs, dict):
        raise UserError(f'{place}: criterion kwargs = {shown(kwargs)} must be a mapping such as '
                        '{ignore_index: 255}')
    allowed = {'ignore_index': 255}
    if value['name'] == 'OHEM':
        allowed.update(thresh=0.7, min_kept=100000)
    for name, item in kwargs.items():
        if name not in allowed:
            raise UserError(f"{place}: criterion {value['name']} has no argument {shown(name)}; "
                            f"known arguments: {', '.join(sorted(allowed))}")
        if isinstance(item, bool) or not isinstance(item, (int, float)) \
                or not -2**63 < item < 2**63:
            raise UserError(f'{place}: criterion argument {name} = {shown(item)} must be a number, '
                            f'such as {allowed[name]}')
    merged = {**allowed, **kwargs}
    if merged['ignore_index'] != 255:
        raise UserError(f'{place}: criterion argument ignore_index = {merged["ignore_index"]} must '
                        'be 255; if your masks use another value for ignored pixels, set the key '
                        'ignore_index')
    merged['ignore_index'] = 255
    if value['name'] == 'OHEM':
        if not 0 <= merged['thresh'] <= 1:
            raise UserError(f'{place}: criterion argument thresh = {merged["thresh"]} must be a '
                            'probability between 0 and 1')
        if merged['min_kept'] < 0 or merged['min_kept'] != int(merged['min_kept']):
            raise UserError(f'{place}: criterion argument min_kept = {merged["min_kept"]} must be '
                            'a whole number of pixels, at least 0')
        merged['min_kept'] = int(merged['min_kept'])
    return {'name': value['name'], 'kwargs': merged}


def to_dict(cfg):
    """Plain Python values of a config, in the order of declaration."""
    return dataclasses.asdict(cfg)


def dump(cfg):
    """The resolved config as YAML text."""
    return yaml_text.dump(to_dict(cfg))


def help_text(method):
    """One line per key of a method: name, type, default, help."""
    lines = []
    for field in dataclasses.fields(method.Config):
        default = default_of(field)
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
