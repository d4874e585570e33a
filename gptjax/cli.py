"""The command line: each stage, from its flags to one function.

Stages import what they need when they run: `--help` answers at once, and
TensorFlow is loaded only where data is read.
"""

import os
import signal
import sys
from pathlib import Path

from gptjax import command_line, opening
from gptjax.command_line import FLAGS
from gptjax.core import console, process, storage
from gptjax.core.config import check_fields
from gptjax.core.console import UserError
from gptjax.core.process import CTRL_C, INTERRUPTED

# TensorFlow greets on standard error, about hardware that it is not to use.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

USER_ERROR = 2


def main(argv: list[str]) -> int:
    """Runs one stage; the exit code: 0, 2 (a user's error) or a signal's."""
    before = process.take()
    try:
        stage, words = command_line.parse(argv, STAGES)
        if stage is None:
            print(command_line.usage(HELP))
            return 0
        return STAGES[stage](words) or 0
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print('\ninterrupted; the same command goes on from there', file=sys.stderr)
        return CTRL_C
    except Exception as error:
        why = storage.unwritable(error, opening.workdir_given())
        if why is None:
            raise
        print(
            f'error: --workdir={FLAGS.workdir}: cannot write there ({why}): free '
            'some space, or use another --workdir',
            file=sys.stderr,
        )
        return USER_ERROR
    finally:
        opening.HELD.close()
        process.give_back(before)


# ---- stages -------------------------------------------------------------------


def _data(words):
    from gptjax.data import ledger
    from gptjax.data.documents import DOCUMENTS

    config, workdir = opening.open_run(words)
    if FLAGS.step is None:
        opening.make(config, workdir, [DOCUMENTS])
        return
    for line in ledger.describe_batch(config, workdir, FLAGS.step):
        print(line)


def _tokenizer(words):
    from gptjax.tokenizer.train_tokenizer import TOKENIZER

    config, workdir = opening.open_run(words)
    if 'start' in config:
        raise UserError(
            f'the tokenizer is that of start.run={config.start.run}: go on with '
            '`prepare` or `pretrain`'
        )
    opening.make(config, workdir, [TOKENIZER])


def _prepare(words):
    config, workdir = opening.open_run(words)
    opening.make(config, workdir, _before_training(config))


def _before_training(config):
    """The parts of RUN that pretraining takes; from an earlier run, its tokenizer."""
    from gptjax.data.documents import DOCUMENTS
    from gptjax.data.packed_documents import PACKED_DOCUMENTS
    from gptjax.tokenizer.train_tokenizer import TOKENIZER

    learnt = [] if 'start' in config else [TOKENIZER]
    return [DOCUMENTS, *learnt, PACKED_DOCUMENTS]


def _pretrain(words):
    config, workdir = opening.open_run(words)
    from gptjax.train import pretrain

    pretrain.check_pretrain(config)
    opening.make(config, workdir, _before_training(config))
    return _told(pretrain.pretrain(config, workdir), 'bits per byte')


def _sft(words):
    config, workdir = opening.open_run(words, 'sft')
    from gptjax.data.packed_conversations import DIALOGUE
    from gptjax.train import sft

    sft.check_sft(config)
    opening.make(config, workdir, [DIALOGUE])
    summary = sft.fine_tune(config, workdir)
    return _told(summary, 'bits per byte of replies')


def _reward(words):
    config, workdir = opening.open_run(words, 'reward')
    from gptjax.data.ratings import RATINGS
    from gptjax.eval import reward_evaluation
    from gptjax.post import reward

    config = reward.complete(config, workdir)
    reward.check_reward(config)
    opening.make(config, workdir, [RATINGS])
    summary = reward.train_reward(config, workdir)
    code = _told(summary)
    if not code:
        reward_evaluation.evaluate_reward(config, workdir)
    return code


def _dpo(words):
    config, workdir = opening.open_run(words, 'dpo')
    from gptjax.data.preference_pairs import PAIRS
    from gptjax.post import dpo

    dpo.check_config(config)
    opening.make(config, workdir, [PAIRS])
    return _told(dpo.train_on_pairs(config, workdir))


def _select(words):
    config, workdir = opening.open_run(words, 'select')
    from gptjax.post import select_replies

    opening.make(config, workdir, [select_replies.SELECTED])
    print(f'for sft: {workdir}/selected/chats.jsonl')
    print(f'for dpo and reward: {workdir}/selected/pairs.jsonl')


