"""Every config field: its default, the values that it may have, what it does.

A new field is one line here; nothing else lists fields, defaults or ranges.
configs/common.py makes the sections of an experiment from this table, and
gptjax/core/config.py checks a config by it and fills in what an older run lacks.
Every field is a flag, as --config.optim.learning_rate=3e-4.
"""

from gptjax.core.fields import (
    AT_LEAST_0,
    AT_LEAST_1,
    AT_LEAST_2,
    BELOW_HALF,
    BELOW_ONE,
    FINITE,
    INNER_SHARE,
    LESS_THAN_HALF,
    MESH_SIZE,
    NEEDED,
    OPTIONS,
    POSITIVE,
    SEED,
    SHARE,
    SOME_SHARE,
    STEP_OR_NONE,
    TEXT,
    TEXTS,
    UP_TO_HALF,
    WINDOWS,
    YES_OR_NO,
    Field,
    one_of,
)

# ---- entries under names of the user's own

SOURCE = dict(
    kind=Field('text', one_of('tfds', 'text', 'jsonl', 'parquet', 'chat'), 'its form'),
    path=Field('', TEXT, 'a file, folder or glob; the name of a TFDS dataset'),
    split=Field('train', TEXT, 'of a TFDS dataset; other kinds have one'),
    text_field=Field('text', TEXT, 'the column or key that holds the text'),
    id_field=Field('', TEXT, "the key that names the document; '': 'id' or its place"),
    weight=Field(0.0, AT_LEAST_0, 'share of the training examples; 0: by size'),
    limit=Field(0, AT_LEAST_0, 'documents read at most; 0: all'),
    licence=Field('', TEXT, 'recorded in the manifest; TFDS datasets know theirs'),
)

REWARD_PART = dict(
    function=Field('correct', TEXT, "in REWARDS of reward_functions.py, or 'model'"),
    weight=Field(1.0, FINITE, 'the total reward is the sum of weight x reward'),
    run=Field('', TEXT, 'the run directory of a reward model'),
)

# ---- sections, in the order of the pipeline

DATA = dict(
    sources=Field(
        dict(chitchat=dict(kind='tfds', path='chitchat')),
        SOURCE,
        'what documents are read from',
    ),
    clean=Field(
        (
            'repair_unicode',
            'html_to_text',
            'remove_control_characters',
            'normalize_whitespace',
            'mask_emails',
            'mask_phone_numbers',
            'mask_handles',
            'mask_user_ids',
            'drop_short',
            'drop_repetitive',
            'drop_duplicates',
        ),
        TEXTS,
        'cleaning steps in order, by their names in STEPS of cleaning_steps.py',
    ),
    languages=Field(
        ('en',),
        TEXTS,
        "kept by 'keep_languages'; the first one is that of 'split_sentences'",
    ),
    min_characters=Field(16, AT_LEAST_0, "shorter documents go, by 'drop_short'"),
    max_characters=Field(1_000_000, AT_LEAST_1, "longer ones go, by 'drop_long'"),
    max_repetition=Field(0.5, SHARE, 'share of repeated lines or 5-grams, at most'),
    validation_fraction=Field(0.05, INNER_SHARE, 'of conversations, by hash of the id'),
    context=Field(128, AT_LEAST_0, 'tokens of an example; 0: as many as start.run'),
    workers=Field(0, AT_LEAST_0, 'processes that clean and tokenise; 0: one a CPU'),
)

TOKENIZER = dict(
    kind=Field('bpe', one_of('bpe', 'unigram'), 'Sennrich 2016, or Kudo 2018'),
    vocab_size=Field(2048, AT_LEAST_1, 'special tokens and the 256 bytes included'),
    train_characters=Field(20_000_000, AT_LEAST_1, 'at most this much text is read'),
)

