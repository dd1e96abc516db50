"""Checkpoints: hostile and damaged files, atomic saving, finding and loading weights."""
import collections
import importlib
import io
import os
import pickle
import struct
import tarfile
import zlib

import numpy as np
import pytest
import torch
import torch.nn as nn

from dssn.errors import UserError
from dssn.models.weights import (
    choose_weights,
    load_weights,
    network_weights,
    read_torch_file,
    roles_held,
)
from dssn.run import checkpoint

FORMATS = {'zip': True, 'legacy': False}


class Call:
    """Pickles as a call, `function(*arguments)`, which an ordinary unpickler makes."""

    def __init__(self, function, arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts

    def __call__(self):
        """pickle wants a function to be callable, also one that is itself a `Call`."""


def numpy_scalar(dtype, data):
    return Call(np.float64(1).__reduce__()[0], (dtype, data))


def attacks(flag):
    """{name: object whose ordinary unpickling makes the file `flag`}."""
    shell = f'touch "{flag}"'
    code = f'open({str(flag)!r}, "w").close()'
    module = Call(importlib.import_module, ('os',))
    inner = io.BytesIO()
    torch.save(Call(os.system, (shell,)), inner, _use_new_zipfile_serialization=False)
    return {
        'os.system': Call(os.system, (shell,)),
        'eval': Call(eval, (code,)),
        'exec': Call(exec, (code,)),
        'open': Call(open, (str(flag), 'w')),
        'getattr chain': Call(Call(getattr, (module, 'system')), (shell,)),
        'getattr of an admitted class': Call(getattr, (collections.OrderedDict, '__doc__')),
        'nested file': Call(torch.storage._load_from_bytes, (inner.getvalue(),)),
        'nested pickle': Call(pickle.loads, (pickle.dumps(Call(os.system, (shell,))),)),
        'numpy.load': Call(np.load, (str(flag),)),
        'object scalar': numpy_scalar(np.dtype('O'), pickle.dumps(Call(os.system, (shell,)))),
        'state of a class': Call(nn.Linear, (1, 1), {'x': Call(os.system, (shell,))}),
        'class': nn.Linear(1, 1),
    }


def writers():
    """{name: write(path, object)}: every format that torch.load reads."""
    def old_tar(path, content):
        with tarfile.open(path, 'w', format=tarfile.PAX_FORMAT) as tar:
            for name in ('storages', 'tensors', 'pickle'):
                data = pickle.dumps(content, protocol=2)
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

    def bare(path, content):
        with open(path, 'wb') as file:
            pickle.dump(content, file, protocol=2)

    def saved(new):
        return lambda path, content: torch.save(
            {'model': {'w': torch.ones(2)}, 'x': content}, path,
            _use_new_zipfile_serialization=new)
    return {'zip': saved(True), 'legacy': saved(False), 'tar': old_tar, 'bare pickle': bare}


@pytest.mark.filterwarnings('ignore')  # of newer releases, about the old formats
@pytest.mark.parametrize('form', sorted(writers()))
@pytest.mark.parametrize('attack', sorted(attacks('x')))
def test_no_code_of_a_file_runs(tmp_path, attack, form):
    flag, path = tmp_path / 'ran', str(tmp_path / 'hostile.pth')
    writers()[form](path, attacks(flag)[attack])
    with pytest.raises(UserError) as caught:
        read_torch_file(path)
    assert path in str(caught.value)
    assert not flag.exists()


def test_the_attacks_are_real(tmp_path):
    for name in ('os.system', 'eval', 'getattr chain', 'nested pickle', 'nested file'):
        flag = tmp_path / name.replace(' ', '_')
        data = pickle.dumps(attacks(flag)[name])
        try:
            pickle.loads(data)
        except Exception:  # newer releases refuse the nested file by themselves
            assert name == 'nested file'
            continue
        assert flag.exists() or name == 'nested file'


def test_a_refusal_names_what_is_refused_and_the_remedy(tmp_path):
    path = str(tmp_path / 'hostile.pth')
    torch.save({'x': Call(eval, ('1',))}, path)
    with pytest.raises(UserError, match=r'hostile.pth.*\beval\b.*state_dict'):
        read_torch_file(path)


@pytest.mark.filterwarnings('ignore')  # a reader that lets this pass makes NumPy warn
def test_a_forged_type_of_a_numpy_scalar_is_refused(tmp_path):
    # A type of objects whose flags deny it: its "number" would be followed as an address.
    _, arguments, state = np.dtype('O').__reduce__()
    forged = Call(np.dtype, arguments, state[:-1] + (0,))
    path = str(tmp_path / 'forged.pth')
    torch.save({'x': numpy_scalar(forged, struct.pack('P', id(None)))}, path)
    with pytest.raises(UserError, match='forged.pth'):
        read_torch_file(path)


@pytest.mark.filterwarnings('ignore')  # TorchScript is deprecated in newer releases
def test_a_program_is_refused(tmp_path):
    path = str(tmp_path / 'program.pt')
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    with pytest.raises(UserError, match='program.pt.*TorchScript.*state_dict'):
        read_torch_file(path)


@pytest.mark.filterwarnings('ignore')
def test_a_program_under_a_false_name_is_refused(tmp_path):
    # Python 3.12's zipfile believes a name in an extra field, which PyTorch's reader does not see.
    path = tmp_path / 'program.pt'
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path))
    data = bytearray(path.read_bytes())
    true, false = b'program/constants.pkl', b'program/other.pkl'
    name = data.rindex(true)  # in the central directory, 46 bytes into its entry
    extra = struct.pack('<HHBL', 0x7075, 5 + len(false), 1, zlib.crc32(true)) + false
    old, = struct.unpack_from('<H', data, name - 16)
    struct.pack_into('<H', data, name - 16, old + len(extra))
    data[name + len(true) + old:name + len(true) + old] = extra
    # The directory grew: its size in both end records, and where the longer of them lies.
    for mark, form, at in ((b'PK\x05\x06', '<L', 12), (b'PK\x06\x06', '<Q', 40),
                           (b'PK\x06\x07', '<Q', 8)):
        place = data.rfind(mark)
        if place >= 0:
            value, = struct.unpack_from(form, data, place + at)
            struct.pack_into(form, data, place + at, value + len(extra))
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match='program.pt'):
        read_torch_file(str(path))


