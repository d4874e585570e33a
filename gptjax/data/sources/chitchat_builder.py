"""The TFDS dataset `chitchat`: conversations between two people, and their ratings.

It is the corpus of the BYU Chit-Chat Challenge (2018) with 7,168 conversations and
258,145 messages, from the package `chitchat-dataset`.
"""

import json

import numpy as np
import tensorflow_datasets as tfds

from gptjax.core import console
from gptjax.data.chat_template import conversation_text
from gptjax.data.chitchat import RATING_NAMES, UNRATED
from gptjax.data.sources.tfds_source import find_package

PACKAGE, PACKAGE_VERSION = find_package('chitchat-dataset')


class Chitchat(tfds.core.GeneratorBasedBuilder):
    """One split 'train' of conversations.

    Pretraining reads the feature `text`, fine-tuning reads `messages`, and the reward
    model reads `ratings`.
    """

    VERSION = tfds.core.Version(PACKAGE_VERSION)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description='Open-domain conversations between two people, rated by them.',
            features=tfds.features.FeaturesDict(
                {
                    'id': tfds.features.Text(doc='UUID of the conversation'),
                    'text': tfds.features.Text(doc='messages as lines, turns apart'),
                    'prompt': tfds.features.Text(doc="the topic offered; '': none"),
                    'start': tfds.features.Text(doc='ISO 8601, UTC'),
                    'messages': tfds.features.Sequence(
                        {
                            'turn': tfds.features.Scalar(np.int32, doc='from 0'),
                            'sender': tfds.features.Text(doc='UUID of the person'),
                            'text': tfds.features.Text(),
                            'timestamp': tfds.features.Text(doc='ISO 8601, UTC'),
                        }
                    ),
                    'ratings': tfds.features.FeaturesDict(
                        {
                            name: tfds.features.Scalar(
                                np.int32, doc='1 (least) to 10; 0: not rated'
                            )
                            for name in RATING_NAMES
                        }
                    ),
                }
            ),
            homepage='https://github.com/BYU-PCCL/chitchat-dataset',
            license='MIT',
            citation=(
                '@inproceedings{myers2020conversational,\n'
                '  title = {Conversational Scaffolding: An Analogy-Based Approach to '
                'Response Prioritization in Open-Domain Dialogs},\n'
                '  author = {Myers, Will and Etchart, Tyler and Fulda, Nancy},\n'
                '  booktitle = {International Conference on Agents and Artificial '
                'Intelligence (ICAART)},\n'
                '  year = {2020}\n'
                '}'
            ),
        )

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples(PACKAGE / 'dataset.json')}

    def _generate_examples(self, path):
        conversations = json.loads(path.read_text(encoding='utf-8'))
        with console.progress_bar(
            'chitchat', len(conversations), 'conversations'
        ) as advance:
            for identity, conversation in conversations.items():
                messages = [
                    dict(message, turn=turn)  # sender, text and timestamp
                    for turn, turn_messages in enumerate(conversation['messages'])
                    for message in turn_messages
                ]
                ratings = conversation.get('ratings', {})
                example = dict(
                    id=identity,
                    text=conversation_text((m['sender'], m['text']) for m in messages),
                    prompt=conversation.get('prompt', ''),
                    start=conversation['start'],
                    messages=messages,
                    ratings={
                        name: int(ratings.get(name, UNRATED)) for name in RATING_NAMES
                    },
                )
                yield identity, example
                advance(1)
