"""Identities of lists: hash, published lists and their import, generated lists, a run."""
import hashlib
import json
import os
import random
import shutil

import pytest
import yaml

from dssn import config
from dssn.__main__ import main
from dssn.data import identity
from dssn.data.identity import identify, record_generated
from dssn.distributed import World
from dssn.engine import start
from dssn.errors import UserError
from dssn.run import guard

IDS = [f'JPEGImages/{i}.jpg' for i in range(12)]
NOT_COMPARABLE = 'generated, seed %d: not comparable with published numbers'


def sha256(lines):
    """The hash of lines in any order, computed without the package."""
    return hashlib.sha256('\n'.join(sorted(lines)).encode()).hexdigest()


def pairs(ids):
    return [i + ' ' + i.replace('JPEGImages', 'SegmentationClass').replace('jpg', 'png')
            for i in ids]


def write(path, lines, end='\n'):
    os.makedirs(os.path.dirname(str(path)), exist_ok=True)
    with open(str(path), 'w', newline='') as file:
        file.write(end.join(lines))
    return str(path)


def read(path):
    with open(str(path)) as file:
        return file.read().splitlines()


def generated_identity(path):
    """(provenance, text) of a list."""
    found = identify(str(path))
    return found.provenance, found.text


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A folder of three lists, with a manifest in which they are published."""
    folder = tmp_path / 'lists'
    parts = {'pascal/4/labeled.txt': (IDS[:4], 'original'),
             'pascal/4/unlabeled.txt': (IDS[4:], 'original'),
             'cityscapes/val.txt': (IDS[3:5], 'official val')}
    entries = []
    for name, (ids, provenance) in parts.items():
        write(folder / name, pairs(ids))
        entries.append({'name': name, 'lines': len(ids), 'provenance': provenance,
                        'sha256': sha256(ids), 'sha256_with_masks': sha256(pairs(ids))})
    manifest = tmp_path / 'published.json'
    manifest.write_text(json.dumps({'lists': entries}))
    monkeypatch.setattr(identity, 'MANIFEST', str(manifest))
    return folder


@pytest.fixture(scope='module')
def real():
    """The folder of the real published lists."""
    folder = os.environ.get('DSSN_PUBLISHED_SPLITS')
    if not folder:
        pytest.skip('DSSN_PUBLISHED_SPLITS names no folder of published lists')
    return folder


def manifest_lists():
    with open(identity.MANIFEST) as file:
        return json.load(file)['lists']


# ---- identity

def test_the_hash_is_that_of_the_sorted_image_paths(tmp_path):
    path = write(tmp_path / 'a.txt', ['b.jpg m/b.png', 'a.jpg m/a.png', 'Ä.jpg m/c.png'])
    found = identify(path)
    assert found.sha256 == hashlib.sha256('a.jpg\nb.jpg\nÄ.jpg'.encode('utf-8')).hexdigest()
    assert (found.name, found.lines, found.provenance, found.published) == ('', 3, 'own', False)
    assert found.text == 'own list, 3 lines, sha256 ' + found.sha256[:12]


def test_order_line_ends_and_masks_do_not_change_an_identity(tmp_path):
    same = [pairs(IDS), pairs(IDS)[::-1], IDS, ['\t'.join(p.split(' ')) for p in pairs(IDS)] + ['']]
    found = {identify(write(tmp_path / str(i), lines, end)).sha256
             for i, lines in enumerate(same) for end in ('\n', '\r\n')}
    assert found == {sha256(IDS)}


@pytest.mark.parametrize('change', [lambda ids: ids[1:], lambda ids: ids + ids[:1],
                                    lambda ids: ['x' + ids[0]] + ids[1:]])
def test_other_ids_have_another_identity(tmp_path, change):
    assert identify(write(tmp_path / 'a.txt', change(IDS))).sha256 != sha256(IDS)


def test_published_lists_are_recognised_in_any_folder(published, tmp_path):
    found = identify(str(published / 'pascal/4/labeled.txt'))
    assert found == ('pascal/4/labeled.txt', 4, sha256(IDS[:4]), 'original', True,
                     'published pascal 4 (original)')
    elsewhere = write(tmp_path / 'mine.txt', IDS[:3:-1])
    assert identify(elsewhere).text == 'published pascal 4 unlabeled (original)'
    assert identify(str(published / 'cityscapes/val.txt')).text == (
        'published cityscapes val (official val)')
    assert not identify(write(tmp_path / 'other.txt', IDS[:5])).published


def test_a_recorded_list_is_generated_until_it_changes(tmp_path):
    path = write(tmp_path / '5' / 'labeled.txt', pairs(IDS[:5]))
    write(tmp_path / '5' / 'unlabeled.txt', IDS[5:])
    record_generated(str(tmp_path / '5'), 7, 'all.txt')
    assert generated_identity(path) == ('generated', NOT_COMPARABLE % 7)
    assert generated_identity(tmp_path / '5' / 'unlabeled.txt')[0] == 'generated'
    with open(str(tmp_path / '5' / 'generated.json')) as file:
        record = json.load(file)
    assert record['labeled.txt'] == {'seed': 7, 'source': 'all.txt', 'lines': 5,
                                    'sha256': sha256(IDS[:5])}
    write(path, pairs(IDS[:4] + IDS[6:7]))
    assert generated_identity(path)[0] == 'own'
    # The record is by file name. Another file with the same ids is not a generated list.
    assert generated_identity(write(tmp_path / '5' / 'copy.txt', IDS[5:]))[0] == 'own'


def test_records_of_other_lists_in_the_folder_are_kept(tmp_path):
    for name in ('a.txt', 'b.txt'):
        write(tmp_path / name, IDS[:3])
    record_generated(str(tmp_path), 1, 'all.txt', ['a.txt'])
    record_generated(str(tmp_path), 2, 'all.txt', ['b.txt'])
    assert [identify(str(tmp_path / name)).text for name in ('a.txt', 'b.txt')] == [
        NOT_COMPARABLE % 1, NOT_COMPARABLE % 2]


@pytest.mark.parametrize('content', ['{', '[1]', '{"a.txt": {"seed": "0\\n", "sha256": "x"}}',
                                     '{"a.txt": {"seed": 0}}', '{"a.txt": 3}'])
def test_a_damaged_record_is_an_error(tmp_path, content):
    path = write(tmp_path / 'a.txt', IDS)
    write(tmp_path / 'generated.json', [content])
    with pytest.raises(UserError, match='generated.json.*remove it'):
        identify(path)


def test_a_missing_manifest_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, 'MANIFEST', str(tmp_path / 'published.json'))
    with pytest.raises(UserError, match='published.json.*restore'):
        identify(write(tmp_path / 'a.txt', IDS))


# ---- the manifest

def test_the_manifest_is_complete():
    entries = manifest_lists()
    names = [entry['name'] for entry in entries]
    assert len(set(names)) == len(names) == 35
    assert len({entry['sha256'] for entry in entries}) == 35
    with open(identity.MANIFEST) as file:
        explained = json.load(file)['provenances']
    assert {entry['provenance'] for entry in entries} == set(explained)
    lines = {entry['name']: entry['lines'] for entry in entries}
    for name in names:
        if name.endswith('/labeled.txt'):
            total = 10582 if name.startswith('pascal') else 2975
            assert lines[name] + lines[name.replace('/labeled', '/unlabeled')] == total
    assert (lines['pascal/val.txt'], lines['cityscapes/val.txt']) == (1449, 500)


def test_the_manifest_describes_the_published_lists(real):
    found = {}
    for folder, _, names in os.walk(real):
        for name in names:
            path = os.path.join(folder, name)
            if name.endswith('.txt'):
                found[os.path.relpath(path, real)] = [line for line in read(path) if line]
    official = {line.split()[0] for line in found['pascal/1464/labeled.txt']}
    entries = manifest_lists()
    assert {entry['name'] for entry in entries} == set(found)
    for entry in entries:
        lines = found[entry['name']]
        ids = [line.split()[0] for line in lines]
        assert (entry['lines'], entry['sha256'], entry['sha256_with_masks']) == (
            len(lines), sha256(ids), sha256(lines)), entry['name']
        if entry['name'].startswith('pascal'):
            fraction = len(official & set(ids)) / len(ids)
            assert entry['official_fraction'] == pytest.approx(fraction, abs=5e-5)
            if entry['name'].endswith('/labeled.txt'):
                assert (entry['provenance'] == 'original') <= (fraction == 1)
                assert (entry['provenance'] == 'blended') <= (fraction < 0.2)


# ---- import

def import_lists(folder, out):
    return main(['import', str(folder), '--out', str(out)])


@pytest.mark.parametrize('place', ['', 'splits', 'code', 'code/splits'])
def test_lists_are_copied_from_a_checkout(published, tmp_path, capsys, place):
    checkout, out = tmp_path / 'checkout', tmp_path / 'out'
    shutil.copytree(str(published), str(checkout / place))
    assert import_lists(checkout, out) == 0
    assert '3 published lists verified, 3 written, 0 exist already' in capsys.readouterr().out
    assert read(out / 'pascal/4/labeled.txt') == pairs(IDS[:4])
    assert read(out / 'pascal/4/unlabeled.txt') == pairs(IDS[4:])
    assert identify(str(out / 'cityscapes/val.txt')).published
    before = {f: os.stat(str(out / f)).st_mtime_ns for f in ('cityscapes/val.txt',)}
    assert import_lists(checkout, out) == 0
    assert '3 published lists verified, 0 written, 3 exist already' in capsys.readouterr().out
    assert all(os.stat(str(out / f)).st_mtime_ns == time for f, time in before.items())


def test_a_checkout_with_one_folder_per_data_set(published, tmp_path, capsys):
    for dataset in ('pascal', 'cityscapes'):
        shutil.copytree(str(published / dataset), str(tmp_path / 'DSSN' / dataset.title() / 'splits'
                                                      / dataset))
    assert import_lists(tmp_path / 'DSSN', tmp_path / 'out') == 0
    assert '3 written' in capsys.readouterr().out


def test_missing_and_unknown_lists_are_reported(published, tmp_path, capsys):
    shutil.rmtree(str(published / 'cityscapes'))
    extra = write(published / 'pascal/5/labeled.txt', pairs(IDS[:5]))
    assert import_lists(published, tmp_path / 'out') == 0
    printed = capsys.readouterr().out
    assert f'unknown, skipped: 1 ({extra})' in printed
    assert '1 (cityscapes/val.txt)' in printed and '2 written' in printed
    assert not os.path.exists(str(tmp_path / 'out/pascal/5'))


def one_line_missing(lines):
    return lines[1:]


def other_image(lines):
    return [lines[0].replace('JPEGImages/', 'JPEGImages/1')] + lines[1:]


def other_mask(lines):
    return [lines[0].replace('.png', '.pnh')] + lines[1:]


def no_mask(lines):
    return [lines[0].split(' ')[0]] + lines[1:]


def joined(lines):
    return [lines[0] + ' ' + lines[1]] + lines[2:]


@pytest.mark.parametrize('change, words', [
    (one_line_missing, ['3 lines', '4']), (other_image, ['other images', sha256(IDS[:4])[:12]]),
    (other_mask, ['other masks']), (no_mask, ['line 1', 'names no mask']),
    (joined, ['line 1', '4 parts'])])
def test_a_changed_list_is_refused_and_reported(published, tmp_path, capsys, change, words):
    path = published / 'pascal/4/labeled.txt'
    write(path, change(read(path)))
    assert import_lists(published, tmp_path / 'out') == 1
    printed = capsys.readouterr()
    for word in words + [str(path)]:
        assert word in printed.err
    assert sorted(os.listdir(str(tmp_path / 'out/pascal/4'))) == ['unlabeled.txt']
    assert '2 written' in printed.out


def test_any_changed_byte_of_an_image_or_mask_is_refused(published, tmp_path):
    path = published / 'pascal/4/labeled.txt'
    content = path.read_bytes()
    for place in range(len(content)):
        # Line ends and spaces may differ, but not the names.
        if content[place:place + 1] in b'\n ':
            continue
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1:])
        assert import_lists(published, tmp_path / 'out') == 1, place
    assert not os.path.exists(str(tmp_path / 'out/pascal/4/labeled.txt'))


def test_another_list_of_the_same_name_is_never_replaced(published, tmp_path, capsys):
    own = write(tmp_path / 'out/pascal/4/labeled.txt', pairs(IDS[2:6]))
    assert import_lists(published, tmp_path / 'out') == 1
    assert own + ': holds another list' in capsys.readouterr().err
    assert read(own) == pairs(IDS[2:6])


def test_the_error_of_a_folder_without_lists_has_the_expected_layout(published, tmp_path, capsys):
    for folder in (tmp_path / 'nowhere', tmp_path):
        shutil.rmtree(str(published), ignore_errors=True)
        assert import_lists(folder, tmp_path / 'out') == 1
        error = capsys.readouterr().err
        assert str(folder) in error and 'pascal/' in error


def test_an_out_folder_that_cannot_be_written(published, tmp_path, capsys):
    out = write(tmp_path / 'file', ['x'])
    assert import_lists(published, out) == 1
    assert 'cannot be written' in capsys.readouterr().err


def test_all_real_lists_are_imported_and_a_changed_byte_is_refused(real, tmp_path, capsys):
    assert import_lists(real, tmp_path / 'out') == 0
    assert '35 published lists verified, 35 written' in capsys.readouterr().out
    assert identify(str(tmp_path / 'out/pascal/92/labeled.txt')).text == (
        'published pascal 92 (original)')
    path = tmp_path / 'out/pascal/u2pl_1_8/unlabeled.txt'
    content = path.read_bytes()
    rng = random.Random(0)
    places = [place for place in rng.sample(range(len(content)), 4)
              if content[place:place + 1] not in b'\n ']
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1:])
        assert import_lists(tmp_path / 'out', tmp_path / 'second') == 1
        assert str(path) in capsys.readouterr().err


# ---- generate

TRAIN = [f'JPEGImages/{i:05d}.jpg' for i in range(10582)]
OFFICIAL = TRAIN[::7][:1464]


@pytest.fixture
def pascal(tmp_path):
    """Lists with as many images as Pascal. The official list holds only ids, like VOC's."""
    write(tmp_path / 'train_aug.txt', pairs(TRAIN))
    write(tmp_path / 'train.txt', [i[11:16] for i in OFFICIAL])

    def generate(*arguments, source='train_aug.txt', official='train.txt'):
        more = ['--official', str(tmp_path / official)] if official else []
        return main(['generate', 'pascal', '--from', str(tmp_path / source), '--out',
                     str(tmp_path / 'out'), *more, *arguments])
    return generate


