"""The schema: all fields, their documentation and their checks."""

import copy
import importlib
import inspect
import math
import pkgutil

import pytest
from ml_collections import ConfigDict

import configs
from configs import common
from gptjax.core import config as core
from gptjax.core import fields, run_dir, schema
from gptjax.core.config import check_fields, complete
from gptjax.core.console import UserError
from gptjax.core.fields import Field
from gptjax.data import chat_template, ratings
from gptjax.data.sources import open_source
from gptjax.models import gpt
from gptjax.post import grpo, reward
from gptjax.post.objectives import preference_losses


def everything():
    """A config with every section."""
    config = common.base()
    for name in schema.SCHEMA.keys() - schema.BASE.keys() - {'dialogue'}:
        config[name] = getattr(common, f'{name}_section')()
    config.dialogue = common.dialogue_section(own=common.source('chat', 'a.jsonl'))
    return config


def all_fields(section=schema.SCHEMA, prefix=''):
    """(name, Field) of every field; an entry that the user names is called `own`."""
    for name, field in section.items():
        if isinstance(field, dict):
            yield from all_fields(field, f'{prefix}{name}.')
            continue
        yield prefix + name, field
        if isinstance(field.range, dict):
            entry = {'rewards': 'correct', 'data.sources': 'chitchat'}
            entry = entry.get(name, entry.get(prefix + name, 'own'))
            yield from all_fields(field.range, f'{prefix}{name}.{entry}.')


FIELDS = dict(all_fields())
NUMBERS = [n for n, f in FIELDS.items() if type(f.default) in (int, float)]


def given(config, name, value):
    """Sets a field to a value of any type; returns the config."""
    *sections, field = name.split('.')
    section = config
    for part in sections:
        section = section[part]
    with section.ignore_type():
        section[field] = value
    return config


# ---- the table


def test_every_field_has_a_doc_and_a_default_that_it_may_have():
    for name, field in FIELDS.items():
        assert field.doc and '\n' not in field.doc, name
        assert field.allows(field.default), name
        if field.before not in (fields.SAME, fields.NEEDED):
            assert field.allows(field.before), name


def test_a_field_takes_one_line(monkeypatch):
    new = Field(2, 'experts in a layer', fields.AT_LEAST_1, before=1)
    monkeypatch.setitem(schema.MODEL, 'experts', new)
    old = run_dir.to_json(common.base())
    assert common.base().model.experts == 2
    del old['model']['experts']
    assert complete(old)['model']['experts'] == 1
    assert core.decides_weights('model.experts')
    with pytest.raises(UserError, match='^model.experts=0: use a number of at least 1'):
        check_fields(given(common.base(), 'model.experts', 0))


def test_sections_take_new_names_only_where_these_are_the_users_own():
    config = everything()
    for change in ('model.experts', 'policy.top_k'):
        with pytest.raises((AttributeError, KeyError), match='locked'):
            given(config, change, 1)
    config.data.sources.own = common.source('text', 'a.txt')
    config.task.rewards.more = common.reward_part('length')
    config.task.options.more = 1


def test_sections_share_nothing():
    config = everything()
    config.data.sources.chitchat.limit = 7
    config.task.options.min_terms = 7
    assert everything().data.sources.chitchat.limit == 0
    assert everything().task.options.min_terms == 2


def test_choices_are_what_the_code_has():
    losses = {
        name
        for name, value in vars(preference_losses).items()
        if inspect.isfunction(value) and name[0] != '_'
    }
    for name, known in {
        'grpo.advantage': grpo.ADVANTAGES,
        'preference.loss': losses - {'nll', 'kto_baseline'},
        'reward.loss': reward.LOSSES,
        'reward.target': ('sum', *ratings.RATING_NAMES, *ratings.BEHAVIOUR),
        'chat.template': (*chat_template.TEMPLATES, ''),
        'data.sources.chitchat.kind': ('tfds', *open_source.SUFFIXES),
        'model.remat': ('none', *gpt.REMAT_POLICIES),
    }.items():
        assert {*FIELDS[name].range.choices} == {*known}


# ---- what is allowed


VARIANTS = {
    'gpt2': ('1558M',),
    'bench': ('llama',),
    'sums': ('sft',),
    'ppo': ('reward=runs/reward',),
    'reward': ('witty', 'replied', 'mine.jsonl'),
    'sft': ('chat=mine.jsonl',),
    'own': ('notes.txt',),
    'more': ('notes.txt',),
}


