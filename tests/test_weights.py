"""The commands `weights`: fetching from a local server, converting, checking."""
import hashlib
import http.server
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from commands import weights as main

from dssn.errors import UserError
from dssn.models import BACKBONES, ENCODERS, pretrained
from dssn.models.vit import VisionTransformer
from dssn.models.weights import read_torch_file
from dssn.tools.weights import fetch

WIDTH = 2  # base channels of the synthetic files, to keep them small


def backbone_state(backbone='resnet50', stem='deep', width=WIDTH, seed=0):
    """The tensors of a backbone with random values."""
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
    """The tensors in the file of the folder."""
    return read_torch_file(os.path.join(str(folder), backbone + '.pth'))['state_dict']


def assert_same_tensors(found, expected):
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class Server:
    """Serves the files of a folder on this machine; `spoil` can be set to a kind of failure."""

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
        self.url = f'http://127.0.0.1:{self.http.server_address[1]}/'
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
    """A server with a small file for each public file; names end in digits of their SHA-256."""
    folder = tmp_path / 'web'
    folder.mkdir()
    server = Server(str(folder))
    for key in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(key, raising=False)
    for stem, table in (('deep', 'DEEP_STEM_FILES'), ('plain', 'PLAIN_STEM_FILES')):
        names = {}
        for backbone in getattr(pretrained, table):
            path = saved(folder / 'new', with_classifier(backbone_state(backbone, stem)))
            with open(path, 'rb') as file:
                head = hashlib.sha256(file.read()).hexdigest()[:8]
            names[backbone] = f'{backbone}_{stem}-{head}.pth'
            os.rename(path, str(folder / names[backbone]))
        monkeypatch.setattr(pretrained, table, names)
    monkeypatch.setattr(pretrained, 'GLUON_FOLDER', server.url + 'gluon/')
    monkeypatch.setattr(pretrained, 'TORCHVISION_FOLDER', server.url + 'torchvision/')
    yield server
    server.done.set()
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / 'pretrained'


def run(folder, *arguments):
    """Exit status of a command that writes into `folder`."""
    return main(list(arguments) + ['--folder', str(folder)])


# ---- the public files

