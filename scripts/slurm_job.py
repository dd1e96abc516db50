"""What Slurm runs: the batch job, which may requeue itself, and each process of the training.

    python scripts/slurm_job.py COMMAND...             in the job
    python scripts/slurm_job.py --process COMMAND...   under srun
"""
import os
import re
import signal
import subprocess
import sys

from logged import on_signal


def batch(command):
    """Trains, and has Slurm start the job again where training stopped because it had to leave.

    That is so after SIGUSR1, which Slurm sends before the time is up, and when Slurm pre-empts the
    job. It says that with a SIGTERM, which may be a person's too, and notes it in the job's record.
    """
    job = os.environ["SLURM_JOB_ID"]
    say("job %s on %s, restart %s" % (
        job, os.environ["SLURM_JOB_NODELIST"], os.environ.get("SLURM_RESTART_COUNT", "0")))
    before = saved(command)
    status = train(command)
    record = record_of(job)
    if status == 0 or record.get("JobState") != "RUNNING":
        return status  # done; or cancelled, requeued, out of time
    if record.get("PreemptTime", "None") == "None":
        if status != 128 + signal.SIGUSR1:
            return status
        if saved(command) == before:  # or it would go on like this for ever
            say("nothing was saved since the job started, so it is not requeued; "
                "SBATCH_SIGNAL=USR1@<seconds> is how long before the end of its time it stops")
            return status
    say("the job is requeued, and training goes on")
    answer = subprocess.run(["scontrol", "requeue", job], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)
    if answer.returncode:
        say("it is not: %s; the same command goes on"
            % answer.stdout.decode("utf-8", "replace").strip())
    return status


def train(command):
    """The highest exit status of the processes, by srun."""
    # Their ranks come from Slurm alone, whatever launcher's variables are in the environment.
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name, None)
    cpus = os.environ["SLURM_CPUS_PER_TASK"]
    os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or cpus
    srun = subprocess.Popen(["srun", "--kill-on-bad-exit=1", "--cpus-per-task=" + cpus,
                             sys.executable, os.path.abspath(__file__), "--process"] + command)
    on_signal(signal.SIGUSR1, lambda number, frame: srun.send_signal(number))  # which passes it on
    on_signal(signal.SIGTERM, lambda number, frame: None)  # srun has it too
    status = srun.wait()
    return status if status >= 0 else 128 - status


def process(command):
    """The exit status of one process of the training, for srun to take the highest.

    One that is killed because another failed counts as 1. Slurm signals this process too.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        on_signal(number, lambda number, frame: None)
    status = subprocess.call(command)
    if status == -signal.SIGTERM:
        return 1
    return status if status >= 0 else 128 - status


def saved(command):
    """What tells the checkpoints of the run's folder from earlier ones of the same names."""
    folder = command[len(command) - command[::-1].index("--save-path")]
    try:
        with os.scandir(folder) as entries:
            return {entry.name: (entry.inode(), entry.stat().st_mtime) for entry in entries
                    if entry.name.endswith(".pth")}
    except OSError:
        return {}


def record_of(job):
    """What Slurm knows of a job, {name: value}; nothing where it does not answer."""
    found = subprocess.run(["scontrol", "--oneliner", "show", "job", job], stdout=subprocess.PIPE)
    return dict(re.findall(r"\b(JobState|PreemptTime)=(\S+)",
                           found.stdout.decode("utf-8", "replace")))


def say(words):
    print("slurm: " + words, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--process":
        sys.exit(process(sys.argv[2:]))
    sys.exit(batch(sys.argv[1:]))
