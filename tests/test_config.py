"""Configuration: strict keys and values, precedence, and the files of existing code bases."""
import dataclasses
import glob
import os
import re

import pytest
import yaml

from dssn import config, methods
from dssn.data.classes import colours_of_classes, names_of_classes
from dssn.errors import UserError
from dssn.tools.experiments.grid import assignment_text
from dssn.yaml_text import parse

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CONFIGS = sorted(glob.glob(os.path.join(ROOT, 'configs', '*.yaml')))
METHODS = sorted(methods.all_methods())
SMALLEST = 'dataset: mine\nnclass: 3\n'

# Files as the public DSSN and UniMatch programs have them.
DSSN_PASCAL = """
dataset: pascal
nclass: 21
crop_size: 513
data_root: /data/VOC2012

epochs: 100
batch_size: 2
lr: 0.002
lr_multi: 10.0
criterion:
  name: CELoss
  kwargs:
    ignore_index: 255
conf_thresh: 0.95

model: deeplabv3plus
backbone: resnet101
replace_stride_with_dilation: [False, False, True]
dilations: [6, 12, 18]
beta: 0.996
num_aug: 3
flag_use_random_num_sampling: True
"""
DSSN_CITYSCAPES = """
dataset: cityscapes
nclass: 19
crop_size: 801
data_root: /data/cityscapes
epochs: 240
batch_size: 2
lr: 0.005
lr_multi: 1.0
criterion:
  name: OHEM
  kwargs:
    ignore_index: 255
    thresh: 0.7
    min_kept: 200000
conf_thresh: 0
model: deeplabv3plus
backbone: resnet50
replace_stride_with_dilation: [False, False, True]
dilations: [6, 12, 18]
beta: 0.996
"""
UNIMATCH_PASCAL = """
dataset: pascal
nclass: 21
crop_size: 321
data_root: Your/Pascal/Path
epochs: 80
batch_size: 2
lr: 0.001
lr_multi: 10.0
criterion:
  name: CELoss
  kwargs:
    ignore_index: 255
conf_thresh: 0.95
model: deeplabv3plus
backbone: resnet101
multi_grid: false
replace_stride_with_dilation: [False, False, True]
dilations: [6, 12, 18]
"""
UNIMATCH_COCO = """
dataset: coco
nclass: 81
crop_size: 513
data_root: Your/COCO/Path
epochs: 30
batch_size: 2
lr: 0.004
lr_multi: 10.0
criterion:
  name: CELoss
  kwargs:
    ignore_index: 255
conf_thresh: 0.95
model: deeplabv3plus
backbone: xception
dilations: [6, 12, 18]
"""
EXISTING = {'dssn pascal': DSSN_PASCAL, 'dssn cityscapes': DSSN_CITYSCAPES,
            'unimatch pascal': UNIMATCH_PASCAL, 'unimatch coco': UNIMATCH_COCO}
# Files as UniMatch V2's program has them: {dataset: (nclass, crop_size, epochs, batch_size, loss)}.
V2 = {'pascal': (21, 518, 60, 4, 'CELoss'), 'cityscapes': (19, 798, 180, 2, 'OHEM'),
      'ade20k': (150, 518, 60, 2, 'CELoss'), 'coco': (81, 518, 20, 4, 'CELoss')}


def unimatch_v2_file(dataset, backbone='dinov2_small'):
    nclass, crop_size, epochs, batch_size, loss = V2[dataset]
    more = '    thresh: 0.7\n    min_kept: 200000\n' if loss == 'OHEM' else ''
    return f"""
dataset: {dataset}
nclass: {nclass}
crop_size: {crop_size}
data_root: Your/Path
epochs: {epochs}
batch_size: {batch_size}
lr: 0.000005
lr_multi: 40.0
criterion:
  name: {loss}
  kwargs:
    ignore_index: 255
{more}conf_thresh: 0.95
model: dpt
backbone: {backbone}
lock_backbone: {dataset == 'ade20k'}
"""


EXISTING.update({f'v2 {dataset}': unimatch_v2_file(dataset) for dataset in V2})


@pytest.fixture
def write(tmp_path):
    """Writes YAML text into a file; returns its path."""
    def to_file(text):
        path = tmp_path / 'experiment.yaml'
        path.write_text(text, encoding='utf-8')
        return str(path)
    return to_file


def refused(path, *words, overrides=None, assignments=()):
    """The message of the UserError that loading must raise; it must hold all `words`."""
    with pytest.raises(UserError) as caught:
        config.load(path, overrides, assignments)
    message = str(caught.value)
    for word in words:
        assert word in message
    assert '\n' not in message
    return message


# ---- files that must load

@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('path', CONFIGS, ids=os.path.basename)
def test_every_config_of_the_project_loads_with_every_method(path, method):
    cfg = config.load(path, {'method': method})
    assert cfg.method == method
    assert cfg.nclass == len(names_of_classes(cfg))


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('name', sorted(EXISTING))
def test_existing_files_load_with_every_method(write, name, method):
    cfg = config.load(write(EXISTING[name]), {'method': method})
    assert (cfg.method, cfg.pretrained) == (method, True)


