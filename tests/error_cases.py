"""Mistakes that a user can make. Each function makes one in a small world.

It returns (program, arguments, message). `test_error_cases.py` runs them all.
"""
import contextlib
import io
import os
import pickle
import struct
import sys
import tarfile
import zlib

import numpy as np
import torch
import yaml
from PIL import Image

CASES = []  # (section, mistake, function)
CONFIG = dict(dataset='mine', nclass=3, data_root='data', labeled_id_path='labeled.txt',
              unlabeled_id_path='unlabeled.txt', val_id_path='val.txt', save_path='run',
              backbone='resnet18', base_channels=4, decoder_channels=8, crop_size=33,
              batch_size=2, workers=0, epochs=1, device='cpu')


def message_of(program, run, *arguments):
    """What a command says of a mistake: the last line on stderr, or the UserError it raises."""
    from dssn.errors import UserError
    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, [program]  # argparse's name of the program
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = run(list(arguments))
        except UserError as error:
            return f'{program}: error: {error}'
        except SystemExit as end:
            status = end.code
        finally:
            sys.argv = before
    if not status:
        raise AssertionError(f'{program} {" ".join(arguments)} found nothing wrong')
    return err.getvalue().strip().split('\n')[-1]


def make_world():
    """A data set of a few images, its lists and config.yaml, in the current folder."""
    for folder in ('data/images', 'data/masks'):
        os.makedirs(folder)
    rng = np.random.default_rng(0)
    for part, count in (('labeled', 3), ('unlabeled', 4), ('val', 2)):
        lines = []
        for i in range(count):
            names = [f'images/{part}{i}.png', f'masks/{part}{i}.png']
            image, mask = rng.integers(0, 256, (30, 40, 3)), rng.integers(0, 3, (30, 40))
            Image.fromarray(image.astype(np.uint8)).save(f'data/{names[0]}')
            Image.fromarray(mask.astype(np.uint8)).save(f'data/{names[1]}')
            lines.append(' '.join(names[:1] if part == 'unlabeled' else names) + '\n')
        write(f'{part}.txt', ''.join(lines))
    config()


def write(path, content):
    with open(path, 'wb') as file:
        file.write(content.encode() if isinstance(content, str) else content)


def config(text='', without=(), **keys):
    """Write config.yaml: the sound one without some keys, with others, and with lines of text."""
    content = {name: value for name, value in {**CONFIG, **keys}.items() if name not in without}
    write('config.yaml', yaml.safe_dump(content, sort_keys=False) + text)


def line(part, number, text):
    """Replace a line of a list."""
    with open(f'{part}.txt') as file:
        lines = file.read().split('\n')
    lines[number - 1] = text
    write(f'{part}.txt', '\n'.join(lines))


def train(*arguments):
    import train as script
    return call('train.py', script.main, ['--config', 'config.yaml', *arguments])


def evaluate(*arguments):
    import eval as script
    return call('eval.py', script.main, ['--checkpoint', 'best.pth', *arguments])


def data(*arguments):
    from dssn.__main__ import main
    return call('python -m dssn', main, list(arguments))


def call(program, run, arguments):
    shown = f'python {program}' if program.endswith('.py') else program
    return shown, arguments, message_of(program, run, *arguments)


def checkpoint(path='best.pth', with_config=True, **keys):
    """A checkpoint of the world's untrained network."""
    from dssn import config as configs
    from dssn.models import build_model
    from dssn.models.weights import network_weights
    cfg = configs.load('config.yaml')
    content = {'model': network_weights(build_model(cfg)), **keys}
    if with_config:
        content['config'] = configs.to_dict(cfg)
    torch.save(content, path)


def case(section, mistake):
    def add(function):
        CASES.append((section, mistake, function))
        return function
    return add


def config_case(mistake, text='', without=(), arguments=(), **keys):
    def run():
        config(text, without, **keys)
        return train(*arguments)
    shown = [text.strip()] if text else [
        f'{name}: ' + yaml.safe_dump(value, default_flow_style=True).replace('...', '').strip()
        for name, value in keys.items()]
    CASES.append(('Config', mistake + (f': `{", ".join(shown)}`' if shown else ''), run))


