"""The parametrisation: how initial weights and updates depend on the model's width.

With 'standard' they are those of the config at every width, so that the best learning
rate of a wide model is lower than that of a narrow one. With 'mup', muP (Yang et al.
2022, arXiv 2203.03466, table 3), it stays where it is, and can be found with a narrow
model. For m = model.width / optim.base_width, muP multiplies

                             initial weights    updates of Adam, Lion    of Muon
    matrices of the layers   1 / sqrt(m)        1 / m                    1
    the head                 1 / sqrt(m)        1 / m                    1 / m
    embeddings, vectors      1                  1                        1

At the base width it changes nothing. The standard deviation of the head is 0.25 /
sqrt(width) already, and becomes proportional to 1 / width, so that logits need no
multiplier: the model computes what it always does, and later stages, export and serving
know nothing of muP. Muon gives the update of a matrix the spectral norm
sqrt(max(1, out / in)), which does not depend on the width: that is muP's condition
(Yang et al. 2023, arXiv 2310.17813), and the head, which Adam updates, has the factor.

muP divides attention scores by the size of a head instead of its root. For heads of one
size this is a constant: let `model.num_heads` grow with the width. If `model.head_dim`
grows instead, set `model.query_scale` to sqrt(base head_dim) / head_dim.
"""

import jax
import optax

from gptjax.core.console import UserError
from gptjax.models.linear import INPUT_AXES
from gptjax.optim.update_rules import is_matrix


def check_parametrization(config) -> None:
    """Refuses what muP is not defined for here."""
    optim, lora = config.optim, config.get('lora')
    if optim.parametrization != 'mup':
        return
    if not optim.base_width:
        raise UserError(
            'optim.base_width=0: optim.parametrization=mup needs the width at '
            'which the learning rate was tuned: e.g. 64'
        )
    other = 'or optim.parametrization=standard'
    if optim.name == 'adafactor':
        raise UserError(
            'optim.name=adafactor: its updates are relative to the weights, and '
            f'optim.parametrization=mup has no factor for it: use adamw, {other}'
        )
    if config.model.tie_embeddings:
        raise UserError(
            'model.tie_embeddings=True: one matrix cannot have the updates of an '
            f'embedding and of a head: use False, {other}'
        )
    if lora and lora.rank:
        raise UserError(
            f'lora.rank={lora.rank}: optim.parametrization=mup has no factors for '
            f'A and B: use 0, {other}'
        )


def scale_initial(config, params):
    """The initial parameters of the model at its width; see above."""
    if config.optim.parametrization != 'mup':
        return params
    factor = (config.model.width / config.optim.base_width) ** -0.5

    def scale(path, param):
        return factor * param if path[-1].key in INPUT_AXES else param

    return jax.tree_util.tree_map_with_path(scale, params)


def scale_updates(config) -> optax.GradientTransformation:
    """Multiplies what an update rule returns; weight decay comes later, unchanged."""
    factor = config.optim.base_width / config.model.width

    def scale(path, update):
        orthogonal = config.optim.name == 'muon' and is_matrix(path)
        has_factor = path[-1].key in INPUT_AXES and not orthogonal
        return factor * update if has_factor else update

    return optax.stateless(
        lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates)
    )
