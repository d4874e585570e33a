"""The command line: flags, help, exit codes."""

import importlib
import re
import signal
import subprocess
import sys
import threading

import jax
import pytest
from absl import flags

from configs import common
from gptjax import cli, command_line, model_stages
from gptjax.core import run_dir
from gptjax.core.console import UserError
from tests import runs


def error_of(capsys, *words) -> str:
    """The one line on standard error of a command that is refused."""
    assert runs.gptjax(*words) == 2
    line = capsys.readouterr().err
    assert line.startswith('error: ') and line.count('\n') == 1, line
    return line


def test_the_last_line_of_training_has_the_rollouts(capsys):
    end = dict(reason='finished', step=42, validation=dict(loss=0.5))
    for more, where in ({}, 'step 42'), (dict(rollouts=21), 'step 42 (rollout 21)'):
        cli.print_summary(end | more)
        assert (
            capsys.readouterr().out == f'finished at {where}: validation loss 0.5000\n'
        )


def test_help_lists_every_stage_and_flag(capsys):
    for words in ((), ('--help',), ('pretrain', '--help'), ('-h',)):
        assert runs.gptjax(*words) == 0
        printed = capsys.readouterr().out
        for stage in cli.STAGES:
            assert f'\n  {stage} ' in printed
        assert '--workdir' in printed and '--config.field=value' in printed


def test_help_loads_neither_jax_nor_tensorflow():
    code = (
        'import sys; from gptjax.cli import main; main(["gptjax", "--help"]); '
        'assert "gptjax.core.run_dir" in sys.modules; '
        'print("heavy:", {"jax", "tensorflow", "numpy", "clu"} & set(sys.modules))'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=runs.ROOT
    )
    assert done.stdout.endswith('heavy: set()\n'), done.stdout + done.stderr


def test_unknown_words_are_refused(capsys, tmp_path):
    config = '--config=configs/tiny.py'
    place = f'--workdir={tmp_path}/run'
    broken = tmp_path / 'broken.py'
    broken.write_text('import nothing')
    refused = {
        ('bake',): "no stage 'bake': use one of data, classifier, tokenizer",
        (
            'pretrain',
            config,
            place,
            'twice',
        ): "'twice': this stage has no such argument",
        ('pretrain', config, place, '--wrong=1'): 'wrong',
        ('sample', place, '--prompt', 'caf\udce9'): r"'caf\udce9' is not UTF-8",
        ('pretrain', config): '--workdir is missing',
        ('pretrain', place): 'is not a run directory',
        ('pretrain', '--config=configs/none.py', place): 'configs/none.py',
        ('pretrain', '--config=configs/tiny.py:big', place): "no variant 'big'",
        ('pretrain', '--config=pyproject.toml', place): 'pyproject.toml: line 5',
        ('pretrain', f'--config={broken}', place): "No module named 'nothing'",
        ('pretrain', config, place, '--config.model.size=3'): '--config.model.size',
        ('pretrain', config, place, '--config.modle.width=3'): '--config.modle.width',
        ('pretrain', config, place, '--config.model.width=x'): 'config.model.width',
        ('pretrain', config, place, '--config.train.num_steps=1.5'): 'num_steps',
        (
            'pretrain',
            place,
            '--config.model.width=8',
        ): 'width: add --config, whose field',
        ('bench',): '`bench many`, `bench masking`',
        ('sample', place, '--seed=soon'): 'seed',
    }
    for words, message in refused.items():
        error = error_of(capsys, *words)
        assert message in error, (words, error)
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    'stage, config, message',
    (
        (
            'sft',
            'chitchat',
            'configs/chitchat.py: the section `sft`, which this stage needs, is ',
        ),
        (
            'dpo',
            'chitchat',
            '`preference`, .*: use another config, e.g. configs/dpo.py',
        ),
        ('task', 'chitchat', '`task`'),
        ('select', 'chitchat', '`select`'),
        ('best_of', 'chitchat', '`best_of`'),
        ('overoptimize', 'chitchat', '`overoptimization`'),
        ('reward', 'sft', '`reward`'),
        ('ppo', 'grpo', '`ppo`'),
        ('grpo', 'ppo', '`grpo`'),
    ),
)
def test_a_config_of_another_stage(stage, config, message, capsys, tmp_path):
    words = (stage, f'--config=configs/{config}.py', f'--workdir={tmp_path}/run')
    error = error_of(capsys, *words)
    assert re.search(message, error)
    # The config that it names has the section.
    section, example = re.search(
        r'section `(\w+)`.* e.g. configs/(\w+)\.py', error
    ).groups()
    assert section in importlib.import_module(f'configs.{example}').get_config()
    assert not (tmp_path / 'run').exists()