def chosen(tmp_path, split):
    return {line.split(' ')[0] for line in read(tmp_path / 'out' / split / 'labeled.txt')}


def test_generated_lists_have_the_published_sizes(pascal, tmp_path, capsys):
    assert pascal() == 0
    printed = capsys.readouterr().out
    sizes = {entry['name'].split('/')[1]: entry['lines'] for entry in manifest_lists()
             if entry['name'].startswith('pascal/') and entry['name'].endswith('/labeled.txt')}
    assert sorted(os.listdir(str(tmp_path / 'out'))) == sorted(s + '_seed0' for s in sizes)
    for split, size in sizes.items():
        folder = tmp_path / 'out' / (split + '_seed0')
        labeled, unlabeled = read(folder / 'labeled.txt'), read(folder / 'unlabeled.txt')
        assert len(labeled) == size
        assert sorted(labeled + unlabeled) == pairs(TRAIN)
        assert (labeled, unlabeled) == (sorted(labeled), sorted(unlabeled))
        assert generated_identity(folder / 'labeled.txt') == ('generated', NOT_COMPARABLE % 0)
        assert (f'{folder}: {size} labeled, {10582 - size} unlabeled; ' + NOT_COMPARABLE % 0
                in printed)


def test_generated_lists_are_sampled_from_the_same_images_as_the_published_ones(pascal, tmp_path):
    assert pascal() == 0
    official = set(OFFICIAL)
    for split in ('92', '183', '366', '732', '1464', 'u2pl_1_16', 'u2pl_1_8'):
        assert chosen(tmp_path, split + '_seed0') <= official, split
    assert chosen(tmp_path, 'u2pl_1_4_seed0') > official
    # 1,323 of 10,582 at random: 183 official images are expected, with a deviation of 12.
    assert 120 < len(chosen(tmp_path, '1_8_seed0') & official) < 250
    assert chosen(tmp_path, '92_seed0') < chosen(tmp_path, '183_seed0')


