"""The TFDS dataset `chatterbot`: short handwritten dialogues in thirty languages.

It is made from the package `chatterbot-corpus`. `chatterbot/english` has the dialogues
of one language.
"""

import re

import tensorflow_datasets as tfds
import yaml

from gptjax.data.chat_template import conversation_text
from gptjax.data.sources.tfds_source import find_package

ALL = 'all'
PACKAGE, PACKAGE_VERSION = find_package('chatterbot-corpus')
DATA = PACKAGE / 'data'
LANGUAGES = sorted(folder.name for folder in DATA.iterdir() if folder.is_dir())


class Chatterbot(tfds.core.GeneratorBasedBuilder):
    """One split 'train' of dialogues; there is a config for each language."""

    VERSION = tfds.core.Version(PACKAGE_VERSION)
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=name, description=f'{name} dialogues')
        for name in (ALL, *LANGUAGES)
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description='Short question-and-answer dialogues, written by volunteers.',
            features=tfds.features.FeaturesDict(
                {
                    'id': tfds.features.Text(doc='language/file#place'),
                    'text': tfds.features.Text(doc='utterances, an empty line apart'),
                    'language': tfds.features.Text(doc='in English, as "french"'),
                    'categories': tfds.features.Sequence(tfds.features.Text()),
                    'utterances': tfds.features.Sequence(
                        tfds.features.Text(), doc='two speakers in turn'
                    ),
                }
            ),
            homepage='https://github.com/gunthercox/chatterbot-corpus',
            license='BSD',
            citation=(
                '@misc{chatterbot_corpus,\n'
                '  title = {ChatterBot Language Training Corpus},\n'
                '  author = {Cox, Gunther},\n'
                '  howpublished = {https://github.com/gunthercox/chatterbot-corpus}\n'
                '}'
            ),
        )

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples()}

    def _generate_examples(self):
        chosen = self.builder_config.name
        for language in LANGUAGES if chosen == ALL else [chosen]:
            for path in sorted((DATA / language).glob('*.yml')):
                content = yaml.safe_load(path.read_text(encoding='utf-8'))
                for place, dialogue in enumerate(content['conversations']):
                    utterances = _utterances(dialogue)
                    identity = f'{language}/{path.stem}#{place}'
                    turns = ((str(n % 2), text) for n, text in enumerate(utterances))
                    example = dict(
                        id=identity,
                        text=conversation_text(turns),
                        language=language,
                        categories=[str(name) for name in content['categories']],
                        utterances=utterances,
                    )
                    yield identity, example


def _utterances(dialogue: list | str) -> list[str]:
    """The utterances; in a few files a dialogue is one string: 'Hi - Hey' → two."""
    if isinstance(dialogue, str):
        return re.split(r'\s+- ', dialogue)
    return [str(utterance) for utterance in dialogue]
