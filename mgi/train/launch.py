"""Start a training command in several processes, on one machine or on each of several, by torchrun."""

import os

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from mgi.errors import MissingInputError

PORT = 29400


def launch(processes: int, nodes: int, command: list[str]) -> int:
    """Run `mgi` in processes that share each batch, and return the exit code: 0, or 1 where one of them failed.

    On several machines, srun calls this once on each of them, and all meet at the machine where it was started.

    Parameters
    ----------
    processes : int
        Processes on each machine: one for each GPU.
    nodes : int
        Machines.
    command : list of str
        What comes after `mgi`.

    Raises
    ------
    MissingInputError
        If there are several machines, and this was not started by srun.
    """
    arguments = [f"--nproc-per-node={processes}", *_meeting_place(nodes), "-m", "mgi", *command]
    try:
        run(parse_args(arguments))
    except (ChildFailedError, SignalException):
        # The process that failed has said why.
        return 1
    return 0


def _meeting_place(nodes: int) -> list[str]:
    """Return the options of torchrun by which the processes of all machines find one another."""
    if nodes == 1:
        return ["--standalone"]
    try:
        host, job = os.environ["SLURM_LAUNCH_NODE_IPADDR"], os.environ["SLURM_JOB_ID"]
    except KeyError as error:
        raise MissingInputError(
            f"training on {nodes} machines starts by srun, which sets {error.args[0]}: "
            f"srun --nodes={nodes} --ntasks-per-node=1 mgi launch ..."
        ) from error
    endpoint = f"--rdzv-endpoint={f'[{host}]' if ':' in host else host}:{PORT}"
    return [f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-id={job}", endpoint]
