"""Command line of the weights: fetching from a local server, converting, saying what is what."""
import hashlib
import http.server
import os
import runpy
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from dssn import checkpoint
from dssn.models import BACKBONES, fetch, weights
from dssn.models.fetch import main

WIDTH = 2  # base channels of the synthetic files, which are small for it


def backbone_state(backbone='resnet50', stem='deep', width=WIDTH, seed=0):
    """A backbone's tensors, each with values of its own."""
    torch.manual_seed(seed)
    own = BACKBONES[backbone]() if backbone == 'xception' else BACKBONES[backbone](
        stem, base_channels=width)
    return {name: torch.rand_like(tensor) if tensor.is_floating_point() else tensor + 3
            for name, tensor in own.state_dict().items()}


def with_classifier(state):
    return dict(state, **{'fc.weight': torch.zeros(10, 4), 'fc.bias': torch.zeros(10)})


def saved(path, content):
    torch.save(content, str(path))
    return str(path)


def stored(folder, backbone='resnet50'):
    """The tensors in the folder's file."""
    return checkpoint.read_torch_file(os.path.join(str(folder), backbone + '.pth'))['state_dict']


def assert_same_tensors(found, expected):
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class Server:
    """Serves the files of a folder on this machine; `spoil` may be set to ways of failing."""

    def __init__(self, folder):
        self.folder, self.spoil, self.asked = folder, None, []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *args):
                pass
        self.http = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = 'http://127.0.0.1:%d/' % self.http.server_address[1]
        self.done = threading.Event()

    def answer(self, request):
        name = request.path.rpartition('/')[2]
        self.asked.append(name)
        path = os.path.join(self.folder, name)
        if not os.path.exists(path):
            request.send_error(404)
            return
        with open(path, 'rb') as file:
            content = file.read()
        request.send_response(200)
        request.send_header('Content-Length', str(len(content)))
        request.end_headers()
        if self.spoil == 'changed':
            content = content[:-1] + bytes([content[-1] ^ 1])
        if self.spoil in ('broken off', 'stalled'):
            content = content[:len(content) // 2]
        request.wfile.write(content)
        request.wfile.flush()
        if self.spoil == 'stalled':
            self.done.wait(60)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server with a small file for each public name, whose names end in their SHA-256's head."""
    folder = tmp_path / 'web'
    folder.mkdir()
    server = Server(str(folder))
    for key in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(key, raising=False)
    for stem, table in (('deep', 'DEEP_STEM_FILES'), ('plain', 'PLAIN_STEM_FILES')):
        names = {}
        for backbone in getattr(weights, table):
            path = saved(folder / 'new', with_classifier(backbone_state(backbone, stem)))
            with open(path, 'rb') as file:
                head = hashlib.sha256(file.read()).hexdigest()[:8]
            names[backbone] = '%s_%s-%s.pth' % (backbone, stem, head)
            os.rename(path, str(folder / names[backbone]))
        monkeypatch.setattr(weights, table, names)
    monkeypatch.setattr(weights, 'GLUON_FOLDER', server.url + 'gluon/')
    monkeypatch.setattr(weights, 'TORCHVISION_FOLDER', server.url + 'torchvision/')
    yield server
    server.done.set()
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / 'pretrained'


def run(folder, *arguments):
    """Exit status of a command whose files go to `folder`."""
    return main(list(arguments) + ['--folder', str(folder)])


# ---- the public files

def test_public_names_are_those_of_the_documented_sources():
    base = 'https://github.com/rwightman/pytorch-pretrained-gluonresnet/releases/download/v0.1/'
    hub = 'https://download.pytorch.org/models/'
    assert {(b, s): weights.source_url(b, s) for b in BACKBONES for s in ('deep', 'plain')} == {
        ('resnet18', 'deep'): None, ('resnet18', 'plain'): hub + 'resnet18-f37072fd.pth',
        ('resnet50', 'deep'): base + 'gluon_resnet50_v1s-1762acc0.pth',
        ('resnet50', 'plain'): hub + 'resnet50-0676ba61.pth',
        ('resnet101', 'deep'): base + 'gluon_resnet101_v1s-60fe0cc1.pth',
        ('resnet101', 'plain'): hub + 'resnet101-63fe2227.pth',
        ('xception', 'deep'): None, ('xception', 'plain'): None}


@pytest.mark.parametrize('backbone, arguments, stem', [
    ('resnet50', [], 'deep'), ('resnet101', [], 'deep'), ('resnet18', [], 'plain'),
    ('resnet50', ['--stem', 'plain'], 'plain'), ('resnet101', ['--stem', 'deep'], 'deep')])
def test_fetched_weights_fill_the_backbone(server, folder, capsys, backbone, arguments, stem):
    assert run(folder, 'fetch', backbone, *arguments) == 0
    assert os.listdir(str(folder)) == [backbone + '.pth']
    assert server.asked == [weights.source_url(backbone, stem).rpartition('/')[2]]
    assert_same_tensors(stored(folder, backbone), backbone_state(backbone, stem))
    said = capsys.readouterr().out
    assert '%s, %s stem' % (backbone, stem) in said and 'fc.weight, fc.bias' in said
    assert ('the config needs `stem: plain`' in said) == (stem == 'plain')

    class Model:
        pass
    model = Model()
    model.backbone = BACKBONES[backbone](stem, base_channels=WIDTH)
    weights.load_backbone_weights(model, backbone, stem, weights.pretrained_file(
        backbone, str(folder)))
    assert_same_tensors(model.backbone.state_dict(), backbone_state(backbone, stem))


def test_what_is_there_is_not_fetched_again(server, folder, capsys):
    assert run(folder, 'fetch', 'resnet50') == 0
    assert run(folder, 'fetch', 'resnet50') == 0
    assert len(server.asked) == 1 and 'is there already' in capsys.readouterr().out
    assert run(folder, 'fetch', 'resnet50', '--stem', 'plain') == 1
    assert 'move it away' in capsys.readouterr().err
    assert_same_tensors(stored(folder), backbone_state())


def test_what_is_there_but_lacks_tensors_is_not_taken_for_it(server, folder, capsys):
    folder.mkdir()
    state = backbone_state()
    del state['bn1.bias']
    saved(folder / 'resnet50.pth', state)
    assert run(folder, 'fetch', 'resnet50') == 1
    assert 'not resnet50 with a deep stem' in capsys.readouterr().err and server.asked == []


@pytest.mark.parametrize('spoil, words', [
    ('changed', ['damaged', 'SHA-256']), ('broken off', ['http://', 'convert FILE']),
    ('stalled', ['http://', 'timed out', 'convert FILE'])])
def test_a_download_that_fails_leaves_nothing(server, folder, capsys, monkeypatch, spoil, words):
    monkeypatch.setattr(fetch, 'TIMEOUT', 0.3)
    server.spoil = spoil
    assert run(folder, 'fetch', 'resnet50') == 1
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert os.listdir(str(folder)) == []
    server.spoil = None
    assert run(folder, 'fetch', 'resnet50') == 0


def test_a_file_that_is_not_there_any_more_is_said(server, folder, capsys):
    os.remove(os.path.join(server.folder, weights.DEEP_STEM_FILES['resnet50']))
    assert run(folder, 'fetch', 'resnet50') == 1
    said = capsys.readouterr().err
    assert '404' in said and weights.DEEP_STEM_FILES['resnet50'] in said
    assert os.listdir(str(folder)) == []


def test_no_connection_is_said(server, folder, capsys):
    server.http.shutdown()
    server.http.server_close()
    assert run(folder, 'fetch', 'resnet50') == 1
    assert 'cannot be downloaded' in capsys.readouterr().err


def test_a_file_without_end_is_broken_off(server, folder, capsys, monkeypatch):
    monkeypatch.setattr(fetch, 'LARGEST', 1000)
    assert run(folder, 'fetch', 'resnet50') == 1
    assert 'more than 1000 bytes' in capsys.readouterr().err
    assert os.listdir(str(folder)) == []


@pytest.mark.parametrize('place', ['download', 'save'])
def test_an_interruption_leaves_nothing(server, folder, monkeypatch, place):
    def interrupt(content, file):
        file.write(b'half')
        raise KeyboardInterrupt

    class Bar(fetch.tqdm):
        def update(self, n=1):
            raise KeyboardInterrupt
    if place == 'download':
        monkeypatch.setattr(fetch, 'tqdm', Bar)
    else:
        monkeypatch.setattr(torch, 'save', interrupt)
    assert run(folder, 'fetch', 'resnet50') == 130
    assert os.listdir(str(folder)) == []


CHILD = '''
import sys, runpy
from dssn.models import weights
weights.TORCHVISION_FOLDER, weights.PLAIN_STEM_FILES = {url!r}, {files!r}
sys.argv = ['weights', 'fetch', 'resnet18', '--folder', {folder!r}]
runpy.run_module('dssn.models.weights', run_name='__main__')
'''


def test_a_terminated_download_leaves_nothing(server, folder):
    server.spoil = 'stalled'
    code = CHILD.format(url=server.url, files=weights.PLAIN_STEM_FILES, folder=str(folder))
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    child = subprocess.Popen([sys.executable, '-c', code], cwd=root, stderr=subprocess.DEVNULL)
    try:
        part = folder / (weights.PLAIN_STEM_FILES['resnet18'] + '.part')
        for _ in range(600):
            if part.exists():
                break
            time.sleep(0.1)
        assert part.exists()
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 143
    finally:
        child.kill()
    assert os.listdir(str(folder)) == []


@pytest.mark.parametrize('name, arguments, words', [
    ('resnet50_v1c-2cccc1ad.pth', [], ['resnet50_v1c', '32/32/64', '64/64/128']),
    ('open-mmlab://resnet101_v1c', [], ['32/32/64']),
    ('resnet34', [], ['resnet34', 'resnet18, resnet50, resnet101']),
    ('xception', [], ['UniMatch', 'convert FILE']),
    ('resnet18', ['--stem', 'deep'], ['deep stem', '`stem: plain`'])])
def test_what_cannot_be_fetched_is_said_by_name(server, folder, capsys, name, arguments, words):
    assert run(folder, 'fetch', name, *arguments) == 1
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert server.asked == [] and not folder.exists()


def test_a_folder_that_cannot_be_made_is_said(server, tmp_path, capsys):
    blocked = tmp_path / 'file'
    blocked.write_text('')
    assert run(blocked / 'pretrained', 'fetch', 'resnet50') == 1
    assert str(blocked) in capsys.readouterr().err


# ---- convert

WRAPPED = {
    'bare': lambda state: state,
    'prefixed': lambda state: {'module.backbone.' + name: t for name, t in state.items()},
    'uncounted': lambda state: {n: t for n, t in state.items() if 'num_batches' not in n},
    'extra': lambda state: dict(state, **{'last_linear.weight': torch.zeros(3), 'conv9.bias':
                                          torch.zeros(2)}),
    'checkpoint': lambda state: {'epoch': 3, 'state_dict': with_classifier(state)},
}


@pytest.mark.parametrize('wrapping', sorted(WRAPPED))
@pytest.mark.parametrize('backbone, stem', [('resnet18', 'plain'), ('resnet50', 'deep')])
def test_a_users_file_is_converted(tmp_path, folder, capsys, wrapping, backbone, stem):
    state = backbone_state(backbone, stem)
    path = saved(tmp_path / 'mine.pth', WRAPPED[wrapping](state))
    assert run(folder, 'convert', path, '--backbone', backbone) == 0
    expected = WRAPPED['uncounted'](state) if wrapping == 'uncounted' else state
    assert_same_tensors(stored(folder, backbone), expected)
    said = capsys.readouterr().out
    assert ('last_linear.weight, conv9.bias' in said) == (wrapping == 'extra')
    # Again, without naming the backbone: the same is there.
    assert run(folder, 'convert', path) == 0
    assert main(['check', os.path.join(str(folder), backbone + '.pth')]) == 0
    assert 'ImageNet weights from mine.pth: %s, %s stem' % (backbone, stem) in (
        capsys.readouterr().out)


def test_xception_is_converted(tmp_path, folder, capsys):
    state = backbone_state('xception')
    more = {'fc.weight': torch.zeros(2), 'last_linear.bias': torch.zeros(2),
            'bn3.weight': torch.zeros(1536), 'conv6.bias': torch.zeros(2)}
    path = saved(tmp_path / 'x.pth', {'module.' + n: t for n, t in {**state, **more}.items()})
    assert run(folder, 'convert', path, '--backbone', 'xception') == 0
    assert_same_tensors(stored(folder, 'xception'), state)
    said = capsys.readouterr().out
    assert 'xception.pth: xception, all' in said
    assert '4 tensors (fc.weight, last_linear.bias, bn3.weight, ...)' in said


@pytest.mark.parametrize('name, change, words', [
    ('resnet50', lambda state: state.pop('bn1.bias'), ['does not fill resnet50',
                                                       'bn1.bias: missing']),
    ('resnet50', lambda state: state.update({'bn1.bias': torch.zeros(3)}), ['3 instead of 4']),
    ('resnet101', lambda state: None, ['resnet50, deep stem, not resnet101'])])
def test_what_does_not_fill_the_backbone_is_refused(tmp_path, folder, capsys, name, change, words):
    state = backbone_state()
    change(state)
    path = saved(tmp_path / 'mine.pth', state)
    assert run(folder, 'convert', path, '--backbone', name) == 1
    said = capsys.readouterr().err
    assert path in said and all(word in said for word in words), said
    assert not folder.exists()


def test_a_deeper_network_is_not_cut_down_to_a_shallower_one(tmp_path, folder, capsys):
    # Every tensor that a ResNet-50 wants is in a ResNet-101's file, in the same shape.
    path = saved(tmp_path / 'mine.pth', backbone_state('resnet101'))
    assert run(folder, 'convert', path, '--backbone', 'resnet50') == 1
    assert 'holds resnet101' in capsys.readouterr().err


def test_a_network_deeper_than_ours_is_not_cut_down(tmp_path, folder, capsys):
    # As a ResNet-34 fills a ResNet-18.
    state = backbone_state('resnet18', 'plain')
    state.update({n.replace('layer1.1', 'layer1.2'): t for n, t in state.items()})
    path = saved(tmp_path / 'mine.pth', state)
    for command in (['check', path], ['convert', path, '--folder', str(folder)]):
        assert main(command) == 1
        said = capsys.readouterr().err
        assert path in said and 'deeper' in said and 'layer1.2.conv1.weight' in said


def test_the_stem_that_is_asked_for_must_be_the_files(tmp_path, folder, capsys):
    path = saved(tmp_path / 'mine.pth', backbone_state('resnet50', 'plain'))
    assert run(folder, 'convert', path, '--stem', 'deep') == 1
    assert 'plain stem' in capsys.readouterr().err
    assert run(folder, 'convert', path, '--stem', 'plain') == 0


def test_other_weights_that_are_there_are_not_replaced(tmp_path, folder, capsys):
    first = saved(tmp_path / 'a.pth', backbone_state())
    second = saved(tmp_path / 'b.pth', backbone_state(seed=1))
    assert run(folder, 'convert', first) == 0
    assert run(folder, 'convert', second) == 1
    assert 'move it away' in capsys.readouterr().err
    assert_same_tensors(stored(folder), backbone_state())


def test_a_file_in_place_that_training_would_refuse_is_not_called_ready(folder, capsys):
    folder.mkdir()
    path = saved(folder / 'resnet50.pth', WRAPPED['extra'](backbone_state()))
    assert main(['check', path]) == 0
    assert 'convert` has left these out' in capsys.readouterr().out
    for command in (['convert', path], ['fetch', 'resnet50']):
        assert run(folder, *command) == 1
        assert 'move it away' in capsys.readouterr().err
    moved = str(folder / 'mine.pth')
    os.rename(path, moved)
    assert run(folder, 'convert', moved) == 0
    capsys.readouterr()
    assert main(['check', path]) == 0
    assert 'left these out' not in capsys.readouterr().out


def test_a_public_file_by_its_name_is_verified(server, folder, capsys):
    path = os.path.join(server.folder, weights.DEEP_STEM_FILES['resnet50'])
    assert run(folder, 'convert', path) == 0
    saved(path, backbone_state(seed=1))
    for command in (['check', path], ['convert', path, '--folder', str(folder)]):
        assert main(command) == 1
        said = capsys.readouterr().err
        assert path in said and 'damaged' in said and path[-12:-4] in said


class Evil:
    def __reduce__(self):
        return os.mkdir, ('evil',)


def test_no_code_of_a_file_runs(tmp_path, folder, monkeypatch, capsys):
    monkeypatch.chdir(str(tmp_path))
    path = saved('mine.pth', {'state_dict': backbone_state(), 'more': Evil()})
    for command in (['check', path], ['convert', path, '--folder', str(folder)]):
        assert main(command) == 1
        assert 'not admitted' in capsys.readouterr().err
    assert not os.path.exists('evil')


# ---- check

def narrow(state):
    """Of a network of 64 base channels, with OpenMMLab's stem."""
    state = {n: t for n, t in state.items() if not n.startswith(('conv1', 'bn1'))}
    return dict(state, **{'stem.0.weight': torch.zeros(32, 3, 3, 3)})


@pytest.mark.parametrize('backbone, stem', [
    ('resnet18', 'plain'), ('resnet18', 'deep'), ('resnet50', 'plain'), ('resnet101', 'deep')])
def test_a_file_is_recognised(tmp_path, capsys, backbone, stem):
    path = saved(tmp_path / 'mine.pth', with_classifier(backbone_state(backbone, stem)))
    assert main(['check', path]) == 0
    total = sum('num_batches' not in name for name in backbone_state(backbone, stem))
    said = capsys.readouterr().out
    assert '%s: weights: %s, %s stem, base_channels: 2; %d of %d backbone tensors filled\n' % (
        path, backbone, stem, total, total) in said
    assert 'not used: 2 tensors (fc.weight, fc.bias)' in said


def test_every_tensor_that_is_not_filled_is_listed(tmp_path, capsys):
    state = backbone_state('resnet18', 'plain', 64)
    gone = [name for name in state if name.startswith('layer4.1.') and 'num_batches' not in name]
    for name in gone:
        del state[name]
    state['layer1.0.conv1.weight'] = torch.zeros(64, 64, 1, 1)
    assert main(['check', saved(tmp_path / 'mine.pth', state)]) == 1
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if 'not filled' in line] == (
        ['  not filled: layer1.0.conv1.weight: 64x64x1x1 instead of 64x64x3x3']
        + ['  not filled: %s: missing' % name for name in gone])
    assert '%d of %d' % (100 - 11, 100) in said


