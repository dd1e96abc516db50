"""Evaluate a checkpoint on an id list, or predict a folder of images that have no masks.

    python eval.py --checkpoint exp/shapes/DSSN/resnet18/20/best.pth
    python eval.py --config configs/pascal.yaml --checkpoint published.pth --weights teacher \\
        --json scores.json --save-dir pictures
    python eval.py --checkpoint latest.pth --weights both --scales 0.75 1 1.25 --flip
    python eval.py --checkpoint best.pth --images photos --save-dir predictions

Checkpoints of this project carry their config; for others give --config. On several processes
(torchrun, srun) each image is still counted once. With --scales or --flip the probabilities of
scaled and mirrored copies of an image are averaged.

--save-dir D writes D/index.html, a gallery to open in a browser, and in folders the predictions as
class indices with the classes' palette, overlays, and with masks also error maps and panels.

--images takes every format that Pillow reads, in all folders below too; names that begin with a
dot are left out. Images are turned as viewers turn them, transparency is left out, and of an
animation the first frame is predicted. One that cannot be read, or has more than 8 bits a channel,
is named at the end, and the exit status is then 1. Up to 2048 x 2048 pixels are predicted by the
config's protocol (`center_crop`: as whole images); a larger image in overlapping tiles of at most that size, so that about 3 GiB of
memory are enough on a CPU.
"""
import argparse
import json
import os
import sys
import time

from dssn import checkpoint, config
from dssn.errors import UserError


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--checkpoint', required=True)
    parser.add_argument('--config', help="YAML file; by default the checkpoint's own config")
    parser.add_argument('--weights', choices=('student', 'teacher', 'both'),
                        help='which network, where the file holds both (default: student)')
    parser.add_argument('--id-path',
                        help="id list to evaluate on; by default the config's val list")
    parser.add_argument('--absent', choices=('skip', 'zero'),
                        help='a class in neither truth nor prediction: left out of the mean, or 0 '
                             'as published means count it (default: skip)')
    parser.add_argument('--scales', nargs='+', type=scale_factor, default=[1.0], metavar='FACTOR',
                        help='predict copies of each image scaled by these (default: 1)')
    parser.add_argument('--flip', action='store_true', help='and mirrored left and right')
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
    if args.weights == 'both' and args.save_dir:
        parser.error('--save-dir shows one network: give --weights student or teacher')
    for flag in ('id_path', 'absent', 'json'):
        if args.images and getattr(args, flag):
            parser.error(f"--images has no truth: leave --{flag.replace('_', '-')} out")
    return args


def scale_factor(text):
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value <= 8:
        raise argparse.ArgumentTypeError(f"'{text}' must be a number above 0 and at most 8")
    return value


def main(argv=None):
    args = parse_arguments(argv)
    content = checkpoint.read_torch_file(args.checkpoint)
    cfg = read_config(args, content)
    states = choose_states(args, content)

    from dssn import distributed
    from dssn.data.lists import check_files, read_list
    from dssn.evaluation import predictor
    from dssn.models import build_model
    if args.images:
        from dssn.predict import find_images
        samples, notes = find_images(args.images, args.save_dir)
    else:
        samples = read_list(cfg.val_id_path, True, cfg.allow_outside)
        check_files(samples, cfg.data_root)
    models = {role: build_model(cfg) for role in states}
    for role, model in models.items():
        checkpoint.load_weights(model, states[role], args.checkpoint)
    how = predictor(cfg.protocol, cfg.crop_size, args.scales, args.flip)
    with distributed.start(cfg.device, args.local_rank, args.port) as world:
        for model in models.values():
            model.to(world.device)
        if args.images:
            return predict(args, cfg, models, how, samples, notes, world)
        return score(args, cfg, models, how, samples, world)


def choose_states(args, content):
    """{role: state dict} of the networks that --weights asks for."""
    if args.weights != 'both':
        state, role = checkpoint.choose_weights(content, args.checkpoint, args.weights)
        return {role: state}
    held = checkpoint.roles_held(content)
    if len(held) < 2:
        raise UserError(f'{args.checkpoint}: does not hold both networks (found: '
                        f"{', '.join(held) or 'one without a name'}); leave --weights out, or take "
                        'the latest.pth of a run with a teacher')
    return {role: checkpoint.choose_weights(content, args.checkpoint, role)[0] for role in held}


