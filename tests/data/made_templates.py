"""Chat templates in the manner of known models, short, and tokenizers for them."""

from typing import NamedTuple

from gptjax.tokenizer.import_tokenizer import import_tokenizer
from tests.tokenizer import made_tokenizers


class Made(NamedTuple):
    """A template; what its tokenizer is like; what it takes."""

    template: str
    specials: tuple[str, ...]
    make: object = made_tokenizers.byte_level
    system: bool = True  # whether it takes a system message
    end: str | None = None  # the token that ends a reply
    stable: bool = True  # whether earlier replies stay as they were
    rstrip: bool = False  # whether special tokens swallow white space after them


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + "
    "'<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
IM = ('<|im_start|>', '<|im_end|>')
QWEN_25 = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'user' or m.role == 'assistant' and not m.tool_calls %}
        {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}
    {%- elif m.role == 'assistant' %}
        {{- '<|im_start|>' + m.role }}
        {%- for call in m.tool_calls %}
            {{- '\\n<tool_call>\\n' + call.function | tojson + '\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif m.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + m.content }}
        {{- '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
QWEN_3 = """{%- set ns = namespace(last=0) %}
{%- for m in messages %}
    {%- if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for m in messages %}
    {%- set content = m.content %}
    {%- if m.role == 'assistant' %}
        {%- set thought = '' %}
        {%- if '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1] %}
            {%- set thought = thought.strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last %}
            {{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    '{% else %}{% set rest = messages %}{% set system = false %}{% endif %}'
    '{% for m in rest %}'
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles have to alternate') }}{% endif %}"
    '{% if loop.first and system is not false %}'
    "{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + m['content'] %}"
    "{% else %}{% set content = m['content'] %}{% endif %}"
    "{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = """{{- bos_token }}
{%- for m in messages %}
    {{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}
    {{- m['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
GEMMA_2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('no system messages') }}{% endif %}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles have to alternate') }}{% endif %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}"
    '{% endfor %}{% if add_generation_prompt %}'
    "{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA_3 = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set first = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set first = '' -%}
    {%- set rest = messages -%}
{%- endif -%}
{%- for m in rest -%}
    {%- set role = 'model' if m['role'] == 'assistant' else m['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}
    {%- if m['content'] is string -%}
        {{ m['content'] | trim }}
    {%- else -%}
        {%- for part in m['content'] -%}{{ part['text'] | trim }}{%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""
PHI_3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + '\n' + m['content'] + "
    "'<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}"
    '{% else %}{{ eos_token }}{% endif %}'
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% elif m['role'] == 'assistant' %}"
    "{{ ' ' + m['content'] + eos_token }}{% else %}"
    "{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>"
    "{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' if loop.last else '\n\n' }}{% endfor %}"  # no rendering is a prefix
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TURNS = ('<start_of_turn>', '<end_of_turn>')
HEADERS = ('<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>')
PHI_TOKENS = ('<|system|>', '<|user|>', '<|assistant|>', '<|end|>')
SENTENCEPIECE, METASPACE = made_tokenizers.sentencepiece, made_tokenizers.metaspace
TEMPLATES = dict(
    smollm=Made(CHATML, IM, end='<|im_end|>'),
    qwen_25=Made(QWEN_25, IM, end='<|im_end|>'),
    qwen_3=Made(QWEN_3, IM, end='<|im_end|>', stable=False),
    llama_2=Made(LLAMA_2, (), SENTENCEPIECE, end='</s>'),
    llama_2_new=Made(LLAMA_2, (), METASPACE, end='</s>'),
    llama_3=Made(LLAMA_3, HEADERS, end='<|eot_id|>'),
    llama_3_old=Made(  # writes the beginning of a reply, asked for or not
        LLAMA_3.replace('if add_generation_prompt', 'if true'),
        HEADERS,
        end='<|eot_id|>',
    ),
    gemma_2=Made(GEMMA_2, TURNS, SENTENCEPIECE, system=False, end='<end_of_turn>'),
    gemma_3=Made(GEMMA_3, TURNS, end='<end_of_turn>'),
    phi_3=Made(
        PHI_3.replace('{% else %}{{ eos_token }}', ''), PHI_TOKENS, end='<|end|>'
    ),
    phi_3_strips=Made(
        PHI_3.replace('{% else %}{{ eos_token }}', ''),
        PHI_TOKENS,
        SENTENCEPIECE,
        end='<|end|>',
        rstrip=True,
    ),
    mistral=Made(MISTRAL, ('[INST]', '[/INST]'), METASPACE, system=False, end='</s>'),
    marked=Made(MARKED, IM, end='<|im_end|>'),
)


def make_tokenizer(folder, made: Made):
    """(our tokenizer, that of the library) of a template."""
    specials = ['<pad>', '<s>', '</s>', *made.specials]
    model = made.make(specials)
    if made.rstrip:
        from tokenizers import AddedToken

        model.add_special_tokens(
            [AddedToken(name, rstrip=True, normalized=False) for name in made.specials]
        )
    config = dict(chat_template=made.template, pad_token='<pad>')
    size = made_tokenizers.write_folder(folder / 'hf', model, **config)
    return import_tokenizer(folder / 'hf', folder / 'run', size), model