# ---- what must load

@pytest.mark.parametrize('form', sorted(FORMATS))
def test_plain_content_comes_back(tmp_path, form):
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    net.state_dict()['1.running_mean'].fill_(2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.randn(2, 2, 3, 3)).sum().backward()
    optimizer.step()
    content = {'model': net.state_dict(), 'optimizer': optimizer.state_dict(), 'epoch': 3,
               'best': {'student': 71.5}, 'list': [1, None, True, 'ü', (2.5, b'x')],
               'size': torch.Size([1, 2]), 'parameter': nn.Parameter(torch.ones(2)),
               'half': torch.ones(2).half(), 'bfloat16': torch.ones(2).bfloat16(),
               'int': torch.tensor(3, dtype=torch.int32), 'bool': torch.tensor([True]),
               'view': torch.arange(6).view(2, 3).t()}
    path = str(tmp_path / 'a.pth')
    torch.save(content, path, _use_new_zipfile_serialization=FORMATS[form])
    got = read_torch_file(path)
    assert set(got) == set(content)
    assert list(got['model']) == list(content['model'])
    assert got['model']._metadata == content['model']._metadata
    for name, tensor in content['model'].items():
        assert torch.equal(got['model'][name], tensor)
    for name in ('parameter', 'half', 'bfloat16', 'int', 'bool', 'view'):
        assert torch.equal(got[name], content[name]) and got[name].dtype == content[name].dtype
    assert isinstance(got['parameter'], nn.Parameter)
    assert (got['list'], got['size'], got['best']) == (content['list'], (1, 2), content['best'])
    momentum = got['optimizer']['state'][0]['momentum_buffer']
    assert torch.equal(momentum, content['optimizer']['state'][0]['momentum_buffer'])


@pytest.mark.parametrize('value', [np.float64(78.25), np.float32(0.5), np.int64(-7), np.bool_(True),
                                   np.float16(2), np.uint8(200)], ids=lambda v: v.dtype.name)
@pytest.mark.parametrize('form', sorted(FORMATS))
def test_numpy_scalars_load(tmp_path, form, value):
    path = str(tmp_path / 'a.pth')
    torch.save({'miou': value}, path, _use_new_zipfile_serialization=FORMATS[form])
    got = read_torch_file(path)['miou']
    assert got == value and got.dtype == value.dtype