def test_a_run_of_another_stage(capsys, tmp_path):
    run_dir.write_config(common.base(), tmp_path)
    error = error_of(capsys, 'sft', f'--workdir={tmp_path}')
    assert f'{tmp_path}/config.json: the section `sft`' in error


def test_steps_are_asked_for_or_follow_from_epochs(capsys, tmp_path):
    for stage, section in (('sft', 'sft'), ('dpo', 'preference')):
        words = (stage, f'--config=configs/{stage}.py', f'--workdir={tmp_path}/run')
        words = (*words, '--config.train.num_steps=9', '--config.start.run=/none')
        assert f'add --config.{section}.epochs=0' in error_of(capsys, *words)
        words = (*words, f'--config.{section}.epochs=0')
        assert 'start.run=/none: no run' in error_of(capsys, *words)


def test_every_flag_is_read_by_some_stage():
    reads = [stage.flags for stage in cli.STAGES.values() if stage.flags is not None]
    read = {name for names in (*reads, *cli.VARIANT_FLAGS.values()) for name in names}
    assert read == {flag.name for flag in command_line.own_flags()} | {'config'}


@pytest.mark.parametrize(
    'words, message',
    (
        (('pretrain', '--seed=3'), '--seed: `pretrain` ignores it: leave'),
        (('chat', '--step=3'), '--step: `chat` ignores it (it reads --weights'),
        (('chat', '--temperature=1'), '--temperature: `chat` ignores it'),
        (('report', '--json=a'), '--json: `report` ignores it (it reads --to'),
        (
            ('eval', '--weights=int8', '--tasks=reply'),
            '--tasks: `eval --weights and --cache` ignores it (it reads --json',
        ),
        (('eval', '--compare=a', 'b'), '--workdir: `eval --compare` ignores it'),
        (('bench', 'data', '--step=1'), '--step: `bench data` ignores it'),
        (('serve', '--top_k=0'), '--top_k: `serve` ignores it'),
    ),
)
def test_flags_that_a_stage_does_not_read_are_refused(words, message, capsys, tmp_path):
    assert message in error_of(capsys, *words, f'--workdir={tmp_path}/run')


@pytest.mark.parametrize(
    'words',
    (
        *(('eval',), ('sample',), ('report',), ('serve',), ('chat',), ('select',)),
        *(('best_of',), ('overoptimize',), ('data', '--step=1'), ('data', '--report')),
        *(('bench', 'data'), ('bench', 'train'), ('bench', 'decode')),
        ('pretrain', '--seeds=2'),
    ),
)
def test_what_one_host_does_is_refused_on_several(words, capsys):
    words = (*words, '--config=configs/tiny.py', '--workdir=r')
    error = error_of(capsys, *words, '--config.distributed.coordinator=a:1')
    assert "distributed.coordinator='a:1': `" in error
    assert 'runs on one host: leave this field out' in error
    error = error_of(capsys, *words, '--config.distributed.enabled=on')
    assert "distributed.enabled='on': `" in error


