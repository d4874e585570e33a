"""Adapters come from `peft` and go back, with the same logits."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gptjax.core import run_dir
from gptjax.models import gpt
from gptjax.train.load_model import inference_mesh, load_model
from tests import runs
from tests.convert import made_models

peft = pytest.importorskip('peft')
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

TOKENS_BT = np.random.default_rng(0).integers(0, 300, (2, 30))


def our_logits(run):
    config = run_dir.read_config(run)
    trained = load_model(config, run, inference_mesh(config))
    positions_BT = np.broadcast_to(np.arange(30), TOKENS_BT.shape)
    inputs = jnp.asarray(TOKENS_BT), jnp.ones_like(TOKENS_BT), positions_BT
    return np.asarray(gpt.bind(trained.settings, trained.params)(*inputs))


def their_logits(model):
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS_BT)).logits.numpy()


def assert_equal(ours, theirs):
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * scale, rtol=0)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """(folder of the base, its run, folder of an adapter, logits with the adapter)."""
    place = tmp_path_factory.mktemp('peft')
    base, run, adapter = (place / name for name in ('base', 'run', 'adapter'))
    model = made_models.write_folder(base, 'Qwen3')
    targets = ['q_proj', 'o_proj', 'gate_proj', 'down_proj']
    config = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=targets,
        use_rslora=True,
        task_type='CAUSAL_LM',
    )
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if 'lora_' in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    adapted.save_pretrained(adapter)
    assert runs.gptjax('import', '--from', base, '--workdir', run) == 0
    return base, run, adapter, their_logits(adapted)


def import_adapter(adapter, run, workdir):
    flags = '--from', adapter, '--base', run, '--workdir', workdir
    return runs.gptjax('import', *flags)


def test_an_adapter_comes_in_and_goes_back(made, tmp_path):
    base, run, adapter, logits = made
    adapted, out, merged = (tmp_path / name for name in ('run', 'out', 'merged'))
    assert import_adapter(adapter, run, adapted) == 0
    assert_equal(our_logits(adapted), logits)

    assert runs.gptjax('export', '--workdir', adapted, '--to', out, '--adapter') == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    assert_equal(their_logits(peft.PeftModel.from_pretrained(model, out)), logits)
    before, after = (load_file(f / 'adapter_model.safetensors') for f in (adapter, out))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor)

    assert runs.gptjax('export', '--workdir', adapted, '--to', merged) == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(merged)
    assert_equal(their_logits(model), logits)


def test_bad_adapters_are_refused(made, tmp_path, capsys):
    base, run, adapter, _ = made
    other, other_run = tmp_path / 'other', tmp_path / 'other_run'
    made_models.write_folder(other, 'Llama', hidden_size=48, head_dim=12)
    assert runs.gptjax('import', '--from', other, '--workdir', other_run) == 0

    def refused(folder, base_run, message):
        assert import_adapter(folder, base_run, tmp_path / 'run') == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / 'run').exists()

    refused(adapter, other_run, 'does not fit the model of --base')
    changed = tmp_path / 'changed'
    changed.mkdir()
    config = json.loads((adapter / 'adapter_config.json').read_text())
    tensors = load_file(adapter / 'adapter_model.safetensors')
    for fields, message in (
        (dict(use_dora=True), 'use_dora=True is not supported'),
        (dict(peft_type='IA3'), 'does not describe a LoRA adapter'),
        (dict(alora_invocation_tokens=[3]), 'alora_invocation_tokens=[3] is not supp'),
        (dict(base_model_name_or_path='hub/other'), 'change this name if they are the'),
        (dict(r=None), 'adapter_config.json: r=None is no number above 0'),
        (dict(lora_alpha='5'), "lora_alpha='5' is no number above 0"),
    ):
        (changed / 'adapter_config.json').write_text(json.dumps(config | fields))
        refused(changed, run, message)
    (changed / 'adapter_config.json').write_text(json.dumps(config))
    (changed / 'adapter_model.bin').write_bytes(b'')
    refused(changed, run, 'save it with save_pretrained, as safetensors')
    name = max(tensors)
    save_file(tensors | {'more': tensors[name]}, changed / 'adapter_model.safetensors')
    refused(changed, run, 'has an unknown tensor, more')
    del tensors[name]
    save_file(tensors, changed / 'adapter_model.safetensors')
    refused(changed, run, f'lacks {name}')
    assert runs.gptjax('import', '--from', adapter, '--workdir', tmp_path / 'run') == 2
    assert 'name the run of its base model' in capsys.readouterr().err
    flags = '--workdir', run, '--to', tmp_path / 'out', '--adapter'
    assert runs.gptjax('export', *flags) == 2
    assert 'is no LoRA run' in capsys.readouterr().err


@pytest.mark.parametrize(
    'kind, target', {'GPTNeoX': 'query_key_value', 'Phi3': 'gate_up_proj'}.items()
)
def test_an_adapter_of_joined_projections_is_refused(tmp_path, capsys, kind, target):
    base, run, adapter = (tmp_path / name for name in ('base', 'run', 'adapter'))
    model = made_models.write_folder(base, kind)
    config = peft.LoraConfig(r=3, target_modules=[target], task_type='CAUSAL_LM')
    peft.get_peft_model(model, config).save_pretrained(adapter)
    assert runs.gptjax('import', '--from', base, '--workdir', run) == 0
    assert import_adapter(adapter, run, tmp_path / 'adapted') == 2
    message = f'adapts {target}, which is not supported in this family: merge'
    assert message in capsys.readouterr().err