# ---- config

def other_config(mistake, content):
    def run():
        write('config.yaml', content)
        return train()
    CASES.append(('Config', mistake, run))


@case('Config', 'No such file')
def no_config():
    os.remove('config.yaml')
    return train()


other_config('Not a text file', b'\x89PNG\r\n\x1a\n\xff\xfe')
other_config('Not YAML', 'lr: [1, 2\nepochs: 3\n')
other_config('Not a mapping', '- lr\n- epochs\n')
other_config('A YAML that makes Python run something', 'lr: !!python/object/apply:os.system [ls]\n')
other_config('A YAML of a few lines that stands for a billion values',
             'a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n' + ''.join(
                 f'{new}: &{new} [{", ".join([f"*{old}"] * 9)}]\n'
                 for old, new in zip('abcdefgh', 'bcdefghi')))
config_case('A key that does not exist', 'crop: 33\n')
config_case('A key twice', 'epochs: 3\n')
config_case('A number that is a word', epochs='many')
config_case('A number out of range', crop_size=8)
config_case('A rate of 0', lr=0)
config_case('A word that is not allowed', backbone='resnet5')
config_case('A list of the wrong length', dilations=[6, 12])
config_case('A setting of old files that has no meaning here', multi_grid=True)
config_case('No data set', without=['dataset'])
config_case('A data set with a path in its name', dataset='../mine')
config_case('No number of classes', without=['nclass'])
config_case('Fewer class names than classes', classes=['sky', 'road'])
config_case('A file of class names that is not there', classes='names.txt')
config_case('A class name that a terminal would obey', classes=['sky', '\x1b[2J', 'road'])
config_case('A colour out of range', colours=[[0, 0, 0], [0, 0, 256], [1, 1, 1]])
config_case('An unknown loss', criterion={'name': 'Dice'})
config_case('An argument that the loss does not have',
            criterion={'name': 'CELoss', 'kwargs': {'thresh': 0.7}})
config_case('A threshold that is no probability',
            criterion={'name': 'OHEM', 'kwargs': {'thresh': 7}})
config_case('Batches that cannot be split so', batch_size=4, accumulate=3)
config_case('Labeled images that cannot be split as the unlabeled ones are', batch_size=4,
            labeled_batch_size=6, accumulate=4)
config_case('A scaled rate without what it is scaled from', scale_lr=True)
config_case('A comparison that is never shown', watch_truth=True, panel_every=0)
config_case('No branch for unlabeled images', image_views=0, feature_views=0)
config_case('A switch of a branch that is off', feature_views=0, feature_labels='teacher')
config_case('A dropout of every channel', feature_dropout=1)
config_case('A range whose ends are swapped', scale_range=[2.0, 0.5])
config_case('CutMix boxes smaller than a pixel', cutmix_area=[0.0001, 0.4])
config_case('The weight of a contrast that is off', contrast=False, contrast_weight=0.1)
config_case('An unknown method', method='DSN')
config_case('A backbone of another network', model='dpt')
config_case('A key of another network', model='dpt', backbone='dinov2_tiny', crop_size=42)
config_case('A crop that is not made of patches', model='dpt', backbone='dinov2_tiny',
            without=['base_channels', 'decoder_channels'])


@case('Config', 'A file of class names that is empty')
def empty_names():
    write('names.txt', '\n')
    config(classes='names.txt')
    return train()


# ---- command line

def flag_case(mistake, *arguments):
    CASES.append(('Command line', mistake, lambda: train(*arguments)))


flag_case('--set without a value', '--set', 'epochs')
flag_case('--set of a key that does not exist', '--set', 'epoch=3')
flag_case('--set of what is not YAML', '--set', 'dilations=[1,2')
flag_case('--set of a value out of range', '--set', 'seed=-1')
flag_case('--set of a key that the method does not use', '--method', 'supervised',
          '--set', 'num_aug=3')
