"""Evaluate a checkpoint on an id list.

    python eval.py --checkpoint exp/shapes/DSSN/resnet18/40/best.pth
    python eval.py --config configs/pascal.yaml --checkpoint published.pth --weights teacher \\
        --json scores.json --save-dir pictures

Checkpoints of this project carry their config; for others give --config. On several processes
(torchrun, srun) each image is still counted once.
"""
import argparse
import json
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
    parser.add_argument('--id-path', help="id list to evaluate on; by default the config's val list")
    parser.add_argument('--absent', choices=('skip', 'zero'), default='skip',
                        help='a class in neither truth nor prediction: left out of the mean, or 0 '
                             'as published means count it (default: skip)')
    parser.add_argument('--json', help='write the scores to this file')
    parser.add_argument('--save-dir', help='write image | truth | prediction pictures here')
    parser.add_argument('--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE',
                        dest='assignments', help='override config keys')
    parser.add_argument('--port', type=int, help="rank 0's port, where the launcher sets none")
    parser.add_argument('--local_rank', '--local-rank', type=int,
                        help='set by some launchers; not for you')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    content = checkpoint.read_torch_file(args.checkpoint)
    cfg = read_config(args, content)
    state, role = checkpoint.choose_weights(content, args.checkpoint, args.weights)

    from dssn import distributed
    from dssn.data.lists import check_files, read_list
    from dssn.evaluation import evaluate, table
    from dssn.models import build_model
    from dssn.pictures import PictureWriter
    samples = read_list(cfg.val_id_path)
    check_files(samples, cfg.data_root)
    model = build_model(cfg)
    checkpoint.load_weights(model, state, args.checkpoint)
    world = distributed.start(cfg.device, args.local_rank, args.port)
    try:
        watch = PictureWriter(args.save_dir, cfg, samples) if args.save_dir else None
        result = evaluate({role: model.to(world.device)}, cfg, samples, world, watch, args.absent)
    finally:
        world.close()
    if world.is_main:
        names = config.names_of_classes(cfg)
        print(f'{args.checkpoint} ({role}) on {cfg.val_id_path}: {len(samples)} images, '
              f'{cfg.protocol}, absent classes: {args.absent}')
        print(table(result, names))
        if args.json:
            write_json(args, cfg, names, role, result[role])


def read_config(args, content):
    """The config from --config, or the one inside the checkpoint."""
    overrides = {'val_id_path': args.id_path}
    if args.config:
        return config.load(args.config, overrides, args.assignments)
    if not isinstance(content, dict) or not isinstance(content.get('config'), dict):
        raise UserError(f'{args.checkpoint}: carries no config; give the one it was trained with: '
                        '--config configs/....yaml')
    return config.from_dict(content['config'], args.checkpoint, overrides, args.assignments)


def write_json(args, cfg, names, role, score):
    content = {
        'checkpoint': args.checkpoint, 'weights': role, 'id_path': cfg.val_id_path,
        'protocol': cfg.protocol, 'absent': args.absent, 'images': score.images,
        'miou': score.miou, 'pixel_accuracy': score.pixel_accuracy, 'absent_classes': score.absent,
        'classes': [{'name': name, 'iou': iou, 'accuracy': accuracy}
                    for name, iou, accuracy in zip(names, score.iou, score.accuracy)],
    }
    try:
        with open(args.json, 'w', encoding='utf-8') as file:
            json.dump(content, file, indent=1)
    except OSError as error:
        raise UserError(f'--json {args.json}: cannot be written ({error.strerror})') from None


if __name__ == '__main__':
    try:
        main()
    except UserError as error:
        sys.exit(f'eval.py: error: {error}')
    except KeyboardInterrupt:
        sys.exit(130)
