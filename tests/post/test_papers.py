"""configs/papers: every variant is a config that its stage takes, with the paper's
numbers in it."""

import importlib
import json

import jax
import pytest

from configs import common, papers
from gptjax import command_line
from gptjax.cli import STAGES, VARIANT_FLAGS
from gptjax.core import artifact
from gptjax.core.config import check_fields
from gptjax.core.console import UserError
from gptjax.data import preference_pairs
from gptjax.optim.schedules import make_schedule
from gptjax.parallel.mesh import make_mesh
from gptjax.post import dpo, grpo, policy_gradient, ppo, reward
from gptjax.post.policy_gradient import check_policy, updates_per_rollout
from gptjax.train import init_from, sft
from tests import runs
from tests.post import starts

# The stage of each variant.
PAPERS = {
    'instructgpt': dict(sft='sft', init='sft', reward='reward', ppo='ppo'),
    'summarize': dict(sft='sft', reward='reward', ppo='ppo'),
    'dpo': dict(sft='sft', dpo='dpo', dpo_tldr='dpo'),
    'deepseekmath': dict(sft='sft', reward='reward', grpo='grpo'),
    'dr_grpo': dict(grpo='grpo'),
    'dapo': dict(grpo='grpo'),
    'gao': dict(overoptimize='overoptimize'),
}
VARIANTS = [
    (paper, variant + size, stage)
    for paper, variants in PAPERS.items()
    for variant, stage in variants.items()
    for size in ('', ',tiny')
]
POLICIES = [
    (paper, variant)
    for paper, variant, stage in VARIANTS
    if stage in ('ppo', 'grpo') and not variant.endswith('tiny')
]