def test_existing_pascal_file_means_the_published_settings(write):
    cfg = config.load(write(DSSN_PASCAL))
    assert cfg.method == 'DSSN'
    assert (cfg.nclass, cfg.crop_size, cfg.epochs, cfg.batch_size) == (21, 513, 100, 2)
    assert (cfg.lr, cfg.lr_multi, cfg.data_root) == (0.002, 10.0, '/data/VOC2012')
    assert cfg.criterion == {'name': 'CELoss', 'kwargs': {'ignore_index': 255}}
    # conf_thresh 0.95 is a leftover in such files: the rule is the class-aware one.
    assert (cfg.selection, cfg.gate, cfg.ratio) == ('class_max', 0.92, 0.96)
    assert (cfg.beta, cfg.warm_up_epochs, cfg.teacher_bn) == (0.996, 0, 'batch_first_epoch')
    assert (cfg.num_aug, cfg.flag_use_random_num_sampling) == (3, True)
    assert (cfg.cutmix_partner, cfg.protocol, cfg.pretrained) == ('same', 'original', True)
    assert (cfg.backbone, cfg.stem, cfg.model) == ('resnet101', 'deep', 'deeplabv3plus')
    assert cfg.replace_stride_with_dilation == [False, False, True]
    assert cfg.dilations == [6, 12, 18]


def test_existing_cityscapes_file_means_the_published_settings(write):
    cfg = config.load(write(DSSN_CITYSCAPES))
    assert (cfg.nclass, cfg.crop_size, cfg.epochs, cfg.batch_size) == (19, 801, 240, 2)
    assert (cfg.lr, cfg.lr_multi) == (0.005, 1.0)
    assert cfg.criterion == {'name': 'OHEM', 'kwargs': {'ignore_index': 255, 'thresh': 0.7,
                                                        'min_kept': 200000}}
    assert (cfg.selection, cfg.conf_thresh) == ('fixed', 0.0)  # all pixels
    assert (cfg.warm_up_epochs, cfg.protocol, cfg.num_aug) == (5, 'sliding_window', 0)
    assert (cfg.cutmix_partner, cfg.pretrained) == ('same', True)


def test_existing_unimatch_pascal_file_has_no_strong_pool(write):
    cfg = config.load(write(UNIMATCH_PASCAL))
    assert (cfg.crop_size, cfg.epochs, cfg.lr) == (321, 80, 0.001)
    assert (cfg.selection, cfg.num_aug, cfg.beta) == ('class_max', 0, 0.996)
    assert (cfg.multi_grid, cfg.cutmix_partner, cfg.pretrained) == (False, 'same', True)


def test_existing_coco_file_means_the_settings_of_the_table(write):
    cfg = config.load(write(UNIMATCH_COCO))
    assert (cfg.nclass, cfg.crop_size, cfg.epochs, cfg.batch_size) == (81, 513, 30, 2)
    assert (cfg.lr, cfg.lr_multi, cfg.backbone) == (0.004, 10.0, 'xception')
    assert (cfg.selection, cfg.protocol, cfg.warm_up_epochs) == ('class_max', 'original', 0)
    assert (cfg.cutmix_partner, cfg.num_aug, cfg.pretrained) == ('same', 0, True)


@pytest.mark.parametrize('method', ['unimatch_v2', 'fixmatch', 'supervised'])
@pytest.mark.parametrize('dataset', V2)
def test_existing_unimatch_v2_files_mean_the_published_settings(write, dataset, method):
    path = write(unimatch_v2_file(dataset))
    cfg = config.load(path, {'method': method})
    nclass, crop_size, epochs, batch_size, loss = V2[dataset]
    assert (cfg.nclass, cfg.crop_size, cfg.epochs, cfg.batch_size, cfg.criterion['name']) == V2[
        dataset]
    assert (cfg.model, cfg.backbone, cfg.pretrained) == ('dpt', 'dinov2_small', True)
    assert (cfg.optimizer, cfg.lr, cfg.lr_multi, cfg.betas, cfg.eps, cfg.weight_decay) == (
        'adamw', 5e-6, 40.0, [0.9, 0.999], 1e-8, 0.01)
    assert cfg.protocol == ('sliding_window' if dataset == 'cityscapes' else 'original')
    if method != 'supervised':
        assert (cfg.conf_thresh, cfg.cutmix_partner, cfg.num_aug) == (0.95, 'batch', 0)
        assert (cfg.label_ema if method == 'fixmatch' else cfg.beta) == 0.996
    # The file for ADE20K freezes the encoder, but the runs of the published results did not.
    assert cfg.lock_backbone is False
    assert [path in note and 'lock_backbone=true' in note for note in cfg.notes] == \
        [True] * (dataset == 'ade20k')


def test_the_encoder_stays_frozen_on_ade20k_where_the_user_asks_for_it(write):
    path = write(unimatch_v2_file('ade20k'))
    asked = config.load(path, {'method': 'unimatch_v2'}, ['lock_backbone=true'])
    own = config.load(write(unimatch_v2_file('ade20k') + 'optimizer: adamw\n'))
    assert asked.lock_backbone and own.lock_backbone and not asked.notes and not own.notes
    # The config that a run saves loads to the same.
    cfg = config.load(path)
    assert config.from_dict(config.to_dict(cfg), 'x.pth') == cfg
    assert config.from_dict(config.to_dict(asked), 'x.pth') == asked
    # Other data sets' files mean what they say.
    text = unimatch_v2_file('pascal').replace('lock_backbone: False', 'lock_backbone: True')
    assert config.load(write(text)).lock_backbone


