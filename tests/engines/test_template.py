"""Chat templates render messages, in a sandbox."""

import json

import pytest

from loadwise.engines.rendering.template import ChatTemplate
from loadwise.errors import ConfigurationError, RequestError
from loadwise.testing import FakeClock
from loadwise.testing.folders import write_tokenizer

USER = [{"role": "user", "content": "hi"}]


def template(source, **special):
    return ChatTemplate(source, special, FakeClock(wall_s=0))


def test_a_folder_s_template_renders_its_messages(tmp_path):
    loaded = ChatTemplate.load(write_tokenizer(tmp_path), FakeClock())
    assert loaded.available
    assert loaded.render(USER) == "user: hi\nassistant: "
    assert loaded.render(USER, {"add_generation_prompt": False}) == "user: hi\n"


def test_a_separate_template_file_wins(tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    assert ChatTemplate.load(tmp_path, FakeClock()).render(USER) == "<s>hi"


def test_the_default_of_several_templates_is_taken(tmp_path):
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ eos_token }}"}]
    config = {"chat_template": named, "eos_token": {"content": "</s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatTemplate.load(tmp_path, FakeClock()).render(USER) == "</s>"


def test_what_templates_expect_to_find_is_there():
    assert template("{{ strftime_now('%Y') }}").render(USER) == "1970"
    assert template("{{ messages | tojson }}").render(USER) == '[{"role": "user", "content": "hi"}]'
    assert template("{% generation %}{{ x }}{% endgeneration %}").render(USER, {"x": 1}) == "1"
    assert template("{% for m in [1, 2] %}{% break %}{% endfor %}ok").render(USER) == "ok"


def test_a_template_s_refusal_is_the_client_s_error():
    with pytest.raises(RequestError, match="roles must alternate") as raised:
        template("{{ raise_exception('roles must alternate') }}").render(USER)
    assert raised.value.param == "messages"


@pytest.mark.parametrize("name", ["self", "args", "context", "range"])
def test_an_option_may_have_any_other_name(name):
    assert template("{{ messages | length }}").render(USER, {name: [1]}) == "1"


def test_an_option_cannot_replace_the_messages():
    with pytest.raises(RequestError, match="the request's own") as raised:
        template("{{ messages | length }}").render(USER, {"messages": [1]})
    assert raised.value.param == "chat_template_kwargs"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ strftime_now.__globals__.keys() }}",
        "{% for i in range(10**9) %}{% endfor %}",
    ],
)
def test_the_sandbox_holds(source):
    with pytest.raises(RequestError):
        template(source).render(USER)


def test_a_folder_without_a_template_says_so_per_request(tmp_path):
    loaded = ChatTemplate.load(tmp_path, FakeClock())
    assert not loaded.available
    with pytest.raises(RequestError, match="/v1/completions"):
        loaded.render(USER)


def test_a_broken_template_is_refused_when_it_is_loaded():
    with pytest.raises(ConfigurationError, match="not valid"):
        template("{% if %}")


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_configuration_is_refused(tmp_path, content):
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(ConfigurationError):
        ChatTemplate.load(tmp_path, FakeClock())