def test_public_names_are_those_of_the_documented_sources():
    base = 'https://github.com/rwightman/pytorch-pretrained-gluonresnet/releases/download/v0.1/'
    hub = 'https://download.pytorch.org/models/'
    assert {(b, s): pretrained.source_url(b, s) for b in BACKBONES for s in ('deep', 'plain')} == {
        ('resnet10', 'deep'): None, ('resnet10', 'plain'): None,
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
    assert server.asked == [pretrained.source_url(backbone, stem).rpartition('/')[2]]
    assert_same_tensors(stored(folder, backbone), backbone_state(backbone, stem))
    printed = capsys.readouterr().out
    assert f'{backbone}, {stem} stem' in printed and 'fc.weight, fc.bias' in printed
    assert ('the config needs `stem: plain`' in printed) == (stem == 'plain')

    class Model:
        pass
    model = Model()
    model.backbone = BACKBONES[backbone](stem, base_channels=WIDTH)
    pretrained.load_backbone_weights(model, backbone, stem, pretrained.pretrained_file(
        backbone, str(folder)))
    assert_same_tensors(model.backbone.state_dict(), backbone_state(backbone, stem))


def test_an_existing_file_is_not_fetched_again(server, folder, capsys):
    assert run(folder, 'fetch', 'resnet50') == 0
    assert run(folder, 'fetch', 'resnet50') == 0
    assert len(server.asked) == 1 and 'already exists' in capsys.readouterr().out
    assert run(folder, 'fetch', 'resnet50', '--stem', 'plain') == 1
    assert 'move it away' in capsys.readouterr().err
    assert_same_tensors(stored(folder), backbone_state())


def test_an_existing_file_that_lacks_tensors_is_an_error(server, folder, capsys):
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
    printed = capsys.readouterr().err
    assert all(word in printed for word in words), printed
    assert os.listdir(str(folder)) == []
    server.spoil = None
    assert run(folder, 'fetch', 'resnet50') == 0


def test_a_missing_file_on_the_server_is_reported(server, folder, capsys):
    os.remove(os.path.join(server.folder, pretrained.DEEP_STEM_FILES['resnet50']))
    assert run(folder, 'fetch', 'resnet50') == 1
    printed = capsys.readouterr().err
    assert '404' in printed and pretrained.DEEP_STEM_FILES['resnet50'] in printed
    assert os.listdir(str(folder)) == []


def test_a_failed_connection_is_reported(server, folder, capsys):
    server.http.shutdown()
    server.http.server_close()
    assert run(folder, 'fetch', 'resnet50') == 1
    assert 'cannot be downloaded' in capsys.readouterr().err


def test_a_file_that_is_too_large_is_refused(server, folder, capsys, monkeypatch):
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


CHILD = """
import sys
from dssn.__main__ import main
from dssn.models import pretrained
pretrained.TORCHVISION_FOLDER, pretrained.PLAIN_STEM_FILES = {url!r}, {files!r}
sys.exit(main(['weights', 'fetch', 'resnet18', '--folder', {folder!r}]))
"""


def test_a_terminated_download_leaves_nothing(server, folder):
    server.spoil = 'stalled'
    code = CHILD.format(url=server.url, files=pretrained.PLAIN_STEM_FILES, folder=str(folder))
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    child = subprocess.Popen([sys.executable, '-c', code], cwd=root, stderr=subprocess.DEVNULL)
    try:
        part = folder / (pretrained.PLAIN_STEM_FILES['resnet18'] + '.part')
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
    ('resnet34', [], ['resnet34', 'resnet18, resnet50, resnet101', 'dinov2_large']),
    ('dinov2_tiny', [], ['no public weights', 'dinov2_small']),
    ('xception', [], ['UniMatch', 'convert FILE']),
    ('resnet18', ['--stem', 'deep'], ['deep stem', '`stem: plain`'])])
def test_weights_that_do_not_exist_are_reported(server, folder, capsys, name, arguments, words):
    assert run(folder, 'fetch', name, *arguments) == 1
    printed = capsys.readouterr().err
    assert all(word in printed for word in words), printed
    assert server.asked == [] and not folder.exists()


def test_a_folder_that_cannot_be_created_is_reported(server, tmp_path, capsys):
    blocked = tmp_path / 'file'
    blocked.write_text('')
    assert run(blocked / 'pretrained', 'fetch', 'resnet50') == 1
    assert str(blocked) in capsys.readouterr().err


# ---- DINOv2

SMALL = dict(width=64, depth=2, taps=(0, 0, 1, 1))  # of synthetic files


@pytest.fixture
def dinov2(server, monkeypatch):
    """The tensors of a small file that the server has as that of dinov2_small."""
    monkeypatch.setitem(ENCODERS, 'dinov2_small', (SMALL, 8, (8, 8, 8, 8)))
    public = pretrained.DINOV2_FILES['dinov2_small'][0]
    state = {name: torch.rand_like(tensor)
             for name, tensor in VisionTransformer(**SMALL).state_dict().items()}
    path = saved(os.path.join(server.folder, os.path.basename(public)), state)
    with open(path, 'rb') as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    monkeypatch.setitem(pretrained.DINOV2_FILES, 'dinov2_small', (public, digest))
    monkeypatch.setattr(pretrained, 'DINOV2_FOLDER', server.url)
    return state


def test_the_public_files_of_dinov2():
    base = 'https://dl.fbaipublicfiles.com/dinov2/'
    assert {name: (pretrained.source_url(name), digest)
            for name, (_, digest) in pretrained.DINOV2_FILES.items()} == {
        'dinov2_small': (base + 'dinov2_vits14/dinov2_vits14_pretrain.pth',
                         'b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9'),
        'dinov2_base': (base + 'dinov2_vitb14/dinov2_vitb14_pretrain.pth',
                        '0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73'),
        'dinov2_large': (base + 'dinov2_vitl14/dinov2_vitl14_pretrain.pth',
                         'd5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428')}
    assert fetch.LARGEST > 1217586395  # bytes of the largest


