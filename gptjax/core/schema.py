"""Every config field: its default, what it does, and the values that it may have.

To add a field, add it here, to model_schema.py if it is a field of `model`, or to
policy_schema.py for `policy`, `ppo` and `grpo`; no other file lists fields, defaults or
ranges.
configs/common.py makes the sections of an experiment from this table, and
gptjax/core/config.py checks configs and completes those of older runs.
Every field is a flag, such as --config.optim.learning_rate=3e-4.
"""

from gptjax.core.fields import (
    AT_LEAST_1,
    AT_LEAST_2,
    BELOW_HALF,
    BELOW_ONE,
    FINITE,
    INNER_SHARE,
    LESS_THAN_HALF,
    MESH_SIZE,
    NUMBER_OR_NONE,
    POSITIVE,
    SEED,
    SHARE,
    SOME_SHARE,
    STEP_OR_NONE,
    UP_TO_HALF,
    Field,
    one_of,
)
from gptjax.core.model_schema import MODEL
from gptjax.core.policy_schema import GRPO, POLICY, PPO

# A longer model uses so many positions, unless a command or config names a number.
DEFAULT_CONTEXT = 4096

# ---- entries whose names the user chooses

SOURCE = dict(
    kind=Field(
        'text',
        'format of the files; tfds: a TensorFlow dataset',
        one_of('tfds', 'text', 'jsonl', 'parquet', 'chat'),
    ),
    path=Field('', 'file, folder or glob pattern; for tfds, the name of the dataset'),
    split=Field('train', 'split to read, only for tfds'),
    text_field=Field('text', 'column or JSON key that holds the text'),
    id_field=Field('', "column or key of the id; '': 'id' or the line; '#': the line"),
    weight=Field(0.0, 'share of the training examples; 0: in proportion to the size'),
    clean=Field(('default',), 'data.clean, for chat no step', before=('data.clean',)),
    limit=Field(0, 'maximum number of documents to read; 0: all'),
    licence=Field('', 'licence for the manifest; tfds datasets state their own'),
    licence_field=Field(
        '', "column or key of a record's licence; '': that of the source"
    ),
    columns=Field((), "chat: other names of fields, such as ('prompt=question',)"),
)

REWARD_PART = dict(
    function=Field('correct', "key of REWARDS in reward_functions.py, or 'model'"),
    weight=Field(1.0, 'the total reward is the sum of weight * reward', FINITE),
    on=Field(
        'all',
        "problems that it counts for: 'answered', or 'open', which have no answer",
        one_of('all', 'answered', 'open'),
    ),
    run=Field('', "run directory of the reward model, for function='model'"),
)

# ---- sections, in the order of the pipeline

# Changes of training rows; each augmentation reads only its own field.
AUGMENTATION = dict(
    augment=Field((), 'augmentations of training rows, in order; augmentations.py'),
    augment_replies=Field(False, 'also change the replies that sft trains on'),
    subword_alpha=Field(
        0.1, 'bpe: share of merges dropped; unigram: exponent; 0: no sampling', SHARE
    ),
    token_dropout_rate=Field(0.1, 'share of inputs replaced by random tokens', SHARE),
    token_masking_rate=Field(0.1, 'share of inputs replaced by a blank token', SHARE),
    typo_rate=Field(0.02, "share of letters mistyped by 'character_noise'", SHARE),
    reorder_distance=Field(3, "most places that 'reorder_words' moves a word"),
    shuffle_rate=Field(0.5, "share of texts for 'shuffle_sentences'", SHARE),
    rotation_rate=Field(0.5, "share of texts for 'rotate_document'", SHARE),
    deletion_rate=Field(0.1, "share of words that 'delete_spans' deletes", SHARE),
    synonyms=Field('', 'table of synonyms: TSV or JSON Lines; see synonyms.py'),
    synonym_rate=Field(0.1, "share of listed words for 'replace_synonyms'", SHARE),
    fim_rate=Field(0.5, "share of texts for 'fill_in_the_middle'", SHARE),
)