@pytest.mark.parametrize('word', ('--multihost', '--multihost=True', '--nomultihost'))
def test_the_flag_of_older_versions_names_what_replaced_it(word, capsys):
    error = error_of(capsys, 'pretrain', word, '--workdir=r')
    assert '--multihost: this flag is gone' in error
    assert '--config.distributed.coordinator=HOST:PORT' in error


@pytest.mark.parametrize(
    'stage', ('prepare', 'pretrain', 'sft', 'reward', 'dpo', 'ppo')
)
def test_what_trains_joins_the_other_hosts(stage, capsys, monkeypatch, tmp_path):
    joined = []

    def initialize(coordinator, num_processes, process_id, **options):
        joined.append((coordinator, num_processes, process_id))
        assert options['heartbeat_timeout_seconds'] > 1800
        raise RuntimeError('stop here')

    monkeypatch.setattr(jax.distributed, 'initialize', initialize)
    words = (stage, f'--workdir={tmp_path}', '--config=configs/tiny.py')
    assert 'stop here' not in error_of(
        capsys, stage, '--seed=3', '--workdir=r', '--config.distributed.enabled=off'
    )
    fields = dict(coordinator='here:9', num_processes=2, process_id=0)
    fields = [f'--config.distributed.{name}={fields[name]}' for name in fields]
    assert 'stop here' in error_of(capsys, *words, *fields)
    assert joined == [('here:9', 2, 0)]


def test_sample_hands_on_its_checkpoint(monkeypatch):
    from gptjax.eval import samples

    calls = []
    monkeypatch.setattr(samples, 'sample', lambda *args: calls.append(args))
    monkeypatch.setattr(model_stages, 'open_run', lambda words: (common.base(), None))
    assert runs.gptjax('sample', '--step=7', '--prompt=a', '--seed=3') == 0
    assert calls[0][2:] == (['a'], 3, 7, None, None)


def test_an_error_in_a_config_file_names_its_line(capsys, tmp_path):
    path = tmp_path / 'mine.py'
    place = f'--workdir={tmp_path}/run'
    for body, message in (
        ('    return common.bse()\n', "line 3: AttributeError: module 'configs"),
        ("    return dict()['width']\n", "line 3: KeyError: 'width'"),
        (
            '    c = common.base()\n    c.optim.update(lr=1)\n    return c\n',
            'line 4: lr: no such field (see gptjax/core/schema.py)',
        ),
        ("    return int('x')\n", 'line 3: ValueError: invalid literal'),
        ("    open('/nowhere/x')\n", 'line 3: FileNotFoundError: [Errno 2]'),
        ('    confg.seed = 3\n', "line 3: NameError: name 'confg' is not defined"),
        ('    return 1 // 0\n', 'line 3: ZeroDivisionError: integer division'),
        ('    return [][0]\n', 'line 3: IndexError: list index out of range'),
        ('    assert not common\n', 'line 3: AssertionError: assert not common'),
        ("    raise RuntimeError('no GPU')\n", 'line 3: RuntimeError: no GPU'),
        ('    raise SystemExit\n', 'line 3: SystemExit: raise SystemExit'),
        ("    import sys; sys.exit('no GPU')\n", 'line 3: SystemExit: no GPU'),
        ('    return get_config()\n', 'line 3: RecursionError: maximum'),
        ('    pass\n', 'get_config() returns nothing: return a ConfigDict'),
        ('    return dict(seed=1)\n', 'get_config() returns a dict: return a'),
    ):
        path.write_text(f'from configs import common\ndef get_config():\n{body}')
        words = ('pretrain', f'--config={path}', place, '--config.train.num_steps=3')
        error = error_of(capsys, *words)
        assert f'{path}: {message}' in error, error
        assert '--config.train' not in error


