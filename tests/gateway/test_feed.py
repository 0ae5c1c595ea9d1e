"""The page's feed: bounded viewers, nobody waits for a slow one, and it ends with the server."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest

from loadwise.errors import RequestError
from loadwise.gateway.feed import BEHIND, MOST_VIEWERS, Feed


class Source:
    """Frames on demand, counted."""

    def __init__(self) -> None:
        self.frames = 0
        self.error: Exception | None = None
        self.draining = False

    async def first(self):
        return {"tracks": {}}

    async def frame(self):
        self.frames += 1
        if self.error is not None:
            raise self.error
        return {"number": self.frames}

    def feed(self, period_s: float = 0.0) -> Feed:
        return Feed(self.first, self.frame, draining=lambda: self.draining, period_s=period_s)


class Watching:
    """A viewer called in this process: takes `takes` events, then nothing more."""

    def __init__(self, takes: int = 1_000_000) -> None:
        self.sent: list[bytes] = []
        self.takes = takes
        self.left = asyncio.Event()
        self.enough = asyncio.Event()

    async def receive(self):
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        if message.get("body"):
            self.sent.append(message["body"])
        if len(self.sent) >= self.takes:
            self.enough.set()
            await asyncio.Event().wait()

    def names(self) -> list[str]:
        return [event.split(b"\n")[0].removeprefix(b"event: ").decode() for event in self.sent]


async def test_a_viewer_gets_the_past_first_and_then_every_frame():
    source, viewer = Source(), Watching(takes=5)
    answer = asyncio.create_task((await source.feed().watch())({}, viewer.receive, viewer.send))
    await viewer.enough.wait()
    assert viewer.names() == ["timeline", "frame", "frame", "frame", "frame"]
    numbers = [json.loads(event.split(b"data: ")[1])["number"] for event in viewer.sent[1:]]
    assert numbers == sorted(numbers)
    viewer.left.set()
    await answer


async def test_a_viewer_that_left_frees_its_place_and_the_feed_rests():
    source, viewer = Source(), Watching()
    feed = source.feed()
    answer = asyncio.create_task((await feed.watch())({}, viewer.receive, viewer.send))
    viewer.left.set()
    await answer
    assert feed.viewers == 0


async def test_a_viewer_beyond_the_bound_is_refused_and_told_why():
    feed = Source().feed(period_s=3600.0)
    for _ in range(MOST_VIEWERS):
        await feed.watch()
    with pytest.raises(RequestError) as refused:
        await feed.watch()
    assert (refused.value.status, refused.value.code) == (503, "too_many_viewers")
    assert refused.value.retry_after_s is not None
    assert feed.viewers == MOST_VIEWERS


async def test_a_slow_viewer_is_dropped_and_the_others_go_on():
    source, slow, quick = Source(), Watching(takes=1), Watching(takes=4 * BEHIND)
    feed = source.feed()
    dropped = asyncio.create_task((await feed.watch())({}, slow.receive, slow.send))
    answer = asyncio.create_task((await feed.watch())({}, quick.receive, quick.send))
    await dropped
    await quick.enough.wait()
    assert len(slow.sent) == 1
    quick.left.set()
    await answer


async def test_frames_are_made_once_for_all_viewers():
    source = Source()
    feed = source.feed()
    viewers = [Watching(takes=6) for _ in range(5)]
    answers = [asyncio.create_task((await feed.watch())({}, v.receive, v.send)) for v in viewers]
    for viewer in viewers:
        await viewer.enough.wait()
    # One frame at each start, and the shared ones: far fewer than one per viewer and event.
    assert source.frames <= 5 + 6 + BEHIND
    for viewer, answer in zip(viewers, answers, strict=True):
        viewer.left.set()
        await answer


async def test_figures_that_cannot_be_read_are_told_and_the_feed_goes_on():
    source, viewer = Source(), Watching(takes=4)
    answer = asyncio.create_task((await source.feed().watch())({}, viewer.receive, viewer.send))
    source.error = ValueError("broken")
    await viewer.enough.wait()
    assert "trouble" in viewer.names()
    assert b"broken" not in b"".join(viewer.sent)
    viewer.left.set()
    await answer


async def test_a_server_that_stops_ends_every_stream_as_it_should(site_of, on_socket):
    async with on_socket(site_of()) as site, aiohttp.ClientSession() as client:
        async with client.get(site.url + "/v1/optimization/events") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["cache-control"] == "no-store"
            assert (await answer.content.readline()) == b"event: timeline\n"
            site.listener.stop()
            rest = await answer.content.read()
        assert rest.endswith(b"\n\n")


async def test_the_pages_files_forbid_whatever_is_not_their_own(site_of):
    site = site_of()
    for path in site.app.table:
        if not path.startswith("/dashboard"):
            continue
        reply = await site.ask("GET", path)
        policy = reply.headers["content-security-policy"]
        assert reply.status == 200
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        for word in (b"http://", b"https://"):
            assert word not in reply.body.replace(b"http://www.w3.org/", b"")


async def test_the_page_has_nothing_inline(site_of):
    page = (await site_of().ask("GET", "/dashboard")).body.decode()
    assert "<script>" not in page
    assert "<style" not in page
    assert " style=" not in page
    assert " onclick=" not in page


async def test_a_file_that_the_browser_has_is_not_sent_again(site_of):
    site = site_of()
    first = await site.ask("GET", "/dashboard/app.js")
    again = await site.ask("GET", "/dashboard/app.js", headers=[("if-none-match", first.headers["etag"])])
    assert (again.status, again.body) == (304, b"")
    assert (await site.ask("GET", "/dashboard/none.js")).status == 404
