"""Every config field, its default and one line on what it does.

An experiment calls `base()` and changes fields; it never inherits. The other
functions here return sections that several experiments share.
"""

from ml_collections import ConfigDict


def section(**fields) -> ConfigDict:
    """A section of a config; to change a field that it does not have is an error.

    What is nested in it has names of the user's own, and takes new ones.
    """
    config = ConfigDict(fields).lock()
    for value in config.values():
        if isinstance(value, ConfigDict):
            value.unlock()
    return config


def source(kind: str, path: str, **fields) -> ConfigDict:
    """One source of documents.

    Args:
        kind: 'tfds', 'text', 'jsonl', 'parquet' or 'chat'.
        path: the TFDS builder's name for 'tfds', else a file, a folder or a
            glob, local or on `gs://`.
        **fields: any of the fields below.
    """
    config = section(
        kind=kind,
        path=path,
        split='train',  # the TFDS split; other kinds have one
        text_field='text',  # the column or key that holds the text
        id_field='',  # the key that names the document; '': 'id', else its place
        weight=0.0,  # share of the training examples; 0: by size
        limit=0,  # documents read at most; 0: all
        licence='',  # recorded in the manifest; TFDS sources know theirs
    )
    config.update(fields)
    return config


def base() -> ConfigDict:
    """The fields of every experiment, with defaults that train anywhere."""
    config = ConfigDict()
    config.seed = 0  # of shuffling, initialisation, dropout

    config.data = section(
        sources=dict(
            chitchat=source('tfds', 'chitchat'),
        ),
        # cleaning steps in order, by their names in STEPS of cleaning_steps.py
        clean=(
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
        languages=('en',),  # kept by the step 'keep_languages'
        min_characters=16,  # shorter documents go, by 'drop_short'
        max_characters=1_000_000,  # longer ones, by 'drop_long'
        max_repetition=0.5,  # share of repeated lines or 5-grams
        validation_fraction=0.05,  # of conversations, by a hash of the id
        context=128,  # tokens in a packed example
        workers=0,  # processes that clean and tokenise; 0: the CPU count
    )

    config.tokenizer = section(
        kind='bpe',  # 'bpe' or 'unigram'
        vocab_size=2048,  # specials and the 256 bytes included
        train_characters=20_000_000,  # at most this much text is read
    )

    config.model = section(
        num_layers=3,
        width=192,  # D
        num_heads=3,  # N
        num_kv_heads=0,  # K; 0: as num_heads, 1: multi-query
        head_dim=0,  # H; 0: width / num_heads
        mlp_width=0,  # F; 0: 4 width, and 8/3 width for 'swiglu'
        context=128,  # positions the model has; data.context may be less
        position='rotary',  # 'rotary', 'learned' or 'none'
        rotary_base=10_000.0,
        norm='rmsnorm',  # 'rmsnorm' or 'layernorm'
        norm_epsilon=1e-5,
        mlp='relu2',  # 'gelu', 'swiglu' or 'relu2'
        qk_norm=True,  # normalise each head's query and key
        windows=(0,),  # attention window by layer, repeated; 0: all
        attention_softcap=0.0,  # c tanh(score / c); 0: none
        logit_softcap=0.0,  # c tanh(logit / c); 0: none
        bias=False,  # in the linear layers and the layer norms
        tie_embeddings=False,  # the head is the embedding's transpose
        embedding_dropout=0.0,
        attention_dropout=0.0,
        residual_dropout=0.0,
        init_std=0.02,  # of the layers' matrices
        embedding_std=0.02,  # of an untied embedding
        dtype='float32',  # of the matrix products; weights are float32
        remat='none',  # 'none', 'full', 'dots' or 'block_outputs'
        unroll=1,  # layers in one iteration of the scan
    )

    config.mesh = section(
        data=-1,  # -1: the devices that the other axes leave
        fsdp=1,  # parameters and optimizer state split by width
        tensor=1,  # heads, feed-forward and vocabulary split
        context=1,  # the sequence split
    )

    config.optim = section(
        name='muon',  # 'adamw', 'adafactor', 'lion' or 'muon'
        learning_rate=3e-3,  # peak; with 'muon', of what is no matrix
        matrix_learning_rate=0.02,  # peak of the matrices, 'muon' only
        embedding_scale=1.0,  # times learning_rate, for the embeddings
        head_scale=1.0,  # times learning_rate, for an untied head
        schedule='wsd',  # constant, cosine, linear, inverse_sqrt, wsd
        warmup_steps=20,
        decay_fraction=0.5,  # of the steps, at the end, for 'wsd'
        final_scale=0.0,  # the last learning rate as a share of the peak
        beta1=0.9,
        beta2=0.95,
        epsilon=1e-8,
        momentum=0.95,  # of 'muon'
        weight_decay=0.0,  # on matrices and embeddings, never on vectors
        clip_norm=1.0,  # of the global gradient norm; 0: none
        ema=0.0,  # decay of the averaged weights that are evaluated; 0: none
    )

    config.train = section(
        num_steps=1000,
        batch_size=16,  # examples in one update, over all devices
        accumulation=1,  # micro-batches in one update
        z_loss=0.0,  # times the squared log-partition
        label_smoothing=0.0,
        loss_chunk=0,  # tokens of logits alive at once; 0: all
        eval_every=200,  # steps between validations; the last has one
        eval_batches=8,  # batches of the validation split; 0: all
        patience=0,  # validations without a better loss; 0: no early stop
        max_bad_steps=10,  # non-finite updates in a row before the run stops
        profile_step=-1,  # the step from which three are traced; -1: none
        peak_tflops=0.0,  # of one device, for MFU; 0: from the table, of bfloat16
    )

    config.checkpoint = section(
        every=200,  # steps; the last step and SIGTERM save as well
        keep=2,  # the newest
        keep_best=1,  # by validation loss, besides; 0: none
    )

    config.eval = section(
        stride=0,  # tokens between windows; 0: half the context
        batch_size=32,  # windows at once
        documents=0,  # of the validation split, by a hash of their ids; 0: all
        conversations=200,  # held out, for 'reply' and 'choice'; 0: all
        choices=4,  # replies that 'choice' chooses among
        max_tokens=48,  # of a reply; at most half the context
        temperature=0.0,  # of replies; 0: the likeliest token
        top_k=0,  # 0: all
        top_p=1.0,  # 1: all
        resamples=1000,  # of the bootstrap, and of permutation tests
        level=0.95,  # share of the resamples that an interval holds
        seed=0,  # of prompts, draws and resamples
    )

    config.chat = section(
        template='text',  # 'text' after pretraining, 'turns' after fine-tuning
    )

    config.sample = section(
        prompts=('Hello! How are you today?\n\n', 'I really like', ''),
        max_tokens=96,
        temperature=0.8,  # 0: the likeliest token
        top_k=0,  # 0: all
        top_p=0.95,  # 1: all
        min_p=0.0,  # share of the likeliest token's probability
    )
    return config


def start_section(run: str = '', step: int = -1) -> ConfigDict:
    """The earlier run that a later stage begins with."""
    return section(
        run=run,  # its run directory; model and tokenizer are taken from it
        step=step,  # of its checkpoint; -1: the best by validation loss
    )


def dialogue_section(**sources: ConfigDict) -> ConfigDict:
    """Conversations to fine-tune on: `source(...)` of kind 'chat' or 'tfds' each.

    How they are cleaned and split is in `data`, as for pretraining.
    """
    return ConfigDict(dict(sources=sources))


def sft_section() -> ConfigDict:
    """Supervised fine-tuning."""
    return section(
        epochs=3.0,  # passes over the conversations; 0: train.num_steps instead
        pretraining_share=0.0,  # of each batch's rows: text of start.run
    )


def lora_section() -> ConfigDict:
    """Low-rank adaptation (Hu et al. 2021): w + alpha / rank A B, with w frozen."""
    return section(
        rank=0,  # columns of A; 0: all parameters are trained instead
        alpha=16.0,
        targets=('query', 'key', 'value', 'out', 'up', 'down'),  # or 'gate'
    )


def reward_part(function: str, weight: float = 1.0, run: str = '') -> ConfigDict:
    """One reward of the mixture `task.rewards`.

    Args:
        function: a name in REWARDS of gptjax/post/reward_functions.py, 'model' for a
            reward model, or the full name of a function that can be imported.
        weight: the total reward is the sum of weight x reward.
        run: the run directory of a reward model.
    """
    return ConfigDict(dict(function=function, weight=weight, run=run))


def task_section() -> ConfigDict:
    """Problems that replies are judged on."""
    return section(
        name='chain_sum',  # a dataset of reasoning-gym
        options=dict(min_terms=2, max_terms=2, min_digits=1, max_digits=2),
        # JSON Lines of the user's instead: "prompt", "answer"; or a folder with
        path='',  # train.jsonl and validation.jsonl of conversations, as RUN/dialogue
        held_out_fraction=0.1,  # of problems, by content; validation has as much
        problems=10_000,  # to train on, at most; each is there once
        demonstrations=1200,  # of these, with answers, by the stage `task`
        validation=200,  # problems that choose a checkpoint
        held_out=1000,  # problems that `eval` reports on
        samples=8,  # replies that `eval` draws to each, for pass@8
        rewards=dict(correct=reward_part('correct')),
    )


def policy_section() -> ConfigDict:
    """What PPO and GRPO have in common: rollouts and how they are trained on."""
    return section(
        prompts=32,  # in a rollout
        replies=8,  # G, to each prompt; train.batch_size of all are an update
        epochs=1,  # passes over a rollout
        max_tokens=16,  # of a reply, its stop token included
        temperature=1.0,  # of the policy: drawn and trained at
        top_k=0,  # these three must stay off: what is drawn from is trained
        top_p=1.0,
        min_p=0.0,
        slots=64,  # replies drawn at once
        generation_tensor=1,  # devices that generation splits the weights over
        kl_reward=0.0,  # times k1, taken from the reward; not with kl_loss
        kl_loss=0.0,  # times k2, added to the loss
        kl_target=6.0,  # nats a reply, where the coefficient adapts
        kl_horizon=0,  # replies over which it adapts; 0: it is fixed
        entropy=0.0,  # times the entropy, taken from the loss
        missing_eos_penalty=0.0,  # taken from the score of a truncated reply
        overlong_buffer=0,  # tokens before max_tokens that cost; 0: none do
        reward_scale=1.0,  # divides scores
        reward_running_scale=False,  # also by their running standard deviation
        reward_clip=0.0,  # largest absolute score then; 0: none
    )


def ppo_section() -> ConfigDict:
    """Proximal policy optimisation (Schulman et al. 2017)."""
    return section(
        critic='head',  # 'head' on the policy, or 'network' of its own
        critic_run='',  # a network begins as this run's reward model; '': as the policy
        gamma=1.0,  # discount of later rewards
        lam=0.95,  # of generalised advantage estimation
        clip_low=0.2,  # the ratio may fall by this
        clip_high=0.2,  # and rise by this
        value_clip=0.2,  # values may move so far from the rollout's; 0: any
        value_coefficient=0.1,  # times the value loss
        whiten=True,  # advantages to mean 0 and variance 1
        warm_up=0,  # rollouts at the start that train only the critic
        ptx=0.0,  # times the language loss on pretraining text, added
        ptx_run='',  # the run whose RUN/prepared is that text
        ptx_rows=32,  # of that text in an update
    )


def grpo_section() -> ConfigDict:
    """Group-relative policy optimisation (Shao et al. 2024) and its kin."""
    return section(
        advantage='grpo',  # 'grpo', 'dr_grpo', 'rloo' or 'reinforce'
        objective='clipped',  # 'clipped', 'gspo' or 'reinforce'
        normaliser='sequence',  # 'sequence', 'token', 'constant' or 'sum'
        clip_low=0.2,  # the ratio may fall by this
        clip_high=0.2,  # and rise by this
        resampling=0,  # further draws for groups whose scores are all equal
    )


def reward_section() -> ConfigDict:
    """A reward model, and the ratings or preferences that it learns from."""
    return section(
        target='sum',  # of ratings, or 'witty', 'interesting', 'upbeat' alone;
        # or what people did: 'replied', 'continued'
        preferences='',  # a user's pairs instead: a JSON Lines file, folder, glob
        test_fraction=0.15,  # of conversations, with all that pretraining held out
        validation_fraction=0.1,  # the next ones, for early stopping
        loss='pairwise',  # 'regression' of ratings, 'binary' of what people did
        group=8,  # conversations compared with each other, all pairs of them
        margin=0.0,  # of a pair: times the difference of standardised ratings
        centring=0.01,  # times the squared sum of a pair's rewards
        epochs=0.0,  # passes over the conversations; 0: train.num_steps instead
    )


def preference_section() -> ConfigDict:
    """Learning from preferences directly, by DPO and its kin."""
    return section(
        path='',  # pairs: a JSON Lines file, folder, glob
        validation_fraction=0.1,  # of prompts, by a hash
        epochs=1.0,  # passes over the pairs; 0: train.num_steps instead
        loss='dpo',  # 'dpo', 'ipo', 'kto', 'orpo' or 'simpo'
        beta=0.1,  # of the KL that it stands for; of 'simpo', a scale; not 'orpo'
        label_smoothing=0.0,  # of 'dpo': share of labels that are wrong (cDPO)
        margin=1.0,  # of 'simpo': gamma
        odds_weight=0.1,  # of 'orpo': lambda
        desirable_weight=1.0,  # of 'kto': of chosen replies
        undesirable_weight=1.0,  # of 'kto': of rejected replies
        nll=0.0,  # times the loss per token of chosen replies, added
        reference='',  # the run whose model is the reference; '': start.run
    )


def select_section() -> ConfigDict:
    """Training data from a model's own replies: rejection sampling and pairs."""
    return section(
        problems=2000,  # of the task's training part, each once
        replies=8,  # n, drawn to each
        by='verifier',  # right and wrong; 'reward': best, worst by task.rewards
        keep=1,  # m, replies kept of a problem at most, all different
        pairs=1,  # of a problem at most
        noise=0.0,  # share of pairs turned round, to study labels that are wrong
        max_tokens=16,  # of a reply, its stop token included
        temperature=1.0,
        slots=64,  # replies drawn at once
        generation_tensor=1,  # devices that generation splits the weights over
    )


def best_of_section() -> ConfigDict:
    """Best-of-n: the reply of n that a reward likes best, judged by another."""
    return section(
        judge='',  # a reward model's run, the gold reward; '': the task's verifier
        problems=200,  # held-out ones
        samples=64,  # N, drawn to each; n is 1, 2, 4, … up to N
        max_tokens=16,  # of a reply, its stop token included
        temperature=1.0,
        slots=64,  # replies drawn at once
        generation_tensor=1,  # devices that generation splits the weights over
    )


def overoptimization_section() -> ConfigDict:
    """A proxy reward, optimised by best-of-n and by PPO, judged by `best_of.judge`."""
    return section(
        proxy='',  # a reward model's run; '': one is made in RUN/proxy
        policy='',  # a run of PPO against it; '': one is made in RUN/ppo
        replies=8,  # drawn to each held-out problem by each checkpoint of it
    )