@pytest.mark.parametrize('name', ['numpy.core.multiarray', 'numpy._core.multiarray'])
def test_numpy_scalars_of_old_and_new_numpy_load(tmp_path, name):
    path = tmp_path / 'a.pth'
    torch.save({'miou': np.float64(78.25)}, str(path), _use_new_zipfile_serialization=False)
    written = np.float64(1).__reduce__()[0].__module__.encode()
    data = path.read_bytes()
    assert data.count(written + b'\n') == 1  # names stand in the pickle as lines
    path.write_bytes(data.replace(written, name.encode()))
    assert read_torch_file(str(path)) == {'miou': 78.25}


# ---- damaged files

@pytest.fixture(params=sorted(FORMATS))
def whole(request):
    """The bytes of a sound checkpoint."""
    file = io.BytesIO()
    torch.save({'model': {'w': torch.full((500,), 1.5)}, 'epoch': 3}, file,
               _use_new_zipfile_serialization=FORMATS[request.param])
    return file.getvalue()


@pytest.mark.parametrize('share', [0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_truncated_file_is_refused(tmp_path, whole, share):
    path = tmp_path / 'cut.pth'
    path.write_bytes(whole[:int(share * len(whole))])
    with pytest.raises(UserError, match='cut.pth'):
        read_torch_file(str(path))


@pytest.mark.parametrize('data', [b'', b'\n', b'not a checkpoint', b'<html>404</html>' * 99,
                                  b'PK\x03\x04' + bytes(200), b'\x80\x02}q\x00.'],
                         ids=['empty', 'line', 'text', 'html', 'zip header', 'empty pickle'])
def test_a_file_of_another_kind_is_refused(tmp_path, data):
    path = tmp_path / 'other.pth'
    path.write_bytes(data)
    with pytest.raises(UserError, match='other.pth'):
        read_torch_file(str(path))


@pytest.mark.parametrize('kind', ['missing', 'folder'])
def test_no_file_is_named(tmp_path, kind):
    path = tmp_path / 'no.pth'
    if kind == 'folder':
        path.mkdir()
    with pytest.raises(UserError, match='no.pth'):
        read_torch_file(str(path))


def test_a_flipped_bit_in_a_weight_is_noticed(tmp_path):
    # The zip format holds checksums; a wrong weight would go unseen for ever.
    path = tmp_path / 'flipped.pth'
    torch.save({'w': torch.full((500,), 1.5)}, str(path))
    data = bytearray(path.read_bytes())
    data[data.index(struct.pack('<f', 1.5) * 500) + 1001] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match='flipped.pth'):
        read_torch_file(str(path))


@pytest.mark.filterwarnings('ignore')
def test_a_flipped_bit_anywhere_raises_nothing_but_a_user_error(tmp_path):
    path, file = tmp_path / 'flipped.pth', io.BytesIO()
    torch.save({'model': {'w': torch.full((500,), 1.5)}, 'epoch': 3}, file)
    whole = file.getvalue()
    rng = np.random.default_rng(0)
    refused = 0
    for place in rng.choice(min(len(whole), 700), 60, replace=False):
        data = bytearray(whole)
        data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(data))
        try:
            read_torch_file(str(path))
        except UserError as error:
            assert 'flipped.pth' in str(error)
            refused += 1
    assert refused > 3


# ---- saving

def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = str(tmp_path / 'latest.pth')
    checkpoint.save(path, {'epoch': 1, 'w': torch.ones(3)})
    with pytest.raises((AttributeError, pickle.PicklingError)):
        checkpoint.save(path, {'epoch': 2, 'w': torch.ones(3), 'x': lambda: None})
    assert read_torch_file(path)['epoch'] == 1


def test_a_save_that_dies_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = str(tmp_path / 'latest.pth')
    checkpoint.save(path, {'epoch': 1})

    def dies(content, file, *args, **kwargs):
        # Called with a name or with an open file: half of the content is written either way.
        if hasattr(file, 'write'):
            file.write(b'half')
        else:
            with open(file, 'wb') as opened:
                opened.write(b'half')
        raise KeyboardInterrupt
    monkeypatch.setattr(torch, 'save', dies)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, {'epoch': 2})
    assert read_torch_file(path) == {'epoch': 1}