DATA = dict(
    sources=Field(
        dict(chitchat=dict(kind='tfds', path='chitchat')),
        'where documents come from, under names of your choice',
        SOURCE,
    ),
    licences=Field((), "licences to use, such as ('MIT', 'CC-BY-4.0'); (): all"),
    clean=Field(
        (
            *('repair_unicode', 'html_to_text', 'remove_control_characters'),
            *('normalize_whitespace', 'mask_emails', 'mask_phone_numbers'),
            *('mask_handles', 'mask_user_ids', 'drop_short', 'drop_repetitive'),
            'drop_duplicates',
        ),
        'cleaning steps, in order; cleaning_steps.py defines them',
    ),
    languages=Field(('en',), "for 'keep_languages'; 'split_sentences' uses the first"),
    min_characters=Field(16, "'drop_short' drops shorter documents"),
    max_characters=Field(1_000_000, "'drop_long' drops longer documents", AT_LEAST_1),
    max_repetition=Field(
        0.5, "'drop_repetitive' allows this share of repeated lines or 5-grams", SHARE
    ),
    near_duplicate_similarity=Field(
        0.8, "'drop_near_duplicates' drops text this similar to another", SOME_SHARE
    ),
    evaluation_sets=Field((), "JSON Lines or text files, for 'decontaminate'"),
    decontaminate_ngram=Field(13, 'words that a document may not share', AT_LEAST_1),
    bad_words=Field('', "text file, a word in a line, for 'c4_bad_words'"),
    quality_classifier=Field('', "run directory of `classifier`, for 'keep_quality'"),
    min_quality=Field(0.5, "'keep_quality' drops text of a lower score", SHARE),
    validation_fraction=Field(0.05, 'share held out, by a hash of the id', INNER_SHARE),
    context=Field(
        128,
        f"tokens in an example; 0: start.run's model.context, at most the larger of "
        f'{DEFAULT_CONTEXT:,} and its data.context',
    ),
    **AUGMENTATION,
    workers=Field(0, 'processes that clean and tokenize; 0: one per CPU'),
)

TOKENIZER = dict(
    kind=Field('bpe', 'algorithm (Sennrich 2016, Kudo 2018)', one_of('bpe', 'unigram')),
    vocab_size=Field(2048, 'tokens, with special tokens and the 256 bytes', AT_LEAST_1),
    train_characters=Field(20_000_000, 'maximum size of the training text', AT_LEAST_1),
)

MESH = dict(
    data=Field(-1, 'devices that split the batch; -1: all that remain', MESH_SIZE),
    fsdp=Field(1, 'devices that split batch, parameters, optimizer state', MESH_SIZE),
    tensor=Field(1, 'devices that split heads, feed-forward, vocabulary', MESH_SIZE),
    context=Field(1, 'devices that split the sequence', MESH_SIZE),
)

# One of several processes that train together; RUN/config.json does not hold this.
DISTRIBUTED = dict(
    enabled=Field(
        'auto',
        'auto: if the platform says so; distributed.py',
        one_of('auto', 'on', 'off'),
    ),
    coordinator=Field('', "HOST:PORT of process 0; '': what the platform says"),
    num_processes=Field(0, 'number of processes; 0: what the platform says'),
    process_id=Field(
        -1, 'number of this process; -1: what the platform says', NUMBER_OR_NONE
    ),
    join_timeout=Field(300, 'seconds in which all have to start', AT_LEAST_1),
    timeout=Field(600, 'seconds without progress that end a process', AT_LEAST_1),
    first_timeout=Field(1800, 'same the first time, with compilation', AT_LEAST_1),
)