def variants():
    """(module, variant) of every file in configs/; test_papers.py has the papers."""
    for found in pkgutil.iter_modules(configs.__path__):
        module = importlib.import_module(f'configs.{found.name}')
        if hasattr(module, 'get_config'):
            if found.name not in ('own', 'more'):
                yield pytest.param(module, None, id=found.name)
            for variant in (
                *VARIANTS.get(found.name, ()),
                *getattr(module, 'VARIANTS', ()),
            ):
                yield pytest.param(module, variant, id=f'{found.name}:{variant}')


@pytest.mark.parametrize('module, variant', [*variants()])
def test_what_experiments_use_is_allowed(module, variant):
    config = module.get_config(*([] if variant is None else [variant]))
    check_fields(config)
    assert core.complete_new(config).to_dict() == config.to_dict()


def test_what_counts_as_a_value():
    config = everything()
    config.model.windows = [4, 0]
    config.data.clean = ()
    given(config, 'train.z_loss', 1)
    given(config, 'train.num_steps', 3.0)
    config.mine = ConfigDict(dict(anything=-1))
    with config.train.unlocked():
        config.train.mine = 'a field of a version to come'
    check_fields(config)


# ---- what is refused


@pytest.mark.parametrize('value', (math.inf, -math.inf, math.nan, '3', None))
def test_no_number_is_anything_else(value):
    for name in NUMBERS:
        with pytest.raises(UserError) as caught:
            check_fields(given(everything(), name, value))
        assert str(caught.value).startswith(f'{name}={value!r}: use ')


def test_no_other_field_is_a_number():
    for name in FIELDS.keys() - NUMBERS:
        with pytest.raises(UserError, match=f'^{name}=3: use '):
            check_fields(given(everything(), name, 3))


@pytest.mark.parametrize(
    'name, refused, allowed',
    (
        ('model.num_kv_heads', -1, 0),
        ('model.num_layers', 0, 1),
        ('model.residual_dropout', 1.0, 0.99),
        ('model.rotary_base', 0.0, 1.0),
        ('model.windows', (), (0,)),
        ('model.windows', (4, -1), (4, 0)),
        ('model.position', 'sine', 'learned'),
        ('model.norm', 'batch', 'layernorm'),
        ('model.mlp', 'relu', 'gelu'),
        ('model.dtype', 'int8', 'bfloat16'),
        ('model.remat', 'some', 'full'),
        ('train.num_steps', 2.5, 2),
        ('train.batch_size', 0, 1),
        ('train.profile_step', -2, -1),
        ('data.validation_fraction', 1.0, 0.99),
        ('data.workers', -1, 0),
        ('data.clean', 'drop_short', ('drop_short',)),
        ('data.clean', (3,), ()),
        ('data.sources.chitchat.kind', 'csv', 'parquet'),
        ('data.sources.chitchat.weight', -0.5, 0.0),
        ('dialogue.sources.own.limit', -1, 0),
        ('tokenizer.kind', 'word', 'unigram'),
        ('tokenizer.train_characters', 0, 1),
        ('mesh.data', -2, -1),
        ('mesh.data', 0, 1),
        ('optim.name', 3, 'lion'),
        ('optim.schedule', 'step', 'cosine'),
        ('optim.beta1', 1.0, 0.0),
        ('optim.final_scale', 1.5, 1.0),
        ('optim.learning_rate', -1e-3, 0.0),
        ('eval.choices', 1, 2),
        ('eval.top_p', 0.0, 1.0),
        ('chat.template', 'prose', 'turns'),
        ('sample.max_tokens', 0, 1),
        ('sft.epochs', -1.0, 0.0),
        ('sft.pretraining_share', 1.0, 0.5),
        ('lora.alpha', 0.0, 1.0),
        ('lora.rank', -1, 8),
        ('reward.target', 'funny', 'witty'),
        ('reward.test_fraction', 0.0, 0.5),
        ('reward.loss', 'hinge', 'binary'),
        ('reward.group', 1, 2),
        ('preference.loss', 'ppo', 'kto'),
        ('preference.beta', 0.0, 0.1),
        ('preference.label_smoothing', 0.5, 0.4),
        ('preference.validation_fraction', 1.0, 0.5),
        ('task.held_out_fraction', 0.5, 0.4),
        ('task.rewards.correct.weight', math.inf, -2.0),
        ('policy.temperature', 0.0, 0.5),
        ('policy.prompts', 0, 1),
        ('policy.kl_target', 0.0, 1.0),
        ('ppo.critic', 'twin', 'network'),
        ('ppo.lam', 1.5, 1.0),
        ('ppo.clip_low', 0.0, 0.1),
        ('ppo.ptx_rows', 0, 1),
        ('grpo.advantage', 'gae', 'rloo'),
        ('grpo.objective', 'ppo', 'gspo'),
        ('grpo.normaliser', 'none', 'token'),
        ('grpo.resampling', -1, 0),
        ('select.by', 'luck', 'reward'),
        ('select.noise', 0.6, 0.5),
        ('best_of.samples', 1, 2),
        ('overoptimization.replies', 0, 1),
        ('seed', 2**32, 2**32 - 1),
    ),
)
def test_the_ends_of_ranges(name, refused, allowed):
    check_fields(given(everything(), name, allowed))
    with pytest.raises(UserError) as caught:
        check_fields(given(everything(), name, refused))
    assert str(caught.value).startswith(f'{name}={refused!r}: use ')


