"""The client towards upstreams: connections are kept, answers are never mixed up, nothing hangs."""

import asyncio
import ssl
import subprocess
from contextlib import asynccontextmanager
from shutil import which

import pytest

from loadwise.engines.http_client import HttpClient
from loadwise.engines.http_connection import BUFFER_BYTES, HEAD_LIMIT_BYTES

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CLOSING = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"


class Last(bytes):
    """An answer after which the server closes the connection."""


class Server:
    """Answers each request with the next of the byte strings it was given."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.heads = []
        self.tasks = []
        self.left = 0

    @property
    def accepted(self):
        return len(self.tasks)

    async def serve(self, reader, writer):
        self.tasks.append(asyncio.current_task())
        try:
            while True:
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                answer = self.answers.pop(0)
                writer.write(answer)
                await writer.drain()
                if isinstance(answer, Last):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            self.left += 1
        finally:
            writer.close()


@asynccontextmanager
async def asked(*answers, tls=None, **options):
    server = Server(*answers)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    port = listener.sockets[0].getsockname()[1]
    scheme = "http" if tls is None else "https"
    client = HttpClient(f"{scheme}://localhost:{port}/base", connect_s=5, **options)
    async with asyncio.timeout(20):
        try:
            yield client, server
        finally:
            await client.close()
            await asyncio.gather(*server.tasks)
            listener.close()
            await listener.wait_closed()


async def whole(client, **headers):
    response = await client.request("GET", "/x", headers)
    return response.status, b"".join([part async for part in pieces(response)])


async def pieces(response):
    while part := await response.piece():
        yield part


async def left(server, count):
    while server.left < count:
        await asyncio.sleep(0)


async def test_a_connection_is_kept_between_requests():
    async with asked(OK, OK, OK) as (client, server):
        for _ in range(3):
            assert await whole(client) == (200, b"ok")
    assert server.accepted == 1


async def test_the_request_names_host_path_and_length():
    async with asked(OK) as (client, server):
        await client.request("POST", "/v1/x", {"x-a": "b"}, b"")
    line, *fields = server.heads[0].decode().split("\r\n")
    assert line == "POST /base/v1/x HTTP/1.1"
    assert fields[0].startswith("host: localhost:")
    assert {"x-a: b", "content-length: 0"} <= set(fields)


async def test_a_server_that_wants_to_close_is_asked_on_a_new_connection():
    async with asked(CLOSING, OK) as (client, server):
        assert await whole(client) == await whole(client)
    assert server.accepted == 2


async def test_a_kept_connection_that_was_closed_is_replaced():
    async with asked(OK, Last(), OK) as (client, server):
        await whole(client)
        assert await whole(client) == (200, b"ok")
    assert server.accepted == 2


async def test_a_new_connection_that_is_closed_is_an_error():
    async with asked(Last()) as (client, _):
        with pytest.raises(OSError, match="closed the connection"):
            await whole(client)


async def test_a_connection_idle_for_too_long_is_not_used_again():
    async with asked(OK, OK, keep_alive_s=-1.0) as (client, server):
        await whole(client)
        await whole(client)
    assert server.accepted == 2


async def test_an_answer_that_broke_off_is_not_asked_for_again():
    async with asked(OK, Last(b"HTTP/1.1 200 OK\r\ncontent-"), OK) as (client, server):
        await whole(client)
        with pytest.raises(OSError, match="closed the connection"):
            await whole(client)
    assert len(server.heads) == 2


async def test_bytes_behind_an_answer_are_nobodys_answer():
    async with asked(OK + OK, OK) as (client, server):
        for _ in range(2):
            assert await whole(client) == (200, b"ok")
    assert server.accepted == 2


async def test_an_announcement_is_no_answer():
    async with asked(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK) as (client, _):
        response = await client.request("GET", "/", {})
        assert (response.status, response.header("link")) == (200, "")


async def test_chunks_and_trailers_are_read():
    chunked = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\nx-late: 1\r\n\r\n"
    )
    async with asked(chunked, OK) as (client, server):
        assert await whole(client) == (200, b"abc")
        assert await whole(client) == (200, b"ok")
    assert server.accepted == 1


async def test_trailers_are_no_headers():
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-late: 1\r\n\r\n"
    async with asked(chunked) as (client, _):
        answer = await client.request("GET", "/a", {})
        assert [part async for part in pieces(answer)] == [b"ok"]
        assert answer.headers == [("transfer-encoding", "chunked")]


@pytest.mark.parametrize("trailer", [b"a: %b\r\n" % (b"x" * 1000), b"x" * 1000])
async def test_trailers_have_an_end(trailer):
    began = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nb: "
    async with asked(began + trailer * (3 * HEAD_LIMIT_BYTES // 1000)) as (client, _):
        with pytest.raises(OSError, match="no end"):
            await whole(client)


async def test_a_body_without_length_ends_with_its_connection():
    async with asked(Last(b"HTTP/1.1 200 OK\r\n\r\nto the end"), OK) as (client, server):
        assert await whole(client) == (200, b"to the end")
        assert await whole(client) == (200, b"ok")
    assert server.accepted == 2


async def test_a_short_body_is_an_error():
    async with asked(Last(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort")) as (client, _):
        response = await client.request("GET", "/", {})
        assert await response.piece() == b"short"
        with pytest.raises(OSError, match="closed the connection"):
            await response.piece()


@pytest.mark.parametrize(
    "nonsense",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * (HEAD_LIMIT_BYTES + 1),
    ],
)
async def test_what_is_no_answer_is_an_error(nonsense):
    async with asked(nonsense) as (client, _):
        with pytest.raises(OSError, match=r"no answer|no end"):
            await whole(client)


@pytest.mark.parametrize("value", ["a\r\nx-evil: 1", "a\nb", "a\0b"])
async def test_a_header_never_ends_its_line(value):
    async with asked(OK) as (client, server):
        with pytest.raises(ValueError, match="line"):
            await whole(client, a=value)
        assert not server.heads


async def test_a_server_waits_while_nobody_takes_its_body():
    size = 64 * BUFFER_BYTES
    async with asked(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size, OK) as (
        client,
        server,
    ):
        response = await client.request("GET", "/", {})
        first = await response.piece()
        # Some turns of the loop in which everything could have come.
        for _ in range(1000):
            await asyncio.sleep(0)
        assert len(first) + len(await response.piece()) < size
        rest = [part async for part in pieces(response)]
        assert response.ended
        assert rest
        assert await whole(client) == (200, b"ok")
    assert server.accepted == 1


async def test_giving_up_closes_the_connection():
    async with asked(b"", OK, b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab") as (client, server):
        task = asyncio.create_task(whole(client))
        while not server.heads:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await left(server, 1)
        assert await whole(client) == (200, b"ok")
        response = await client.request("GET", "/", {})
        response.close()
        await left(server, 2)


async def test_certificates_are_checked(tmp_path, monkeypatch):
    openssl = which("openssl")
    if openssl is None:
        pytest.skip("no openssl here to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost", "-days", "1"]
    subprocess.run(
        [*command, "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True, timeout=60
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    async with asked(OK, tls=context) as (client, _):
        with pytest.raises(ssl.SSLCertVerificationError):
            await whole(client)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with asked(OK, OK, tls=context) as (client, server):
        for _ in range(2):
            assert await whole(client) == (200, b"ok")
    assert server.accepted == 1
