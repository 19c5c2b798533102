"""Hosts on this machine: network namespaces with addresses and names of their own, joined by a bridge. Root only.

The hosts share the file system, as the machines of a cluster share a folder, except for a folder that each may have of
its own. A host can be cut off (its link goes down, its processes stay) and killed (its processes end at once).
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO

import psutil

from testing.paths import ROOT

NETWORK = "10.77.0"
HEALTH = {  # a host that does not answer is lost after about half a minute
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_grpc_client_keepalive_time_ms": "2000",
    "RAY_grpc_client_keepalive_timeout_ms": "4000",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # after which what runs on it ends by itself
}
ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **HEALTH}
NAMED = 'hostname "$1" && shift && exec "$@"'
APART = 'mount --bind "$1" "$2" && shift 2 && ' + NAMED


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True)
class Host:
    """One of several."""

    number: int
    """From 1."""
    network: str
    """Name of all that belongs to them."""
    private: Path | None = None
    """A path under which each host has a folder of its own; None: they share all of the file system."""

    @property
    def name(self) -> str:
        """What it calls itself."""
        return f"host{self.number}"

    @property
    def address(self) -> str:
        """Its IPv4 address."""
        return f"{NETWORK}.{self.number}"

    @property
    def own_folder(self) -> Path:
        """What the host has under the path `private`, as it is seen from outside."""
        assert self.private is not None
        return self.private.with_name(f"{self.private.name}-of-{self.name}")

    @property
    def namespace(self) -> str:
        """Name of its network namespace."""
        return f"{self.network}-{self.number}"

    def start(
        self, command: Sequence[str], log: IO[str], environment: Mapping[str, str] = MappingProxyType({})
    ) -> "subprocess.Popen[str]":
        """Start a command on the host."""
        inside = ["ip", "netns", "exec", self.namespace, "unshare", "--uts"]
        if self.private is None:
            inside += ["sh", "-c", NAMED, "sh", self.name]
        else:
            inside += ["--mount", "sh", "-c", APART, "sh", str(self.own_folder), str(self.private), self.name]
        return subprocess.Popen(
            [*inside, *command],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT | dict(environment),
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,  # as on a machine of its own: Linux shares out processors by session
        )

    def join(
        self,
        head: "Host",
        log: IO[str],
        num_cpus: int = 1,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> "subprocess.Popen[str]":
        """Start Ray on it: as the head, or as a worker of another host."""
        role = ["--head", "--port=6379", "--include-dashboard=false"] if head == self else [f"--address={head.gcs}"]
        ray = str(Path(sys.executable).parent / "ray")
        options = ["--num-cpus", str(num_cpus), "--object-store-memory=134217728", "--disable-usage-stats", "--block"]
        return self.start([ray, "start", *role, f"--node-ip-address={self.address}", *options], log, environment)

    @property
    def gcs(self) -> str:
        """Where the others join, if it is the head."""
        return f"{self.address}:6379"

    def processes(self, title: str = "") -> list[psutil.Process]:
        """The processes that run on it, or those whose title contains something."""
        listed = _ip("netns", "pids", self.namespace)
        found = []
        for pid in map(int, listed.split()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if title in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def cut_off(self) -> None:
        """Take its link down."""
        _ip("-n", f"{self.network}-switch", "link", "set", f"port{self.number}", "down")

    def reconnect(self) -> None:
        """Bring its link up again."""
        _ip("-n", f"{self.network}-switch", "link", "set", f"port{self.number}", "up")

    def kill(self) -> None:
        """End all of its processes at once."""
        while processes := self.processes():
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(processes, 10)


def can_make_hosts() -> bool:
    """Whether this user may make network namespaces on this machine."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"rf{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True).returncode == 0
    if made:
        _ip("netns", "del", name)
    return made


@contextmanager
def hosts(number: int, private: Path | None = None) -> Iterator[list[Host]]:
    """So many hosts, for as long as the block runs; what runs on them is killed at its end.

    Args:
        private: as `Host.private`.
    """
    network = f"rf{os.getpid()}"
    made = [Host(each, network, private) for each in range(1, number + 1)]
    for folder in () if private is None else (private, *(host.own_folder for host in made)):
        folder.mkdir(parents=True)
    switch = f"{network}-switch"
    names = "".join(f"{host.address} {host.name}\n" for host in made)
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for host in made:
            _ip("netns", "add", host.namespace)
            port = f"port{host.number}"
            _ip("-n", host.namespace, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", switch)
            _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                _ip("-n", host.namespace, "link", "set", device, "up")
            _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
            folder = Path("/etc/netns") / host.namespace  # which `ip netns exec` shows as /etc
            folder.mkdir(parents=True)
            (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}", encoding="utf-8")
        yield made
    finally:
        for host in made:
            with contextlib.suppress(subprocess.CalledProcessError):
                host.kill()
            folder = Path("/etc/netns") / host.namespace
            (folder / "hosts").unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()
        for namespace in (*(host.namespace for host in made), switch):
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)
