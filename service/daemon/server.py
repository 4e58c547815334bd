"""The gRPC server: binds the address, and adds health and reflection."""

import socket
import stat
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service.address import Address
from service.daemon.audit_rpc import AuditRPC
from service.daemon.capture_rpc import CaptureRPC
from service.daemon.exporter import ListenError
from service.daemon.operator_rpc import ControlRPC
from service.daemon.state import State, StateName
from service.rpc.innerwatch.v1 import innerwatch_pb2 as pb
from service.rpc.innerwatch.v1 import innerwatch_pb2_grpc as rpc

WATCHING = "innerwatch.watching"
"""Health service that is SERVING only while the state is watching."""

# A step of 8192 tokens at d_model 4096 and float32 is 128 MiB an activation hook
# point, but pushdown needs K 64 * 4 B * 8192 = 2 MiB: 64 MiB is room enough.
_MAX_MESSAGE_BYTES = 64 << 20
_MAX_STREAMS = 32  # Each engine's stream holds one thread.


class Server:
    """Listens when built, answers when started."""

    def __init__(
        self,
        address: Address,
        capture: CaptureRPC,
        control: ControlRPC,
        audit: AuditRPC,
    ) -> None:
        """
        Bind *address*.

        Raises:
            ListenError: Somebody else listens there, or it cannot be bound.
        """
        self._address = address
        self._server = grpc.server(
            ThreadPoolExecutor(_MAX_STREAMS + 8, thread_name_prefix="rpc"),
            options=[
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),  # Or two daemons would share a port.
            ],
        )
        self._health = health.HealthServicer()
        rpc.add_CaptureServicer_to_server(capture, self._server)
        rpc.add_ControlServicer_to_server(control, self._server)
        rpc.add_AuditServicer_to_server(audit, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        services = [s.full_name for s in pb.DESCRIPTOR.services_by_name.values()]
        services += [health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(services, self._server)
        self._health.set(WATCHING, health_pb2.HealthCheckResponse.NOT_SERVING)
        check_free(address)
        try:
            self.port: int = self._server.add_insecure_port(address.target)
        except RuntimeError as error:
            raise ListenError(f"{address.target}: it can not be bound") from error
        if address.path:
            address.path.chmod(0o600)

    def start(self) -> None:
        """Begin to answer."""
        self._server.start()
        self._health.set("", health_pb2.HealthCheckResponse.SERVING)

    def set_state(self, state: State) -> None:
        """Show *state* to health checks."""
        is_watching = state.name is StateName.WATCHING
        response = health_pb2.HealthCheckResponse
        self._health.set(
            WATCHING, response.SERVING if is_watching else response.NOT_SERVING
        )

    def stop(self, grace_seconds: float) -> None:
        """Refuse new calls, let those that run end, and remove the socket."""
        self._health.enter_graceful_shutdown()
        self._server.stop(grace_seconds).wait()
        if self._address.path:
            self._address.path.unlink(missing_ok=True)


def check_free(address: Address) -> None:
    """
    Raise `ListenError` if *address* is taken; remove the socket of a dead daemon.
    """
    if address.path is None:
        _check_port_free(address)
        return
    path = address.path
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise ListenError(
                f"{address.target}: expected the folder {path.parent}, found none"
            ) from None
        return
    except OSError as error:
        raise ListenError(f"{address.target}: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise ListenError(f"{address.target}: expected a socket, found a file")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            raise ListenError(f"{address.target}: {error.strerror}") from error
    raise ListenError(f"{address.target}: in use by another daemon")


def _check_port_free(address: Address) -> None:
    host = address.host.strip("[]")
    try:
        with socket.create_server(
            (host, address.port),
            family=socket.AF_INET6 if ":" in host else socket.AF_INET,
        ):
            pass
    except OSError as error:
        raise ListenError(f"{address.target}: {error.strerror or error}") from error