flag_case('No folder for the run', '--save-path', '')


@case('Command line', 'A run folder below a file')
def folder_below_a_file():
    write('file', '')
    return train('--save-path', 'file/run')


@case('Command line', 'A GPU where there is none')
def no_gpu():
    present, torch.cuda.is_available = torch.cuda.is_available, lambda: False
    try:
        return train('--set', 'device=cuda')
    finally:
        torch.cuda.is_available = present


@case('Command line', 'ImageNet weights that are not there')
def no_pretrained():
    return train('--set', 'pretrained=true', 'backbone=resnet18', 'stem=plain')


def eval_case(mistake, *arguments, prepare=None):
    def run():
        checkpoint()
        if prepare:
            prepare()
        return evaluate(*arguments)
    CASES.append(('Command line', mistake, run))


eval_case('Predictions without a place to go', '--images', 'data/images')
eval_case('Pictures of two networks at once', '--weights', 'both', '--save-dir', 'out')
eval_case('Scores of images without truth', '--images', 'data/images', '--save-dir', 'out',
          '--json', 'x.json')
eval_case('A scale of 0', '--scales', '0')
eval_case('A folder of images that is not there', '--images', 'photos', '--save-dir', 'out')
eval_case('A pattern that nothing matches', '--images', 'data/*.heic', '--save-dir', 'out')
eval_case('A folder without an image', '--images', 'empty', '--save-dir', 'out',
          prepare=lambda: os.mkdir('empty'))
eval_case('Tiles that overlap by more than half', '--images', 'data/images', '--save-dir', 'out',
          '--tile', '64', '--overlap', '40')
eval_case('Tiles of images with truth', '--tile', '64')
eval_case('A video that is none', '--images', 'drive.mp4', '--save-dir', 'out',
          prepare=lambda: write('drive.mp4', 'text'))
eval_case('Predictions of other options in the folder', '--images', 'data/images', '--save-dir',
          'out', prepare=lambda: (os.makedirs('out/record'), write('out/record/setting.json',
                                                                   '{"--flip": true}')))
eval_case('Predictions among the images', '--images', 'data/images', '--save-dir', 'data/images')
eval_case('Scores into a folder that is not there', '--json', 'no/scores.json')


# ---- id lists

@case('Id lists', 'None given')
def no_list():
    config(without=['labeled_id_path'])
    return train()


@case('Id lists', 'No such file')
def missing_list():
    os.remove('unlabeled.txt')
    return train()


def list_case(mistake, content, part='labeled'):
    def run():
        write(f'{part}.txt', content)
        return train()
    CASES.append(('Id lists', mistake, run))


def line_case(mistake, text, part='labeled', number=2):
    def run():
        line(part, number, text)
        return train()
    shown = text.replace('\0', '\\0').replace('\x1b', '\\x1b')
    CASES.append(('Id lists', f'{mistake}: `{shown}`', run))


list_case('Empty', '')
list_case('Not a text file', b'\x89PNG\r\n\x1a\n\xff\xfe')
list_case('Fewer images than a batch', 'images/unlabeled0.png\n', 'unlabeled')
line_case('A labeled line without a mask', 'images/labeled1.png')
line_case('A path with a space, and no tab', 'my images/labeled1.png masks/labeled1.png')
line_case('A path that leaves data_root', '../../secret.png masks/labeled1.png')
line_case('An absolute path', '/home/me/data/images/labeled1.png masks/labeled1.png')
line_case('A zero byte', 'images/labeled1.png\0 masks/labeled1.png')
line_case('A terminal command in a name', '\x1b[2Jimages/labeled1.png masks/labeled1.png')
line_case('A file that is not there', 'images/nothing.png masks/labeled1.png')
line_case('Another ending than the file has', 'images/labeled1.jpg masks/labeled1.png')
line_case('Backslashes', 'images\\unlabeled1.png', 'unlabeled')
line_case('A folder instead of a file', 'images masks/labeled1.png')
line_case('An image that is trained on and evaluated', 'images/labeled0.png masks/labeled0.png',
          'val')
