"""Every config field, its default and one line on what it does.

An experiment calls `base()` and changes fields; it never inherits. The other
functions here return sections that several experiments share.
"""

from ml_collections import ConfigDict


def source(kind: str, path: str, **fields) -> ConfigDict:
    """One source of documents.

    Args:
        kind: 'tfds', 'text', 'jsonl', 'parquet' or 'chat'.
        path: the TFDS builder's name for 'tfds', else a file, a folder or a
            glob, local or on `gs://`.
        **fields: any of the fields below.
    """
    config = ConfigDict(
        dict(
            kind=kind,
            path=path,
            split='train',  # the TFDS split; other kinds have one
            text_field='text',  # the column or key that holds the text
            id_field='',  # the key that names the document; '': 'id', else its place
            weight=0.0,  # share of the training examples; 0: by size
            limit=0,  # documents read at most; 0: all
            licence='',  # recorded in the manifest; TFDS sources know theirs
        )
    )
    config.update(fields)
    return config


def base() -> ConfigDict:
    """The fields of every experiment, with defaults that train anywhere."""
    config = ConfigDict()
    config.seed = 0  # of shuffling, initialisation, dropout

    config.data = ConfigDict(
        dict(
            sources=dict(
                chitchat=source('tfds', 'chitchat'),
            ),
            # cleaning steps in order, by their names in STEPS of gptjax/data/clean.py
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
    )

    config.tokenizer = ConfigDict(
        dict(
            kind='bpe',  # 'bpe' or 'unigram'
            vocab_size=2048,  # specials and the 256 bytes included
            train_characters=20_000_000,  # at most this much text is read
        )
    )

    config.model = ConfigDict(
        dict(
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
    )

    config.mesh = ConfigDict(
        dict(
            data=-1,  # -1: the devices that the other axes leave
            fsdp=1,  # parameters and optimizer state split by width
            tensor=1,  # heads, feed-forward and vocabulary split
            context=1,  # the sequence split
        )
    )

    config.optim = ConfigDict(
        dict(
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
    )

    config.train = ConfigDict(
        dict(
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
            peak_tflops=0.0,  # of one device, for MFU; 0: from the table
        )
    )

    config.checkpoint = ConfigDict(
        dict(
            every=200,  # steps; the last step and SIGTERM save as well
            keep=2,  # the newest
            keep_best=1,  # by validation loss, besides; 0: none
        )
    )

    config.eval = ConfigDict(
        dict(
            stride=0,  # tokens between windows; 0: half the context
            batch_size=32,  # windows at once
            documents=0,  # of the validation split; 0: all
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
    )

    config.chat = ConfigDict(
        dict(
            template='text',  # 'text' after pretraining, 'turns' after fine-tuning
        )
    )

    config.sample = ConfigDict(
        dict(
            prompts=('Hello! How are you today?\n\n', 'I really like', ''),
            max_tokens=96,
            temperature=0.8,  # 0: the likeliest token
            top_k=0,  # 0: all
            top_p=0.95,  # 1: all
            min_p=0.0,  # share of the likeliest token's probability
        )
    )
    return config
