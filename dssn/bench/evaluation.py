"""`python -m dssn.bench eval`: our evaluation beside the plain way, on pictures it draws."""
import statistics
import tempfile

import numpy as np
import torch
from torch.utils.data import DataLoader

from dssn import config, distributed
from dssn.batch import normalise
from dssn.bench.pictures import draw_list
from dssn.bench.timing import interleaved, ratio, write_json
from dssn.data.arguments import positive_number
from dssn.data.datasets import EvalSet
from dssn.data.loaders import count_workers
from dssn.evaluation import evaluate, predict_windows
from dssn.machine import machine
from dssn.models import build_model


def add_arguments(parser):
    """Time the evaluation of student and teacher on an id list, beside the plain way.

    python -m dssn.bench eval --config configs/camvid.yaml --set backbone=resnet18

The plain way, usual in the field: one pass over the list for the student and one for the teacher,
images one by one, argmax over the logits, three NumPy histograms an image. Both ways read the same
JPEG and PNG files, drawn for the occasion, with the config's loader workers, and must find the same
scores.
    """
    parser.add_argument('--config', required=True, help='YAML file of the experiment')
    parser.add_argument('--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE',
                        dest='assignments', help='override config keys')
    parser.add_argument('--images', type=positive_number, default=16, help='default: %(default)s')
    parser.add_argument('--size', type=positive_number, nargs=2, default=[480, 360],
                        metavar=('WIDTH', 'HEIGHT'), help='of the images (default: 480 360)')
    parser.add_argument('--rounds', type=positive_number, default=5,
                        help='times that both ways take turns (default: %(default)s)')
    parser.add_argument('--json', metavar='FILE', help='write the result for programs')


def run(args):
    with tempfile.TemporaryDirectory() as root:
        cfg = config.load(args.config, {'data_root': root}, args.assignments)
        samples = draw_list(root, args.images, args.size, cfg.nclass)
        with distributed.start(cfg.device) as world:
            models = {role: build_model(cfg).to(world.device) for role in ('student', 'teacher')}
            found = {}
            ways = {'ours': lambda: found.update(ours=ours(models, cfg, samples, world)),
                    'plain': lambda: found.update(plain=plain(models, cfg, samples, world.device))}
            seconds = interleaved(ways, args.rounds, world.device)
    same = all(abs(found['ours'][role] - found['plain'][role]) < 0.01 for role in models)
    report(args, cfg, seconds, same, machine(world.device))
    return 0 if same else 1


def ours(models, cfg, samples, world):
    return {role: score.miou for role, score in
            evaluate(models, cfg, samples, world, absent='zero').items()}


@torch.no_grad()
def plain(models, cfg, samples, device):
    """mIoU of each network, the plain way."""
    workers, found = count_workers(cfg.workers, 1, device.type == 'cuda'), {}
    for role, model in models.items():
        model.eval()
        intersections, unions = np.zeros(cfg.nclass), np.zeros(cfg.nclass)
        for image, label, _ in DataLoader(EvalSet(cfg, samples), batch_size=1,
                                          num_workers=workers):
            x = normalise(image.to(device))
            if cfg.protocol == 'sliding_window':
                output = predict_windows(model, x, cfg.crop_size)
            else:
                output = model(x)
            prediction, label = output.argmax(1).cpu().numpy(), label.numpy()
            prediction[label == 255] = 255
            bins, ends = np.arange(cfg.nclass + 1), (0, cfg.nclass)
            hits = np.histogram(prediction[prediction == label], bins, ends)[0]
            areas = [np.histogram(index, bins, ends)[0] for index in (prediction, label)]
            intersections += hits
            unions += sum(areas) - hits
        found[role] = 100 * np.mean(intersections / np.maximum(unions, 1e-10))
    return found


def report(args, cfg, seconds, same, where):
    faster = ratio(seconds, 'plain', 'ours')
    width, height = args.size
    print(f'{where}\n{cfg.backbone}, {cfg.nclass} classes, {cfg.protocol}, {args.images} images of '
          f'{width}x{height}, workers {cfg.workers}; medians of {args.rounds} rounds')
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f'{name:<6} {median:8.3f} s {args.images / median:8.2f} images a second')
    print(f'plain / ours: {faster:.2f}; ' + ('the same scores' if same else 'UNLIKE scores'))
    write_json(args.json, {'machine': where, 'config': config.to_dict(cfg), 'images': args.images,
                           'size': args.size, 'seconds': seconds, 'plain_over_ours': faster,
                           'same_scores': same})
