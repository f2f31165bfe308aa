"""A training that may be killed at any time, ``kill -9`` included, and goes on where its last checkpoint was.

Start it, kill it, start it again with the same arguments:

    python examples/resume.py --env Pendulum-v1 --total-timesteps 20000 --save-freq 1000 --save-path logs/resume

A checkpoint is a model (networks, optimisers, entropy coefficient, number of steps) and its replay buffer. EnergySAC writes
each file beside its final name and renames it when it is whole, so that a checkpoint whose two files are there is complete.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
from stable_baselines3.common.callbacks import CheckpointCallback

from sb3_energy import EnergySAC


class Checkpoint(NamedTuple):
    """
    What CheckpointCallback wrote at one step.

    :param n_steps: the step
    :param model: path of the model
    :param replay_buffer: path of its replay buffer
    """

    n_steps: int
    model: Path
    replay_buffer: Path


def complete_checkpoints(save_path: Path) -> list[Checkpoint]:
    """
    :param save_path: where CheckpointCallback writes to
    :return: the checkpoints that have both files, the oldest first
    """
    checkpoints = []
    for model in save_path.glob("rl_model_*_steps.zip"):
        n_steps = int(model.stem.split("_")[-2])
        replay_buffer = save_path / f"rl_model_replay_buffer_{n_steps}_steps.pkl"
        if replay_buffer.exists():
            checkpoints.append(Checkpoint(n_steps, model, replay_buffer))
    return sorted(checkpoints)


class NewestCheckpointCallback(CheckpointCallback):
    """SB3's callback with replay buffers; when a checkpoint is complete, the others are removed."""

    def _on_step(self) -> bool:
        super()._on_step()
        if self.n_calls % self.save_freq == 0:
            newest = complete_checkpoints(Path(self.save_path))[-1]
            for path in Path(self.save_path).glob("rl_model_*_steps.*"):
                if path not in (newest.model, newest.replay_buffer):
                    path.unlink()
        return True


def new_or_resumed(env: str, save_path: Path) -> EnergySAC:
    """
    :param env: id of the environment
    :param save_path: where the checkpoints are
    :return: the model of the newest checkpoint with its replay buffer, or a new one if there is none
    """
    for unfinished in save_path.glob(".rl_model_*"):  # left by a kill in the middle of writing
        unfinished.unlink()
    checkpoints = complete_checkpoints(save_path)
    if not checkpoints:
        print("No checkpoint: starting at step 0", flush=True)
        return EnergySAC("MlpPolicy", env, verbose=1)
    newest = checkpoints[-1]
    model = EnergySAC.load(newest.model, env=gym.make(env))
    model.load_replay_buffer(newest.replay_buffer)
    assert model.replay_buffer is not None
    print(f"Resuming at step {model.num_timesteps} with {model.replay_buffer.size()} transitions", flush=True)
    return model


def main() -> None:
    """Train to the last step, from wherever a killed training came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Pendulum-v1", help="id of the environment")
    parser.add_argument("--total-timesteps", type=int, default=20_000, help="of all starts together")
    parser.add_argument("--save-freq", type=int, default=1_000, help="steps between two checkpoints")
    parser.add_argument("--save-path", type=Path, default=Path("logs/resume"), help="folder of the checkpoints")
    args = parser.parse_args()
    final = args.save_path / "final_model.zip"
    if final.exists():
        print(f"Finished already: {final}")
        return
    model = new_or_resumed(args.env, args.save_path)
    checkpoints = NewestCheckpointCallback(args.save_freq, str(args.save_path), save_replay_buffer=True)
    # the steps that remain; counted on from those that were made
    model.learn(args.total_timesteps - model.num_timesteps, callback=checkpoints, reset_num_timesteps=False)
    model.save(final)
    print(f"Finished at step {model.num_timesteps}: {final}")


if __name__ == "__main__":
    main()