def test_a_config_file_is_completed_and_its_unknown_fields_are_refused(
    capsys, tmp_path
):
    path = tmp_path / 'mine.py'
    for change, message in (
        ('model = dict(num_layers=2, width=32)', 'model.num_heads=3 does not divide'),
        ('data.sources.chitchat.wieght = 2', 'data.sources.chitchat.wieght=2: there'),
        (
            "sample.prompts = ('a\\ud83d',)",
            "sample.prompts='a\\ud83d': half of a surrog",
        ),
    ):
        path.write_text(
            'from configs import common\ndef get_config():\n    c = common.base()\n'
            f'    c.{change}\n    return c\n'
        )
        for words in (('pretrain', f'--workdir={tmp_path}/run'), ('bench', 'train')):
            assert message in error_of(capsys, *words, f'--config={path}')


def test_what_is_no_config_file_is_one_line(capsys, tmp_path):
    run_dir.write_config(common.base(), tmp_path)
    other = tmp_path / 'other.py'
    other.write_text('from configs import common\nbase = common.base')
    binary = tmp_path / 'binary.py'
    binary.write_bytes(b'\0\1')
    for path, message in (
        (tmp_path / 'config.json', 'config.json: a config is a Python file'),
        (tmp_path, 'give its directory as --workdir and leave --config out'),
        (tmp_path / 'none.py', 'none.py: no such file'),
        ('', '--config=: no such file'),
        (other, "other.py: AttributeError: module 'config_file' has no attribute"),
        (binary, 'binary.py: '),
    ):
        words = ('data', f'--config={path}', f'--workdir={tmp_path}/run')
        assert message in error_of(capsys, *words)
        assert message in error_of(capsys, *words, '--config.seed=3')


def test_flags_change_fields_that_a_config_file_leaves_out(capsys, tmp_path):
    path, text = tmp_path / 'mine.py', tmp_path / 'text.jsonl'
    text.write_text(''.join(f'{{"text": "A text, number {n}."}}\n' for n in range(99)))
    path.write_text(
        'from ml_collections import ConfigDict\ndef get_config():\n'
        f"    own = dict(kind='jsonl', path={str(text)!r})\n"
        '    c = ConfigDict(dict(data=dict(sources=dict(own=own)), seed=3))\n'
        "    c.train = dict(num_steps=9, batch_size=c.get_ref('seed') * 2)\n"
        '    return c\n'
    )
    flags = ('data.sources.own.limit=50', 'optim.learning_rate=3e-4', 'seed=4')
    words = [f'--config.{flag}' for flag in flags]
    words = ['data', f'--config={path}', f'--workdir={tmp_path}/run', *words]
    assert runs.gptjax(*words) == 0
    config = run_dir.read_config(tmp_path / 'run')
    assert config.data.sources.own.limit == 50 and config.train.num_steps == 9
    assert config.optim.learning_rate == 3e-4 and config.train.batch_size == 8
    assert config.model.to_dict() == common.base().model.to_dict()


def test_no_text_is_read_that_the_config_file_does_not_name(capsys, tmp_path):
    path, place = tmp_path / 'mine.py', f'--workdir={tmp_path}/run'
    for section in ('', 'data=dict(context=64)', 'data=dict(sources={})'):
        path.write_text(
            'from ml_collections import ConfigDict\ndef get_config():\n'
            f'    return ConfigDict(dict({section}))\n'
        )
        error = error_of(capsys, 'pretrain', f'--config={path}', place)
        assert 'data.sources is empty: name at least one source, such as' in error
    assert not (tmp_path / 'run' / 'documents').exists()


def test_an_error_before_flags_are_parsed_is_raised(monkeypatch):
    def broken(*args):
        raise ZeroDivisionError

    monkeypatch.setattr(command_line, 'parse', broken)
    with runs.typed(['gptjax']), pytest.raises(ZeroDivisionError):
        flags.FLAGS.unparse_flags()
        cli.main(['gptjax', 'report'])


def test_a_place_for_json_is_tried_before_work_begins(capsys, tmp_path):
    (tmp_path / 'file').write_text('')
    for place in ('/proc/none/x.json', tmp_path / 'file' / 'x.json'):
        error = error_of(capsys, 'eval', '--workdir=r', f'--json={place}')
        assert f'--json={place}: cannot write there' in error