OPTIM = dict(
    name=Field('muon', 'optimizer: adamw, adafactor, lion or muon'),
    learning_rate=Field(3e-3, 'peak; for muon, of parameters that are not matrices'),
    matrix_learning_rate=Field(0.02, 'peak for matrices of the layers, only for muon'),
    embedding_scale=Field(1.0, 'factor of learning_rate for the embeddings'),
    head_scale=Field(1.0, 'factor of learning_rate for an untied output head'),
    parametrization=Field(
        'standard',
        "how the width enters; 'mup' keeps the best learning rate; parametrization.py",
        one_of('standard', 'mup'),
    ),
    base_width=Field(0, 'for mup: the model.width that the learning rate was tuned at'),
    schedule=Field(
        'wsd',
        'how the learning rate changes over time; see schedules.py',
        one_of('constant', 'cosine', 'linear', 'inverse_sqrt', 'wsd'),
    ),
    warmup_steps=Field(20, 'steps in which the learning rate rises to the peak'),
    decay_fraction=Field(0.5, 'share of the steps in which wsd decays', SHARE),
    final_scale=Field(0.0, 'final learning rate as a share of the peak', SHARE),
    beta1=Field(0.9, 'decay rate of the mean of gradients', BELOW_ONE),
    beta2=Field(0.95, 'decay rate of the mean of squared gradients', BELOW_ONE),
    epsilon=Field(1e-8, 'added to the root of the mean of squared gradients'),
    momentum=Field(0.95, 'momentum of muon', BELOW_ONE),
    weight_decay=Field(0.0, 'weight decay of matrices and embeddings, not of vectors'),
    clip_norm=Field(1.0, 'maximum global norm of the gradients; 0: no clipping'),
    ema=Field(0.0, 'decay of the weight average for evaluation; 0: none', BELOW_ONE),
)

TRAIN = dict(
    num_steps=Field(1000, 'number of updates', AT_LEAST_1),
    batch_size=Field(16, 'examples in one update, over all devices', AT_LEAST_1),
    accumulation=Field(1, 'micro-batches in one update', AT_LEAST_1),
    z_loss=Field(0.0, 'coefficient of the squared log-partition function'),
    label_smoothing=Field(0.0, 'share of the target spread over all tokens', BELOW_ONE),
    loss_chunk=Field(0, 'tokens whose logits are in memory at once; 0: all'),
    eval_every=Field(200, 'steps between validations, and the last step', AT_LEAST_1),
    eval_batches=Field(8, 'validation batches; 0: the whole validation set', free=True),
    patience=Field(0, 'validations without a lower loss before stopping; 0: no limit'),
    max_bad_steps=Field(
        10, 'non-finite updates in a row that stop training', AT_LEAST_1, free=True
    ),
    profile_step=Field(
        -1, 'first of 3 profiled steps; -1: none', STEP_OR_NONE, free=True
    ),
    peak_tflops=Field(0.0, 'TFLOP/s of a device, for MFU; 0: from a table', free=True),
    compilation_cache=Field(
        '', "folder of compiled programs, local or on gs://; '': none", free=True
    ),
)

CHECKPOINT = dict(
    every=Field(
        200, 'steps between checkpoints; the end and SIGTERM save, too', AT_LEAST_1
    ),
    keep=Field(2, 'number of newest checkpoints to keep', AT_LEAST_1),
    keep_best=Field(1, 'also keep this many with the lowest validation loss'),
)

EVAL = dict(
    stride=Field(0, 'tokens between windows of a long document; 0: half the context'),
    batch_size=Field(32, 'windows in a batch', AT_LEAST_1),
    documents=Field(0, 'validation documents, chosen by a hash of the id; 0: all'),
    conversations=Field(200, "held-out conversations for 'reply' and 'choice'; 0: all"),
    choices=Field(4, "candidate replies in the task 'choice'", AT_LEAST_2),
    max_tokens=Field(48, 'tokens of a reply; at most half the context', AT_LEAST_1),
    temperature=Field(0.0, 'sampling temperature of replies; 0: greedy'),
    top_k=Field(0, 'sample from the k likeliest tokens; 0: from all'),
    top_p=Field(1.0, 'sample from this share of the probability; 1: all', SOME_SHARE),
    resamples=Field(1000, 'resamples of bootstrap and permutation tests', AT_LEAST_1),
    level=Field(0.95, 'confidence level of intervals', INNER_SHARE),
    seed=Field(0, 'seed of prompts, sampling and resamples', SEED),
)

CHAT = dict(
    template=Field(
        'text',
        "prompt format: 'turns' for fine-tuned models; '': that of start.run",
        one_of('text', 'turns', ''),
    )
)

