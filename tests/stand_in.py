"""A stand-in for training, for tests of what starts trainings: it needs no PyTorch.

It writes invented records into the run's folder, an epoch every 20 ms. Like `train.py` it goes on
where the folder ends, fails if the file of `init_from` does not exist, and exits with status 143
after SIGTERM. As a program: python stand_in.py PLAN, a JSON file.
"""
import json
import os
import signal
import sys
import time

SCORES = {'background': 50.0, 'thing': 25.0}


def invented_records(run, score=40.0, epochs=None):
    """The lines of metrics.jsonl of a planned run: as many epochs as planned, or fewer."""
    from dssn.data.identity import identify
    from dssn.run.metrics import summarise
    lists = {role: dict(identify(path)._asdict()) for role, path in
             run.cfg.list_paths.items()}
    epoch_steps = run.steps // run.cfg.epochs
    lines = [{'kind': 'evaluation', 'epoch': epoch, 'iteration': epoch * epoch_steps,
              'student': score + epoch, 'student_iou': SCORES, 'lists': lists,
              'processes': 1, 'protocol': 'original', 'absent': 'skip', 'seconds': 60.0,
              'machine': 'a machine',
              **({} if run.cfg.method == 'supervised' else
                 {'teacher': score - epoch, 'teacher_iou': SCORES})}
             for epoch in range(1, (epochs or run.cfg.epochs) + 1)]
    if epochs is None:
        lines.append(summarise(lines, 'original'))
    return lines


def replace_training(monkeypatch, folder):
    """Have a `Pool` in this process start stand-ins.

    Args:
        folder: for the plans of the runs.
    """
    from dssn import config

    def start_command(run, port):
        path = os.path.join(str(folder), f'plan{port}.json')
        with open(path, 'w') as file:
            json.dump({'folder': run.folder, 'config': config.dump(run.cfg),
                       'init_from': run.cfg.init_from, 'lines': invented_records(run)}, file)
        return [sys.executable, '-S', os.path.abspath(__file__), path], {}
    monkeypatch.setattr('dssn.tools.experiments.pool.start_command', start_command)


def main(path):
    with open(path) as file:
        plan = json.load(file)

    def stop(*_):
        save(plan)
        sys.exit(143)
    signal.signal(signal.SIGTERM, stop)
    if plan['init_from'] and not os.path.exists(plan['init_from']):
        sys.exit(f"train.py: error: {plan['init_from']}: no such file")
    os.makedirs(plan['folder'], exist_ok=True)
    metrics = os.path.join(plan['folder'], 'metrics.jsonl')
    with open(os.path.join(plan['folder'], 'config.yaml'), 'w') as file:
        file.write(plan['config'])
    with open(metrics, 'a+') as file:
        file.seek(0)
        for line in plan['lines'][len(file.readlines()):]:
            time.sleep(0.02)
            file.write(json.dumps(line) + '\n')
            file.flush()
    save(plan)


def save(plan):
    with open(os.path.join(plan['folder'], 'latest.pth'), 'w') as file:
        file.write('no weights')


if __name__ == '__main__':
    main(sys.argv[1])
