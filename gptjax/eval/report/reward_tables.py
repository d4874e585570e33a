"""The evaluation of a reward model, for the screen and for the report."""

from collections.abc import Mapping

from gptjax.eval.report.tables import (
    format_figure,
    format_interval,
    format_number,
    print_table,
)

MODEL = 'reward model'


def print_reward(evaluation: Mapping) -> None:
    """Prints the evaluation of a reward model."""
    groups = [group for group, count in evaluation['pairs'].items() if count]
    rank_correlation = evaluation.get('spearman', {})
    heading = ['']
    for group in groups:
        heading += [f'{group} ({evaluation["pairs"][group]:,})', 'model ahead by']
    rows = [heading + ['rank correlation'] * bool(rank_correlation)]
    for name in evaluation['accuracy']['all']:
        row = [name]
        for group in groups:
            figure = evaluation['accuracy'][group][name]
            ahead = format_figure(figure['ahead']) if 'ahead' in figure else ''
            row += [format_figure(figure), ahead]
        if rank_correlation:
            row.append(format_figure(rank_correlation[name]))
        rows.append(row)
    print(
        f'Accuracy on pairs of {evaluation["conversations"]["test"]:,} held-out '
        f'conversations, {evaluation["target"]}, step '
        f'{evaluation["checkpoint_step"]:,}; '
        f'{evaluation["bootstrap"]["level"]:.0%} intervals over conversations'
    )
    print_table(rows)
    print(calibration_text(evaluation['calibration']))
    print(verdict(evaluation))


def verdict(evaluation: Mapping) -> str:
    """Compares the reward model with the best baseline of each group of pairs."""
    clauses = []
    for group, figures in evaluation['accuracy'].items():
        if group == 'unread' or not evaluation['pairs'][group]:
            continue
        baselines = {name: f for name, f in figures.items() if name != MODEL}
        best = max(baselines, key=lambda name: baselines[name]['value'])
        low, high = baselines[best]['ahead']['interval']
        if low is None:  # there are too few pairs for an interval
            continue
        comparison = 'not clearly different from'
        if low > 0:
            comparison = 'better than'
        elif high < 0:
            comparison = 'worse than'
        clauses.append(f'on {group} pairs it is {comparison} {best}')
    return f'the reward model: {"; ".join(clauses)}'


def calibration_text(calibration: Mapping) -> str:
    """How far the model's probabilities, or its scores, agree with the ratings."""
    if 'slope' in calibration:
        slope = format_number(calibration['slope'])
        return f'calibration: ratings grow by {slope} when the score grows by one'
    bins = '; '.join(
        f'{row["said"]:.2f} predicted, {row["true"]:.2f} true ({row["count"]:,})'
        for row in calibration['bins']
    )
    error = calibration['expected_calibration_error']
    return f'calibration: {bins}; expected error {error:.3f}'


def reward_rows(evaluation: Mapping) -> list[list]:
    """The table of the report, heading first; a cell is a text or [text, note]."""
    groups = [group for group, count in evaluation['pairs'].items() if count]
    columns = [evaluation['accuracy'][group] for group in groups]
    heading = ['', *(f'{g} pairs\n({evaluation["pairs"][g]:,})' for g in groups)]
    if 'spearman' in evaluation:
        columns.append(evaluation['spearman'])
        heading.append('rank\ncorrelation')
    rows = [heading]
    for name in columns[0]:
        row = [name]
        for column in columns:
            note = format_interval(column[name]['interval'])
            if 'ahead' in column[name]:
                ahead = format_figure(column[name]['ahead'])
                note += f'; the model is ahead by {ahead}'
            row.append((format_number(column[name]['value']), note))
        rows.append(row)
    return rows