def test_the_choice_depends_only_on_seed_and_ids(pascal, tmp_path):
    shuffled = pairs(TRAIN)
    random.Random(1).shuffle(shuffled)
    write(tmp_path / 'shuffled.txt', shuffled)
    assert pascal('--split', '92') == 0
    first = (tmp_path / 'out/92_seed0/labeled.txt').read_bytes()
    # The exact choice. A later version must not change it.
    order = sorted(OFFICIAL, key=lambda i: hashlib.sha256(('0 ' + i).encode()).hexdigest())
    assert chosen(tmp_path, '92_seed0') == set(order[:92])
    shutil.rmtree(str(tmp_path / 'out'))
    assert pascal('--split', '92', source='shuffled.txt') == 0
    assert (tmp_path / 'out/92_seed0/labeled.txt').read_bytes() == first
    assert pascal('--split', '92', '--seed', '1') == 0
    assert chosen(tmp_path, '92_seed1') != chosen(tmp_path, '92_seed0')
    assert generated_identity(tmp_path / 'out/92_seed1/labeled.txt')[1] == NOT_COMPARABLE % 1


def test_generating_again_changes_nothing_and_replaces_no_other_list(pascal, tmp_path, capsys):
    assert pascal('--split', '1_16', official=None) == 0
    assert pascal('--split', '1_16', official=None) == 0
    own = write(tmp_path / 'out/1_16_seed0/labeled.txt', pairs(IDS))
    assert pascal('--split', '1_16', official=None) == 1
    assert own + ': holds another list' in capsys.readouterr().err
    assert read(own) == pairs(IDS)