def score(args, cfg, models, how, samples, world):
    """Evaluate on a list; returns the exit status."""
    from dssn.evaluation import evaluate, table
    from dssn.pictures import PictureWriter
    from dssn.records import ABSENT_TEXT
    absent = args.absent or 'skip'
    writer = PictureWriter(args.save_dir, cfg, samples) if args.save_dir else None
    started = time.time()
    result = evaluate(models, cfg, samples, world, writer, absent, how)
    seconds = time.time() - started
    names = config.names_of_classes(cfg)
    setting = (f"{args.checkpoint} ({', '.join(models)}) on {cfg.val_id_path}: {len(samples)} "
               f'images, {protocol_text(args, cfg)}, absent classes: {absent}')
    if writer:
        (role, found), = result.items()
        numbers = (f'mIoU {found.miou:.2f}, pixel accuracy {found.pixel_accuracy:.2f}; classes in '
                   f'neither truth nor prediction: {found.absent}, {ABSENT_TEXT[absent]}')
        writer.finish(world, f'{cfg.dataset}: {role}, mIoU {found.miou:.2f}', [setting, numbers],
                      found)
    if world.is_main:
        print(setting)
        print(table(result, names, details=True))
        if writer:
            print(f"pictures: {os.path.join(args.save_dir, 'index.html')}")
        if args.json:
            write_json(args, cfg, names, absent, result, seconds)
    return 0


def protocol_text(args, cfg):
    """'sliding_window 801, scales 0.75 1.0, flipped'."""
    text = cfg.protocol if cfg.protocol == 'original' else f'{cfg.protocol} {cfg.crop_size}'
    if args.scales != [1.0]:
        text += ', scales ' + ' '.join(map(str, args.scales))
    return text + ', flipped' * args.flip


def predict(args, cfg, models, how, samples, notes, world):
    """Predict a folder; returns the exit status: 1 on rank 0 where an image could not be read."""
    from dssn.pictures import PictureWriter
    from dssn.predict import predict_folder
    (role, model), = models.items()
    writer = PictureWriter(args.save_dir, cfg, samples)
    problems = predict_folder(model, args.images, samples, world, writer, how)
    facts = [f'{args.checkpoint} ({role}), {protocol_text(args, cfg)}'] + notes
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
    # Who uses a stranger's checkpoint has not allowed what its config allows.
    values = dict(content['config'], allow_outside=False)
    if isinstance(values.get('classes'), str):
        raise UserError(f"{args.checkpoint}: its config's classes are no list of names; give a "
                        'config: --config configs/....yaml')
    return config.from_dict(values, args.checkpoint, overrides, args.assignments)


def write_json(args, cfg, names, absent, result, seconds):
    content = {
        'checkpoint': args.checkpoint, 'id_path': cfg.val_id_path, 'protocol': cfg.protocol,
        'crop_size': cfg.crop_size, 'scales': args.scales, 'flip': args.flip, 'absent': absent,
        'seconds': round(seconds, 2), 'scores': {},
    }
    for role, found in result.items():
        known = found._asdict()
        per_class = {key: known.pop(key) for key in ('iou', 'recall', 'precision')}
        known['classes'] = [dict(zip(['name', *per_class], values))
                            for values in zip(names, *per_class.values())]
        content['scores'][role] = known
    try:
        with open(args.json, 'w', encoding='utf-8') as file:
            json.dump(content, file, indent=1)
    except OSError as error:
        raise UserError(f'--json {args.json}: cannot be written ({error.strerror}); name a file in '
                        'a folder that is there') from None


if __name__ == '__main__':
    try:
        status = main()
        from dssn import distributed
        distributed.exit(status)
    except UserError as error:
        sys.exit(f'eval.py: error: {error}')
    except KeyboardInterrupt:
        sys.exit(130)