def test_save_replaces_the_old_file_and_leaves_no_other(tmp_path):
    path = str(tmp_path / 'latest.pth')
    for epoch in (1, 2):
        checkpoint.save(path, {'epoch': epoch})
    assert read_torch_file(path) == {'epoch': 2}
    assert os.listdir(str(tmp_path)) == ['latest.pth']


def test_weights_are_plain(tmp_path):
    state = network_weights(nn.BatchNorm2d(2))
    assert type(state) is dict
    assert all(type(value) is torch.Tensor and not value.requires_grad for value in state.values())


# ---- choosing and loading weights

def state(value, prefix=''):
    return {prefix + name: torch.full((2,), float(value)) for name in ('a.weight', 'classifier.b')}


STUDENT, TEACHER = 1, 2
PLACES = {
    'bare': state(STUDENT),
    'bare, module.': state(STUDENT, 'module.'),
    'model': {'model': state(STUDENT), 'epoch': 3, 'miou': 71.0},
    'model, module.': {'model': state(STUDENT, 'module.')},
    'state_dict': {'state_dict': state(STUDENT)},
    'ordered': {'model': collections.OrderedDict(state(STUDENT, 'module.'))},
}
BOTH = {
    'ours': {'model': state(STUDENT), 'teacher': state(TEACHER)},
    'unimatch': {'model': state(STUDENT, 'module.'), 'model_ema': state(TEACHER, 'module.')},
}


def is_state(found, value):
    return set(found) == set(state(0)) and all(bool((t == value).all()) for t in found.values())


@pytest.mark.parametrize('role', [None, 'student', 'teacher'])
@pytest.mark.parametrize('place', sorted(PLACES))
def test_a_file_with_one_network_serves_as_either(place, role):
    found, got = choose_weights(PLACES[place], 'a.pth', state(0), role)
    assert is_state(found, STUDENT) and got == (role or 'student')


@pytest.mark.parametrize('role, value', [(None, STUDENT), ('student', STUDENT),
                                         ('teacher', TEACHER)])
@pytest.mark.parametrize('place', sorted(BOTH))
def test_a_file_with_both_networks_gives_the_one_asked_for(place, role, value):
    found, got = choose_weights(BOTH[place], 'a.pth', state(0), role)
    assert is_state(found, value) and got == (role or 'student')


@pytest.mark.parametrize('role', ['student', 'teacher'])
def test_a_file_that_says_whose_weights_it_holds_is_believed(role):
    content = {'model': state(TEACHER), 'weights': role}
    found, got = choose_weights(content, 't_best.pth', state(0))
    assert is_state(found, TEACHER) and got == role
    other = {'student': 'teacher', 'teacher': 'student'}[role]
    with pytest.raises(UserError, match='t_best.pth.*' + role + '.*' + other):
        choose_weights(content, 't_best.pth', state(0), other)


@pytest.mark.parametrize('key', ['teacher', 'model_ema'])
def test_a_file_with_the_teacher_alone_gives_the_teacher(key):
    found, got = choose_weights({key: state(TEACHER)}, 'a.pth', state(0))
    assert is_state(found, TEACHER) and got == 'teacher'


@pytest.mark.parametrize('content', [
    {}, [], None, 'text', torch.ones(2), {'epoch': 3}, {'model': {}}, {'model': {'a': 1}},
    {'a': torch.ones(2), 'b': 'text'}, {1: torch.ones(2)}, {'weights': state(1)},
    {'weights': 'ema', 'model': {'a': 1}}, {'weights': torch.ones(2), 'b': 'text'},
], ids=str)
@pytest.mark.parametrize('role', [None, 'teacher'])
def test_a_file_without_weights_is_refused(content, role):
    try:
        found, _ = choose_weights(content, 'a.pth', state(0), role)
    except UserError as error:
        assert 'a.pth' in str(error)
    else:  # a state dict under `weights` may be understood
        assert isinstance(content['weights'], dict) and is_state(found, 1)


PREFIXES = ['_orig_mod.', 'module.', 'module._orig_mod.', 'model.', 'net.module.', 'a.b.c.d.e.']
KEYS = ['model', 'state_dict', 'model_state', 'model_state_dict', 'network', 'student', 'best']
TEACHER_KEYS = ['teacher', 'ema', 'model_ema', 'ema_state_dict', 'state_dict_ema', 'teacher.model']
OTHERS = {'epoch': 3, 'optimizer': {'state': {0: {'exp_avg': torch.ones(2)}}},
          'hyper_parameters': {'lr': 0.1}, 'loops': {'fit': {}}}


