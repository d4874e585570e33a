"""Folders of tiny random models, made by `transformers`."""

import pytest

from tests.tokenizer import made_tokenizers

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

SIZES = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)


def randomise(model) -> None:
    """Changes all weights, biases and norms too, so that each has an effect."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def write_folder(folder, kind='Llama', tokenizer=made_tokenizers.byte_level, **fields):
    """Writes a model with a tokenizer; returns the model."""
    vocab_size = made_tokenizers.write_folder(folder, tokenizer())
    torch.manual_seed(0)
    fields = SIZES | dict(vocab_size=vocab_size) | fields
    config = getattr(transformers, f'{kind}Config')(**fields)
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=fields.get('dtype', torch.float32)
    ).eval()
    randomise(model)
    model.save_pretrained(folder)
    return model