def test_a_truth_is_no_number_and_a_number_no_truth():
    assert not FIELDS['train.num_steps'].allows(True)
    assert not FIELDS['model.bias'].allows(1)


def test_configs_within_a_config_are_checked_and_completed():
    config = everything()
    config.parts = ConfigDict(dict(ppo=everything()))
    check_fields(config)
    old = config.to_dict()
    del old['parts']['ppo']['ppo']['critic_run']
    old['parts']['ppo']['policy']['top_p'] = 1.0
    assert complete(old) == config.to_dict()
    with pytest.raises(UserError, match=r'^parts\.ppo\.policy\.prompts=0: use'):
        check_fields(given(config, 'parts.ppo.policy.prompts', 0))


def test_messages_name_the_field_its_value_and_the_choices():
    for name, value, told in (
        ('model.width', 0, 'model.width=0: use a number of at least 1'),
        (
            'tokenizer.kind',
            'word',
            "tokenizer.kind='word': use one of bpe, unigram",
        ),
        (
            'train.num_steps',
            2.5,
            'train.num_steps=2.5: use a whole number: a number of at least 1',
        ),
        (
            'dialogue.sources',
            'a',
            "dialogue.sources='a': use names with a section each",
        ),
    ):
        with pytest.raises(UserError) as caught:
            check_fields(given(everything(), name, value))
        assert str(caught.value) == told


def test_a_model_with_a_part_that_is_not_known_is_refused():
    config = everything()
    with config.model.unlocked():
        config.model.experts = 4
    with pytest.raises(UserError, match='model.experts=4: this version has no such'):
        complete(config.to_dict())


# ---- new configs


def test_a_new_config_is_completed_with_defaults():
    config = everything()
    config.model = ConfigDict(dict(num_layers=2))
    config.data.sources.own = ConfigDict(dict(kind='text', path='a.txt'))
    config.mine = ConfigDict(dict(anything=1))
    whole = everything()
    whole.model.num_layers = 2
    whole.data.sources.own = common.source('text', 'a.txt')
    whole.mine = config.mine
    assert core.complete_new(config).to_dict() == whole.to_dict()


def test_only_a_config_that_names_the_default_corpus_reads_it():
    new = core.complete_new(ConfigDict(dict(data=dict(context=64))))
    assert new.data.sources.to_dict() == {} and new.data.context == 64
    assert core.complete_new(ConfigDict()).data.sources.to_dict() == {}
    assert 'chitchat' in complete({})['data']['sources']  # an older run


def test_whole_numbers_of_a_new_config_are_whole():
    new = core.complete_new(ConfigDict(dict(model=dict(num_layers=2.0))))
    assert type(new.model.num_layers) is int


