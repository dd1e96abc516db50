"""A Slurm of one's own on this machine: munged, slurmctld and two slurmd, on the loopback alone.

    python tests/slurm_cluster.py COMMAND...      runs a command with it, and stops it

    python tests/slurm_cluster.py sh -c '
        sinfo; gres= cpus_per_task=1 sh scripts/slurm_train.sh 2 29500 tests'

No Slurm and no munge of the machine is touched. Its folder is removed with it.
"""
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time

PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'srun', 'scontrol', 'scancel', 'sinfo')
# Jobs in URGENT take the nodes from jobs in PARTITION, which have GRACE seconds to leave.
PARTITION, URGENT, GRACE = 'tests', 'urgent', 60

# The nodes are called by loopback addresses, since training turns the first one's name into an
# address.
CONF = """
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0
JobRequeue=1
# so that sbatch --wait looks every 2 seconds
MinJobAge=5
KillWait=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
NodeName=127.0.0.1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4
NodeName=127.0.0.2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName={partition} Nodes=ALL Default=YES MaxTime=10 PriorityTier=1 GraceTime={grace}
PartitionName={urgent} Nodes=ALL MaxTime=10 PriorityTier=2
"""


class CannotStart(Exception):
    """Why there is no cluster."""


class Cluster:
    """Started and stopped by `with`; `environment` leads Slurm's commands to it."""

    def __enter__(self):
        path = os.environ.get('PATH', os.defpath) + ':/usr/sbin:/sbin'
        missing = [name for name in PROGRAMS if not shutil.which(name, path=path)]
        if missing:
            raise CannotStart('not installed: {} (Debian: apt-get install slurm-wlm munge)'.format(
                ', '.join(missing)))
        self.folder = tempfile.mkdtemp(prefix='slurm')  # short: a socket's path has 108 characters
        self.daemons = []
        self.environment = {name: value for name, value in os.environ.items()
                            if not name.startswith(('SLURM_', 'SBATCH_'))}
        self.environment.update(SLURM_CONF=os.path.join(self.folder, 'slurm.conf'), PATH=path)
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self):
        folder = self.folder
        os.mkdir(os.path.join(folder, 'state'))
        with open(os.path.join(folder, 'slurm.conf'), 'w') as file:
            file.write(CONF.format(folder=folder, ports=free_ports(3), partition=PARTITION,
                                   urgent=URGENT, grace=GRACE,
                                   user=pwd.getpwuid(os.getuid()).pw_name))
        key = os.open(os.path.join(folder, 'munge.key'), os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(key, os.urandom(1024))
        os.close(key)
        munge = {'socket': 'munge.socket', 'key-file': 'munge.key', 'pid-file': 'munged.pid',
                 'log-file': 'munged.log', 'seed-file': 'munged.seed'}
        self._daemon('munged', '--foreground', '--force', *(
            f'--{option}={folder}/{name}' for option, name in munge.items()))
        self._wait('munged', lambda: os.path.exists(os.path.join(folder, 'munge.socket')))
        self._daemon('slurmctld', '-D')
        for node in ('127.0.0.1', '127.0.0.2'):
            self._daemon('slurmd', '-D', '-N', node)
        self._wait('Slurm', self.is_idle)

    def is_idle(self):
        """Whether both nodes are there, and nothing is left of any job on them."""
        return self.run('sinfo', '-h', '-N', '-p', PARTITION, '-o', '%t').split() == ['idle'] * 2

    def _daemon(self, *command):
        with open(os.path.join(self.folder, 'daemons.out'), 'a') as file:
            self.daemons.append(subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT, start_new_session=True))

    def _wait(self, name, ready):
        end = time.time() + 20
        while not ready():
            if time.time() > end or any(daemon.poll() is not None for daemon in self.daemons):
                words = ' | '.join(self.last_words())
                raise CannotStart(f'{name} does not start here: {words}')
            time.sleep(0.1)

    def last_words(self):
        """The last errors in the daemons' logs."""
        lines = []
        for name in sorted(os.listdir(self.folder)):
            if name.endswith(('.out', '.log')):
                with open(os.path.join(self.folder, name), errors='replace') as file:
                    lines += [f'{name}: {line.strip()}' for line in file
                              if 'error' in line.lower() or 'fatal' in line.lower()][-2:]
        return lines

    def run(self, *command):
        """What a command of Slurm prints, errors included."""
        return subprocess.run(command, env=self.environment, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              universal_newlines=True, timeout=30).stdout

    def __exit__(self, *_):
        if len(self.daemons) > 1:  # jobs have processes of their own, which outlive the daemons
            self.run('scancel', '--user', pwd.getpwuid(os.getuid()).pw_name)
            end = time.time() + 15
            while (time.time() < end and self.run('squeue', '-h').strip()
                   and self.daemons[1].poll() is None):
                time.sleep(0.2)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def free_ports(count):
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(('127.0.0.1', 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


if __name__ == '__main__':
    try:
        with Cluster() as cluster:
            sys.exit(subprocess.call(sys.argv[1:], env=cluster.environment))
    except CannotStart as error:
        sys.exit(f'slurm_cluster.py: {error}')