MODEL = dict(
    num_layers=Field(3, AT_LEAST_1, 'L', before=NEEDED),
    width=Field(192, AT_LEAST_1, 'D', before=NEEDED),
    num_heads=Field(3, AT_LEAST_1, 'N', before=NEEDED),
    num_kv_heads=Field(0, AT_LEAST_0, 'K; 0: as num_heads, 1: multi-query'),
    head_dim=Field(0, AT_LEAST_0, 'H; 0: width / num_heads'),
    mlp_width=Field(0, AT_LEAST_0, "F; 0: 4 width, and 8/3 width for 'swiglu'"),
    context=Field(128, AT_LEAST_1, 'positions that it has', before=NEEDED),
    position=Field('rotary', one_of('rotary', 'learned', 'none'), 'its encoding'),
    rotary_base=Field(10_000.0, POSITIVE, 'of the wavelengths of rotary positions'),
    norm=Field('rmsnorm', one_of('rmsnorm', 'layernorm'), 'before every sublayer'),
    norm_epsilon=Field(1e-5, AT_LEAST_0, 'added to the variance'),
    mlp=Field('relu2', one_of('gelu', 'swiglu', 'relu2'), 'the feed-forward layer'),
    qk_norm=Field(True, YES_OR_NO, "normalise each head's query and key"),
    windows=Field((0,), WINDOWS, 'attention window by layer, repeated; 0: all'),
    attention_softcap=Field(0.0, AT_LEAST_0, 'c tanh(score / c); 0: none'),
    logit_softcap=Field(0.0, AT_LEAST_0, 'c tanh(logit / c); 0: none'),
    bias=Field(False, YES_OR_NO, 'in the linear layers and the layer norms'),
    tie_embeddings=Field(False, YES_OR_NO, "the head is the embedding's transpose"),
    embedding_dropout=Field(0.0, BELOW_ONE, 'share of the embeddings'),
    attention_dropout=Field(0.0, BELOW_ONE, 'share of the attention weights'),
    residual_dropout=Field(0.0, BELOW_ONE, 'share of what a sublayer adds'),
    init_std=Field(0.02, AT_LEAST_0, "of the layers' matrices"),
    embedding_std=Field(0.02, AT_LEAST_0, 'of an untied embedding'),
    dtype=Field(
        'float32',
        one_of('float32', 'bfloat16', 'float16'),
        'of the matrix products; weights are float32',
    ),
    remat=Field(
        'none',
        one_of('none', 'full', 'dots', 'block_outputs'),
        'what the backward pass computes again, to save memory',
    ),
    unroll=Field(1, AT_LEAST_1, 'layers in one iteration of the scan'),
)

MESH = dict(
    data=Field(-1, MESH_SIZE, 'splits the batch; -1: over all devices left'),
    fsdp=Field(1, MESH_SIZE, 'splits parameters and optimizer state, by width'),
    tensor=Field(1, MESH_SIZE, 'splits heads, feed-forward and vocabulary'),
    context=Field(1, MESH_SIZE, 'splits the sequence'),
)

OPTIM = dict(
    name=Field('muon', TEXT, 'a name in OPTIMIZERS of update_rules.py'),
    learning_rate=Field(3e-3, AT_LEAST_0, 'peak; with muon, of all but the matrices'),
    matrix_learning_rate=Field(0.02, AT_LEAST_0, 'peak of the matrices, muon only'),
    embedding_scale=Field(1.0, AT_LEAST_0, 'times learning_rate, for the embeddings'),
    head_scale=Field(1.0, AT_LEAST_0, 'times learning_rate, for an untied head'),
    schedule=Field(
        'wsd',
        one_of('constant', 'cosine', 'linear', 'inverse_sqrt', 'wsd'),
        'how the learning rate goes from its peak to its end; see schedules.py',
    ),
    warmup_steps=Field(20, AT_LEAST_0, 'in which the learning rate rises to its peak'),
    decay_fraction=Field(0.5, SHARE, 'of the steps, at the end, for wsd'),
    final_scale=Field(0.0, SHARE, 'the last learning rate as a share of the peak'),
    beta1=Field(0.9, BELOW_ONE, 'decay of the mean of gradients'),
    beta2=Field(0.95, BELOW_ONE, 'decay of the mean of squared gradients'),
    epsilon=Field(1e-8, AT_LEAST_0, 'added to the root of the mean square'),
    momentum=Field(0.95, BELOW_ONE, 'of muon'),
    weight_decay=Field(0.0, AT_LEAST_0, 'on matrices and embeddings, never on vectors'),
    clip_norm=Field(1.0, AT_LEAST_0, 'of the global gradient norm; 0: none'),
    ema=Field(0.0, BELOW_ONE, 'decay of the averaged, evaluated weights; 0: none'),
)

