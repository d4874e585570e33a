"""The JSON of requests and responses as pydantic models; /openapi.json publishes them.

A request that holds an unknown field is refused, because the client expects the field
to change the reply. Fields that cannot change a reply (`user`, `metadata`, …) are
accepted and ignored. Every optional field may also be null.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.responses import JSONResponse

from gptjax.eval.model_facts import CardSkill, CardStage, CardTask
from gptjax.infer.request import BIAS_LIMITS, LIMITS


class Schema(BaseModel):
    """No unknown fields and no conversions: the string '1' is not a number."""

    model_config = ConfigDict(extra='forbid', strict=True, allow_inf_nan=False)


# JSON has one kind of number: 2.0 is the integer 2.
Whole = BeforeValidator(
    lambda x: int(x) if isinstance(x, float) and x.is_integer() else x
)


def _limited(name, type_=float, description=None, **narrower):
    """The type of an optional sampling parameter, within the engine's limits."""
    low, high, is_above = LIMITS[name]
    limits = {'gt' if is_above else 'ge': low, 'le': high} | narrower
    return Annotated[type_, Field(description=description, **limits), Whole] | None


def _array(item, most, least=1):
    limits = Field(min_length=least, max_length=most, fail_fast=True)
    return Annotated[list[item], limits]


NumChoices = Annotated[int, Field(ge=1, le=16), Whole] | None
Token = Annotated[int, Field(ge=0, le=2**31 - 1), Whole]
TokenIds = _array(Token, most=2**17)  # the context sets the real limit
StopText = Annotated[str, Field(min_length=1, max_length=256)]
EmptyList = Annotated[list, Field(max_length=0)] | None  # of an unsupported field


# ---- requests -----------------------------------------------------------------


class TextPart(Schema):
    type: Literal['text']
    text: str


class CalledFunction(Schema):
    name: Annotated[str, Field(max_length=256)]
    arguments: str | dict[str, Any] = Field(description='JSON, or as a string.')


class ToolCall(Schema):
    id: str | None = None
    type: Literal['function'] | None = None
    function: CalledFunction


class Message(Schema):
    role: Literal['system', 'developer', 'user', 'assistant', 'tool']
    content: str | _array(TextPart, most=64) | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    # For imported models whose chat template takes them:
    tool_calls: _array(ToolCall, most=64, least=0) | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None
    # Clients send back the messages of earlier responses, with these fields.
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: EmptyList = None


Messages = _array(Message, most=1024)
Tools = _array(dict[str, Any], most=128, least=0)


class JsonSchema(Schema):
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] = Field(alias='schema')


class ResponseFormat(Schema):
    type: Literal['text', 'json_object', 'json_schema']
    json_schema: JsonSchema | None = None


class StreamOptions(Schema):
    include_usage: bool | None = None
    include_obfuscation: bool | None = Field(None, description='Ignored.')


LogitBias = Annotated[
    dict[
        Annotated[str, Field(pattern='^[0-9]{1,9}$')],  # a token id
        Annotated[float, Field(ge=BIAS_LIMITS.least, le=BIAS_LIMITS.most)],
    ],
    Field(max_length=1024, json_schema_extra={'additionalProperties': False}),
]


class GenerationFields(Schema):
    """Fields of both kinds of requests for replies."""

    model: str | None = Field(None, description='An id of /v1/models. Default: first.')
    temperature: _limited('temperature') = None
    top_k: _limited('top_k', int, 'Keeps the k likeliest tokens. 0: all.') = None
    top_p: _limited('top_p') = None
    min_p: _limited('min_p', float, 'Least share of the highest probability.') = None
    repetition_penalty: _limited('repetition_penalty', float, '1: none.') = None
    presence_penalty: _limited('presence_penalty') = None
    frequency_penalty: _limited('frequency_penalty') = None
    logit_bias: LogitBias | None = None
    seed: _limited('seed', int, 'Choice i of n has seed + i. Default: random.') = None
    stop: StopText | _array(StopText, most=16, least=0) | None = None
    n: NumChoices = Field(None, description='Replies to each prompt.')
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Accepted and ignored:
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None