SAMPLE = dict(
    prompts=Field(
        ('Hello! How are you today?\n\n', 'I really like', ''),
        'texts that the model continues',
    ),
    max_tokens=Field(96, 'tokens to generate for each prompt', AT_LEAST_1),
    temperature=Field(0.8, 'sampling temperature; 0: greedy'),
    top_k=Field(0, 'sample from the k likeliest tokens; 0: from all'),
    top_p=Field(0.95, 'sample from this share of the probability; 1: all', SOME_SHARE),
    min_p=Field(0.0, 'minimum probability relative to the likeliest token', SHARE),
)

# The earlier run that a later stage is initialised from.
START = dict(
    run=Field('', 'run directory of the earlier stage; gives model and tokenizer'),
    step=Field(-1, 'checkpoint step; -1: the lowest validation loss', STEP_OR_NONE),
)

# Conversations for fine-tuning; `data` decides how they are cleaned and split.
DIALOGUE = dict(
    sources=Field({}, "of kind 'chat' or 'tfds', under names of your choice", SOURCE)
)

# Supervised fine-tuning.
SFT = dict(
    epochs=Field(3.0, 'passes over the conversations; 0: train.num_steps decides'),
    pretraining_share=Field(0.0, 'share of rows from the text of start.run', BELOW_ONE),
    neftune_alpha=Field(0.0, 'size of the noise on embeddings (NEFTune); 0: none'),
)

# Low-rank adaptation (Hu et al. 2021): W + (alpha / rank) A B, where W is frozen.
LORA = dict(
    rank=Field(0, 'columns of A; 0: train all parameters'),
    alpha=Field(16.0, 'A B is multiplied by alpha / rank', POSITIVE),
    targets=Field(
        ('query', 'key', 'value', 'out', 'up', 'down'),
        "adapted matrices; 'swiglu' also has 'gate'",
    ),
)

# A reward model, and the ratings or preferences that it is trained on.
REWARD = dict(
    target=Field(
        'sum',
        'one rating, the sum of all three, or what people did',
        one_of('sum', 'witty', 'interesting', 'upbeat', 'replied', 'continued'),
    ),
    preferences=Field('', 'train on pairs or rankings instead: file, folder or glob'),
    columns=Field((), "other names of their fields, such as ('prompt=question',)"),
    clean=Field((), 'cleaning steps of preferences', before=('data.clean',)),
    test_fraction=Field(
        0.15,
        'share of conversations for testing; at least data.validation_fraction',
        INNER_SHARE,
    ),
    validation_fraction=Field(0.1, 'a further share, for early stopping', INNER_SHARE),
    loss=Field(
        'pairwise',
        "'regression' for ratings, 'binary' for what people did",
        one_of('pairwise', 'regression', 'binary'),
    ),
    group=Field(8, 'conversations in a group; each pair in it is compared', AT_LEAST_2),
    margin=Field(0.0, 'factor of the rating difference that rewards must differ by'),
    centring=Field(0.01, "coefficient of the squared sum of a pair's rewards"),
    epochs=Field(0.0, 'passes over the conversations; 0: train.num_steps decides'),
)

# Training on preference pairs without a reward model: DPO and related losses.
PREFERENCE = dict(
    path=Field('', 'preference pairs, or labels for kto: file, folder or glob'),
    columns=Field((), "other names of their fields, such as ('prompt=question',)"),
    validation_fraction=Field(0.1, 'share of prompts held out, by a hash', INNER_SHARE),
    epochs=Field(1.0, 'passes over the pairs; 0: train.num_steps decides'),
    loss=Field('dpo', 'the objective', one_of('dpo', 'ipo', 'kto', 'orpo', 'simpo')),
    beta=Field(0.1, 'strength of the KL constraint; simpo: reward scale', POSITIVE),
    label_smoothing=Field(0.0, 'dpo: assumed share of wrong labels (cDPO)', BELOW_HALF),
    margin=Field(1.0, 'simpo: target reward margin (gamma)'),
    odds_weight=Field(0.1, 'orpo: weight of the odds-ratio loss (lambda)'),
    desirable_weight=Field(1.0, 'kto: weight of chosen replies'),
    undesirable_weight=Field(1.0, 'kto: weight of rejected replies'),
    nll=Field(0.0, 'coefficient of the loss per token of chosen replies'),
    reference=Field('', "run directory of the reference model; '': start.run"),
)