TRAIN = dict(
    num_steps=Field(1000, AT_LEAST_1, 'updates'),
    batch_size=Field(16, AT_LEAST_1, 'examples in one update, over all devices'),
    accumulation=Field(1, AT_LEAST_1, 'micro-batches in one update'),
    z_loss=Field(0.0, AT_LEAST_0, 'times the squared log-partition'),
    label_smoothing=Field(0.0, BELOW_ONE, 'share of the target for all tokens alike'),
    loss_chunk=Field(0, AT_LEAST_0, 'tokens of logits alive at once; 0: all'),
    eval_every=Field(200, AT_LEAST_1, 'steps between validations; the last has one'),
    eval_batches=Field(8, AT_LEAST_0, 'of the validation split; 0: all', free=True),
    patience=Field(0, AT_LEAST_0, 'validations without a better loss; 0: no limit'),
    max_bad_steps=Field(
        10, AT_LEAST_1, 'non-finite updates in a row that stop the run', free=True
    ),
    profile_step=Field(
        -1, STEP_OR_NONE, 'first of 3 traced steps; -1: none', free=True
    ),
    peak_tflops=Field(
        0.0, AT_LEAST_0, 'of a device, for MFU; 0: by a table', free=True
    ),
)

CHECKPOINT = dict(
    every=Field(200, AT_LEAST_1, 'steps; the last step and SIGTERM save as well'),
    keep=Field(2, AT_LEAST_1, 'the newest'),
    keep_best=Field(1, AT_LEAST_0, 'by validation loss, besides; 0: none'),
)

EVAL = dict(
    stride=Field(0, AT_LEAST_0, 'tokens between windows; 0: half the context'),
    batch_size=Field(32, AT_LEAST_1, 'windows at once'),
    documents=Field(0, AT_LEAST_0, 'of validation, by a hash of their ids; 0: all'),
    conversations=Field(200, AT_LEAST_0, "held out, for 'reply' and 'choice'; 0: all"),
    choices=Field(4, AT_LEAST_2, "replies that 'choice' chooses among"),
    max_tokens=Field(48, AT_LEAST_1, 'of a reply; at most half the context'),
    temperature=Field(0.0, AT_LEAST_0, 'of replies; 0: the likeliest token'),
    top_k=Field(0, AT_LEAST_0, 'likeliest tokens that are drawn from; 0: all'),
    top_p=Field(1.0, SOME_SHARE, 'probability that is drawn from; 1: all'),
    resamples=Field(1000, AT_LEAST_1, 'of the bootstrap and of permutation tests'),
    level=Field(0.95, INNER_SHARE, 'share of the resamples that an interval holds'),
    seed=Field(0, SEED, 'of prompts, draws and resamples'),
)

CHAT = dict(
    template=Field(
        'text',
        one_of('text', 'turns', ''),
        "'text' after pretraining, 'turns' after fine-tuning; '': as start.run",
    ),
)

SAMPLE = dict(
    prompts=Field(
        ('Hello! How are you today?\n\n', 'I really like', ''),
        TEXTS,
        'that the model goes on from',
    ),
    max_tokens=Field(96, AT_LEAST_1, 'drawn for each'),
    temperature=Field(0.8, AT_LEAST_0, '0: the likeliest token'),
    top_k=Field(0, AT_LEAST_0, 'likeliest tokens that are drawn from; 0: all'),
    top_p=Field(0.95, SOME_SHARE, 'probability that is drawn from; 1: all'),
    min_p=Field(0.0, SHARE, "least probability, as a share of the likeliest's"),
)