class ChatRequest(GenerationFields):
    messages: Messages
    max_completion_tokens: _limited('max_tokens', int, ge=1) = None
    max_tokens: _limited('max_tokens', int, ge=1) = None
    logprobs: bool | None = Field(None, description='Computed at temperature 1.')
    top_logprobs: _limited('logprobs', int) = None
    continue_final_message: bool | None = Field(
        None, description='The reply continues the last message, of the assistant.'
    )
    prediction: Any = None  # ignored
    parallel_tool_calls: Any = None  # ignored
    tools: Tools | None = Field(None, description='Shown by a template that can.')
    functions: EmptyList = None
    tool_choice: Literal['none', 'auto'] | None = None
    function_call: Literal['none', 'auto'] | None = None
    modalities: list[Literal['text']] | None = None


class CompletionRequest(GenerationFields):
    prompt: str | TokenIds | _array(str, most=64) | _array(TokenIds, most=64)
    max_tokens: _limited('max_tokens', int, '0 only with `echo`. Default: 16.') = None
    echo: bool | None = Field(None, description='Return the prompt before the reply.')
    logprobs: _limited('logprobs', int) = None
    best_of: NumChoices = Field(None, description='Must equal n.')
    suffix: Annotated[str, Field(max_length=0)] | None = None  # unsupported


class TokenizeRequest(Schema):
    """Either `prompt` or `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = Field(None, description='Default: true.')
    continue_final_message: bool | None = None
    tools: Tools | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Schema):
    model: str | None = None
    tokens: _array(Token, most=2**17, least=0)


# ---- responses ----------------------------------------------------------------


class JsonResponse(JSONResponse):
    """A model as JSON, without the fields that were not given."""

    def render(self, content: BaseModel) -> bytes:
        return content.model_dump_json(exclude_unset=True).encode()


class TokenLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list['TokenLogprob'] | None = None


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None


class TextLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class ChatMessage(BaseModel):
    """A message, or in a chunk the fields that are new."""

    role: Literal['assistant'] | None = None
    content: str | None = None
    refusal: None = None


class Choice(BaseModel):
    index: int
    finish_reason: Literal['stop', 'length'] | None


class ChatChoice(Choice):
    message: ChatMessage
    logprobs: ChatLogprobs | None


class ChunkChoice(Choice):
    delta: ChatMessage
    logprobs: ChatLogprobs | None


class TextChoice(Choice):
    text: str
    logprobs: TextLogprobs | None


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Response(BaseModel):
    """Fields of all responses with replies; a chunk may have no usage."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage | None = None


class ChatCompletion(Response):
    choices: list[ChatChoice]


class ChatChunk(Response):
    choices: list[ChunkChoice]


class Completion(Response):
    choices: list[TextChoice]


class ModelFacts(BaseModel):
    step: int
    template: str
    context: int
    description: str
    fingerprint: str


class Model(BaseModel):
    id: str
    object: Literal['model']
    created: int
    owned_by: str
    max_model_len: int
    gptjax: ModelFacts


class ModelList(BaseModel):
    object: Literal['list']
    data: list[Model]


class Suggestion(BaseModel):
    text: str = Field(description='A held-out question of the skill.')
    skill: CardSkill


class ModelCard(BaseModel):
    id: str
    parameters: int
    context: int
    vocabulary: int
    stages: list[CardStage] = Field(description='The first one first.')
    can: list[CardSkill] = Field(
        description='At least 70% of the greedy replies are right.'
    )
    cannot: list[CardSkill]
    tasks: list[CardTask]
    remarks: list[str]
    suggestions: list[Suggestion] = Field(
        description='Of skills with at least 70% right replies at both temperatures.'
    )


class Tokens(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Text(BaseModel):
    prompt: str


class TokenizerInfo(BaseModel):
    tokenizer_class: str
    vocab_size: int
    model_max_length: int
    fingerprint: str
    special_tokens: dict[str, int]
    bos_token: str | None
    bos_token_id: int
    eos_token: str | None
    eos_token_id: int
    pad_token: str | None
    pad_token_id: int
    chat_template: str | None


class Status(BaseModel):
    status: str
    failed: dict[str, str] | None = Field(None, description='Models that cannot reply.')


class ErrorFields(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    error: ErrorFields
