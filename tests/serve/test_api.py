"""Every endpoint, called by the official client against a server process."""

import json

import openai
import pytest

from tests import servers
from tests.servers import CONTEXT, post

MESSAGES = [dict(role='user', content='Hello, fox!')]
NO_END = {'2': -1000}  # EOS


@pytest.fixture(scope='module')
def client(server):
    with openai.OpenAI(
        base_url=f'{server.address}/v1', api_key='none', max_retries=0, timeout=60
    ) as client:
        yield client


@pytest.fixture(scope='module', autouse=True)
def nothing_compiles(server):
    """These requests compile nothing: the server compiled everything at its start."""
    before = server.metric('gptjax_compilations_total')
    yield
    assert server.metric('gptjax_compilations_total') == before


@pytest.fixture
def chat(client):
    def ask(**fields):
        defaults = dict(model='tiny', messages=MESSAGES, max_tokens=12, seed=1)
        return client.chat.completions.create(**{**defaults, **fields})

    return ask


@pytest.fixture
def complete(client):
    def ask(**fields):
        defaults = dict(model='tiny', prompt='The red', max_tokens=12, seed=1)
        return client.completions.create(**{**defaults, **fields})

    return ask


def choices_of(chunks, index=0):
    """The chunks of one choice of a stream."""
    return [c for chunk in chunks for c in chunk.choices if c.index == index]


def joined(chunks, index=0):
    """The text of one choice of a chat stream."""
    return ''.join(c.delta.content or '' for c in choices_of(chunks, index))


# ---- chat ---------------------------------------------------------------------


def test_chat(chat):
    reply = chat()
    assert reply.id.startswith('chatcmpl-') and reply.object == 'chat.completion'
    assert reply.model == 'tiny' and len(reply.system_fingerprint) == 64
    [choice] = reply.choices
    assert choice.message.role == 'assistant'
    assert choice.finish_reason in ('stop', 'length')
    assert 0 < reply.usage.completion_tokens <= 12
    usage = reply.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_seed_makes_a_reply_again_and_n_are_seeds_in_a_row(chat):
    one, two = chat(seed=5), chat(seed=6)
    both = chat(seed=5, n=2)
    texts = [choice.message.content for choice in both.choices]
    assert texts == [r.choices[0].message.content for r in (one, two)]
    assert texts[0] != texts[1]
    assert both.usage.prompt_tokens == one.usage.prompt_tokens
    assert both.usage.completion_tokens == (
        one.usage.completion_tokens + two.usage.completion_tokens
    )


def test_without_a_seed_replies_differ(chat):
    texts = {
        chat(seed=openai.NOT_GIVEN, max_tokens=24).choices[0].message.content
        for _ in range(3)
    }
    assert len(texts) > 1


def test_a_stream_says_what_the_whole_answer_says(chat):
    whole = chat(n=2, logprobs=True, top_logprobs=3)
    stream = dict(stream=True, stream_options=dict(include_usage=True))
    chunks = list(chat(n=2, logprobs=True, top_logprobs=3, **stream))
    for index, choice in enumerate(whole.choices):
        deltas = choices_of(chunks, index)
        assert deltas[0].delta.role == 'assistant'
        assert joined(chunks, index) == choice.message.content
        assert [c.finish_reason for c in deltas[:-1]] == [None] * (len(deltas) - 1)
        assert deltas[-1].finish_reason == choice.finish_reason
        entries = [e for c in deltas if c.logprobs for e in c.logprobs.content]
        assert entries == choice.logprobs.content
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert {chunk.system_fingerprint for chunk in chunks} == {whole.system_fingerprint}


def test_chat_logprobs(chat):
    reply = chat(logprobs=True, top_logprobs=4, temperature=0)
    content = reply.choices[0].logprobs.content
    assert content
    for entry in content:
        assert len(entry.top_logprobs) == 4
        assert entry.top_logprobs[0].logprob == entry.logprob  # the most probable token
        assert entry.token == entry.top_logprobs[0].token
        if entry.bytes and not entry.token.startswith('bytes:'):
            assert bytes(entry.bytes).decode() == entry.token


def test_content_may_be_parts_and_developer_is_system(chat):
    parts = [dict(type='text', text='Hello, '), dict(type='text', text='fox!')]
    same = [dict(role='user', content=parts)]
    texts = {}
    for role in ('system', 'developer'):
        first = dict(role=role, content='Be kind.')
        reply = chat(messages=[first, *same], temperature=0)
        texts[role] = reply.choices[0].message.content
    assert texts['system'] == texts['developer']
    assert chat(messages=same).choices == chat().choices


def test_a_reply_is_gone_on_with(chat, server):
    """The beginning of the reply is part of the prompt, without an end of its turn."""
    messages = [*MESSAGES, dict(role='assistant', content='The red')]
    body = dict(continue_final_message=True)
    reply = chat(messages=messages, extra_body=body)
    assert reply.usage.completion_tokens > 0
    prompt_body = dict(messages=messages, **body)
    tokens = post(server, '/tokenize', prompt_body)['tokens']
    ended = post(server, '/tokenize', dict(messages=messages))['tokens']
    assert reply.usage.prompt_tokens == len(tokens) and tokens != ended


