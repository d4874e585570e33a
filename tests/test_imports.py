"""Rules of the code: imports point one way, files are short, slow imports are late."""

import ast
import subprocess
import sys
from collections import Counter

import pytest

from tests import runs

PACKAGE = runs.ROOT / 'gptjax'
# The other folders that each folder may import: those before it in the order.
ORDER = {
    'core': '',
    'tokenizer': 'core',
    'data': 'core tokenizer',
    'parallel': 'core',
    'kernels': 'core parallel',
    'models': 'core parallel kernels',
    'optim': 'core parallel kernels models',
    'infer': 'core parallel kernels models',
    'train': 'core parallel kernels models optim infer tokenizer data',
}
ORDER['post'] = f'{ORDER["train"]} train'
ORDER['eval'] = f'{ORDER["post"]} post'
for last in ('convert', 'tune', 'plan', 'serve', 'bench'):
    ORDER[last] = f'{ORDER["eval"]} eval'
ORDER['bench'] += ' convert'  # weights for other libraries
ORDER['papers'] = f'{ORDER["bench"]} convert tune plan serve bench'
ORDER[''] = f'{ORDER["papers"]} papers'  # cli and the other top modules

# Modules that may be imported only inside functions, and the folders that may do so.
LATE = {'tensorflow', 'tensorflow_datasets', 'clu', 'orbax', 'torch', 'transformers'}
NEVER_AT_ONCE = {'data': {'jax', 'flax'}, 'tokenizer': {'jax', 'flax'}}


def sources():
    return sorted(PACKAGE.rglob('*.py'))


def folder_of(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ''


def imports_of(path, within_functions=True):
    """Names of the modules that a file imports, as 'gptjax.models.gpt'."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    nodes = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: relative import'
            yield from (f'{node.module}.{alias.name}' for alias in node.names)
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if within_functions or not function:
            nodes += ast.iter_child_nodes(node)


def gptjax_parts(path):
    """The parts of gptjax that a file imports: its folders and top modules."""
    names = [name.split('.') for name in imports_of(path)]
    return {name[1] for name in names if name[0] == 'gptjax' and len(name) > 1}


def test_every_folder_has_its_place():
    assert {folder_of(path) for path in sources()} <= ORDER.keys()


def test_no_file_name_occurs_twice():
    names = Counter(path.name for path in sources() if path.name != '__init__.py')
    assert [name for name, count in names.items() if count > 1] == []


def test_files_and_functions_can_be_read_in_one_sitting():
    for path in sources():
        text = path.read_text(encoding='utf-8')
        assert len(text.splitlines()) <= 450, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= 120, f'{path}: {node.name} has {lines} lines'


@pytest.mark.parametrize('path', sources(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports(path):
    folder, imported = folder_of(path), gptjax_parts(path)
    if folder:
        assert imported - {folder} <= {*ORDER[folder].split()}

    everywhere = {name.split('.')[0] for name in imports_of(path)}
    assert not everywhere & {'configs', 'tests'}
    at_once = {name.split('.')[0] for name in imports_of(path, within_functions=False)}
    if not path.name.startswith(('chitchat_b', 'chatterbot_b')):  # TFDS imports these
        assert not at_once & (LATE | NEVER_AT_ONCE.get(folder, set()))
    if folder not in ('core', 'data', 'train', 'bench', 'convert'):
        assert not everywhere & {'tensorflow', 'tensorflow_datasets', 'clu'}


def loaded_by(code):
    """The modules that a new Python process has imported after `code`."""
    code += '\nimport sys; print(" ".join(sys.modules))'
    done = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True, text=True, check=True, cwd=runs.ROOT,
    )  # fmt: skip
    return set(done.stdout.split())


def test_data_and_tokenizer_load_without_jax_and_tensorflow():
    modules = [
        '.'.join(path.relative_to(runs.ROOT).with_suffix('').parts)
        for folder in ('data', 'tokenizer')
        for path in (PACKAGE / folder).glob('*.py')
    ]
    loaded = loaded_by('\n'.join(f'import {module}' for module in modules))
    assert 'gptjax.data.dataloader' in loaded
    assert not loaded & {'jax', 'tensorflow', 'tensorflow_datasets'}


def test_training_loads_without_tensorflow():
    loaded = loaded_by('import gptjax.train.pretrain, gptjax.eval.samples')
    assert 'jax' in loaded
    assert not loaded & {'tensorflow', 'tensorflow_datasets', 'clu'}


def test_imports_within_functions_are_seen(tmp_path):
    path = tmp_path / 'a.py'
    path.write_text('import os\ndef f():\n    from gptjax.eval import report\n')
    assert set(imports_of(path)) == {'os', 'gptjax.eval.report'}
    assert set(imports_of(path, within_functions=False)) == {'os'}
