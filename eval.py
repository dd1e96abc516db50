"""Evaluate a checkpoint on an id list, or predict a folder of images that have no masks.

    python eval.py --checkpoint exp/shapes/DSSN/resnet18/20/best.pth
    python eval.py --config configs/pascal.yaml --checkpoint published.pth --weights teacher \\
        --json scores.json --save-dir pictures
    python eval.py --checkpoint best.pth --images photos --save-dir predictions

Checkpoints of this project carry their config; for others give --config. On several processes
(torchrun, srun) each image is still counted once.

--save-dir D writes D/index.html, a gallery to open in a browser, and in folders the predictions as
class indices with the classes' palette, overlays, and with masks also error maps and panels.

--images takes every format that Pillow reads, in all folders below too; names that begin with a
dot are left out. Images are turned as viewers turn them, transparency is left out, and of an
animation the first frame is predicted. One that cannot be read, or has more than 8 bits a channel,
is named at the end, and the exit status is then 1. Up to 2048 x 2048 pixels are predicted by the
config's protocol; a larger image in overlapping tiles of at most that size, so that about 3 GiB of
memory are enough on a CPU.
"""
import argparse
import json
import os
import sys

from dssn import checkpoint, config
from dssn.errors import UserError


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--checkpoint', required=True)
    parser.add_argument('--config', help="YAML file; by default the checkpoint's own config")
    parser.add_argument('--weights', choices=('student', 'teacher'),
                        help='which network, where the file holds both (default: student)')
    parser.add_argument('--id-path',
                        help="id list to evaluate on; by default the config's val list")
    parser.add_argument('--absent', choices=('skip', 'zero'),
                        help='a class in neither truth nor prediction: left out of the mean, or 0 '
                             'as published means count it (default: skip)')
    parser.add_argument('--json', help='write the scores to this file')
    parser.add_argument('--save-dir', help='write pictures and their gallery, index.html, here')
    parser.add_argument('--images', help='predict the images in this folder, into --save-dir')
    parser.add_argument('--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE',
                        dest='assignments', help='override config keys')
    parser.add_argument('--port', type=int, help="rank 0's port, where the launcher sets none")
    parser.add_argument('--local_rank', '--local-rank', type=int,
                        help='set by some launchers; not for you')
    args = parser.parse_args(argv)
    if args.images and not args.save_dir:
        parser.error('--images needs --save-dir: where the predictions go')
    for flag in ('id_path', 'absent', 'json'):
        if args.images and getattr(args, flag):
            parser.error(f"--images has no truth: --{flag.replace('_', '-')} says nothing there")
    return args


def main(argv=None):
    args = parse_arguments(argv)
    content = checkpoint.read_torch_file(args.checkpoint)
    cfg = read_config(args, content)
    state, role = checkpoint.choose_weights(content, args.checkpoint, args.weights)

    from dssn import distributed
    from dssn.data.lists import check_files, read_list
    from dssn.models import build_model
    if args.images:
        from dssn.predict import find_images
        samples, notes = find_images(args.images, args.save_dir)
    else:
        samples = read_list(cfg.val_id_path)
        check_files(samples, cfg.data_root)
    model = build_model(cfg)
    checkpoint.load_weights(model, state, args.checkpoint)
    with distributed.start(cfg.device, args.local_rank, args.port) as world:
        model.to(world.device)
        if args.images:
            return predict(args, cfg, model, role, samples, notes, world)
        return score(args, cfg, model, role, samples, world)


def score(args, cfg, model, role, samples, world):
    """Evaluate on a list; returns the exit status."""
    from dssn.evaluation import evaluate, table
    from dssn.pictures import PictureWriter
    from dssn.records import ABSENT_TEXT
    absent = args.absent or 'skip'
    writer = PictureWriter(args.save_dir, cfg, samples) if args.save_dir else None
    result = evaluate({role: model}, cfg, samples, world, writer, absent)
    names = config.names_of_classes(cfg)
    setting = (f'{args.checkpoint} ({role}) on {cfg.val_id_path}: {len(samples)} images, '
               f'{cfg.protocol}, absent classes: {absent}')
    if writer:
        found = result[role]
        numbers = (f'mIoU {found.miou:.2f}, pixel accuracy {found.pixel_accuracy:.2f}; classes in '
                   f'neither truth nor prediction: {found.absent}, {ABSENT_TEXT[absent]}')
        writer.finish(world, f'{cfg.dataset}: {role}, mIoU {found.miou:.2f}', [setting, numbers],
                      found)
    if world.is_main:
        print(setting)
        print(table(result, names))
        if writer:
            print(f"pictures: {os.path.join(args.save_dir, 'index.html')}")
        if args.json:
            write_json(args, cfg, names, role, absent, result[role])
    return 0


def predict(args, cfg, model, role, samples, notes, world):
    """Predict a folder; returns the exit status: 1 on rank 0 where an image could not be read."""
    from dssn.pictures import PictureWriter
    from dssn.predict import predict_folder
    writer = PictureWriter(args.save_dir, cfg, samples)
    problems = predict_folder(model, cfg, args.images, samples, world, writer)
    facts = [f'{args.checkpoint} ({role}), {cfg.protocol}'] + notes
    title = f'{cfg.dataset}: {role} on {args.images}'
    problems = writer.finish(world, title, facts, None, problems)
    if not world.is_main:
        return 0  # a launcher would end rank 0 while it still writes
    for line in notes + problems:
        print(f'eval.py: {line}', file=sys.stderr)
    print(f'{len(samples) - len(problems)} of {len(samples)} images predicted; pictures: '
          f"{os.path.join(args.save_dir, 'index.html')}")
    return 1 if problems else 0


def read_config(args, content):
    """The config from --config, or the one inside the checkpoint."""
    overrides = {'val_id_path': args.id_path}
    if args.config:
        return config.load(args.config, overrides, args.assignments)
    if not isinstance(content, dict) or not isinstance(content.get('config'), dict):
        raise UserError(f'{args.checkpoint}: carries no config; give the one it was trained with: '
                        '--config configs/....yaml')
    return config.from_dict(content['config'], args.checkpoint, overrides, args.assignments)


def write_json(args, cfg, names, role, absent, score):
    content = {
        'checkpoint': args.checkpoint, 'weights': role, 'id_path': cfg.val_id_path,
        'protocol': cfg.protocol, 'absent': absent, 'images': score.images,
        'miou': score.miou, 'pixel_accuracy': score.pixel_accuracy, 'absent_classes': score.absent,
        'classes': [{'name': name, 'iou': iou, 'accuracy': accuracy, 'precision': precision}
                    for name, iou, accuracy, precision
                    in zip(names, score.iou, score.accuracy, score.precision)],
    }
    try:
        with open(args.json, 'w', encoding='utf-8') as file:
            json.dump(content, file, indent=1)
    except OSError as error:
        raise UserError(f'--json {args.json}: cannot be written ({error.strerror})') from None


if __name__ == '__main__':
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f'eval.py: error: {error}')
    except KeyboardInterrupt:
        sys.exit(130)