@pytest.mark.parametrize('method', ['unimatch_v2', 'fixmatch', 'supervised'])
@pytest.mark.parametrize('name', ['pascal_dinov2', 'cityscapes_dinov2', 'ade20k'])
def test_our_configs_of_dinov2_mean_what_unimatch_v2s_files_mean(write, name, method):
    ours = config.load(os.path.join(ROOT, 'configs', name + '.yaml'), {'method': method})
    path = write(unimatch_v2_file(name.split('_')[0], 'dinov2_base'))
    theirs = config.load(path, {'method': method})
    assert dataclasses.replace(theirs, data_root=ours.data_root,
                               reference_batch=4 * ours.batch_size) == ours


def test_dssn_on_an_existing_unimatch_v2_file(write):
    cfg = config.load(write(unimatch_v2_file('cityscapes')))
    assert (cfg.method, cfg.optimizer, cfg.weight_decay) == ('DSSN', 'adamw', 0.01)
    assert (cfg.selection, cfg.conf_thresh, cfg.cutmix_partner) == ('fixed', 0.95, 'batch')
    assert (cfg.ema_ramp, cfg.warm_up_epochs, cfg.feature_pair) == (True, 0, 'independent')


@pytest.mark.parametrize('assignments, words', [
    (['optimizer=adamw', 'momentum=0.5'], 'momentum = 0.5 has no effect with optimizer = adamw'),
    (['betas=[0.5, 0.9]'], r'betas = \[0.5, 0.9\] has no effect with optimizer = sgd'),
    (['eps=1e-6'], 'eps = 1e-06 has no effect with optimizer = sgd'),
    (['optimizer=adam'], 'optimizer = adam is not allowed.*allowed: sgd, adamw'),
    (['optimizer=adamw', 'betas=[0.9]'], 'betas = .* must have 2 entries'),
    (['optimizer=adamw', 'betas=[0.9, 1]'], 'betas = 1.* must be at least 0 and below 1'),
    (['optimizer=adamw', 'eps=0'], 'eps = 0.* must be at most 1 and above 0'),
    (['feature_pair=complementary', 'feature_views=1'], 'feature_pair = complementary has no eff'),
    (['feature_pair=complementary', 'feature_dropout=0.3'], 'needs feature_dropout = 0.5, not 0.3'),
    (['method=unimatch_v2', 'cutmix_partner=other'], "'cutmix_partner' has no effect with method"),
    (['model=dpt', 'backbone=dinov2_tiny', 'lean=true'], 'lean = true has no effect with model'),
    (['model=dpt', 'backbone=dinov2_tiny', 'teacher_bn=running'], 'teacher_bn = running has no')])
def test_keys_that_do_nothing_with_others_are_refused(write, assignments, words):
    with pytest.raises(UserError, match=words):
        config.load(write(SMALLEST), None, assignments)


def test_the_command_line_may_choose_another_network_or_optimizer_than_the_file(write):
    """The file's keys of the former are left out, also of what a run saves."""
    path = write(SMALLEST + 'stem: plain\nmomentum: 0.8\nlean: true\nbase_channels: 16\n')
    cfg = config.load(path, None, ['model=dpt', 'backbone=dinov2_tiny', 'crop_size=42'])
    assert (cfg.stem, cfg.momentum, cfg.lean, cfg.base_channels) == ('deep', 0.9, False, 64)
    assert config.from_dict(config.to_dict(cfg), 'x.pth') == cfg


@pytest.mark.parametrize('name, expected', [
    ('pascal', dict(nclass=21, crop_size=513, epochs=100, batch_size=2, lr=0.002, lr_multi=10.0,
                    selection='class_max', num_aug=3, warm_up_epochs=0, protocol='original',
                    cutmix_partner='same', backbone='resnet101', pretrained=True)),
    ('cityscapes', dict(nclass=19, crop_size=801, epochs=240, batch_size=2, lr=0.005, lr_multi=1.0,
                        num_aug=0, warm_up_epochs=5, protocol='sliding_window',
                        cutmix_partner='same', backbone='resnet50', pretrained=True)),
    ('coco', dict(nclass=81, crop_size=513, epochs=30, batch_size=2, lr=0.004, lr_multi=10.0,
                  selection='class_max', num_aug=3, warm_up_epochs=0, protocol='original',
                  cutmix_partner='same', backbone='xception', pretrained=True)),
])
def test_our_configs_hold_the_published_settings(name, expected):
    cfg = config.load(os.path.join(ROOT, 'configs', name + '.yaml'))
    assert {key: getattr(cfg, key) for key in expected} == expected
    loss = cfg.criterion['name'], cfg.criterion['kwargs'].get('min_kept')
    assert loss == (('OHEM', 200000) if name == 'cityscapes' else ('CELoss', None))
    if name == 'cityscapes':  # no threshold: two ways to say it
        assert cfg.selection == 'none' or (cfg.selection, cfg.conf_thresh) == ('fixed', 0)