def test_two_commands_for_one_run(capsys, tmp_path):
    with run_dir.locked(tmp_path / 'run'):
        words = ('data', '--config=configs/tiny.py', f'--workdir={tmp_path}/run')
        assert 'another process is writing there' in error_of(capsys, *words)
    assert not (tmp_path / 'run').exists()


def stage_of(run):
    return cli.CommandStage('', command_line.RUN, run)


def test_exceptions_that_are_no_users_error_are_raised(monkeypatch):
    def broken(words):
        raise ZeroDivisionError

    monkeypatch.setitem(cli.STAGES, 'report', stage_of(broken))
    with pytest.raises(ZeroDivisionError):
        runs.gptjax('report')


def test_a_full_disk_is_one_line(monkeypatch, capsys):
    def full(words):
        try:
            raise OSError(28, 'No space left on device', 'r/metrics.jsonl')
        except OSError as error:
            raise RuntimeError('while saving') from error

    monkeypatch.setitem(cli.STAGES, 'report', stage_of(full))
    assert 'No space left on device' in error_of(capsys, 'report', '--workdir=r')


def test_ctrl_c_is_exit_code_130_without_a_traceback(monkeypatch, capsys):
    def interrupted(words):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.STAGES, 'report', stage_of(interrupted))
    assert runs.gptjax('report') == 130
    assert 'run the same command to continue' in capsys.readouterr().err


def test_sigterm_is_exit_code_75_and_its_handler_goes_again(monkeypatch):
    monkeypatch.setitem(
        cli.STAGES,
        'report',
        stage_of(lambda words: signal.raise_signal(signal.SIGTERM)),
    )
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit:
        runs.gptjax('report')
    assert exit.value.code == cli.INTERRUPTED == 75
    assert signal.getsignal(signal.SIGTERM) is before


def test_runs_from_another_thread(monkeypatch):
    monkeypatch.setitem(cli.STAGES, 'report', stage_of(lambda words: 7))
    codes = []
    thread = threading.Thread(target=lambda: codes.append(runs.gptjax('report')))
    thread.start()
    thread.join()
    assert codes == [7]


def test_user_errors_that_stages_raise_are_one_line(monkeypatch, capsys):
    def refuse(words):
        raise UserError('model.width=0: use a positive number')

    monkeypatch.setitem(cli.STAGES, 'report', stage_of(refuse))
    assert error_of(capsys, 'report') == 'error: model.width=0: use a positive number\n'


def test_every_flag_is_in_the_help(capsys):
    runs.gptjax('--help')
    printed = capsys.readouterr().out
    for flag in flags.FLAGS.flags_by_module_dict()['gptjax.command_line']:
        assert f'--{flag.name}' in printed


COLLECTING = """
import gc, signal, sys, time
from gptjax import cli

def send(phase, info):
    if phase == 'start' and not sent:
        sent.append(True)
        signal.raise_signal(signal.SIGINT)

def also_collecting(phase, info):
    time.sleep(0.02)  # past the moment at which the signal is sent again

def stage(words):
    gc.callbacks.extend([send, also_collecting])
    gc.collect()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        time.sleep(0.01)

sent = []
signal.signal(signal.SIGINT, signal.default_int_handler)
cli.STAGES['report'] = cli.CommandStage('', (), stage)
code = cli.main(['gptjax', 'report'])
assert sent and signal.getsignal(signal.SIGINT) is signal.default_int_handler
sys.exit(code)
"""


def test_a_signal_while_garbage_is_collected_is_not_lost():
    """Python only prints an error that a callback of the garbage collector raises."""
    words = [sys.executable, '-c', COLLECTING]
    assert subprocess.run(words, cwd=runs.ROOT).returncode == cli.CTRL_C
