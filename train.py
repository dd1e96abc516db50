"""Train a segmentation network, semi-supervised or supervised.

    sh scripts/train.sh <num_gpu> <port>                      on one or several machines
    sh scripts/slurm_train.sh <num_gpu> <port> <partition>    with Slurm
    python train.py --config configs/shapes.yaml \\
        --labeled-id-path splits/shapes/20/labeled.txt \\
        --unlabeled-id-path splits/shapes/20/unlabeled.txt --save-path exp/mine

Running the same command again resumes the run, or reports that it is finished. Ctrl-C, SIGTERM and
SIGUSR1 stop the run after the current step, and its state is saved. The exit status is then 128 +
the signal's number (130, 143, 138). A second signal stops it at once, without saving. Any config
key can be set by --set key=value; `--help-keys` lists the keys.
"""
import argparse
import sys

from dssn import config, methods
from dssn.errors import Stopped, UserError, escape_output
from dssn.tools.experiments import oracles  # noqa: F401, registers its methods


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', help='YAML file of the experiment; needed except for '
                                         '--help-keys')
    parser.add_argument('--method', help='training method, overrides the config: '
                                         + ', '.join(methods.all_methods()))
    parser.add_argument('--labeled-id-path', help='id list with images and masks')
    parser.add_argument('--unlabeled-id-path', help='id list of images without masks')
    parser.add_argument('--save-path', help="the run's folder")
    parser.add_argument('--port', type=int, help='port of rank 0, if the launcher sets none')
    parser.add_argument('--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE',
                        dest='assignments', help='override config keys')
    parser.add_argument('--skip-check', action='store_true', default=None,
                        help='do not check lists, files and some masks before training')
    parser.add_argument('--fresh', action='store_true',
                        help='start over; files of an earlier run in the folder are moved aside')
    parser.add_argument('--dry-run', action='store_true',
                        help='print the resolved config and the size of the network, then stop')
    parser.add_argument('--local_rank', '--local-rank', type=int,
                        help='set by some launchers; not for users')
    parser.add_argument('--help-keys', action='store_true',
                        help='list the config keys of the method, then stop')
    args = parser.parse_args(argv)
    if not args.config and not args.help_keys:
        parser.error('the following arguments are required: --config')
    return args


def main(argv=None):
    escape_output()
    args = parse_arguments(argv)
    if args.help_keys:
        print(config.help_text(config.find_method(args.config, {'method': args.method},
                                                  args.assignments)))
        return
    cfg = config.load(args.config, {
        'method': args.method, 'labeled_id_path': args.labeled_id_path,
        'unlabeled_id_path': args.unlabeled_id_path, 'save_path': args.save_path,
        'skip_check': args.skip_check,
    }, args.assignments)
    if args.dry_run:
        describe(cfg)
        return
    from dssn import distributed, precision
    from dssn.engine import start
    if not cfg.save_path:
        raise UserError('no folder for the run: give --save-path')
    precision.prepare(cfg)
    with distributed.start(cfg.device, args.local_rank, args.port) as world:
        run = start(cfg, world, args.fresh)
        if not run.resumed:
            run.log.write(config.dump(cfg).rstrip())
        run.fit()


def describe(cfg):
    """Print the resolved config and the number of parameters of its network."""
    from dssn.models import build_model
    parameters = sum(p.numel() for p in build_model(cfg).parameters())
    print('\n'.join([config.dump(cfg).rstrip(), *cfg.notes]))
    print(f'network: {cfg.model} on {cfg.backbone}, {parameters / 1e6:.1f}M parameters')


if __name__ == '__main__':
    try:
        main()
        from dssn import distributed
        distributed.exit()
    except Stopped as stop:
        from dssn import distributed
        distributed.exit(128 + stop.number)
    except UserError as error:
        sys.exit(f'train.py: error: {error}')
    except KeyboardInterrupt:
        sys.exit(130)