@pytest.mark.parametrize('method', ['fixmatch', 'unimatch'])
def test_baselines_on_cityscapes_have_the_published_threshold(method):
    def load(name):
        return config.load(os.path.join(ROOT, 'configs', name + '.yaml'), {'method': method})
    assert load('cityscapes').conf_thresh == 0    # all pseudo-labels
    assert [load(name).conf_thresh for name in ('pascal', 'coco')] == [0.95, 0.95]


def test_the_expected_scores_of_the_quickstart_are_those_of_the_results():
    def text(name):
        with open(os.path.join(ROOT, name), encoding='utf-8') as file:
            return ' '.join(file.read().replace('\n#', '\n').split())
    row = re.search(r'\| 20 \| DSSN \|.*?\|.*?\|.*?\| ([^|]+) \|.*?\| ([^|]+) \|',
                    text('docs/results.md').split('# shapes ')[1])
    student, teacher = row.groups()
    assert f'student {student}, teacher {teacher};' in text('configs/shapes.yaml')
    assert f'{student} and {teacher}, mean and deviation of seeds 1 to 3' in text('README.md')


def test_a_key_in_the_file_wins_over_the_default_of_its_data_set(write):
    cfg = config.load(write(DSSN_CITYSCAPES + 'selection: class_topk\nprotocol: original\n'
                            'warm_up_epochs: 1\npretrained: false\ncutmix_partner: other\n'))
    assert (cfg.selection, cfg.protocol, cfg.warm_up_epochs) == ('class_topk', 'original', 1)
    assert (cfg.pretrained, cfg.cutmix_partner) == (False, 'other')


def test_own_data_has_no_leftovers_of_the_published_settings(write):
    cfg = config.load(write(SMALLEST))
    assert (cfg.cutmix_partner, cfg.pretrained, cfg.protocol) == ('other', False, 'original')
    assert cfg.val_id_path == 'splits/mine/val.txt'
    assert names_of_classes(cfg) == ['class 0', 'class 1', 'class 2']


# ---- types and values

@pytest.mark.parametrize('text, value', [
    ('1e-3', 1e-3), ('1E-3', 1e-3), ('5e-4', 5e-4), ('.5e-2', 5e-3), ('1.e-3', 1e-3),
    ('2e+1', 20.0), ('2', 2.0), ('0.25', 0.25), ('1.0e-3', 1e-3)])
def test_a_number_arrives_as_a_float(write, text, value):
    path = write(SMALLEST + f'lr: {text}\n')
    from_file = config.load(path).lr
    from_flag = config.load(path, None, ['lr=' + text]).lr
    assert type(from_file) is float and type(from_flag) is float
    assert from_file == from_flag == value


def test_truth_cannot_be_watched_without_panels(write):
    path = write(SMALLEST + 'watch_truth: true\n')
    assert config.load(path).watch_truth
    for assignment in ('panel_every=0', 'method=supervised'):
        with pytest.raises(UserError) as caught:
            config.load(path if 'panel' in assignment else write(SMALLEST), None,
                        [assignment] + ([] if 'panel' in assignment else ['watch_truth=true']))
        assert 'watch_truth' in str(caught.value) and 'no effect' in str(caught.value)


@pytest.mark.parametrize('line', [
    'epochs: true', 'epochs: 1.5', 'epochs: 3.0', 'epochs: "3"', 'epochs: [3]', 'epochs:',
    'pretrained: 1', 'pretrained: "true"', 'pretrained: maybe',
    'lr: true', 'lr: "0.1"', 'lr: .nan', 'lr: .inf', 'lr: fast', 'lr: {a: 1}',
    'data_root: 5', 'data_root: true', 'data_root: [a]',
    'dilations: 6', 'dilations: [6, 12]', 'dilations: [6, 12, 18, 24]', 'dilations: [6, 12, 1.5]',
    'dilations: [6, 12, true]', 'dilations: [6, 12, 0]', 'dilations: "6 12 18"',
    'replace_stride_with_dilation: [0, 0, 1]', 'replace_stride_with_dilation: [true, false]',
    'classes: a b c', 'classes: [a, b, 3]', 'classes: [a, b]',
    'epochs: 0', 'batch_size: 0', 'batch_size: -2', 'crop_size: -3', 'lr: 0', 'lr: -0.1',
    'lr_multi: 0', 'seed: -1', 'workers: -1', 'workers: many', 'workers: 1.5', 'workers: true',
    'beta: 1.0', 'beta: -0.1', 'conf_thresh: 1.5',
    'top: 0', 'top: 1.5', 'gate: -1', 'warm_up_epochs: -1', 'eval_every: 0', 'log_every: 0',
    'panel_every: -1', 'panel_images: 0', 'watch_truth: 1',
    'multi_grid: true', 'num_aug: -1',
    'criterion: CELoss', 'criterion: {name: Focal}', 'criterion: {kwargs: {}}',
    'criterion: {name: CELoss, weight: 2}', 'criterion: {name: CELoss, kwargs: {thresh: 0.7}}',
    'criterion: {name: CELoss, kwargs: {ignore_index: 0}}',
    'criterion: {name: CELoss, kwargs: [255]}',
    'criterion: {name: OHEM, kwargs: {thresh: 2}}', 'criterion: {name: OHEM, kwargs: {thresh: x}}',
    'criterion: {name: OHEM, kwargs: {min_kept: 1.5}}',
    'criterion: {name: OHEM, kwargs: {min_kept: -1}}',
    'criterion: {name: OHEM, kwargs: {min_kept: true}}',
])
def test_a_wrong_value_names_file_key_and_value(write, line):
    path = write(SMALLEST + line + '\n')
    key = line.split(':')[0]
    message = refused(path, path, key)
    value = yaml.safe_load(line)[key]
    if not isinstance(value, (list, dict)) and key != 'criterion':
        # Booleans may be shown as Python's or as YAML's.
        assert repr(value) in message or str(value).lower() in message