@pytest.mark.parametrize(
    'name, message',
    (
        (
            'data.sources.chitchat.wieght',
            r'use data\.sources\.chitchat\.weight, or see',
        ),
        ('task.rewards.correct.wieght', r'use task\.rewards\.correct\.weight, or see'),
        ('dialogue.source', r'use dialogue\.sources, or see'),
        ('optim.lerning_rate', r'use optim\.learning_rate, or see'),
        ('parts.ppo.ppo.gama', r'use parts\.ppo\.ppo\.gamma, or see'),
        ('sede', 'use seed, or see'),
        ('train.q', 'see gptjax/core/schema.py, which lists all fields'),
    ),
)
def test_an_unknown_field_of_a_new_config_is_refused(name, message):
    parts = dict(ppo=everything().to_dict())
    config = ConfigDict(dict(everything().to_dict(), parts=parts))  # not locked
    given(config, name, 2)
    with pytest.raises(
        UserError, match=rf'^{name}=2: there is no such field: {message}'
    ):
        core.complete_new(config)


def test_a_section_of_a_new_config_has_fields():
    for name in ('model', 'data.sources.chitchat', 'dialogue.sources'):
        with pytest.raises(UserError, match=f'^{name}=3: use '):
            core.complete_new(given(everything(), name, 3))


@pytest.mark.parametrize('name', ('org/name', '', '/tmp'))
def test_a_source_has_the_name_of_a_folder(name):
    for section in ('data', 'dialogue'):
        config = everything()
        config[section].sources[name] = common.source('text', 'a.txt')
        with pytest.raises(UserError, match=f"^{section}.sources: '{name}' cannot be"):
            check_fields(core.complete_new(config))


@pytest.mark.parametrize('value', (len, {3}, b'a', {3: 'a'}))
def test_what_no_file_can_hold_is_refused(value):
    for name in ('mine.a', 'task.options.more'):
        config = everything()
        config.mine = ConfigDict()
        with pytest.raises(UserError, match=f'^{name}.*: RUN/config.json cannot hold'):
            check_fields(core.complete_new(given(config, name, value)))


@pytest.mark.parametrize('value', (None, 3, (3,), {3}, {'a': {'b': 1}}, [None], len))
def test_any_value_of_any_field_is_allowed_or_one_line(value):
    for name in (*FIELDS, *schema.SCHEMA, 'mine', 'parts', 'data.sources.own'):
        config = given(everything(), name, value)
        try:
            core.add_missing_fields(config)
            config = core.complete_new(config)
            check_fields(config)
            assert complete(run_dir.to_json(config))
        except UserError as error:
            assert '\n' not in str(error)


# ---- runs of other versions


def test_an_old_config_is_completed():
    whole = everything().to_dict()
    assert complete(whole) == whole
    old = copy.deepcopy(whole)
    for section, field in (
        ('model', 'attention_softcap'),
        ('eval', 'resamples'),
        ('ppo', 'critic_run'),
        ('reward', 'epochs'),
        ('best_of', 'judge'),
    ):
        del old[section][field]
    del old['data']['sources']['chitchat']['licence']
    del old['chat'], old['seed']
    untouched = copy.deepcopy(old)
    assert complete(old) == whole
    assert old == untouched
    # The identity of a checkpoint contains a hash of the rewards, so these entries are
    # not completed.
    del old['task']['rewards']['correct']['run']
    completed = complete(old)
    assert completed['task']['rewards'] == old['task']['rewards'] != {}


def test_sections_that_mean_something_by_being_there_stay_absent():
    assert complete(common.base().to_dict()) == common.base().to_dict()
    assert complete({}) == common.base().to_dict()


def test_what_no_run_is_without_is_not_made_up():
    old = common.base().to_dict()
    del old['model']['width']
    with pytest.raises(UserError, match='^model.width is missing: give it a value'):
        complete(old)


@pytest.mark.parametrize('name', core.GONE)
def test_fields_that_are_gone_are_read(name):
    section, field = name.split('.')
    whole = everything().to_dict()
    old = copy.deepcopy(whole)
    old[section][field] = core.GONE[name]
    assert complete(old) == whole
    old[section][field] = 0.3
    with pytest.raises(UserError, match=f'^{name}=0.3: this field is gone, as if'):
        complete(old)


def test_what_decides_the_weights():
    for name in (
        *('seed', 'data.typo_rate', 'model.width', 'train.num_steps', 'sft'),
        'task.options.more',
    ):
        assert core.decides_weights(name)
    for name in (
        'mesh',
        'data.clean',
        'eval.seed',
        'train.eval_batches',
        'policy.slots',
        'optim.gone',
    ):
        assert not core.decides_weights(name)
