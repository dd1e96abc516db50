"""`python -m dssn bench eval`: times our evaluation and a plain one on rendered images."""
import statistics
import tempfile

import numpy as np
import torch
from torch.utils.data import DataLoader

from dssn import config, distributed, precision
from dssn.batch import normalise
from dssn.data.datasets import EvalSet
from dssn.data.loaders import count_workers
from dssn.inference.evaluation import evaluate, predict_whole, predict_windows
from dssn.labels import IGNORE
from dssn.models import build_model
from dssn.run.machine import machine
from dssn.tools.arguments import positive_number
from dssn.tools.bench.synthetic_images import write_images
from dssn.tools.bench.timing import add_config_options, ratio, time_in_turns
from dssn.tools.output_files import write_json


def add_arguments(parser):
    """Time the evaluation of student and teacher on an id list, and compare it with plain code.

        python -m dssn bench eval --config configs/camvid.yaml --set backbone=resnet18

    The plain code is the usual one: one pass over the list for the student and one for the teacher,
    one image at a time, argmax over the logits, three NumPy histograms an image. Both read the same
    JPEG and PNG files, rendered for this command, with the config's loader workers. Both must find
    the same scores; otherwise the exit status is 1.
    """
    add_config_options(parser)
    parser.add_argument('--images', type=positive_number, default=16,
                        help='number of images (default: %(default)s)')
    parser.add_argument('--size', type=positive_number, nargs=2, default=[480, 360],
                        metavar=('WIDTH', 'HEIGHT'), help='of the images (default: 480 360)')
    parser.add_argument('--rounds', type=positive_number, default=5,
                        help='number of rounds; in each both take a turn (default: %(default)s)')


def run(args):
    with tempfile.TemporaryDirectory() as root:
        cfg = config.load(args.config, {'data_root': root}, args.assignments)
        samples = write_images(root, args.images, args.size, cfg.nclass)
        precision.prepare(cfg)
        with distributed.start(cfg.device) as world:
            precision.check_evaluation(cfg, world.device)
            arithmetic = precision.set_arithmetic(cfg, world.device)
            models = {role: build_model(cfg).to(world.device) for role in ('student', 'teacher')}
            found = {}
            ways = {'ours': lambda: found.update(ours=ours(models, cfg, samples, world)),
                    'plain': lambda: found.update(plain=plain(models, cfg, samples, world.device))}
            seconds = time_in_turns(ways, args.rounds, world.device)
    same = all(abs(found['ours'][role] - found['plain'][role]) < 0.01 for role in models)
    report(args, cfg, seconds, same, machine(world.device), arithmetic)
    return 0 if same else 1


def ours(models, cfg, samples, world):
    """{role: mIoU in percent} by our evaluation."""
    return {role: score.miou for role, score in
            evaluate(models, cfg, samples, world, absent='zero').items()}


@torch.no_grad()
def plain(models, cfg, samples, device):
    """{role: mIoU in percent} by plain code."""
    workers, found = count_workers(cfg.workers, 1, device.type == 'cuda'), {}
    for role, model in models.items():
        network = precision.half_in_evaluation(model.eval(), cfg, device)
        intersections, unions = np.zeros(cfg.nclass), np.zeros(cfg.nclass)
        for image, label, _ in DataLoader(EvalSet(cfg, samples), batch_size=1,
                                          num_workers=workers):
            x = normalise(image.to(device))
            if cfg.protocol == 'sliding_window':
                output = predict_windows(network, x, cfg.crop_size)
            else:
                with precision.varying_sizes():
                    output = predict_whole(network, x)
            prediction, label = output.argmax(1).cpu().numpy(), label.numpy()
            prediction[label == IGNORE] = IGNORE
            bins, ends = np.arange(cfg.nclass + 1), (0, cfg.nclass)
            hits = np.histogram(prediction[prediction == label], bins, ends)[0]
            areas = [np.histogram(index, bins, ends)[0] for index in (prediction, label)]
            intersections += hits
            unions += sum(areas) - hits
        found[role] = 100 * np.mean(intersections / np.maximum(unions, 1e-10))
    return found


def report(args, cfg, seconds, same, where, arithmetic):
    faster = ratio(seconds, 'plain', 'ours')
    width, height = args.size
    print('\n'.join(filter(None, [where, arithmetic])))
    print(f'{cfg.backbone}, {cfg.nclass} classes, {cfg.protocol}, {args.images} images of '
          f'{width}x{height}, workers {cfg.workers}; medians of {args.rounds} rounds')
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f'{name:<6} {median:8.3f} s {args.images / median:8.2f} images a second')
    print(f'plain / ours: {faster:.2f}; ' + ('the same scores' if same else 'different scores'))
    write_json(args.json, {'machine': where, 'arithmetic': arithmetic,
                           'config': config.to_dict(cfg), 'images': args.images,
                           'size': args.size, 'seconds': seconds, 'plain_over_ours': faster,
                           'same_scores': same})