@pytest.mark.parametrize('line', ['nclass: 1', 'nclass: 256', 'nclass: 3.0', 'nclass: "3"'])
def test_a_wrong_class_count_is_refused(write, line):
    refused(write('dataset: mine\n' + line + '\n'), 'nclass')


@pytest.mark.parametrize('name', ['nclass', 'dataset'])
def test_a_missing_key_is_named(write, name):
    text = ''.join(line + '\n' for line in SMALLEST.splitlines() if not line.startswith(name))
    path = write(text)
    refused(path, path, f"'{name}' is missing")


def test_criterion_without_kwargs_is_complete(write):
    cfg = config.load(write(SMALLEST + 'criterion: {name: OHEM}\n'))
    assert cfg.criterion['kwargs'] == {'ignore_index': 255, 'thresh': 0.7, 'min_kept': 100000}


@pytest.mark.parametrize('line, hint, allowed', [
    ('backbone: resnet11', 'resnet101', 'xception'),
    ('protocol: sliding_windows', 'sliding_window', 'original'),
    ('selection: classmax', 'class_max', 'class_topk'),
    ('cutmix_partner: others', 'other', 'same'),
    ('method: dssn', 'DSSN', 'supervised'),
])
def test_a_wrong_choice_gets_a_suggestion_and_the_legal_set(write, line, hint, allowed):
    path = write(SMALLEST + line + '\n')
    message = refused(path, path, line.split(': ')[0], line.split(': ')[1], allowed)
    assert f"did you mean '{hint}'?" in message


def test_an_unknown_key_gets_a_suggestion_and_the_known_keys(write):
    path = write(SMALLEST + 'batchsize: 4\n')
    refused(path, path, "unknown key 'batchsize'", "did you mean 'batch_size'?", 'lr_multi',
            'conf_thresh')


def test_an_unknown_key_that_is_like_none_gets_no_suggestion(write):
    message = refused(write(SMALLEST + 'qqqqqq: 4\n'), "'qqqqqq'")
    assert 'did you mean' not in message


@pytest.mark.parametrize('value', ['[DSSN]', '{DSSN: 1}', '3', 'true'])
def test_a_method_that_is_no_name_is_refused(write, value):
    refused(write(SMALLEST + f'method: {value}\n'), 'method', 'DSSN')


# ---- files that are no configs

@pytest.mark.parametrize('text, word', [
    ('', 'NoneType'), ('- a\n- b\n', 'list'), ('just words\n', 'str'),
    ('dataset: [mine\nnclass: 3\n', 'YAML'), ('a: b: c\n', 'YAML'), ('\tdataset: mine\n', 'YAML'),
    ('{[1]: 2}\n', 'YAML'), ('1: 2\n', '1'), ('nclass: 3\ndataset: a\nnclass: 4\n', 'nclass'),
    ('dataset: mine\nnclass: 3\ncriterion: {name: CELoss, name: OHEM}\n', 'name'),
    ('dataset: mine\nnclass: 3\nsave_path: !!timestamp 2023-99-99\n', 'YAML'),
])
def test_a_file_that_is_no_config_is_refused(write, text, word):
    path = write(text)
    refused(path, path, word)


def test_a_duplicated_key_is_named_as_such(write):
    refused(write(SMALLEST + 'lr: 0.1\nlr: 0.1\n'), "'lr'", 'twice')


@pytest.mark.parametrize('kind', ['missing', 'folder', 'not text'])
def test_a_file_that_cannot_be_read_is_named(tmp_path, kind):
    path = tmp_path / 'a.yaml'
    if kind == 'folder':
        path.mkdir()
    if kind == 'not text':
        path.write_bytes(b'dataset: \xff\xfe\n')
    refused(str(path), str(path))


def test_no_code_of_a_file_runs(write, tmp_path):
    flag = tmp_path / 'ran'
    text = f'!!python/object/apply:os.system ["touch {flag}"]'
    refused(write(SMALLEST + f'data_root: {text}\n'))
    refused(write(SMALLEST), assignments=['data_root=' + text])
    assert not flag.exists()


# ---- precedence

def test_set_wins_over_flag_wins_over_file(write):
    path = write(SMALLEST + 'epochs: 5\nmethod: supervised\n')
    assert config.load(path, {'epochs': None, 'method': None}).epochs == 5
    assert config.load(path, {'epochs': 7}).epochs == 7
    assert config.load(path, {'epochs': 7}, ['epochs=9']).epochs == 9
    assert config.load(path, {'epochs': 7}, ['epochs=9', 'epochs=11']).epochs == 11
    assert config.load(path).method == 'supervised'
    assert config.load(path, {'method': 'DSSN'}).method == 'DSSN'
    assert config.load(path, {'method': 'DSSN'}, ['method=supervised']).method == 'supervised'