# What the papers say; the docstrings in configs/papers say in which section.
PUBLISHED = """
instructgpt:sft sft.epochs 16
instructgpt:sft train.batch_size 32
instructgpt:sft optim.learning_rate 9.65e-6
instructgpt:sft optim.schedule cosine
instructgpt:sft optim.final_scale 0.1
instructgpt:sft optim.warmup_steps 0
instructgpt:sft optim.beta1 0.9
instructgpt:sft optim.beta2 0.95
instructgpt:init sft.epochs 2
instructgpt:init sft.pretraining_share 0.1
instructgpt:init train.batch_size 32
instructgpt:init optim.learning_rate 5e-6
instructgpt:init optim.schedule cosine
instructgpt:init optim.final_scale 0.1
instructgpt:reward optim.learning_rate 9e-6
instructgpt:reward optim.schedule cosine
instructgpt:reward optim.final_scale 0.1
instructgpt:reward train.batch_size 128
instructgpt:reward train.num_steps 518
instructgpt:reward reward.loss pairwise
instructgpt:reward reward.margin 0
instructgpt:reward reward.centring 0
instructgpt:ppo policy.prompts 512
instructgpt:ppo policy.replies 1
instructgpt:ppo policy.epochs 1
instructgpt:ppo policy.max_tokens 1024
instructgpt:ppo policy.temperature 1
instructgpt:ppo policy.kl_reward 0.02
instructgpt:ppo policy.kl_loss 0
instructgpt:ppo policy.kl_horizon 0
instructgpt:ppo train.batch_size 64
instructgpt:ppo train.num_steps 4000
instructgpt:ppo optim.schedule constant
instructgpt:ppo optim.warmup_steps 80
instructgpt:ppo optim.learning_rate 9e-6
instructgpt:ppo optim.ema 0.992
instructgpt:ppo ppo.critic network
instructgpt:ppo ppo.critic_run runs/instructgpt_reward
instructgpt:ppo ppo.gamma 1
instructgpt:ppo ppo.clip_low 0.2
instructgpt:ppo ppo.clip_high 0.2
instructgpt:ppo ppo.ptx 27.8
instructgpt:ppo ppo.ptx_rows 512
summarize:sft sft.epochs 1
summarize:sft train.batch_size 128
summarize:sft optim.learning_rate 6.35e-5
summarize:sft optim.schedule cosine
summarize:reward optim.learning_rate 1.5e-5
summarize:reward optim.schedule cosine
summarize:reward train.batch_size 128
summarize:reward train.num_steps 1013
summarize:reward reward.centring 0
summarize:ppo policy.prompts 512
summarize:ppo policy.epochs 4
summarize:ppo policy.max_tokens 48
summarize:ppo policy.kl_reward 0.05
summarize:ppo policy.kl_horizon 0
summarize:ppo train.batch_size 512
summarize:ppo train.num_steps 7812
summarize:ppo optim.learning_rate 1.5e-5
summarize:ppo optim.schedule linear
summarize:ppo ppo.critic network
summarize:ppo ppo.critic_run runs/summarize_reward
summarize:ppo ppo.gamma 1
summarize:ppo ppo.lam 0.95
dpo:sft train.batch_size 64
dpo:sft optim.learning_rate 5e-7
dpo:dpo preference.loss dpo
dpo:dpo preference.beta 0.1
dpo:dpo preference.label_smoothing 0
dpo:dpo preference.nll 0
dpo:dpo train.batch_size 64
dpo:dpo optim.learning_rate 1e-6
dpo:dpo optim.schedule constant
dpo:dpo optim.warmup_steps 150
dpo:dpo optim.beta1 0
dpo:dpo optim.beta2 0.99
dpo:dpo optim.clip_norm 10
dpo:dpo_tldr preference.beta 0.5
dpo:dpo_tldr optim.learning_rate 1e-6
deepseekmath:sft sft.epochs 0
deepseekmath:sft train.num_steps 500
deepseekmath:sft train.batch_size 256
deepseekmath:sft optim.learning_rate 5e-5
deepseekmath:sft optim.schedule constant
deepseekmath:reward optim.learning_rate 2e-5
deepseekmath:grpo policy.replies 64
deepseekmath:grpo policy.epochs 1
deepseekmath:grpo policy.max_tokens 1024
deepseekmath:grpo policy.kl_loss 0.04
deepseekmath:grpo policy.kl_reward 0
deepseekmath:grpo train.batch_size 1024
deepseekmath:grpo optim.learning_rate 1e-6
deepseekmath:grpo grpo.advantage grpo
deepseekmath:grpo grpo.normaliser sequence
dr_grpo:grpo policy.prompts 128
dr_grpo:grpo policy.replies 8
dr_grpo:grpo policy.epochs 1
dr_grpo:grpo policy.max_tokens 3000
dr_grpo:grpo policy.temperature 1
dr_grpo:grpo policy.kl_loss 0
dr_grpo:grpo policy.kl_reward 0
dr_grpo:grpo train.batch_size 128
dr_grpo:grpo optim.learning_rate 1e-6
dr_grpo:grpo optim.schedule constant
dr_grpo:grpo optim.beta1 0.9
dr_grpo:grpo optim.beta2 0.95
dr_grpo:grpo optim.weight_decay 0
dr_grpo:grpo optim.clip_norm 1
dr_grpo:grpo grpo.advantage dr_grpo
dr_grpo:grpo grpo.normaliser constant
dr_grpo:grpo grpo.clip_low 0.2
dr_grpo:grpo grpo.clip_high 0.2
dapo:grpo policy.prompts 512
dapo:grpo policy.replies 16
dapo:grpo policy.epochs 1
dapo:grpo policy.max_tokens 20480
dapo:grpo policy.overlong_buffer 4096
dapo:grpo policy.kl_loss 0
dapo:grpo policy.kl_reward 0
dapo:grpo train.batch_size 512
dapo:grpo optim.learning_rate 1e-6
dapo:grpo optim.schedule constant
dapo:grpo optim.warmup_steps 320
dapo:grpo optim.weight_decay 0.1
dapo:grpo grpo.advantage grpo
dapo:grpo grpo.normaliser token
dapo:grpo grpo.clip_low 0.2
dapo:grpo grpo.clip_high 0.28
dapo:grpo grpo.resampling 29
gao:overoptimize best_of.samples 60000
gao:overoptimize parts.select.select.problems 100000
gao:overoptimize parts.select.select.replies 2
gao:overoptimize parts.select.select.noise 0
gao:overoptimize parts.reward.train.batch_size 128
gao:overoptimize parts.reward.train.num_steps 1406
gao:overoptimize parts.ppo.policy.prompts 256
gao:overoptimize parts.ppo.policy.max_tokens 256
gao:overoptimize parts.ppo.policy.kl_reward 0
gao:overoptimize parts.ppo.policy.kl_loss 0
gao:overoptimize parts.ppo.train.batch_size 2
gao:overoptimize parts.ppo.ppo.clip_low 0.2
gao:overoptimize parts.ppo.ppo.clip_high 0.2
gao:overoptimize parts.ppo.ppo.lam 0.95
"""


