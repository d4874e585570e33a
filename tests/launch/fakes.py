"""Stand-ins for the programs of the platforms, which know the flags of each command.

Each is started as a program: it refuses a command or flag that the reference page does
not have, logs its words and standard input to $LOG as a line of JSON, and prints what
$REPLIES (JSON: command -> text) has for it; a text that starts with '!' is an error.
"""

import json
import os
import sys

GCLOUD = 'https://cloud.google.com/sdk/gcloud/reference/compute/tpus'
SLURM = 'https://slurm.schedmd.com'
SKY = 'https://docs.skypilot.co/en/stable/reference/cli.html'
RAY = (
    'https://docs.ray.io/en/latest/cluster/running-applications/job-submission/cli.html'
)
KUBECTL = 'https://kubernetes.io/docs/reference/kubectl/generated'
# command: (its page, its flags that are used here or come near to them). The flags of
# gcloud and kubectl were also compared with the --help of version 528 and 1.32.
COMMANDS = {
    'gcloud compute tpus queued-resources create': (
        f'{GCLOUD}/queued-resources/create',
        'zone accelerator-type topology type runtime-version node-id node-count '
        'node-prefix async spot guaranteed reserved labels metadata '
        'metadata-from-file network subnetwork internal-ips service-account',
    ),
    'gcloud compute tpus queued-resources delete': (
        f'{GCLOUD}/queued-resources/delete',
        'zone async force quiet',
    ),
    'gcloud compute tpus queued-resources list': (
        f'{GCLOUD}/queued-resources/list',
        'zone filter limit page-size sort-by uri format',
    ),
    'gcloud compute tpus tpu-vm ssh': (
        f'{GCLOUD}/tpu-vm/ssh',
        'zone worker command internal-ip ssh-flag ssh-key-file plain dry-run',
    ),
    'gcloud storage cp': (
        'https://cloud.google.com/sdk/gcloud/reference/storage/cp',
        'no-clobber recursive if-generation-match',
    ),
    'kubectl create': (
        f'{KUBECTL}/kubectl_create/',
        'filename dry-run validate output',
    ),
    'kubectl delete': (
        f'{KUBECTL}/kubectl_delete/',
        'filename selector ignore-not-found wait cascade',
    ),
    'kubectl get': (f'{KUBECTL}/kubectl_get/', 'selector output namespace'),
    'kubectl logs': (
        f'{KUBECTL}/kubectl_logs/',
        'selector follow tail container prefix previous since timestamps',
    ),
    'sbatch': (
        f'{SLURM}/sbatch.html',
        'job-name comment nodes ntasks-per-node gpus-per-node requeue open-mode '
        'output signal time partition account dependency',
    ),
    'squeue': (f'{SLURM}/squeue.html', 'me noheader format name states'),
    'scancel': (f'{SLURM}/scancel.html', 'me name signal batch'),
    'sky jobs launch': (SKY, 'detach-run yes name env'),
    'sky jobs queue': (SKY, 'skip-finished refresh all'),
    'sky jobs cancel': (SKY, 'name yes all'),
    'sky jobs logs': (SKY, 'name follow controller'),
    'ray job submit': (
        RAY,
        'address submission-id working-dir no-wait runtime-env metadata-json',
    ),
    'ray job logs': (RAY, 'address follow'),
    'ray job stop': (RAY, 'address no-wait'),
    'ray job delete': (RAY, 'address'),
    'tail': ('coreutils', 'lines follow retry'),
}
PROGRAMS = sorted({command.split()[0] for command in COMMANDS} - {'tail'})


def split_flags(command: str, words: list[str]) -> list[str]:
    """The flags of a call; SystemExit for one that its page does not have."""
    own = words[: words.index('--')] if '--' in words else words
    flags = [
        word[2:].split('=')[0] for word in own if word.startswith('--') and word[2:]
    ]
    page, known = COMMANDS[command]
    for flag in flags:
        if flag not in known.split():
            sys.exit(f'{command}: unrecognized arguments: --{flag} (see {page})')
    return flags


def find_command(words: list[str]) -> str:
    for length in range(len(words), 0, -1):
        if ' '.join(words[:length]) in COMMANDS:
            return ' '.join(words[:length])
    sys.exit(f'{words[0]}: no such command: {words[:4]}')


def main(words: list[str]) -> None:
    words[0] = os.path.basename(words[0])
    command = find_command(words)
    rest = words[len(command.split()) :]
    split_flags(command, rest)
    text = ''
    if command == 'sbatch' or '--filename=-' in rest:
        text = sys.stdin.read()
    files = {}  # what the call names, as it is gone afterwards
    for word in rest:
        path = word.split('=')[-1]
        if os.path.isfile(path) and path.endswith(('startup.sh', 'job.yaml')):
            with open(path, encoding='utf-8') as file:
                files[os.path.basename(path)] = file.read()
    with open(os.environ['LOG'], 'a', encoding='utf-8') as log:
        log.write(json.dumps([command, rest, text, files]) + '\n')
    reply = json.loads(os.environ.get('REPLIES', '{}')).get(command, '')
    if reply.startswith('!'):
        sys.exit(reply[1:])
    print(reply, end='')


if __name__ == '__main__':
    main(sys.argv)
