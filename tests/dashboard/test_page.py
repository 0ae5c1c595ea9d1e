"""The dashboard as its readers meet it, in a real browser on a real server."""

from __future__ import annotations

import json

import pytest

SIZES = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]


async def test_the_first_block_says_what_is_going_on(serving, look):
    async with serving() as site:
        await site.answer()
        viewer = await look(site.url)
        await viewer.live()
        await viewer.until("document.querySelectorAll('#burns tbody tr').length === 3")
        first = await viewer.page.evaluate("document.querySelector('main > section').id")
        assert first == "verdict"
        assert "Nothing is at fault" in await viewer.text("#sentence")
        assert "Optimisation runs" in await viewer.text("#bypass")
        assert "0 of 20" in await viewer.text("#burns")
        assert "eu" in await viewer.text("#members")
        assert viewer.complaints == []


async def test_a_failing_member_is_named_on_the_page(serving, look):
    async with serving() as site:
        await site.answer(5)
        site.stub.behaviour.status = 500
        await site.answer(20)
        viewer = await look(site.url)
        await viewer.live()
        await viewer.until("document.getElementById('verdict').dataset.culprit === 'member'")
        assert "Member eu is at fault" in await viewer.text("#sentence")


async def test_before_the_first_request_the_page_says_that_there_is_no_data(serving, look):
    async with serving() as site:
        viewer = await look(site.url)
        await viewer.live()
        assert "No request ended" in await viewer.text("#sentence")
        assert "no data yet" in await viewer.text("#tiles")
        assert "Latencies appear with the first answers" in await viewer.text("#latency-chart")
        assert "Not enough evidence yet" in await viewer.text("#gain")
        assert "No alert is active" in await viewer.text("#alerts")


async def test_a_rollout_is_shown_with_its_share_and_why(serving, look):
    async with serving(optimization={"rollout": {"mode": "ramp", "steps": [0.25, 1.0]}}) as site:
        await site.answer(5)
        viewer = await look(site.url)
        await viewer.live()
        await viewer.until("document.getElementById('gain').innerText.includes('rollout of auto')")
        assert "25 % optimised" in await viewer.text("#gain")
        assert viewer.complaints == []


async def test_everything_comes_from_this_server(serving, look):
    async with serving() as site:
        viewer = await look(site.url)
        await viewer.live()
        assert viewer.hosts == {site.url.removeprefix("http://")}


@pytest.mark.parametrize(("width", "scheme"), SIZES)
async def test_the_page_is_readable_at_every_size_and_scheme(serving, look, width, scheme):
    async with serving() as site:
        await site.answer()
        viewer = await look(site.url, width=width, scheme=scheme)
        await viewer.live()
        wide = await viewer.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width
        assert await viewer.check("lowContrast") == []


async def test_a_screen_reader_finds_names_regions_and_tables(serving, look):
    async with serving() as site:
        await site.answer()
        viewer = await look(site.url)
        await viewer.live()
        page = viewer.page
        assert await page.locator("header, main, footer").count() == 3
        assert await page.locator("h1").count() == 1
        assert await viewer.check("unnamed") == []
        assert await page.locator("#connection[role=status]").count() == 1
        assert await page.locator("#sentence[aria-live=polite]").count() == 1
        label = await page.locator("#load-chart svg").get_attribute("aria-label")
        assert "load score" in label
        await page.click("#load-chart summary")
        await viewer.until("document.querySelectorAll('#load-chart tbody tr').length > 0")


async def test_charts_are_read_with_the_arrow_keys(serving, look):
    async with serving() as site:
        await site.answer()
        viewer = await look(site.url)
        await viewer.live()
        await viewer.page.focus("#load-chart .plot")
        await viewer.page.keyboard.press("Home")
        await viewer.until(
            "document.querySelector('#load-chart [aria-live]').textContent.includes('load score')"
        )


async def test_every_control_is_reached_by_the_tab_key(serving, look):
    async with serving() as site:
        viewer = await look(site.url)
        await viewer.live()
        reached = set()
        for _ in range(60):
            await viewer.page.keyboard.press("Tab")
            reached.add(
                await viewer.page.evaluate("document.activeElement.id || document.activeElement.className")
            )
        assert {"skip", "key-button", "plot", "admin-key", "stop", "set-load_threshold_high"} <= reached


async def test_settings_are_previewed_and_applied(serving, look):
    async with serving() as site:
        viewer = await look(site.url)
        await viewer.live()
        await viewer.page.fill("#set-load_threshold_high", "0.9")
        await viewer.page.click("#preview")
        await viewer.until("document.getElementById('said').textContent.includes('0.8 → 0.9')")
        assert site.server.optimization.optimizer.config.load_threshold_high == 0.8
        await viewer.page.click("#apply")
        await viewer.until("document.getElementById('control-version').textContent === 'configuration 2'")
        assert site.server.optimization.optimizer.config.load_threshold_high == 0.9
        await viewer.until("document.getElementById('journal').textContent.includes('load_threshold_high')")