def test_cityscapes_needs_no_official_list(tmp_path):
    source = write(tmp_path / 'train.txt', pairs(TRAIN[:2975]))
    assert main(['generate', 'cityscapes', '--from', source, '--out', str(tmp_path / 'out')]) == 0
    assert {len(chosen(tmp_path, split)) for split in os.listdir(str(tmp_path / 'out'))} == {
        100, 186, 372, 744, 1488}


@pytest.mark.parametrize('arguments, official, word', [
    (['--split', '93'], 'train.txt', '183'), (['--split', '92', '1_8'], None, '--official'),
    ([], None, '--official'), (['--split', '1_8'], 'train.txt', 'no effect')])
def test_a_wrong_command_line_is_status_2(pascal, tmp_path, capsys, arguments, official, word):
    with pytest.raises(SystemExit) as status:
        pascal(*arguments, official=official)
    assert status.value.code == 2
    assert word in capsys.readouterr().err
    assert not os.path.exists(str(tmp_path / 'out'))


@pytest.mark.parametrize('source, official, word', [
    (pairs(TRAIN[1:]), None, '10581 lines'),
    (pairs(TRAIN[1:] + TRAIN[1:2]), None, 'twice'),
    (None, OFFICIAL[1:], 'names 1463'),
    (None, OFFICIAL[1:] + ['x/other.jpg'], 'first: other')])