def config_of(paper, variant):
    return importlib.import_module(f'configs.papers.{paper}').get_config(variant)


@pytest.mark.parametrize(
    ('name', 'field', 'value'),
    [line.split() for line in PUBLISHED.strip().split('\n')],
)
def test_numbers_are_the_papers(name, field, value):
    found = config_of(*name.split(':'))
    for word in field.split('.'):
        found = found[word]
    assert found == (value if isinstance(found, str) else float(value))


@pytest.mark.parametrize(('paper', 'updates'), [('instructgpt', 8), ('summarize', 4)])
def test_updates_of_a_rollout_by_ppo(paper, updates):
    config = config_of(paper, 'ppo')
    assert updates_per_rollout(config) == updates
    assert config.optim.warmup_steps in (0, 10 * updates)


@pytest.mark.parametrize(
    ('paper', 'updates'), [('deepseekmath', 1), ('dr_grpo', 8), ('dapo', 16)]
)
def test_updates_of_a_rollout_by_grpo(paper, updates):
    assert updates_per_rollout(config_of(paper, 'grpo')) == updates


@pytest.mark.parametrize(('paper', 'variant', 'stage'), VARIANTS)
def test_a_stage_takes_it(paper, variant, stage):
    config = config_of(paper, variant)
    check(config, stage)
    if stage == 'overoptimize':
        for part in ('select', 'reward', 'ppo'):
            check(config.parts[part], part)


def check(config, stage):
    """What the stage checks before there is data."""
    config = adopted(config)
    assert 'model' not in changed(config), 'start.run decides the model'
    check_fields(config)
    make_schedule(config.optim, config.train.num_steps)
    if stage in ('ppo', 'grpo'):
        check_policy(config)
    checks = dict(
        sft=sft.check_config,
        reward=reward.check_config,
        dpo=dpo.check_config,
        ppo=ppo.check_config,
        grpo=grpo.check_config,
    )
    if stage in checks:
        checks[stage](config)


def adopted(config):
    """With the context that a stage takes from the run that it starts from."""
    config.data.context = config.data.context or config.model.context
    return config


def changed(config):
    """Sections of `base()` that differ from it."""
    base = common.base()
    return [name for name in base if config[name] != base[name]]


@pytest.mark.parametrize(('paper', 'variant', 'stage'), VARIANTS)
def test_no_field_is_made_up(paper, variant, stage):
    config = config_of(paper, variant)
    for part in [config, *config.get('parts', {}).values()]:
        for name, section in part.items():
            if name in ('seed', 'parts'):
                continue
            known = common.base().get(name) or getattr(common, f'{name}_section')()
            assert set(section) == set(known), name


@pytest.mark.parametrize(('paper', 'variant', 'stage'), VARIANTS)
def test_the_command_line_takes_it(paper, variant, stage, tmp_path):
    path = f'configs/papers/{paper}.py:{variant}'
    argv = ['gptjax', stage, f'--config={path}', f'--workdir={tmp_path}/run']
    argv.append('--config.optim.learning_rate=0.5')
    with runs.typed(argv):
        assert command_line.parse(argv, STAGES, VARIANT_FLAGS) == (stage, [])
        config = config_of(paper, variant)
        config.optim.learning_rate = 0.5
        assert command_line.FLAGS.config.to_dict() == config.to_dict()


@pytest.mark.parametrize('variant', ['', 'nothing', 'small', 'grpo,', 'grpo,small'])
@pytest.mark.parametrize('paper', PAPERS)
def test_variants_that_are_not_there(paper, variant):
    with pytest.raises(UserError, match='no variant .*: use .*,tiny'):
        config_of(paper, variant)


@pytest.mark.parametrize(('paper', 'variant'), POLICIES)
def test_tiny_is_the_same_algorithm(paper, variant):
    config, tiny = (config_of(paper, variant + size) for size in ('', ',tiny'))
    for name in ('ppo', 'grpo'):
        if name in config:
            section, other = config[name].to_dict(), tiny[name].to_dict()
            assert {**section, 'ptx_run': ''} == {**other, 'ptx_run': ''}
    fitted = ('prompts', 'max_tokens', 'overlong_buffer', 'slots')
    for name, value in config.policy.items():
        assert name in fitted or tiny.policy[name] == value, name
    assert {**config.optim, 'learning_rate': 0} == {**tiny.optim, 'learning_rate': 0}
    assert updates_per_rollout(tiny) == updates_per_rollout(config)
    assert config.task.rewards == tiny.task.rewards
    assert tiny.policy.prompts * tiny.policy.replies <= papers.TINY_REPLIES


