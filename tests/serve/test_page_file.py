"""The chat page's file: what it may not hold, so that its policy can be strict."""

import re

from gptjax.serve.schemas import ChatRequest
from tests.chat_page import PAGE


def test_one_style_one_script_and_nothing_from_elsewhere():
    html = PAGE.read_text(encoding='utf-8')
    assert html.count('<style') == html.count('<style>') == 1
    assert html.count('<script') == html.count('<script>') == 1
    markup = re.sub(r'<(style|script)>.*?</\1>', '', html, flags=re.DOTALL)
    assert not re.search(r'\s(on\w+|style)\s*=', markup)
    assert not re.search(r'(src|href)="(?!#|data:)', markup)
    style = re.search(r'<style>(.*?)</style>', html, re.DOTALL)[1]
    assert 'url(' not in style and '@import' not in style
    script = re.search(r'<script>(.*?)</script>', html, re.DOTALL)[1]
    sinks = (
        r'innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\('
    )
    assert not re.search(sinks, script)


def test_its_fields_have_the_limits_of_the_server():
    form = r"name: '(\w+)', .*?least: ([-\d.]+),( above: true,)? most: ([\d.]+),"
    fields = re.findall(form, PAGE.read_text(encoding='utf-8'))
    assert len(fields) == 9
    properties = ChatRequest.model_json_schema()['properties']
    for name, least, above, most in fields:
        schema, _ = properties[name]['anyOf']  # or null
        assert schema['exclusiveMinimum' if above else 'minimum'] == float(least), name
        assert schema['maximum'] == float(most), name
