"""Start runs with random weights, and configs of stages that start from them."""

import json
import shutil

import jax

from configs import common
from gptjax.core import run_dir, storage
from gptjax.models import gpt, heads, settings
from gptjax.optim.optimizer import make_optimizer
from gptjax.post import reward_model
from gptjax.tokenizer.tokenizer import Tokenizer
from gptjax.tokenizer.train_tokenizer import train_model
from gptjax.train.checkpoint import Checkpoints
from gptjax.train.state import abstract_state, create_state
from tests import helpers

PROBLEMS = [
    dict(prompt=f'{left} + {right} =', answer=str(left + right))
    for left in range(10)
    for right in range(10)
]


def config(tmp_path, section: str, **policy):
    """A stage's config on a file of sums; `section` is 'ppo' or 'grpo'."""
    config = common.base()
    config.data.context = 32
    config.chat.template = 'turns'
    config.model.update(num_layers=2, width=32, num_heads=4, context=32, mlp_width=64)
    config.tokenizer.vocab_size = 278
    config.start = common.start_section(str(tmp_path / 'start'))
    config.task = common.task_section()
    config.task.path = str(tmp_path / 'problems.jsonl')
    config.task.rewards = dict(short=common.reward_part('shortness'))
    config.task.validation = 4
    config.policy = common.policy_section()
    config.policy.update(prompts=4, replies=4, max_tokens=6, slots=8)
    config.policy.update(policy)
    config[section] = getattr(common, f'{section}_section')()
    config.optim.update(
        name='adamw', learning_rate=1e-3, schedule='constant', warmup_steps=0
    )
    config.train.update(num_steps=4, batch_size=16, eval_every=2)
    config.checkpoint.every = 2
    config.mesh.data = 1
    return config


def bare_config(section='grpo'):
    """A config with the sections that the checks of 'ppo' or 'grpo' need."""
    config = common.base()
    config.policy = common.policy_section()
    config[section] = getattr(common, f'{section}_section')()
    config.train.update(num_steps=10, batch_size=256)
    return config


def write_start(tmp_path):
    """RUN/start with a tokenizer and random weights, and the file of sums."""
    lines = '\n'.join(map(json.dumps, PROBLEMS))
    storage.write_text(tmp_path / 'problems.jsonl', lines + '\n')
    made = config(tmp_path, 'grpo')
    del made.start, made.task, made.policy, made.grpo
    run = tmp_path / 'start'
    text = ' '.join(problem['prompt'] for problem in PROBLEMS)
    content = train_model([text], 'bpe', made.tokenizer.vocab_size)
    storage.write_bytes(run / 'tokenizer' / 'tokenizer.model', content)
    tokenizer = Tokenizer(content)
    model = settings.resolve(made.model, tokenizer.vocab_size)
    shapes, axes = gpt.abstract_params(model), gpt.param_axes(model)
    identity = dict(tokenizer=tokenizer.fingerprint)
    _write_run(
        run, made, shapes, axes, identity, lambda key: gpt.init_params(model, key)
    )
    return run


def write_reward(tmp_path):
    """RUN/reward, a reward model with random weights that starts from RUN/start."""
    run, made = tmp_path / 'reward', config(tmp_path, 'grpo')
    del made.task, made.policy, made.grpo
    made.reward = common.reward_section()
    shutil.copytree(tmp_path / 'start' / 'tokenizer', run / 'tokenizer')
    tokenizer = Tokenizer.load(run / 'tokenizer' / 'tokenizer.model')
    model = settings.resolve(made.model, tokenizer.vocab_size)

    def init(key):
        head = heads.init_reward_head(model, key)
        return {**gpt.init_params(model, key), **head}

    identity = reward_model.reward_identity(made, tokenizer)
    _write_run(run, made, *reward_model.reward_shapes(model), identity, init)
    storage.write_json(run / reward_model.RESULTS, dict(center=0.1))
    return run


def _write_run(run, made, shapes, axes, identity, init):
    """Writes the config and a checkpoint with the parameters of `init(key)`."""
    mesh = helpers.mesh_of()
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(made, shapes)
        abstract = abstract_state(shapes, optimizer, axes, mesh)
        state = create_state(init, optimizer, abstract, jax.random.key(0))
        checkpoints = Checkpoints(run / 'checkpoints', identity)
        checkpoints.save(0, state, dict(reason='finished'), 1.0)
        checkpoints.close()
    run_dir.write_config(made, run)