# Problems, and the rewards of replies to them.
TASK = dict(
    name=Field('chain_sum', "dataset of reasoning-gym; 'skills' are our own"),
    options=Field(
        dict(min_terms=2, max_terms=2, min_digits=1, max_digits=2),
        'options of the dataset',
    ),
    path=Field(
        '',
        'your problems instead: JSON Lines with "prompt" and "answer", or a folder '
        'with train.jsonl and validation.jsonl of conversations, such as RUN/dialogue',
    ),
    chats=Field('', 'folder of conversations whose prompts are mixed in for training'),
    chat_share=Field(0.25, 'share of these prompts among all', SHARE),
    held_out_fraction=Field(
        0.1, 'share of problems held out, by a hash of the content', LESS_THAN_HALF
    ),
    problems=Field(10_000, 'maximum training problems, without repeats', AT_LEAST_1),
    demonstrations=Field(1200, 'training problems with answers, for sft', free=True),
    validation=Field(200, 'problems that choose the checkpoint', AT_LEAST_1, free=True),
    held_out=Field(1000, 'problems that `eval` reports on', AT_LEAST_1, free=True),
    samples=Field(8, 'replies to a problem, for pass@k in eval', AT_LEAST_1, free=True),
    rewards=Field(
        dict(correct=dict(function='correct')),
        'rewards under names of your choice; their weighted sum counts',
        REWARD_PART,
    ),
)

# How the stages `select` and `best_of` sample replies.
GENERATION = dict(
    max_tokens=Field(16, 'maximum tokens of a reply, with the stop token', AT_LEAST_1),
    temperature=Field(1.0, 'sampling temperature', POSITIVE),
    slots=Field(64, 'replies that an engine generates at once', AT_LEAST_1),
    generation_tensor=Field(1, 'devices per copy of weights', AT_LEAST_1),
)

# Training data from replies of the model: chosen replies and preference pairs.
SELECT = dict(
    problems=Field(2000, 'training problems, each used once', AT_LEAST_1),
    replies=Field(8, 'replies per problem (n)', AT_LEAST_2),
    by=Field('verifier', 'what ranks the replies', one_of('verifier', 'reward')),
    keep=Field(1, 'maximum number of different replies to keep for a problem'),
    pairs=Field(1, 'maximum number of pairs for a problem'),
    noise=Field(0.0, 'share of pairs to swap, to study wrong labels', UP_TO_HALF),
    **GENERATION,
)

# Best-of-n: of n replies the one with the highest reward, judged by a gold reward.
BEST_OF = dict(
    judge=Field('', "run directory of the gold reward model; '': the task's verifier"),
    problems=Field(200, 'number of held-out problems', AT_LEAST_2),
    samples=Field(64, 'replies per problem (N); n is 1, 2, 4, … up to N', AT_LEAST_2),
    **GENERATION,
)

# A proxy reward, optimised by best-of-n and by PPO, and judged by `best_of.judge`.
OVEROPTIMIZATION = dict(
    proxy=Field('', "run of the proxy reward model; '': trained in RUN/proxy"),
    policy=Field('', "run of PPO against the proxy; '': trained in RUN/ppo"),
    replies=Field(8, 'replies of each checkpoint to each held-out problem', AT_LEAST_1),
)

# ---- all sections

BASE = dict(  # sections of every experiment
    seed=Field(0, 'seed of shuffling, initialisation and dropout', SEED),
    data=DATA,
    tokenizer=TOKENIZER,
    model=MODEL,
    mesh=MESH,
    distributed=DISTRIBUTED,
    optim=OPTIM,
    train=TRAIN,
    checkpoint=CHECKPOINT,
    eval=EVAL,
    chat=CHAT,
    sample=SAMPLE,
)
SCHEMA = BASE | dict(  # sections that only some stages need
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