@pytest.mark.parametrize('prefix', PREFIXES)
@pytest.mark.parametrize('key', ['', *KEYS])
def test_wrapped_networks_are_found_by_the_names_of_the_network(key, prefix):
    content = {key: state(STUDENT, prefix), **OTHERS} if key else state(STUDENT, prefix)
    found, role = choose_weights(content, 'a.pth', state(0))
    assert is_state(found, STUDENT) and role == 'student'


@pytest.mark.parametrize('prefix', ['', *PREFIXES])
@pytest.mark.parametrize('key', TEACHER_KEYS)
def test_the_averaged_network_is_the_teacher(key, prefix):
    student, teacher = state(STUDENT, prefix), state(TEACHER, prefix)
    contents = [{'model': student, key: teacher, **OTHERS},
                {'model': student, key: {'module': teacher, 'decay': 0.9}}]
    if prefix:  # both in one mapping, as in a LightningModule
        contents.append({'state_dict': {**state(STUDENT, 'student.' + prefix),
                                        **state(TEACHER, f'{key}.{prefix}')}})
        contents.append({**state(STUDENT, prefix), **state(TEACHER, f'{key}.{prefix}')})
    for content in contents:
        for role, value in ((None, STUDENT), ('student', STUDENT), ('teacher', TEACHER)):
            found, got = choose_weights(content, 'a.pth', state(0), role)
            assert is_state(found, value) and got == (role or 'student')
        assert roles_held(content, 'a.pth', state(0)) == ['student', 'teacher']


def test_wrappers_inside_a_name_are_left_out():
    content = {'module.a._orig_mod.weight': torch.ones(2),
               'module.classifier._orig_mod.b': torch.ones(2)}
    assert is_state(choose_weights(content, 'a.pth', state(0))[0], 1)
    content['module.a.weight'] = torch.zeros(2)
    with pytest.raises(UserError, match='module.a.weight twice'):
        choose_weights(content, 'a.pth', state(0))


def test_the_counter_of_an_averaged_model_is_left_out():
    content = {'n_averaged': torch.tensor(5), **state(STUDENT, 'module.')}
    assert is_state(choose_weights(content, 'a.pth', state(0))[0], STUDENT)


@pytest.mark.parametrize('content, role, words', [
    ({'model': state(1), 'state_dict': state(2)}, None, '2 networks of the student: model, '),
    ({'model': state(1), 'last': state(2)}, 'student', 'model, last; save the one that you want'),
    ({'ema': state(1), 'teacher': state(2)}, None, '2 networks of the teacher: ema, teacher'),
    ({'model': state(3), 'ema': state(1), 'teacher': state(2)}, 'teacher', 'teacher: ema, teacher'),
    ({**state(1), **state(2, 'module.')}, None, '2 networks.*: the whole file, module.;'),
    ({'ema': state(1)}, 'student', 'has the weights of the teacher, not of the student'),
    # Never the student in its place.
    ({'model': state(1), 'ema': {'shadow': torch.ones(2)}}, 'teacher', 'its teacher .ema: shadow,'),
    ({'module.a.weight': torch.ones(2), 'classifier.b': torch.ones(2)}, None,
     '2 networks of the student'),
    ({'state_dict': {'encoder.w': torch.ones(1), 'decoder.w': torch.ones(1)}}, None,
     'found: state_dict: encoder.w, state_dict: decoder.w.; expected .* such as a.weight')])
def test_no_network_is_chosen_in_silence(content, role, words):
    with pytest.raises(UserError, match=words):
        choose_weights(content, 'a.pth', state(0), role)


@pytest.mark.parametrize('change, words', [
    (lambda s: s.update({'criterion.weight': torch.ones(1)}), '1 unknown .first: criterion.weight'),
    (lambda s: s.update({'module.more': torch.ones(1)}), '1 unknown .first: more'),
    (lambda s: s.pop('module.norm.bias'), '1 missing .first: norm.bias'),
    (lambda s: s.update({'norm.bias': s.pop('module.norm.bias')}),
     "most names have the prefix 'module.', but not norm.bias"),
    (lambda s: s.update({'norm.bias': torch.ones(4)}), "prefix 'module.', but not norm.bias"),
    (lambda s: s.update({'module.norm.bias': torch.ones(5)}), '1 of another shape')])