class Model:
    """What `load_backbone_weights` fills."""

    def __init__(self, backbone):
        self.backbone = backbone


def test_dinov2_is_fetched_checked_and_loaded(server, dinov2, folder, capsys):
    path = pretrained.pretrained_file('dinov2_small', str(folder))
    assert run(folder, 'fetch', 'dinov2_small') == 0
    assert run(folder, 'fetch', 'dinov2_small') == 0
    assert server.asked == ['dinov2_vits14_pretrain.pth']
    assert_same_tensors(stored(folder, 'dinov2_small'), dinov2)
    assert main(['check', path]) == 0
    printed = capsys.readouterr().out
    assert f'{path}: dinov2_small, all {len(dinov2)} tensors, already exists' in printed
    count = len(dinov2)
    assert (f'weights from dinov2_vits14_pretrain.pth: dinov2_small; {count} of {count} backbone '
            'tensors filled') in printed
    model = Model(VisionTransformer(**SMALL))
    pretrained.load_backbone_weights(model, 'dinov2_small', 'deep', path)
    assert_same_tensors(model.backbone.state_dict(), dinov2)
    assert run(folder, 'fetch', 'dinov2_small', '--stem', 'plain') == 1
    assert 'has no stem; leave --stem plain out' in capsys.readouterr().err


def test_a_damaged_file_of_dinov2_is_refused(server, dinov2, folder, capsys):
    server.spoil = 'changed'
    assert run(folder, 'fetch', 'dinov2_small') == 1
    assert 'damaged' in capsys.readouterr().err and os.listdir(str(folder)) == []
    path = os.path.join(server.folder, 'dinov2_vits14_pretrain.pth')
    saved(path, {**dinov2, 'norm.bias': torch.zeros(64)})
    for command in (['check', path], ['convert', path, '--folder', str(folder)]):
        assert main(command) == 1
        assert pretrained.DINOV2_FILES['dinov2_small'][1] in capsys.readouterr().err


def test_the_public_file_itself_can_lie_in_the_folder(server, dinov2):
    path = os.path.join(server.folder, 'dinov2_vits14_pretrain.pth')
    model = Model(VisionTransformer(**SMALL))
    pretrained.load_backbone_weights(model, 'dinov2_small', 'deep', path)
    assert_same_tensors(model.backbone.state_dict(), dinov2)


def test_dinov2_is_taken_from_a_checkpoint_of_unimatch_v2(tmp_path, dinov2, folder, capsys):
    """Made from a description of its program: the originals were not seen."""
    head = {'module.head.scratch.output_conv.2.bias': torch.zeros(21)}
    student = {'module.backbone.' + name: tensor for name, tensor in dinov2.items()}
    teacher = {name: tensor + 1 for name, tensor in student.items()}
    path = saved(tmp_path / 'v2.pth', {'model': {**student, **head}, 'model_ema': {
        **teacher, **head}, 'optimizer': {'state': {}}, 'epoch': 59, 'previous_best': 86.29})
    assert run(folder, 'convert', path, '--backbone', 'dinov2_small') == 0
    assert_same_tensors(stored(folder, 'dinov2_small'), dinov2)
    assert 'output_conv.2.bias' in capsys.readouterr().out


@pytest.mark.parametrize('change, words', [
    (lambda state: state.pop('mask_token'), 'mask_token: missing'),
    (lambda state: state.update(pos_embed=torch.zeros(1, 257, 64)),
     'pos_embed: 1x257x64 instead of 1x1370x64'),
    (lambda state: state.update(register_tokens=torch.zeros(1, 4, 64)), 'registers'),
    (lambda state: state.update(cls_token=torch.zeros(1, 1, 1536)), 'of width 1536; known: '),
    (lambda state: state.update({name.replace('blocks.1.', 'blocks.2.'): tensor
                                 for name, tensor in state.items()}), 'a deeper network')])