# The earlier run that a later stage begins with.
START = dict(
    run=Field('', TEXT, 'its directory; model and tokenizer are taken from it'),
    step=Field(-1, STEP_OR_NONE, 'of its checkpoint; -1: the best by validation loss'),
)

# Conversations to fine-tune on; `data` says how they are cleaned and split.
DIALOGUE = dict(
    sources=Field({}, SOURCE, "of the kind 'chat' or 'tfds'"),
)

# Supervised fine-tuning.
SFT = dict(
    epochs=Field(3.0, AT_LEAST_0, 'over the conversations; 0: train.num_steps instead'),
    pretraining_share=Field(0.0, BELOW_ONE, "of each batch's rows: text of start.run"),
)

# Low-rank adaptation (Hu et al. 2021): w + alpha / rank A B, with w frozen.
LORA = dict(
    rank=Field(0, AT_LEAST_0, 'columns of A; 0: all parameters are trained instead'),
    alpha=Field(16.0, POSITIVE, 'alpha / rank multiplies A B'),
    targets=Field(
        ('query', 'key', 'value', 'out', 'up', 'down'),
        TEXTS,
        "the matrices that are adapted; swiglu has a 'gate' too",
    ),
)

# A reward model, and the ratings or preferences that it learns from.
REWARD = dict(
    target=Field(
        'sum',
        one_of('sum', 'witty', 'interesting', 'upbeat', 'replied', 'continued'),
        'the sum of ratings, one of them, or what people did',
    ),
    preferences=Field('', TEXT, 'pairs instead: a JSON Lines file, folder, glob'),
    test_fraction=Field(0.15, INNER_SHARE, 'of conversations, and all held out before'),
    validation_fraction=Field(0.1, INNER_SHARE, 'the next ones, for early stopping'),
    loss=Field(
        'pairwise',
        one_of('pairwise', 'regression', 'binary'),
        "'regression' of ratings, 'binary' of what people did",
    ),
    group=Field(8, AT_LEAST_2, 'conversations compared with each other, in all pairs'),
    margin=Field(0.0, AT_LEAST_0, 'of a pair: times the difference of its ratings'),
    centring=Field(0.01, AT_LEAST_0, "times the squared sum of a pair's rewards"),
    epochs=Field(0.0, AT_LEAST_0, 'over the conversations; 0: train.num_steps instead'),
)

# Learning from preferences directly, by DPO and its kin.
PREFERENCE = dict(
    path=Field('', TEXT, 'pairs: a JSON Lines file, folder, glob'),
    validation_fraction=Field(0.1, INNER_SHARE, 'of prompts, by a hash'),
    epochs=Field(1.0, AT_LEAST_0, 'over the pairs; 0: train.num_steps instead'),
    loss=Field('dpo', one_of('dpo', 'ipo', 'kto', 'orpo', 'simpo'), 'the objective'),
    beta=Field(0.1, POSITIVE, 'of the KL; of simpo, a scale; orpo has none'),
    label_smoothing=Field(0.0, BELOW_HALF, 'of dpo: share of wrong labels (cDPO)'),
    margin=Field(1.0, AT_LEAST_0, 'of simpo: gamma'),
    odds_weight=Field(0.1, AT_LEAST_0, 'of orpo: lambda'),
    desirable_weight=Field(1.0, AT_LEAST_0, 'of kto: of chosen replies'),
    undesirable_weight=Field(1.0, AT_LEAST_0, 'of kto: of rejected replies'),
    nll=Field(0.0, AT_LEAST_0, 'times the loss per token of chosen replies, added'),
    reference=Field('', TEXT, "the run of the reference model; '': start.run"),
)