def test_special_tokens_in_text_are_text(server):
    text = '<eos><|user|><bos>'
    prompt_body = dict(messages=[dict(role='user', content=text)])
    tokens = post(server, '/tokenize', prompt_body)['tokens']
    specials = server.get('/tokenizer_info')['special_tokens']
    assert tokens[0] == specials['<bos>']
    assert not set(tokens[1:]) & set(specials.values())


def test_sampling_fields_reach_the_engine(chat):
    likeliest = chat(temperature=0).choices[0].message.content
    for fields in (
        dict(top_p=1e-6),
        dict(extra_body=dict(top_k=1)),
        dict(extra_body=dict(min_p=1.0)),
    ):
        assert chat(**fields).choices[0].message.content == likeliest
    for fields in (
        dict(temperature=0, logit_bias={'100': 1000}),
        dict(temperature=0, presence_penalty=-50),
        dict(temperature=0, frequency_penalty=-50),
        dict(temperature=0, extra_body=dict(repetition_penalty=0.02)),
    ):
        assert chat(**fields).choices[0].message.content != likeliest


def test_what_changes_nothing_is_accepted(chat):
    reply = chat(
        user='ann',
        store=False,
        metadata=dict(a='b'),
        service_tier='auto',
        tools=[],
        tool_choice='none',
        extra_body=dict(prompt_cache_key='x', temperature=None, stop=None),
    )
    assert reply.choices == chat().choices


def test_max_completion_tokens(chat):
    fields = dict(logit_bias=NO_END, max_tokens=openai.NOT_GIVEN)
    reply = chat(max_completion_tokens=3, **fields)
    assert reply.usage.completion_tokens <= 3


# ---- completions --------------------------------------------------------------


def test_completion_and_its_stream(complete):
    whole = complete(logprobs=2, n=2)
    chunks = list(complete(logprobs=2, n=2, stream=True))
    assert whole.object == 'text_completion' and whole.id.startswith('cmpl-')
    for index, choice in enumerate(whole.choices):
        deltas = choices_of(chunks, index)
        assert ''.join(c.text for c in deltas) == choice.text
        assert deltas[-1].finish_reason == choice.finish_reason
        for name in ('tokens', 'token_logprobs', 'top_logprobs', 'text_offset'):
            pieces = [getattr(c.logprobs, name) for c in deltas if c.logprobs]
            assert sum(pieces, []) == getattr(choice.logprobs, name)


def test_prompts_as_text_and_ids_and_many(complete, server):
    text = 'The red fox'
    ids = post(server, '/tokenize', dict(prompt=text))['tokens']
    one = complete(prompt=text).choices[0].text
    assert complete(prompt=ids).choices[0].text == one
    for several in ([text, 'A'], [ids, ids]):
        reply = complete(prompt=several, n=2)
        assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
        assert reply.choices[0].text == one
        assert reply.choices[0].text != reply.choices[1].text
    assert complete(prompt=['A', text]).choices[1].text == one


def test_echo_with_logprobs_as_lm_evaluation_harness_asks(complete, server):
    ids = post(server, '/tokenize', dict(prompt='The red fox says'))['tokens']
    fields = dict(prompt=ids, echo=True, logprobs=1, temperature=0)
    reply = complete(**fields, max_tokens=1)
    [choice] = reply.choices
    echoed = choice.logprobs
    assert len(echoed.tokens) == len(ids) + 1 == len(echoed.token_logprobs)
    assert echoed.token_logprobs[0] is None and echoed.top_logprobs[0] is None
    assert all(logprob < 0 for logprob in echoed.token_logprobs[1:])
    assert max(echoed.top_logprobs[-1].values()) == echoed.token_logprobs[-1]
    assert choice.text.startswith('The red fox says')

    # If the first sampled token is the end, it is an entry too.
    ended = complete(**fields, max_tokens=1, logit_bias={'2': 1000})
    logprobs = ended.choices[0].logprobs
    assert ended.choices[0].finish_reason == 'stop'
    assert len(logprobs.tokens) == len(ids) + 1 and logprobs.tokens[-1] == '<eos>'

    # A request may also sample no token.
    scored = complete(**fields, max_tokens=0)
    assert scored.choices[0].text == 'The red fox says'
    assert scored.choices[0].logprobs.token_logprobs == echoed.token_logprobs[:-1]
    assert scored.usage.completion_tokens == 0


def test_echo_in_a_stream(complete):
    for logprobs in (None, 1):
        fields = dict(echo=True, logprobs=logprobs)
        whole = complete(**fields).choices[0]
        deltas = choices_of(complete(**fields, stream=True))
        assert ''.join(choice.text for choice in deltas) == whole.text
        if logprobs:
            pieces = [choice.logprobs for choice in deltas if choice.logprobs]
            offsets = sum((piece.text_offset for piece in pieces), [])
            assert offsets == whole.logprobs.text_offset


