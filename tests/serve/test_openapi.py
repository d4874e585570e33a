"""The published document is valid and describes the server."""

import subprocess
import sys

import jsonschema
import pytest

from gptjax.serve import api, openapi
from tests import servers


def test_its_references_and_schemas_are_whole():
    document = openapi.document(api.OPERATIONS)
    schemas = document['components']['schemas']
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)

    def references(value):
        if isinstance(value, dict):
            yield from [value['$ref']] if isinstance(value.get('$ref'), str) else []
            value = list(value.values())
        if isinstance(value, list):
            for item in value:
                yield from references(item)

    named = {name.rpartition('/')[2] for name in references(document['paths'])}
    assert named <= schemas.keys()


@pytest.mark.slow
def test_the_server_does_what_it_says(tmp_path):
    """schemathesis generates requests from the document, valid and invalid ones.

    One of its checks is switched off: the server refuses requests whose fields
    contradict each other, which the JSON Schema here does not express.
    """
    run = servers.make_run(tmp_path / 'short', context=64)  # so replies end soon
    with servers.serving(run) as server:
        done = subprocess.run(
            [
                *(sys.executable, '-m', 'schemathesis.cli', 'run'),
                f'{server.address}/openapi.json',
                *('--checks=all', '--exclude-checks=positive_data_acceptance'),
                *('--phases=coverage,fuzzing', '--max-examples=10', '--seed=1'),
            ],
            capture_output=True, text=True, timeout=300, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr
        assert 'Tested: 12' in done.stdout  # all routes except that of the document
        assert server.get('/ready') == dict(status='ready')
