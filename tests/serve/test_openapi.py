"""The published document is valid and true."""

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
    """schemathesis draws requests from the document, and wrong ones beside it.

    One of its checks is left out: requests that fit the schema are refused where
    two fields contradict each other, which JSON Schema does not say here.
    """
    run = servers.make_run(tmp_path / 'short', context=64)  # replies soon end
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
        assert 'Tested: 11' in done.stdout  # all but the document itself
        assert server.get('/ready') == dict(status='ready')