def test_a_checkpoint_of_ours_is_recognised(tiny_world, capsys):
    from dssn.distributed import World
    from dssn.engine import Run
    world = tiny_world(epochs=1, base_channels=32)
    Run(world.load(), World()).fit()
    capsys.readouterr()
    for name, held in (('latest.pth', 'student and teacher'), ('t_best.pth', 'teacher')):
        # 32 base channels have a stem like OpenMMLab's, and are none.
        assert main(['check', os.path.join(world.save_path, name)]) == 0
        said = capsys.readouterr().out
        assert 'checkpoint of this project (%s, tiny, epoch 1): resnet18, deep stem' % held in said
        assert 'classifier' in said or 'head' in said


@pytest.mark.parametrize('content, words', [
    (lambda: {'state_dict': 4}, 'not a file of weights'),
    (lambda: {'encoder.weight': torch.zeros(2)}, 'no backbone here'),
    (lambda: {}, 'no backbone here'),
    (lambda: narrow(backbone_state(width=64)), '32/32/64'),
    (lambda: dict(backbone_state('resnet18', width=64), **{
        'conv1.0.weight': torch.zeros(32, 3, 3, 3)}), '32/32/64')])
def test_what_is_no_backbone_of_ours_is_said(tmp_path, capsys, content, words):
    path = saved(tmp_path / 'mine.pth', content())
    assert main(['check', path]) == 1
    said = capsys.readouterr().err
    assert path in said and words in said