line_case('One image with two masks', 'images/labeled0.png masks/labeled1.png')
line_case('One image twice in val', 'images/val0.png masks/val0.png', 'val')


@case('Id lists', 'A data_root that is not there')
def no_root():
    return train('--set', 'data_root=elsewhere')


@case('Id lists', 'Evaluation on a list without masks')
def no_masks():
    checkpoint()
    return evaluate('--id-path', 'unlabeled.txt')


# ---- images

def image_case(mistake, make):
    """`make` writes the image of the first line of labeled.txt, given its path, and may return the
    environment to run in."""
    def run():
        path = 'data/images/labeled0.png'
        os.remove(path)
        environment = make(path) or {}
        before = dict(os.environ)
        os.environ.update(environment)
        try:
            return train()
        finally:
            os.environ.clear()
            os.environ.update(before)
    CASES.append(('Images', mistake, run))


def bomb(path, side=60000):
    def chunk(kind, content):
        return struct.pack('>I', len(content)) + kind + content + struct.pack(
            '>I', zlib.crc32(kind + content) & 0xffffffff)
    header = struct.pack('>IIBBBBB', side, side, 8, 0, 0, 0, 0)
    write(path, b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header)
          + chunk(b'IDAT', zlib.compress(bytes(10 ** 6), 9)) + chunk(b'IEND', b''))


def limit(path):
    Image.new('RGB', (40, 30)).save(path)
    return {'DSSN_MAX_PIXELS': 'many'}


def half_turn():
    exif = Image.Exif()
    exif[0x0112] = 3
    return exif.tobytes()


image_case('Not an image', lambda path: write(path, 'a text\n'))
image_case('An empty file', lambda path: write(path, ''))
image_case('A web page under the name of an image',
           lambda path: write(path, '<!DOCTYPE html><title>404'))
image_case('A pointer of Git LFS', lambda path: write(path, 'version https://git-lfs.github.com/spec/v1\n'))
image_case('A program under the name of an image',
           lambda path: write(path, '%!PS-Adobe-3.0 EPSF-3.0\n'))
image_case('16 bits a pixel',
           lambda path: Image.fromarray(np.zeros((30, 40), np.uint16)).save(path))
image_case('A photograph that viewers turn by half',
           lambda path: Image.new('RGB', (40, 30)).save(path, exif=half_turn()))
image_case('A small file that unpacks to 60000 x 60000 pixels', bomb)
image_case('A pipe', os.mkfifo)
image_case('A limit that is no number', limit)