def test_stop_strings_end_a_reply_before_them(complete):
    text = complete(max_tokens=40, temperature=0, logit_bias=NO_END).choices[0].text
    stop = text[len(text) // 2 :][:3]
    reply = complete(max_tokens=40, temperature=0, logit_bias=NO_END, stop=[stop, 'zq'])
    assert reply.choices[0].text == text[: text.index(stop)]
    assert reply.choices[0].finish_reason == 'stop'


def test_the_default_is_sixteen_tokens(complete):
    reply = complete(max_tokens=openai.NOT_GIVEN, logit_bias=NO_END)
    assert reply.usage.completion_tokens == 16
    assert reply.choices[0].finish_reason == 'length'


def test_more_than_the_context_leaves_ends_there(complete):
    reply = complete(max_tokens=CONTEXT * 2, logit_bias=NO_END)
    assert reply.choices[0].finish_reason == 'length'
    assert reply.usage.total_tokens == CONTEXT


# ---- JSON ---------------------------------------------------------------------

SCHEMA = dict(
    type='object',
    properties=dict(
        name=dict(type='string', maxLength=8),
        age=dict(type='integer', minimum=0, maximum=120),
    ),
    required=['name', 'age'],
    additionalProperties=False,
)


def test_json_by_a_schema(chat):
    wanted = dict(type='json_schema', json_schema=dict(name='x', schema=SCHEMA))
    reply = chat(response_format=wanted, n=3, max_tokens=100)
    texts = set()
    for choice in reply.choices:
        assert choice.finish_reason == 'stop'
        value = json.loads(choice.message.content)
        assert value.keys() == {'name', 'age'} and 0 <= value['age'] <= 120
        texts.add(choice.message.content)
    assert len(texts) > 1
    chunks = list(chat(response_format=wanted, max_tokens=100, stream=True))
    assert joined(chunks) == reply.choices[0].message.content


def test_any_json_object(complete):
    reply = complete(
        extra_body=dict(response_format=dict(type='json_object')), max_tokens=400
    )
    text = reply.choices[0].text
    assert text.startswith('{')
    if reply.choices[0].finish_reason == 'stop':
        assert isinstance(json.loads(text), dict)


# ---- everything else ----------------------------------------------------------


def test_the_model_card(server):
    card = server.get('/model_card')
    assert card == server.get('/model_card?model=tiny')
    [stage] = card['stages']
    assert (card['id'], stage['run'], stage['step']) == ('tiny', 'tiny', 2)
    assert card['context'] == CONTEXT and card['suggestions'] == []
    status, body, _ = servers.send(server, '/model_card?model=other', None, 'GET')
    assert status == 404 and body['error']['code'] == 'model_not_found'


def test_models(client):
    [model] = client.models.list().data
    assert model.id == 'tiny' and model.owned_by == 'gptjax'
    assert model.max_model_len == CONTEXT
    step = servers.STEPS[-1]
    assert model.gptjax['step'] == step and model.created == servers.WRITTEN + step
    assert model.gptjax['template'] == 'text' and model.gptjax['description']
    assert client.models.retrieve('tiny') == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve('huge')


def test_tokens_there_and_back(server):
    text = ' a\n\nb  c 🐈 \u2581 é'
    answer = post(server, '/tokenize', dict(prompt=text, return_token_strs=True))
    assert answer['count'] == len(answer['tokens']) == len(answer['token_strs'])
    assert answer['max_model_len'] == CONTEXT and answer['token_strs'][0] == '<bos>'
    back = post(server, '/detokenize', dict(tokens=answer['tokens']))
    assert back == dict(prompt=text)
    bare = post(server, '/tokenize', dict(prompt=text, add_special_tokens=False))
    assert bare['tokens'] == answer['tokens'][1:]


def test_ids_of_special_tokens_as_lm_evaluation_harness_finds_them(server):
    info = server.get('/tokenizer_info')
    for kind in ('bos', 'eos', 'pad'):
        prompt_body = dict(prompt=info[f'{kind}_token'], add_special_tokens=False)
        tokens = post(server, '/tokenize', prompt_body)['tokens']
        assert tokens == [info[f'{kind}_token_id']]


def test_health_ready_metrics_page(server, complete):
    assert server.get('/health') == dict(status='ok')
    assert server.get('/ready') == dict(status='ready')
    assert '<!doctype html>' in server.get('/').lower()
    before = server.metric('gptjax_requests_total', outcome='completed')
    first = server.metric('gptjax_time_to_first_token_seconds_count')
    between = server.metric('gptjax_inter_token_seconds_count')
    complete(max_tokens=8, logit_bias=NO_END)
    assert server.metric('gptjax_requests_total', outcome='completed') == before + 1
    assert server.metric('gptjax_time_to_first_token_seconds_count') == first + 1
    assert server.metric('gptjax_inter_token_seconds_count') > between
    assert server.metric('gptjax_slots') == 2
    assert 0 <= server.metric('gptjax_kv_cache_used_ratio') <= 1