# Problems that replies are judged on.
TASK = dict(
    name=Field('chain_sum', TEXT, 'a dataset of reasoning-gym'),
    options=Field(
        dict(min_terms=2, max_terms=2, min_digits=1, max_digits=2),
        OPTIONS,
        'of that dataset',
    ),
    path=Field(
        '',
        TEXT,
        'JSON Lines of the user\'s instead: "prompt", "answer"; or a folder with '
        'train.jsonl and validation.jsonl of conversations, as RUN/dialogue',
    ),
    held_out_fraction=Field(0.1, LESS_THAN_HALF, 'of problems, by content'),
    problems=Field(10_000, AT_LEAST_1, 'to train on, at most; each is there once'),
    demonstrations=Field(1200, AT_LEAST_0, 'of these, with answers', free=True),
    validation=Field(200, AT_LEAST_1, 'problems that choose a checkpoint', free=True),
    held_out=Field(1000, AT_LEAST_1, 'problems that `eval` reports on', free=True),
    samples=Field(8, AT_LEAST_1, 'replies that `eval` draws, for pass@8', free=True),
    rewards=Field(
        dict(correct=dict(function='correct')), REWARD_PART, 'the mixture of rewards'
    ),
)

# What PPO and GRPO have in common: rollouts and how they are trained on.
POLICY = dict(
    prompts=Field(32, AT_LEAST_1, 'in a rollout'),
    replies=Field(8, AT_LEAST_1, 'G, to each prompt; train.batch_size are an update'),
    epochs=Field(1, AT_LEAST_1, 'passes over a rollout'),
    max_tokens=Field(16, AT_LEAST_1, 'of a reply, its stop token included'),
    temperature=Field(1.0, POSITIVE, 'of the policy: drawn and trained at'),
    slots=Field(64, AT_LEAST_1, 'replies drawn at once', free=True),
    generation_tensor=Field(1, AT_LEAST_1, 'devices a copy of the weights', free=True),
    kl_reward=Field(0.0, AT_LEAST_0, 'times k1, off the reward; not with kl_loss'),
    kl_loss=Field(0.0, AT_LEAST_0, 'times k2, added to the loss'),
    kl_target=Field(6.0, POSITIVE, 'nats a reply, where the coefficient adapts'),
    kl_horizon=Field(0, AT_LEAST_0, 'replies over which it adapts; 0: it is fixed'),
    entropy=Field(0.0, AT_LEAST_0, 'times the entropy, taken from the loss'),
    missing_eos_penalty=Field(0.0, AT_LEAST_0, 'off the score of a truncated reply'),
    overlong_buffer=Field(0, AT_LEAST_0, 'tokens before max_tokens that cost; 0: none'),
    reward_scale=Field(1.0, POSITIVE, 'divides scores'),
    reward_running_scale=Field(False, YES_OR_NO, 'also by their running deviation'),
    reward_clip=Field(0.0, AT_LEAST_0, 'largest absolute score then; 0: none'),
)

# Proximal policy optimisation (Schulman et al. 2017).
PPO = dict(
    critic=Field('head', one_of('head', 'network'), 'on the policy, or of its own'),
    critic_run=Field('', TEXT, "a network begins as this reward model; '': as policy"),
    gamma=Field(1.0, SHARE, 'discount of later rewards'),
    lam=Field(0.95, SHARE, 'of generalised advantage estimation'),
    clip_low=Field(0.2, POSITIVE, 'the ratio may fall by this'),
    clip_high=Field(0.2, POSITIVE, 'and rise by this'),
    value_clip=Field(0.2, AT_LEAST_0, "how far from the rollout's values; 0: any"),
    value_coefficient=Field(0.1, POSITIVE, 'times the value loss'),
    whiten=Field(True, YES_OR_NO, 'advantages to mean 0 and variance 1'),
    warm_up=Field(0, AT_LEAST_0, 'rollouts at the start that train only the critic'),
    ptx=Field(0.0, AT_LEAST_0, 'times the language loss on pretraining text, added'),
    ptx_run=Field('', TEXT, 'the run whose RUN/prepared is that text'),
    ptx_rows=Field(32, AT_LEAST_1, 'of that text in an update'),
)