def test_set_reads_values_as_yaml(write):
    cfg = config.load(write(SMALLEST), None, [
        'dilations=[1, 2, 3]', 'pretrained=true', 'save_path=exp/a=b', 'lr=2e-3',
        'criterion={name: OHEM, kwargs: {thresh: 0.6, min_kept: 5}}'])
    assert (cfg.dilations, cfg.pretrained, cfg.save_path) == ([1, 2, 3], True, 'exp/a=b')
    assert cfg.lr == 0.002
    assert cfg.criterion['kwargs'] == {'ignore_index': 255, 'thresh': 0.6, 'min_kept': 5}


@pytest.mark.parametrize('assignment, words', [
    ('lr', ['key=value']), ('=3', ['key=value']), ('lrr=3', ["'lrr'", "'lr'"]),
    ('epochs=x', ['epochs', 'whole number']), ('epochs=', ['epochs']), ('dilations=[1', ['YAML']),
    ('save_path=!!timestamp 2024-02-30', ['YAML']),
])
def test_a_wrong_set_is_named_as_written(write, assignment, words):
    refused(write(SMALLEST), '--set ' + assignment, *words, assignments=[assignment])


def test_a_key_of_another_method_is_refused_from_set_but_not_from_the_file(write):
    path = write(SMALLEST + 'method: supervised\nconf_thresh: 0.9\nnum_aug: 3\ngate: 0.5\n')
    cfg = config.load(path)
    assert cfg.method == 'supervised' and not hasattr(cfg, 'conf_thresh')
    refused(path, '--set gate=0.5', "'gate'", 'supervised', assignments=['gate=0.5'])
    assert config.load(path, {'method': 'DSSN'}, ['gate=0.6']).gate == 0.6


def test_a_wrong_value_of_another_methods_key_is_refused_all_the_same(write):
    refused(write(SMALLEST + 'method: supervised\nconf_thresh: 7\n'), 'conf_thresh')


# ---- writing

@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('text', [SMALLEST, DSSN_PASCAL, DSSN_CITYSCAPES,
                                  SMALLEST + 'classes: [yes it is, "no", "1"]\nlr: 1e-5\n'
                                  'data_root: "a: b # c"\n'],
                         ids=['smallest', 'pascal', 'cityscapes', 'odd'])
def test_a_dumped_config_loads_to_the_same(write, text, method):
    cfg = config.load(write(text), {'method': method, 'save_path': 'exp/ü'})
    assert config.load(write(config.dump(cfg))) == cfg
    assert config.from_dict(config.to_dict(cfg), 'x.pth') == cfg


def test_a_checkpoints_config_names_the_checkpoint_in_errors():
    with pytest.raises(UserError, match="x.pth.*'nclas'.*'nclass'"):
        config.from_dict({'dataset': 'mine', 'nclas': 3}, 'x.pth')


def test_a_checkpoints_config_with_a_key_that_is_no_name_is_refused():
    with pytest.raises(UserError, match='x.pth'):
        config.from_dict({'dataset': 'mine', 'nclass': 3, 5: 1}, 'x.pth')


@pytest.mark.parametrize('method', METHODS)
def test_help_tells_every_key_of_the_method(method):
    text = config.help_text(methods.find(method, ''))
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert 'number' in lines['crop_size'] or 'side' in lines['crop_size']
    assert '0.002' in lines['lr'] and 'float' in lines['lr']
    assert ('gate' in lines) == (method == 'DSSN')
    assert all(len(line.split(': ', 1)[1]) > 5 for line in lines.values())


# Own data: names, colours and the ignored value.

def test_classes_may_lie_in_a_file_and_decide_nclass(write, tmp_path):
    names = tmp_path / 'my names.txt'
    names.write_text('road\n\n  car park \ntree', encoding='utf-8')
    cfg = config.load(write(f"dataset: mine\nclasses: '{names}'\n"))
    assert cfg.classes == ['road', 'car park', 'tree'] and cfg.nclass == 3
    # The resolved config carries the names: it loads where the file is not.
    assert config.from_dict(config.to_dict(cfg), 'x.pth') == cfg
    assert config.load(write('dataset: mine\nclasses: [a, b]\n')).nclass == 2


@pytest.mark.parametrize('line, words', [
    ('classes: none.txt', ('none.txt', 'one name per line', 'current folder')),
    ('classes: [a]', ('nclass', '1')),
    ('classes: [a, 2]', ('classes', 'text')), ('nclass: 3\nclasses: [a, b]', ('2', '3', 'agree')),
    ('nclass: 2\ncolours: [[1, 2, 3]]', ('colours', '1', '2', 'agree')),
    ('nclass: 2\ncolours: [[1, 2, 3], [4, 5]]', ('colours', '[4, 5]', 'red')),
    ('nclass: 2\ncolours: [[1, 2, 3], [4, 5, 256]]', ('colours', '256', '255')),
    ('nclass: 2\ncolours: red', ('colours', 'red')),
    ('nclass: 2\nignore_index: 256', ('ignore_index', '256')),
    ('nclass: 2\nignore_index: -1', ('ignore_index', '-1'))])
def test_impossible_names_colours_and_ignored_values(write, line, words):
    refused(write('dataset: mine\n' + line + '\n'), *words)


