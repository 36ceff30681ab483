"""`grpo train` on a GPU rented from https://modal.com.

    pip install modal && modal setup                                       # once
    modal run examples/modal_click_test.py --config examples/configs/lfm2_350m_lora.yaml
    modal run examples/modal_click_test.py --gpu H100 --args "--task click-button --steps 80"
    modal run examples/modal_click_test.py --gpu H100:4                    # four ranks, by torchrun

Shows the progress here. The run is kept in a volume, where it continues from its last checkpoint
after a preemption; its files, except for the checkpoints, are copied to `runs/<name>/`. See
docs/modal.md.
"""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import modal

ROOT = Path(__file__).parents[1]  # of the checkout; Modal's container has only this file there
GPU = "A100-40GB"
CPU, MEMORY = 8.0, 32768  # cores and MiB, per GPU: the browsers bound a step (docs/scale.md)
SECRETS = ("HF_TOKEN", "WANDB_API_KEY")
CACHE, RUNS = "/cache", "/runs"
GRACE_S = 25  # of the 30 seconds that a preempted container has
REFUSED = 2

app = modal.App("grpo-browser")
cache = modal.Volume.from_name("grpo-browser-cache", create_if_missing=True)
runs = modal.Volume.from_name("grpo-browser-runs", create_if_missing=True)
image = (
    modal.Image.from_dockerfile(
        ROOT / "Dockerfile", context_dir=ROOT, build_args={"DEVICE": "cuda"}
    )
    .dockerfile_commands("USER root")  # who may write to the volumes
    .entrypoint([])  # Modal starts its own program
    .env({"HF_HOME": f"{CACHE}/huggingface"})
)
# Always one secret, if an empty one: their number must be the same here and in the container.
secret = modal.Secret.from_dict({name: os.environ[name] for name in SECRETS if name in os.environ})


@app.function(
    image=image,
    gpu=GPU,
    cpu=CPU,
    memory=MEMORY,
    volumes={CACHE: cache, RUNS: runs},
    secrets=[secret],
    timeout=24 * 3600,
    # A preempted container is restarted anyway; these are for crashes and the timeout.
    retries=modal.Retries(max_retries=3, initial_delay=0.0),
    single_use_containers=True,
)
def train(name: str, config: str, folder: str = RUNS, ranks: int = 1) -> tuple[int, bytes]:
    """Run `grpo train` to its end, from the run's last checkpoint if there is one.

    Args:
        name: of the run.
        config: the run's configuration as YAML.
        folder: parent of the run's folder.
        ranks: processes that train together, one per GPU.

    Returns:
        The exit code, 0 or 2 (refused, so that a restart would not help), and the run's files.

    Raises:
        RuntimeError: the run ended with another exit code; Modal restarts it.
    """
    run = Path(folder, name)
    run.mkdir(parents=True, exist_ok=True)
    path = run / "modal.yaml"
    path.write_text(config)
    options = ["--config", str(path), "--output", str(run), "--resume"]
    try:
        code = run_to_end([*python(ranks), "-m", "grpo", "train", *options])
    finally:
        if not modal.is_local():
            runs.commit()
    if code not in (0, REFUSED):
        raise RuntimeError(f"grpo train ended with exit code {code}")
    return code, pack(run) if code == 0 else b""


def python(ranks: int) -> list[str]:
    """Return the command that starts a Python program in this many ranks."""
    torchrun = ["-m", "grpo.torchrun", "--standalone", "--nproc-per-node", str(ranks)]
    return [sys.executable, *(torchrun if ranks > 1 else [])]


def count_gpus(gpu: str) -> int:
    """Return the number of GPUs that one of Modal's names asks for: 4 for `H100:4`.

    Raises:
        ValueError: the number is not one.
    """
    _, colon, count = gpu.partition(":")
    if colon and not (count.isdecimal() and int(count) > 0):
        raise ValueError(f"gpu must be a name, or a name and a number as H100:4, got {gpu!r}")
    return int(count or 1)


def run_to_end(command: list[str]) -> int:
    """Run a program; on an interrupt tell it to save and wait until it has.

    Returns:
        Its exit code.
    """
    # Ranks share the cores, and torchrun must have ended those that are late before it is killed.
    several = {"OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(GRACE_S - 2)}
    own = several if "grpo.torchrun" in command else {}
    # A session of its own: a signal to all processes would reach it twice.
    process = subprocess.Popen(command, env=os.environ | own, start_new_session=True)
    try:
        return process.wait()
    finally:  # Modal's interrupts are exceptions of several kinds
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def pack(run: Path) -> bytes:
    """Pack a run's files, except for its checkpoints."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(run.rglob("*")):
            name = path.relative_to(run)
            if path.is_file() and name.parts[0] != "checkpoints":
                archive.write(path, name)
    return packed.getvalue()


def unpack(packed: bytes, run: Path) -> None:
    """Unpack the result of `pack` into a run's folder."""
    run.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:  # never writes outside of the folder
        archive.extractall(run)


@app.local_entrypoint()
def main(
    config: str = "", args: str = "", env_url: str = "", gpu: str = GPU, name: str = ""
) -> None:
    """Train on Modal and copy the weights and the report back.

    Args:
        config: YAML file, e.g. one of examples/configs.
        args: options of grpo train, as one text.
        env_url: OpenEnv server or Space; empty for browsers in the container.
        gpu: A100-40GB, H100, L4, ... (https://modal.com/docs/guide/gpu); H100:4 for four.
        name: of the run; an earlier run's name continues it.
    """
    from grpo.arguments import read_config
    from grpo.errors import ConfigError

    options = shlex.split(args)
    for option, value in (("--config", config), ("--env-url", env_url)):
        options += [option, value] if value else []
    try:  # errors that do not need a GPU are found before one is paid for
        run = read_config(options, prog="grpo train", description="Options that --args takes.")
        ranks = count_gpus(gpu)
    except (ConfigError, ValueError) as error:
        sys.exit(f"error: {error}")
    name = name or f"{run.folder.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    print(f"{name}: --name {name} continues it")
    remote = train.with_options(gpu=gpu, cpu=CPU * ranks, memory=MEMORY * ranks)
    code, packed = remote.remote(name, run.to_yaml(), ranks=ranks)
    if code:
        sys.exit(code)
    unpack(packed, Path("runs", name))
    print(f"runs/{name}/  its checkpoints: modal volume get grpo-browser-runs {name}")