def _task(words):
    from gptjax.post.problems.verifiable_tasks import PROBLEMS

    config, workdir = opening.open_run(words, 'task')
    opening.make(config, workdir, [PROBLEMS])
    print(f'for pretrain and sft: {workdir}/task/train.jsonl')


def _ppo(words):
    config, workdir = opening.open_run(words, 'ppo')
    from gptjax.post import ppo

    ppo.check_config(config)
    opening.make(config, workdir, [])
    return _told(ppo.ppo(config, workdir))


def _grpo(words):
    config, workdir = opening.open_run(words, 'grpo')
    from gptjax.post import grpo

    grpo.check_config(config)
    opening.make(config, workdir, [])
    return _told(grpo.grpo(config, workdir))


def _best_of(words):
    config, workdir = opening.open_run(words, 'best_of')
    from gptjax.eval import best_of

    opening.make(config, workdir, [])
    print(best_of.best_of_text(best_of.best_of(config, workdir)))


def _overoptimize(words):
    config, workdir = opening.open_run(words, 'overoptimize')
    from gptjax.eval import overoptimization
    from gptjax.eval.report import overoptimization_page

    opening.make(config, workdir, [])
    found = overoptimization.overoptimize(config, workdir)
    if found.get('reason') == 'interrupted':
        return _told(found)
    print(overoptimization_page.overoptimization_text(found))
    print(f'Made: {workdir / overoptimization.PAGE}')


def _told(summary, unit=''):
    """Says how training ended; the exit code."""
    from gptjax.parallel.multihost import print_once

    if summary['reason'] == 'interrupted':
        print_once(
            f'saved at step {summary["step"]:,}; the same command goes on from there'
        )
        return CTRL_C if summary['signal'] == signal.SIGINT else INTERRUPTED
    loss = summary['validation']
    bits = f', {loss["bits_per_byte"]:.4f} {unit}' if unit else ''
    print_once(
        f'{summary["reason"]} at step {summary["step"]:,}: validation loss '
        f'{loss["loss"]:.4f}{bits}'
    )
    return 0


def _eval(words):
    copy = Path(FLAGS.json).expanduser().absolute() if FLAGS.json else None
    if copy is not None and copy.is_dir():
        raise UserError(f'--json={copy} is a folder: name a file')
    if copy is not None:
        try:
            storage.try_writing(copy)
        except OSError as error:
            raise UserError(
                f'--json={copy}: cannot write there ({error.strerror}): name another '
                'file'
            ) from error
    if FLAGS.compare is None:
        from gptjax.eval import evaluate, quantization_cost

        config, workdir = opening.open_run(words)
        if (FLAGS.weights, FLAGS.cache) != ('whole', 'whole'):
            asked = dict(weights=FLAGS.weights, cache=FLAGS.cache)
            with console.progress_bar('measuring what bytes cost', 0):
                change = quantization_cost.measure_change(
                    config, workdir, FLAGS.step, **asked
                )
            print(quantization_cost.format_change(change, **asked))
            if copy:
                storage.write_json(copy, dict(asked, **change))
            return
        changes = dict(
            max_tokens=FLAGS.max_tokens,
            temperature=FLAGS.temperature,
            top_k=FLAGS.top_k,
            top_p=FLAGS.top_p,
            seed=FLAGS.seed if FLAGS['seed'].present else None,
        )
        config.eval.update({k: v for k, v in changes.items() if v is not None})
        check_fields(config)
        evaluate.evaluate(config, workdir, FLAGS.tasks, copy, FLAGS.step)
        return
    from gptjax.eval import compare

    if len(words) != 1:
        raise UserError('--compare: name two run directories or results: --compare A B')
    compare.compare(FLAGS.compare, words[0], copy)


def _sample(words):
    from gptjax.eval import samples

    config, workdir = opening.open_run(words)
    changes = dict(
        max_tokens=FLAGS.max_tokens,
        temperature=FLAGS.temperature,
        top_k=FLAGS.top_k,
        top_p=FLAGS.top_p,
        min_p=FLAGS.min_p,
    )
    config.sample.update({k: v for k, v in changes.items() if v is not None})
    check_fields(config)
    samples.sample(config, workdir, FLAGS.prompt, FLAGS.seed, FLAGS.step)