async def test_a_wrong_value_is_said_beside_its_field_and_changes_nothing(serving, look):
    async with serving() as site:
        viewer = await look(site.url)
        await viewer.live()
        await viewer.page.fill("#set-max_ensemble_size", "0")
        await viewer.page.click("#apply")
        await viewer.until("document.getElementById('set-max_ensemble_size').ariaInvalid === 'true'")
        assert "max_ensemble_size" in await viewer.text("#said")
        assert site.server.optimization.optimizer.configurations.version == 1


async def test_stopping_asks_first_and_the_page_says_that_it_is_bypassed(serving, look):
    async with serving() as site:
        viewer = await look(site.url)
        await viewer.live()
        await viewer.page.click("#stop")
        assert site.server.optimization.director.running
        await viewer.page.click("#confirm-dialog .danger")
        await viewer.until("!document.getElementById('banner').hidden")
        assert not site.server.optimization.director.running
        assert "bypassed" in await viewer.text("#banner")
        await viewer.page.click("#start")
        await viewer.until("document.getElementById('banner').hidden")
        assert site.server.optimization.director.running


async def test_without_a_key_the_page_asks_for_one_and_never_keeps_it(serving, look):
    async with serving(api_key="data-canary", admin_key="admin-canary") as site:
        viewer = await look(site.url)
        await viewer.until("document.getElementById('key-dialog').open")
        assert "needs a key" in await viewer.text("#banner")
        await viewer.page.fill("#key-value", "admin-canary")
        await viewer.page.click("#key-form [value=use]")
        await viewer.live()
        kept = await viewer.page.evaluate(
            "[document.cookie, JSON.stringify(localStorage), JSON.stringify(sessionStorage), location.href,"
            " document.documentElement.outerHTML, document.getElementById('key-value').value].join('|')"
        )
        assert "canary" not in kept
        await viewer.page.reload()
        await viewer.until("document.getElementById('key-dialog').open")


async def test_a_data_key_reads_and_only_the_admin_key_changes(serving, look):
    async with serving(api_key="data-canary", admin_key="admin-canary") as site:
        viewer = await look(site.url)
        await viewer.until("document.getElementById('key-dialog').open")
        await viewer.page.select_option("#key-kind", "data")
        await viewer.page.fill("#key-value", "data-canary")
        await viewer.page.click("#key-form [value=use]")
        await viewer.live()
        await viewer.page.fill("#set-load_threshold_high", "0.9")
        await viewer.page.click("#apply")
        await viewer.until("document.getElementById('said').dataset.tone === 'bad'")
        assert site.server.optimization.optimizer.configurations.version == 1
        await viewer.page.fill("#admin-key", "admin-canary")
        await viewer.page.click("#apply")
        await viewer.until("document.getElementById('control-version').textContent === 'configuration 2'")


async def test_a_lost_server_is_said_and_the_page_finds_it_again(serving, look):
    async with serving() as site:
        viewer = await look(site.url)
        await viewer.live()
    await viewer.until("document.body.dataset.connection === 'lost'")
    assert "Trying again" in await viewer.text("#banner")
    assert "figures of" in await viewer.text("#connection-text")
    async with serving(port=int(site.url.rsplit(":", 1)[1])):
        await viewer.until("document.body.dataset.connection === 'live'")


async def test_names_that_look_like_markup_are_shown_as_text(serving, look, xss):
    async with serving() as site:
        viewer = await look(site.url)
        await viewer.live()
        frame = await site.server.optimization.control.read("live")
        for evil in xss:
            frame["diagnosis"]["sentence"] = evil
            frame["members"][0]["model_id"] = evil
            told = dict.fromkeys(("name", "severity", "summary", "remedy", "undo"), evil)
            frame["alerts"] = [{**told, "evidence": {evil: evil}}]
            frame["changes"] = [
                {"time": frame["time"], "ago_s": 1, "kind": evil, "what": evil, "reason": evil, "undo": evil}
            ]
            await viewer.page.evaluate(
                "async (frame) => { const { verdict } = await import('./dashboard/verdict.js');"
                " const panels = await import('./dashboard/panels.js'); verdict(frame);"
                " for (const part of ['alerts', 'journal']) panels[part](frame);"
                " panels.members(frame, () => 'm0'); }",
                json.loads(json.dumps(frame)),
            )
            assert await viewer.page.evaluate("window.broken ?? null") is None
            assert (
                await viewer.page.evaluate(
                    "document.querySelectorAll('main script, main img, main iframe').length"
                )
                == 0
            )
        assert viewer.complaints == []