def test_a_missing_or_damaged_file_is_said(tmp_path, capsys):
    path = tmp_path / 'mine.pth'
    assert main(['check', str(path)]) == 1
    assert '%s: no such file' % path in capsys.readouterr().err
    path.write_bytes(b'text')
    assert main(['check', str(path)]) == 1
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize('arguments', [[], ['load'], ['check'], ['convert', 'x', '--stem', 'v1c']])
def test_a_wrong_command_line_is_status_2(arguments):
    with pytest.raises(SystemExit) as status:
        main(arguments)
    assert status.value.code == 2


def test_the_module_is_the_entry(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['weights', 'check', 'nowhere.pth'])
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.delitem(sys.modules, 'dssn.models.weights')
    try:
        with pytest.raises(SystemExit) as status:
            runpy.run_module('dssn.models.weights', run_name='__main__')
    finally:
        signal.signal(signal.SIGTERM, before)
    assert status.value.code == 1
    assert 'python -m dssn.models.weights: error: nowhere.pth' in capsys.readouterr().err


@pytest.mark.parametrize('backbone, stem, commands', [
    ('resnet18', 'deep', ['fetch resnet18 --stem plain']),
    ('resnet50', 'deep', ['fetch resnet50`', 'fetch resnet50 --stem plain']),
    ('resnet101', 'plain', ['fetch resnet101 --stem plain']),
    ('xception', 'deep', [])])
def test_a_missing_pretrained_file_names_the_commands(backbone, stem, commands):
    said = weights.missing_file_message(backbone, stem, 'pretrained/x.pth')
    assert said.count(' fetch ') == len(commands)
    for command in commands + ['convert FILE', 'pretrained: false']:
        assert command in said