def test_a_file_of_names_may_not_be_empty(write, tmp_path):
    (tmp_path / 'empty.txt').write_text('\n')
    refused(write(f"dataset: mine\nclasses: {tmp_path / 'empty.txt'}\n"), 'empty.txt', 'no class')


def test_colours_are_the_users_or_the_data_sets(write):
    cfg = config.load(write(SMALLEST + 'colours: [[1, 2, 3], [0, 0, 0], [255, 254, 253]]\n'))
    assert colours_of_classes(cfg) == [(1, 2, 3), (0, 0, 0), (255, 254, 253)]
    road = colours_of_classes(config.load(write('dataset: cityscapes\nnclass: 19\n')))[0]
    assert road == (128, 64, 128)


@pytest.mark.parametrize('keys, words', [
    (dict(batch_size=4, accumulate=3), 'accumulate = 3 must divide batch_size = 4'),
    (dict(batch_size=2, accumulate=4), 'accumulate = 4 must divide batch_size = 2'),
    (dict(batch_size=4, labeled_batch_size=6, accumulate=4),
     'accumulate = 4 must divide labeled_batch_size = 6: .*set a divisor of 2, or another labeled'),
    (dict(batch_size=4, labeled_batch_size=9, accumulate=3),
     'accumulate = 3 must divide batch_size = 4: .*set a divisor of 1, or another batch_size'),
    (dict(method='supervised', batch_size=4, labeled_batch_size=6, accumulate=4),
     'accumulate = 4 must divide labeled_batch_size = 6: .*set a divisor of 6'),
    (dict(method='supervised', batch_size=4, accumulate=3), 'must divide batch_size = 4'),
    (dict(labeled_batch_size=-1), 'labeled_batch_size = -1 must be at least 0: labeled images'),
    (dict(labeled_batch_size=2.5), 'labeled_batch_size = 2.5 must be a whole number'),
    (dict(scale_lr=True), 'scale_lr needs reference_batch'),
])
def test_batch_keys_that_do_not_agree(tiny_world, keys, words):
    with pytest.raises(UserError, match=words):
        tiny_world().load(**keys)


@pytest.mark.parametrize('keys, labeled, unlabeled, most', [
    (dict(batch_size=4), 4, 4, 4), (dict(batch_size=4, labeled_batch_size=6), 6, 4, 2),
    (dict(batch_size=2, labeled_batch_size=3, method='fixmatch'), 3, 2, 1),
    (dict(batch_size=4, method='supervised'), 4, 0, 4),
    (dict(batch_size=4, labeled_batch_size=6, method='supervised'), 6, 0, 6)])
def test_images_of_each_kind(tiny_world, keys, labeled, unlabeled, most):
    cfg = tiny_world().load(**keys)
    assert (cfg.labeled_images, cfg.unlabeled_images, cfg.most_parts) == (labeled, unlabeled, most)
    assert tiny_world().load(**keys, accumulate=most).accumulate == most
    # A file with another batch_size stays right: the default follows it.
    assert 'labeled_batch_size' in keys or \
        tiny_world().load(**{**keys, 'batch_size': 7}).labeled_images == 7


@pytest.mark.parametrize('text, value', [('auto', 'auto'), ('0', 0), ('3', 3)])
def test_workers_are_a_number_or_auto(write, text, value):
    assert config.load(write(SMALLEST + f'workers: {text}\n')).workers == value
    assert config.load(write(SMALLEST), None, ['workers=' + text]).workers == value


@pytest.mark.parametrize('text, value', [('auto', 'auto'), ('true', True), ('false', False)])
def test_tf32_is_auto_as_in_new_files_or_decided_as_in_old_ones(write, text, value):
    assert config.load(write(SMALLEST + f'tf32: {text}\n')).tf32 == value
    assert config.load(write(SMALLEST)).tf32 == 'auto'
    assert config.from_dict(dict(dataset='x', nclass=3, tf32=value), 'old.pth').tf32 == value


@pytest.mark.parametrize('assignment, words', [
    ('tf32=fast', 'tf32 = .fast. must be true or false or auto'),
    ('tf32=1', 'tf32 = 1 must be true or false or auto'),
    ('deterministic=auto', 'deterministic = .auto. must be true or false: on one GPU'),
    ('eval_amp=half', 'eval_amp = half is not allowed; allowed: off, bf16, fp16')])
def test_impossible_arithmetic(write, assignment, words):
    with pytest.raises(UserError, match=words):
        config.load(write(SMALLEST), None, [assignment])


def test_workers_are_auto_by_default_and_errors_and_help_say_so(write):
    path = write(SMALLEST)
    assert config.load(path).workers == 'auto'
    with pytest.raises(UserError, match='workers = .many. must be a whole number or auto'):
        config.load(path, None, ['workers=many'])
    # The word is one key's: others do not take it.
    with pytest.raises(UserError, match='epochs'):
        config.load(path, None, ['epochs=auto'])
    assert 'workers (int or auto, default auto)' in config.help_text(methods.find('DSSN', ''))


# ---- what the words of a file mean

FIELDS = {field.name: field for method in methods.all_methods().values()
          for field in dataclasses.fields(method.Config)}