def _serve(words):
    from gptjax.serve import serve

    config, workdir = opening.open_run(words)
    options = serve.Options(
        host=FLAGS.host,
        port=FLAGS.port,
        step=FLAGS.step,
        beside=FLAGS.beside,
        api_key_file=FLAGS.api_key_file,
        allowed_hosts=FLAGS.allowed_hosts,
        slots=FLAGS.slots,
        queue=FLAGS.queue,
        time_limit=FLAGS.time_limit,
        **_engine_options(),
    )
    serve.serve(config, workdir, options)


def _chat(words):
    from gptjax.serve import terminal

    config, workdir = opening.open_run(words)
    terminal.chat(config, workdir, **_engine_options())


def _engine_options():
    """How `serve` and `chat` keep and speed up a model; see `load_engine`."""
    return dict(
        weights=FLAGS.weights,
        cache=FLAGS.cache,
        draft=_draft(),
        guesses=FLAGS.guesses,
    )


def _draft():
    return Path(FLAGS.draft).expanduser().absolute() if FLAGS.draft else None


def _report(words):
    from gptjax.eval.report import last_screen, run_report

    _, workdir = opening.open_run(words)
    path = run_report.write_report(workdir)
    print(last_screen.last_screen(workdir, path))


def _stages(words):
    from gptjax.eval import stage_table

    if not FLAGS.workdir:
        raise UserError('--workdir is missing: name the folder of the runs, as runs')
    stage_table.write_stage_table(Path(FLAGS.workdir).expanduser().absolute(), words)


def _bench(words):
    command_line.no_more(words[1:])
    if words[:1] == ['data']:
        from gptjax.bench import bench_data

        config, workdir = opening.open_run([])
        bench_data.run(config, workdir)
    elif words[:1] == ['train']:
        from gptjax.bench import bench_train

        if FLAGS.config is None:
            raise UserError('--config is missing: give one, as configs/bench.py')
        check_fields(FLAGS.config)
        bench_train.run(FLAGS.config, FLAGS.against, FLAGS.against_python)
    elif words[:1] == ['decode']:
        from gptjax.bench import bench_decode

        config, workdir = FLAGS.config, None
        if FLAGS.workdir:
            config, workdir = opening.open_run([])
        if config is None:
            raise UserError('--config is missing: give one, as configs/bench.py:llama')
        check_fields(config)
        bench_decode.run(
            config,
            workdir,
            FLAGS.step,
            against=FLAGS.against,
            python=FLAGS.against_python,
            slots=FLAGS.slots if FLAGS['slots'].present else None,
            draft=_draft(),
            guesses=FLAGS.guesses,
        )
    else:
        known = '`bench decode`, `bench data` or `bench train`'
        raise UserError(f'bench {" ".join(words)}: use {known}')


STAGES = {
    'data': _data,
    'tokenizer': _tokenizer,
    'prepare': _prepare,
    'task': _task,
    'pretrain': _pretrain,
    'sft': _sft,
    'reward': _reward,
    'select': _select,
    'best_of': _best_of,
    'dpo': _dpo,
    'ppo': _ppo,
    'grpo': _grpo,
    'overoptimize': _overoptimize,
    'eval': _eval,
    'sample': _sample,
    'report': _report,
    'stages': _stages,
    'serve': _serve,
    'chat': _chat,
    'bench': _bench,
}
HELP = {
    'data': 'build the datasets, clean and split them; with --step, show a batch',
    'tokenizer': 'train the tokenizer on the training split',
    'prepare': 'everything up to packed shards',
    'task': 'problems with right answers, as files to train on',
    'pretrain': 'train the model, after whatever is not prepared',
    'sft': 'fine-tune a pretrained run on conversations, in full or by LoRA',
    'reward': 'a reward model from human ratings, or your own preferences',
    'select': 'the best of a model’s own replies, to train on',
    'best_of': 'of n replies the one that a reward likes best',
    'dpo': 'learn from pairs of replies: DPO, IPO, KTO, ORPO, SimPO',
    'ppo': 'reinforcement learning with a critic (PPO)',
    'grpo': 'and without: GRPO, Dr. GRPO, DAPO, GSPO, RLOO, REINFORCE',
    'overoptimize': 'proxy and gold reward over KL: how far can a proxy be trusted?',
    'eval': 'bits per byte, replies, choices beside baselines; --compare A B',
    'sample': 'text from prompts',
    'report': 'one HTML page of the run',
    'stages': 'several runs in one table, each beside its control',
    'serve': 'an API and a chat page on this machine',
    'chat': 'talk to the model in the terminal',
    'bench': '`bench data`, `train`, `decode` [--against torch]: how fast is it?',
}