@case('Images', 'Half a file, found while training')
def half_an_image():
    with open('data/images/labeled0.png', 'rb') as file:
        content = file.read()
    write('data/images/labeled0.png', content[:len(content) // 2])
    return train('--set', 'batch_size=3', 'max_bad_samples=0')


# ---- masks

def mask_case(mistake, make, part='labeled', every=False):
    """`make` returns the mask of the first line of the list, or of every line, or its file."""
    def run():
        with open(f'{part}.txt') as file:
            names = [text.split()[1] for text in file]
        for name in names if every else names[:1]:
            path = f'data/{name}'
            mask = make(np.array(Image.open(path)))
            write(path, mask) if isinstance(mask, bytes) else mask.save(path)
        return train()
    CASES.append(('Masks', mistake, run))


def as_file(file_format, **options):
    def make(mask):
        file = io.BytesIO()
        Image.fromarray(mask).save(file, file_format, **options)
        return file.getvalue()
    return make


def own_palette(mask):
    """As an editor saves it: the colours come in the order of their first pixels."""
    first = list(dict.fromkeys(mask.ravel().tolist()))
    image = Image.fromarray(np.argsort(first).astype(np.uint8)[mask])
    image.putpalette([channel for value in first for channel in (90 * value, 0, 0)])
    return image


def with_value(value):
    def make(mask):
        mask[:4, :5] = value
        return Image.fromarray(mask)
    return make


mask_case('In colour', lambda mask: Image.fromarray(np.stack([mask] * 3, -1)))
mask_case('With an alpha channel', lambda mask: Image.fromarray(mask).convert('LA'))
mask_case('Of 1 bit', lambda mask: Image.fromarray(mask > 1))
mask_case('Of 16 bits', lambda mask: Image.fromarray(mask.astype(np.uint16)))
mask_case('As JPEG', as_file('JPEG'))
mask_case('As a TIFF of pages', as_file('TIFF', save_all=True,
                                        append_images=[Image.new('L', (40, 30))]))
mask_case('As PGM with the number of classes as its maximum',
          lambda mask: b'P5 40 30 2\n' + mask.tobytes())
mask_case('With palettes of their own', own_palette, every=True)
mask_case('Of one class', lambda mask: Image.fromarray(mask * 0), every=True)
mask_case('Of another size than its image', lambda mask: Image.fromarray(mask[:-1, :-2]))
mask_case('Half as large as its image', lambda mask: Image.fromarray(mask[::2, ::2]))
mask_case('Turned', lambda mask: Image.fromarray(mask.T.copy()))
mask_case('A value that is no class', with_value(9), 'val')
mask_case('Classes counted from 1', lambda mask: Image.fromarray(mask + np.uint8(1)))
mask_case('Only 0 and 255 in all of a list',
          lambda mask: Image.fromarray((mask > 1) * np.uint8(255)), every=True)
mask_case('Ignored everywhere', lambda mask: Image.fromarray(np.full_like(mask, 255)), every=True)


# ---- checkpoints

class Call:
    def __reduce__(self):
        return os.system, ('touch ran',)


def checkpoint_case(mistake, make, *arguments):
    def run():
        make()
        return evaluate(*arguments)
    CASES.append(('Checkpoints', mistake, run))


def cut():
    checkpoint()
    with open('best.pth', 'rb') as file:
        content = file.read()
    write('best.pth', content[:len(content) // 2])


def flip():
    checkpoint()
    with open('best.pth', 'rb') as file:
        content = bytearray(file.read())
    content[len(content) // 2] ^= 4
    write('best.pth', bytes(content))


def hostile():
    with open('best.pth', 'wb') as file:
        pickle.dump(0x1950a86a20f9469cfc6c, file, 2)
        pickle.dump(1001, file, 2)
        pickle.dump({'little_endian': True, 'x': Call()}, file, 2)


def program():
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), 'best.pth')


def old_tar():
    with tarfile.open('best.pth', 'w') as archive:
        archive.addfile(tarfile.TarInfo('storages'))


checkpoint_case('No such file', lambda: None)
checkpoint_case('Not a checkpoint', lambda: write('best.pth', 'a text\n'))
checkpoint_case('Half a file', cut)
checkpoint_case('A flipped bit', flip)
checkpoint_case('One that makes Python run something', hostile)
checkpoint_case('A TorchScript program', program)
checkpoint_case('A tar archive', old_tar)
checkpoint_case('A whole network instead of its weights',
                lambda: torch.save(torch.nn.Linear(2, 2), 'best.pth'))
checkpoint_case('No weights in it',
                lambda: torch.save({'config': dict(CONFIG), 'epoch': 3}, 'best.pth'))
checkpoint_case('No config in it', lambda: checkpoint(with_config=False))
checkpoint_case('Another network than the config says', checkpoint, '--set', 'backbone=resnet50')
checkpoint_case('Another number of classes', checkpoint, '--set', 'nclass=4')
checkpoint_case('Two networks of one role', lambda: (
    checkpoint(), checkpoint(state_dict=torch.load('best.pth')['model'])))
checkpoint_case('A teacher of another network', lambda: checkpoint(
    ema={'shadow.weight': torch.zeros(3)}), '--weights', 'teacher')
checkpoint_case('The teacher of a file that holds the student',
                lambda: checkpoint(weights='student'), '--weights', 'teacher')
checkpoint_case('Both networks of a file that holds one', checkpoint, '--weights', 'both')
checkpoint_case('One whose config reads a file of class names', lambda: (
    config(), torch.save({'config': dict(CONFIG, classes='/etc/passwd')}, 'best.pth')))


@case('Checkpoints', 'Training from one that is not there')
def no_init():
    return train('--set', 'init_from=other.pth')


@case('Checkpoints', 'Training from one of another width')
def other_init():
    checkpoint('other.pth')
    return train('--set', 'init_from=other.pth', 'decoder_channels=16')


# ---- data tools

def data_case(mistake, *arguments, prepare=None):
    def run():
        if prepare:
            prepare()
        return data(*arguments)
    CASES.append(('Data tools', mistake, run))


def jpegs():
    os.mkdir('blurred')
    Image.new('L', (4, 4)).save('blurred/labeled0.jpg')


def two_masks():
    Image.new('L', (40, 30)).save('data/masks/labeled0.bmp')


def other_subfolders():
    os.makedirs('annotated/labels')
    Image.new('L', (40, 30)).save('annotated/labels/labeled0_m.png')


SPLIT = ['split', '--images', 'data/images', '--masks', 'data/masks', '--out', 'splits/mine/2']
data_case('split: an image folder that is not there', 'split', '--images', 'photos',
          '--masks', 'data/masks', '--out', 'splits/mine/2')
data_case('split: masks as JPEG', 'split', '--images', 'data/images', '--masks', 'blurred',
          '--out', 'splits/x', prepare=jpegs)
data_case('split: two masks of one image', *SPLIT, prepare=two_masks)
data_case('split: names that do not match', *SPLIT, '--image-suffix', '_left')
data_case('split: masks in other subfolders than their images', 'split', '--images', 'data',
          '--masks', 'annotated', '--mask-suffix', '_m', '--out', 'splits/x',
          prepare=other_subfolders)
data_case('split: a group that not every image has', *SPLIT, '--val', '1', '--group', '0$')
data_case('split: one group for all images', *SPLIT, '--val', '1', '--group', 'folder')
data_case('split: not a regular expression', *SPLIT, '--val', '1', '--group', '(images')
data_case('split: more labeled than there are', *SPLIT, '--labeled', '99')
data_case('split: more val than there are', *SPLIT, '--val', '99')
data_case('split: neither a number nor a fraction', *SPLIT, '--labeled', '3/2')
data_case('split: folders outside --data-root', *SPLIT, '--data-root', 'splits')
data_case('split: a list that leaves data_root', 'split', 'labeled.txt', '--labeled', '1',
          '--out', 'splits/x', prepare=lambda: line('labeled', 1, '../a.png b.png'))
data_case('split: a list and folders', 'split', 'labeled.txt', '--images', 'data/images',
          '--out', 'splits/x')
data_case('check: a split and a list', 'check', '--config', 'config.yaml', '--split', 'splits/x',
          '--labeled', 'labeled.txt')
data_case('import: a folder that is not there', 'import', '../UniMatch')
data_case('generate: another number of images than the published lists divide', 'generate',
          'pascal', '--from', 'labeled.txt', '--split', '92', '--seed', '0')
data_case('prepare: a folder that is not there', 'prepare', 'cityscapes', '--source', 'cityscapes')
SHRINK = ['shrink', 'labeled.txt', '--data-root', 'data', '--by', '2', '--out']
data_case('shrink: a list that leaves data_root', *SHRINK, 'small',
          prepare=lambda: line('labeled', 1, '../a.png b.png'))
data_case('shrink: a data root that is not there', 'shrink', 'labeled.txt', '--data-root', 'x',
          '--by', '2', '--out', 'small')
data_case('shrink: over the originals', *SHRINK, 'data')
data_case('shrink: masks as JPEG', *SHRINK, 'small',
          prepare=lambda: line('labeled', 1, 'images/labeled0.png masks/labeled0.jpg'))
data_case('export: an unknown format', 'export', 'best.pth', 'best.torchscript')
data_case('export: a folder that is not there', 'export', 'best.pth', 'exported/best.pt2')
data_case('export: no images to compare on', 'export', 'best.pth', 'best.pt2', '--check', 'photos',
          prepare=checkpoint)
