"""configs/papers: every variant has the paper's numbers, and its stage accepts it."""

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

# What the papers and the authors' scripts say. The docstrings in configs/papers say in
# which section.
PUBLISHED = """
instructgpt:sft
  sft: epochs 16
  train: batch_size 32
  optim: learning_rate 9.65e-6, schedule cosine, final_scale 0.1, warmup_steps 0
  optim: beta1 0.9, beta2 0.95
instructgpt:init
  sft: epochs 2, pretraining_share 0.1
  train: batch_size 32
  optim: learning_rate 5e-6, schedule cosine, final_scale 0.1
instructgpt:reward
  optim: learning_rate 9e-6, schedule cosine, final_scale 0.1
  train: batch_size 128, num_steps 518
  reward: loss pairwise, margin 0, centring 0
instructgpt:ppo
  policy: prompts 512, replies 1, epochs 1, max_tokens 1024, temperature 1
  policy: kl_reward 0.02, kl_estimator k1, kl_loss 0, kl_horizon 0
  train: batch_size 64, num_steps 4000
  optim: schedule constant, warmup_steps 80, learning_rate 9e-6, ema 0.992
  ppo: critic network, critic_run runs/instructgpt_reward, gamma 1, clip_low 0.2
  ppo: clip_high 0.2, ptx 27.8, ptx_rows 512
summarize:sft
  sft: epochs 1
  train: batch_size 128
  optim: learning_rate 6.35e-5, schedule cosine
summarize:reward
  optim: learning_rate 1.5e-5, schedule cosine
  train: batch_size 128, num_steps 1013
  reward: centring 0
summarize:ppo
  policy: prompts 512, epochs 4, max_tokens 48, kl_reward 0.05, kl_horizon 0
  policy: kl_estimator k1
  train: batch_size 512, num_steps 7812
  optim: learning_rate 1.5e-5, schedule linear
  ppo: critic network, critic_run runs/summarize_reward, gamma 1, lam 0.95
dpo:sft
  train: batch_size 64
  optim: learning_rate 5e-7
dpo:dpo
  preference: loss dpo, beta 0.1, label_smoothing 0, nll 0
  train: batch_size 64
  optim: learning_rate 1e-6, schedule constant, warmup_steps 150, beta1 0, beta2 0.99
  optim: clip_norm 10
dpo:dpo_tldr
  preference: beta 0.5
  optim: learning_rate 1e-6
deepseekmath:sft
  sft: epochs 0
  train: num_steps 500, batch_size 256
  optim: learning_rate 5e-5, schedule constant
deepseekmath:reward
  optim: learning_rate 2e-5
deepseekmath:grpo
  policy: replies 64, epochs 1, max_tokens 1024, kl_loss 0.04, kl_reward 0
  policy: kl_estimator k3
  train: batch_size 1024
  optim: learning_rate 1e-6
  grpo: advantage grpo, normaliser sequence
dr_grpo:grpo
  policy: prompts 128, replies 8, epochs 1, max_tokens 3000, temperature 1, kl_loss 0
  policy: kl_reward 0
  train: batch_size 128
  optim: learning_rate 1e-6, schedule constant, beta1 0.9, beta2 0.95, weight_decay 0
  optim: clip_norm 1
  grpo: advantage dr_grpo, normaliser constant, clip_low 0.2, clip_high 0.2
dapo:grpo
  policy: prompts 512, replies 16, epochs 1, max_tokens 20480, overlong_buffer 4096
  policy: kl_loss 0, kl_reward 0
  train: batch_size 512, num_steps 4992
  optim: learning_rate 1e-6, schedule constant, warmup_steps 320, weight_decay 0.1
  optim: beta1 0.9, beta2 0.999, clip_norm 1
  grpo: advantage grpo, normaliser token, clip_low 0.2, clip_high 0.28, resampling 29
gao:overoptimize
  best_of: samples 60000
  parts.select.select: problems 100000, replies 2, noise 0
  parts.reward.train: batch_size 128, num_steps 1406
  parts.ppo.policy: prompts 256, max_tokens 256, kl_reward 0, kl_loss 0
  parts.ppo.train: batch_size 2
  parts.ppo.ppo: clip_low 0.2, clip_high 0.2, lam 0.95
"""


def read_published():
    """Yields (variant, field, value), as ('dpo:sft', 'train.batch_size', '64')."""
    name = ''
    for line in PUBLISHED.strip().split('\n'):
        section, colon, fields = line.strip().partition(': ')
        name = name if colon else section
        for field in filter(None, fields.split(', ')):
            key, value = field.split()
            yield name, f'{section}.{key}', value


def config_of(paper, variant):
    return importlib.import_module(f'configs.papers.{paper}').get_config(variant)


@pytest.mark.parametrize(
    ('name', 'field', 'value'),
    read_published(),
)
def test_numbers_are_the_papers(name, field, value):
    found = config_of(*name.split(':'))
    for word in field.split('.'):
        found = found[word]
    assert found == (value if isinstance(found, str) else float(value))


@pytest.mark.parametrize(
    ('paper', 'variant', 'updates'),
    [
        *(('instructgpt', 'ppo', 8), ('summarize', 'ppo', 4)),
        *(('deepseekmath', 'grpo', 1), ('dr_grpo', 'grpo', 8), ('dapo', 'grpo', 16)),
    ],
)
def test_updates_of_a_rollout(paper, variant, updates):
    config = config_of(paper, variant)
    assert updates_per_rollout(config) == updates
    if variant == 'ppo':
        assert config.optim.warmup_steps in (0, 10 * updates)


@pytest.mark.parametrize(('paper', 'variant', 'stage'), VARIANTS)
def test_its_stage_accepts_it(paper, variant, stage):
    config = config_of(paper, variant)
    check(config, stage)
    if stage == 'overoptimize':
        for part, part_config in config.parts.items():
            check(part_config, part)


def check(config, stage):
    """The stage's checks, with the context that it takes from `start.run`."""
    config.data.context = config.data.context or config.model.context
    assert config.model == common.base().model, 'start.run decides the model'
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
    for name, section in config.items():
        if name not in ('seed', 'parts'):
            known = common.base().get(name) or getattr(common, f'{name}_section')()
            assert set(section) == set(known), name


@pytest.mark.parametrize(('paper', 'variant', 'stage'), VARIANTS)
def test_the_command_line_accepts_it(paper, variant, stage, tmp_path):
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


# ---- short runs on a file of sums


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('papers')
    starts.write_start(folder)
    return folder


def prepared(config, folder, workdir):
    """A tiny config with the start run and the problems of a folder."""
    config.start = common.start_section(str(folder / 'start'))
    config.checkpoint.every = config.train.eval_every = 1
    config.optim.warmup_steps = 0
    if 'task' in config:
        config.task.path = str(folder / 'problems.jsonl')
        config.task.rewards = dict(short=common.reward_part('shortness'))
        config.task.validation = 4
    return init_from.inherit_config(config, workdir)


def write_pairs(path):
    """Writes preference pairs: the right sum is preferred to 0."""
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
    """Trains the reward model, then PPO with a critic initialised from it."""
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
    assert summary['validation']['loss'] < 0.6931  # ln 2, before training