def test_lists_of_other_images_are_refused(pascal, tmp_path, capsys, source, official, word):
    if source:
        write(tmp_path / 'train_aug.txt', source)
    if official:
        write(tmp_path / 'train.txt', official)
    assert pascal('--split', '92') == 1
    error = capsys.readouterr().err
    assert word in error and ('train_aug.txt' if source else 'train.txt') in error
    assert not os.path.exists(str(tmp_path / 'out'))


# ---- a run

@pytest.mark.parametrize('method, roles', [('DSSN', ['labeled', 'unlabeled', 'val']),
                                           ('supervised', ['labeled', 'val'])])
def test_a_run_logs_and_records_its_lists(tiny_world, capsys, method, roles):
    world = tiny_world(n_labeled=9, epochs=1, method=method)
    record_generated(os.path.dirname(world.labeled), 3, 'all.txt', ['labeled.txt'])
    cfg = world.load()
    start(cfg, World()).fit()
    paths = {'labeled': world.labeled, 'unlabeled': world.unlabeled, 'val': world.val}
    expected = {}
    for role in roles:
        ids = [line.split(' ')[0] for line in read(paths[role])]
        text = NOT_COMPARABLE % 3 if role == 'labeled' else (
            f'own list, {len(ids)} lines, sha256 {sha256(ids)[:12]}')
        expected[role] = {'text': text, 'lines': len(ids), 'sha256': sha256(ids)}
    lines = [json.loads(text) for text in read(os.path.join(world.save_path, 'metrics.jsonl'))]
    assert [line['lists'] for line in lines] == [expected, expected]
    printed = capsys.readouterr().out
    log = '\n'.join(read(os.path.join(world.save_path, 'train.log')))
    saved = os.path.join(world.save_path, 'config.yaml')
    head = read(saved)[:len(roles)]
    for role, written in zip(roles, head):
        known = expected[role]
        assert '{} list: {}\n'.format(role, known['text']) in printed
        assert '{} list: {}\n'.format(role, known['text']) in log
        assert written == '# {} list: {text}; {lines} lines, sha256 {sha256}'.format(role, **known)
    assert config.load(saved) == cfg
    with open(saved) as file:
        assert yaml.safe_load(file) == config.to_dict(cfg)


def test_a_resumed_run_records_the_current_lists(tiny_world, monkeypatch):
    world = tiny_world(epochs=2)
    monkeypatch.setattr(guard.Guard, 'check', lambda guard: guard.run.progress.epoch and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        start(world.load(), World()).fit()
    monkeypatch.undo()
    record_generated(os.path.dirname(world.labeled), 3, 'all.txt', ['labeled.txt'])
    start(world.load(), World()).fit()
    lines = [json.loads(text) for text in read(os.path.join(world.save_path, 'metrics.jsonl'))]
    assert [line['lists']['labeled']['text'][:9] for line in lines] == [
        'own list,', 'generated', 'generated']