def test_other_vision_transformers_are_refused(tmp_path, dinov2, folder, capsys, change, words):
    change(dinov2)
    path = saved(tmp_path / 'mine.pth', dinov2)
    assert run(folder, 'convert', path) == 1
    assert words in capsys.readouterr().err and not folder.exists()
    model = Model(VisionTransformer(**SMALL))
    with pytest.raises(UserError, match='mine.pth'):
        pretrained.load_backbone_weights(model, 'dinov2_small', 'deep', path)


@pytest.mark.parametrize('backbone, words', [
    ('dinov2_base', ['weights fetch dinov2_base`', 'dinov2_vitb14_pretrain.pth']),
    ('dinov2_tiny', ['no public weights of dinov2_tiny'])])
def test_a_missing_file_of_dinov2(folder, backbone, words):
    path = pretrained.pretrained_file(backbone, str(folder))
    with pytest.raises(UserError) as error:
        pretrained.load_backbone_weights(None, backbone, 'deep', path)
    for word in words + [path, '`pretrained: false`']:
        assert word in str(error.value)


# ---- convert

WRAPPED = {
    'bare': lambda state: state,
    'prefixed': lambda state: {'module.backbone.' + name: t for name, t in state.items()},
    'compiled': lambda state: {'model_state': {'_orig_mod.model.' + name: t for name, t
                                               in state.items()}, 'optimizer': {}},
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
    printed = capsys.readouterr().out
    assert ('last_linear.weight, conv9.bias' in printed) == (wrapping == 'extra')
    # Again, without naming the backbone: the file already exists.
    assert run(folder, 'convert', path) == 0
    assert main(['check', os.path.join(str(folder), backbone + '.pth')]) == 0
    assert f'weights from mine.pth: {backbone}, {stem} stem' in (
        capsys.readouterr().out)


@pytest.mark.parametrize('half', [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_becomes_float32(tmp_path, folder, half):
    state = backbone_state('resnet18', 'plain')
    small = {name: tensor.to(half) if tensor.is_floating_point() else tensor
             for name, tensor in state.items()}
    path = saved(tmp_path / 'small.pth', small)
    # The second time the same file already exists.
    assert run(folder, 'convert', path) == run(folder, 'convert', path) == 0
    found = stored(folder, 'resnet18')
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        name: tensor.dtype for name, tensor in state.items()}
    assert all(torch.equal(found[name], small[name].to(found[name].dtype)) for name in found)


def test_xception_is_converted(tmp_path, folder, capsys):
    state = backbone_state('xception')
    more = {'fc.weight': torch.zeros(2), 'last_linear.bias': torch.zeros(2),
            'bn3.weight': torch.zeros(1536), 'conv6.bias': torch.zeros(2)}
    path = saved(tmp_path / 'x.pth', {'module.' + n: t for n, t in {**state, **more}.items()})
    assert run(folder, 'convert', path, '--backbone', 'xception') == 0
    assert_same_tensors(stored(folder, 'xception'), state)
    printed = capsys.readouterr().out
    assert 'xception.pth: xception, all' in printed
    assert '4 tensors (fc.weight, last_linear.bias, bn3.weight, ...)' in printed


@pytest.mark.parametrize('name, change, words', [
    ('resnet50', lambda state: state.pop('bn1.bias'), ['does not fill resnet50',
                                                       'bn1.bias: missing']),
    ('resnet50', lambda state: state.update({'bn1.bias': torch.zeros(3)}), ['3 instead of 4']),
    ('resnet101', lambda state: None, ['resnet50, deep stem, not resnet101'])])
def test_a_file_that_lacks_tensors_is_refused(tmp_path, folder, capsys, name, change, words):
    state = backbone_state()
    change(state)
    path = saved(tmp_path / 'mine.pth', state)
    assert run(folder, 'convert', path, '--backbone', name) == 1
    printed = capsys.readouterr().err
    assert path in printed and all(word in printed for word in words), printed
    assert not folder.exists()


def test_a_deeper_network_is_not_cut_down_to_a_shallower_one(tmp_path, folder, capsys):
    # The file of a ResNet-101 has every tensor of a ResNet-50 in the same shape.
    path = saved(tmp_path / 'mine.pth', backbone_state('resnet101'))
    assert run(folder, 'convert', path, '--backbone', 'resnet50') == 1
    assert 'contains resnet101' in capsys.readouterr().err


def test_a_network_deeper_than_ours_is_not_cut_down(tmp_path, folder, capsys):
    # Like a ResNet-34, which has all tensors of a ResNet-18.
    state = backbone_state('resnet18', 'plain')
    state.update({n.replace('layer1.1', 'layer1.2'): t for n, t in state.items()})
    path = saved(tmp_path / 'mine.pth', state)
    for command in (['check', path], ['convert', path, '--folder', str(folder)]):
        assert main(command) == 1
        printed = capsys.readouterr().err
        assert path in printed and 'deeper' in printed and 'layer1.2.conv1.weight' in printed


def test_a_file_with_another_stem_is_refused(tmp_path, folder, capsys):
    path = saved(tmp_path / 'mine.pth', backbone_state('resnet50', 'plain'))
    assert run(folder, 'convert', path, '--stem', 'deep') == 1
    assert 'plain stem' in capsys.readouterr().err
    assert run(folder, 'convert', path, '--stem', 'plain') == 0


def test_other_existing_weights_are_not_replaced(tmp_path, folder, capsys):
    first = saved(tmp_path / 'a.pth', backbone_state())
    second = saved(tmp_path / 'b.pth', backbone_state(seed=1))
    assert run(folder, 'convert', first) == 0
    assert run(folder, 'convert', second) == 1
    assert 'move it away' in capsys.readouterr().err
    assert_same_tensors(stored(folder), backbone_state())


def test_an_existing_file_that_training_cannot_load_is_an_error(folder, capsys):
    folder.mkdir()
    path = saved(folder / 'resnet50.pth', WRAPPED['extra'](backbone_state()))
    assert main(['check', path]) == 0
    assert 'training needs a file without these tensors' in capsys.readouterr().out
    for command in (['convert', path], ['fetch', 'resnet50']):
        assert run(folder, *command) == 1
        assert 'move it away' in capsys.readouterr().err
    moved = str(folder / 'mine.pth')
    os.rename(path, moved)
    assert run(folder, 'convert', moved) == 0
    capsys.readouterr()
    assert main(['check', path]) == 0
    assert 'without these tensors' not in capsys.readouterr().out


def test_a_public_file_by_its_name_is_verified(server, folder, capsys):
    path = os.path.join(server.folder, pretrained.DEEP_STEM_FILES['resnet50'])
    assert run(folder, 'convert', path) == 0
    saved(path, backbone_state(seed=1))
    for command in (['check', path], ['convert', path, '--folder', str(folder)]):
        assert main(command) == 1
        printed = capsys.readouterr().err
        assert path in printed and 'damaged' in printed and path[-12:-4] in printed


class Evil:
    def __reduce__(self):
        return os.mkdir, ('evil',)


def test_no_code_of_a_file_runs(tmp_path, folder, monkeypatch, capsys):
    monkeypatch.chdir(str(tmp_path))
    path = saved('mine.pth', {'state_dict': backbone_state(), 'more': Evil()})
    for command in (['check', path], ['convert', path, '--folder', str(folder)]):
        assert main(command) == 1
        assert 'refused: ' in capsys.readouterr().err
    assert not os.path.exists('evil')


# ---- check

def narrow(state):
    """The state of a network with 64 base channels, with OpenMMLab's stem."""
    state = {n: t for n, t in state.items() if not n.startswith(('conv1', 'bn1'))}
    return dict(state, **{'stem.0.weight': torch.zeros(32, 3, 3, 3)})


@pytest.mark.parametrize('backbone, stem', [
    ('resnet18', 'plain'), ('resnet18', 'deep'), ('resnet50', 'plain'), ('resnet101', 'deep')])
def test_a_file_is_recognised(tmp_path, capsys, backbone, stem):
    path = saved(tmp_path / 'mine.pth', with_classifier(backbone_state(backbone, stem)))
    assert main(['check', path]) == 0
    total = sum('num_batches' not in name for name in backbone_state(backbone, stem))
    printed = capsys.readouterr().out
    assert (f'{path}: weights: {backbone}, {stem} stem, base_channels: 2; '
            f'{total} of {total} backbone tensors filled\n') in printed
    assert 'not used: 2 tensors (fc.weight, fc.bias)' in printed


def test_every_tensor_that_is_not_filled_is_listed(tmp_path, capsys):
    state = backbone_state('resnet18', 'plain', 64)
    gone = [name for name in state if name.startswith('layer4.1.') and 'num_batches' not in name]
    for name in gone:
        del state[name]
    state['layer1.0.conv1.weight'] = torch.zeros(64, 64, 1, 1)
    assert main(['check', saved(tmp_path / 'mine.pth', state)]) == 1
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if 'not filled' in line] == (
        ['  not filled: layer1.0.conv1.weight: 64x64x1x1 instead of 64x64x3x3']
        + [f'  not filled: {name}: missing' for name in gone])
    assert f'{100 - 11} of 100' in printed


def test_a_checkpoint_of_ours_is_recognised(tiny_world, capsys):
    from dssn.distributed import World
    from dssn.engine import start
    world = tiny_world(epochs=1, base_channels=32)
    start(world.load(), World()).fit()
    capsys.readouterr()
    for name, held in (('latest.pth', 'student and teacher'), ('t_best.pth', 'teacher')):
        # With 32 base channels the stem has the shape of OpenMMLab's, but is not one.
        assert main(['check', os.path.join(world.save_path, name)]) == 0
        printed = capsys.readouterr().out
        assert (f'checkpoint of this project ({held}, tiny, epoch 1): resnet10, deep stem'
                in printed)
        assert 'classifier' in printed or 'head' in printed


@pytest.mark.parametrize('content, words', [
    (lambda: {'state_dict': 4}, 'has no network weights (found: state_dict)'),
    (lambda: {'encoder.weight': torch.zeros(2)}, 'has no network weights (found: encoder.weight)'),
    (lambda: {'layer1.0.conv1.weight': torch.zeros(2)}, 'has no network weights'),
    (lambda: {**backbone_state(), **{f'encoder.{i}': torch.zeros(1) for i in range(9000)}},
     'no backbone here'),
    (lambda: {}, 'has no network weights (found: nothing)'),
    (lambda: narrow(backbone_state(width=64)), '32/32/64'),
    (lambda: dict(backbone_state('resnet18', width=64), **{
        'conv1.0.weight': torch.zeros(32, 3, 3, 3)}), '32/32/64')])
def test_files_of_other_networks_are_refused(tmp_path, capsys, content, words):
    path = saved(tmp_path / 'mine.pth', content())
    assert main(['check', path]) == 1
    printed = capsys.readouterr().err
    assert path in printed and words in printed


def test_a_missing_or_damaged_file_is_reported(tmp_path, capsys):
    path = tmp_path / 'mine.pth'
    assert main(['check', str(path)]) == 1
    assert f'{path}: no such file' in capsys.readouterr().err
    path.write_bytes(b'text')
    assert main(['check', str(path)]) == 1
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize('arguments', [[], ['load'], ['check'], ['convert', 'x', '--stem', 'v1c']])
def test_a_wrong_command_line_is_status_2(arguments):
    with pytest.raises(SystemExit) as status:
        main(arguments)
    assert status.value.code == 2