# Group-relative policy optimisation (Shao et al. 2024) and its kin; see grpo.py.
GRPO = dict(
    advantage=Field(
        'grpo',
        one_of('grpo', 'dr_grpo', 'rloo', 'reinforce'),
        'of a score; see grpo.py',
    ),
    objective=Field('clipped', one_of('clipped', 'gspo', 'reinforce'), 'of the policy'),
    normaliser=Field(
        'sequence',
        one_of('sequence', 'token', 'constant', 'sum'),
        'what the sum over tokens is divided by',
    ),
    clip_low=Field(0.2, POSITIVE, 'the ratio may fall by this'),
    clip_high=Field(0.2, POSITIVE, 'and rise by this'),
    resampling=Field(0, AT_LEAST_0, 'further draws for groups with one score alone'),
)

# Training data from a model's own replies: rejection sampling and pairs.
SELECT = dict(
    problems=Field(2000, AT_LEAST_1, "of the task's training part, each once"),
    replies=Field(8, AT_LEAST_2, 'n, drawn to each'),
    by=Field('verifier', one_of('verifier', 'reward'), 'right and wrong, or rewards'),
    keep=Field(1, AT_LEAST_0, 'm, replies kept of a problem at most, all different'),
    pairs=Field(1, AT_LEAST_0, 'of a problem at most'),
    noise=Field(0.0, UP_TO_HALF, 'share of pairs swapped, to study wrong labels'),
    max_tokens=Field(16, AT_LEAST_1, 'of a reply, its stop token included'),
    temperature=Field(1.0, POSITIVE, 'of the draws'),
    slots=Field(64, AT_LEAST_1, 'replies drawn at once'),
    generation_tensor=Field(1, AT_LEAST_1, 'devices a copy of the weights'),
)

# Best-of-n: the reply of n that a reward likes best, judged by another.
BEST_OF = dict(
    judge=Field('', TEXT, "the gold reward model's run; '': the task's verifier"),
    problems=Field(200, AT_LEAST_2, 'held-out ones'),
    samples=Field(64, AT_LEAST_2, 'N, drawn to each; n is 1, 2, 4, … up to N'),
    max_tokens=Field(16, AT_LEAST_1, 'of a reply, its stop token included'),
    temperature=Field(1.0, POSITIVE, 'of the draws'),
    slots=Field(64, AT_LEAST_1, 'replies drawn at once'),
    generation_tensor=Field(1, AT_LEAST_1, 'devices a copy of the weights'),
)

# A proxy reward, optimised by best-of-n and by PPO, judged by `best_of.judge`.
OVEROPTIMIZATION = dict(
    proxy=Field('', TEXT, "a reward model's run; '': one is made in RUN/proxy"),
    policy=Field('', TEXT, "a run of PPO against it; '': one is made in RUN/ppo"),
    replies=Field(8, AT_LEAST_1, 'to each held-out problem, by each checkpoint'),
)

# ---- all of them

BASE = dict(  # that every experiment has
    seed=Field(0, SEED, 'of shuffling, initialisation, dropout'),
    data=DATA,
    tokenizer=TOKENIZER,
    model=MODEL,
    mesh=MESH,
    optim=OPTIM,
    train=TRAIN,
    checkpoint=CHECKPOINT,
    eval=EVAL,
    chat=CHAT,
    sample=SAMPLE,
)
SCHEMA = BASE | dict(  # those that a stage needs stand only in its configs
    start=START,
    dialogue=DIALOGUE,
    sft=SFT,
    lora=LORA,
    reward=REWARD,
    preference=PREFERENCE,
    task=TASK,
    policy=POLICY,
    ppo=PPO,
    grpo=GRPO,
    select=SELECT,
    best_of=BEST_OF,
    overoptimization=OVEROPTIMIZATION,
)

# Once there is a checkpoint, no field of these may change that is not `free`. (What
# is decided earlier, the data and tokenizer stages guard themselves.)
DECIDES_WEIGHTS = (
    *('seed', 'model', 'optim', 'train', 'start', 'sft', 'lora'),
    *('reward', 'preference', 'task', 'policy', 'ppo', 'grpo'),
)

# Fields of earlier versions that had to have this value: the code acts as by it.
GONE = {'policy.top_k': 0, 'policy.top_p': 1.0, 'policy.min_p': 0.0}