def test_a_prefix_hides_no_difference(change, words):
    tensors = {'module.' + name: tensor for name, tensor in Net().state_dict().items()}
    change(tensors)
    with pytest.raises(UserError, match=words):
        load_weights(Net(), choose_weights({'model': tensors}, 'a.pth', Net().state_dict())[0],
                     'a.pth')


def test_a_file_that_contains_itself_or_is_deep_is_searched_once():
    content = {'model': state(STUDENT)}
    content['self'] = content
    for _ in range(2000):
        content = {'deeper': content, 'model': content.get('model')}
    assert is_state(choose_weights(content, 'a.pth', state(0))[0], STUDENT)
    names = {'.'.join('a' * 100_000): torch.ones(1), **state(STUDENT)}
    assert len(choose_weights(names, 'a.pth', state(0))[0]) == 3


class Net(nn.Module):
    def __init__(self, nclass=3, width=4):
        super().__init__()
        self.backbone = nn.Conv2d(1, width, 1)
        self.norm = nn.BatchNorm2d(width)
        self.classifier = nn.Conv2d(width, nclass, 1)


def same(model, other):
    return all(torch.equal(a, b) for a, b in zip(model.state_dict().values(),
                                                 other.state_dict().values()))


def test_weights_load_whole():
    source, model = Net(), Net()
    source.norm.running_mean.fill_(3)
    assert load_weights(model, source.state_dict(), 'a.pth') == []
    assert same(model, source)


def test_weights_from_before_batches_were_counted_load():
    state_dict = {name: tensor for name, tensor in Net().state_dict().items()
                  if not name.endswith('num_batches_tracked')}
    assert load_weights(Net(), state_dict, 'a.pth') == []


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16, torch.double])
def test_weights_of_another_precision_load_as_float(dtype):
    source, model = Net(), Net()
    load_weights(model, source.to(dtype).state_dict(), 'a.pth')
    assert model.backbone.weight.dtype == torch.float32
    assert torch.equal(model.backbone.weight, source.backbone.weight.float())


@pytest.mark.parametrize('change, words', [
    (lambda s: s.pop('backbone.weight'), ['1 missing', 'backbone.weight']),
    (lambda s: s.update(extra=torch.ones(1)), ['1 unknown', 'extra']),
    (lambda s: s.update({'norm.bias': torch.ones(9)}), ['1 of another shape', 'norm.bias (9,)',
                                                        '(4,)']),
    (lambda s: s.pop('norm.running_mean'), ['1 missing', 'norm.running_mean']),
])
def test_what_does_not_fit_is_named_and_nothing_is_loaded(change, words):
    model, untouched = Net(), Net()
    load_weights(untouched, model.state_dict(), '')
    state_dict = dict(Net().state_dict())
    change(state_dict)
    with pytest.raises(UserError) as caught:
        load_weights(model, state_dict, 'a.pth')
    for word in ['a.pth'] + words:
        assert word in str(caught.value)
    assert same(model, untouched)


def test_another_class_count_is_refused_unless_a_new_classifier_is_wanted():
    source, model = Net(nclass=5), Net(nclass=3)
    before = model.classifier.weight.clone()
    given = dict(source.state_dict())
    with pytest.raises(UserError, match='classifier.weight'):
        load_weights(model, given, 'a.pth')
    left = load_weights(model, given, 'a.pth', new_classifier=True)
    assert sorted(left) == ['classifier.bias', 'classifier.weight']
    assert torch.equal(model.classifier.weight, before)
    assert torch.equal(model.backbone.weight, source.backbone.weight)
    assert len(given) == len(source.state_dict())  # the caller's mapping is left alone


def test_a_new_classifier_excuses_no_other_difference():
    with pytest.raises(UserError, match='of another shape'):
        load_weights(Net(width=4), Net(width=8).state_dict(), 'a.pth', True)


def test_a_classifier_that_fits_is_loaded_though_a_new_one_is_allowed():
    source, model = Net(), Net()
    assert load_weights(model, source.state_dict(), 'a.pth', new_classifier=True) == []
    assert same(model, source)
