"""A member's price, limits and tags in the file: what is wrong is refused by name, before anything starts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from loadwise.cli.config import difference
from loadwise.errors import ConfigurationError
from loadwise.settings import Settings, load_settings

PAGE = Path(__file__).parents[1] / "docs" / "members.md"


def settings(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "loadwise.yaml"
    path.write_text(text, encoding="utf-8")
    return load_settings(path)


def documented() -> str:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return str(block)


def test_the_documented_file_is_read_as_it_says(tmp_path: Path) -> None:
    read = settings(tmp_path, documented())
    large = read.upstreams["large"]
    assert large.price is not None
    assert large.price.price().of(1_000_000, 1_000_000) == 18.0
    assert large.limits.limits().tokens_per_minute == 200_000
    assert large.tags == {"eu", "paid"}
    assert read.routes["thrifty"].price_weight == 0.3
    assert not read.routes["free"].rule.allows(large.tags)
    assert read.keys[0].rule.allows(large.tags)


ONE = "upstreams: {a: {url: 'http://h:1', tags: [eu]%s}}\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            ONE % ", price: {input_per_million: -1, output_per_million: 1}",
            "upstreams.a.price.input_per_million",
        ),
        (ONE % ", price: {input_per_million: 1}", "upstreams.a.price.output_per_million: Field required"),
        (ONE % ", price: {input: 1}", "input: there is no such setting"),
        (ONE % ", limits: {requests_per_minute: 0}", "upstreams.a.limits.requests_per_minute"),
        (ONE % ", limits: {rpm: 5}", "rpm: there is no such setting"),
        (ONE % ", tags: ['a b']", "upstreams.a.tags"),
        (
            ONE % "" + "routes: {r: {members: [a], forbid_tags: [eu]}}",
            "routes.r.members names 'a', which has",
        ),
        (
            ONE % "" + "routes: {r: {members: [a], require_tags: [us]}}",
            "lacks the tag 'us' that routes.r requires",
        ),
        (
            ONE % "" + "routes: {r: {require_tags: [us]}}",
            "no member has the tags it asks for. Tags in use: eu",
        ),
        (ONE % "" + "routes: {r: {require_tags: [eu], forbid_tags: [eu]}}", "require_tags names too"),
        (ONE % "" + "routes: {r: {}}", "members must name at least one member"),
        (ONE % "" + "routes: {r: {members: [a], price_weight: 2}}", "routes.r.price_weight"),
        (ONE % "" + f"keys: [{{id: k, sha256: '{'0' * 64}', require_tags: [us]}}]", "keys.k: no member has"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        settings(tmp_path, text)
    assert words in str(refused.value)


def test_two_files_are_compared_leaf_by_leaf(tmp_path: Path) -> None:
    before = settings(tmp_path, documented()).model_dump(mode="json")
    changed = yaml.safe_load(documented())
    changed["upstreams"]["large"]["price"]["input_per_million"] = 2.5
    del changed["upstreams"]["small"]["price"]
    after = settings(tmp_path, yaml.safe_dump(changed)).model_dump(mode="json")
    assert difference(before, before) == {}
    assert difference(before, after) == {
        "upstreams.large.price.input_per_million": "3.0 -> 2.5",
        "upstreams.small.price": "absent -> null",
        "upstreams.small.price.cached_input_per_million": "null -> absent",
        "upstreams.small.price.input_per_million": "0.2 -> absent",
        "upstreams.small.price.output_per_million": "0.6 -> absent",
    }