CHOICES = [(name, choice) for name, field in FIELDS.items()
           for choice in (*field.metadata.get('choices', ()), field.metadata.get('word'))
           if choice is not None]


def both_ways(write, name, text):
    """The value of a key that is written so in a file, and after --set: must be the same."""
    others = '' if name == 'nclass' else 'nclass: 3\n'
    others += '' if name == 'dataset' else 'dataset: mine\n'
    if text.strip('"') == 'dpt' or 'dinov2' in text:
        others += 'crop_size: 28\n'
        others += 'backbone: dinov2_tiny\n' if name == 'model' else 'model: dpt\n'
    loaded = config.load(write(f'{others}{name}: {text}\n'))
    given = config.load(write(f'{others}{name}: [not, this]\n'), None, [f'{name}={text}'])
    assert loaded == given
    return getattr(loaded, name)


@pytest.mark.parametrize('name, choice', CHOICES, ids=str)
def test_every_choice_can_be_written_as_the_help_and_the_errors_write_it(write, name, choice):
    text = str(choice).lower() if isinstance(choice, bool) else str(choice)
    value = both_ways(write, name, text)
    assert value == choice and type(value) is type(choice)
    if isinstance(choice, str):
        assert both_ways(write, name, f'"{text}"') == choice


@pytest.mark.parametrize('text, value', [
    ('true', True), ('True', True), ('TRUE', True), ('yes', True), ('Yes', True), ('on', True),
    ('ON', True), ('false', False), ('False', False), ('no', False), ('No', False),
    ('off', False)])
def test_words_for_true_and_false(write, text, value):
    for name in ('pretrained', 'deterministic', 'tf32'):
        assert both_ways(write, name, text) is value


# YAML 1.1 reads them as 18, 8, 5400, a date, true, false, null, 16, 1000, and the number 80.
@pytest.mark.parametrize('text', ['1_8', '010', '1:30:00', '2024-02-30', 'on', 'no', 'n', '0x10',
                                  '1_000', '+0_80', '08', '=', '1e', '190:20:30'])
def test_what_is_no_decimal_number_is_text_as_it_is_written(write, text):
    for name in ('save_path', 'labeled_id_path'):
        assert both_ways(write, name, text) == text
    assert config.load(write(f'dataset: a\nclasses: [x, {text}]\n')).classes == ['x', text]
    for name in ('epochs', 'lr'):
        refused(write(f'{SMALLEST}{name}: {text}\n'), f"{name} = '{text}' must be a", 'number')
        refused(write(SMALLEST), f"{name} = '{text}' must be a", assignments=[f'{name}={text}'])


@pytest.mark.parametrize('text', ['null', '~', ''])
def test_no_value_is_an_empty_text_but_no_class_name_and_no_number(write, text):
    assert both_ways(write, 'init_from', text) == ''
    refused(write(f'dataset: a\nclasses: [x, {text or "null"}]\n'), 'classes', 'in quotes')
    refused(write(SMALLEST + f'epochs: {text}\n'), 'epochs = None must be a whole number')


@pytest.mark.parametrize('name, text', [('dataset', '2012'), ('save_path', '1.50'),
                                        ('init_from', 'true'), ('unlabeled_id_path', '1e3')])
def test_a_number_or_true_for_a_text_must_be_quoted(write, name, text):
    others = 'nclass: 3\n' + 'dataset: a\n' * (name != 'dataset')
    refused(write(f'{others}{name}: {text}\n'), name, 'must be text; write it in quotes')
    assert both_ways(write, name, f'"{text}"') == text


def test_class_names_survive_the_file_that_a_run_writes(write):
    names = ['1e5', '08', '010', 'off', 'yes', 'null', '~', '1_8', '1:30', '2024-02-30', '5', '.5',
             '=', '<<', 'true', '# a', 'Straße', '道路', '\U0001f600', '0x10']
    cfg = config.from_dict({'dataset': 'a', 'classes': names}, 'x.pth')
    assert config.load(write(config.dump(cfg))).classes == names
    for reader in (yaml.safe_load, parse):  # other programs may read it, too
        assert reader(config.dump(cfg))['classes'] == names
    assert parse(assignment_text({'classes': names}))['classes'] == names
    assert [parse(assignment_text(name)) for name in names] == names


SHOWN = re.compile(rf'(?<![\w.])({"|".join(FIELDS)})(?:=|: )' r'([\w."\'/\[{-][^\s`|,;)}\]]*)')


def test_every_value_that_the_documentation_shows_is_legal():
    found = 0
    for pattern in ('README.md', 'docs/*.md', 'pretrained/*.md', 'configs/*.yaml',
                    'experiments/*.yaml', 'train.py', 'eval.py'):
        for path in glob.glob(os.path.join(ROOT, pattern)):
            with open(path, encoding='utf-8') as file:
                code = re.findall(r'```.*?```|`[^`\n]+`', file.read(), re.S) \
                    if path.endswith('.md') else file
                for line in [line for part in code for line in part.splitlines()
                             if '= key(' not in line]:
                    for name, text in SHOWN.findall(line):
                        if text in ('k', 'LIST', '...', 'names.txt') or set(text) & set('[{'):
                            continue  # a placeholder, or a part of a list
                        config.check_value(f'{path}: {line}', FIELDS[name], parse(text.strip("'")))
                        found += 1
    assert found > 200