@pytest.mark.parametrize('paper', PAPERS)
def test_tiny_starts_from_sums_or_from_the_papers_own(paper):
    made = {f'runs/{paper}_{variant}' for variant in PAPERS[paper]}
    for variant in PAPERS[paper]:
        config, tiny = (config_of(paper, variant + size) for size in ('', ',tiny'))
        assert config.start.run in {papers.BASE, papers.SFT} | made
        assert tiny.start.run in {'runs/sums', 'runs/sums_sft'} | made


# ---- a rollout or two of them, on a file of sums


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('papers')
    starts.write_start(folder)
    return folder


def prepared(config, folder, workdir):
    """A tiny config, with the run and the text that are in a folder, and fewer rows."""
    config.start = common.start_section(str(folder / 'start'))
    config.checkpoint.every = config.train.eval_every = 1
    config.optim.warmup_steps = 0
    if 'task' in config:
        config.task.path = str(folder / 'problems.jsonl')
        config.task.rewards = dict(short=common.reward_part('shortness'))
        config.task.validation = 4
    return init_from.inherit_config(config, workdir)


def write_pairs(path):
    """A file in which the right sum is better than 0."""
    lines = [
        dict(
            prompt=[dict(role='user', content=problem['prompt'])],
            chosen=problem['answer'],
            rejected='0',
        )
        for problem in starts.PROBLEMS
        if problem['answer'] != '0'
    ]
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return path


@pytest.fixture
def one_device(monkeypatch):
    for module in (policy_gradient, dpo):
        one = lambda section: make_mesh(section, jax.devices()[:1])
        monkeypatch.setattr(module, 'make_mesh', one)


@pytest.mark.slow
def test_dapo_runs(folder, tmp_path, one_device):
    config = prepared(config_of('dapo', 'grpo,tiny'), folder, tmp_path / 'run')
    config.policy.update(prompts=4, slots=8)
    config.grpo.resampling = 1
    config.train.update(num_steps=16, batch_size=4)
    summary = grpo.grpo(config, tmp_path / 'run')
    assert summary['reason'] == 'finished' and summary['step'] == 16
    assert summary['skipped'] == 0


@pytest.mark.slow
def test_summarize_runs(folder, tmp_path, one_device):
    """Its reward model, then PPO with a critic that begins there."""
    reward_run = tmp_path / 'reward'
    words = (
        *('reward', '--config=configs/papers/summarize.py:reward,tiny'),
        *(f'--workdir={reward_run}', f'--config.start.run={folder / "start"}'),
        f'--config.reward.preferences={write_pairs(tmp_path / "comparisons.jsonl")}',
        *('--config.train.num_steps=2', '--config.train.batch_size=16'),
        '--config.eval.resamples=50',
    )
    assert runs.gptjax(*words) == 0
    config = prepared(config_of('summarize', 'ppo,tiny'), folder, tmp_path / 'run')
    config.task.rewards = papers.rewarded_by(str(reward_run))
    config.ppo.critic_run = str(reward_run)
    config.policy.update(prompts=8, slots=8)
    config.train.update(num_steps=8, batch_size=8)
    summary = ppo.ppo(config, tmp_path / 'run')
    assert summary['reason'] == 'finished' and summary['step'] == 8
    assert summary['skipped'] == 0


@pytest.mark.slow
def test_dpo_runs(folder, tmp_path, one_device):
    workdir = tmp_path / 'run'
    config = config_of('dpo', 'dpo,tiny')
    config.preference.path = str(write_pairs(tmp_path / 'pairs.jsonl'))
    config = prepared(config, folder, workdir)
    dpo.check_config(config)
    preference_pairs.build_pairs(config, workdir)
    assert (workdir / 'pairs' / artifact.MANIFEST).exists()
    summary = dpo.train_on_pairs(config, workdir)
    assert summary['reason'] == 'finished' and summary['step'] >= 2
    assert summary['validation']['loss'] < 0.6931  # ln 2, where it begins
